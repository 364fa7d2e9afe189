"""Where things live: the one file that knows the mesh axes, the processes and the collectives.

Mesh axes: `structure` (devices that train different structures), `data` (devices that split one
structure's batch), `lane` (devices that hold different lanes of one network; see `lanes.py`),
`expert` (devices that hold different experts or modules of one network; see `layout.py`) and `pipe`
(devices that hold different stages of one network; see `pipeline.py`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import queue
import re
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from additive_jax.errors import UserError

log = logging.getLogger('additive_jax')

STRUCTURE, DATA, LANE, EXPERT, PIPE = 'structure', 'data', 'lane', 'expert', 'pipe'
COLLECTIVES = ('psum', 'ring')

# On CPU one program of small matmuls gains nothing from a second core, while two programs side by
# side gain all of it.
SINGLE_THREAD = {'xla_cpu_multi_thread_eigen': False}


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


def to_host(tree):
  """A NumPy copy of whole arrays, however they lie on devices. Those that are split over several
  processes are gathered, so all of them must call this together.
  """

  def copy(leaf):
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
      return np.array(multihost_utils.process_allgather(leaf, tiled=True))
    return np.array(jax.device_get(leaf))

  return jax.tree.map(copy, tree)


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


def all_reduce_sum(tree, axes: tuple[str, ...], collective: str, specs=None):
  """Sums a pytree over mesh axes, inside `shard_map`; the same on every device.

  Args:
    collective: 'psum', or 'ring' for `ring_all_reduce` along each axis in turn.
    specs: a pytree of `PartitionSpec` like `tree`; a leaf is not summed over axes that it is split
      over. None: no leaf is split.
  """
  if specs is not None:
    leaves, structure = jax.tree.flatten(tree)
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, spec in enumerate(structure.flatten_up_to(specs)):
      split = jax.tree.leaves(tuple(spec))
      groups.setdefault(tuple(axis for axis in axes if axis not in split), []).append(i)
    for over, members in groups.items():
      summed = all_reduce_sum([leaves[i] for i in members], over, collective)
      for i, leaf in zip(members, summed):
        leaves[i] = leaf
    return structure.unflatten(leaves)
  if not axes:
    return tree
  if collective == 'psum':
    return jax.lax.psum(tree, axes)
  vector, unravel = ravel_pytree(tree)
  for axis in axes:
    vector = ring_all_reduce(vector, axis)
  return unravel(vector)


def ring_all_reduce(vector: jax.Array, axis: str) -> jax.Array:
  """Sum of `vector` [N] over the P devices of `axis` by reduce-scatter and all-gather around a
  ring.

  Each device sends 2·(P−1)/P·N numbers in all, whatever P. Source: Patarasuk & Yuan 2009, J.
  Parallel Distrib. Comput. 69.
  """
  size = jax.lax.axis_size(axis)
  if size == 1:
    return vector
  rank = jax.lax.axis_index(axis)
  ring = [(i, (i + 1) % size) for i in range(size)]
  pieces = jnp.pad(vector, (0, -len(vector) % size)).reshape(size, -1)

  # After step t device r holds the sum of t+2 devices' piece r−t−1; after the last one, piece r+1
  # in full.
  moving = pieces[rank]
  for t in range(size - 1):
    moving = jax.lax.ppermute(moving, axis, ring) + pieces[(rank - t - 1) % size]
  pieces = pieces.at[(rank + 1) % size].set(moving)
  for t in range(size - 1):
    moving = jax.lax.ppermute(moving, axis, ring)
    pieces = pieces.at[(rank - t) % size].set(moving)
  return pieces.reshape(-1)[: len(vector)]


def workers(devices=None) -> list[jax.Device]:
  """The device that each of this process's worker threads drives.

  Accelerators: one thread each. CPU: one thread per core, all on one device, since the devices of a
  CPU are the same cores and each further device would compile everything again.
  """
  if devices is not None:
    return list(devices)
  local = jax.local_devices()
  if local[0].platform != 'cpu':
    return local
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return [local[0]] * (cores or 1)


def spread(jobs: Iterable, run: Callable, devices: list[jax.Device]) -> Iterator:
  """Runs `run(job, device)` for every job on a pool of worker threads; yields (job, result) as they
  end.

  Args:
    devices: one per worker thread, see `workers`.
  """
  jobs = list(jobs)
  idle: queue.SimpleQueue = queue.SimpleQueue()
  for device in devices:
    idle.put(device)

  def work(job):
    device = idle.get()
    try:
      return job, run(job, device)
    finally:
      idle.put(device)

  pool = concurrent.futures.ThreadPoolExecutor(len(devices))
  try:
    # No list of futures is kept: each would hold its result to the end.
    for future in concurrent.futures.as_completed([pool.submit(work, job) for job in jobs]):
      yield future.result()
  finally:
    pool.shutdown(wait=True, cancel_futures=True)


def is_primary() -> bool:
  """Whether this process writes the files of the run."""
  return jax.process_index() == 0


def process() -> tuple[int, int]:
  """This process's number and how many there are."""
  return jax.process_index(), jax.process_count()


def barrier(name: str) -> None:
  """Waits until every process is here; nothing on a single process."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(flag: bool) -> bool:
  """Whether the flag is set on any process: for decisions that all must take alike."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(jnp.asarray(flag)).any())


@contextlib.contextmanager
def distributed(coordinator: str, num_processes: int, process_id: int) -> Iterator[None]:
  """Joins this process to the others for the length of the block; nothing for an empty coordinator.

  Args:
    coordinator: `host:port` of process 0, or 'auto' for what SLURM, a TPU pod or Kubernetes tells
      JAX by itself.
  """
  if not coordinator:
    yield
    return
  # Seconds until a process that is gone, or that failed while the others did not, ends the rest.
  patience = {'heartbeat_timeout_seconds': 30, 'shutdown_timeout_seconds': 120}
  address = () if coordinator == 'auto' else (coordinator, num_processes, process_id)
  if address and not re.fullmatch(r'[^:]+:\d+', coordinator):
    raise UserError(f'--coordinator={coordinator}: expected host:port, or auto')
  try:
    jax.distributed.initialize(*address, **patience)
  except ValueError as error:
    raise UserError(
      f'--coordinator={coordinator}: {error} Expected SLURM, a TPU pod or Kubernetes for auto, '
      'else also --num_processes and --process_id'
    ) from error
  # The first collective must come before any long compile.
  multihost_utils.sync_global_devices('joined')
  yield
  jax.distributed.shutdown()
