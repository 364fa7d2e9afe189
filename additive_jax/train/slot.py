"""One slot of a step, as a loss sees it."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from additive_jax.models.additive import Inputs


@dataclasses.dataclass(frozen=True)
class Slot:
  """One slot of a step as a loss sees it: a structure, its examples, and a key to draw with.

  Devices may split the examples of a slot. Each then evaluates the loss of its own share.

  Attributes:
    structure: which gates are on.
    x, y: this device's share of the examples.
    key: another one in each slot and step, the same on all devices that share the slot; None for
      networks that are trained alone.
    step: of the training; None likewise.
    dropout: a key like `key`, for what the network drops; None drops nothing.
    rates: the probability that each gate is on, where structures are drawn with keep rates.
    split: the axes of the mesh over which devices split the examples.
    share: the number of this device among them; of a piece, see `pieces`, its number among all.
    pieces: into how many pieces each device's examples are cut, of which this is one, see `pieces`.
    total: what the sum of these examples' losses is divided by, see `Task.mean`: the weight of the
      whole slot over the number of its parts, on all devices; None where all examples weigh alike.
    number: of the slot among those of the step; None for networks that are trained alone.
  """

  structure: Bool[Array, 'n']
  x: Inputs
  y: PyTree
  key: PRNGKeyArray | None = None
  step: Int[Array, ''] | None = None
  rates: Float[Array, 'n'] | None = None
  split: tuple[str, ...] = ()
  share: int | Int[Array, ''] = 0
  total: Float[Array, ''] | None = None
  dropout: PRNGKeyArray | None = None
  pieces: int = 1
  number: Int[Array, ''] | None = None

  @property
  def num_shares(self) -> int:
    """Into how many shares the examples are split: pieces on each of the devices."""
    return self.pieces * (jax.lax.axis_size(self.split) if self.split else 1)

  def mean(self, values: PyTree) -> PyTree:
    """Returns the mean of values over the devices that split the examples, without gradient."""
    if not self.split:
      return values
    return jax.lax.pmean(jax.lax.stop_gradient(values), self.split)
