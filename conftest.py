"""Eight host devices on CPU for every test and every example of a docstring, programs that compile
fast rather than run fast, and arrays that are checked: decided before JAX or the package is there.

`JAX_COMPILATION_CACHE_DIR=FOLDER pytest ...` keeps the programs for the next time, which then takes
about half as long.
"""

import collections
import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / 'tests'))
import array_checks

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
flags = os.environ.get('XLA_FLAGS', '')
if 'xla_force_host_platform_device_count' not in flags:
  os.environ['XLA_FLAGS'] = (
    f'{flags} --xla_force_host_platform_device_count=8'
    ' --xla_cpu_collective_call_terminate_timeout_seconds=600'
    # Most of a test's time is XLA's. The launcher's processes that are stopped and killed run what
    # a user runs.
    ' --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
    ' --xla_cpu_parallel_codegen_split_count=1'
  ).strip()

os.environ.setdefault('ADDITIVE_JAX_CACHE', 'off')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES', 'none')

MOST_GIGABYTES = 5  # of one worker between two files

# Traced programs are millions of objects, few of them garbage.
gc.set_threshold(50_000, 20, 50)

array_checks.install('additive_jax')


def pytest_configure(config):
  """Lets workers take the files in the order below, not by how many tests they have."""
  if hasattr(config.option, 'loadscopereorder'):
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
  """Puts files with many slow tests first, so that workers that share out the files end together,
  with short ones."""
  slow = collections.Counter(item.path for item in items if item.get_closest_marker('slow'))
  items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True, scope='module')
def _known_objects():
  """Spares the collector what earlier files left, such as JAX's caches of traced programs; where
  that has become too much for a small machine, the caches are emptied."""
  if _gigabytes() > MOST_GIGABYTES:
    import jax

    jax.clear_caches()
    gc.unfreeze()
    gc.collect()
    ctypes.CDLL('libc.so.6').malloc_trim(0)
  gc.freeze()


def _gigabytes():
  """Returns the memory of this process where Linux tells it, else 0."""
  told = Path('/proc/self/statm')
  return (
    int(told.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**30 if told.exists() else 0
  )


@pytest.fixture(autouse=True, scope='session')
def _names_of_examples(doctest_namespace):
  """What every example of a docstring may use without importing it."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  import additive_jax as aj

  doctest_namespace.update(aj=aj, jax=jax, jnp=jnp, np=np)
