"""The most that the devices of this machine compute: matmuls of their own, timed once and kept."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from additive_jax.errors import UserError
from additive_jax.files.journal import replace_file
from additive_jax.files.programs import cache_place, processor

SIZES = {'cpu': 1024}  # rows of the matrices; on other platforms SIZE
SIZE = 8192
SECONDS = 0.5  # of timing
_PEAKS: dict[str, float] = {}  # that this process knows
_AGAIN: set[str] = set()  # those that it has measured once more


def matmul_peak(
  devices: Sequence[jax.Device], dtype: str = 'float32', *, reached: float = 0.0
) -> float:
  """Returns the floating-point operations a second that devices reach together in matmuls.

  Measured in about a second the first time, and kept beside the compiled programs; once more in a
  process that reached more, since other work on the machine makes a peak too low. The devices of a
  CPU share its cores, so they count once for each process.

  >>> matmul_peak(jax.devices()[:1]) > 1e8
  True

  Args:
    devices: of one kind.
    dtype: of the matrices.
    reached: what they were seen to reach together.
  """
  device = next(d for d in devices if d.process_index == jax.process_index())
  if device.platform == 'cpu':
    count = len({d.process_index for d in devices})
  else:
    count = len(devices)
  return count * _kept_peak(device, dtype, reached / count)


def _kept_peak(device: jax.Device, dtype: str, reached: float) -> float:
  cores = os.cpu_count() if device.platform == 'cpu' else 1
  path, key = _file(), f'{processor()} {device.platform} {device.device_kind} {cores} {dtype}'
  known = _PEAKS.get(key) or _read(path).get(key, 0.0)
  if not known or (reached > known and key not in _AGAIN):
    if known:
      _AGAIN.add(key)
    known = max(known, measured_peak(device, dtype))
    # A place that cannot be used was told of when programs were to be kept there.
    with contextlib.suppress(OSError, UserError):
      if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(_read(path) | {key: known}).encode())
  _PEAKS[key] = known
  return known


def _file() -> Path | None:
  with contextlib.suppress(UserError):
    place = cache_place()
    return place and place / 'peaks.json'
  return None


def _read(path: Path | None) -> dict[str, float]:
  with contextlib.suppress(OSError, ValueError):
    kept = json.loads(path.read_bytes()) if path else {}
    if isinstance(kept, dict):
      numbers = {k: v for k, v in kept.items() if isinstance(v, int | float) and v > 0}
      return {key: float(value) for key, value in numbers.items()}
  return {}


def measured_peak(device: jax.Device, dtype: str, seconds: float = SECONDS) -> float:
  """Returns the operations a second of the fastest of the matmuls that fit into some seconds."""
  size = SIZES.get(device.platform, SIZE)
  a = jax.device_put(jnp.ones((size, size), dtype), device)
  multiply = jax.jit(jnp.dot)
  multiply(a, a).block_until_ready()
  best, end = float('inf'), time.perf_counter() + seconds
  while best == float('inf') or time.perf_counter() < end:
    began = time.perf_counter()
    multiply(a, a).block_until_ready()
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 / best
