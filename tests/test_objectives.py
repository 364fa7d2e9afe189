"""Losses and accuracies against a few lines of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from additive_jax import UserError
from additive_jax.data import ArraySplit, Data
from additive_jax.models import MLP
from additive_jax.run import objectives
from additive_jax.run.objectives import OBJECTIVES, objective_of, regression
from additive_jax.train.fleet import Fleet
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import fixed
from additive_jax.train.trainer import Trainer

classification, language = jax.jit(objectives.classification), jax.jit(objectives.language)


def cross_entropy(logits, y):
  """In nats, in float64."""
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -np.take_along_axis(log_p, y[..., None], -1)[..., 0]


# A logarithm and a sum of five float32 exponentials.
CLOSE = {'rtol': 1e-5, 'atol': 1e-6}


@pytest.mark.parametrize('leading', [(), (2, 3)])
def test_classification(leading):
  logits = np.random.default_rng(0).normal(size=(*leading, 6, 5)).astype(np.float32)
  y = logits.reshape(-1, 6, 5)[0].argmax(-1)
  y[:3] = (y[:3] + 1) % 5  # half of them wrong, in the first structure
  loss, accuracy = classification(jnp.asarray(logits), jnp.asarray(y))
  labels = np.broadcast_to(y, (*leading, 6))
  np.testing.assert_allclose(loss, cross_entropy(logits, labels), **CLOSE)
  np.testing.assert_array_equal(accuracy, logits.argmax(-1) == labels)
  assert 0 < np.mean(accuracy) < 1
  assert accuracy.dtype == jnp.float32


def test_classification_takes_labels_of_any_integer_type():
  logits = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
  want = classification(logits, jnp.array([4, 0, 2]))
  got = classification(logits, jnp.array([4, 0, 2], jnp.uint8))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_language_is_the_mean_over_tokens():
  logits = np.random.default_rng(1).normal(size=(4, 2, 3, 5)).astype(np.float32)
  y = np.array([[0, 3, 4], [2, 2, 1]])
  loss, accuracy = language(jnp.asarray(logits), jnp.asarray(y))
  labels = np.broadcast_to(y, (4, 2, 3))
  np.testing.assert_allclose(loss, cross_entropy(logits, labels).mean(-1), **CLOSE)
  np.testing.assert_allclose(accuracy, (logits.argmax(-1) == labels).mean(-1), **CLOSE)


def test_uniform_logits_cost_the_logarithm_of_the_classes():
  loss, _ = classification(jnp.zeros((1, 256)), jnp.array([7]))
  np.testing.assert_allclose(loss, np.log(256), rtol=1e-6)


def test_regression_accuracy_is_r_squared():
  random = np.random.default_rng(0)
  y = random.normal(size=(500, 1))
  y = (y - y.mean()) / y.std()
  predicted = y + random.normal(0, 0.5, y.shape)
  loss, accuracy = regression(jnp.asarray(predicted), jnp.asarray(y))
  np.testing.assert_allclose(loss, ((predicted - y) ** 2)[:, 0], **CLOSE)
  r_squared = 1 - ((predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
  np.testing.assert_allclose(accuracy.mean(), r_squared, rtol=1e-5)  # a float32 mean of 500


def test_regression_averages_over_targets():
  loss, accuracy = regression(jnp.ones((3, 2, 2)), jnp.array([[1.0, 3.0], [0.0, 1.0]]))
  np.testing.assert_allclose(loss, np.tile([2.0, 0.5], (3, 1)))
  np.testing.assert_allclose(accuracy, np.tile([-1.0, 0.5], (3, 1)))


def test_regression_does_not_broadcast_targets():
  with pytest.raises(UserError, match=r'predictions \(4, 1\) and targets \(4,\): expected'):
    regression(jnp.ones((4, 1)), jnp.ones(4))


@pytest.mark.parametrize('tokens', [(), (5,)])
def test_distilled(tokens):
  """Against its formula, written out in NumPy, of examples and of text."""
  random = np.random.default_rng(0)
  shape = (4, *tokens)
  logits, teacher = random.normal(size=(2, *shape, 7)).astype(np.float32) * 3
  y = random.integers(0, 7, shape)
  objective = objectives.language if tokens else objectives.classification
  distilled = objectives.Distilled(objective, 0.7, 2.5)
  targets = distilled.targets(y, teacher)
  assert targets.dtype == np.float32
  loss, accuracy = jax.jit(distilled)(jnp.asarray(logits), jnp.asarray(targets))
  plain, judged = objective(jnp.asarray(logits), jnp.asarray(y))
  p, q = (scipy.special.softmax(a / 2.5, axis=-1) for a in (teacher, logits))
  apart = (p * np.log(p / q)).sum(-1).reshape(4, -1).mean(-1)
  np.testing.assert_allclose(loss, 0.3 * plain + 0.7 * 2.5**2 * apart, **CLOSE)
  np.testing.assert_array_equal(accuracy, judged)
  assert loss.shape == (4,)
  same = objectives.Distilled(objective, 1.0, 2.5)(jnp.asarray(teacher), jnp.asarray(targets))[0]
  np.testing.assert_allclose(same, 0, atol=1e-5)


@pytest.mark.parametrize(
  ('objective', 'weight', 'temperature', 'message'),
  [
    (objectives.classification, 1.5, 1.0, r'weight 1.5 of a teacher: expected one in \[0, 1\]'),
    (objectives.classification, 0.5, 0.0, 'temperature 0.0 of a teacher: expected a positive'),
    (regression, 0.5, 1.0, 'weight 0.5 of a teacher in a regression: expected classes'),
  ],
)
def test_a_teacher_that_makes_no_sense(objective, weight, temperature, message):
  with pytest.raises(UserError, match=message):
    objectives.Distilled(objective, weight, temperature)


CHECKS = [
  lambda recipe, data: Trainer(recipe, data.train, fixed('1', 1), batch_size=5, seed=0),
  lambda recipe, data: Population(recipe, data, batch_size=5, seed=0),
  lambda recipe, data: Fleet(recipe, data.train, [range(8)], batch_size=5, seed=0),
]


@pytest.fixture(scope='module')
def data():
  split = ArraySplit(np.eye(8, dtype=np.float32), np.arange(8) % 3)
  return Data('rows', 'classification', train=split, test=split, num_outputs=3)


@pytest.mark.parametrize('start', CHECKS, ids=['Trainer', 'Population', 'Fleet'])
def test_an_own_objective_gives_a_pair_of_each_example(start, data):
  """The first of anything else would be trained for, such as the loss of the first example."""

  def recipe_that_gives(given):
    def own(outputs, y):
      return given(outputs[:, 0] - y)

    return Recipe(MLP(1, 4, 4, 3), own, optax.sgd(0.1))

  for given, text in (
    (lambda loss: loss, r'float32 \(5,\)'),
    (lambda loss: (loss, loss, loss), r'\(float32 \(5,\), float32 \(5,\), float32 \(5,\)\)'),
    (lambda loss: (loss.mean(), 0.0), r'\(float32 \(\), float32 \(\)\)'),
    (lambda loss: (loss, loss.mean()), r'\(float32 \(5,\), float32 \(\)\)'),
    (lambda loss: (loss[:, None] * jnp.ones(3),) * 2, r'\(float32 \(5, 3\), float32 \(5, 3\)\)'),
    (lambda loss: None, 'None'),
  ):
    message = rf'^objective own gives {text}: expected a pair .*, each of shape \(5,\)$'
    with pytest.raises(UserError, match=message):
      start(recipe_that_gives(given), data)
  for given in (lambda loss: (loss, loss > 0), lambda loss: jnp.stack([loss, loss])):
    start(recipe_that_gives(given), data)


def test_an_own_objective_may_be_trained_by_token():
  scores = lambda outputs, y: (outputs[..., 0] - y,) * 2
  outputs, y = jnp.ones((2, 5, 3)), jnp.ones((2, 5))
  assert objectives.scores_of(scores, outputs, y, by_token=True)[0].shape == (2, 5)
  with pytest.raises(UserError, match=r'each of shape \(2,\)$'):
    objectives.scores_of(scores, outputs, y)


def test_names():
  assert {name: objective_of(name) for name in OBJECTIVES} == OBJECTIVES
  own = lambda outputs, y: (outputs, y)
  assert objective_of(own) is own
  with pytest.raises(UserError, match="task 'segmentation': expected one of classification"):
    objective_of('segmentation')
