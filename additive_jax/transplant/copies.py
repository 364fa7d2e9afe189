"""How the units of a space are taken over into a space of another size, and a leaf along with them.

Let unit u have copies j with shares s_j that sum to 1. What writes u is copied for each j; what
reads u is copied and multiplied by s_j. The sum over the copies is the old one, and since the
shares differ, so do the gradients of the copies (Chen et al. 2016, arXiv:1511.05641; Wang et al.
2023, arXiv:2310.07999). So each axis of a leaf has a linear map V from old to new parameters. It
has a second one, G, from the old gradient to the new, with VᵀG = 1; Gᵀ thus takes copies together
again.
"""

from __future__ import annotations

import dataclasses
import math
import zlib

import jax
import numpy as np

from additive_jax.transplant.wiring import BIAS, KEY, LAYER, QUERY, READS, SCALE, WRITES, Axis

PAD = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Copies:
  """The units of a new space of n' units as copies of those of an old one of n.

  Attributes:
    source: the old unit of each new one, or `PAD`, int [n'].
    shares: s of each copy, float64 [n'], 0 for pads.
    size: n.
    norm: of the space, 'layer', 'rms' or None.
    spread: a, what the copies' distances from the stream's mean are multiplied by (under RMSNorm:
      from zero), and what the norm's scale is divided by.
  """

  source: np.ndarray
  shares: np.ndarray
  size: int
  norm: str | None = None
  spread: float = 1.0

  @property
  def is_pad(self) -> np.ndarray:
    return self.source == PAD

  @property
  def multiplicity(self) -> np.ndarray:
    """The number of copies of the unit of each new one, 1 for pads; int [n']."""
    counts = np.bincount(self.source[~self.is_pad], minlength=self.size)
    return np.where(self.is_pad, 1, counts[self.source])

  def factors(self, role: str) -> tuple[np.ndarray, np.ndarray]:
    """What V and G multiply the copies by along an axis of that role; 0 for pads."""
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
  name: str, size: int, new_size: int, norm: str | None, key: jax.Array, unequal: float
) -> Copies:
  """A larger space.

  Without a norm every unit gets ⌊n'/n⌋ or ⌈n'/n⌉ copies, next to each other: equal parts of the old
  space become equal parts of the new. With one, n' = q·n + r, every unit gets q copies and r pads
  follow. Under LayerNorm pads hold the stream's mean, and copies are moved from it by a factor
  a = √(n'/qn), so that mean and variance are the old ones, whatever the norm's epsilon. After the
  norm, whose scale is divided by a, copies are equal to their unit, and pads are zero: what reads
  them may be anything. Under RMSNorm the same holds with zero for the mean.

  Args:
    name: of the space, folded into the key.
    size, new_size: n and n' ≥ n.
    norm: 'layer', 'rms' or None.
    unequal: shares are drawn in [1 − unequal, 1 + unequal] and divided by their sum over the copies
      of a unit; 0 makes copies equal, and they stay so for ever.
  """
  if norm is None:
    source, spread = np.arange(new_size) * size // new_size, 1.0
  else:
    times = new_size // size
    source = np.repeat(np.arange(size), times)
    source = np.append(source, np.full(new_size - len(source), PAD))
    spread = math.sqrt(new_size / (times * size))
  own = jax.random.fold_in(key, zlib.crc32(name.encode()))
  draw = np.asarray(jax.random.uniform(own, (new_size,)), np.float64)
  draw = np.where(source == PAD, 0, 1 + unequal * (2 * draw - 1))
  total = np.bincount(source[source != PAD], draw[source != PAD], minlength=size)
  shares = np.where(source == PAD, 0, draw / total[source])
  return Copies(source, shares, size, norm, spread)


def selected(strengths: np.ndarray, new_size: int, norm: str | None) -> Copies:
  """A smaller space: the `new_size` strongest units, in their order."""
  source = np.sort(np.argsort(-np.asarray(strengths), stable=True)[:new_size])
  return Copies(source, np.ones(new_size), len(strengths), norm)


def parameters(leaf, axes: tuple[Axis | None, ...], copies: dict[str, Copies], fresh) -> np.ndarray:
  """V: the leaf of the new pool, float64.

  Args:
    leaf: of the old pool.
    axes: of the leaf; `copies` has the space of each, under its name in the new pool.
    fresh: the leaf of an initial new pool: what reads or scales a pad is taken from it.
  """
  new = np.asarray(leaf, np.float64)
  for i, axis in enumerate(axes):
    if axis is not None:
      own = copies[axis.space]
      centred = own.norm == LAYER and axis.role == WRITES
      mean = new.mean(i, keepdims=True) if centred else 0
      new = mean + _times(np.take(new - mean, own.source, i), own.factors(axis.role)[0], i)
  for i, axis in enumerate(axes):
    if axis is not None and axis.role in (READS, SCALE):
      new = np.where(_along(copies[axis.space].is_pad, i, new.ndim), fresh, new)
  return new


def gradients(
  leaf, axes: tuple[Axis | None, ...], copies: dict[str, Copies], power: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """G, for an optimizer's means of gradients, or for `power` 2 its like for means of squares: the
  leaf of the new pool, float64, and where it is known, bool: not at pads.
  """
  new = np.asarray(leaf, np.float64)
  known = np.ones((1,) * new.ndim, bool)
  for i, axis in enumerate(axes):
    if axis is not None:
      own = copies[axis.space]
      new = _times(np.take(new, own.source, i), own.factors(axis.role)[1] ** power, i)
      known = known & _along(~own.is_pad, i, new.ndim)
  return new, np.broadcast_to(known, new.shape)


def merged(leaf, axes: tuple[Axis | None, ...], copies: dict[str, Copies]) -> np.ndarray:
  """Gᵀ: the leaf of the old pool from one of the new, float64. Of copies that were trained apart
  it takes what the old network needs: sums of what reads them, means of what writes them."""
  old = np.asarray(leaf, np.float64)
  for i, axis in enumerate(axes):
    if axis is not None:
      own = copies[axis.space]
      weighted = np.moveaxis(_times(old, own.factors(axis.role)[1], i), i, 0)
      total = np.zeros((own.size, *weighted.shape[1:]))
      np.add.at(total, own.source[~own.is_pad], weighted[~own.is_pad])
      old = np.moveaxis(total, 0, i)
      if own.norm == LAYER and axis.role == WRITES:  # the mean was not spread
        old = old + (own.spread - 1) * old.mean(i, keepdims=True)
  return old


def strengths(leaves: dict, axes: dict, space: str) -> np.ndarray:
  """How strong each unit of a space is: the norm of all that writes it times that of all that reads
  it; of a unit of queries, the norms of its query and of its key.
  """
  squares = {True: 0.0, False: 0.0}
  for path, leaf in leaves.items():
    for i, axis in enumerate(axes[path]):
      if axis is not None and axis.space == space and axis.role not in (SCALE, BIAS):
        others = tuple(j for j in range(leaf.ndim) if j != i)
        squares[axis.role in (READS, KEY)] += np.square(leaf, dtype=np.float64).sum(others)
  return np.sqrt(squares[True] * squares[False])


def _times(leaf, factor, axis):
  return leaf * _along(factor, axis, leaf.ndim)


def _along(vector, axis, ndim):
  return np.reshape(vector, [-1 if i == axis else 1 for i in range(ndim)])
