"""What a run leaves out is said, in the log and in the report; a run that learnt nothing ends."""

import logging

import numpy as np
import pytest
import tiny

from additive_jax import UserError
from additive_jax.data import ArraySplit, Data
from additive_jax.experiments.arms import Arm
from additive_jax.experiments.left_out import LeftOut, check_scores, said
from additive_jax.experiments.options import replaced
from additive_jax.experiments.studies import STUDIES
from additive_jax.experiments.study import Study

# Finite numbers, of which a sum in the first layer is not.
LARGE = 3e38
ROWS = np.random.default_rng(0).normal(size=(48, 4)).astype(np.float32)


def data(share):
  """Iris-like rows, some of which overflow."""
  x = ROWS.copy()
  x[: round(share * len(x))] = LARGE
  y = np.arange(48) % 3
  return Data('rows', 'classification', ArraySplit(x, y), ArraySplit(ROWS, y), 3)


@pytest.fixture(scope='module', autouse=True)
def programs(tmp_path_factory):
  with tiny.cached_programs(tmp_path_factory.mktemp('programs')):
    yield


def stages(session, records):
  del records
  steps = session.training.steps(2)
  yield [
    Arm('pool', session, session.training.recipe(steps), session.training.sampler(steps), steps)
  ]


def run(study, share, path, **options):
  options = {'num_seeds': 1, 'train.batch_size': 4, 'train.structures_per_step': 2} | options
  return study.run(tiny.config('sweep', options), path, data=data(share), devices=1)


def test_some_slots_left_out(tmp_path, caplog):
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    run(Study('own', stages), 0.1, tmp_path / 'run')
  (line,) = {m for m in caplog.messages if 'left out' in m}
  assert line.startswith('pool-seed0: ')
  assert ' of 48 slots (' in line
  assert '%) were left out, for their loss, gradient or update was not finite' in line
  assert 'Left out, for their loss' in (tmp_path / 'run' / 'report.html').read_text()


@pytest.mark.parametrize(
  ('modes', 'name'), [('shared', 'shared-seed0'), ('standalone', 'alone, seed 0')]
)
def test_all_slots_left_out(tmp_path, modes, name):
  options = {'sweep.modes': (modes,), 'train.epochs': 2.0, 'sweep.shared_epochs': 2.0}
  for _ in range(2):  # the same command begins anew, and ends alike
    with pytest.raises(UserError) as caught:
      run(STUDIES['sweep'], 1.0, tmp_path / 'run', **options)
    text = str(caught.value)
    assert name in text
    assert 'were left out, for their loss, gradient or update was not finite: expected' in text
    assert '\n' not in text
    assert not list((tmp_path / 'run' / 'checkpoints').glob('*'))
    assert not (tmp_path / 'run' / 'summary.json').exists()


def test_a_network_whose_loss_is_not_finite(tmp_path):
  study = Study('own', lambda session, records: stages_judged(session, float('nan')))
  with pytest.raises(UserError, match='pool, seed 0: a test loss of nan: expected finite ones, as'):
    run(study, 0.0, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'journals' / 'own.jsonl').exists()


def stages_judged(session, loss):
  (arms,) = stages(session, None)
  yield [replaced(arms[0], {'judge': lambda trained: {'loss': loss}})]


def test_losses_of_a_pool(caplog):
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    check_scores('pool', 1, {'loss': [1.0, np.nan, np.inf]})
    check_scores('pool', 1, {'loss': [1.0, 2.0]})
    check_scores('pool', 1, {'accuracy': np.nan, 'alone': {'loss': [1.0]}})
  assert caplog.messages == ['pool, seed 1: the test loss of 2 of 3 structures is not finite']
  with pytest.raises(UserError, match='pool, seed 1: a test loss of inf: expected finite'):
    check_scores('pool', 1, {'loss': [np.inf, np.nan]})
  with pytest.raises(UserError, match='pool, alone, seed 1: a test loss of nan: expected finite'):
    check_scores('pool', 1, {'alone': {'loss': [np.nan]}})


def test_what_a_report_says_of_many():
  text = said([LeftOut(f'a-seed{i}', i + 1, 10) for i in range(7)])
  assert 'a-seed0: 1 of 10 slots (10 %); ' in text
  assert 'a-seed5' not in text
  assert '; and of 2 trainings more. What is shown' in text
