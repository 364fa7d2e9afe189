"""Random structures per example: for each gate, a random subset of fixed size of the batch.

Sizes are shapes: they are Python numbers, and other keep rates are another program. What is drawn
depends on the key alone. A batch may be cut into equal parts with a subset each, so that devices
which split the batch by parts draw what one device would.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Subsets:
  """How many examples of a batch each gate runs on, in stages over time: static and hashable.

  Attributes:
    keep_rates: one row of n rates for each stage.
    starts: the first step of each stage, rising from 0.
    parts: equal parts that a batch is cut into. A gate of rate p runs on `size(p, rows)` of the
      rows of each part, so rates are rounded to whole rows of a part.

  Raises:
    UserError: for a rate outside [0, 1], or stages or parts that make no sense.
  """

  keep_rates: tuple[tuple[float, ...], ...]
  starts: tuple[int, ...] = (0,)
  parts: int = 1

  def __post_init__(self):
    starts = self.starts
    if len(starts) != len(self.keep_rates) or starts[:1] != (0,) or any(np.diff(starts) <= 0):
      raise UserError(
        f'{len(self.keep_rates)} rows of keep rates for stages from steps {starts}: '
        'expected one row a stage, and steps that rise from 0'
      )
    if len({len(row) for row in self.keep_rates}) > 1:
      lengths = [len(row) for row in self.keep_rates]
      raise UserError(f'rows of {lengths} keep rates: expected as many in each, one per gate')
    if self.parts < 1:
      raise UserError(f'{self.parts} parts of a batch: expected at least 1')
    for row in self.keep_rates:
      check_rates(row)

  def rows(self, batch_size: int) -> int:
    """Rows of one part of a batch.

    Raises:
      UserError: where they differ from part to part.
    """
    if batch_size % self.parts:
      raise UserError(f'a batch of {batch_size} in {self.parts} parts: expected parts that divide')
    return batch_size // self.parts

  def probabilities(self, stage: int, batch_size: int) -> tuple[float, ...]:
    """The exact probability that a gate runs on an example: its size over the rows of a part."""
    rows = self.rows(batch_size)
    return tuple(size(rate, rows) / rows for rate in self.keep_rates[stage])

  def stage(self, step) -> jax.Array:
    """The number of the stage that a traced step lies in."""
    return jnp.sum(step >= jnp.asarray(self.starts)) - 1


def in_stages(rates: Callable, num_steps: int, ramp_steps: float, stages: int, parts: int = 1):
  """`Subsets` that follow a schedule over time, which they hold constant within a stage.

  Args:
    rates: gives the keep rates [n] at a step.
    num_steps: steps of the whole training; those after the ramp are one stage.
    ramp_steps: over how many first steps the rates change.
    stages: into how many equal stages these are cut; each has the rates of its middle. Neighbours
      with the same rates become one.
    parts: see `Subsets`.
  """
  if stages < 1:
    raise UserError(f'{stages} stages of a ramp: expected at least 1')
  end = min(round(ramp_steps), num_steps)
  edges = sorted({*np.linspace(0, end, stages + 1).round().astype(int).tolist(), num_steps})
  table, starts = [], []
  for first, stop in itertools.pairwise(edges):
    middle = (first + stop - 1) / 2 if stop <= end else num_steps
    row = tuple(round(float(rate), 6) for rate in rates(middle))  # they are float32
    if not table or row != table[-1]:
      table.append(row)
      starts.append(first)
  return Subsets(tuple(table), tuple(starts), parts)


def check_rates(rates: Sequence[float]) -> None:
  """Raises `UserError` for a keep rate outside [0, 1]."""
  for rate in rates:
    if not 0 <= rate <= 1:
      raise UserError(f'keep rate {rate}: expected a number in [0, 1]')


def size(rate: float, rows: int) -> int:
  """How many of `rows` examples a gate of a keep rate runs on: the nearest number, halves up."""
  return min(rows, int(rate * rows + 0.5))


def draw(
  key: jax.Array, keep_rates: Sequence[float], rows: int, *, parts: int = 1, first=0
) -> tuple[jax.Array, ...]:
  """Draws one subset for each gate, independently, every subset of its size equally likely.

  Args:
    keep_rates: one per gate, Python numbers.
    rows: examples of each part.
    parts: how many parts of the batch are here.
    first: which part of the whole batch the first one here is; may be traced.

  Returns:
    For each gate the numbers of its examples, int [size·parts], in no order.
  """
  sizes = [size(rate, rows) for rate in keep_rates]

  def shuffled(gate, part):  # ties between 32 bits are too rare to matter
    own = jax.random.fold_in(jax.random.fold_in(key, gate), first + part)
    return part * rows + jnp.argsort(jax.random.bits(own, (rows,)))

  each_part = jax.vmap(shuffled, in_axes=(None, 0))
  order = jax.vmap(each_part, in_axes=(0, None))(jnp.arange(len(sizes)), jnp.arange(parts))
  everything = jnp.arange(rows * parts)
  return tuple(
    everything if count == rows else order[gate, :, :count].reshape(-1)
    for gate, count in enumerate(sizes)
  )


def as_gates(subsets: Sequence[jax.Array], batch_size: int) -> jax.Array:
  """The same subsets as gates per example: float32 [B, n], 1 where the gate runs."""
  columns = [jnp.zeros(batch_size).at[rows].set(1.0) for rows in subsets]
  return jnp.stack(columns, axis=-1)
