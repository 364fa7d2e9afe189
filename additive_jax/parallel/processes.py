"""The processes of a run: joining them, and what they do together."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from additive_jax.errors import UserError
from additive_jax.files import keys

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


@contextlib.contextmanager
def distributed(coordinator: str, num_processes: int, process_id: int) -> Iterator[None]:
  """Joins this process to the others for the length of the block; nothing for an empty coordinator.

  Args:
    coordinator: `host:port` of process 0, or 'auto' for what SLURM, a TPU pod or Kubernetes tells
      JAX by itself.
    num_processes: how many join; not read for 'auto'.
    process_id: the number of this one, from 0; not read for 'auto'.

  Raises:
    UserError: for a coordinator of another form, or where nothing tells JAX of the processes.
  """
  if not coordinator:
    yield
    return
  # Seconds until a process that is gone, or that failed while the others did not, ends the rest.
  patience: dict[str, Any] = {'heartbeat_timeout_seconds': 30, 'shutdown_timeout_seconds': 120}
  address: tuple[Any, ...] = (
    () if coordinator == 'auto' else (coordinator, num_processes, process_id)
  )
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
