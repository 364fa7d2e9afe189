"""The slots of one device in a step on a mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, UInt32

from additive_jax.parallel import mesh as mesh_
from additive_jax.train.gradients import Slots
from additive_jax.train.samplers import Sampler

DROPOUT = 0x64726F70  # folded into the key of a slot, for what its network drops


def device_slots(
  mesh: Mesh,
  sampler: Sampler,
  key: UInt32[Array, 'words'],
  step: Int[Array, ''],
  batch: tuple[Any, Any],
  shared: bool,
) -> Slots:
  """Returns one device's slots of a step, inside `shard_map`.

  Args:
    mesh: whose axis `structure` shares the slots out.
    sampler, key: what draws the structures.
    step: of the training.
    batch: the examples of each, or if they are shared of one for all.
    shared: whether they are.
  """
  per_device = sampler.num_structures // mesh.shape[mesh_.STRUCTURE]
  first = jax.lax.axis_index(mesh_.STRUCTURE) * per_device
  now = jax.random.fold_in(jax.random.wrap_key_data(key), step)
  bits = jax.lax.dynamic_slice_in_dim(sampler(now, step), first, per_device)
  numbers = first + jnp.arange(per_device)
  keys = jax.vmap(lambda slot: jax.random.fold_in(now, slot))(numbers)
  rates = sampler.rates(step) if hasattr(sampler, 'rates') else None
  if shared:
    repeat = lambda a: jnp.broadcast_to(a, (per_device, *a.shape[1:]))
    batch = jax.tree.map(repeat, batch)
  x, y = batch
  dropout = jax.vmap(lambda key: jax.random.fold_in(key, DROPOUT))(keys)
  return Slots(bits, x, y, keys, step, rates, dropout, numbers)
