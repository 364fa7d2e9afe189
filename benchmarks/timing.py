"""Times things side by side, and prints what came out as a small markdown table."""

from __future__ import annotations

import importlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax


class Times(list):
  """Seconds of several repeats of one thing."""

  @property
  def best(self) -> float:
    return min(self)

  @property
  def median(self) -> float:
    return statistics.median(self)

  @property
  def spread(self) -> float:
    """How far the slowest repeat is above the fastest, as a share of the fastest."""
    return max(self) / min(self) - 1


def seconds(run: Callable) -> float:
  """Wall time of one call, its results computed."""
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def alternate(runs: dict[str, Callable], repeats: int, warm: bool = True) -> dict[str, Times]:
  """Calls each in turn, `repeats` times, so that a slow moment of the machine hits all alike.

  Args:
    runs: functions without arguments, by name.
    warm: call each once before, so that nothing compiles while it is timed.
  """
  if warm:
    for run in runs.values():
      jax.block_until_ready(run())
  times = {name: Times() for name in runs}
  for _ in range(repeats):
    for name, run in runs.items():
      times[name].append(seconds(run))
  return times


def processor_seconds(runs: dict[str, Callable], repeats: int) -> dict[str, float]:
  """Returns the least CPU seconds of the process that a call of each takes: other programs on the
  same cores lengthen it less than wall time."""
  least = dict.fromkeys(runs, float('inf'))
  for _ in range(repeats):
    for name, run in runs.items():
      start = time.process_time()
      jax.block_until_ready(run())
      least[name] = min(least[name], time.process_time() - start)
  return least


def torch() -> tuple[Any, list[str]]:
  """Returns PyTorch, or None where it is not installed, and what to say about it. It is no
  dependency of the package: a baseline here, nothing else. Its threads sleep while they wait;
  spinning ones would slow whatever is timed next."""
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
  try:
    module = importlib.import_module('torch')
  except ImportError:
    return None, ['PyTorch is not installed here (`pip install torch`): its rows are missing.']
  return module, [f'PyTorch {module.__version__} with {module.get_num_threads()} threads.']


def ratio(times: dict[str, Times], name: str, base: str) -> float:
  """Median over the repeats of `name`'s time over `base`'s in the same repeat."""
  return statistics.median(a / b for a, b in zip(times[name], times[base]))


def verdict(value: float, least: float | None = None, most: float | None = None) -> str:
  """The target in words, and whether the figure meets it."""
  good = value >= least if least is not None else value <= most
  target = f'≥ {least:g}' if least is not None else f'≤ {most:g}'
  return f'{target}: {"met" if good else "missed"}'


def report(title: str, head: Iterable[str], rows: Iterable[Iterable], *notes: str) -> None:
  """Prints the command, the machine and the table."""
  head = list(head)
  print(f'### {title}\n')
  machine = f'{platform.machine()}, {len(os.sched_getaffinity(0))} cores, jax {jax.__version__}'
  devices = f'{len(jax.devices())} device(s) of kind {jax.devices()[0].device_kind}'
  print(f'`python {" ".join(sys.argv)}` on {devices}, {machine}\n')
  print(f'| {" | ".join(head)} |')
  print(f'| {" | ".join("---" for _ in head)} |')
  for row in rows:
    print(f'| {" | ".join(str(cell) for cell in row)} |')
  for note in notes:
    print(f'\n{note}')
