"""The units of a space taken over into a space of another size, and a leaf along with them.

Let unit u have copies j with shares s_j that sum to 1. What writes u is copied for each j; what
reads u is copied and multiplied by s_j. The sum over the copies is the old one, and since the
shares differ, so do the gradients of the copies (Chen et al. 2016, arXiv:1511.05641; Wang et al.
2023, arXiv:2310.07999). One unit becomes two, here u with shares ⅓ and ⅔:

  old  x ── w_u ─▶ u ── r_u ─▶ y      new  x ── w_u ─▶ u₁ ── ⅓·r_u ─▶ y
                                           x ── w_u ─▶ u₂ ── ⅔·r_u ─▶ y

So each axis of a leaf has a linear map V from old to new parameters. It has a second one, G, from
the old gradient to the new, with VᵀG = 1; Gᵀ thus takes copies together again.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PRNGKeyArray, Shaped

from additive_jax.transplant.wiring import (
  KEY,
  LAYER,
  QUERY,
  READS,
  SCALE,
  WRITES,
  Axes,
  Leaves,
  Wiring,
)

PAD = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Copies:
  """The units of a new space of n' units as copies of those of an old one of n.

  Attributes:
    source: the old unit of each new one, or `PAD`.
    shares: s of each copy, float64, 0 for pads.
    size: n.
    norm: of the space, 'layer', 'rms' or None.
    spread: a, what the copies' distances from the stream's mean are multiplied by (under RMSNorm:
      from zero), and what the norm's scale is divided by.
  """

  source: Int[np.ndarray, 'new']
  shares: Float[np.ndarray, 'new']
  size: int
  norm: str | None = None
  spread: float = 1.0

  @property
  def is_pad(self) -> Bool[np.ndarray, 'new']:
    """Which new units are copies of none."""
    return self.source == PAD

  @property
  def multiplicity(self) -> Int[np.ndarray, 'new']:
    """How many copies the unit of each new one has; 1 for pads."""
    counts = np.bincount(self.source[~self.is_pad], minlength=self.size)
    return np.where(self.is_pad, 1, counts[self.source])

  def factors(self, role: str) -> tuple[Float[np.ndarray, 'new'], Float[np.ndarray, 'new']]:
    """Returns what V and G multiply the copies by along an axis of that role; 0 for pads."""
    one, shares = (~self.is_pad).astype(float), self.shares
    if role == READS:
      return shares, one
    if role == SCALE:
      return one / self.spread, shares * self.spread
    if role == WRITES:
      return one * self.spread, shares / self.spread
    if role in (QUERY, KEY):
      # Their product is s_j·√(n'/n), as scores are divided by √n' in place of √n. The split is
      # uneven, as otherwise copies of a query and a key would stay multiples of each other.
      root = math.sqrt(len(self.source) / self.size)
      even = np.sqrt(self.multiplicity)
      query, key = shares * even * math.sqrt(root), one / even * math.sqrt(root)
      return (query, key / root) if role == QUERY else (key, query / root)
    return one, shares


def copied(
  name: str, sizes: tuple[int, int], norm: str | None, key: PRNGKeyArray, unequal: float
) -> Copies:
  """Returns a larger space.

  Without a norm every unit gets ⌊n'/n⌋ or ⌈n'/n⌉ copies, next to each other: equal parts of the old
  space become equal parts of the new. With one, n' = q·n + r, every unit gets q copies and r pads
  follow. Under LayerNorm pads hold the stream's mean, and copies are moved from it by a factor
  a = √(n'/qn), so that mean and variance are the old ones, whatever the norm's epsilon. After the
  norm, whose scale is divided by a, copies are equal to their unit, and pads are zero: what reads
  them may be anything. Under RMSNorm the same holds with zero for the mean.

  Args:
    name: of the space, folded into the key.
    sizes: n and n' ≥ n.
    norm: 'layer', 'rms' or None.
    unequal: shares are drawn in [1 − unequal, 1 + unequal] and divided by their sum over the copies
      of a unit; 0 makes copies equal, and they stay so for ever.

  >>> copied('hidden', (2, 4), None, jax.random.key(0), unequal=0.0).shares
  array([0.5, 0.5, 0.5, 0.5])
  """
  size, new_size = sizes
  if norm is None:
    source, spread = np.arange(new_size) * size // new_size, 1.0
  else:
    times = new_size // size
    source = np.repeat(np.arange(size), times)
    source = np.append(source, np.full(new_size - len(source), PAD))
    spread = math.sqrt(new_size / (times * size))
  key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  draw = np.asarray(jax.random.uniform(key, (new_size,)), np.float64)
  draw = np.where(source == PAD, 0, 1 + unequal * (2 * draw - 1))
  total = np.bincount(source[source != PAD], draw[source != PAD], minlength=size)
  shares = np.where(source == PAD, 0, draw / total[source])
  return Copies(source, shares, size, norm, spread)


def selected(strengths: Float[np.ndarray, 'old'], new_size: int, norm: str | None) -> Copies:
  """Returns a smaller space: the `new_size` strongest units, in their order; of equal ones the
  first.

  >>> selected(np.array([0.1, 3.0, 2.0]), 2, None).source
  array([1, 2])
  """
  source = np.sort(np.argsort(-strengths, stable=True)[:new_size])
  return Copies(source, np.ones(new_size), len(strengths), norm)


def parameters(
  leaf: Shaped[np.ndarray, '...'],
  axes: Axes,
  copies: Mapping[str, Copies],
  fresh: Shaped[np.ndarray, '...'],
) -> Float[np.ndarray, '...']:
  """Returns the leaf of the new pool, float64: V of the old one.

  Args:
    leaf: of the old pool.
    axes: of the leaf; `copies` has the space of each, under its name in the new pool.
    fresh: the leaf of an initial new pool: what reads or scales a pad is taken from it.
  """
  new = leaf.astype(np.float64)
  for i, axis in enumerate(axes):
    if axis is not None:
      units = copies[axis.space]
      centred = units.norm == LAYER and axis.role == WRITES
      mean = new.mean(i, keepdims=True) if centred else 0
      new = mean + _times(np.take(new - mean, units.source, i), units.factors(axis.role)[0], i)
  for i, axis in enumerate(axes):
    if axis is not None and axis.role in (READS, SCALE):
      new = np.where(_along(copies[axis.space].is_pad, i, new.ndim), fresh, new)
  return new


def gradients(
  leaf: Shaped[np.ndarray, '...'], axes: Axes, copies: Mapping[str, Copies], power: int = 1
) -> tuple[Float[np.ndarray, '...'], Bool[np.ndarray, '...']]:
  """Returns the leaf of the new pool, float64: G of an optimizer's mean of gradients, or for
  `power` 2 its like for a mean of squares; and where it is known: not at pads."""
  new = leaf.astype(np.float64)
  known = np.ones((1,) * new.ndim, bool)
  for i, axis in enumerate(axes):
    if axis is not None:
      units = copies[axis.space]
      new = _times(np.take(new, units.source, i), units.factors(axis.role)[1] ** power, i)
      known = known & _along(~units.is_pad, i, new.ndim)
  return new, np.broadcast_to(known, new.shape)


def merged(
  leaf: Shaped[np.ndarray, '...'], axes: Axes, copies: Mapping[str, Copies]
) -> Float[np.ndarray, '...']:
  """Returns the leaf of the old pool, float64: Gᵀ of one of the new. Of copies that were trained
  apart it takes what the old network needs: sums of what reads them, means of what writes them."""
  old = leaf.astype(np.float64)
  for i, axis in enumerate(axes):
    if axis is not None:
      units = copies[axis.space]
      weighted = np.moveaxis(_times(old, units.factors(axis.role)[1], i), i, 0)
      total = np.zeros((units.size, *weighted.shape[1:]))
      np.add.at(total, units.source[~units.is_pad], weighted[~units.is_pad])
      old = np.moveaxis(total, 0, i)
      if units.norm == LAYER and axis.role == WRITES:  # the mean was not spread
        old = old + (units.spread - 1) * old.mean(i, keepdims=True)
  return old


def strengths(leaves: Leaves, wiring: Wiring, space: str) -> Float[np.ndarray, 'old']:
  """Returns how strong each unit of a space is: the norm of all that writes it times that of all
  that reads it; of a unit of queries, the norms of its query and of its key. Of a space that
  nothing writes, it is the norm of what reads it."""
  square = lambda leaf, axes: np.square(leaf, dtype=np.float64).sum(axes)
  written, read = wiring.sides(leaves, space, square)
  return np.sqrt(sum(read) * (sum(written) if written else 1.0))


def _times(leaf, factor, axis: int) -> np.ndarray:
  return leaf * _along(factor, axis, leaf.ndim)


def _along(vector, axis: int, ndim: int) -> np.ndarray:
  return np.reshape(vector, [-1 if i == axis else 1 for i in range(ndim)])
