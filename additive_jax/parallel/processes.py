"""The processes of a run: joining them, and what they do together."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from additive_jax.errors import STOPPED, Stopped, UserError
from additive_jax.files import keys
from additive_jax.parallel.meeting import meet, relayed
from additive_jax.parallel.peers import Peers

log = logging.getLogger('additive_jax')


def to_host(tree: PyTree) -> PyTree:
  """Returns a NumPy copy of whole arrays, however they are spread over devices. Arrays that are
  split over several processes are gathered, so all of them must call this together. PRNG keys stay
  JAX arrays, which hold a copy.

  >>> to_host({'bias': jnp.zeros(2), 'step': 3})
  {'bias': array([0., 0.], dtype=float32), 'step': array(3)}
  """

  def copy(leaf: Any) -> Any:
    if keys.is_key(leaf):
      return keys.like(copy(keys.key_data(leaf)), leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
      return np.array(multihost_utils.process_allgather(leaf, tiled=True))
    return np.array(jax.device_get(leaf))

  return jax.tree.map(copy, tree)


def is_primary() -> bool:
  """Returns whether this process writes the files of the run."""
  return jax.process_index() == 0


def process() -> tuple[int, int]:
  """Returns this process's number and how many there are.

  >>> process()
  (0, 1)
  """
  return jax.process_index(), jax.process_count()


def barrier(name: str) -> None:
  """Waits until every process is here; nothing on a single process."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(flag: bool) -> bool:
  """Returns whether the flag is set on any process: for decisions that all must take alike."""
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.process_allgather(jnp.asarray(flag)).any())


def tell_saved(saved: Callable[[], str]) -> None:
  """Sets what says how much of the run is saved, should another process be gone."""
  if _State.peers is not None:
    _State.peers.saved = saved


class _State:
  peers: Peers | None = None


@contextlib.contextmanager
def distributed(
  coordinator: str, num_processes: int, process_id: int, wait: float = 30.0
) -> Iterator[None]:
  """Joins this process to the others for the length of the block; nothing for an empty coordinator.

  When another process is gone, this one says so and ends with exit code 75; when one ends with a
  mistake, so does this.

  Args:
    coordinator: `host:port` of process 0, or 'auto' for what SLURM, a TPU pod or Kubernetes tells
      JAX by itself.
    num_processes: how many join; not read for 'auto'.
    process_id: the number of this one, from 0; not read for 'auto'.
    wait: seconds for the others to come, and of silence after which one counts as gone.

  Raises:
    UserError: for a coordinator of another form, a port in use, or where nothing tells JAX of the
      processes.
    Stopped: when a process does not come.
  """
  if not coordinator:
    yield
    return
  address, count, rank = coordinator, num_processes, process_id
  if coordinator == 'auto':
    address, count, rank = _detected(wait)
  words = re.fullmatch(r'\S{1,253}:(\d{1,5})', address)
  if words is None or not 0 < int(words[1]) < 2**16:
    raise UserError(f'--coordinator={coordinator}: expected host:port, or auto')
  if not 0 <= rank < count:
    raise UserError(f'--process_id={rank}: expected less than --num_processes={count}')
  try:
    peers = _State.peers = meet(address, rank, count, wait)
  except Stopped as stopped:
    log.warning('%s', stopped)
    raise
  code = 1
  try:
    _initialize(address if rank == 0 else relayed(address), rank, count, wait)
    yield
    code = 0
  except Stopped:
    code = STOPPED
    raise
  except UserError:
    code = 2
    raise
  except Exception:
    peers.settle()
    raise
  finally:
    peers.leave(code)
  jax.distributed.shutdown()


def _detected(wait: float) -> tuple[str, int, int]:
  """What JAX finds out of the processes: the address, how many there are, and the number of this
  one. It has no public function that tells without waiting for the others."""
  found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(wait))
  address, count, rank, _ = found
  if address is None or count is None or rank is None:
    raise UserError(
      '--coordinator=auto: expected SLURM, a TPU pod or Kubernetes, else host:port together with '
      '--num_processes and --process_id'
    )
  return address, count, rank


def _initialize(address: str, rank: int, count: int, wait: float) -> None:
  """Joins what JAX does on all processes; they are all there."""
  seconds = math.ceil(wait)
  jax.distributed.initialize(
    address,
    count,
    rank,
    initialization_timeout=max(seconds, 30),
    # In reserve, should the threads of `peers` not see that a process is gone.
    heartbeat_timeout_seconds=4 * seconds,
    shutdown_timeout_seconds=max(seconds, 30),
  )
  # The first collective must come before any long compile.
  multihost_utils.sync_global_devices('joined')
