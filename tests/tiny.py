"""Small runs of the experiments, in this process and in others, for their tests."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from additive_jax import Additive
from additive_jax.cli.configs import load_config
from additive_jax.gates import dispatch
from additive_jax.models import costs

ROOT = Path(__file__).parent.parent
EXPERIMENTS = {
  'sweep': ROOT / 'configs' / 'exp1.py',
  'cotrain': ROOT / 'configs' / 'exp2.py',
  'stochastic': ROOT / 'configs' / 'exp3.py',
}

# Programs that compile fast rather than run fast, as those of `conftest`.
FAST = (
  '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1'
)
# A table of 120 + 30 rows, 8 structures, 15 steps, 2 seeds.
SMALL = {
  'num_seeds': 2,
  'learning_rate': 2e-3,
  'data.name': 'tabular:iris',
  'data.valid': 0.0,
  'model.num_blocks': 3,
  'model.width': 8,
  'model.hidden': (8,),
  'train.epochs': 2.0,
  'train.batch_size': 16,
  'train.structures_per_step': 4,
  'train.log_every': 5,
  'train.checkpoint_every': 5,
  'sweep.shared_epochs': 2.0,
  'sweep.top_k': 3,
  'sampler.name': 'uniform',
  'cotrain.top_k': 2,
  'cotrain.sweep_epochs': 2.0,
}


def near(a, b):
  """Two pytrees are equal but for the rounding of a network in float32."""
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), a, b)


def config(experiment, options=()):
  """The default config made small, with the given dotted options on top."""
  found = load_config('default')
  found.update_from_flattened_dict({'experiment': experiment, **SMALL, **dict(options)})
  return found


def arguments(experiment, workdir=None, options=(), *, small=True, devices=1):
  """The launcher's arguments for the same."""
  chosen = {**(SMALL if small else {}), **dict(options)}
  values = {key: repr(v) if isinstance(v, tuple) else str(v) for key, v in chosen.items()}
  where = [f'--workdir={workdir}'] if workdir else []
  return [
    f'--config={EXPERIMENTS[experiment]}',
    *(f'--config.{key}={value}' for key, value in values.items()),
    *where,
    f'--devices={devices}',
  ]


def shared_folder(tmp_path_factory):
  """The folder of this session of tests, the same for all its processes."""
  root = tmp_path_factory.getbasetemp()
  return root.parent if 'PYTEST_XDIST_WORKER' in os.environ else root


def programs(tmp_path_factory):
  """Where this session's tests keep compiled programs, for one another."""
  return shared_folder(tmp_path_factory) / 'programs'


@contextlib.contextmanager
def cached_programs(folder):
  """Keeps what XLA compiles in `folder`, since each run makes its programs anew.

  A folder in which all tests keep their programs comes before it; see the conftest one folder up.
  """
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    yield
    return
  names = {
    'jax_compilation_cache_dir': str(folder),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_enable_xla_caches': 'none',
  }
  before = {name: getattr(jax.config, name) for name in names}
  compilation_cache.reset_cache()
  for name, value in names.items():
    jax.config.update(name, value)
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def thorough_but(usual, cases):
  """The cases of a table as parameters: all but the named ones are left out by default."""
  assert set(usual) <= set(cases)
  return [
    case if case in usual else pytest.param(case, marks=pytest.mark.thorough) for case in cases
  ]


def slow_but(quick, cases):
  """The cases of a table as parameters: all but the named ones take long."""
  assert set(quick) <= set(cases)
  return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@contextlib.contextmanager
def two_sizes():
  """Packs half of a row's tokens or all: every size is a branch that each program compiles."""
  before = dispatch.EIGHTHS
  dispatch.EIGHTHS = (4, 8)
  costs.measured.cache_clear()
  try:
    yield
  finally:
    dispatch.EIGHTHS = before
    costs.measured.cache_clear()


def environment(cache, *, fast=True):
  """Of a launcher's process: no devices forced from here, programs kept in the folder `cache`.

  That is no folder of other tests, which would read what a kill has cut off.

  Args:
    fast: compiles fast; otherwise as for a user.
  """
  return os.environ | {
    'XLA_FLAGS': FAST if fast else '',
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES': 'none',
  }


def start(args, cache, *, fast=True, **options):
  """A launcher's process with its output in pipes."""
  command = [sys.executable, '-m', 'additive_jax.launch', *args]
  pipe = subprocess.PIPE
  return subprocess.Popen(
    command, stdout=pipe, stderr=pipe, text=True, env=environment(cache, fast=fast), **options
  )


def finish(args, cache, **options):
  """Runs the launcher to its end: exit code, standard output, standard error."""
  process = start(args, cache, **options)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def interrupt(args, cache, ready, delay, number=signal.SIGKILL, **options):
  """Starts the launcher, sends it a signal `delay` s after the path `ready` is there, and waits.

  Returns:
    exit code and standard error.
  """
  process = start(args, cache, **options)
  while not ready.exists() and process.poll() is None:
    time.sleep(0.02)
  with contextlib.suppress(subprocess.TimeoutExpired):
    process.wait(delay)
  process.send_signal(number)
  _, err = process.communicate(timeout=300)
  return process.returncode, err


def contents(folder):
  """{path: (bytes, time of last change)} of every file under `folder`."""
  files = [path for path in Path(folder).rglob('*') if path.is_file()]
  return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def killed_copy(source, target, journal, lines, torn=b''):
  """What a kill would have left of a run: a copy of its directory up to some journal line.

  Args:
    journal: name of the journal that ends early.
    lines: how many of its lines stay.
    torn: what follows them.
  """
  for path in Path(source).rglob('*'):
    if path.is_file():
      copy = Path(target) / path.relative_to(source)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(path.read_bytes())
  for name in ('summary.json', 'structures.csv', 'report.html'):
    (Path(target) / name).unlink()
  path = Path(target) / 'journals' / journal
  path.write_bytes(b''.join(path.read_bytes().splitlines(keepends=True)[:lines]) + torn)


class Twice(nn.Module):
  """A site around a layer that is another's too."""

  layer: nn.Module

  def __call__(self, h):
    return jnp.tanh(self.layer(h))


class Tied(Additive):
  """The first and the last site share a layer, which is nobody's when both are off."""

  def setup(self):
    self.embed, self.readout = nn.Dense(8), nn.Dense(5)
    shared = nn.Dense(8, name='shared')
    self.sites = [Twice(shared, name='a'), nn.Dense(8, name='b'), Twice(shared, name='c')]
