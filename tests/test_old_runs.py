"""A run's directory of the version before the package was rooms is opened, continued and read.

`old_runs` says how the directories were made.
"""

import json
import logging

import golden_runs
import numpy as np
import old_runs
import optax
import pytest
import studies
import tiny

from additive_jax import UserError, run
from additive_jax.cli.configs import load_config
from additive_jax.experiments.cotrain import chosen_structures
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.pools import open_pools
from additive_jax.experiments.studies import STUDIES
from additive_jax.export import export_run, load
from additive_jax.files.journal import Journal
from additive_jax.gates.structure import all_bits
from additive_jax.run.evaluate import evaluate_structures

SLOW = ('cotrain', 'stochastic', 'experts', 'dna', 'booster', 'compress')  # to go on with
ROUNDING = 1e-6  # of a rank correlation
EXACT = 1e-5  # of losses and logits of about 1, in float32


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with studies.programs(tiny.programs(tmp_path_factory)):
    yield


def go_on(name, folder, workdir):
  """Gives the run's command again."""
  options, devices = old_runs.unpacked(name, folder)
  config = load_config('default')
  config.update_from_flattened_dict({'experiment': name, **options})
  return STUDIES[name].run(config, folder / workdir, devices=devices)


def numbers(workdir):
  """As of `golden_runs`, with curves in order of their names.

  The old code divided by the ceiling of seeds that disagree, which is 0 but for rounding.
  """
  found = json.loads(json.dumps(golden_runs.numbers(workdir)))
  ranking = found['summary.json'].get('shared_against_standalone', {})
  if ranking and ranking['tau_ceiling'] < ROUNDING:
    ranking['tau_over_ceiling'] = None
  found['metrics.jsonl'].sort(key=lambda line: (line['tag'], line['step']))
  return found


@pytest.mark.parametrize('name', old_runs.LINES)
def test_a_finished_run_says_so_and_changes_nothing(name, tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('additive_jax'), 'propagate', True)
  old_runs.unpacked(name, tmp_path)
  before = tiny.contents(tmp_path / 'finished')
  with caplog.at_level(logging.INFO, 'additive_jax'):
    result = go_on(name, tmp_path, 'finished')
  assert f'{tmp_path / "finished"} is finished' in caplog.messages[-1]
  assert {path: text for path, (text, _) in tiny.contents(tmp_path / 'finished').items()} == {
    path: text for path, (text, _) in before.items()
  }
  assert result.summary['experiment'] == name
  assert len(result.table) == len(numbers(tmp_path / 'finished')['structures.csv'])


@pytest.mark.parametrize(
  'name',
  [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in old_runs.LINES],
)
def test_a_stopped_run_goes_on_to_the_numbers_of_the_old_code(name, tmp_path):
  old_runs.unpacked(name, tmp_path)
  half, finished = tmp_path / 'half', tmp_path / 'finished'
  before, curves = old_runs.records(half), (half / 'metrics.jsonl').read_text().splitlines()
  assert 0 < len(before) < len(old_runs.records(finished))
  go_on(name, tmp_path, 'half')
  after = old_runs.records(half)
  assert set(before) <= set(after)
  assert len(after) == len(old_runs.records(finished))
  # What had been trained was not trained again: its curves have their times.
  # Checkpoints of embeddings are not kept.
  curves = [line for line in curves if '"tag": "embedding' not in line]
  assert set(curves) <= set((half / 'metrics.jsonl').read_text().splitlines())
  assert not list(golden_runs.differences(numbers(finished), numbers(half)))


def test_a_pool_of_an_old_sweep_is_read_and_exported(tmp_path):
  old_runs.unpacked('sweep', tmp_path)
  pools = open_pools(tmp_path / 'finished')
  test = pools.data.test[np.arange(len(pools.data.test))]
  name, saved = pools.read(test[0])
  assert (name, saved.step) == ('shared-seed0', 15)
  journal = Journal(tmp_path / 'finished' / 'journals' / 'shared-0-of-1.jsonl')
  (losses,) = [line['loss'] for line in journal.records() if line['seed'] == 0]
  found = evaluate_structures(pools.model, saved.variables, test, all_bits(3))
  np.testing.assert_allclose(found.loss, losses, atol=EXACT)

  small, variables = load(export_run(tmp_path / 'finished', '101', tmp_path / 'small'))
  logits = run.static(pools.model, saved.variables, test[0], '101')
  np.testing.assert_allclose(small.apply(variables, test[0]), logits, atol=EXACT)


def test_a_network_that_an_old_compression_exported_is_loaded(tmp_path):
  old_runs.unpacked('compress', tmp_path)
  small, variables = load(tmp_path / 'finished' / 'exported' / 'variational-seed0')
  test = open_pools(tmp_path / 'half').data.test
  x, y = test[np.arange(len(test))]
  logits = small.apply(variables, x)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
  rows = numbers(tmp_path / 'finished')['structures.csv']
  (expected,) = [float(row['loss']) for row in rows if row['variant'] == 'variational']
  assert abs(loss - expected) < EXACT


def test_an_old_sweep_says_what_to_train_together(tmp_path):
  old_runs.unpacked('sweep', tmp_path)
  config = tiny.config('cotrain', {'structures_from': str(tmp_path / 'finished')})
  with open_session(config, tmp_path / 'run', check=lambda session: None) as session:
    structures = chosen_structures(session)
  best = [row['structure'] for row in numbers(tmp_path / 'finished')['structures.csv']]
  assert [str(structure) for structure in structures] == best[:2]


def test_an_old_run_of_other_options_is_refused_by_name(tmp_path):
  options, devices = old_runs.unpacked('sweep', tmp_path)
  config = tiny.config('sweep', {**options, 'model.width': 16})
  with pytest.raises(UserError) as error:
    STUDIES['sweep'].run(config, tmp_path / 'half', devices=devices)
  assert str(tmp_path / 'half') in str(error.value)
  assert 'model.width: 8 there, 16 here' in str(error.value)
  assert str(error.value).endswith('choose another --workdir')
