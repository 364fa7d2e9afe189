"""What a run says of itself: what it costs, of which split a loss is, what one seed cannot tell."""

import dataclasses
import io
import json
import logging
import re

import numpy as np
import pandas as pd
import pytest
import tiny

from additive_jax.errors import UserError
from additive_jax.experiments import cost, cotrain, stage_cost, stochastic, sweep
from additive_jax.experiments.compress.page import _facts, _nothing_removed
from additive_jax.experiments.compress.tables import nothing_removed
from additive_jax.experiments.dna import _shallow_dearer
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.standalone import rung_sizes
from additive_jax.files.progress import setup_logging
from additive_jax.report.page import Page, table
from additive_jax.run.tasks import Task

OPTIONS = {'structures': ('011', '111'), 'cotrain.top_k': 0}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tmp_path_factory.getbasetemp() / 'programs'):
    yield


def logged(run):
  """What `run()` gives, and the lines of its log."""
  stream, log = io.StringIO(), logging.getLogger('additive_jax')
  before = log.propagate, log.level
  handler = setup_logging(stream=stream)
  try:
    return run(), stream.getvalue()
  finally:
    log.removeHandler(handler)
    log.propagate, log.level = before


@pytest.fixture(scope='module', params=[1, 2], ids=['one seed', 'two seeds'])
def trained(request, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('cotrain') / 'run'
  config = tiny.config('cotrain', OPTIONS | {'num_seeds': request.param})
  result, lines = logged(lambda: cotrain.run(config, workdir))
  return request.param, result, lines, (workdir / 'report.html').read_text(), workdir


def test_losses_in_the_log_say_of_which_split_they_are(trained):
  _, _, lines, _, _ = trained
  told = [line for line in lines.splitlines() if 'loss' in line]
  assert any('pool-seed0: 15/15' in line and 'training loss' in line for line in told)
  assert any('alone to step 15' in line and 'test loss' in line for line in told)
  assert all('training loss' in line or 'test loss' in line for line in told)


def test_one_seed_says_that_it_has_no_intervals(trained):
  num_seeds, result, _, page, _ = trained
  assert ('one seed: no intervals' in page) == (num_seeds == 1)
  assert ('95 % intervals' in page) == (num_seeds > 1)
  assert ('An interval that crosses zero' in page) == (num_seeds > 1)
  assert bool(re.search(r'<td[^>]*>[^<]* ± ', page)) == (num_seeds > 1)
  assert result.differences['loss_ci95'].isna().all() == (num_seeds == 1)


def test_the_first_picture_of_exp_2_is_its_own_result(trained):
  num_seeds, result, _, page, workdir = trained
  first = page.index('<figure') if '<figure' in page else page.index('<img')
  assert 'What co-training changes' in page[first:]
  assert page.index('What co-training changes') < page.index('Test loss of each structure')
  rows = result.differences.set_index('label')
  assert set(rows.index) == {'mean of the structures', '011', '111', 'ensemble'}
  lines = (workdir / 'journals' / 'cotrain.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  pools = [record for record in records if 'cotrained' in record]
  assert len(pools) == num_seeds
  texts = ['011', '111']
  for i, text in enumerate(texts):
    apart = [pool['cotrained']['loss'][i] - pool['alone']['loss'][i] for pool in pools]
    assert rows.loc[text, 'loss'] == pytest.approx(np.mean(apart))
  mean = np.mean([np.subtract(p['cotrained']['loss'], p['alone']['loss']) for p in pools])
  assert rows.loc['mean of the structures', 'loss'] == pytest.approx(mean)
  key = 'cotrained_minus_alone_loss'
  assert result.summary[key] == pytest.approx(mean)
  if num_seeds > 1:
    assert rows.loc['mean of the structures', 'loss_ci95'] == pytest.approx(
      result.summary[f'{key}_ci95']
    )


def test_tables_of_pages_leave_out_intervals_that_are_not_there():
  frame = pd.DataFrame({'loss': [0.5], 'loss_ci95': [np.nan], 'accuracy_ci95': [0.1]})
  page = Page('', table(frame, '')).html()
  assert 'loss ci95' not in page
  assert '±' not in page[page.index('<table') : page.index('</table>')]
  assert 'accuracy ci95' in page


def test_a_sweep_says_what_it_costs_and_is_refused_above_the_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(cost, 'FEW_STEPS', 10)
  monkeypatch.setattr(cost, '_timed', lambda session, structure: cost.Times(2.0, 30.0, 7.0))
  options = {'num_seeds': 2, 'sweep.modes': ('standalone',), 'limit': 0.01}
  with pytest.raises(UserError) as error:
    sweep.run(tiny.config('sweep', options), tmp_path / 'run', devices=1)
  said = str(error.value)
  assert re.match('8 structures, 16 trainings of one alone, 240 steps, up to .*FLOP, would', said)
  assert 'expected at most config.limit 0.01 hours; config.search.method' in said
  assert '\n' not in said
  assert not (tmp_path / 'run').exists()
  config = tiny.config('sweep', options | {'limit': 0.0})

  def opened():
    with open_session(config, tmp_path / 'run', check=sweep.STUDY.check) as session:
      # 16 trainings of 15 steps of 2 s, and 30 s each to judge; one program is compiled in 7 s.
      total = 16 * (15 * 2.0 + 30.0) / len(cost.workers.workers()) + 7.0
      assert cost.estimate(session, sweep._work(session)) == total
      halved = session.with_options({'sweep.halving': 2, 'sweep.rungs': 3})
      assert rung_sizes(halved, 8) == [(4, 8), (8, 4), (15, 2)]

  said = ' | '.join(map(str, logged(opened)))
  words = r'8 structures, 16 trainings of one alone, 240 steps, up to [\d.]+ .?FLOP'
  assert re.search(f'{words}; timing a few steps', said)
  assert re.search(f'{words}: about', said)


def test_what_is_trained_already_is_not_counted(tmp_path):
  config = tiny.config('sweep')
  sweep.run(config, tmp_path / 'run', devices=1)
  (tmp_path / 'run' / 'structures.csv').unlink()
  said = logged(lambda: sweep.run(config, tmp_path / 'run', devices=1))[1]
  assert '8 structures, all trained before: ' in said


def test_a_default_refuses_no_small_network(tmp_path):
  config = tiny.config('sweep', {'sweep.top_k': 8, 'sweep.modes': ('shared',)})
  config.model.num_blocks = 2
  config.model.hidden = (8,)
  assert len(sweep.run(config, tmp_path / 'run', devices=1).table) == 4


def test_a_choice_among_very_many_is_refused_above_the_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(cost, 'FEW_STEPS', 10)
  monkeypatch.setattr(cost, '_timed', lambda session, structure: cost.Times(2.0, 30.0, 7.0))
  config = tiny.config('cotrain', {'cotrain.top_k': 2, 'limit': 0.01})
  with pytest.raises(UserError, match='8 networks ranked by a pool, the best 2 trained together'):
    cotrain.run(config, tmp_path / 'run', devices=1)
  assert not (tmp_path / 'run').exists()


def test_a_few_steps_are_timed_and_small_sweeps_are_not(tmp_path, monkeypatch):
  config = tiny.config('sweep')
  with open_session(config, tmp_path / 'run', check=lambda session: None) as session:
    work = sweep._work(session)
    assert cost.estimate(session, work) == 0.0
    monkeypatch.setattr(cost, 'FEW_STEPS', 10)
    assert 0 < cost.estimate(session, work) < 600


def test_nothing_removed_is_said():
  left = pd.DataFrame(
    {
      'variant': ['dense', 'dense', 'variational', 'variational', 'magnitude_0.5', 'magnitude_0.5'],
      'layer': ['a', 'b'] * 3,
      'left': [4, 2, 4, 2, 4, 1],
      'of': [4, 2] * 3,
    }
  )
  assert nothing_removed(left) == ['variational']
  assert nothing_removed(left.assign(left=1)) == []
  said = _nothing_removed(['variational'], 'weights', 3.0).content['text']
  assert said.startswith('Nothing was removed from variational.')
  assert 'config.compress' in said or 'compress.epochs' in said
  assert _nothing_removed([], 'weights', 3.0) is None
  task = Task('classification')
  columns = ['accuracy', 'accuracy_lost', 'accuracy_lost_ci95', 'factor', 'flops_factor']
  rows = pd.DataFrame(1.0, ['dense', 'variational', 'magnitude_matched'], columns)
  assert 'nothing removed' in _facts(rows, ['variational'], task).values()
  assert 'nothing removed' not in _facts(rows, [], task).values()


def test_a_shallow_network_that_costs_more_is_explained():
  variants = {
    'dense': {'flops': 100.0},
    'shallow': {'flops': 120.0},
    'dna': {'routers': {'kept': 0.5}},
    'dna_skipping': {'routers': {'kept': 0.7}},
  }
  said = _shallow_dearer(variants)
  assert 'shallow costs 120 FLOPs, more than dense with 100' in said
  assert '70% of the choices' in said
  assert '50% of the choices' in said
  assert not _shallow_dearer(variants | {'shallow': {'flops': 90.0}})
  assert not _shallow_dearer({'dense': {'flops': 100.0}})


def test_a_stage_says_what_it_costs(trained):
  num_seeds, _, lines, _, _ = trained
  told = [line.partition(' ')[2] for line in lines.splitlines() if 'some minutes at most' in line]
  alone, pools = told
  assert alone.startswith(f'{2 * num_seeds} trainings, {30 * num_seeds} steps, up to ')
  assert pools.startswith('1 training, 15 steps' if num_seeds == 1 else '2 trainings, 30 steps')
  assert 'FLOP: some minutes at most' in pools


def test_a_stage_is_timed_and_refused_above_the_limit(tmp_path, monkeypatch):
  monkeypatch.setattr(cost, 'FEW_FLOPS', 0)
  monkeypatch.setattr(cost, 'FEW_STEPS', 0)
  with pytest.raises(UserError, match=r'would take about .*: expected at most config.limit 1e-12'):
    stochastic.run(tiny.config('stochastic', {'limit': 1e-12}), tmp_path / 'run')


def test_judging_counts_in_the_time_of_a_stage(tmp_path, monkeypatch):
  monkeypatch.setattr(cost, 'FEW_STEPS', 0)
  monkeypatch.setattr(cost, 'FEW_FLOPS', 1e9)
  config = tiny.config('stochastic', {'train.epochs': 0.1, 'stochastic.num_structures': 8})
  with open_session(config, tmp_path / 'run', check=lambda session: None) as session:
    arm = stochastic.make_variants(session)[0]
    few = stage_cost._seconds(session, [(0, arm)], [1e6])
    many = dataclasses.replace(arm, judged=10**6)
    assert arm.judged == 8
    assert stage_cost._seconds(session, [(0, many)], [1e6]) > 60 + few
