"""Meshes, and arrays on them.

Axes over which trainings and batches are spread: `structure` (devices that train different
structures) and `data` (devices that split one structure's batch). Axes over which one network is
spread, each with an option of the same name that ends in `_devices`: `lane` (its lanes), `expert`
(its experts or modules), `pipe` (its stages), `fsdp` (every parameter, and the batch) and `tensor`
(heads and hidden units).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from additive_jax.errors import UserError
from additive_jax.files import keys
from additive_jax.parallel.processes import to_host

log = logging.getLogger('additive_jax')

STRUCTURE, DATA, LANE, EXPERT, PIPE = 'structure', 'data', 'lane', 'expert', 'pipe'
FSDP, TENSOR = 'fsdp', 'tensor'
SPREAD = (EXPERT, PIPE, FSDP, TENSOR)  # axes that a training may have beside the first two
BATCH = (DATA, FSDP)  # the axes that split a batch
MANUAL = (STRUCTURE, *BATCH, PIPE)  # the axes whose collectives a step of training writes out


def make_mesh(
  num_structures: int,
  batch_size: int,
  devices: Sequence[jax.Device] | None = None,
  *,
  expert_devices: int = 1,
  pipe_devices: int = 1,
  fsdp_devices: int = 1,
  tensor_devices: int = 1,
) -> Mesh:
  """Returns the mesh [structure, data, ...] for K structures a step, each on a batch of
  `batch_size` examples.

  The size of the `structure` axis divides K, that of `data` the batch, and together they use as
  many devices as can be; of several such meshes, the one with the longest `structure` axis. Devices
  left over stay idle, which is logged.

  >>> dict(make_mesh(4, 6, jax.devices()[:8], fsdp_devices=2).shape)
  {'structure': 4, 'data': 1, 'fsdp': 2}

  Args:
    num_structures, batch_size: K, and the examples of each batch, or parts of it that stay whole.
    devices: in order; None is all of them.
    expert_devices, pipe_devices, fsdp_devices, tensor_devices: over how many devices one network is
      spread along each of these axes; each place of `structure` and `data` holds as many as their
      product. The mesh has those above 1.

  Raises:
    UserError: for numbers that do not divide the devices, or for `fsdp_devices` the batch; of
      several processes, for devices left over.
  """
  devices = list(jax.devices() if devices is None else devices)
  spread = dict(zip(SPREAD, (expert_devices, pipe_devices, fsdp_devices, tensor_devices)))
  check_spread(spread, len(devices))
  together = math.prod(spread.values())
  places = len(devices) // together
  if batch_size % fsdp_devices:
    raise UserError(
      f'fsdp_devices {fsdp_devices} for a batch of {batch_size} parts: expected a number that '
      'divides it'
    )
  structure, data = _most_places(num_structures, batch_size // fsdp_devices, places)
  used = structure * data * together
  if jax.process_count() > 1 and used < len(devices):
    raise UserError(
      f'{num_structures} structures a step, each on {batch_size} examples, do not divide over '
      f'{len(devices)} devices: expected a multiple, since every process takes part'
    )
  if used < len(devices):
    log.warning(
      '%d of %d devices are used: %d structures a step and a batch of %d parts allow no more',
      used,
      len(devices),
      num_structures,
      batch_size,
    )
  axes = {STRUCTURE: structure, DATA: data}
  axes |= {axis: size for axis, size in spread.items() if size > 1}
  types = (AxisType.Auto,) * len(axes)
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:used])


def exact_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh of these sizes, on the first devices.

  >>> dict(exact_mesh({'fsdp': 4}).shape)
  {'structure': 1, 'data': 1, 'fsdp': 4}

  Args:
    sizes: devices along `structure` and `data`, 1 if not given, and along axes over which one
      network is spread.
    devices: in order; None is all of them.

  Raises:
    UserError: for an unknown axis, a size below 1, or fewer devices.
  """
  known = (STRUCTURE, DATA, *SPREAD)
  for name, size in sizes.items():
    if name not in known:
      raise UserError(f'axis {name!r} of a mesh: expected one of {", ".join(known)}')
    if not isinstance(size, int) or size < 1:
      raise UserError(f'{size} devices along {name}: expected a whole number, at least 1')
  axes = {STRUCTURE: 1, DATA: 1} | dict(sizes)
  axes = {
    name: axes[name] for name in known if name in axes and (name in known[:2] or axes[name] > 1)
  }
  devices = list(jax.devices() if devices is None else devices)
  count = math.prod(axes.values())
  if count > len(devices):
    host = ''
    if devices[0].platform == 'cpu':
      host = f"; on CPU call jax.config.update('jax_num_cpu_devices', {count}) before anything else"
    raise UserError(
      f'a mesh of {" × ".join(map(str, axes.values()))} devices: expected at most {len(devices)}, '
      f'the {devices[0].platform} devices here{host}'
    )
  types = (AxisType.Auto,) * len(axes)
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:count])


def _most_places(num_structures: int, batch_size: int, places: int) -> tuple[int, int]:
  """Returns the sizes of `structure` and `data` that fill the most places, and of such sizes those
  with the longest `structure`."""
  sizes = [
    (structure, data)
    for structure in range(1, places + 1)
    for data in range(1, places // structure + 1)
    if num_structures % structure == 0 and batch_size % data == 0
  ]
  return max(sizes, key=lambda size: (math.prod(size), size))


def check_spread(spread: Mapping[str, int], num_devices: int) -> None:
  """Raises `UserError` where axes over which one network is spread do not divide the devices.

  Args:
    spread: by axis, over how many devices.
  """
  for axis, count in spread.items():
    if count < 1 or num_devices % count:
      raise UserError(
        f'{axis}_devices {count} on {num_devices} devices: expected a number that divides them'
      )
    num_devices //= count
  if spread.get(PIPE, 1) > 1 and (others := [a for a in (FSDP, TENSOR) if spread.get(a, 1) > 1]):
    raise UserError(
      f'{others[0]}_devices {spread[others[0]]} with pipe_devices {spread[PIPE]}: expected 1 of '
      'either'
    )


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
  """Returns the axes of a mesh that split a batch."""
  return tuple(axis for axis in mesh.axis_names if axis in BATCH)


def num_shares(mesh: Mesh) -> int:
  """Returns how many devices split a batch."""
  return math.prod(mesh.shape[axis] for axis in batch_axes(mesh))


def manual_axes(mesh: Mesh) -> tuple[str, ...]:
  """Returns the axes of a mesh along which a step of training writes its collectives out."""
  return tuple(axis for axis in mesh.axis_names if axis in MANUAL)


def place(tree: PyTree, mesh: Mesh, specs: PyTree) -> PyTree:
  """Puts host arrays, the same in every process, on the mesh; each process places only the parts of
  its devices.

  >>> mesh = make_mesh(num_structures=1, batch_size=2, devices=jax.devices()[:2])
  >>> placed = place({'x': np.arange(4)}, mesh, PartitionSpec('data'))
  >>> [shard.data.tolist() for shard in placed['x'].addressable_shards]
  [[0, 1], [2, 3]]

  Args:
    tree: of arrays or numbers.
    specs: a `PartitionSpec` for all leaves, or a pytree of them like `tree`.
  """
  if isinstance(specs, PartitionSpec):
    specs = jax.tree.map(lambda _, spec=specs: spec, tree)
  return lay(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))


def lay(tree: PyTree, shardings: PyTree) -> PyTree:
  """Puts host arrays where a pytree of shardings says, as `place` does."""

  def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    values = keys.as_numpy(leaf)
    placed = jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
    return keys.like(placed, leaf)

  return jax.tree.map(put, tree, shardings)


def is_on(mesh: Mesh, tree: PyTree) -> bool:
  """Returns whether all leaves are arrays on just the devices of the mesh."""
  devices = set(mesh.devices.flat)
  return all(
    isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
    for leaf in jax.tree.leaves(tree)
  )


def pick_devices(count: int) -> list[jax.Device]:
  """Returns the first `count` devices of all processes; 0 is all of them.

  Raises:
    UserError: when there are fewer.
  """
  devices = jax.devices()
  if count > len(devices):
    raise UserError(
      f'devices {count}: expected at most {len(devices)}, the {devices[0].platform} devices here'
    )
  return devices[:count] if count and jax.process_count() == 1 else devices


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """Returns a copy of `tree` on every device of the mesh. A real copy: the source survives donation
  of the result.
  """
  return place(to_host(tree), mesh, PartitionSpec())
