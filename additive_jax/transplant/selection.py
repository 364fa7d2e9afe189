"""One pool of several, or the strongest units of a pool: what cannot be exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from additive_jax.errors import UserError
from additive_jax.transplant.copies import copied, selected, strengths
from additive_jax.transplant.growth import Transplant, new_pool
from additive_jax.transplant.pairs import pair, params_of
from additive_jax.transplant.wiring import READS, flat


def shrink(
  large_model,
  large,
  small_model,
  small,
  *,
  scores: Mapping[str, Any] | None = None,
  place: str | Sequence[int] = 'spread',
) -> Transplant:
  """The strongest units of a large model in a small one; not exact.

  Args:
    large_model, large: the model and its `{'params': pool}`.
    small_model, small: the model and a pool of its shapes: arrays, or `jax.eval_shape` of its init.
    scores: how strong the units of a space are, [n] by the space's name in the large model, see
      `wiring`. Other spaces take the norm of what writes a unit times the norm of what
      reads it.
    place: which blocks stay: where `grow` would have put those of the small model.

  Raises:
    UserError: where the small model is not smaller, or for scores of unknown spaces or lengths.
  """
  pairs = pair(large_model, large, small_model, small, place=place, grows=False)
  leaves = flat(params_of(large), pairs.old)
  strength = _strengths(pairs, leaves, scores or {})
  copies = {
    name: selected(strength[name], size, pairs.new.streams.get(name))
    for name, (_, size) in pairs.sizes.items()
  }
  initial = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params_of(small))
  pool = new_pool(pairs, copies, leaves, flat(initial, pairs.new))
  return Transplant({'params': pool}, f'shrink {pairs}, strongest', False, pairs, copies)


def average(pools: Sequence):
  """The mean of several `{'params': pool}` of one shape, such as those of models that were trained
  apart from one start.

  Raises:
    UserError: for none, or for pools of different shapes.
  """
  _check_alike(pools)
  return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *pools)


def best(pools: Sequence, losses: Sequence[float]):
  """The one of several `{'params': pool}` with the lowest finite loss.

  Raises:
    UserError: for another number of losses, or no finite one.
  """
  losses = np.asarray(losses, float)
  if len(losses) != len(pools):
    raise UserError(f'{len(losses)} losses of {len(pools)} pools: expected one each')
  if not np.isfinite(losses).any():
    raise UserError(f'losses {losses.tolist()}: expected at least one finite')
  return pools[int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))]


def pack(
  small_model,
  pools: Sequence,
  large_model,
  large,
  *,
  key: jax.Array,
  scores: Sequence[Mapping[str, Any]] | None = None,
  place: str | Sequence[int] = 'spread',
  unequal: float = 0.5,
) -> Transplant:
  """Several small models side by side in a large one; not exact.

  Their units of the stream, hidden units and heads are joined to as many spaces of J·n units, which
  read and write those of their own model alone; the logits are the mean. The only thing that the
  models then share are the norms, which see all their streams. Of each space that is too small for
  that the strongest units stay, and of one that is larger units are copied as in `grow`. Blocks of
  further depth write zeros.

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
  each = [flat(params_of(pool), pairs.old) for pool in pools]
  strength = {name: [] for name in pairs.spaces}
  for leaves, own in zip(each, scores):
    for name, values in _strengths(pairs, leaves, own).items():
      strength[name].append(values)
  copies = {}
  for name, (_, size) in pairs.sizes.items():
    nested = name in pairs.new.nested
    joint = np.mean(strength[name], 0) if nested else np.concatenate(strength[name])
    copies[name] = _fitted(name, joint, size, pairs.new.streams.get(name), key, unequal)
  nested = pairs.old.nested
  leaves = {
    name: _side_by_side([leaves[name] for leaves in each], pairs.old.axes[name], nested)
    for name in each[0]
  }
  pool = new_pool(pairs, copies, leaves, flat(params_of(large), pairs.new))
  rule = f'pack {len(pools)} × {pairs}'
  return Transplant({'params': pool}, rule, False, pairs, copies)


def _side_by_side(leaves, axes, nested) -> np.ndarray:
  """One leaf of J models that read and write their own units."""
  joined = [axis is not None and axis.space not in nested for axis in axes]
  if not any(joined):
    return np.mean(leaves, 0)
  sizes = leaves[0].shape
  count = len(leaves)
  whole = np.zeros([n * count if join else n for n, join in zip(sizes, joined)])
  for i, leaf in enumerate(leaves):
    parts = [slice(i * n, (i + 1) * n) for n in sizes]
    whole[tuple(part if join else slice(None) for part, join in zip(parts, joined))] = leaf
  # What reads units and writes none gives the logits, which are the mean of all models'.
  reads = all(axis.role == READS for axis, join in zip(axes, joined) if join)
  return whole / count if reads else whole


def _fitted(name, strength, size, norm, key, unequal):
  if size < len(strength):
    return selected(strength, size, norm)
  return copied(name, len(strength), size, norm, key, unequal)


def _strengths(pairs, leaves, scores) -> dict[str, np.ndarray]:
  """How strong the units of each space are, by its name in the new model."""
  unknown = sorted(set(scores) - set(pairs.spaces.values()))
  if unknown:
    known = ', '.join(sorted(set(pairs.spaces.values())))
    raise UserError(f'scores of {", ".join(unknown)}: expected spaces out of {known}')
  found = {}
  for new, old in pairs.spaces.items():
    found[new] = strengths(leaves, pairs.old.axes, old)
    if old in scores:
      given = np.asarray(scores[old], float)
      if given.shape != found[new].shape:
        raise UserError(
          f'scores of {old} of shape {given.shape}: expected {found[new].shape}, one a unit'
        )
      found[new] = given
  return found


def _check_alike(pools):
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
