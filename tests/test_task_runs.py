"""Runs with losses and metrics other than those of a classification."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from additive_jax import MeanMetric, Task, UserError
from additive_jax.data import Data, load
from additive_jax.experiments import cotrain, sweep
from additive_jax.experiments.options import Options, TaskOptions
from additive_jax.experiments.task import make_task
from additive_jax.search.generations import of_earlier

REGRESSION = {
  'num_seeds': 1,
  'data.name': 'tabular:diabetes',
  'train.epochs': 0.5,
  'sweep.shared_epochs': 0.5,
  'task.loss': 'huber',
  'task.rank_by': 'r2',
}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  folder = tmp_path_factory.mktemp('regression') / 'run'
  return sweep.run(tiny.config('sweep', REGRESSION), folder, devices=1), folder


def test_a_sweep_ranks_by_r2_and_calls_it_so(swept):
  (result, folder), first = swept, ['structure', 'loss', 'r2', 'mae', 'loss_ci95', 'flops']
  table = result.table
  assert list(table)[:6] == first
  assert (np.diff(table['r2']) <= 0).all()
  assert result.summary['best_r2'] == table['r2'].max()
  assert result.summary['best_structure'] == table['structure'][0]
  assert (np.argsort(-table['shared_r2']) == np.argsort(table['shared_rank'])).all()
  told = [(folder / name).read_text() for name in ('structures.csv', 'summary.json')]
  told += [path.read_text() for path in (folder / 'journals').iterdir()]
  assert not any('accuracy' in text for text in told)
  page = (folder / 'report.html').read_text()
  assert 'its test R²' in page
  assert 'targets are standardised, an error of 1 is ' in page
  assert list(result.summary['target_units']) == ['target']
  assert 'accuracy' not in page


def test_a_run_of_an_earlier_version_goes_on(swept, tmp_path):
  """Its journals call the metric accuracy."""
  result, folder = swept
  (tmp_path / 'journals').mkdir()
  (tmp_path / 'config.json').write_bytes((folder / 'config.json').read_bytes())
  for path in (folder / 'journals').glob('sweep.jsonl'):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
      line['accuracy'] = line.pop('r2')
      del line['mae'], line['crc']
    text = '\n'.join(json.dumps(line) for line in lines) + '\n'
    (tmp_path / 'journals' / path.name).write_text(text)
  again = sweep.run(tiny.config('sweep', REGRESSION), tmp_path, devices=1)
  assert again.table['r2'].tolist() == result.table['r2'].tolist()
  assert again.table['mae'].isna().all()


def test_scores_of_earlier_versions():
  line = {'loss': [0.5], 'accuracy': [0.5], 'train_accuracy': 0.25, 'pool': {'accuracy': 1.0}}
  assert of_earlier(line, ('loss', 'accuracy')) == line
  read = of_earlier(line, ('loss', 'r2', 'mae'))
  assert (read['r2'], read['train_r2'], read['pool']['r2']) == ([0.5], 0.25, 1.0)
  assert np.isnan(read['mae'][0])


def test_an_own_loss_and_metric_of_exp_2(tmp_path):
  """Chosen, trained and judged by them; another loss is another run."""

  def close(outputs, y):
    return jnp.abs(outputs - y) < 0.5

  def cubes(outputs, y):
    return jnp.abs(outputs - y) ** 3

  def fourths(outputs, y):
    return (outputs - y) ** 4

  options = REGRESSION | {'task.loss': '', 'task.rank_by': 'near', 'cotrain.sweep_epochs': 0.5}
  config = tiny.config('cotrain', options | {'train.structures_per_step': 2})
  given = {'loss': cubes, 'metrics': [MeanMetric(close, 'near')], 'devices': 1}
  result = cotrain.run(config, tmp_path, **given)
  assert list(result.table)[:3] == ['structure', 'loss', 'near']
  assert (np.diff(result.table['near']) <= 0).all()
  assert result.summary['ensemble_near'] >= 0
  with pytest.raises(UserError, match=r'task\.is\.loss: "cubes" there, "fourths" here'):
    cotrain.run(config, tmp_path, **given | {'loss': fourths})


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'metrics': ('r3',)}, r"config.task.metrics \('r3',\): metric 'r3' of a classification: exp"),
    ({'metrics': ('r2',)}, r"config.task.metrics \('r2',\): metric 'r2' of a classification: exp"),
    ({'loss': 'squared'}, "config.task.loss 'squared' of a classification: expected one of"),
    ({'loss': 'hinge'}, "config.task.loss 'hinge': expected one of '', cross_entropy, sigmoid"),
    ({'rank_by': 'f1'}, "config.task.rank_by 'f1': expected one of loss, accuracy"),
    ({'label_smoothing': 1.0}, r'config.task.label_smoothing 1.0: expected a share in \[0, 1\)'),
    ({'class_weights': (1.0,)}, r'config.task.class_weights \(1.0,\): expected 3 numbers, one for'),
    ({'class_weights': (-1.0,)}, r'config.task.class_weights \(-1.0,\): expected numbers from 0'),
    (
      {'ignore_label': 'none'},
      "config.task.ignore_label 'none': expected an integer as text, such",
    ),
  ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
  config = tiny.config('sweep', {f'task.{name}': value for name, value in options.items()})
  with pytest.raises(UserError, match=f'^{message}') as error:
    sweep.run(config, tmp_path / 'run', devices=1)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_the_task_of_a_run():
  iris, weights = load('tabular:iris'), (1.0, 2.0, 0.5)
  options = TaskOptions(class_weights=weights, ignore_label='2', metrics=('top2',), rank_by='top2')
  task = make_task(Options(task=options), iris)
  assert (task.class_weights, task.ignore_label, task.scores) == (weights, 2, ('loss', 'top2'))
  own = Data('own', 'segmentation', iris.train, iris.test, 3)
  with pytest.raises(UserError, match="task 'segmentation': expected one of classification, lang"):
    make_task(Options(), own)
  assert make_task(Options(), own, loss=abs).name == ''
  own = Data('own', Task('classification', metrics=['top2']), iris.train, iris.test, 3)
  assert make_task(Options(), own).headline == 'top2'
