"""Magnitude pruning: what is small goes.

Source: Han et al. 2015 (arXiv:1506.02626), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from additive_jax.compress.cut_steps import INPUTS
from additive_jax.compress.levels import GATES, Gates, Units, Weights
from additive_jax.compress.noise import KERNEL
from additive_jax.errors import UserError
from additive_jax.models.additive import sites_of
from additive_jax.transplant import wiring_of
from additive_jax.transplant.wiring import READS

SCOPES = ('global', 'layer')


def magnitudes(level: Weights | Units | Gates, params) -> dict[str, np.ndarray]:
  """How large each weight, unit or gate of a pool is, by name.

  Of a weight its absolute value. Of a unit the norm of all that writes it times the norm of all
  that reads it, which scaling one up and the other down leaves as it is; of an input the norm of
  what reads it. Of a gate the root-mean-square number of its site.
  """
  if isinstance(level, Weights):
    leaves = flatten_dict(params, sep='/')
    return {name: np.abs(np.asarray(leaves[name])) for name, _ in level.shapes}
  if isinstance(level, Gates):
    found = []
    for site in sites_of(level.model):
      if site.has_residual:
        own = jax.tree.leaves(params[site.label.replace('/', '__')])
        flat_ = np.concatenate([np.ravel(leaf) for leaf in own])
        found.append(np.sqrt(np.square(flat_).mean()))
    return {GATES: np.array(found)}
  written, read = ({name: np.zeros(shape) for name, shape in level.shapes} for _ in range(2))
  wiring = wiring_of(level.model)
  for name, leaf in wiring.flat(params).items():
    for number, axis in enumerate(wiring.axes.get(name, ())):
      if axis is not None and axis.space in read:
        others = tuple(i for i in range(leaf.ndim) if i != number)
        side = read if axis.role == READS else written
        side[axis.space] += np.square(leaf.astype(np.float64)).sum(others)
  if INPUTS in read:  # nothing writes them
    first = next(module for module, space, _ in level.readers if space == INPUTS)
    kernel = flatten_dict(params, sep='/')[f'{first}/{KERNEL}']
    read[INPUTS] = np.square(np.asarray(kernel, np.float64)).sum(1)
    written[INPUTS] = np.ones(len(kernel))
  return {name: np.sqrt(written[name] * read[name]) for name in read}


def largest(
  found: Mapping[str, np.ndarray], count: int | Mapping[str, int], scope: str = 'global'
) -> dict[str, np.ndarray]:
  """The largest of `magnitudes`: bool by name.

  Args:
    count: how many stay: in all, or by name.
    scope: for a count in all: 'global' compares those of all names with each other, 'layer' keeps
      the same share of each.

  Every name keeps at least one. Of equal ones the first stay.

  Raises:
    UserError: for another scope, or more than there are.
  """
  if scope not in SCOPES:
    raise UserError(f'scope {scope!r}: expected one of {", ".join(SCOPES)}')
  sizes = {name: values.size for name, values in found.items()}
  total = sum(sizes.values())
  if isinstance(count, Mapping):
    counts = dict(count)
  elif not 0 <= count <= total:
    raise UserError(f'{count} largest of {total}: expected 0 to {total}')
  elif scope == 'layer':
    counts = {name: round(count * size / total) for name, size in sizes.items()}
  else:
    every = np.concatenate([values.ravel() for values in found.values()])
    on = np.zeros(total, bool)
    on[np.argsort(-every, kind='stable')[:count]] = True
    parts = np.split(on, np.cumsum(list(sizes.values()))[:-1])
    counts = {name: int(part.sum()) for name, part in zip(sizes, parts)}
  kept = {}
  for name, values in found.items():
    if counts[name] > values.size:
      raise UserError(f'{counts[name]} largest of {values.size} in {name}: expected no more')
    on = np.zeros(values.size, bool)
    on[np.argsort(-values.ravel(), kind='stable')[: max(counts[name], 1)]] = True
    kept[name] = on.reshape(values.shape)
  return kept
