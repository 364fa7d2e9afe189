"""How the state of a training lies on a mesh: which leaves are split over which axis.

Experts of their own weights, and the modules of a DNA's pool, may be spread over the mesh axis
`expert`: each device holds as many, runs them on all tokens of its share of the batch, and one
all-reduce adds up what they gave. As for lanes, the model's own shapes say which leaves are split.
"""

from __future__ import annotations

import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from additive_jax.errors import UserError
from additive_jax.models.moe import Experts
from additive_jax.models.transformer import Transformer
from additive_jax.parallel.mesh import EXPERT, split_specs


def has_experts(model) -> bool:
  """Whether a model has experts or modules of their own weights, which can be spread."""
  if isinstance(model, Transformer):
    return isinstance(model.routing, Experts)
  return hasattr(model, 'expert_devices')


def local_model(model, num_devices: int, axis: str | None = EXPERT):
  """The same network as one device of the mesh sees it, inside `shard_map`.

  Args:
    model: whole; of more than one device, with the fields `expert_devices` and `expert_axis`.
    num_devices: over which its experts are spread.
    axis: the mesh axis.

  Raises:
    UserError: when the model has no experts, or they do not divide over the devices.
  """
  if num_devices == 1:
    return model
  if not hasattr(model, 'expert_devices'):
    raise UserError(
      f'{type(model).__name__} over {num_devices} expert_devices: expected a model with experts '
      'or modules of their own weights, or 1'
    )
  return model.clone(expert_devices=num_devices, expert_axis=axis)


@functools.lru_cache(maxsize=32)
def expert_specs(model, num_devices: int, example: jax.ShapeDtypeStruct):
  """How the pool is laid out over the axis `expert`: a pytree of `PartitionSpec` like the pool.

  A leaf is split along the axis that differs between the whole model and one device's.
  """
  shapes = lambda model: jax.eval_shape(model.init, jax.random.key(0), example)['params']
  return split_specs(shapes(model), shapes(local_model(model, num_devices, None)), EXPERT)


def like_pool(tree, params, specs):
  """A layout for what an optimizer keeps: its leaves lie like the leaves of the pool that they
  belong to, and the others whole on every device.

  A leaf belongs to that of the pool whose path ends its own, if it has the same shape.

  Args:
    tree: of the optimizer, leaves with a shape.
    params, specs: the pool, leaves with a shape, and its layout.
  """
  shapes = [(path, leaf.shape) for path, leaf in jax.tree.leaves_with_path(params)]
  known = dict(zip(shapes, jax.tree.leaves(specs), strict=True))

  def spec(path, leaf):
    ends = (known.get((path[i:], leaf.shape)) for i in range(len(path)))
    return next((found for found in ends if found is not None), PartitionSpec())

  return jax.tree.map_with_path(spec, tree)


def shardings(mesh: Mesh, specs):
  """A pytree of `PartitionSpec` as one of `NamedSharding`."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
