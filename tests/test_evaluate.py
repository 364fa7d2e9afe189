"""Evaluation of many structures against a plain loop over static ones."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import additive_jax as aj
from additive_jax import Additive, UserError, evaluate_structures, static
from additive_jax.batches import shapes_of
from additive_jax.errors import Stopped
from additive_jax.gates.structure import all_bits, all_structures
from additive_jax.models import MLP
from additive_jax.models.last_layer import LastLayer
from additive_jax.parallel import processes
from additive_jax.run import sizing, summary
from additive_jax.run.evaluate import evaluate_one
from additive_jax.run.objectives import CrossEntropy
from additive_jax.run.tasks import Task

MODEL = MLP(num_blocks=4, width=8, hidden=6, num_classes=3)
EXAMPLES = 23

# Means of float32 losses of order one, added up in another order.
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}
TASK = Task('classification')


def scores_of(task, outputs, y):
  """Loss and accuracy of each element, or squared errors twice, in a few lines."""
  if task == 'regression':
    return (outputs - y) ** 2, (outputs - y) ** 2
  loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
  return loss, outputs.argmax(-1) == y


def plain_loop(model, variables, x, y, task):
  """Mean loss and accuracy of every structure, one after the other."""
  rows = []
  for structure in all_structures(model.space.num_gates):
    values = scores_of(task, static(model, variables, x, structure), y)
    rows.append([np.asarray(value, np.float64).mean() for value in values])
  loss, accuracy = np.transpose(rows)
  return loss, accuracy


@pytest.fixture(scope='module')
def batch():
  random = np.random.default_rng(0)
  x = random.normal(size=(EXAMPLES, 6)).astype(np.float32)
  return x, random.integers(0, 3, EXAMPLES).astype(np.int32)


@pytest.fixture(scope='module')
def variables(random_pool, batch):
  return random_pool(MODEL, batch[0])


@pytest.fixture(scope='module')
def table(variables, batch):
  """loss [16] and accuracy [16] of the plain loop."""
  return plain_loop(MODEL, variables, *batch, 'classification')


def assert_rows(evaluation, table, values):
  loss, accuracy = (column[values] for column in table)
  assert evaluation.loss.dtype == evaluation.accuracy.dtype == np.float64
  np.testing.assert_allclose(evaluation.loss, loss, **CLOSE)
  np.testing.assert_allclose(evaluation.accuracy, accuracy, **CLOSE)


def test_structures_differ(table):
  loss, accuracy = table
  assert np.diff(np.sort(loss)).min() > 1e-4
  assert len(set(accuracy)) > 4


def test_all_structures_in_integer_order(variables, batch, table):
  assert_rows(evaluate_structures(MODEL, variables, batch), table, np.arange(16))


@pytest.mark.parametrize(
  'values', [[15], [0], [3, 3], [9, 2, 14, 2, 0, 9, 7], [15, 8, 4, 2, 1, 0]], ids=str
)
def test_any_set_in_any_order_with_repeats(variables, batch, table, values):
  assert_rows(evaluate_structures(MODEL, variables, batch, values), table, values)


def test_forms_of_structures(variables, batch, table):
  for form in (['1001', '0100'], all_bits(4)[[9, 2]], [(1, 0, 0, 1), 2]):
    assert_rows(evaluate_structures(MODEL, variables, batch, form), table, [9, 2])
  assert_rows(evaluate_structures(MODEL, variables, batch, all_structures(4)), table, np.arange(16))


@pytest.mark.parametrize('batch_size', [7, 1000])
def test_batches_that_do_not_divide(variables, batch, table, batch_size):
  got = evaluate_structures(MODEL, variables, batch, batch_size=batch_size)
  assert_rows(got, table, np.arange(16))


STREAM = 7 * 8 * 4  # bytes of the stream of one structure at batch size 7


LIMITS = [1, 5 * STREAM, 8 * STREAM, 14 * STREAM, 99 * STREAM]


@pytest.mark.parametrize('memory_limit', tiny.slow_but(LIMITS[1:3], LIMITS))
def test_bounded_memory(variables, batch, table, memory_limit, monkeypatch):
  """However little is allowed; and no worker holds more streams than that, but for the two that it
  cannot do without.
  """
  from additive_jax.run import prefix

  held = []
  run_plan = prefix.run_plan

  def watched(model, variables, x, plan, finish, *, tile, read):
    held.append(plan.slots + 1)
    return run_plan(model, variables, x, plan, finish, tile=tile, read=read)

  monkeypatch.setattr(prefix, 'run_plan', watched)
  got = evaluate_structures(
    MODEL,
    variables,
    batch,
    batch_size=7,
    memory_limit=memory_limit,
    task=Task('classification', lambda *a: CrossEntropy()(*a)),  # its own program and trace
  )
  assert_rows(got, table, np.arange(16))
  assert held[0] <= max(2, memory_limit // STREAM)


def test_explicit_devices(variables, batch, table):
  """Three workers on three devices; bitwise what one worker gives that follows the same plans."""
  devices = jax.devices()[1:4]
  options = {'batch_size': 7, 'memory_limit': 5 * STREAM}
  got = evaluate_structures(MODEL, variables, batch, devices=devices, **options)
  assert_rows(got, table, np.arange(16))
  one = evaluate_structures(MODEL, variables, batch, devices=devices[:1], **options)
  np.testing.assert_array_equal(got.loss, one.loss)
  np.testing.assert_array_equal(got.accuracy, one.accuracy)


def test_second_call_compiles_nothing(variables, batch, table, compiles):
  judge = functools.partial(evaluate_structures, MODEL, batch=batch, batch_size=11)
  judge(variables, structures=[1, 2, 3])
  assert len(compiles) > 0
  del compiles[:]
  changed = jax.tree.map(lambda leaf: leaf + 1, jax.device_get(variables))
  got = judge(variables, structures=[9, 8, 15])
  other = judge(changed, structures=[9, 8, 15])
  judge(variables, structures=range(8))  # nor does a set of another size
  assert len(compiles) == 0
  assert_rows(got, table, [9, 8, 15])
  assert np.abs(other.loss - got.loss).min() > 1e-3


def test_a_bad_structure_stays_alone(variables, batch):
  """A structure whose loss is not a number spoils no other."""
  pool = jax.tree.map(np.array, variables)
  pool['params']['block_02']['out']['bias'][:] = np.nan
  scores = evaluate_structures(MODEL, pool, batch)
  np.testing.assert_array_equal(np.isnan(scores.loss), all_bits(4)[:, 2])
  assert not np.isnan(scores.accuracy).any()


def test_regression(batch, random_pool):
  model = MLP(num_blocks=2, width=8, hidden=4, num_classes=2)
  x = batch[0]
  y = np.random.default_rng(1).normal(size=(EXAMPLES, 2)).astype(np.float32)
  variables = random_pool(model, x)
  got = evaluate_structures(model, variables, (x, y), task='regression', batch_size=10)
  want = plain_loop(model, variables, x, y, 'regression')
  np.testing.assert_allclose(got.loss, want[0], rtol=1e-5)
  assert list(got.metrics) == ['r2', 'mae']
  with pytest.raises(AttributeError, match='no accuracy in this evaluation: its metrics are r2, m'):
    _ = got.accuracy
  with pytest.raises(UserError, match=r'batch: targets of shape \[\d+\]: expected \[examples, 2\]'):
    evaluate_structures(model, variables, (x, y[:, 0]), task='regression', batch_size=10)


class Bytes(Additive):
  """Two sites over tokens, one of which looks at the neighbour before."""

  def setup(self):
    self.table = nn.Embed(11, 8, name='table')
    self.sites = [Before(name='before'), nn.Dense(8, name='plain')]
    self.readout = nn.Dense(11, name='head')

  def embed(self, x):
    return self.table(x)


class Before(nn.Module):
  @nn.compact
  def __call__(self, h):  # [B, T, D]
    return jnp.tanh(nn.Dense(h.shape[-1], name='in')(jnp.roll(h, 1, axis=-2)))


def test_language(random_pool):
  text = np.random.default_rng(2).integers(0, 11, (9, 6)).astype(np.uint8)
  x, y = text[:, :-1], text[:, 1:]
  variables = random_pool(Bytes(), x)
  got = evaluate_structures(Bytes(), variables, (x, y), task='language', batch_size=4)
  loss, accuracy = plain_loop(Bytes(), variables, x, y, 'language')
  np.testing.assert_allclose(got.loss, loss, **CLOSE)
  np.testing.assert_allclose(got.accuracy, accuracy, **CLOSE)
  assert np.diff(np.sort(loss)).min() > 1e-3
  np.testing.assert_allclose(got.metrics['perplexity'], np.exp(got.loss), rtol=1e-6)


def test_an_own_objective_sees_one_structure(variables, batch, table):
  """What it is written for, outputs [B, C]: labels index rows, and lengths are of the batch."""

  def own(outputs, y):
    return -jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y]

  def accuracy(outputs, y):
    return outputs.argmax(-1) == y

  got = evaluate_structures(MODEL, variables, batch, task=own, metrics=[accuracy])
  assert_rows(got, table, np.arange(16))


def test_empty_set(variables, batch):
  scores = evaluate_structures(MODEL, variables, batch, [])
  assert scores.loss.shape == scores.accuracy.shape == (0,)


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    ((23, 22), {}, '23 inputs and 22 targets: expected the same number, at least one'),
    ((0, 0), {}, '0 inputs and 0 targets: expected the same number'),
    ((23, 23), {'batch_size': 0}, 'batch_size 0: expected at least 1'),
    ((23, 23), {'batch_size': 7.5}, 'batch_size 7.5: expected an integer, at least 1'),
    ((23, 23), {'structures': 3}, r'structures 3: expected several, such as \[3\]'),
    ((23, 23), {'structures': '1010'}, r"structures '1010': expected several"),
    (
      (23, 23),
      {'task': lambda outputs, y: (outputs[:, 0], outputs[:, 0])},
      r'gives \(float32 \(23,\), float32 \(23,\)\): expected floats of shape \(23,\), one for each '
      'example, or one for each token; accuracy is a metric: metrics=',
    ),
    ((23, 23), {'task': 'ranking'}, "task 'ranking': expected one of classification"),
    ((23, 23), {'structures': ['101']}, 'structure 101 has 3 gates: expected 4'),
  ],
)
def test_bad_arguments(variables, batch, arguments, options, message):
  x, y = batch
  with pytest.raises(UserError, match=message):
    evaluate_structures(MODEL, variables, (x[: arguments[0]], y[: arguments[1]]), **options)


def test_a_batch_is_a_pair(variables, batch):
  x, y = batch
  for wrong, given in (((x, y, y), r'\(.*\), \(.*\), \(.*\)'), (x, 'ndarray')):
    with pytest.raises(UserError, match=f'a batch of {given}: expected a pair'):
      evaluate_structures(MODEL, variables, wrong)


def test_too_many_structures_to_enumerate(batch):
  with pytest.raises(UserError, match=r'^25 gates have 2\^25 structures, too many to enumerate'):
    evaluate_structures(MLP(25, 2, 2, 3), None, batch)


@pytest.mark.parametrize('batch_size', [7, 512])
def test_evaluate_one(variables, batch, table, batch_size):
  evaluate = jax.jit(
    lambda variables, bits: evaluate_one(
      MODEL, variables, batch, bits, task=TASK, batch_size=batch_size
    )
  )
  batch = jax.tree.map(jnp.asarray, batch)
  for value in (0, 5, 15):
    sums = evaluate(variables, jnp.asarray(all_bits(4)[value]))
    scores = TASK.finish(sums, TASK.facts(batch[1]))
    np.testing.assert_allclose(list(scores.values()), [table[0][value], table[1][value]], **CLOSE)
  assert evaluate._cache_size() == 1


LARGE = aj.models.Transformer(2, 8, 2, 16, num_classes=9000, num_tokens=9000, causal=True)


@pytest.fixture(scope='module')
def text():
  rng = np.random.default_rng(0)
  x = rng.integers(0, 9000, (6, 8))
  y = np.where(rng.random((6, 8)) < 0.7, np.roll(x, -1, 1), -100)
  variables = jax.jit(LARGE.init)(jax.random.key(0), x[:1])
  return jax.tree.map(lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape), variables), (x, y)


def test_the_loss_over_a_large_vocabulary_goes_through_it_in_pieces(text, monkeypatch):
  """What it gives is what all logits give, of tokens that count alone; and there are none."""
  variables, (x, y) = text
  task = Task('language', metrics=('accuracy', 'perplexity'), ignore_label=-100)
  structures, seen = ['1111', '0101', '1000'], []
  summarised = summary.summarised
  monkeypatch.setattr(
    summary, 'summarised', lambda *given: seen.append(given[0].x.shape) or summarised(*given)
  )
  got = evaluate_structures(LARGE, variables, (x, y), structures, task=task, batch_size=4)
  assert seen
  logits = [np.asarray(aj.static(LARGE, variables, x, s), np.float64) for s in structures]
  counts = y != -100
  for k, values in enumerate(logits):
    chosen = np.take_along_axis(values, np.maximum(y, 0)[..., None], -1)[..., 0]
    losses = np.log(np.exp(values).sum(-1)) - chosen
    np.testing.assert_allclose(got.loss[k], losses[counts].mean(), rtol=2e-6)
    right = (values.argmax(-1) == y)[counts].mean()
    np.testing.assert_allclose(got.accuracy[k], right, rtol=1e-6)
  np.testing.assert_allclose(got.metrics['perplexity'], np.exp(got.loss), rtol=1e-6)
  seen.clear()
  ranked = dataclasses.replace(task, metrics=('top5',))
  whole = evaluate_structures(LARGE, variables, (x, y), structures, task=ranked, batch_size=4)
  assert not seen
  np.testing.assert_allclose(whole.loss, got.loss, rtol=2e-6)


@pytest.mark.parametrize('tied', [False, True])
def test_summaries_of_pieces_that_overlap(tied):
  rng = np.random.default_rng(0)
  x, kernel, bias = (rng.normal(size=shape).astype('f4') for shape in ((7, 3), (3, 11), (11,)))
  labels = rng.integers(0, 11, 7)
  last = LastLayer(jnp.asarray(x), jnp.asarray(kernel.T if tied else kernel), bias, tied)
  logits = x.astype(float) @ kernel + bias
  label = np.take_along_axis(logits, labels[:, None], 1)[:, 0]
  logits[np.arange(7), labels] = -np.inf
  for piece in (1, 4, 11, 20):
    found = summary.summarised(last, jnp.asarray(labels), piece)
    log_sum = np.logaddexp.reduce(np.c_[logits, label], axis=1)
    for got, want in zip(found, (log_sum, label, logits.max(1))):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_long_examples_are_walked_one_by_one_and_shared_out(text):
  """Leave-one-out runs each site as often as its arithmetic says, in a few slots; no worker idles,
  and what streams and logits take says how many examples are together."""
  x = np.zeros((8, 512), int)
  model = aj.models.Transformer(
    20, 8, 2, 16, num_classes=9000, num_tokens=9000, causal=True, max_tokens=512
  )
  devices = jax.devices()[:1] * 2
  task = Task('language')
  assert sizing.batch_size(model, task, x, x, devices) == 4
  assert sizing.batch_size(model, task, x[:1], x[:1], devices) == 1
  in_full = Task('language', metrics=('top5',))  # 18 MB of logits an example
  assert sizing.batch_size(model, in_full, x, x, devices) == 2
  assert sizing.batch_size(LARGE, in_full, *text[1], devices) == 64
  count = 40
  bits = np.unique(np.r_[~np.eye(count, dtype=bool), np.ones((1, count), bool)], axis=0)
  tile, walks = sizing.plans(model, shapes_of(x, 4), bits, devices, None, jobs=2)
  assert (tile, len(walks), walks[0].slots) == (1, 1, 4)
  assert walks[0].count.sum() == count + sum(range(count))  # and i others for the one without i
  _, walks = sizing.plans(model, shapes_of(x, 8), bits, devices, None, jobs=1)
  assert len(walks) == 4
  # Where no path has room, as before.
  tight = sizing.plans(model, shapes_of(x, 4), bits, devices, 3 * 4 * 512 * 8 * 4, jobs=2)[1]
  assert tight[0].slots <= 3


def test_sets_of_many_sizes_need_few_programs():
  """As a search asks for them: what is compiled goes by tile and shapes of a plan."""
  model, bits = MLP(num_blocks=6, width=4, hidden=8, num_classes=3), all_bits(6)
  devices, x = jax.devices()[:1], np.zeros((16, 5), np.float32)
  shapes = set()
  for size in range(1, 65):
    tile, (walk,) = sizing.plans(model, shapes_of(x, 16), bits[:size], devices, None, jobs=1)
    shapes.add((tile, walk.leaf.shape, walk.slots))
  assert len(shapes) <= 3
  # One alone has no idle rows, and memory is no more than it may be.
  assert min(shapes)[:2] == (1, (1, 1))
  tight = sizing.plans(model, shapes_of(x, 16), bits[:9], devices, 16 * 4 * 4 * 20, jobs=1)[1]
  assert tight[0].slots == 16


def test_a_pool_that_is_on_the_device_is_not_copied(variables, batch, monkeypatch):
  fetched = []
  monkeypatch.setattr(processes, 'to_host', lambda tree: fetched.append(1) or tree)
  device = jax.devices()[0]
  there = jax.device_put(variables, device)
  evaluate_structures(MODEL, there, batch, [3], devices=[device])
  assert not fetched
  evaluate_structures(MODEL, jax.device_get(variables), batch, [3], devices=[device])
  assert fetched


def test_progress_is_told_up_to_the_end():
  model = MLP(num_blocks=3, width=4, hidden=8, num_classes=2)
  x, y = np.ones((10, 6), np.float32), np.zeros(10, np.int32)
  variables, shares = model.init(jax.random.key(0), x), []
  evaluate_structures(model, variables, (x, y), batch_size=4, progress=shares.append)
  assert shares == sorted(shares)
  assert len(shares) >= 3
  assert shares[-1] == 1.0

  def stop(share):
    raise Stopped(f'at {share}')

  with pytest.raises(Stopped):
    evaluate_structures(model, variables, (x, y), progress=stop)
