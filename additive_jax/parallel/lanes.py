"""Lanes over a mesh: every device holds some lanes of the stream, and of the parameters the heads
and hidden units of those lanes.

The forward pass has one all-reduce for each lane gate that is on, and one for the mean that the
readout takes; a gate that is off moves nothing. The backward pass has one more for each on gate,
and one for each replicated parameter (norms, embedding, biases of a branch's output).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from additive_jax.errors import UserError
from additive_jax.models.kinds import LANE as KIND
from additive_jax.models.kinds import check_divides
from additive_jax.parallel.mesh import DATA, LANE, split_specs


def lane_mesh(num_devices: int, devices=None) -> Mesh:
  """The mesh [data, lane] with `num_devices` devices along `lane`, and the rest along `data`.

  Raises:
    UserError: when `num_devices` does not divide the devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if num_devices < 1 or len(devices) % num_devices:
    raise UserError(
      f'a lane axis of {num_devices} on {len(devices)} devices: expected a number that divides them'
    )
  shape = (len(devices) // num_devices, num_devices)
  types = (AxisType.Auto, AxisType.Auto)
  return jax.make_mesh(shape, (DATA, LANE), axis_types=types, devices=devices)


def local_model(model, num_devices: int, axis: str | None = LANE):
  """The same network as one device of the mesh sees it, inside `shard_map`.

  Args:
    model: with lane gates, whole.
    num_devices: over which its lanes are spread.
    axis: the mesh axis.

  Raises:
    UserError: when the model has no lane gates, or they do not divide over the devices.
  """
  if KIND not in getattr(model, 'gates', ()):
    raise UserError(
      f'{type(model).__name__} with gates {tuple(getattr(model, "gates", ()))} on a lane axis: '
      f'expected a model with the gate kind {KIND!r}'
    )
  check_divides('lanes', model.num_lanes, 'devices', num_devices)
  return model.clone(lane_devices=num_devices, lane_axis=axis)


@functools.lru_cache(maxsize=32)
def lane_specs(model, num_devices: int, example: jax.ShapeDtypeStruct):
  """How the pool is laid out over the axis `lane`: a pytree of `PartitionSpec` like the pool.

  A leaf is split along the axis that differs between the whole model and one device's.
  """
  shapes = lambda model: jax.eval_shape(model.init, jax.random.key(0), example)['params']
  return split_specs(shapes(model), shapes(local_model(model, num_devices, None)), LANE)


def place_pool(model, variables, mesh: Mesh, x):
  """Puts `{'params': pool}` on the mesh, each device with the shards of its own lanes."""
  specs = _specs(model, mesh, x)
  put = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec))
  return {'params': jax.tree.map(put, variables['params'], specs)}


def over_mesh(way: Callable, model, mesh: Mesh) -> Callable:
  """A way to run (`run.static`, `run.conditional`, `run.masked`) with the lanes over a mesh.

  Args:
    way: takes (model, variables, x, structure).
    model: with lane gates.
    mesh: has the axis `lane`; an axis `data`, if there is one, splits the batch.

  Returns:
    A function of (variables, x, structure) that gives the logits [B, ..., C]; the pool's layout is
    that of `place_pool`, and the gradient's the same. Compiles like `way` does under `jax.jit`,
    where a static structure must be a static argument.

  Raises:
    UserError: see `local_model`; and for a mesh without the axis, or, when the result is called, a
      batch that its data axis does not divide.
  """
  if LANE not in mesh.axis_names:
    raise UserError(f'a mesh of axes {mesh.axis_names}: expected one with the axis {LANE!r}')
  part = local_model(model, mesh.shape[LANE])
  rows = PartitionSpec(DATA if DATA in mesh.axis_names else None)

  def run(variables, x, structure):
    splits = mesh.shape.get(DATA, 1)
    check_divides('examples', len(x), 'devices along the data axis', splits)
    specs = {'params': _specs(model, mesh, x)}
    if isinstance(structure, jax.Array):
      by_example = structure.ndim > 1
      inputs = (specs, rows, rows if by_example else PartitionSpec())
      call = lambda v, x, s: way(part, v, x, s)
      shard = jax.shard_map(call, mesh=mesh, in_specs=inputs, out_specs=rows)
      return shard(variables, x, structure)
    call = lambda v, x: way(part, v, x, structure)
    return jax.shard_map(call, mesh=mesh, in_specs=(specs, rows), out_specs=rows)(variables, x)

  return run


def _specs(model, mesh, x):
  return lane_specs(model, mesh.shape[LANE], jax.ShapeDtypeStruct(x.shape, x.dtype))
