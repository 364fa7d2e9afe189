"""Shared pools: trained, resumed, sharded by seed, and what cannot be."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
import tiny

from additive_jax.errors import UserError
from additive_jax.experiments import sweep
from additive_jax.experiments.session import Session
from additive_jax.files.metrics import Metrics

SHARED = {'sweep.modes': ('shared',)}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def pools(tmp_path_factory):
  """Pools of two seeds: result and run directory."""
  workdir = tmp_path_factory.mktemp('pools') / 'run'
  return sweep.run(tiny.config('sweep', SHARED), workdir, devices=2), workdir


def curves(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return sorted(lines)


def test_curves_have_a_point_every_log_every_steps(pools):
  points = [json.loads(line) for line in curves(pools[1])]
  for seed in (0, 1):
    own = [p for p in points if p['tag'] == f'shared-seed{seed}']
    assert [p['step'] for p in own] == [10, 15, 5]
    assert all(np.isfinite(p['loss']) and p['skipped'] == 0 for p in own)


@pytest.mark.parametrize('lost', ['missing', 'damaged'])
def test_a_pool_goes_on_from_its_newest_sound_checkpoint(pools, tmp_path, lost):
  workdir = tmp_path / 'run'
  tiny.killed_copy(pools[1], workdir, 'sweep.jsonl', 1)
  checkpoints = workdir / 'checkpoints' / 'shared-seed1'
  for step in (10, 15):
    if lost == 'missing':
      (checkpoints / str(step)).rename(tmp_path / f'later{step}')
    else:
      (checkpoints / str(step) / 'meta' / 'metadata').write_bytes(b'{}')
  sweep.run(tiny.config('sweep', SHARED), workdir, devices=2)
  assert (workdir / 'structures.csv').read_bytes() == (pools[1] / 'structures.csv').read_bytes()
  assert curves(workdir) == curves(pools[1])


SEARCHED = SHARED | {
  'model.num_blocks': 4,
  'search.method': 'evolution',
  'search.budget': 14,  # the last of four generations is not whole
  'search.population': 4,
}


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
  """A search in the pools of two seeds: result and run directory."""
  workdir = tmp_path_factory.mktemp('searched') / 'run'
  return sweep.run(tiny.config('sweep', SEARCHED), workdir, devices=2), workdir


def test_generations_are_journalled(searched):
  result, workdir = searched
  lines = (workdir / 'journals' / 'search.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [len(record['structures']) for record in records] == [4, 4, 4, 2]
  table = result.table.set_index('structure')
  for record in records:
    for structure, loss in zip(record['structures'], record['loss'], strict=True):
      assert len(loss) == 2
      assert np.mean(loss) == pytest.approx(table['shared_loss'][structure], rel=1e-12)


@pytest.mark.parametrize('lines', [0, 3, 4])
def test_a_killed_search_goes_on_after_its_last_generation(
  searched, tmp_path, monkeypatch, caplog, lines
):
  monkeypatch.setattr(logging.getLogger('additive_jax'), 'propagate', True)
  workdir, evaluated = tmp_path / 'run', []
  tiny.killed_copy(searched[1], workdir, 'search.jsonl', lines, torn=b'{"structures": ["01')
  original = Session.evaluate

  def evaluate(self, variables, structures, split=None):
    if len(structures) == 4:  # a generation
      evaluated.append(4)
    return original(self, variables, structures, split)

  monkeypatch.setattr(Session, 'evaluate', evaluate)
  with caplog.at_level(logging.INFO, 'additive_jax'):
    sweep.run(tiny.config('sweep', SEARCHED), workdir, devices=2)
  assert len(evaluated) == 2 * (4 - lines)  # two pools
  for name in ('structures.csv', 'effects.csv', 'journals/search.jsonl'):
    if lines < 4 or name != 'journals/search.jsonl':  # a torn line stays until the next append
      assert (workdir / name).read_bytes() == (searched[1] / name).read_bytes()
  done = min(4 * lines, 14)
  assert any(m.startswith(f'search: {done}/14 structures') for m in caplog.messages)


@pytest.mark.slow
def test_shards_take_seeds_and_merge_to_the_undivided_run(pools, tmp_path):
  workdir = tmp_path / 'run'
  for shard in ('1/2', '0/2'):
    config = tiny.config('sweep', SHARED | {'shard': shard})
    assert not sweep.run(config, workdir, devices=2).complete
  assert not (workdir / 'metrics.jsonl').exists()
  for shard in range(2):
    lines = (workdir / 'journals' / f'sweep-{shard}-of-2.jsonl').read_text().splitlines()
    assert [json.loads(line)['seed'] for line in lines] == [shard]
  sweep.run(tiny.config('sweep', SHARED), workdir, devices=2)
  assert (workdir / 'structures.csv').read_bytes() == (pools[1] / 'structures.csv').read_bytes()
  assert not (workdir / 'journals' / 'sweep.jsonl').exists()
  read = [Metrics.read(path) for path in (workdir, pools[1])]
  pd.testing.assert_frame_equal(*read, check_exact=True)
  assert (workdir / 'report.html').read_bytes() == (pools[1] / 'report.html').read_bytes()


@pytest.mark.slow
def test_one_device_and_two_agree(pools, tmp_path):
  result = sweep.run(tiny.config('sweep', SHARED), tmp_path / 'run', devices=1)
  one = result.table.set_index('structure').sort_index()
  two = pools[0].table.set_index('structure').sort_index()
  # The same gradients, added up in another order, over 15 float32 steps.
  np.testing.assert_allclose(one['loss'], two['loss'], rtol=2e-5)


def test_damaged_checkpoints_end_the_run_in_one_line(pools, tmp_path):
  workdir = tmp_path / 'run'
  tiny.killed_copy(pools[1], workdir, 'sweep.jsonl', 1)
  for path in (workdir / 'checkpoints' / 'shared-seed1').rglob('metadata'):
    path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(UserError, match=r'every checkpoint in .*shared-seed1 is damaged') as caught:
    sweep.run(tiny.config('sweep', SHARED), workdir, devices=2)
  assert 'remove the directory to start afresh' in str(caught.value)
