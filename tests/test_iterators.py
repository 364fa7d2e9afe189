"""Examples from iterators: the same however they are read, and where one may go on."""

import json
import os
import re
import signal
import threading
import time

import jax
import numpy as np
import optax
import pandas as pd
import pytest
import tiny
from bad_options import BASES

from additive_jax import UserError, data
from additive_jax.data import SourceSplit, Weighted
from additive_jax.data.iterator_state import decoded, encoded
from additive_jax.data.stream import Stream
from additive_jax.errors import Stopped
from additive_jax.experiments.studies import STUDIES
from additive_jax.models import MLP
from additive_jax.parallel.mesh import make_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import make_sampler
from additive_jax.train.trainer import Trainer

SIZES = (8, 8, 5)  # batches of a pass


def batches(epoch, seed=0):
  """Batches of another content in each pass."""
  rng = np.random.default_rng([epoch, seed])
  for size in SIZES:
    x = rng.normal(size=(size, 4)).astype(np.float32)
    yield x, (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0)


def plain(epoch):
  return batches(epoch)


class Stateful:
  """An iterator with a state, as those of grain, that cannot be skipped in: it counts its items."""

  read = 0

  def __init__(self, epoch):
    self.items = list(batches(epoch))
    self.at = 0

  def __iter__(self):
    return self

  def __next__(self):
    if self.at == len(self.items):
      raise StopIteration
    self.at += 1
    Stateful.read += 1
    return self.items[self.at - 1]

  def get_state(self):
    return f'{self.at}'.encode()

  def set_state(self, state):
    self.at = int(state)


class Loader:
  """An iterable with a state, as those of torchdata."""

  def __init__(self, epoch):
    self.items, self.at = list(batches(epoch)), 0

  def __iter__(self):
    while self.at < len(self.items):
      self.at += 1
      yield self.items[self.at - 1]
    self.at = 0

  def state_dict(self):
    return {'at': np.int64(self.at), 'rest': [None, (1, 2.5)]}

  def load_state_dict(self, state):
    assert state['rest'] == [None, (1, 2.5)]
    self.at = int(state['at'])


def singles(epoch):
  for x, y in batches(epoch):
    yield from zip(x, y)


TEST = next(batches(99))
KINDS = {'plain': (plain, True), 'stateful': (Stateful, True), 'loader': (Loader, True)}
KINDS['singles'] = (singles, False)


def made(make=plain, batched=True, **options):
  options = {'task': 'classification', 'num_outputs': 3, 'num_examples': 21} | options
  return data.from_iterator(make, test=TEST, batched=batched, **options)


def in_order(count):
  """The examples in their order, joined by hand."""
  parts = [part for epoch in range(count // 21 + 1) for part in batches(epoch)]
  return tuple(np.concatenate(leaves)[:count] for leaves in zip(*parts))


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [1, 5, 8, 13, 50])
def test_examples_come_in_order_and_go_on_from_any_place(kind, size):
  make, batched = KINDS[kind]
  source = made(make, batched).train.source
  stream = Stream(source)
  read, expected = [], in_order(100)
  for _ in range(100 // size):
    read.append(stream.take(size))
    again = Stream(source)
    again.restore(stream.place(stream.position))
    for both in (size, 3):
      x, y = again.take(both)
      begin = again.position - both
      assert_same((x, y), jax.tree.map(lambda a, i=begin, n=both: a[i : i + n], in_order(200)))
    stream.forget(stream.position)
  whole = tuple(np.concatenate(leaves) for leaves in zip(*read))
  assert_same(whole, tuple(a[: len(whole[0])] for a in expected))
  stream.seek(4)
  assert_same(stream.take(7), tuple(a[4:11] for a in expected))


def test_a_state_saves_reading():
  stream = Stream(made(Stateful).train.source)
  stream.take(60)
  place, before = stream.place(60), Stateful.read
  Stream(stream._source).restore(place)
  assert Stateful.read == before + 1


def test_a_state_that_is_refused():
  class Strict(Stateful):
    def set_state(self, state):
      raise ValueError('another\nsource')

  stream = made(Strict).train.stream()
  stream.take(10)
  with pytest.raises(UserError, match=r'refuses the state that it gave \(another source\): exp'):
    stream.restore(stream.place(10))


def test_states_are_json_values():
  state = {'a': b'\x00\xff', 'b': [1, None, 'x', (2.5, True)], 3: np.arange(4).reshape(2, 2)}
  again = decoded(encoded(state))
  assert again['b'] == state['b']
  assert again['a'] == state['a']
  np.testing.assert_array_equal(again[3], state[3])
  with pytest.raises(UserError, match='the state of the iterator has a set: expected bytes'):
    encoded({'a': {1, 2}}, 'rows')


def test_passes_and_seeds_are_given_to_what_takes_them():
  assert made(batches).train.stream(seed=3).take(8)[0][0, 0] != in_order(1)[0][0, 0]
  assert_same(
    made(lambda seed: batches(0, seed)).train.stream(3).take(3)[0], next(batches(0, 3))[0][:3]
  )
  whole = [*batches(0)]
  assert len(made(whole, num_examples=None).train) == 24  # of a length in batches
  x, y = made().train[np.array([20, 0])]
  assert_same((x, y), tuple(a[[20, 0]] for a in in_order(21)))


def test_pytrees_with_weights_and_splits_to_judge_by():
  def make():
    for x, y in batches(0):
      yield {'a': x, 'b': x[:, :2]}, Weighted(y, np.ones(len(y)))

  loaded = made(make, valid=make)
  assert len(loaded.valid) == 21
  x, y = loaded.train.stream().take(30)
  assert x['b'].shape == (30, 2)
  assert (y.weight.dtype, y.weight.shape) == (np.float32, (30,))


def spoilt(change):
  def make(epoch):
    for i, (x, y) in enumerate(batches(epoch)):
      yield change(x, y) if (i, epoch) == (1, 1) else (x, y)

  return make


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x, y: (x[:, :3], y), 'batch 1 of pass 1: an example of x [3] float32, y [] int32: exp'),
    (lambda x, y: (x.astype(np.float64), y), 'x [4] float64, y [] int32: expected x [4] float32, '),
    (lambda x, y: (x, y[1:]), 'batch 1 of pass 1: x [8, 4], y [7]: expected the examples along'),
    (lambda x, y: (x[:0], y[:0]), 'batch 1 of pass 1: x [0, 4], y [0]: expected'),
    (lambda x, y: (x, y, y), 'batch 1 of pass 1: 3 values: expected pairs (x, y); weights go into'),
    (lambda x, y: {'x': x, 'y': y}, 'batch 1 of pass 1: dict: expected pairs (x, y)'),
    (lambda x, y: (x * np.nan, y), 'batch 1 of pass 1: input nan in 8 of 8 examples'),
    (lambda x, y: (x, y + 3), 'batch 1 of pass 1: label '),
  ],
)
def test_bad_batches(change, message):
  stream = made(spoilt(change)).train.stream()
  stream.take(21 + 8)
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    stream.take(1)
  assert '\n' not in str(caught.value)


def once(epoch, iterator=iter([*batches(0)] * 2)):  # noqa: B008
  return iterator


def ends(epoch):
  return batches(0) if epoch < 1 else ()


@pytest.mark.parametrize(
  ('make', 'options', 'message'),
  [
    (
      batches(0),
      {},
      'make_train generator, which can be read once: expected a function that makes',
    ),
    (lambda: (), {}, 'pass 0 over the iterator gives nothing: expected some examples'),
    (lambda: 5, {}, 'int: expected an iterable of pairs (x, y)'),
    (5, {}, 'make_train of type int: expected a function or an iterable'),
    (lambda path: (), {}, 'a function of path: expected one of nothing, or of epoch and seed'),
    (plain, {'num_examples': None}, 'num_examples None of an iterable without a length: expected'),
    (plain, {'num_examples': 0}, 'num_examples 0: expected at least 1'),
    (singles, {}, 'x [4], y []: expected the examples along the first axis'),
    (plain, {'num_outputs': 2}, 'its first batch: label 2 in'),
  ],
)
def test_bad_iterators(make, options, message):
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    made(make, **options)
  assert '\n' not in str(caught.value)


def raises(epoch):
  for i, batch in enumerate(batches(epoch)):
    if (i, epoch) == (1, 1):
      raise OSError('cable\nis out')
    yield batch


def raises_at_once(epoch):
  return open('/nowhere') if epoch else batches(0)


def shrinks(epoch):
  return list(batches(epoch))[: 3 - epoch]


@pytest.mark.parametrize(
  ('make', 'options', 'message'),
  [
    (raises, {}, 'batch 1 of pass 1: the iterator raises OSError: cable is out; expected a pair'),
    (raises_at_once, {}, 'make_train, pass 1: the iterator raises FileNotFoundError: '),
    (
      plain,
      {'num_examples': 30},
      'pass 0 ends before batch 3, after 21 examples: expected num_examples 30',
    ),
    (
      shrinks,
      {'num_examples': 21},
      'pass 2 ends before batch 1, after 8 examples: expected num_examples 21',
    ),
    (
      singles,
      {'num_examples': 22, 'batched': False},
      'pass 0 ends before batch 1, after 21 examples: e',
    ),
  ],
)
def test_iterators_that_raise_or_give_less_than_promised(make, options, message):
  stream = made(make, **options).train.stream()
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    stream.take(100)
  assert '\n' not in str(caught.value)
  assert str(caught.value).startswith('iterator, make_train')


def test_a_last_batch_that_is_dropped_is_said_once(caplog):
  stream = made(num_examples=25).train.stream()  # 21, the last batch of 5
  stream.take(20)
  again = Stream(stream._source)
  again.restore(stream.place(20))
  again.take(30)
  (record,) = caplog.records
  assert 'pass 0 ends before batch 3, after 21 examples: expected num_examples 25' in record.message
  caplog.clear()
  made([*batches(0)], num_examples=None).train.stream().take(50)  # 24 by its length
  assert not caplog.records


def test_iterators_that_end_early_or_change():
  for make in (ends, once):
    with pytest.raises(UserError, match=r'pass \d over the iterator gives nothing'):
      made(make).train.stream().take(100)
  rng = np.random.default_rng(0)
  stream = made(lambda: batches(rng.integers(100))).train.stream()
  stream.take(10)
  with pytest.raises(UserError, match='batch 1 of pass 0 is another than when it was left: exp'):
    Stream(stream._source).restore(stream.place(10))


MODEL = MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
RECIPE = Recipe(MODEL, 'classification', optax.adam(0.01))


def trainer(train, *, devices=1, chunk_steps=4, state=None, batch_size=4, shared=False):
  sampler = make_sampler('sandwich', 2, 2)
  placement = Placement(make_mesh(2, batch_size, jax.devices()[:devices]), chunk_steps=chunk_steps)
  options = {'batch_size': batch_size, 'seed': 0, 'shared_batch': shared}
  return Trainer(RECIPE, train, sampler, placement=placement, state=state, **options)


def pool_of(trainer):
  return jax.tree.map(np.asarray, trainer.variables)


@pytest.mark.parametrize('kind', KINDS)
def test_training_goes_on_to_the_bit(kind):
  train = made(*KINDS[kind]).train
  whole = trainer(train)
  whole.run(11)
  first = trainer(train)
  first.run(3)
  first.run(4)
  state, place = jax.tree.map(np.asarray, first.state), first.place_in_data()
  again = trainer(train, chunk_steps=3, state=state)
  again.go_on_from(place)
  again.run(4)
  assert_same(pool_of(whole), pool_of(again))
  first.run(4)
  assert_same(pool_of(whole), pool_of(first))


@pytest.mark.parametrize('shared', [False, True])
def test_many_devices_train_as_one(shared):
  train = made().train
  one, many = (trainer(train, devices=devices, shared=shared) for devices in (1, 4))
  losses = [t.run(6)['loss'] for t in (one, many)]
  np.testing.assert_allclose(*losses, rtol=1e-5, atol=1e-6)
  # A set in memory of the same examples in the same order gives the same.
  rows = 1 if shared else 2
  x, y = in_order(12 * rows * 4)
  far = SourceSplit(len(y), lambda i: (x[i], y[i]))
  numbered = trainer(far, shared=shared)
  numbered._feed._reader.order.indices = lambda start, count: np.arange(len(y)).reshape(12, -1)[
    start : start + count
  ]
  np.testing.assert_array_equal(numbered.run(6)['loss'], losses[0])


def test_the_next_chunk_is_read_while_one_runs_and_no_more():
  read, threads = [], set()
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(64, 4)).astype(np.float32), np.arange(64, dtype=np.int32) % 3

  def gather(indices):
    read.append(len(indices))
    threads.add(threading.current_thread().name)
    return x[indices], y[indices]

  far = trainer(SourceSplit(64, gather))
  read.clear()
  far.last_step = 10
  far.run(4)
  far._feed._task.join()
  assert read == [32, 32]  # two chunks of 4 steps, 2 slots, 4 examples
  far.run(6)
  assert read == [32, 32, 16]
  assert far._feed._task is None
  assert 'additive_jax reads ahead' in threads
  near = trainer(data.ArraySplit(x, y))
  near.run(4)
  near.run(6)
  assert near._feed._task is None
  assert_same(pool_of(near), pool_of(far))


def test_what_reading_raises_comes_as_it_is():
  class Odd(Exception):
    pass

  count = [0]

  def gather(indices):
    if len(indices) > 1:
      count[0] += 1
    if count[0] == 2:
      raise Odd('cable')
    return np.zeros((len(indices), 4), np.float32), np.zeros(len(indices), np.int32)

  far = trainer(SourceSplit(64, gather))
  far.run(4)
  with pytest.raises(Odd, match='cable'):
    far.run(4)
  assert far.step == 4
  far.run(4)  # what was a passing fault is one no more
  assert far.step == 8


def test_a_trainer_that_goes_leaves_no_thread():
  def slow(indices):
    if len(indices) > 1:
      time.sleep(0.2)
    return np.zeros((len(indices), 4), np.float32), np.zeros(len(indices), np.int32)

  far = trainer(SourceSplit(64, slow))
  far.run(4)
  del far
  time.sleep(0.5)
  names = [thread.name for thread in threading.enumerate()]
  assert 'additive_jax reads ahead' not in names


def iris():
  whole = data.load('tabular:iris', valid=0.0)

  def make(epoch, seed):
    order = np.random.default_rng([epoch, seed]).permutation(120)
    for start in range(0, 120, 50):
      yield whole.train[order[start : start + 50]]

  return whole, make


@pytest.fixture(autouse=True)
def programs(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


def run(experiment, workdir, loaded, options=()):
  config = tiny.config(experiment, {'num_seeds': 1, 'train.checkpoint_every': 5} | dict(options))
  return STUDIES[experiment].run(config, workdir, data=loaded, devices=2)


COTRAIN = {'structures': ('111', '101')}


class StopAt:
  """Asks a run to stop when its iterator has given some batches."""

  def __init__(self, make, count):
    self.make, self.left = make, count

  def __call__(self, epoch, seed):
    for batch in self.make(epoch, seed):
      self.left -= 1
      if self.left == 0:
        os.kill(os.getpid(), signal.SIGTERM)
      yield batch


def test_a_run_over_an_iterator_goes_on_to_the_bit(tmp_path):
  whole, make = iris()
  of = lambda make: data.from_iterator(
    make, test=whole.test, task='classification', num_outputs=3, num_examples=120
  )
  result = run('cotrain', tmp_path / 'whole', of(make), COTRAIN)
  stops, again = 0, None
  for count in (10, 14, 1000):
    try:
      again = run('cotrain', tmp_path / 'parts', of(StopAt(make, count)), COTRAIN)
    except Stopped:
      stops += 1
  assert stops == 2
  for name, table in result.tables.items():
    pd.testing.assert_frame_equal(table, again.tables[name])
  metrics = [(tmp_path / part / 'metrics.jsonl').read_text() for part in ('whole', 'parts')]
  curves = [sorted(json.loads(line)['loss'] for line in text.splitlines()) for text in metrics]
  assert curves[0] == curves[1]


SHARED = {'sweep.modes': ('shared',)}


def test_a_run_over_a_grain_pipeline_goes_on_from_its_state(tmp_path):
  """One that breaks off is as one that is killed: it goes on from its last checkpoint."""
  grain = pytest.importorskip('grain')
  whole, _ = iris()
  rows = [*zip(*whole.train[np.arange(120)])]
  seen = []

  def pipeline(last):
    def look(row):
      seen.append(row)
      if len(seen) == last:
        raise OSError('cable')
      return row

    def make(epoch, seed):
      order = grain.MapDataset.source(rows).seed(1000 * seed + epoch).shuffle()
      # Without threads that read ahead, what is read is what is used.
      options = grain.ReadOptions(num_threads=0)
      return order.map(look).batch(50).to_iter_dataset(options)

    seen.clear()
    options = {'test': whole.test, 'task': 'classification', 'num_outputs': 3}
    return data.from_iterator(make, num_examples=120, **options)

  place = pipeline(0).train.stream()
  place.take(60)
  assert 'state' in place.place(60)
  result = run('sweep', tmp_path / 'whole', pipeline(0), SHARED)
  count = len(seen)
  with pytest.raises(UserError, match=r'batch \d of pass \d: the iterator raises .*cable'):
    run('sweep', tmp_path / 'parts', pipeline(count - 50), SHARED)
  again = run('sweep', tmp_path / 'parts', pipeline(0), SHARED)
  assert len(seen) < count - 100  # by its state, and not by reading all anew
  for name, table in result.tables.items():
    pd.testing.assert_frame_equal(table, again.tables[name])


@pytest.mark.slow
def test_experiments_over_an_iterator(tmp_path):
  whole, make = iris()
  loaded = data.from_iterator(
    make, test=whole.test, task='classification', num_outputs=3, num_examples=120
  )
  assert len(run('sweep', tmp_path / 'sweep', loaded, SHARED).table) == 8
  with pytest.raises(
    UserError, match=r'iterator: expected arrays in memory, or config\.sweep\.mod'
  ):
    run('sweep', tmp_path / 'alone', loaded)
  for experiment in ('booster', 'compress'):
    with pytest.raises(UserError, match='is read from an iterator: expected arrays in memory'):
      run(experiment, tmp_path / experiment, loaded, BASES[experiment])


@pytest.mark.thorough
def test_exp_3_over_an_iterator(tmp_path):
  whole, make = iris()
  loaded = data.from_iterator(
    make, test=whole.test, task='classification', num_outputs=3, num_examples=120
  )
  run('stochastic', tmp_path / 'stochastic', loaded, {'train.structures_per_step': 1})
