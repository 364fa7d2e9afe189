"""Shared-prefix evaluation: a whole set of structures at once.

Structures that agree on the gates of their first i sites share those sites. The set is walked as a
tree: a node is a distinct prefix, and site i runs once per node and value that its gates take
there. All 2^n structures of n residual gates cost 2^n − 1 branch evaluations in place of
n·2^(n−1).

The walk takes the sorted set W structures a round, and site by site within a round. On the device
each stream [B, ..., D] lies in a slot of a buffer. A child whose residual gate is off keeps its
parent's slot, so it costs nothing; of the others the last takes its parent's slot if nobody needs
that any more, and the rest get slots of their own. The streams on the path that the next round
begins with stay where they are, so that no prefix is computed twice. Which slot feeds which, and
the values of inner gates, are data (`Plan`), not program: one compiled program serves every set of
up to `capacity` structures.

Four structures of three residual gates, in one round. A number is the slot of a node's stream after
a site, * says that the site runs, and a dot stands for the node of the row above:

    structure   embed   site 0   site 1   site 2
      0 1 1       0       0        0*       0*
      1 0 0       .       1*       1        1
      1 0 1       .       .        .        3*     slot 1 is needed by 1 0 0: a new one
      1 1 1       .       .        2*       2*     the parent's, which nobody needs any more

Six evaluations in place of eight. In two rounds of two, 1 0 1 begins the second one, which finds
the stream of its first two sites, 1 0, in slot 1, where the first round left it; and as the
embedding in slot 0 stays too, 0 1 1 moves to slot 2 at site 1.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from additive_jax.errors import UserError
from additive_jax.gates.structure import StructureLike, bits_of
from additive_jax.models.additive import (
  Inputs,
  Site,
  Stream,
  canonical,
  embed,
  gate_names,
  readout,
  sites_of,
  update,
)
from additive_jax.models.contract import check_pool
from additive_jax.models.side import stream_of, with_stream
from additive_jax.run import slots

ROUND = 64  # structures of a round of `shared_prefix`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Plan:
  """How to evaluate up to `capacity` structures: a pytree that compiled programs take.

  Attributes:
    count: evaluations of each site in each round.
    source, target: the slot that each evaluation reads and the one it writes.
    inner: per site the inner gates of each evaluation.
    leaf: the slot where each structure of a round ends.
    size: structures in the set.
    slots: of a buffer; static.

  The four structures of the table above, in one round:

  >>> model = aj.models.MLP(num_blocks=3, width=4, hidden=8, num_classes=2)
  >>> bits = np.array([[0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 1]], bool)
  >>> walk = plan(bits, rounds=1, width=4, sites=sites_of(model))
  >>> walk.count.tolist(), walk.leaf.tolist()
  ([[1, 2, 3]], [[0, 1, 3, 2]])
  """

  count: Int[np.ndarray, 'rounds sites']
  source: Int[np.ndarray, 'rounds sites W']
  target: Int[np.ndarray, 'rounds sites W']
  inner: tuple[Float[np.ndarray, 'rounds W _'], ...]
  leaf: Int[np.ndarray, 'rounds W']
  size: Int[np.ndarray, '']
  slots: int = dataclasses.field(metadata={'static': True})

  @property
  def capacity(self) -> int:
    """How many structures a plan of this shape may have."""
    return self.leaf.size

  @property
  def used(self) -> int:
    """How many of the slots are used."""
    return 1 + max(int(self.target.max(initial=0)), int(self.leaf.max(initial=0)))


def plan(
  bits: Bool[np.ndarray, 'S n'],
  rounds: int,
  width: int,
  sites: Sequence[Site],
  *,
  keep: int | None = None,
) -> Plan:
  """Returns the plan for a set of structures.

  Args:
    bits: distinct structures in lexicographic order, at most rounds·width. Inner gates of sites
      that are off must be cleared (`models.additive.canonical`).
    width: W, structures of a round.
    keep: after how many sites a stream may stay for the next round, at most two slots each; −1 is
      none, for a single round. None is all of them.
  """
  keep, num_slots = _kept(len(sites) if keep is None else keep, rounds, width)
  count = np.zeros((rounds, len(sites)), np.int32)
  source, target = np.zeros((2, rounds, len(sites), width), np.int32)
  inner = tuple(np.zeros((rounds, width, site.num_inner), np.float32) for site in sites)
  leaf = np.zeros((rounds, width), np.int32)

  common = _common_sites(bits, sites)
  # Slots of the first node after 0, 1, … sites; how many sites are computed; which nodes are kept.
  path, known, kept = np.array([0]), 0, np.array([0])
  for r, start in enumerate(range(0, len(bits), width)):
    stop = min(start + width, len(bits))
    # Nodes that others branch off from later; the deepest is where the next round begins.
    staying = np.unique(np.minimum(np.minimum.accumulate(common[stop : len(bits)]), keep))
    free = np.setdiff1d(np.arange(num_slots), path[kept])
    first, slot = np.array([start]), path[:1]  # of each node: its first structure, its slot
    next_path = slot
    for i, site in enumerate(sites):
      child = np.r_[start, start + 1 + np.flatnonzero(common[start + 1 : stop] <= i)]
      parent = np.asarray(np.searchsorted(first, child, 'right')) - 1
      on = bits[child, site.start] if site.has_residual else np.ones(len(child), bool)
      runs = on.copy()
      runs[0] &= known <= i
      last = np.r_[parent[1:] != parent[:-1], True]
      shares = np.bincount(parent, weights=~on)[parent] > 0  # an off sibling needs that slot
      is_staying = np.isin(slot[parent], next_path[staying[staying <= i]])
      inherits = runs & last & ~shares & ~is_staying
      child_slot = slot[parent]
      fresh = np.flatnonzero(runs & ~inherits)
      child_slot[fresh], free = free[: len(fresh)], free[len(fresh) :]
      if known > i:
        child_slot[0] = path[i + 1]
      # Children that overwrite their parent come last, when no sibling reads it any more.
      runs = np.flatnonzero(runs)[np.argsort(inherits[runs], kind='stable')]
      count[r, i] = len(runs)
      source[r, i, : len(runs)] = slot[parent[runs]]
      target[r, i, : len(runs)] = child_slot[runs]
      inner[i][r, : len(runs)] = bits[child[runs], site.inner]
      first, slot = child, child_slot
      next_path = np.r_[next_path, slot[-1]]
    leaf[r, : len(slot)] = slot
    path, known, kept = next_path, max(staying, default=-1), staying
  return Plan(count, source, target, inner, leaf, np.array(len(bits), np.int32), num_slots)


def _kept(keep, rounds, width):
  """Returns it, and how many slots that takes: the structures of a round, and two for each level
  that is kept."""
  if keep < 0 < rounds - 1:
    raise ValueError(f'keep {keep} with {rounds} rounds: expected at least 0')
  return keep, width + max(0, 2 * keep + 1)


def _common_sites(bits, sites):
  """Returns how many of the first sites each structure shares with the one before, int [S]."""
  differs = [(bits[1:, site.gates] != bits[:-1, site.gates]).any(1) for site in sites]
  return np.r_[0, np.argmax(differs, axis=0)]


def run_plan(
  model: nn.Module,
  variables: PyTree,
  x: Inputs,
  plan: Plan,
  finish: Callable[..., Shaped[Array, 'T ...']],
  *,
  tile: int,
  read: Callable[[Stream], Any] | None = None,
) -> Shaped[Array, 'capacity ...']:
  """Walks a plan on the device and applies `finish` to each structure's logits.

  Args:
    plan: traced.
    finish: from logits [T, B, ..., C] of T structures to [T, ...].
    tile: T, how many prefixes share one pass through a branch, best as many as fill the machine.
      Static; divides the width of a round.
    read: gives what `finish` gets in place of logits, of the streams [T·B, ...].

  Returns:
    What `finish` gave, in the order of the set; rows from its size on are undefined.

  >>> model, bits = aj.models.MLP(1, width=4, hidden=8, num_classes=2), np.array([[False], [True]])
  >>> x, walk = jnp.ones((5, 6)), plan(bits, rounds=1, width=2, sites=sites_of(model))
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)
  >>> jax.jit(lambda walk: run_plan(model, pool, x, walk, lambda y: y.mean(1), tile=1))(walk).shape
  (2, 2)
  """
  check_pool(model, variables, x)  # slots hold streams: a site that is off must leave its shape
  (rounds, width), first = plan.leaf.shape, embed(model, variables, x)
  streams = slots.streams_of(model, variables, first)
  where, shapes = slots.buffers(streams)
  # Slots hold streams alone: all structures have the same side.
  sides = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * tile), first)
  # One slot more, which the idle part of a pass writes to.
  buffers = [jnp.zeros((plan.slots + 1, *stream.shape), stream.dtype) for stream in shapes]
  buffers[0] = buffers[0].at[0].set(stream_of(first))

  read = read or functools.partial(readout, model, variables)
  finish_streams = functools.partial(_finished, finish, read, tile)

  def finish_tile(r, last, t, out):
    reads = jax.lax.dynamic_slice_in_dim(plan.leaf[r], t * tile, tile)
    h = with_stream(sides, jnp.concatenate([last[reads[w]] for w in range(tile)]))
    return jax.lax.dynamic_update_slice_in_dim(out, finish_streams(h), r * width + t * tile, 0)

  def run_round(r, carry):
    buffers, out = carry
    buffers = list(buffers)
    for i, (before, after) in enumerate(itertools.pairwise(where)):
      source = None if before == after else buffers[before]
      step = functools.partial(_step, model, variables, i, sides)
      buffers[after] = _run_site(step, plan, (r, i), source, buffers[after], tile)
    size = jnp.minimum(plan.size - r * width, width)
    finish_last = functools.partial(finish_tile, r, buffers[-1])
    return buffers, jax.lax.fori_loop(0, -(-size // tile), finish_last, out)

  result = jax.eval_shape(finish_streams, jax.tree.map(_tiled(tile), streams[-1]))
  out = jnp.zeros((rounds * width, *result.shape[1:]), result.dtype)
  return jax.lax.fori_loop(0, -(-plan.size // width), run_round, (buffers, out))[1]


def _finished(finish, read, tile, h):
  """Returns what a tile of streams comes to."""
  split = lambda leaf: leaf.reshape(tile, -1, *leaf.shape[1:])
  return finish(jax.tree.map(split, read(h)))


def _tiled(tile):
  """Returns a function that gives the shape of as many batches as a tile has prefixes."""
  return lambda leaf: jax.ShapeDtypeStruct((tile * leaf.shape[0], *leaf.shape[1:]), leaf.dtype)


def _step(model, variables, index, sides, h, inner):
  """Returns the streams after a site, which have the sides of `sides`."""
  return stream_of(update(model, variables, index, with_stream(sides, h), inner))


def _run_site(step, plan, place, source, target, tile):
  """Returns a buffer after the evaluations of one site in one round.

  Args:
    step: from streams and inner gates to streams.
    place: numbers of the round and the site.
    source: the buffer that streams are read from; None is `target`, the one they are written to.
  """
  tables = plan.source[place], plan.target[place], plan.inner[place[1]][place[0]]

  def evaluate(t, written):
    reads, writes, inner = (jax.lax.dynamic_slice_in_dim(table, t * tile, tile) for table in tables)
    writes = jnp.where(t * tile + jnp.arange(tile) < plan.count[place], writes, plan.slots)
    buffer = written if source is None else source
    # Slices move a slot as one block; a gather or scatter would go element by element on CPU.
    h = jnp.concatenate([buffer[reads[w]] for w in range(tile)])
    inner = jnp.repeat(inner, buffer.shape[1], axis=0) if tile > 1 else inner[0]
    h = step(h, [inner[..., k] for k in range(inner.shape[-1])])
    h = h.reshape(tile, *written.shape[1:])
    for w in range(tile):
      written = jax.lax.dynamic_update_index_in_dim(written, h[w], writes[w], 0)
    return written

  return jax.lax.fori_loop(0, -(-plan.count[place] // tile), evaluate, target)


def shared_prefix(
  model: nn.Module,
  variables: PyTree,
  x: Inputs,
  structures: Iterable[StructureLike],
) -> Float[Array, 'S B ... C']:
  """Returns the logits of a set of structures, in their order, by one walk of their prefix tree.

  Args:
    structures: Python values, anything `Space.parse` takes, or bool [S, n]; repeats run once.

  There is one compile for each number of distinct structures. Differentiable in forward mode only;
  for loss and accuracy in bounded memory use `evaluate_structures`.

  Raises:
    UserError: for an empty set.

  >>> model = aj.models.MLP(num_blocks=3, width=4, hidden=8, num_classes=2)
  >>> x = np.ones((5, 6), np.float32)
  >>> shared_prefix(model, model.init(jax.random.key(0), x), x, ['011', '100', '101']).shape
  (3, 5, 2)
  """
  bits = bits_of(structures, len(gate_names(model)))
  if not len(bits):
    raise UserError('an empty list of structures: expected at least one')
  unique, inverse = np.unique(canonical(model, bits), axis=0, return_inverse=True)
  tile = min(4, len(unique))
  width = min(ROUND, -(-len(unique) // tile) * tile)
  walk = plan(unique, -(-len(unique) // width), width, sites_of(model))
  return _logits(model, variables, x, walk, tile)[inverse.reshape(-1)]


@functools.partial(jax.jit, static_argnames=('model', 'tile'))
def _logits(model, variables, x, plan, tile):
  return run_plan(model, variables, x, plan, lambda logits: logits, tile=tile)
