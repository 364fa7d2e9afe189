"""Training every structure alone: halved, sharded, killed and continued."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import tiny

from additive_jax.experiments import sweep
from additive_jax.experiments.standalone import Crowd

# Forty steps, so that the last tenth of them is more than one.
ALONE = {'sweep.modes': ('standalone',), 'train.epochs': 5.3}
HALVED = ALONE | {'sweep.halving': 2, 'sweep.rungs': 3}
JOURNAL = 'sweep.jsonl'


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run without halving: result and run directory."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  return sweep.run(tiny.config('sweep', ALONE), workdir, devices=1), workdir


@pytest.fixture(scope='module')
def halved(tmp_path_factory):
  """A run with three rungs: result and run directory."""
  workdir = tmp_path_factory.mktemp('halved') / 'run'
  return sweep.run(tiny.config('sweep', HALVED), workdir, devices=1), workdir


def records(workdir, name=JOURNAL):
  lines = (workdir / 'journals' / name).read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_survivors_of_each_rung(halved):
  result, workdir = halved
  found = records(workdir)
  rungs = [{r['structure'] for r in found if r['rung'] == rung} for rung in range(3)]
  assert [len(rung) for rung in rungs] == [8, 4, 2]
  steps = [{r['steps'] for r in found if r['rung'] == rung} for rung in range(3)]
  assert steps == [{10}, {20}, {40}]
  for rung in range(2):
    losses = {
      structure: np.mean(
        [r['loss'] for r in found if (r['structure'], r['rung']) == (structure, rung)]
      )
      for structure in rungs[rung]
    }
    best = sorted(losses, key=losses.get)[: len(rungs[rung + 1])]
    assert set(best) == rungs[rung + 1]
  assert result.table['steps'].tolist() == [40] * 2 + [20] * 2 + [10] * 4
  for steps, group in result.table.groupby('steps'):
    assert group['loss'].is_monotonic_increasing, steps


def test_survivors_end_as_without_halving(halved, whole):
  table = whole[0].table.set_index('structure')
  survivors = halved[0].table[halved[0].table['steps'] == 40]
  assert len(survivors) == 2
  for row in survivors.itertuples():
    # Trained in three pieces or in one: the same float32 steps, in programs of other lengths.
    assert row.loss == pytest.approx(table['loss'][row.structure], rel=1e-6)
    # Mean over the last four steps.
    assert row.train_loss == pytest.approx(table['train_loss'][row.structure], rel=1e-6)


def test_effects_of_a_halved_sweep_compare_equal_training(halved):
  found = [r for r in records(halved[1]) if r['rung'] == 0]
  on = np.mean([r['loss'] for r in found if r['structure'][1] == '1'])
  off = np.mean([r['loss'] for r in found if r['structure'][1] == '0'])
  assert halved[0].effects['effect'][1] == pytest.approx(on - off, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize('lines', tiny.thorough_but([19], [0, 19, 25]))
def test_killed_and_continued_halving_ends_the_same(halved, tmp_path, lines):
  workdir = tmp_path / 'run'
  tiny.killed_copy(halved[1], workdir, JOURNAL, lines, torn=b'{"seed": 0, "stru')
  sweep.run(tiny.config('sweep', HALVED), workdir, devices=1)
  for name in ('structures.csv', 'effects.csv', 'interactions.csv'):
    assert (workdir / name).read_bytes() == (halved[1] / name).read_bytes()
  assert len(records(workdir)) == len(records(halved[1])) == 28


@pytest.mark.slow
@pytest.mark.parametrize('kind', tiny.thorough_but(['halved'], ['whole', 'halved']))
def test_shards_in_any_order_merge_to_the_undivided_run(kind, whole, halved, tmp_path):
  options, (_, undivided) = {'whole': (ALONE, whole), 'halved': (HALVED, halved)}[kind]
  workdir = tmp_path / 'run'
  for shard in ('2/3', '0/3', '1/3'):
    config = tiny.config('sweep', options | {'shard': shard})
    part = sweep.run(config, workdir, devices=1)
    assert not part.complete
    assert not (workdir / 'structures.csv').exists()
    if shard == '0/3':  # killed before its last three structures, and continued
      journal = workdir / 'journals' / 'sweep-0-of-3.jsonl'
      done = journal.read_bytes()
      journal.write_bytes(b''.join(done.splitlines(keepends=True)[:3]) + b'{"seed')
      sweep.run(config, workdir, devices=1)
      first_rung = [r for r in records(workdir, journal.name) if r['rung'] == 0]
      assert len(first_rung) == len({(r['seed'], r['structure']) for r in first_rung}) == 6
  parts = [records(workdir, f'sweep-{i}-of-3.jsonl') for i in range(3)]
  assert all(parts)
  result = sweep.run(tiny.config('sweep', options), workdir, devices=1)
  assert result.complete
  for name in ('structures.csv', 'effects.csv', 'interactions.csv'):
    assert (workdir / name).read_bytes() == (undivided / name).read_bytes()
  if kind == 'whole':  # merging trained nothing
    assert not (workdir / 'journals' / JOURNAL).exists()
    assert sum(map(len, parts)) == 16


def test_members_do_not_depend_on_the_number_of_devices(whole, tmp_path):
  workdir = tmp_path / 'run'
  sweep.run(tiny.config('sweep', ALONE), workdir, devices=4)
  assert (workdir / 'structures.csv').read_bytes() == (whole[1] / 'structures.csv').read_bytes()


def test_a_line_damaged_later_is_named_and_trained_again(whole, tmp_path, caplog):
  workdir = tmp_path / 'run'
  shutil.copytree(whole[1], workdir)
  (workdir / 'summary.json').unlink()
  journal = workdir / 'journals' / JOURNAL
  journal.write_bytes(journal.read_bytes().replace(b'{"seed": 0', b'{"se#d": 0x', 1))
  sweep.run(tiny.config('sweep', ALONE), workdir, devices=1)
  assert 'line 1: damaged' in caplog.text
  assert (workdir / 'structures.csv').read_bytes() == (whole[1] / 'structures.csv').read_bytes()


def test_a_structure_that_diverges(tmp_path, monkeypatch, caplog):
  """It is told of once, ranked last, and compared with none; the journal stays JSON."""
  member = Crowd._train_seed

  def diverged(crowd, seed, arms):
    for arm, one in member(crowd, seed, arms):
      if (str(arm.structure), seed) == ('010', 1):
        scores = dict.fromkeys(one.scores, 0.0) | {'loss': float('nan')}
        one = dataclasses.replace(one, scores=scores)
      yield arm, one

  monkeypatch.setattr(Crowd, '_train_seed', diverged)
  options = {'sweep.modes': ('standalone',), 'train.epochs': 1.0}
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    result = sweep.run(tiny.config('sweep', options), tmp_path / 'run', devices=1)
  (said,) = [text for text in caplog.messages if not text.startswith('not used')]
  assert said.startswith(
    '010 alone, seed 1: a test loss of nan, ranked last and compared with none'
  )
  last = result.table.iloc[-1]
  assert (last['structure'], last['rank'], last['pareto']) == ('010', 8, False)
  assert np.isnan(last['loss'])
  assert np.isfinite(result.table['loss'][:-1]).all()
  assert np.isfinite(result.effects['effect']).all()
  assert np.isfinite(result.summary['noise_ceiling']['tau_between_seeds'])
  assert result.summary['diverged'] == ['010']

  def refuse(word):
    raise AssertionError(word)

  for line in (tmp_path / 'run' / 'journals' / JOURNAL).read_text().splitlines():
    json.loads(line, parse_constant=refuse)
  for name in ('structures.csv', 'summary.json', 'report.html'):
    (tmp_path / 'run' / name).unlink()
  again = sweep.run(tiny.config('sweep', options), tmp_path / 'run', devices=1)
  assert again.table.equals(result.table)
