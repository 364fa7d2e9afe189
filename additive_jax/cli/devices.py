"""The devices of a command, which have to be asked for before JAX starts."""

from __future__ import annotations

import os

MOST_DEVICES = 256  # of a host: each has threads of its own
DEFAULT_DEVICES = 8  # more cores than structures of a step would only split small batches


def set_up_devices(count: int) -> None:
  """Asks for `count` host devices, 0 for one per core up to 8; before JAX's backend starts.

  What `XLA_FLAGS` already says stays.
  """
  # Not every platform can say which cores a process may use.
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  count = min(count, MOST_DEVICES) or min(cores or 1, DEFAULT_DEVICES)
  flags_before = os.environ.get('XLA_FLAGS', '')
  defaults = {
    'xla_force_host_platform_device_count': count,
    # Devices that share few cores may reach a collective minutes apart.
    'xla_cpu_collective_call_terminate_timeout_seconds': 600,
  }
  added = [f'--{name}={value}' for name, value in defaults.items() if name not in flags_before]
  os.environ['XLA_FLAGS'] = ' '.join([flags_before, *added]).strip()
