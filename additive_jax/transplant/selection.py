"""Transplants that cannot be exact: one pool of several, or the strongest units of a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from additive_jax.errors import UserError
from additive_jax.transplant.copies import copied, selected, strengths
from additive_jax.transplant.growth import Transplant, new_variables
from additive_jax.transplant.pairs import Pairs, Place, pair, params_of
from additive_jax.transplant.wiring import READS, Axes, Leaves

Scores = Mapping[str, Any]  # how strong the units of a space are, [n], by the space's name


def shrink(
  large_model: nn.Module,
  large: PyTree,
  small_model: nn.Module,
  small: PyTree,
  *,
  scores: Scores | None = None,
  place: Place = 'spread',
) -> Transplant:
  """Returns the strongest units of a large model in a small one; not exact.

  >>> large = aj.models.MLP(num_blocks=2, width=8, hidden=16, num_classes=3)
  >>> small = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> x = np.ones((1, 6), np.float32)
  >>> pools = [model.init(jax.random.key(0), x) for model in (large, small)]
  >>> shrink(large, pools[0], small, pools[1]).exact
  False

  Args:
    large_model, large: the model and its `{'params': pool}`.
    small_model, small: the model and a pool of its shapes: arrays, or `jax.eval_shape` of its init.
    scores: how strong the units of a space are, [n] by the space's name in the large model, see
      `wiring`. Other spaces take the norm of what writes a unit times the norm of what reads it.
    place: which blocks stay: where `grow` would have put those of the small model.

  Raises:
    UserError: where the small model is not smaller, or for scores of unknown spaces or lengths.
  """
  pairs = pair(large_model, large, small_model, small, place=place, grows=False)
  leaves = pairs.old.flat(params_of(large))
  strength = _strengths(pairs, leaves, scores or {})
  copies = {
    name: selected(strength[name], size, pairs.new.streams.get(name))
    for name, (_, size) in pairs.sizes.items()
  }
  initial = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params_of(small))
  variables = new_variables(pairs, copies, leaves, pairs.new.flat(initial))
  return Transplant(variables, f'shrink {pairs}, strongest', False, pairs, copies)


def average(pools: Sequence[PyTree]) -> PyTree:
  """Returns the mean of several `{'params': pool}` of one shape, such as those of models that were
  trained apart from one start.

  Raises:
    UserError: for none, or for pools of different shapes.

  >>> average([{'params': {'bias': np.array([0.0, 4.0])}}, {'params': {'bias': np.ones(2)}}])
  {'params': {'bias': array([0.5, 2.5])}}
  """
  _check_alike(pools)
  return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *pools)


def best(pools: Sequence[PyTree], losses: Sequence[float]) -> PyTree:
  """Returns the one of several `{'params': pool}` with the lowest finite loss.

  Raises:
    UserError: for another number of losses, or no finite one.

  >>> best(['pool 0', 'pool 1', 'pool 2'], [0.4, 0.2, np.nan])
  'pool 1'
  """
  values = np.asarray(losses, float)
  if len(values) != len(pools):
    raise UserError(f'{len(values)} losses of {len(pools)} pools: expected one each')
  if not np.isfinite(values).any():
    raise UserError(f'losses {values.tolist()}: expected at least one finite')
  return pools[int(np.argmin(np.where(np.isfinite(values), values, np.inf)))]


def pack(
  small_model: nn.Module,
  pools: Sequence[PyTree],
  large_model: nn.Module,
  large: PyTree,
  *,
  key: PRNGKeyArray,
  scores: Sequence[Scores] | None = None,
  place: Place = 'spread',
  unequal: float = 0.5,
) -> Transplant:
  """Returns several small models side by side in a large one; not exact.

  Their units of the stream, hidden units and heads are joined to as many spaces of J·n units, which
  read and write those of their own model alone; the logits are the mean. The only thing that the
  models then share are the norms, which see all their streams. Where a space is too small for that,
  its strongest units stay; where it is larger, units are copied as in `grow`. Blocks of further
  depth write zeros. A kernel of two models, A and B:

    A [n, h], B [n, h]   →   A 0     [2n, 2h]
                             0 B

  >>> small, large = (aj.models.MLP(1, n, 2 * n, num_classes=3) for n in (4, 8))
  >>> pools = [model.init(jax.random.key(0), jnp.ones((2, 5))) for model in (small, large)]
  >>> packed = pack(small, [pools[0]] * 2, large, pools[1], key=jax.random.key(3))
  >>> packed.rule, packed.exact
  ('pack 2 × ...', False)

  Args:
    small_model, pools: the model, and J `{'params': pool}`.
    large_model, large: the model and its initial pool.
    key, place, unequal: as in `grow`.
    scores: for each small pool, the strengths of the units of a space [n] by its name, such as
      signal-to-noise ratios; other spaces take the norm of what writes a unit times the norm of
      what reads it.

  Raises:
    UserError: as `grow`, for pools of different shapes, or for scores of unknown spaces or lengths.
  """
  _check_alike(pools)
  scores = [{}] * len(pools) if scores is None else list(scores)
  if len(scores) != len(pools):
    raise UserError(f'{len(scores)} scores of {len(pools)} pools: expected one each')
  pairs = pair(small_model, pools[0], large_model, large, place=place, grows=None)
  leaves = [pairs.old.flat(params_of(pool)) for pool in pools]
  strength = [_strengths(pairs, *one) for one in zip(leaves, scores)]
  copies = {}
  for name, (_, size) in pairs.sizes.items():
    norm = pairs.new.streams.get(name)
    units = _joined([one[name] for one in strength], name in pairs.new.nested)
    if size < len(units):
      copies[name] = selected(units, size, norm)
    else:
      copies[name] = copied(name, (len(units), size), norm, key, unequal)
  joined = {
    name: _side_by_side([one[name] for one in leaves], pairs.old.axes[name], pairs.old.nested)
    for name in leaves[0]
  }
  variables = new_variables(pairs, copies, joined, pairs.new.flat(params_of(large)))
  return Transplant(variables, f'pack {len(pools)} × {pairs}', False, pairs, copies)


def _joined(strengths, nested: bool) -> np.ndarray:
  """Returns how strong the units of J models are, side by side; a nested space is one of each head,
  not one of each model."""
  return np.mean(strengths, 0) if nested else np.concatenate(strengths)


def _side_by_side(leaves, axes: Axes, nested: frozenset[str]) -> np.ndarray:
  """Returns one leaf of J models that read and write their own units."""
  joins = [axis is not None and axis.space not in nested for axis in axes]
  if not any(joins):
    return np.mean(leaves, 0)
  sizes, count = leaves[0].shape, len(leaves)
  joined = np.zeros([n * count if join else n for n, join in zip(sizes, joins)])
  for i, leaf in enumerate(leaves):
    rows = (slice(i * n, (i + 1) * n) if join else slice(None) for n, join in zip(sizes, joins))
    joined[tuple(rows)] = leaf
  # A leaf that reads units and writes none gives the logits, which are the mean of all models'.
  reads = all(axis.role == READS for axis, join in zip(axes, joins) if axis is not None and join)
  return joined / count if reads else joined


def _strengths(pairs: Pairs, leaves: Leaves, scores: Scores) -> dict[str, np.ndarray]:
  """Returns how strong the units of each space are, by its name in the new model."""
  names = sorted(set(pairs.spaces.values()))
  if unknown := sorted(set(scores) - set(names)):
    raise UserError(f'scores of {", ".join(unknown)}: expected spaces out of {", ".join(names)}')
  strength = {}
  for new, old in pairs.spaces.items():
    strength[new] = norms = strengths(leaves, pairs.old, old)
    if old in scores:
      strength[new] = np.asarray(scores[old], float)
      if strength[new].shape != norms.shape:
        raise UserError(
          f'scores of {old} of shape {strength[new].shape}: expected {norms.shape}, one a unit'
        )
  return strength


def _check_alike(pools: Sequence[PyTree]) -> None:
  if not pools:
    raise UserError('no pools: expected at least one')
  first = jax.tree.leaves_with_path(pools[0])
  for i, pool in enumerate(pools[1:], 1):
    leaves = jax.tree.leaves_with_path(pool)
    for (path, leaf), (other, leaf_i) in zip(first, leaves):
      if path != other or leaf.shape != leaf_i.shape:
        raise UserError(
          f'pool {i} with leaf {jax.tree_util.keystr(other)} of shape {leaf_i.shape}: expected '
          f'{jax.tree_util.keystr(path)} of shape {leaf.shape}, as in pool 0'
        )
    if len(leaves) != len(first):
      raise UserError(f'pool {i} of {len(leaves)} leaves: expected {len(first)}, as in pool 0')
