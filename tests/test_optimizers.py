"""Optimizers and schedules named in a config are those of Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from additive_jax import UserError
from additive_jax.train.optimizers import make_optimizer, make_schedule


def config(**changes):
  options = {
    'learning_rate': 0.1,
    'optimizer': {'name': 'sgd', 'kwargs': {}},
    'schedule': {'name': 'constant', 'kwargs': {}},
    'clip_norm': 0.0,
  }
  return ConfigDict(options | changes)


def path(optimizer, gradients):
  """Parameters after each gradient, from zero."""
  params = jnp.zeros(2)
  state = optimizer.init(params)
  seen = []
  for gradient in gradients:
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return np.array(seen)


GRADIENTS = jnp.array([[3.0, 4.0], [0.3, -0.4], [-6.0, 8.0]])


@pytest.mark.parametrize(
  ('changes', 'want'),
  [
    ({}, optax.sgd(0.1)),
    ({'optimizer': {'name': 'sgd', 'kwargs': {'momentum': 0.9}}}, optax.sgd(0.1, momentum=0.9)),
    (
      {'optimizer': {'name': 'adamw', 'kwargs': {'weight_decay': 0.5}}},
      optax.adamw(0.1, weight_decay=0.5),
    ),
    ({'clip_norm': 1.0}, optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))),
    (
      {'schedule': {'name': 'cosine_decay_schedule', 'kwargs': {'decay_steps': 1.0}}},
      optax.sgd(optax.cosine_decay_schedule(0.1, 10)),
    ),
  ],
)
def test_same_path_as_optax(changes, want):
  got = path(make_optimizer(config(**changes), 10), GRADIENTS)
  np.testing.assert_array_equal(got, path(want, GRADIENTS))
  plain = path(optax.sgd(0.1), GRADIENTS)
  assert np.array_equal(got, plain) == (not changes)


def test_clip_acts_on_the_gradient_before_the_optimizer():
  got = path(make_optimizer(config(clip_norm=1.0), 10), GRADIENTS[:1])
  np.testing.assert_allclose(got[0], [-0.06, -0.08], rtol=1e-6)  # 3, 4 scaled to norm 1


@pytest.mark.parametrize(
  ('name', 'kwargs', 'want'),
  [
    ('constant', {}, optax.constant_schedule(0.1)),
    ('cosine_decay_schedule', {'decay_steps': 1.0}, optax.cosine_decay_schedule(0.1, 200)),
    ('cosine_decay_schedule', {'decay_steps': 50}, optax.cosine_decay_schedule(0.1, 50)),
    (
      'linear_schedule',
      {'end_value': 0.0, 'transition_steps': 0.5},
      optax.linear_schedule(0.1, 0.0, 100),
    ),
    (
      'warmup_cosine_decay_schedule',
      {'warmup_steps': 0.1, 'decay_steps': 1.0},
      optax.warmup_cosine_decay_schedule(0.0, 0.1, 20, 200),
    ),
    (
      'cosine_onecycle_schedule',
      {'transition_steps': 1.0},
      optax.cosine_onecycle_schedule(200, 0.1),
    ),
  ],
)
def test_schedules(name, kwargs, want):
  got = make_schedule(config(schedule={'name': name, 'kwargs': kwargs}), 200)
  steps = [0, 1, 10, 20, 99, 100, 150, 200]
  np.testing.assert_array_equal([got(s) for s in steps], [want(s) for s in steps])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'learning_rate': 0.0}, 'learning_rate 0.0: expected a positive number'),
    ({'learning_rate': float('nan')}, 'learning_rate nan: expected a positive number'),
    ({'clip_norm': -1.0}, 'clip_norm -1.0: expected 0'),
    (
      {'optimizer': {'name': 'adamq', 'kwargs': {}}},
      "config.optimizer.name 'adamq': .* did you mean 'adam",
    ),
    (
      {'optimizer': {'name': 'chain', 'kwargs': {}}},
      "config.optimizer.name 'chain': expected the name",
    ),
    (
      {'optimizer': {'name': 'MultiSteps', 'kwargs': {}}},
      "config.optimizer.name 'MultiSteps': expected the name of an Optax optimizer that takes a "
      'learning rate$',
    ),
    (
      {'optimizer': {'name': 'adam', 'kwargs': {'b1': float('nan')}}},
      'config.optimizer.kwargs.b1 nan: expected a finite number',
    ),
    (
      {'optimizer': {'name': 'sgd', 'kwargs': {'momentun': 0.9}}},
      "'momentun' is no argument of optax.sgd: expected some of .*momentum",
    ),
    (
      {'optimizer': {'name': 'sgd', 'kwargs': {'learning_rate': 0.9}}},
      'config.optimizer.kwargs.learning_rate 0.9: expected it as config.learning_rate',
    ),
    (
      {'schedule': {'name': 'cosine_decay_schedul', 'kwargs': {}}},
      "'cosine_decay_schedul': .* did you mean 'cosine_decay_schedule'",
    ),
    (
      {'schedule': {'name': 'cosine_decay_schedule', 'kwargs': {}}},
      "config.schedule.name 'cosine_decay_schedule' without decay_steps: expected them in config",
    ),
    (
      {'schedule': {'name': 'cosine_decay_schedule', 'kwargs': {'decay_steps': 1.5}}},
      r'schedule.kwargs.decay_steps 1.5: expected a share of the run in \[0, 1\]',
    ),
    (
      {'schedule': {'name': 'cosine_decay_schedule', 'kwargs': {'decay': 5}}},
      "'decay' is no argument of optax.cosine_decay_schedule",
    ),
  ],
)
def test_bad_config(changes, message):
  with pytest.raises(UserError, match=message) as raised:
    make_optimizer(config(**changes), 100)
  assert '\n' not in str(raised.value)


def test_schedule_is_traceable():
  options = {'name': 'warmup_cosine_decay_schedule', 'kwargs': {}}
  options['kwargs'] = {'warmup_steps': 0.1, 'decay_steps': 1.0}
  schedule = make_schedule(config(schedule=options), 100)
  # One float32 cosine, fused or not.
  np.testing.assert_allclose(jax.jit(schedule)(37), schedule(37), rtol=1e-6)


def test_an_optimizer_that_needs_more_than_a_gradient_says_so():
  with pytest.raises(UserError, match=r"of 'lbfgs': an optimizer that needs more than a gradient"):
    make_optimizer(config(optimizer={'name': 'lbfgs', 'kwargs': {}}), 10)
