"""Eight host devices on CPU for every test and every example of a docstring, programs that compile
fast rather than run fast, and arrays that are checked: decided before JAX or the package is there.
"""

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
  ).strip()

array_checks.install('additive_jax')


@pytest.fixture(autouse=True, scope='session')
def _names_of_examples(doctest_namespace):
  """What every example of a docstring may use without importing it."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  import additive_jax as aj

  doctest_namespace.update(aj=aj, jax=jax, jnp=jnp, np=np)
