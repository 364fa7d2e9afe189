"""Meshes, and arrays on them.

Axes: `structure` (devices that train different structures), `data` (devices that split one
structure's batch), `lane` (devices that hold different lanes of one network, see `lanes`),
`expert` (devices that hold different experts or modules of one network, see `layout`) and `pipe`
(devices that hold different stages of one network, see `pipeline`).
"""

from __future__ import annotations

import logging

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from additive_jax.errors import UserError
from additive_jax.parallel.processes import to_host

log = logging.getLogger('additive_jax')

STRUCTURE, DATA, LANE, EXPERT, PIPE = 'structure', 'data', 'lane', 'expert', 'pipe'


def make_mesh(
  num_structures: int,
  batch_size: int,
  devices=None,
  *,
  expert_devices: int = 1,
  pipe_devices: int = 1,
) -> Mesh:
  """The mesh [structure, data] for K structures a step, each on a batch of `batch_size` examples.

  The size of the `structure` axis divides K, that of `data` the batch, and together they use as
  many devices as can be; of several such meshes, the one with the longest `structure` axis. Devices
  left over stay idle, which is logged.

  Args:
    expert_devices: over how many devices the experts of one network are spread; above 1 the mesh
      has a third axis, `expert`, and each place of the other two holds as many devices.
    pipe_devices: likewise the stages of one network, over the axis `pipe`.

  Raises:
    UserError: for `expert_devices` or `pipe_devices` that do not divide the devices; of several
      processes, for devices left over.
  """
  devices = list(jax.devices() if devices is None else devices)
  check_expert_devices(expert_devices, len(devices))
  check_pipe_devices(pipe_devices, len(devices) // expert_devices)
  together = expert_devices * pipe_devices
  places = len(devices) // together
  best = max(
    (
      (s * d, s)
      for s in range(1, places + 1)
      for d in range(1, places // s + 1)
      if num_structures % s == 0 and batch_size % d == 0
    ),
  )
  used, structure = best[0] * together, best[1]
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
  axes = {STRUCTURE: structure, DATA: best[0] // structure}
  if expert_devices > 1:
    axes[EXPERT] = expert_devices
  if pipe_devices > 1:
    axes[PIPE] = pipe_devices
  types = (AxisType.Auto,) * len(axes)
  return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types, devices=devices[:used])


def check_expert_devices(count: int, num_devices: int) -> None:
  """Raises `UserError` where an axis of `count` devices for experts does not divide the devices."""
  if count < 1 or num_devices % count:
    raise UserError(
      f'expert_devices {count} on {num_devices} devices: expected a number that divides them'
    )


def check_pipe_devices(count: int, num_devices: int) -> None:
  """Raises `UserError` where an axis of `count` devices for stages does not divide the devices."""
  if count < 1 or num_devices % count:
    raise UserError(
      f'pipe_devices {count} on {num_devices} devices: expected a number that divides them'
    )


def place(tree, mesh: Mesh, specs):
  """Puts host arrays, the same in every process, on the mesh; each process places only its own
  devices' parts.

  Args:
    specs: a `PartitionSpec` for all leaves, or a pytree of them like `tree`.
  """
  if isinstance(specs, PartitionSpec):
    specs = jax.tree.map(lambda _, spec=specs: spec, tree)

  def put(leaf, spec):
    leaf = np.asarray(leaf)
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree.map(put, tree, specs)


def pick_devices(count: int) -> list[jax.Device]:
  """The first `count` devices of all processes; 0 is all of them.

  Raises:
    UserError: when there are fewer.
  """
  devices = jax.devices()
  if count > len(devices):
    raise UserError(
      f'--devices={count}: expected at most {len(devices)}, the {devices[0].platform} devices here'
    )
  return devices[:count] if count and jax.process_count() == 1 else devices


def replicate(tree, mesh: Mesh):
  """A copy of `tree` on every device of the mesh. A real copy: the source survives donation of the
  result.
  """
  return place(to_host(tree), mesh, PartitionSpec())


def split_specs(whole, part, axis: str):
  """How leaves are split over a mesh axis: a pytree of `PartitionSpec`, which name the axis in
  which one device's leaf differs in size from the whole one.

  Args:
    whole, part: pytrees of the same structure, of leaves with a shape.
  """

  def spec(whole, part):
    axes = [axis if a != b else None for a, b in zip(whole.shape, part.shape)]
    return PartitionSpec(*axes) if axis in axes else PartitionSpec()

  return jax.tree.map(spec, whole, part)
