"""Values of examples that no task has: one line at every door, and nothing trained."""

import dataclasses
import re

import jax
import numpy as np
import optax
import pytest

import additive_jax as aj
from additive_jax import UserError
from additive_jax.data import ArraySplit, Data, Expected, SourceSplit, Weighted, take
from additive_jax.data.values import check_used
from additive_jax.models import MLP, Transformer
from additive_jax.run.ensemble import evaluate_ensemble
from additive_jax.run.tasks import Task
from additive_jax.train.fleet import Fleet
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import Uniform
from additive_jax.train.trainer import Trainer

X = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
Y = np.arange(9) % 3
MODEL = MLP(num_blocks=1, width=4, hidden=4, num_classes=3)
RECIPE = Recipe(MODEL, 'classification', optax.sgd(0.1))
TEXT = Transformer(1, 8, 2, 16, 5, num_tokens=5, max_tokens=4, causal=True)
RANGE = '0 to 2, one of 3 classes'


@pytest.fixture(scope='module')
def pool():
  return jax.jit(MODEL.init)(jax.random.key(0), X)


def spoilt(value, dtype=np.int64):
  """Labels of which those of examples 2, 6 and 7 are another value."""
  y = Y.astype(dtype)
  y[[2, 6, 7]] = value
  return y


# The doors that know the classes: each takes examples.
DOORS = {
  'Data': lambda pool, x, y: Data('rows', 'classification', ArraySplit(x, y), ArraySplit(X, Y), 3),
  'test': lambda pool, x, y: Data('rows', 'classification', ArraySplit(X, Y), ArraySplit(x, y), 3),
  'Trainer': lambda pool, x, y: Trainer(
    RECIPE, ArraySplit(x, y), Uniform(1, 1), batch_size=3, seed=0
  ),
  'Population': lambda pool, x, y: Population(
    RECIPE, Data('rows', 'own', ArraySplit(x, y), ArraySplit(X, Y), 9), batch_size=3, seed=0
  ),
  'Fleet': lambda pool, x, y: Fleet(RECIPE, ArraySplit(x, y), [[0, 1, 2]], batch_size=3, seed=0),
  'evaluate': lambda pool, x, y: aj.evaluate_structures(MODEL, pool, (x, y)),
  'ensemble': lambda pool, x, y: evaluate_ensemble(
    MODEL, [pool], np.array([[True]]), (x, y), Task('classification')
  ),
  'streamed': lambda pool, x, y: Data(
    'rows', 'classification', SourceSplit(9, lambda i: (x[i], y[i])), ArraySplit(X, Y), 3
  ).train[np.arange(9)],
}


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize(
  ('y', 'message'),
  [
    (spoilt(-1), f'label -1 in 3 of 9 examples, the first in example 2: expected {RANGE}'),
    (
      spoilt(255, np.uint8),
      f'label 255 in 3 of 9 examples, the first in example 2: expected {RANGE}',
    ),
    (spoilt(3), f'label 3 in 3 of 9 examples, the first in example 2: expected {RANGE}'),
    (spoilt(-100), f'label -100 in 3 of 9 examples, the first in example 2: expected {RANGE}'),
    (spoilt(2**32), f'label {2**32} in 3 of 9 examples, the first in example 2: expected {RANGE}'),
    (Y[:, None], 'targets of shape [9, 1]: expected [examples]'),
    (Y.astype(np.float32), 'labels of type float32: expected integers'),
    (np.array(['a'] * 9), 'labels of type <U1: expected integers'),
  ],
  ids=['-1', '255', 'C of C', '-100', '2^32', '[N, 1]', 'float', 'text'],
)
def test_labels(pool, door, y, message):
  DOORS[door](pool, X, Y)
  with pytest.raises(UserError) as caught:
    DOORS[door](pool, X, y)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)
  marks = [mark for mark in ('-1', '-100') if f'label {mark} in' in message]
  told = str(caught.value).rpartition('; where ')[2]
  advice = ' means no label: ignore_label of the task, config.task.ignore_label'
  assert told == marks[0] + advice if marks else advice not in told


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, 1e300])
def test_inputs_that_are_not_finite(pool, door, value):
  x = X.astype(np.float64)
  x[4, 1] = x[5, 0] = value
  with pytest.raises(UserError) as caught:
    DOORS[door](pool, x, Y)
  message = f'input {x[4, 1]} in 2 of 9 examples, the first at [4, 1]: expected finite numbers'
  assert message in str(caught.value)


def test_inputs_that_are_no_numbers():
  with pytest.raises(UserError, match='x: inputs of type <U1: expected numbers'):
    ArraySplit(np.array([['a']]), np.zeros(1, int))
  with pytest.raises(UserError, match=r'x of shape \[9, 4\] and y of shape \[8\]: expected'):
    ArraySplit(X, Y[:8])


@pytest.mark.parametrize(
  ('y', 'message'),
  [
    (
      np.full((9, 2), np.nan),
      'target nan in 9 of 9 examples, the first at [0, 0]: expected finite',
    ),
    (np.zeros(9), 'targets of shape [9]: expected [examples, 2]'),
    (np.zeros((9, 1)), 'targets of shape [9, 1]: expected [examples, 2]'),
  ],
)
def test_targets_of_a_regression(y, message):
  recipe = Recipe(MLP(1, width=4, hidden=4, num_classes=2), 'regression', optax.sgd(0.1))
  for door in (
    lambda: Data('rows', 'regression', ArraySplit(X, y), ArraySplit(X, y), 2),
    lambda: Trainer(recipe, ArraySplit(X, y), Uniform(1, 1), batch_size=3, seed=0),
  ):
    with pytest.raises(UserError) as caught:
      door()
    assert message in str(caught.value)


@pytest.mark.parametrize('value', [-1, 5, 255])
def test_tokens_outside_the_vocabulary(value):
  recipe, good = Recipe(TEXT, 'language', optax.sgd(0.1)), np.arange(12).reshape(3, 4) % 5
  bad = good.copy()
  bad[1, 2] = value
  for x, y in ((bad, good), (good, bad)):
    split = ArraySplit(x, y)
    for door in (
      lambda split: Data('rows', 'language', split, split, 5),
      lambda split: Trainer(recipe, split, Uniform(2, 1), batch_size=3, seed=0),
    ):
      with pytest.raises(UserError) as caught:
        door(split)
      place = f'token {value} in 1 of 3 examples, the first at [1, 2]: expected 0 to 4'
      assert place in str(caught.value)


def test_targets_of_a_task_of_ones_own_may_be_anything():
  """Masking is on purpose: a loss of one's own sees the marks that it put there."""

  def masked(outputs, y):
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, (y > 0) * y)
    return loss * (y >= 0)

  recipe = Recipe(MODEL, masked, optax.sgd(0.1))
  trainer = Trainer(recipe, ArraySplit(X, spoilt(-1)), Uniform(1, 1), batch_size=9, seed=0)
  assert np.isfinite(trainer.run(1)['loss']).all()


def test_a_split_is_looked_at_once(monkeypatch):
  looked, check = [], Expected.check_targets
  monkeypatch.setattr(
    Expected, 'check_targets', lambda *args: (looked.append(args[-1]), check(*args))
  )
  data = Data('rows', 'classification', ArraySplit(X, Y), ArraySplit(X, Y), 3)
  data = dataclasses.replace(data, name='other')
  for _ in range(3):
    Population(RECIPE, data, batch_size=3, seed=0)
  assert len(looked) == 4  # as the data says, and as the model does


def test_marks_in_labels_are_no_classes():
  assert check_used(np.array([1, 2, 3])) == 4
  with pytest.raises(UserError, match='every label is 7: expected at least two classes'):
    check_used(np.array([7, 7]))
  with pytest.raises(UserError, match='label 255 in 2 of 4 examples, the first in example 1: exp'):
    check_used(np.array([0, 255, 1, 255]))


WEIGHT = np.ones(9, np.float32)
PAIRS = {'source': X, 'target': (np.arange(9), np.ones((9, 2)))}


def changed(values, place, value):
  values = np.array(values)
  values[place] = value
  return values


@pytest.mark.parametrize(
  ('weight', 'message'),
  [
    (changed(WEIGHT, 4, -1), 'weight -1.0 in 1 of 9 examples, the first in example 4: expected we'),
    (changed(WEIGHT, 2, np.nan), 'weight nan in 1 of 9 examples, the first in example 2: expected'),
    (
      changed(np.ones((9, 2)), (3, 1), np.inf),
      'weight inf in 1 of 9 examples, the first at [3, 1]',
    ),
    (0 * WEIGHT, 'weights that are all 0: expected weights from 0, finite as float32, not all 0'),
    (WEIGHT[:8], 'weights of shape [8]: expected [9]'),
    (np.float32(1), 'weights of shape []: expected [9]'),
    (np.ones((9, 3)), 'weights of shape [9, 3]: expected [9]'),
    (np.array(['a'] * 9), 'weights of type <U1: expected numbers'),
  ],
)
def test_weights(weight, message):
  y = np.zeros((9, 2), np.int64) if weight.shape == (9, 2) else Y
  doors = [
    lambda y: Data('rows', 'language', ArraySplit(Y, y), ArraySplit(Y, y), 3),
    lambda y: Expected('language', 3).check(X, y),
    lambda y: Expected().check(X, {'part': y}),
  ]
  for door in doors:
    door(Weighted(y, WEIGHT))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
      door(Weighted(y, weight))
    assert '\n' not in str(caught.value)


def test_weights_are_float32_and_their_targets_are_looked_at():
  split = ArraySplit(X, Weighted(Y, Y > 0))
  assert split.y.weight.dtype == np.float32
  with pytest.raises(UserError, match='label 7 in 3 of 9 examples'):
    Data('rows', 'classification', ArraySplit(X, Weighted(spoilt(7), WEIGHT)), split, 3)
  with pytest.raises(UserError, match=r"targets y\['a'\] of a classification: expected one array"):
    Data('rows', 'classification', ArraySplit(X, {'a': Y}), split, 3)


def test_a_batch_that_is_read_may_have_no_weight():
  data = SourceSplit(9, lambda i: (X[i], Weighted(Y[i], (i > 3) * 1.0)))
  data = Data('rows', 'classification', data, ArraySplit(X, Y), 3)
  assert not data.train[np.arange(3)][1].weight.any()


def test_examples_are_pytrees():
  split = ArraySplit(PAIRS, Weighted(Y, WEIGHT))
  data = Data('pairs', 'classification', split, take(split, 3), 3, valid=take(split, 4))
  assert (len(data.train), len(data.valid), len(data.test)) == (9, 4, 3)
  assert data.example_shape == {'source': (4,), 'target': ((), (2,))}
  read = SourceSplit(9, split.__getitem__)
  for one in (split, read, take(read, 9)):
    x, y = one[np.array([[3, 1], [0, 8]])]
    assert x['target'][0].tolist() == [[3, 1], [0, 8]]
    assert x['source'].shape == (2, 2, 4)
    assert (y.y.tolist(), y.weight.shape) == ([[0, 1], [0, 2]], (2, 2))
    assert one[np.zeros(0, int)][0]['target'][1].shape == (0, 2)
  bad = PAIRS | {'source': changed(X, (4, 1), np.nan)}
  with pytest.raises(
    UserError, match=r"x: x\['source'\]: input nan in 1 of 9 examples, the first a"
  ):
    ArraySplit(bad, Y)
  with pytest.raises(
    UserError, match=r"x\['a'\] of shape \[9, 4\] and x\['b'\] of shape \[8\] and y"
  ):
    ArraySplit({'a': X, 'b': Y[:8]}, Y)
  with pytest.raises(
    UserError, match='expected the examples along the first axis, as many of each'
  ):
    ArraySplit([1.0] * 9, Y)


def test_a_split_to_choose_by_is_looked_at():
  good, bad = ArraySplit(X, Y), ArraySplit(X, spoilt(3))
  with pytest.raises(UserError, match='rows, valid: label 3 in 3 of 9 examples'):
    Data('rows', 'classification', good, good, 3, valid=bad)
