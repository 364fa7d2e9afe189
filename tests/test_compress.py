"""Compression runs: what they leave at every level, and going on after a kill."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import studies
import tiny

from additive_jax.compress.levels import BINS
from additive_jax.experiments import compress
from additive_jax.experiments.pools import open_pools
from additive_jax.export import load, main
from additive_jax.report import figures

OPTIONS = studies.CASES['compress'].options | {'compress.sparsities': ()}
LEVELS = {
  'weight': {'compress.sparsities': (0.6,)},
  # In so few steps noise grows nearly alike everywhere.
  'unit': {'compress.kl': 30.0, 'compress.log_variance': 0.0, 'compress.threshold': 2.4},
  'gate': {
    'model.name': 'mlp',
    'model.gates': ('residual',),
    'model.num_blocks': 2,
    'model.width': 8,
    'model.hidden': (8,),
    'compress.kl': 20.0,
    'compress.tune_epochs': 0.0,
    'compress.variance_rate': 100.0,
  },
}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


def config(level, more=()):
  chosen = OPTIONS | LEVELS.get(level, {}) | {'compress.level': level} | dict(more)
  return tiny.config('compress', chosen)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return studies.finished('compress', tmp_path_factory)


@pytest.mark.slow
def test_weights(weights):
  """The tables count what the networks have, and the summary says what the tables say."""
  result, workdir = weights
  rows = result.variants.set_index('variant')
  names = ['start', 'dense', 'variational_untuned', 'variational', 'magnitude_matched']
  assert [*rows.index] == [*names, 'magnitude_0.6']
  every = 64 * 12 + 12 * 8 + 8 * 10
  assert (rows['weights'] == every).all()
  left = rows.loc['variational', 'nonzero']
  assert 0 < left < every
  assert rows.loc['variational', 'factor'] == pytest.approx(every / left)
  # A weight that is trained may pass through zero, but not end on it.
  assert rows.loc['variational_untuned', 'nonzero'] == left
  assert rows.loc['magnitude_matched', 'nonzero'] == left
  assert rows.loc['magnitude_0.6', 'nonzero'] == round(0.4 * every)
  lost = rows.loc['dense', 'accuracy'] - rows['accuracy']
  np.testing.assert_allclose(rows['accuracy_lost'], lost, atol=1e-12)
  assert (rows['receipt'] < 1e-4).all()
  layers = result.layers
  own = layers[layers['variant'] == 'variational']
  assert [*own['layer']] == ['fc1/kernel', 'fc2_out/fc2/kernel', 'fc2_out/out/kernel']
  assert own['left'].sum() == left
  assert own['of'].sum() == every
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['level'] == 'weight'
  assert summary['variants']['variational']['nonzero'] == left
  page = (workdir / 'report.html').read_text()
  for text in ('What it costs', 'What the noise tells', 'What is left', 'Training'):
    assert text in page
  record = json.loads((workdir / 'journals' / 'compress.jsonl').read_text().splitlines()[3])
  assert sum(record['histogram']) == every
  curves = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  shares = [line['kept'] for line in curves if 'kept' in line]
  assert shares[-1] == pytest.approx(left / every)
  assert len(set(shares)) > 2


@pytest.mark.slow
def test_units_are_cut_out(tmp_path):
  result = compress.run(config('unit'), tmp_path / 'run', devices=1)
  rows = result.variants.set_index('variant')
  assert rows.loc['variational', 'flops'] < 0.9 * rows.loc['dense', 'flops']
  assert rows.loc['variational', 'bytes'] < 0.9 * rows.loc['dense', 'bytes']
  assert rows.loc['variational', 'receipt'] < 1e-4
  same = rows.loc[['variational', 'magnitude_matched'], ['flops', 'nonzero']]
  np.testing.assert_array_equal(same.iloc[0], same.iloc[1])
  own = result.layers[result.layers['variant'] == 'variational'].set_index('layer')['left']
  fc1, fc2 = own['fc1'], own['fc2']
  assert rows.loc['variational', 'nonzero'] == 64 * fc1 + fc1 * fc2 + fc2 * 10
  # The run hands over what was cut out, and the export of the pool with zeros is the same network.
  folder = tmp_path / 'run' / 'exported'
  assert [path.name for path in folder.iterdir()] == ['variational-seed0']
  described = json.loads((folder / 'variational-seed0' / 'model.json').read_bytes())
  assert described['cost']['flops'] == rows.loc['variational', 'flops']
  assert described['receipt']['max_difference'] == rows.loc['variational', 'receipt']
  target = tmp_path / 'net'
  assert main(['export', str(tmp_path / 'run'), '--structure=1', f'--to={target}']) == 0
  assert json.loads((target / 'model.json').read_bytes())['checkpoint'] == 'variational-tuned-seed0'
  test = open_pools(tmp_path / 'run').data.test
  x, y = test[np.arange(len(test))]
  outputs = []
  for directory in (folder / 'variational-seed0', target):
    model, variables = load(directory)
    assert variables['params']['fc1']['kernel'].shape == (64, fc1)
    outputs.append(np.asarray(model.apply(variables, x)))
  np.testing.assert_array_equal(*outputs)
  assert np.mean(outputs[0].argmax(-1) == y) == rows.loc['variational', 'accuracy']


@pytest.mark.slow
def test_a_teacher(weights, tmp_path):
  """The dense one has no teacher; killed before the last of the others, the run goes on."""
  plain, _ = weights
  taught = {'compress.distill': 0.8, 'compress.temperature': 3.0, 'compress.teacher_epochs': 1.0}
  taught = config('weight', taught)
  result = compress.run(taught, tmp_path / 'run', devices=1)
  loss = [found.variants.set_index('variant')['loss'] for found in (plain, result)]
  for name in ('start', 'dense'):
    assert loss[0][name] == loss[1][name]
  for name in ('variational', 'magnitude_matched', 'magnitude_0.6'):
    assert loss[0][name] != loss[1][name]
  tiny.killed_copy(tmp_path / 'run', tmp_path / 'killed', 'compress.jsonl', 6, b'{"se')
  shutil.rmtree(tmp_path / 'killed' / 'checkpoints' / 'magnitude_0.6-seed0')
  compress.run(taught, tmp_path / 'killed', devices=1)
  for name in ('variants.csv', 'summary.json'):
    assert (tmp_path / 'killed' / name).read_bytes() == (tmp_path / 'run' / name).read_bytes()


@pytest.mark.thorough
def test_gates_are_cut_out(tmp_path):
  """Without tuning: the network that the noise leaves is the one that is cut out.

  By default units are, by the same code.
  """
  result = compress.run(config('gate'), tmp_path / 'run', devices=1)
  rows = result.variants.set_index('variant')
  assert 'variational_untuned' not in rows.index
  found = result.structures.set_index('variant')['structure']
  assert found['dense'] == '11'
  assert found['variational'] in ('01', '10')
  assert found['magnitude_matched'] in ('01', '10')
  assert rows.loc['variational', 'flops'] < rows.loc['dense', 'flops']
  assert rows.loc['variational', 'receipt'] < 1e-4
  again = compress.run(config('gate'), tmp_path / 'run', devices=1)  # finished: read back
  pd.testing.assert_frame_equal(again.variants, result.variants)


def test_pictures_cope_with_nothing():
  frame = pd.DataFrame(columns=['variant', 'layer', 'left', 'of', 'share', 'method', 'accuracy'])
  frame['factor'] = np.zeros(0)
  for figure in (
    figures.compression(frame, {'factor': 'times fewer'}),
    figures.log_alpha(BINS, {}, 3.0),
    figures.layers_left(frame),
  ):
    assert figure.axes
