"""Shared-prefix evaluation: a whole set of structures at once.

Structures that agree on their first i gates share their first i sites. The set is walked level by
level as a binary tree: a node is a distinct prefix, and site i runs once per node whose gate i is
on somewhere in the set. All 2^n structures cost 2^n − 1 branch evaluations in place of n·2^(n−1).

On the device the nodes of the current level live in a buffer of slots, one stream [B, ..., D] each.
An off child keeps its parent's slot, so it costs nothing; an on child gets a slot of its own, or
its parent's where it is the only child. Which slot feeds which is data (`Plan`), not
program: one compiled program serves every set of up to `capacity` structures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.errors import UserError
from additive_jax.models.additive import branch, embed, gate_names, readout
from additive_jax.structure import bits_of


@dataclasses.dataclass(frozen=True)
class Plan:
  """How to evaluate up to `capacity` structures, as arrays that the compiled program takes.

  Attributes:
    count: branch evaluations at each level, int32 [n].
    source, target: the slot each evaluation reads and the one it writes, int32 [n, capacity].
    num_leaves: how many structures, int32 [].
    order: which structure of the set each slot ends as, int64 [num_leaves].
  """

  count: np.ndarray
  source: np.ndarray
  target: np.ndarray
  num_leaves: np.ndarray
  order: np.ndarray

  @property
  def capacity(self) -> int:
    return self.source.shape[1]

  @property
  def arrays(self) -> tuple[np.ndarray, ...]:
    return self.count, self.source, self.target, self.num_leaves


def plan(bits: np.ndarray, capacity: int) -> Plan:
  """The plan for a set of distinct structures, bool [S, n] with 1 ≤ S ≤ capacity, in any order."""
  num_structures, num_gates = bits.shape
  order = np.lexsort(bits.T[::-1])  # neighbours in this order share the longest prefixes
  bits = bits[order]
  count = np.zeros(num_gates, np.int32)
  source = np.zeros((num_gates, capacity), np.int32)
  target = np.zeros((num_gates, capacity), np.int32)
  node = np.zeros(num_structures, np.int64)  # which node of the level each structure passes
  slot = np.zeros(1, np.int32)  # where each node of the level lives
  for i in range(num_gates):
    child, inverse = np.unique(node * 2 + bits[:, i], return_inverse=True)
    parent, on = child // 2, child % 2 == 1
    alone = ~np.isin(child - 1, child)  # an on child without an off sibling takes its parent's slot
    fresh = on & ~alone
    child_slot = slot[parent]
    child_slot[fresh] = len(slot) + np.arange(fresh.sum())
    count[i] = on.sum()
    source[i, : count[i]] = slot[parent[on]]
    target[i, : count[i]] = child_slot[on]
    node, slot = inverse, child_slot
  leaf = np.empty(num_structures, np.int64)
  leaf[slot[node]] = order
  return Plan(count, source, target, np.int32(num_structures), leaf)


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
  count, source, target, num_leaves = arrays
  capacity = source.shape[1]
  padding = -capacity % tile
  spare = capacity + padding  # the slot that the idle part of a pass writes to
  source = jnp.pad(source, ((0, 0), (0, padding)))
  target = jnp.pad(target, ((0, 0), (0, padding)))
  h = embed(model, variables, x)
  slots = jnp.zeros((spare + 1, *h.shape), h.dtype).at[0].set(h)

  for i in range(len(gate_names(model))):

    def evaluate(t, slots, i=i):
      position = t * tile + jnp.arange(tile)
      reads = jax.lax.dynamic_slice(source[i], (t * tile,), (tile,))
      writes = jax.lax.dynamic_slice(target[i], (t * tile,), (tile,))
      writes = jnp.where(position < count[i], writes, spare)
      # Slices move a slot as one block; a gather or scatter would go element by element on CPU.
      h = jnp.concatenate([slots[reads[w]] for w in range(tile)])
      h = (h + branch(model, variables, i, h)).reshape(tile, *slots.shape[1:])
      for w in range(tile):
        slots = jax.lax.dynamic_update_index_in_dim(slots, h[w], writes[w], 0)
      return slots

    slots = jax.lax.fori_loop(0, -(-count[i] // tile), evaluate, slots)

  def finish_tile(t, out):
    h = jax.lax.dynamic_slice_in_dim(slots, t * tile, tile)
    logits = readout(model, variables, h.reshape(-1, *h.shape[2:]))
    result = finish(logits.reshape(tile, h.shape[1], *logits.shape[1:]))
    return jax.lax.dynamic_update_slice_in_dim(out, result, t * tile, 0)

  logits = jax.eval_shape(lambda v, h: readout(model, v, h), variables, h)
  result = jax.eval_shape(finish, jax.ShapeDtypeStruct((tile, *logits.shape), logits.dtype))
  out = jnp.zeros((spare, *result.shape[1:]), result.dtype)
  return jax.lax.fori_loop(0, -(-num_leaves // tile), finish_tile, out)


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
  unique, inverse = np.unique(bits, axis=0, return_inverse=True)
  walk = plan(unique, len(unique))
  logits = _logits(model, variables, x, walk.arrays, min(4, len(unique)))
  slot_of = np.empty(len(unique), np.int64)
  slot_of[walk.order] = np.arange(len(unique))
  return logits[slot_of[inverse.reshape(-1)]]


@functools.partial(jax.jit, static_argnames=('model', 'tile'))
def _logits(model, variables, x, arrays, tile):
  return run_plan(model, variables, x, arrays, lambda logits: logits, tile=tile)
