"""Statistics of BatchNorms for each structure: what stored statistics of all-on cannot be.

Structures share a pool, but what flows through it differs, and so do means and variances. Those of
a structure are found by one pass over calibration examples, taken as one batch, so they are exact
means over these. Structures that agree on their first gates share those sites' statistics and their
work. Source: Yu & Huang 2019 (arXiv:1903.05134), section 3.3.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, PyTree

from additive_jax.errors import UserError, checked_size
from additive_jax.gates.structure import StructureLike, bits_of
from additive_jax.models.additive import (
  Inputs,
  canonical,
  embed,
  gate_names,
  readout,
  sites_of,
  step,
)
from additive_jax.models.batch_norm import BATCH_STATS, Left, of_batch
from additive_jax.models.contract import check_pool, statistics_of

NUM_BATCHES, BATCH_SIZE = 4, 256


def recalibrate(
  model: nn.Module,
  variables: PyTree,
  structures: Iterable[StructureLike],
  data: Any,
  *,
  num_batches: int = NUM_BATCHES,
  batch_size: int = BATCH_SIZE,
) -> list[PyTree]:
  """Returns for each structure the variables with BatchNorm statistics of its own.

  They are exact means over the first `num_batches · batch_size` examples, which pass through the
  network as one batch; those of modules that the structure does not run stay as they were. All
  structures share one pool: what is made anew is the statistics, S times.

  Args:
    model: an additive model with BatchNorms; of one without, all are given the same variables.
    variables: `{'params': pool}`, with or without statistics.
    structures: in any form, see `Space.parse`.
    data: examples to calibrate by, of the training split: a split, a pair (x, y) or inputs x.
    num_batches, batch_size: how many examples are taken, at most all.

  Raises:
    UserError: for no examples, or variables that are no pool of the model.

  >>> class Net(aj.Additive):
  ...   def setup(self):
  ...     self.embed, self.readout = nn.Dense(4), nn.Dense(3)
  ...     self.sites = [nn.Sequential([aj.models.BatchNorm(), nn.Dense(4)], name='a')]
  >>> x = np.ones((5, 6), np.float32)
  >>> variables = jax.jit(Net().init)(jax.random.key(0), x)
  >>> off, on = recalibrate(Net(), variables, ['0', '1'], x)
  >>> h = x @ variables['params']['embed']['kernel']
  >>> mean = on['batch_stats']['a']['layers_0']['mean']
  >>> bool(np.allclose(mean, h.mean(0), atol=1e-5))
  True
  """
  bits = bits_of(structures, len(gate_names(model)))
  x = calibration_examples(data, num_batches, batch_size)
  stored = variables_with_statistics(model, variables, x)
  check_pool(model, stored, x)
  if BATCH_STATS not in stored:
    return [variables] * len(bits)
  unique, inverse = np.unique(canonical(model, bits), axis=0, return_inverse=True)
  before, found = flatten_dict(stored[BATCH_STATS]), {}
  for row, left in _walk(model, {'params': stored['params']}, x, unique):
    found[row] = {**stored, BATCH_STATS: unflatten_dict({**before, **left})}
  return [found[int(row)] for row in inverse.reshape(-1)]


def variables_with_statistics(
  model: nn.Module, variables: PyTree, x: Inputs | jax.ShapeDtypeStruct
) -> PyTree:
  """Returns variables as they are, or with the statistics of init in place of missing ones."""
  shapes = statistics_of(model, x)
  if not shapes or variables.get(BATCH_STATS):
    return variables

  def initial(path: Any, leaf: Any) -> np.ndarray:
    is_variance = jax.tree_util.keystr(path[-1:], simple=True) == 'var'
    return np.full(leaf.shape, float(is_variance), leaf.dtype)

  return {**variables, BATCH_STATS: jax.tree.map_with_path(initial, shapes)}


def calibration_examples(data: Any, num_batches: int, batch_size: int) -> PyTree:
  """Returns the first inputs of a split, a pair (x, y) or inputs.

  >>> calibration_examples((np.ones((9, 2)), np.ones(9)), num_batches=2, batch_size=3).shape
  (6, 2)
  """
  most = checked_size(num_batches, 'num_batches') * checked_size(batch_size, 'batch_size')
  if hasattr(data, 'in_memory'):
    x = data[np.arange(min(most, len(data)))][0] if len(data) else data.x
  else:
    x = data[0] if isinstance(data, tuple | list) and len(data) == 2 else data
  x = jax.tree.map(lambda leaf: np.asarray(leaf)[:most], x)
  leaves = jax.tree.leaves(x)
  if not leaves or not leaves[0].ndim or not len(leaves[0]):
    raise UserError('no examples to calibrate by: expected a split, a pair (x, y) or inputs')
  return x


def _walk(
  model: nn.Module, variables: PyTree, x: Inputs, bits: Bool[np.ndarray, 'S n']
) -> Iterator[tuple[int, Left]]:
  """Yields the number of each structure and its statistics by path.

  Args:
    bits: distinct structures in lexicographic order, so those that share a prefix are neighbours.
  """
  sites = sites_of(model)
  h, left = _embed(model, variables, x)

  def visit(i: int, first: int, last: int, h: Any, left: Left) -> Iterator[tuple[int, Left]]:
    if i == len(sites):
      yield first, {**left, **_readout(model, variables, h)}
      return
    site, start = sites[i], first
    rows = bits[:, site.gates]
    while start < last:
      stop = start + 1
      while stop < last and (rows[stop] == rows[start]).all():
        stop += 1
      if site.has_residual and not rows[start][0]:
        yield from visit(i + 1, start, stop, h, left)
      else:
        inner = np.asarray(bits[start, site.inner], np.float32)
        after, found = _site(model, i, variables, h, inner)
        yield from visit(i + 1, start, stop, after, {**left, **found})
      start = stop

  yield from visit(0, 0, len(bits), h, left)


@functools.partial(jax.jit, static_argnums=0)
def _embed(model, variables, x):
  with of_batch(leaves=True) as left:
    h = embed(model, variables, x)
  return h, left


@functools.partial(jax.jit, static_argnums=(0, 1))
def _site(model, index, variables, h, inner):
  site = sites_of(model)[index]
  gates = (True,) * site.has_residual + tuple(inner[k] for k in range(site.num_inner))
  with of_batch(leaves=True) as left:
    h = step(model, variables, index, h, gates)
  return h, left


@functools.partial(jax.jit, static_argnums=0)
def _readout(model, variables, h):
  with of_batch(leaves=True) as left:
    readout(model, variables, h)
  return left


def statistics_of_one(
  model: nn.Module, params: PyTree, x: Inputs, structure: Bool[Array, 'n']
) -> PyTree:
  """Returns `{'batch_stats': …}` of one traced structure, inside a compiled program; {} for a model
  without BatchNorms.

  Args:
    x: the examples to calibrate by, one batch.
  """
  shapes = statistics_of(model, x)
  if not shapes:
    return {}
  stored = variables_with_statistics(model, {}, x)[BATCH_STATS]
  left, variables = flatten_dict(jax.tree.map(jnp.asarray, stored)), {'params': params}
  with of_batch(leaves=True) as found:
    h = embed(model, variables, x)
  left |= found
  for i, site in enumerate(sites_of(model)):
    gates = structure[site.gates]
    inner = gates[site.has_residual :].astype(jnp.float32)
    on = functools.partial(_on, model, variables, i, inner)
    if site.has_residual:
      h, left = jax.lax.cond(gates[0], on, lambda h, left: (h, left), h, left)
    else:
      h, left = on(h, left)
  with of_batch(leaves=True) as found:
    readout(model, variables, h)
  return {BATCH_STATS: unflatten_dict({**left, **found})}


def _on(model, variables, index, inner, h, left):
  """Returns the stream after a site that is on, and the statistics of the sites up to it."""
  h, found = _site(model, index, variables, h, inner)
  return h, {**left, **found}
