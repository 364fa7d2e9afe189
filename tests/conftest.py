"""Fixtures of several files. Devices and flags are those of the conftest one folder up."""

import logging

import pytest


@pytest.fixture
def compiles():
  """A list that grows by one with each program that XLA compiles during the test."""
  import jax

  seen = []

  def listen(event, duration, **details):
    if event == '/jax/core/compile/backend_compile_duration':
      seen.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield seen
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope='session')
def random_pool():
  """A function of a model, inputs and a seed: `{'params': pool}` drawn without compiling an init.

  Every leaf is random: the zeros and ones of an init would hide a lost bias or scale.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  def draw(model, x, seed=0):
    random = np.random.default_rng(seed)

    def leaf(path, shape):
      centre = float('scale' in jax.tree_util.keystr(path))
      return jnp.asarray(random.normal(centre, 0.4, shape.shape), shape.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(leaf, shapes)

  return draw


@pytest.fixture(autouse=True, scope='module')
def _pictures(request):
  import pictures

  with pictures.for_file(request.module.__name__):
    yield


@pytest.fixture(autouse=True)
def _log_untouched():
  """Commands take the package's log, also in fixtures of a module; each test finds it as an
  import leaves it."""
  log = logging.getLogger('additive_jax')

  def untouch() -> None:
    log.handlers[:], log.propagate = [], True
    log.setLevel(logging.NOTSET)

  untouch()
  yield
  untouch()
