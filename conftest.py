"""Eight host devices on CPU for every test and every example of a docstring, programs that compile
fast rather than run fast, and arrays that are checked: decided before JAX or the package is there.

The programs of a run are in one folder, from which its workers read what another has compiled; it
is gone when the run ends. `JAX_COMPILATION_CACHE_DIR=FOLDER pytest ...` keeps them for the next
time, which then takes about half as long.
"""

import atexit
import collections
import ctypes
import gc
import os
import shutil
import sys
import tempfile
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

# In the process that starts the run; workers, and processes of tests, have it from there.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='additive_jax-tests-')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)

MOST_GIGABYTES = 5  # of one worker between two files
THOROUGH = []  # tests that are left out

# Traced programs are millions of objects, few of them garbage.
gc.set_threshold(50_000, 20, 50)

array_checks.install('additive_jax')


def pytest_configure(config):
  """Lets workers take the files in the order below, not by how many tests they have."""
  if hasattr(config.option, 'loadscopereorder'):
    config.option.loadscopereorder = False


def pytest_deselected(items):
  """Counts what is left out because it is thorough."""
  THOROUGH.extend(item.nodeid for item in items if item.get_closest_marker('thorough'))


def pytest_terminal_summary(terminalreporter, config):
  """Says so, where a run that is no worker's has collected."""
  if THOROUGH and config.option.markexpr == 'not thorough':
    tests = THOROUGH[0] if len(THOROUGH) == 1 else f'{len(THOROUGH)} tests'
    terminalreporter.write_line(f"left out, being thorough: {tests}; -m '' runs them too")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Puts files with many slow tests first, so that workers that share out the files end together,
  with short ones. What is thorough is slow."""
  for item in items:
    if item.get_closest_marker('thorough') and not item.get_closest_marker('slow'):
      item.add_marker('slow')
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
