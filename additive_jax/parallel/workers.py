"""Worker threads that drive devices, for jobs that need no collective."""

from __future__ import annotations

import concurrent.futures
import os
import queue
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

import jax

Job = TypeVar('Job')
Result = TypeVar('Result')

# On CPU one program of small matmuls gains nothing from a second core, while two programs side by
# side gain all of it.
SINGLE_THREAD = {'xla_cpu_multi_thread_eigen': False}


def workers(devices: Sequence[jax.Device] | None = None) -> list[jax.Device]:
  """Returns the device that each of this process's worker threads drives.

  Accelerators: one thread each. CPU: one thread per core, all on one device, since the devices of a
  CPU are the same cores and each further device would compile everything again.

  Args:
    devices: given as they are; None chooses.
  """
  if devices is not None:
    return list(devices)
  local = jax.local_devices()
  if local[0].platform != 'cpu':
    return local
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return [local[0]] * (cores or 1)


def spread(
  jobs: Iterable[Job], run: Callable[[Job, jax.Device], Result], devices: Sequence[jax.Device]
) -> Generator[tuple[Job, Result], None, None]:
  """Runs `run(job, device)` for every job on a pool of worker threads; yields (job, result) as they
  end. When the generator is closed, jobs that have not begun are dropped.

  >>> sorted(spread([1, 2, 3], lambda job, device: 10 * job, workers()))
  [(1, 10), (2, 20), (3, 30)]

  Args:
    jobs: what is handed to `run`.
    run: must be safe to call from several threads.
    devices: one per worker thread, see `workers`.
  """
  jobs = list(jobs)
  idle: queue.SimpleQueue[jax.Device] = queue.SimpleQueue()
  for device in devices:
    idle.put(device)

  def work(job: Job) -> tuple[Job, Result]:
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
