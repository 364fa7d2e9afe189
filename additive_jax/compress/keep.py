"""Masks of the numbers that stay, the largest by magnitude or those that bear little noise; and
training under a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PyTree

from additive_jax.errors import UserError

SCOPES = ('global', 'layer')
THRESHOLD = 3.0  # of log α: 95 % of a weight's power is noise

Magnitudes = Mapping[str, Float[np.ndarray, '...']]


def largest(
  magnitudes: Magnitudes, count: int | Mapping[str, int], scope: str = 'global'
) -> dict[str, Bool[np.ndarray, '...']]:
  """Returns masks of the largest of `Level.magnitudes`, by name. Source: Han et al. 2015
  (arXiv:1506.02626), section 3.

  Args:
    magnitudes: by name.
    count: how many stay: in all, or by name. Every name keeps at least one; of equal ones the first
      stay.
    scope: for a count in all: 'global' compares those of all names with each other, 'layer' keeps
      the same share of each.

  Raises:
    UserError: for another scope, or more than there are.

  >>> largest({'fc1': np.array([3.0, 1.0]), 'fc2': np.array([2.0, 0.5])}, 2)
  {'fc1': array([ True, False]), 'fc2': array([ True, False])}
  """
  if scope not in SCOPES:
    raise UserError(f'scope {scope!r}: expected one of {", ".join(SCOPES)}')
  sizes = {name: values.size for name, values in magnitudes.items()}
  total = sum(sizes.values())
  if isinstance(count, Mapping):
    counts = dict(count)
  elif not 0 <= count <= total:
    raise UserError(f'{count} largest of {total}: expected 0 to {total}')
  elif scope == 'layer':
    counts = {name: round(count * size / total) for name, size in sizes.items()}
  else:
    mask = _first(np.concatenate([values.ravel() for values in magnitudes.values()]), count)
    parts = np.split(mask, np.cumsum(list(sizes.values()))[:-1])
    counts = {name: int(part.sum()) for name, part in zip(sizes, parts)}
  masks = {}
  for name, values in magnitudes.items():
    if counts[name] > values.size:
      raise UserError(f'{counts[name]} largest of {values.size} in {name}: expected no more')
    masks[name] = _first(values.ravel(), max(counts[name], 1)).reshape(values.shape)
  return masks


def _first(values: np.ndarray, count: int) -> np.ndarray:
  """Returns a mask of the `count` largest values; of equal ones the first."""
  mask = np.zeros(values.size, bool)
  mask[np.argsort(-values, kind='stable')[:count]] = True
  return mask


def below_threshold(
  log_alpha: Mapping[str, Float[Array | np.ndarray, '...']], threshold: float = THRESHOLD
) -> dict[str, Bool[np.ndarray, '...']]:
  """Returns masks of what stays by name: where log α is at most the threshold; of a name in which
  it is nowhere, the one that has the lowest, the first of several.

  >>> below_threshold({'fc1': np.array([5.0, 1.0]), 'fc2': np.array([5.0, 4.0])})
  {'fc1': array([False,  True]), 'fc2': array([False,  True])}
  """
  masks = {}
  for name, values in log_alpha.items():
    array = np.asarray(values)
    masks[name] = array <= threshold
    if not masks[name].any():
      masks[name].flat[array.argmin()] = True
  return masks


class KeptState(NamedTuple):
  """The state of `keep_zeros`.

  Attributes:
    free: where the pool may move, bool like the pool.
    inner: the state of the optimizer that is wrapped.
  """

  free: PyTree
  inner: PyTree


def keep_zeros(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """Returns an optimizer for which a number that is zero at the start stays zero.

  The wrapped one sees no gradient there, and its updates are left out. The mask is a part of the
  state, so one compiled program serves every mask, and a checkpoint holds it.

  >>> optimizer = keep_zeros(optax.sgd(1.0))
  >>> state = optimizer.init(jnp.array([0.0, 2.0]))
  >>> optimizer.update(jnp.array([30.0, 2.0]), state)[0].tolist()
  [0.0, -2.0]
  """

  def init(params):
    free = jax.tree.map(lambda leaf: leaf != 0, params)
    return KeptState(free, optimizer.init(params))

  def update(gradient, state, params=None):
    masked = lambda tree: jax.tree.map(lambda leaf, on: jnp.where(on, leaf, 0), tree, state.free)
    updates, inner = optimizer.update(masked(gradient), state.inner, params)
    return masked(updates), KeptState(state.free, inner)

  return optax.GradientTransformation(init, update)
