"""Exp 3: what a run leaves, and what it says."""

import json

import numpy as np
import pytest
import studies
import tiny

from additive_jax.experiments import stochastic
from additive_jax.gates.structure import all_bits
from additive_jax.models import MLP
from additive_jax.models.costs import measure

CHOSEN = studies.CASES['stochastic'].options


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  return studies.finished('stochastic', tmp_path_factory)


def records_of(workdir):
  lines = (workdir / 'journals' / 'stochastic.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


NAMES = ['none', 'conditional', 'conditional_equal_flops', 'per_sample', 'per_sample_equal_flops']


@pytest.mark.slow
def test_what_a_run_leaves(done):
  result, workdir = done
  assert result.variants['variant'].tolist() == NAMES
  assert sorted(result.table['structure']) == sorted(f'{i:03b}' for i in range(8))
  first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
  assert list(result.table)[:7] == first
  assert result.table['loss'].is_monotonic_increasing
  page = (workdir / 'report.html').read_text()
  for text in ('paired by seed', 'Keep rates and training', 'All structures of each pool', '±'):
    assert text in page
  assert page.index('<img') < page.index('<table')
  assert set(result.summary['variants']) == set(NAMES)
  assert result.summary['num_seeds'] == 2


@pytest.mark.slow
def test_tables_are_those_of_the_journal(done):
  """Means, gaps, and differences that are paired by seed, from the numbers of each seed."""
  result, workdir = done
  records = {(r['seed'], r['variant']): r for r in records_of(workdir)}
  rows = result.variants.set_index('variant')
  table = result.table.set_index('structure')
  full = [records[seed, 'none']['loss'][7] for seed in (0, 1)]
  for name in NAMES:
    own = [records[seed, name] for seed in (0, 1)]
    loss = np.array([r['loss'][7] for r in own])
    assert rows.loc[name, 'loss'] == pytest.approx(loss.mean())
    gap = np.mean(loss - [r['train_loss'] for r in own])
    assert rows.loc[name, 'loss_gap'] == pytest.approx(gap)
    every = np.mean([r['accuracy'] for r in own])
    assert rows.loc[name, 'structures_accuracy'] == pytest.approx(every)
    column = 'loss' if name == 'conditional' else f'{name}_loss'
    assert table.loc['100', column] == pytest.approx(np.mean([r['loss'][1] for r in own]))
    if name != 'none':
      apart = loss - full
      assert rows.loc[name, 'loss_minus_none'] == pytest.approx(apart.mean())
      # Student's t of one degree of freedom at 97.5 %.
      half = 12.7062 * np.std(apart, ddof=1) / np.sqrt(2)
      assert rows.loc[name, 'loss_minus_none_ci95'] == pytest.approx(half, rel=1e-4)
  assert np.isnan(rows.loc['none', 'loss_minus_none'])


@pytest.mark.slow
def test_variants_spend_what_they_say(done):
  """Equal epochs, or equal FLOPs to the nearest step."""
  result, _ = done
  rows = result.variants.set_index('variant')
  full = rows.loc['none', 'training_flops']
  assert rows.loc[['conditional', 'per_sample'], 'steps'].tolist() == [15, 15]
  for mode in ('conditional', 'per_sample'):
    assert rows.loc[mode, 'training_flops'] < 0.95 * full
    one_step = full / 15
    assert abs(rows.loc[f'{mode}_equal_flops', 'training_flops'] - full) < 1.5 * one_step


@pytest.mark.slow
def test_pools_start_alike_and_end_apart(done):
  records = {(r['seed'], r['variant']): r['loss'] for r in records_of(done[1])}
  for seed in (0, 1):
    losses = [tuple(records[seed, name]) for name in NAMES]
    assert len(set(losses)) == len(NAMES)
  assert records[0, 'none'] != records[1, 'none']


def test_expected_flops_are_the_mean_over_structures():
  model = MLP(2, 8, 8, 3, gates=('residual', 'sub_activation'), num_chunks=3)
  space = measure(model, np.zeros((1, 6), np.float32))
  rates = np.random.default_rng(0).uniform(size=space.num_gates)
  bits = all_bits(space.num_gates)
  weights = np.where(bits, rates, 1 - rates).prod(1)
  want = weights @ space.costs(bits)[0]
  np.testing.assert_allclose(space.expected_flops(rates), want, rtol=1e-12)
  np.testing.assert_allclose(space.expected_flops([rates, rates * 0])[0], want, rtol=1e-12)


@pytest.mark.slow
def test_distilled_and_a_sample_of_the_structures(tmp_path):
  options = CHOSEN | {
    'num_seeds': 1,
    'train.distill': 0.5,
    'stochastic.modes': ('per_sample',),
    'stochastic.num_structures': 5,
    'stochastic.parts': 2,
    'sampler.ramp': 0.0,
    'train.epochs': 1.0,
  }
  result = stochastic.run(tiny.config('stochastic', options), tmp_path / 'run', devices=2)
  names = result.variants['variant'].tolist()
  assert names[:3] == ['none', 'per_sample', 'per_sample_equal_flops']
  assert 'per_sample_distilled' in names
  assert len(set(result.table['structure'])) == 5
  assert '111' in set(result.table['structure'])
  rows = result.variants.set_index('variant')
  assert rows.loc['per_sample_distilled', 'loss'] != rows.loc['per_sample', 'loss']
  # The teacher costs a forward pass of the full network.
  extra = (
    rows.loc['per_sample_distilled', 'training_flops'] - rows.loc['per_sample', 'training_flops']
  )
  assert extra == pytest.approx(rows.loc['none', 'training_flops'] / 3)
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert 'over the seeds' not in page
