"""Shared-prefix evaluation: a whole set of structures at once.

Structures that agree on the gates of their first i sites share those sites. The set is walked as a
tree: a node is a distinct prefix, and site i runs once per node and value that its gates take
there. All 2^n structures of n residual gates cost 2^n − 1 branch evaluations in place of
n·2^(n−1).

The walk takes the sorted set W structures a round, and site by site within a round. On the device
each stream [B, ..., D] lives in a slot of a buffer. A child whose residual gate is off keeps its
parent's slot, so it costs nothing; of the others the last takes its parent's slot if nobody needs
that any more, and the rest get slots of their own. The streams on the path that the next round
begins with stay where they are, so that no prefix is computed twice. Which slot feeds which, and
the values of inner gates, are data (`Plan`), not program: one compiled program serves every set of
up to `capacity` structures.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.errors import UserError
from additive_jax.gates.structure import bits_of
from additive_jax.models.additive import (
  canonical,
  embed,
  gate_names,
  parts,
  readout,
  sites_of,
  update,
)

ROUND = 64  # structures of a round of `shared_prefix`


@dataclasses.dataclass(frozen=True)
class Plan:
  """How to evaluate up to `capacity` structures, as arrays that the compiled program takes.

  Attributes:
    count: evaluations of each site in each round, int32 [rounds, sites].
    source, target: the slot each evaluation reads and the one it writes, int32
      [rounds, sites, W].
    values: per site the inner gates of each evaluation, float32 [rounds, W, inner gates].
    leaf: the slot where each structure of a round ends, int32 [rounds, W].
    size: structures in the set, int32 [].
  """

  count: np.ndarray
  source: np.ndarray
  target: np.ndarray
  values: tuple[np.ndarray, ...]
  leaf: np.ndarray
  size: np.ndarray

  @property
  def capacity(self) -> int:
    return self.leaf.size

  @property
  def arrays(self) -> tuple:
    return self.count, self.source, self.target, self.values, self.leaf, self.size


def num_slots(width: int, keep: int) -> int:
  """Slots that a plan needs (see `plan`): one for each structure of a round, and two for each level
  of a path that may stay.
  """
  return width + max(0, 2 * keep + 1)


def plan(bits: np.ndarray, rounds: int, width: int, sites, *, keep: int | None = None) -> Plan:
  """The plan for a set of structures.

  Args:
    bits: distinct structures in lexicographic order, bool [S, n], at most rounds·width. Inner gates
      of sites that are off must be cleared (`models.additive.canonical`).
    width: W, structures of a round.
    sites: of the model, see `models.additive.sites_of`.
    keep: after how many sites a stream may stay for the next round, which takes at most two slots
      each; −1 keeps not even the embedding and needs a single round. None is all of them.
  """
  keep = len(sites) if keep is None else keep
  if keep < 0 < rounds - 1:
    raise ValueError(f'keep {keep} with {rounds} rounds: expected at least 0')
  count = np.zeros((rounds, len(sites)), np.int32)
  source = np.zeros((rounds, len(sites), width), np.int32)
  target = np.zeros((rounds, len(sites), width), np.int32)
  values = tuple(np.zeros((rounds, width, site.num_inner), np.float32) for site in sites)
  leaf = np.zeros((rounds, width), np.int32)

  differs = [(bits[1:, site.gates] != bits[:-1, site.gates]).any(1) for site in sites]
  common = np.r_[0, np.argmax(differs, axis=0)]  # sites that each shares with the one before
  path, known = [0], 0  # slots of the first node after 0, 1, ... sites; as many sites are computed
  for r, start in enumerate(range(0, len(bits), width)):
    stop = min(start + width, len(bits))
    stays = min(common[stop], keep) if stop < len(bits) else -1
    free = np.setdiff1d(np.arange(num_slots(width, keep)), path[: known + 1])
    first, slot = np.array([start]), np.array(path[:1])  # of each node: its first structure, slot
    next_path = [slot[-1]]
    for i, site in enumerate(sites):
      child = np.r_[start, start + 1 + np.flatnonzero(common[start + 1 : stop] <= i)]
      parent = np.searchsorted(first, child, 'right') - 1
      on = bits[child, site.start] if site.has_residual else np.ones(len(child), bool)
      runs = on.copy()
      runs[0] &= known <= i
      last = np.r_[parent[1:] != parent[:-1], True]
      shares = np.bincount(parent, weights=~on)[parent] > 0  # an off sibling needs that slot
      stay = np.isin(slot[parent], next_path[: stays + 1])
      inherits = runs & last & ~shares & ~stay
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
      values[i][r, : len(runs)] = bits[child[runs], site.inner]
      first, slot = child, child_slot
      next_path.append(slot[-1])
    leaf[r, : len(slot)] = slot
    path, known = next_path, stays
  return Plan(count, source, target, values, leaf, np.int32(len(bits)))


def run_plan(
  model,
  variables,
  x: jax.Array,
  arrays,
  finish: Callable[[jax.Array], jax.Array],
  *,
  tile: int,
  slots: int,
) -> jax.Array:
  """Walks a plan on the device and applies `finish` to each structure's logits.

  Args:
    variables: `{'params': pool}`.
    x: inputs [B, ...].
    arrays: `Plan.arrays`; may be traced.
    finish: from logits [T, B, ..., C] of T structures to [T, ...].
    tile: T, how many prefixes share one pass through a branch. Static; divides the width of a
      round. The last pass of a level may be partly idle, so a tile should be no wider than fills
      the machine.
    slots: `num_slots` of the plan.

  Returns:
    What `finish` gave, [capacity, ...], in the order of the set; rows from its size on are
    undefined.
  """
  count, source, target, values, leaf, size = arrays
  rounds, width = leaf.shape
  spare = slots  # the slot that the idle part of a pass writes to
  h = embed(model, variables, x)
  streams = _streams(model, variables, h)
  where, shapes = _buffers(streams)
  buffers = [jnp.zeros((spare + 1, *stream.shape), stream.dtype) for stream in shapes]
  buffers[0] = buffers[0].at[0].set(h)

  def run_site(i, r, buffers):
    reads_from, writes_to = where[i], where[i + 1]
    tables = source[r, i], target[r, i], values[i][r]

    def evaluate(t, written):
      reads, writes, inner = (
        jax.lax.dynamic_slice_in_dim(table, t * tile, tile) for table in tables
      )
      writes = jnp.where(t * tile + jnp.arange(tile) < count[r, i], writes, spare)
      read = written if reads_from == writes_to else buffers[reads_from]
      # Slices move a slot as one block; a gather or scatter would go element by element on CPU.
      h = jnp.concatenate([read[reads[w]] for w in range(tile)])
      inner = jnp.repeat(inner, read.shape[1], axis=0) if tile > 1 else inner[0]
      h = update(model, variables, i, h, [inner[..., k] for k in range(inner.shape[-1])])
      h = h.reshape(tile, *written.shape[1:])
      for w in range(tile):
        written = jax.lax.dynamic_update_index_in_dim(written, h[w], writes[w], 0)
      return written

    buffers[writes_to] = jax.lax.fori_loop(0, -(-count[r, i] // tile), evaluate, buffers[writes_to])

  def run_round(r, carry):
    buffers, out = carry
    buffers = list(buffers)
    for i in range(len(streams) - 1):
      run_site(i, r, buffers)

    def finish_tile(t, out):
      reads = jax.lax.dynamic_slice_in_dim(leaf[r], t * tile, tile)
      h = jnp.concatenate([buffers[-1][reads[w]] for w in range(tile)])
      logits = readout(model, variables, h)
      result = finish(logits.reshape(tile, -1, *logits.shape[1:]))
      return jax.lax.dynamic_update_slice_in_dim(out, result, r * width + t * tile, 0)

    here = jnp.minimum(size - r * width, width)
    return buffers, jax.lax.fori_loop(0, -(-here // tile), finish_tile, out)

  logits = jax.eval_shape(lambda v, h: readout(model, v, h), variables, streams[-1])
  result = jax.eval_shape(finish, jax.ShapeDtypeStruct((tile, *logits.shape), logits.dtype))
  out = jnp.zeros((rounds * width, *result.shape[1:]), result.dtype)
  return jax.lax.fori_loop(0, -(-size // width), run_round, (buffers, out))[1]


def _buffers(streams) -> tuple[np.ndarray, list[jax.ShapeDtypeStruct]]:
  """One buffer for each stretch of sites between which the stream keeps its shape: the number of
  the buffer of each stream, and what its slots hold.
  """
  changes = [(a.shape, a.dtype) != (b.shape, b.dtype) for a, b in itertools.pairwise(streams)]
  return np.cumsum([0, *changes]), [streams[0], *itertools.compress(streams[1:], changes)]


def _streams(model, variables, h) -> list[jax.ShapeDtypeStruct]:
  """The stream that each site takes and the one that readout takes."""
  streams = [jax.ShapeDtypeStruct(h.shape, h.dtype)]
  for i in range(len(sites_of(model))):
    after = jax.eval_shape(lambda v, h, i=i: update(model, v, i, h), variables, streams[-1])
    streams.append(jax.ShapeDtypeStruct(after.shape, after.dtype))
  return streams


@functools.lru_cache(maxsize=256)
def slot_size(model, shape: tuple[int, ...], dtype) -> tuple[int, int]:
  """Bytes of one slot in all the buffers of `run_plan`, and rows of the first stream (its positions
  times its examples), for inputs of that shape and type.
  """
  streams = parts(model, jax.ShapeDtypeStruct(shape, dtype)).streams
  bytes_ = [stream.size * stream.dtype.itemsize for stream in _buffers(streams)[1]]
  return sum(bytes_), streams[0].size // streams[0].shape[-1]


def shared_prefix(model, variables, x: jax.Array, structures) -> jax.Array:
  """Logits [S, B, ..., C] of a set of structures, in their order, by one walk of their prefix tree.

  The structures are Python values (anything `Space.parse` takes) or an array of bits [S, n];
  repeats are evaluated once. One compile for each number of distinct structures. Differentiable in
  forward mode only; for loss and accuracy in bounded memory use `evaluate_structures`.

  Raises:
    UserError: for an empty set.
  """
  bits = bits_of(structures, len(gate_names(model)))
  if not len(bits):
    raise UserError('an empty list of structures: expected at least one')
  unique, inverse = np.unique(canonical(model, bits), axis=0, return_inverse=True)
  tile = min(4, len(unique))
  width = min(ROUND, -(-len(unique) // tile) * tile)
  sites = sites_of(model)
  walk = plan(unique, -(-len(unique) // width), width, sites)
  slots = num_slots(width, len(sites))
  return _logits(model, variables, x, walk.arrays, tile, slots)[inverse.reshape(-1)]


@functools.partial(jax.jit, static_argnames=('model', 'tile', 'slots'))
def _logits(model, variables, x, arrays, tile, slots):
  finish = lambda logits: logits
  return run_plan(model, variables, x, arrays, finish, tile=tile, slots=slots)
