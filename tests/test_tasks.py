"""Losses, metrics and means over what counts, against scikit-learn and a few lines of NumPy."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import sklearn.metrics

import additive_jax as aj
from additive_jax import UserError
from additive_jax.data import ArraySplit, Data, Order, Weighted, from_arrays
from additive_jax.gates import subsets
from additive_jax.models import MLP
from additive_jax.parallel.mesh import make_mesh
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.placement import Placement
from additive_jax.run.ensemble import evaluate_ensemble
from additive_jax.run.expected import check_task
from additive_jax.run.measures import metric_of
from additive_jax.run.metrics import MeanMetric
from additive_jax.run.objectives import CrossEntropy, Distilled, Huber, Taught
from additive_jax.run.tasks import TASKS, Task, added_up, task_of
from additive_jax.train.fleet import Fleet
from additive_jax.train.losses import PerSample, Piped
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.samplers import fixed
from additive_jax.train.state import init_state
from additive_jax.train.trainer import Trainer

# A logarithm and a sum of five float32 exponentials.
CLOSE = {'rtol': 1e-5, 'atol': 1e-6}
EXACT = {'rtol': 1e-6, 'atol': 1e-7}
RANDOM = np.random.default_rng(0)
N, T, C = 37, 5, 4
LOGITS = RANDOM.normal(size=(N, C)).astype(np.float32)
Y = RANDOM.integers(0, C, N)
TEXT = RANDOM.normal(size=(N, T, C)).astype(np.float32)
TOKENS = RANDOM.integers(0, C, (N, T))
WEIGHT = RANDOM.uniform(0, 2, N).astype(np.float32) * (RANDOM.random(N) < 0.8)
OF_TOKENS = RANDOM.uniform(0, 2, (N, T)).astype(np.float32) * (RANDOM.random((N, T)) < 0.6)
NUMBERS = RANDOM.normal(3, 2, (N, C)).astype(np.float32)
YES = (RANDOM.random((N, C)) < 0.4).astype(np.int32)


def judged(task, outputs, y, size=N):
  """Loss and metrics, a batch of `size` examples at a time."""
  rows = [slice(start, start + size) for start in range(0, N, size)]
  parts = [jax.tree.map(lambda a, r=r: jnp.asarray(a[r]), (outputs, y)) for r in rows]
  statistics = jax.jit(task.statistics)
  sums = [added_up(statistics(*part)) for part in parts]
  return task.finish([np.sum(every, axis=0) for every in zip(*sums)], task.facts(y))


def cross_entropy(logits, y):
  return -np.take_along_axis(scipy.special.log_softmax(logits.astype(float), -1), y[..., None], -1)[
    ..., 0
  ]


CLASSIFICATION = Task('classification', metrics=['accuracy', 'top2', 'f1_macro'])


def of_classes(weight):
  predicted, options = LOGITS.argmax(-1), {'sample_weight': weight}
  top = sklearn.metrics.top_k_accuracy_score(Y, LOGITS, k=2, labels=range(C), **options)
  return {
    'loss': np.average(cross_entropy(LOGITS, Y), weights=weight),
    'accuracy': sklearn.metrics.accuracy_score(Y, predicted, **options),
    'top2': top,
    'f1_macro': sklearn.metrics.f1_score(Y, predicted, average='macro', **options),
  }


def of_numbers(weight):
  options = {'sample_weight': weight}
  return {
    'loss': sklearn.metrics.mean_squared_error(NUMBERS, LOGITS, **options),
    'r2': sklearn.metrics.r2_score(NUMBERS, LOGITS, **options),
    'mae': sklearn.metrics.mean_absolute_error(NUMBERS, LOGITS, **options),
    'rmse': sklearn.metrics.root_mean_squared_error(NUMBERS, LOGITS, **options),
  }


def of_labels(weight):
  predicted, options = LOGITS > 0, {'sample_weight': weight}
  loss = -np.where(YES, scipy.special.log_expit(LOGITS), scipy.special.log_expit(-LOGITS))
  return {
    'loss': np.average(loss.mean(1), weights=weight),
    'f1_micro': sklearn.metrics.f1_score(YES, predicted, average='micro', **options),
    'f1_macro': sklearn.metrics.f1_score(YES, predicted, average='macro', **options),
    'exact_match': sklearn.metrics.accuracy_score(YES, predicted, **options),
    'accuracy': 1 - sklearn.metrics.hamming_loss(YES, predicted, **options),
  }


def of_yes_and_no(weight):
  y, predicted, options = YES[:, 0], LOGITS[:, 0] > 0, {'sample_weight': weight}
  return {
    'loss': sklearn.metrics.log_loss(y, scipy.special.expit(LOGITS[:, 0].astype(float)), **options),
    'accuracy': sklearn.metrics.accuracy_score(y, predicted, **options),
    'f1': sklearn.metrics.f1_score(y, predicted, **options),
  }


ORACLES = {
  'classification': (CLASSIFICATION, LOGITS, Y, of_classes),
  'regression': (Task('regression', metrics=['r2', 'mae', 'rmse']), LOGITS, NUMBERS, of_numbers),
  'multi_label': (
    Task('multi_label', metrics=['f1_micro', 'f1_macro', 'exact_match', 'accuracy']),
    LOGITS,
    YES,
    of_labels,
  ),
  'binary': (Task('binary'), LOGITS[:, :1], YES[:, 0], of_yes_and_no),
}


@pytest.mark.parametrize('size', [N, 8])
@pytest.mark.parametrize('weight', [None, WEIGHT], ids=['alike', 'weighted'])
@pytest.mark.parametrize('name', ORACLES)
def test_metrics_are_those_of_scikit_learn(name, weight, size):
  task, outputs, y, oracle = ORACLES[name]
  got = judged(task, outputs, y if weight is None else Weighted(y, weight), size)
  want = oracle(weight)
  assert list(got) == list(want) == list(task.scores)
  for score, value in want.items():
    np.testing.assert_allclose(got[score], value, rtol=2e-6, err_msg=score)


@pytest.mark.parametrize('size', [N, 8, 5])
def test_language_counts_tokens(size):
  task = Task('language', metrics=['accuracy', 'perplexity', 'f1_macro', 'top2'])
  got = judged(task, TEXT, Weighted(TOKENS, OF_TOKENS), size)
  every, y, weight = TEXT.reshape(-1, C), TOKENS.ravel(), OF_TOKENS.ravel().astype(float)
  loss = np.average(cross_entropy(every, y), weights=weight)
  f1 = sklearn.metrics.f1_score(y, every.argmax(-1), average='macro', sample_weight=weight)
  np.testing.assert_allclose(got['loss'], loss, **EXACT)
  np.testing.assert_allclose(got['perplexity'], np.exp(loss), rtol=2e-6)
  np.testing.assert_allclose(got['accuracy'], np.average(every.argmax(-1) == y, weights=weight))
  np.testing.assert_allclose(got['f1_macro'], f1, rtol=1e-6)
  ignored = np.where(OF_TOKENS > 0, TOKENS, -100)
  same = judged(Task('language', ignore_label=-100), TEXT, ignored, size)
  masked = judged(Task('language'), TEXT, Weighted(ignored, np.sign(OF_TOKENS)), size)
  assert same == masked
  plain = judged(Task('language'), TEXT, TOKENS, size)
  np.testing.assert_allclose(plain['loss'], cross_entropy(every, y).mean(), **EXACT)


def test_labels_and_targets_may_be_weighted_one_by_one():
  weight = np.resize(OF_TOKENS.ravel(), (N, C))
  labels = judged(
    Task('multi_label', metrics=['f1_macro', 'exact_match', 'accuracy']),
    LOGITS,
    Weighted(YES, weight),
    8,
  )
  right = (LOGITS > 0) == YES
  f1 = [
    sklearn.metrics.f1_score(YES[:, c], LOGITS[:, c] > 0, sample_weight=weight[:, c])
    for c in range(C)
  ]
  np.testing.assert_allclose(labels['f1_macro'], np.mean(f1), rtol=1e-6)
  np.testing.assert_allclose(labels['accuracy'], np.average(right, weights=weight), rtol=1e-6)
  some = (weight > 0).any(1)
  whole = (right | (weight == 0)).all(1)[some].mean()
  np.testing.assert_allclose(labels['exact_match'], whole, rtol=1e-6)
  task = Task('regression', metrics=['r2', 'rmse'])
  numbers = judged(task, LOGITS, Weighted(NUMBERS, weight), 8)
  by_target = [(NUMBERS[:, c], LOGITS[:, c], weight[:, c]) for c in range(C)]
  for score, function in (('r2', 'r2_score'), ('rmse', 'root_mean_squared_error')):
    scores = [getattr(sklearn.metrics, function)(y, p, sample_weight=w) for y, p, w in by_target]
    np.testing.assert_allclose(numbers[score], np.mean(scores), rtol=1e-5)


def test_targets_far_from_zero_lose_no_digits():
  """The variance of the targets is taken on the host, around their mean."""
  y = NUMBERS + 1e4
  got = judged(Task('regression'), y + LOGITS, y, 8)
  np.testing.assert_allclose(got['r2'], sklearn.metrics.r2_score(y, y + LOGITS), rtol=1e-5)


@pytest.mark.parametrize(
  ('loss', 'want'),
  [
    (CrossEntropy(0.1), lambda p: 0.9 * cross_entropy(LOGITS, Y) - 0.1 * p.mean(-1)),
    ('cross_entropy', lambda p: cross_entropy(LOGITS, Y)),
  ],
)
def test_classes(loss, want):
  log_p = scipy.special.log_softmax(LOGITS.astype(float), -1)
  got = Task('classification', loss).losses(jnp.asarray(LOGITS), jnp.asarray(Y))
  np.testing.assert_allclose(got, want(log_p), **CLOSE)
  shares = np.eye(C, dtype=np.float32)[Y]
  soft = Task('classification', loss).losses(jnp.asarray(LOGITS), jnp.asarray(shares))
  np.testing.assert_allclose(soft, got, **CLOSE)
  mixed = 0.3 * shares + 0.7 * shares[::-1]
  got = judged(Task('classification'), LOGITS, mixed)
  np.testing.assert_allclose(got['loss'], -(mixed * log_p).sum(-1).mean(), **CLOSE)
  np.testing.assert_allclose(got['accuracy'], (LOGITS.argmax(-1) == mixed.argmax(-1)).mean())


def test_class_weights_are_of_the_loss_alone():
  weights = (0.5, 1.0, 3.0, 0.0)
  task = Task('classification', class_weights=weights)
  got = judged(task, LOGITS, Weighted(Y, WEIGHT), 8)
  each = np.array(weights)[Y] * WEIGHT
  want = np.average(cross_entropy(LOGITS, Y), weights=each)
  np.testing.assert_allclose(got['loss'], want, **EXACT)
  np.testing.assert_allclose(got['accuracy'], of_classes(WEIGHT)['accuracy'], rtol=1e-6)
  trained = task.mean_loss(jnp.asarray(LOGITS), Weighted(jnp.asarray(Y), jnp.asarray(WEIGHT)))
  np.testing.assert_allclose(trained, want, **CLOSE)


@pytest.mark.parametrize(
  ('loss', 'want'),
  [
    ('absolute', lambda e: np.abs(e)),
    ('squared', lambda e: e**2),
    (Huber(0.5), lambda e: np.where(np.abs(e) < 0.5, e**2 / 2, 0.5 * (np.abs(e) - 0.25))),
  ],
)
def test_errors(loss, want):
  got = judged(Task('regression', loss), LOGITS, NUMBERS)
  np.testing.assert_allclose(got['loss'], want(LOGITS.astype(float) - NUMBERS).mean(), rtol=1e-6)


def test_losses_are_of_float32():
  outputs = jnp.asarray(LOGITS, jnp.bfloat16)
  seen = []
  own = lambda outputs, y: (seen.append(outputs.dtype), outputs[:, 0] - y)[1]
  for task in (Task('classification'), Task(loss=own)):
    losses = task.losses(outputs, jnp.asarray(Y))
    assert losses.dtype == jnp.float32
    parts = task.statistics(outputs, jnp.asarray(Y))
    assert {part.dtype.name for part in parts} == {'float32'}
  assert {str(dtype) for dtype in seen} == {'float32'}
  want = Task('classification').losses(outputs.astype(jnp.float32), jnp.asarray(Y))
  np.testing.assert_array_equal(Task('classification').losses(outputs, jnp.asarray(Y)), want)


def test_gradients_are_those_of_the_weighted_mean():
  """What does not count has no gradient, whatever its label is."""

  def plain(outputs):
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, jnp.asarray(TOKENS))
    return (loss * OF_TOKENS).sum() / OF_TOKENS.sum()

  wild = np.where(OF_TOKENS > 0, TOKENS, 10**6)
  y = Weighted(jnp.asarray(wild), jnp.asarray(OF_TOKENS))
  got = jax.grad(Task('language').mean_loss)(jnp.asarray(TEXT), y)
  np.testing.assert_allclose(got, jax.grad(plain)(jnp.asarray(TEXT)), **CLOSE)
  nothing = Weighted(y.y, 0 * y.weight)
  loss, gradient = jax.value_and_grad(Task('language').mean_loss)(jnp.asarray(TEXT), nothing)
  assert not loss
  assert not np.asarray(gradient).any()
  # Parts of a batch, each divided by its share of the whole weight.
  task, total = Task('language'), Task('language').total(y)
  parts = [jax.tree.map(lambda a, r=rows: a[r], (TEXT, y)) for rows in np.split(np.arange(36), 3)]
  whole = task.mean_loss(*jax.tree.map(lambda a: a[:36], (jnp.asarray(TEXT), y)))
  total = task.total(jax.tree.map(lambda a: a[:36], y)) / 3
  np.testing.assert_allclose(np.mean([task.mean_loss(*p, total) for p in parts]), whole, **EXACT)


@pytest.mark.parametrize('tokens', [(), (T,)])
def test_distilled(tokens):
  """Against its formula, written out in NumPy, of examples and of text."""
  logits, teacher = RANDOM.normal(size=(2, 4, *tokens, 7)).astype(np.float32) * 3
  y = RANDOM.integers(0, 7, (4, *tokens))
  task = Task('language' if tokens else 'classification', Distilled(CrossEntropy(), 0.7, 2.5))
  loss = task.losses(jnp.asarray(logits), Taught(jnp.asarray(y), jnp.asarray(teacher)))
  p, q = (scipy.special.softmax(a / 2.5, axis=-1) for a in (teacher, logits))
  apart = (p * np.log(p / q)).sum(-1)
  want = 0.3 * cross_entropy(logits, y) + 0.7 * 2.5**2 * apart
  np.testing.assert_allclose(loss, want, **CLOSE)
  weight = np.resize([1.0, 0.0, 2.0], y.shape).astype(np.float32)
  targets = Weighted(Taught(jnp.asarray(y), jnp.asarray(teacher)), jnp.asarray(weight))
  got = task.mean_loss(jnp.asarray(logits), targets)
  np.testing.assert_allclose(got, np.average(want, weights=weight), **CLOSE)
  statistics = task.statistics(jnp.asarray(logits), targets)
  assert [part.shape for part in statistics][:2] == [(4, 1), (4, 1)]


def test_an_ensemble_of_yes_and_no_averages_probabilities(random_pool):
  model, x = MLP(1, 4, 8, C), RANDOM.normal(size=(N, 6)).astype(np.float32)
  pools, bits = [random_pool(model, x), random_pool(model, x)], np.array([[True], [False]])
  task = Task('multi_label')
  outputs = [np.asarray(aj.static(model, pool, x, row)) for pool, row in zip(pools, bits)]
  mean = np.mean([scipy.special.expit(one.astype(float)) for one in outputs], axis=0)
  loss = -np.where(YES, np.log(mean), np.log1p(-mean)).mean()
  got = evaluate_ensemble(model, pools, bits, (x, YES), task)
  np.testing.assert_allclose(got['loss'], loss, rtol=1e-5)


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
def test_an_own_loss_gives_a_number_of_each_example(start, data):
  """The mean of anything else would be trained for, such as that of pairs of examples."""

  def recipe_that_gives(given):
    def own(outputs, y):
      return given(outputs[:, 0] - y)

    return Recipe(MLP(1, 4, 4, 3), own, optax.sgd(0.1))

  for given, text in (
    (lambda loss: (loss, loss), r'\(float32 \(5,\), float32 \(5,\)\)'),
    (lambda loss: loss.mean(), r'float32 \(\)'),
    (lambda loss: loss > 0, r'bool \(5,\)'),
    (lambda loss: loss[:, None] - loss, r'float32 \(5, 5\)'),
    (lambda loss: None, 'None'),
  ):
    with pytest.raises(
      UserError, match=rf'^loss own gives {text}: expected floats of shape \(5,'
    ) as e:
      start(recipe_that_gives(given), data)
    assert '\n' not in str(e.value)
  start(recipe_that_gives(lambda loss: loss), data)


MODEL = MLP(1, 4, 4, 3)
X = np.ones((5, 8), np.float32)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Task('clasification'), "task 'clasification': expected one of .*; did you mean 'cl"),
    (lambda: Task(), "loss '': expected one of cross_entropy, .*, or a function of outputs and"),
    (lambda: Task('regression', 'hubber'), "loss 'hubber' of a regression: .* mean 'huber'"),
    (lambda: Task('language', 'squared'), "loss 'squared' of a language: expected one of cross_en"),
    (lambda: Task('regression', metrics=['accuracy']), "metric 'accuracy' of a regression: expec"),
    (lambda: Task('regression', metrics=['rms']), "metric 'rms' of a regression.*mean 'rmse'"),
    (lambda: Task('binary', metrics=['top5']), "metric 'top5' of a binary: expected one of acc"),
    (lambda: Task('classification', metrics=['top0']), "metric 'top0' of a classification"),
    (lambda: Task('regression', metrics=['r2', 'r2']), 'metrics r2, r2: expected different names'),
    (lambda: Task('regression', rank_by='rmse'), "rank_by 'rmse': expected one of loss, r2, mae"),
    (lambda: Task('regression', rank_by='rmse'), "mae; add 'rmse' to metrics to rank by it"),
    (lambda: Task('classification', rank_by='f1_macro'), "accuracy; add 'f1_macro' to metrics to"),
    (lambda: Task('classification', rank_by='acuracy'), "mean 'accuracy'"),
    (lambda: Task('regression', ignore_label=-1), 'ignore_label -1 of a regression: expected Non'),
    (lambda: Task('language', ignore_label=0.5), 'ignore_label 0.5: expected an integer, or None'),
    (lambda: Task('binary', class_weights=(1, 2)), r'class_weights \(1.0, 2.0\) of a binary: expe'),
    (lambda: Task('language', class_weights=(1, -2)), r'class_weights \(1.0, -2.0\): expected num'),
    (lambda: Task('language', class_weights=(0, 0)), r'class_weights \(0.0, 0.0\): expected numb'),
    (lambda: CrossEntropy(1.0), r'label_smoothing 1.0: expected a share in \[0, 1\)'),
    (lambda: Distilled(CrossEntropy(), 1.5), r'weight 1.5 of a teacher: expected one in \[0, 1\]'),
    (lambda: Distilled(CrossEntropy(), 0.5, 0.0), 'temperature 0.0 of a teacher: expected a posi'),
    (
      lambda: check_task(MODEL, Task('classification', class_weights=(1, 2)), X, Y[:5]),
      r'class_weights \(1.0, 2.0\): expected 3 numbers, one for each class',
    ),
    (
      lambda: check_task(MODEL, Task('classification', metrics=[lambda o, y: o.mean()]), X, Y[:5]),
      r'metric <lambda> gives float32 \(\): expected numbers of shape \(5,\), one for each example',
    ),
    (
      lambda: check_task(MODEL, Task('classification', metrics=[lambda o: o]), X, Y[:5]),
      'metric lambda fails on outputs and targets .* expected a function of both',
    ),
    (
      lambda: check_task(MODEL, Task(loss=lambda o, y: o[:, 0]), X, Weighted(YES, YES * 1.0)),
      r'loss <lambda> gives \(5,\) and weights are \(5, 4\): expected losses of what is weighted',
    ),
    (
      lambda: Task('language', ignore_label=3).facts(np.full((2, 2), 3)),
      '2 examples of which none counts: expected some with a weight above 0 and a label other than',
    ),
    (
      lambda: Recipe(MODEL, 'regression', optax.sgd(0.1), Structures(distill=0.5)),
      'distill 0.5 in a regression: expected 0, for want of classes',
    ),
  ],
)
def test_what_makes_no_sense(make, message):
  with pytest.raises(UserError, match=message) as error:
    make()
  assert '\n' not in str(error.value)


def spread_of(outputs, y):
  return outputs.max(-1) - outputs.min(-1)


def test_metrics_by_the_names_they_shall_have():
  task = Task('classification', metrics={'accuracy': lambda o, y: o[:, 0], 'margin': spread_of})
  assert task.scores == ('loss', 'accuracy', 'margin')
  assert [metric.function is spread_of for metric in task.metrics] == [False, True]


@pytest.mark.parametrize(
  ('task', 'y', 'message'),
  [
    (
      'classification',
      np.array([0, 3, 1, 0, 0]),
      'label 3 in 1 of 5 examples, the first in exampl',
    ),
    ('classification', np.array([0, -1, 1, 0, 0]), 'label -1 in 1 of 5 examples'),
    ('classification', np.full((5, 3), 1.5), 'share of a class 1.5 in 5 of 5 examples'),
    (
      'classification',
      np.full((5, 2), 0.5),
      r'targets of shape \[5, 2\]: expected \[examples, 3\]',
    ),
    ('multi_label', np.full((5, 3), 2), 'label 2 in 5 of 5 examples, the first at'),
    ('multi_label', np.zeros(5), r'targets of shape \[5\]: expected \[examples, 3\]'),
    ('binary', np.full(5, -1), 'label -1 in 5 of 5 examples'),
    ('regression', np.full((5, 3), np.nan), 'target nan in 5 of 5 examples'),
  ],
)
def test_targets_that_the_task_does_not_have(random_pool, task, y, message):
  with pytest.raises(UserError, match=message):
    aj.evaluate_structures(MODEL, random_pool(MODEL, X), (X, y), task=task)


def test_a_loss_is_no_finer_than_what_it_is_of(random_pool):
  y = np.array([0, 1, 2, 0, 1])
  judge = functools.partial(aj.evaluate_structures, MODEL, random_pool(MODEL, X), (X, y))
  with pytest.raises(UserError, match=r'loss <lambda> gives \(5, 3\) of targets \(5,\): expected'):
    judge(task='classification', loss=lambda outputs, y: outputs)


def test_what_does_not_count_may_be_anything(random_pool):
  pool, y = random_pool(MODEL, X), np.array([0, -100, 1, 2, -100])
  judge = functools.partial(aj.evaluate_structures, MODEL, pool)
  with pytest.raises(UserError, match='label -100 in 2 of 5'):
    judge((X, y))
  ignored = judge((X, y), task=Task('classification', ignore_label=-100))
  masked = judge((X, Weighted(y, (y >= 0) * 1.0)))
  few = judge((X[[0, 2, 3]], y[[0, 2, 3]]))
  for scores in (masked, few):
    np.testing.assert_allclose(scores.loss, ignored.loss, rtol=1e-6)
    np.testing.assert_allclose(scores.accuracy, ignored.accuracy, rtol=1e-6)
  data = Data('rows', Task('classification', ignore_label=-100), *[ArraySplit(X, y)] * 2, 3)
  assert data.task_name == 'classification'


def test_names():
  assert {task_of(name).name for name in TASKS} == set(TASKS)
  own = lambda outputs, y: outputs[:, 0]
  assert task_of(own) == Task(loss=own)
  assert task_of(own).scores == ('loss',)
  task = task_of('language', metrics=['perplexity', MeanMetric(own, 'own', False)])
  assert [task.sign(score) for score in ('loss', 'perplexity', 'own')] == [1, 1, 1]
  assert hash(task) == hash(dataclasses.replace(task))
  assert metric_of('top10', 'language').name == 'top10'


class Sequences(aj.Additive):
  """Outputs for each of T tokens."""

  def setup(self):
    self.embed = nn.Dense(8, name='embed')
    self.sites = [nn.Dense(8, name='first'), nn.Dense(8, name='second')]
    self.readout = nn.Dense(C, name='readout')


MESHES = {
  'one device': (1, {}),
  'two split the batch': (2, {}),
  'four split the batch': (4, {}),
  'two share the pool': (2, {'fsdp_devices': 2}),
  'four share pool and batch': (4, {'fsdp_devices': 2}),
}


@functools.cache
def sequences():
  random = np.random.default_rng(3)
  x = random.normal(size=(24, T, 6)).astype(np.float32)
  y = random.integers(0, C, (24, T))
  # From whole examples that do not count to whole ones that do.
  y[random.random((24, T)) < np.linspace(0, 1, 24)[:, None]] = -1
  return x, y


@pytest.mark.parametrize(('batch_size', 'accumulate'), [(4, 1), (12, 1), (12, 3)])
@pytest.mark.parametrize('mesh', MESHES)
def test_a_masked_language_loss_is_the_mean_over_tokens(random_pool, mesh, batch_size, accumulate):
  """Of the slot's whole batch, on any devices and in pieces; and so is its gradient."""
  (count, spread), (x, y) = MESHES[mesh], sequences()
  model, split = Sequences(), ArraySplit(x, y)
  task = Task('language', ignore_label=-1)
  recipe = Recipe(model, task, optax.sgd(1.0), accumulate=accumulate)
  devices = make_mesh(1, batch_size, jax.devices()[:count], **spread)
  pool = random_pool(model, x[:1])
  trainer = Trainer(
    recipe,
    split,
    fixed('11', 2),
    batch_size=batch_size,
    seed=0,
    state=init_state(recipe, pool),
    placement=Placement(mesh=devices),
  )
  assert trainer.mesh.devices.size == count
  rows = Order(24, batch_size, 0).indices(0, 1).ravel()
  counts = y[rows] >= 0
  assert counts.any()
  assert not counts.all()

  def plain(params):
    outputs = model.apply({'params': params}, x[rows], '11')
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, np.maximum(y[rows], 0))
    return (loss * counts).sum() / counts.sum()

  want, gradient = jax.value_and_grad(plain)(pool['params'])
  got = trainer.run(1)['loss'][0, 0]
  np.testing.assert_allclose(got, want, **EXACT)
  after = jax.tree.map(lambda p, g: p - g, pool['params'], gradient)
  state = jax.device_get(trainer.variables['params'])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state, after)


LOSSES = {
  'structures': Structures(),
  'distilled': Structures(distill=0.5),
  'per sample': PerSample(subsets=subsets.Subsets(((1.0, 0.5),)), distill=0.5),
  'stages': Piped(pipeline=Pipeline(2, 2)),
}


@pytest.mark.parametrize('loss', LOSSES)
def test_what_does_not_count_is_not_learnt(loss):
  """Other inputs and labels of examples without weight: the same loss and the same pool."""
  random = np.random.default_rng(0)
  x, y = random.normal(size=(8, 6)).astype(np.float32), random.integers(0, 3, 8)
  counts = np.arange(8) % 4 > 0
  shown = x + ~counts[:, None], np.where(counts, y, 99)
  all_on = loss in ('per sample', 'stages')
  found = []
  for inputs, targets in ((x, y), shown):
    split = ArraySplit(inputs, Weighted(targets, counts * np.arange(1.0, 9)))
    recipe = Recipe(MLP(2, 4, 4, 3), 'classification', optax.sgd(0.5), LOSSES[loss])
    sampler = fixed('11' if all_on else '10', 2)
    trainer = Trainer(recipe, split, sampler, batch_size=8, seed=0)
    found.append((trainer.run(2)['loss'], jax.device_get(trainer.variables)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), *found)
  assert found[0][0][0] != found[0][0][1]


def test_arrays_of_a_task():
  """Labels to ignore are no classes of the data; a regression is coded as one by name."""
  x, y = np.ones((10, T, 6)), RANDOM.integers(0, C, (10, T))
  y[:, 0], y[0, 1] = -100, C - 1
  tokens, padded = np.maximum(y, 0), Task('language', ignore_label=-100)
  data = from_arrays(tokens, y, task=padded, test=0.2)
  assert (data.num_outputs, data.task_name) == (C, 'language')
  data = from_arrays(x[:, 0], x[:, 0, 0] * np.arange(10.0), task=Task('regression', 'huber'))
  assert data.train.y.shape[1:] == (1,)
  assert abs(data.train.y.mean()) < 1e-6
  data = from_arrays(x[:, 0], y > 0, task=Task('multi_label'))
  assert (data.num_outputs, data.train.y.dtype) == (T, np.int32)
