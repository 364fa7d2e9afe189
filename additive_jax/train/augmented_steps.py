"""Steps on a mesh whose examples are augmented first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from additive_jax.parallel import layout
from additive_jax.train.augment import Augment, augmented


def of_augmented(
  gradient: Callable[..., Any], augment: Augment | None, mesh: Mesh, rows: PartitionSpec
) -> Callable[..., Any]:
  """Returns the gradient of a step on augmented examples.

  The augmentation sees whole batches, and XLA splits its work as they lie on the mesh: there is no
  branch in it that devices may take differently, so it needs no collectives of ours.

  >>> of_augmented(max, None, mesh=None, rows=PartitionSpec()) is max
  True

  Args:
    gradient: of (pool, step, t, sampler, key, chunk, data): place t of the chunk has the examples
      of the step [slots, B, ...], or their numbers in the data.
    augment: None leaves the gradient as it is.
    mesh: that the step runs on.
    rows: how a chunk lies on it.
  """
  if augment is None:
    return gradient
  chunk_lies = layout.shardings(mesh, rows)
  batch_lies = layout.shardings(mesh, PartitionSpec(*rows[1:]))

  def of_step(params, step, t, sampler, key, chunk, data):
    batch = jax.tree.map(lambda a: a[t], chunk)
    if data:
      batch = jax.tree.map(lambda a: a[batch], data)
    batch = jax.lax.with_sharding_constraint(batch, batch_lies)
    now = jax.random.fold_in(jax.random.wrap_key_data(key), step)
    slots = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
    keys = jax.vmap(lambda slot: jax.random.fold_in(now, slot))(slots)
    one = jax.tree.map(lambda a: a[None], augmented(augment, keys, *batch))
    one = jax.lax.with_sharding_constraint(one, chunk_lies)
    return gradient(params, step, 0, sampler, key, one, ())

  return of_step
