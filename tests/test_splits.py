"""Three splits: what is held out, what chooses on it, and data of one's own arrays."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import tiny

import additive_jax as aj
from additive_jax import UserError
from additive_jax.data import ArraySplit, Data, SourceSplit, Weighted, from_arrays, hold_out
from additive_jax.data.digests import digest
from additive_jax.experiments import cotrain, sweep
from additive_jax.experiments.network import make_model
from additive_jax.experiments.opening import as_begun
from additive_jax.experiments.options import ModelOptions, Options
from additive_jax.experiments.pools import open_pools
from additive_jax.files.journal import Journal
from additive_jax.models import MLP
from additive_jax.run.tasks import Task

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(80, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32) + (X[:, 1] > 0)
MODEL = MLP(3, 8, 8, 3)


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


def data_of(share, in_memory=True):
  train = ArraySplit(X[:60], np.arange(60))
  train = train if in_memory else SourceSplit(60, train.__getitem__)
  data = Data('rows', 'own', train, ArraySplit(X[60:], np.arange(60, 80)), 80)
  return hold_out(data, share)


@pytest.mark.parametrize('in_memory', [True, False])
@pytest.mark.parametrize(('share', 'count'), [(-1.0, 12), (0.5, 30), (0.02, 1)])
def test_the_last_training_examples_are_held_out(share, count, in_memory):
  data = data_of(share, in_memory)
  places = lambda split: split[np.arange(len(split))][1].tolist()
  assert places(data.train) == list(range(60 - count))
  assert places(data.valid) == list(range(60 - count, 60))
  assert places(data.test) == list(range(60, 80))


def test_what_may_be_held_out():
  assert data_of(0.0).valid is None
  assert len(aj.data.load('digits').valid) == 287
  own = dataclasses.replace(data_of(0.0), valid=ArraySplit(X[:3], np.zeros(3)))
  assert len(hold_out(own).valid) == 3  # the source's own
  assert hold_out(own, 0.0).valid is None
  assert len(hold_out(own, 0.1).valid) == 6
  for share, words in (
    (1.0, 'valid 1.0: expected -1'),
    (-0.5, 'valid -0.5: expected -1'),
    (0.001, 'a share of 0.001 of the 60 training examples of rows holds out 0'),
  ):
    with pytest.raises(UserError, match=words.replace('-1', '.1')):
      data_of(share)


OPTIONS = {'num_seeds': 1, 'train.batch_size': 8, 'train.epochs': 2.0, 'sweep.shared_epochs': 2.0}


def labelled(name='rows', scale=1.0):
  """Data whose validation labels are those of the test split turned around."""
  valid = ArraySplit(X[40:60], 2 - Y[40:60])
  train, test = ArraySplit(scale * X[:40], Y[:40]), ArraySplit(X[60:], Y[60:])
  return Data(name, 'classification', train, test, 3, valid=valid)


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  folder = tmp_path_factory.mktemp('swept')
  options = OPTIONS | {'sweep.modes': ('shared',), 'sweep.top_k': 2}
  config = tiny.config('sweep', options)
  return sweep.run(config, folder, model=MODEL, data=labelled()), folder, config


def test_a_sweep_chooses_on_valid_and_reports_on_test(swept):
  result, folder, _ = swept
  table, summary = result.table, result.summary
  assert (table['loss'].diff()[1:] >= 0).all()
  assert not (table['test_loss'].diff()[1:] >= 0).all()
  assert summary['best_loss'] == table['test_loss'][0]
  assert summary['best_valid_loss'] == table['loss'][0]
  assert (summary['chosen_on'], summary['reported_on']) == ('valid', 'test')
  page = (folder / 'report.html').read_text()
  assert 'Validation loss by rank' in page
  assert 'structures are ranked by loss, on the validation split' in page


def test_alone_and_shared_are_compared_on_valid(tmp_path):
  options = OPTIONS | {'sweep.top_k': 2, 'sweep.halving': 2, 'sweep.rungs': 2}
  result = sweep.run(tiny.config('sweep', options), tmp_path, model=MODEL, data=labelled())
  lines = list(Journal(tmp_path / 'journals' / 'sweep.jsonl').sound())
  first = {line['structure']: line['loss'] for line in lines if line.get('rung') == 0}
  kept = {line['structure'] for line in lines if line.get('rung') == 1}
  assert kept == set(sorted(first, key=first.get)[:4])
  table = result.table
  assert table['test_loss'].notna().all()
  assert np.corrcoef(table['loss'], table['test_loss'])[0, 1] < 0.9
  assert result.summary['best_loss'] == table['test_loss'][0]


def test_a_search_is_tested_once(tmp_path, monkeypatch):
  monkeypatch.setattr('additive_jax.experiments.shared.MOST_TESTED', 3)
  options = OPTIONS | {'sweep.modes': ('shared',), 'sweep.top_k': 2}
  options |= {'search.method': 'random', 'search.budget': 6, 'search.population': 2}
  result = sweep.run(tiny.config('sweep', options), tmp_path, model=MODEL, data=labelled())
  table = result.table
  tested = table[table['test_loss'].notna()]
  assert {0, 1} <= set(tested.index)
  assert 2 <= len(tested) <= 3
  assert len(list(Journal(tmp_path / 'journals' / 'tested.jsonl').sound())) == 1


@pytest.mark.slow
def test_cotraining_chooses_on_valid(tmp_path, swept):
  options = OPTIONS | {'cotrain.top_k': 2, 'structures_from': str(swept[1])}
  result = cotrain.run(tiny.config('cotrain', options), tmp_path, model=MODEL, data=labelled())
  assert set(result.table['structure']) == set(swept[0].table['structure'][:2])
  assert (result.table['valid_loss'].diff()[1:] >= 0).all()


def test_a_directory_belongs_to_its_data(swept):
  _, folder, config = swept
  stored = json.loads((folder / 'config.json').read_text())['data']
  assert len(stored['digest']) == 16
  assert len(sweep.run(config, folder, model=MODEL, data=labelled()).table) == 8  # the same run
  with pytest.raises(UserError, match=r'holds a run of another config: data.digest: "\w+" there, '):
    sweep.run(config, folder, model=MODEL, data=labelled(scale=2.0))


def test_a_run_of_before_goes_on_without(tmp_path):
  options = OPTIONS | {'sweep.modes': ('shared',)}
  before = sweep.run(tiny.config('sweep', options), tmp_path)  # config.data.valid 0.0
  assert 'valid' not in json.loads((tmp_path / 'config.json').read_text())['data']
  assert before.summary['chosen_on'] == 'test'
  assert 'test_loss' not in before.table
  again = sweep.run(tiny.config('sweep', options | {'data.valid': -1.0}), tmp_path)
  pd.testing.assert_frame_equal(again.table, before.table)
  assert open_pools(tmp_path).data.valid is None


def test_arrays_become_data():
  data = from_arrays(X, Y, weights=np.arange(80.0))
  assert (len(data.train), len(data.valid), len(data.test)) == (56, 8, 16)
  rows = np.concatenate([split.x for split in data.splits.values()])
  assert len(np.unique(rows, axis=0)) == 80
  weights = np.concatenate([split.y.weight for split in data.splits.values()])
  assert sorted(weights.tolist()) == list(range(80))
  for split in data.splits.values():
    place = split.y.weight.astype(int)
    np.testing.assert_array_equal(split.x, X[place])
    np.testing.assert_array_equal(split.y.y, Y[place])
  in_order = from_arrays(X, Y, seed=None, valid=0.0)
  np.testing.assert_array_equal(in_order.train.x, X[:64])
  np.testing.assert_array_equal(in_order.test.x, X[64:])
  assert in_order.valid is None
  given = from_arrays(X, Y, valid=(X[:3], Y[:3]), test=(X[:5], Weighted(Y[:5], np.ones(5))))
  assert (len(given.train), len(given.valid), len(given.test)) == (80, 3, 5)
  pairs = from_arrays({'a': X, 'b': Y}, Y, class_names=['low', 'middle', 'high'])
  assert pairs.example_shape == {'a': (4,), 'b': ()}
  assert pairs.num_outputs == 3


def test_the_task_goes_by_the_targets():
  words = np.array(['cat', 'ant', 'bee'])[Y]
  texts = from_arrays(X, words)
  assert texts.class_names == ('ant', 'bee', 'cat')
  assert texts.coding.decoded(np.eye(3)).tolist() == ['ant', 'bee', 'cat']
  assert from_arrays(X, Y > 0).num_outputs == 2
  tokens = from_arrays(Y.reshape(20, 4), Y.reshape(20, 4))
  assert (tokens.task, tokens.num_outputs) == ('language', 3)
  price = 1000 + 200 * X[:, 0]
  data = from_arrays(X, price, seed=None)
  assert data.task == 'regression'
  assert abs(data.train.y.std() - 1) < 1e-5
  np.testing.assert_allclose(data.coding.decoded(data.test.y)[:, 0], price[64:], rtol=1e-5)
  plain = from_arrays(X, price, seed=None, standardise=False)
  np.testing.assert_allclose(plain.test.y[:, 0], price[64:])
  own = from_arrays(X, {'a': Y, 'b': X}, task='own', num_outputs=7)
  assert (own.task, own.num_outputs) == ('own', 7)


def spoilt(values, place, value):
  values = np.array(values)
  values[place] = value
  return values


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    ((X, Y[:79]), {}, 'arrays: x of shape [80, 4] and y of shape [79]: expected as many examples'),
    (
      (spoilt(X, (7, 2), np.nan), Y),
      {},
      'input nan in 1 of 80 examples, the first at [7, 2]',
    ),
    ((X, spoilt(Y, 7, -1)), {}, 'arrays: label -1 in 1 of 80 examples, the first in example 7'),
    (
      (X, spoilt(X, (9, 1), np.inf)),
      {},
      'target inf in 1 of 80 examples, the first at [9, 1]',
    ),
    (
      (X, Y),
      {'weights': spoilt(np.ones(80), 5, -1)},
      'weight -1.0 in 1 of 80 examples, the f',
    ),
    ((X, Y), {'class_names': ['a', 'b']}, 'label 2 in '),
    (
      (X, spoilt(Y, 7, 255)),
      {},
      'example 7: expected 0 to 2, for no example has the label 3; where 255 means no class, a',
    ),
    ((X, 0 * X[:, :1] + 3.0), {}, 'target 0 is 3.0 in all 56 training examples: expected one that'),
    ((X, Y), {'test': 0.0}, 'test 0.0 of arrays: expected a share above 0 and below 1, or (x, y)'),
    ((X, Y), {'valid': 1.5}, 'valid 1.5 of arrays: expected a share from 0 and below 1, or (x, y)'),
    ((X, Y), {'test': 0.001}, 'test 0.001 of the 80 examples of arrays is none: expected at least'),
    (
      (X, Y),
      {'test': 0.6, 'valid': 0.4},
      'test 0.6 and valid 0.4 of the 80 examples of arrays l',
    ),
    ((X, Y), {'test': (X[:0], Y[:0])}, 'arrays, test: no examples: expected at least one'),
    ((X, Y), {'valid': (X, Y, Y)}, 'arrays, valid: 3 parts: expected a share, or a pair (x, y)'),
    ((X, Y), {'test': (X[:, :2], Y)}, 'arrays, test: x [2]: expected x [4], as in train'),
    ((X, 0 * Y), {}, 'arrays: every label is 0: expected at least two classes'),
    (
      (X, 0 * Y - 1),
      {'task': Task('classification', ignore_label=-1)},
      'arrays: every label is -1, which is ignored: expected some',
    ),
    ((X, np.zeros((80, 2, 2))), {}, 'y float64 [80, 2, 2]: expected labels [N], floats [N] or'),
  ],
)
def test_arrays_that_make_no_data(arguments, options, message):
  with pytest.raises(UserError) as caught:
    from_arrays(*arguments, **options)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_a_task_of_python_has_the_same_digest_in_every_process():
  x, y = np.zeros((4, 2), np.float32), np.arange(4, dtype=np.int32)
  split = ArraySplit(x, y)
  digests = {
    digest(Data('rows', Task('classification', loss=loss), split, split, 4))
    for loss in ('', lambda outputs, y: outputs.sum(-1))
  }
  assert '86c7804bf4873d45' in digests  # of another process
  assert len(digests) == 2


def test_tags_of_tokens():
  """The vocabulary of x is not that of y, and messages name the caller's rows."""
  x = np.arange(240).reshape(40, 6) % 100
  data = from_arrays(x, x % 5, num_outputs=5)
  assert (data.num_outputs, data.num_tokens) == (5, 100)
  assert from_arrays(x, x % 5).num_outputs == 100
  model = make_model(ModelOptions(name='transformer', num_blocks=1, hidden=(8,)), data)
  assert (model.num_tokens, model.num_classes) == (100, 5)
  with pytest.raises(UserError, match=r'token 5 in 1 of 40 .* at \[7, 3\]: expected 0 to 4'):
    from_arrays(x, spoilt(x % 5, (7, 3), 5), num_outputs=5)
  with pytest.raises(UserError, match=r'x: token -1 in 1 of 40 .* at \[7, 3\]'):
    from_arrays(spoilt(x, (7, 3), -1), x % 5, num_outputs=5)


RAGGED = [[1, 2], [3]] * 40


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    ((RAGGED, Y), {}, 'x: lists of different lengths, of 1 to 2: expected one length; pad'),
    ((X, RAGGED), {}, 'y: lists of different lengths, of 1 to 2: expected one length; pad'),
    ((X, Y), {'weights': RAGGED}, 'weights: lists of different lengths, of 1 to 2'),
    (([np.ones(1 + i % 3) for i in range(80)], Y), {}, 'of each; a list of arrays is several in'),
    ((X, Y), {'task': 'clasification'}, "multi_label; did you mean 'classification'?"),
    ((X + 1j, Y), {}, ': expected real numbers'),
    ((X, Y[:, None]), {}, ' [80, 1]: expected labels [N], as in y[:, 0], floats'),
    (
      (X, Y[:, None]),
      {'task': 'classification'},
      'arrays: targets of shape [80, 1]: expected [examples]; y[:, 0] has them',
    ),
    (
      (X, Y),
      {'weights': np.abs(np.arange(80) - 60) > 4, 'seed': None},
      'arrays, valid: weights that are all 0',
    ),
  ],
)
def test_what_is_told_at_once(arguments, options, message):
  with pytest.raises(UserError) as caught:
    from_arrays(*arguments, **options)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('stored', 'every'), [(50, 50), (10, 0), (None, 0)])
def test_curves_of_earlier_versions_go_on_with_as_many_points(tmp_path, stored, every):
  """One that was begun with other steps is another run, which the directory refuses."""
  text = json.dumps({'data': {'valid': -1.0}, 'train': {'log_every': stored}})
  (tmp_path / 'config.json').write_text(text)
  assert as_begun(Options(), tmp_path).train.log_every == every
