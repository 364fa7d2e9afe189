"""Shared-prefix evaluation: a whole set of structures at once.

Structures that agree on the gates of their first i sites share those sites. The set is walked site
by site as a tree: a node is a distinct prefix, and site i runs once per node and value that its
gates take there. All 2^n structures of n residual gates cost 2^n − 1 branch evaluations in place of
n·2^(n−1).

On the device the nodes of the current level live in a buffer of slots, one stream [B, ..., D] each.
A child whose residual gate is off keeps its parent's slot, so it costs nothing; of the others the
last takes its parent's slot if no sibling is off, and the rest get slots of their own. Which slot
feeds which, and the values of inner gates, are data (`Plan`), not program: one compiled program
serves every set of up to `capacity` structures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.errors import UserError
from additive_jax.models.additive import (
  canonical,
  embed,
  gate_names,
  readout,
  sites_of,
  update,
)
from additive_jax.structure import bits_of


@dataclasses.dataclass(frozen=True)
class Plan:
  """How to evaluate up to `capacity` structures, as arrays that the compiled program takes.

  Attributes:
    count: evaluations of each site, int32 [sites].
    source, target: the slot each evaluation reads and the one it writes, int32 [sites, capacity].
    values: per site the inner gates of each evaluation, float32 [capacity, inner gates].
    num_leaves: slots in use at the end, int32 [].
    slot: where each structure of the set ends, int64 [S].
  """

  count: np.ndarray
  source: np.ndarray
  target: np.ndarray
  values: tuple[np.ndarray, ...]
  num_leaves: np.ndarray
  slot: np.ndarray

  @property
  def capacity(self) -> int:
    return self.source.shape[1]

  @property
  def arrays(self) -> tuple:
    return self.count, self.source, self.target, self.values, self.num_leaves


def plan(bits: np.ndarray, capacity: int, sites) -> Plan:
  """The plan for a set of structures, bool [S, n] in any order, with at most `capacity` different.

  Args:
    sites: of the model, see `models.additive.sites_of`; inner gates of sites that are off must be
      cleared (`models.additive.canonical`).
  """
  count = np.zeros(len(sites), np.int32)
  source = np.zeros((len(sites), capacity), np.int32)
  target = np.zeros((len(sites), capacity), np.int32)
  values = tuple(np.zeros((capacity, site.num_inner), np.float32) for site in sites)
  node = np.zeros(len(bits), np.int64)  # which node of the level each structure passes
  slot = np.zeros(1, np.int32)  # where each node of the level lives
  for i, site in enumerate(sites):
    taken, value = _numbered(bits[:, site.own])  # the values that this site's gates take anywhere
    child, inverse = np.unique(node * len(taken) + value, return_inverse=True)
    parent, value = np.divmod(child, max(len(taken), 1))
    on = taken[value, 0] if site.has_residual else np.ones(len(child), bool)
    last = np.r_[parent[1:] != parent[:-1], True]
    shares = np.bincount(parent, weights=~on)[parent] > 0  # an off sibling needs the parent's slot
    inherits = np.where(on, last & ~shares, True)
    child_slot = slot[parent]
    child_slot[~inherits] = len(slot) + np.arange((~inherits).sum())
    # Children that overwrite their parent come last, when no sibling reads it any more.
    runs = np.flatnonzero(on)[np.argsort(inherits[on], kind='stable')]
    count[i] = len(runs)
    source[i, : len(runs)] = slot[parent[runs]]
    target[i, : len(runs)] = child_slot[runs]
    values[i][: len(runs)] = taken[value[runs]][:, site.has_residual :]
    node, slot = inverse.reshape(-1), child_slot
  return Plan(count, source, target, values, np.int32(len(slot)), slot[node])


def _numbered(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The distinct rows of bool [S, k], and which of them each row is; off comes before on."""
  if not rows.shape[1]:
    return np.zeros((1, 0), bool), np.zeros(len(rows), np.int64)
  distinct, which = np.unique(rows, axis=0, return_inverse=True)
  return distinct, which.reshape(-1)


def chunks(bits: np.ndarray, capacity: int) -> list[np.ndarray]:
  """Splits a set [S, n] into index arrays of at most `capacity` structures that share long
  prefixes.

  Chunks are ranges of the lexicographic order, so for all 2^n structures and a power of two each
  fixes the first gates.
  """
  order = np.lexsort(bits.T[::-1])
  return [order[start : start + capacity] for start in range(0, len(order), capacity)]


def run_plan(
  model,
  variables,
  x: jax.Array,
  arrays,
  finish: Callable[[jax.Array], jax.Array],
  *,
  tile: int,
) -> jax.Array:
  """Walks a plan on the device and applies `finish` to each structure's logits.

  Args:
    variables: `{'params': pool}`.
    x: inputs [B, ...].
    arrays: `Plan.arrays`; may be traced.
    finish: from logits [W, B, ..., C] of W structures to [W, ...].
    tile: W, how many prefixes share one pass through a branch. Static. The last pass of a level may
      be partly idle, so a tile should be no wider than fills the machine.

  Returns:
    What `finish` gave, [at least capacity, ...], in slot order; slots from `num_leaves` on are
    undefined.
  """
  count, source, target, values, num_leaves = arrays
  capacity = source.shape[1]
  padding = -capacity % tile
  spare = capacity + padding  # the slot that the idle part of a pass writes to
  pad = lambda table: jnp.pad(table, ((0, padding), *[(0, 0)] * (table.ndim - 1)))
  h = embed(model, variables, x)
  slots = jnp.zeros((spare + 1, *h.shape), h.dtype).at[0].set(h)

  for i in range(len(sites_of(model))):
    before = slots
    after = jax.eval_shape(lambda h, i=i: update(model, variables, i, h), before[0])
    same = after.shape == before.shape[1:] and after.dtype == before.dtype
    tables = pad(source[i]), pad(target[i]), pad(values[i])

    def evaluate(t, slots, i=i, before=None if same else before, tables=tables):
      reads, writes, inner = (
        jax.lax.dynamic_slice_in_dim(table, t * tile, tile) for table in tables
      )
      writes = jnp.where(t * tile + jnp.arange(tile) < count[i], writes, spare)
      read = slots if before is None else before
      # Slices move a slot as one block; a gather or scatter would go element by element on CPU.
      h = jnp.concatenate([read[reads[w]] for w in range(tile)])
      inner = jnp.repeat(inner, read.shape[1], axis=0) if tile > 1 else inner[0]
      h = update(model, variables, i, h, [inner[..., k] for k in range(inner.shape[-1])])
      h = h.reshape(tile, *slots.shape[1:])
      for w in range(tile):
        slots = jax.lax.dynamic_update_index_in_dim(slots, h[w], writes[w], 0)
      return slots

    if not same:
      slots = jnp.zeros((spare + 1, *after.shape), after.dtype)
    slots = jax.lax.fori_loop(0, -(-count[i] // tile), evaluate, slots)

  def finish_tile(t, out):
    h = jax.lax.dynamic_slice_in_dim(slots, t * tile, tile)
    logits = readout(model, variables, h.reshape(-1, *h.shape[2:]))
    result = finish(logits.reshape(tile, h.shape[1], *logits.shape[1:]))
    return jax.lax.dynamic_update_slice_in_dim(out, result, t * tile, 0)

  logits = jax.eval_shape(lambda v, h: readout(model, v, h), variables, slots[0])
  result = jax.eval_shape(finish, jax.ShapeDtypeStruct((tile, *logits.shape), logits.dtype))
  out = jnp.zeros((spare, *result.shape[1:]), result.dtype)
  return jax.lax.fori_loop(0, -(-num_leaves // tile), finish_tile, out)


def largest_stream(model, variables, x) -> int:
  """Bytes of the largest stream [B, ..., D] that embed or a site gives for inputs like `x`."""
  h = jax.eval_shape(lambda v, x: embed(model, v, x), variables, x)
  largest = h.size * h.dtype.itemsize
  for i in range(len(sites_of(model))):
    h = jax.eval_shape(lambda v, h, i=i: update(model, v, i, h), variables, h)
    largest = max(largest, h.size * h.dtype.itemsize)
  return largest


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
  walk = plan(unique, len(unique), sites_of(model))
  logits = _logits(model, variables, x, walk.arrays, min(4, len(unique)))
  return logits[walk.slot[inverse.reshape(-1)]]


@functools.partial(jax.jit, static_argnames=('model', 'tile'))
def _logits(model, variables, x, arrays, tile):
  return run_plan(model, variables, x, arrays, lambda logits: logits, tile=tile)
