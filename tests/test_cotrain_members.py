"""Exp 2 with adapters: each structure is a member with vectors of its own, up to its export."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest
import tiny

import additive_jax as aj
from additive_jax.errors import UserError
from additive_jax.experiments import cotrain
from additive_jax.export import export_run, load
from additive_jax.train.adapters import Adapted

TEXTS = ('011', '111')
OPTIONS = {'structures': TEXTS, 'cotrain.adapters': True, 'train.log_every': 5}
MODEL = aj.models.MLP(3, 8, 8, 3)


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('members') / 'run'
  return cotrain.run(tiny.config('cotrain', OPTIONS), workdir, devices=2), workdir


@pytest.fixture(scope='module')
def iris():
  return aj.data.load('tabular:iris', valid=0.0)


def test_the_tables_are_those_of_the_members(trained, iris, tmp_path):
  """By their exports: each is an ordinary network, with the receipt of one."""
  result, workdir = trained
  logits, table = {}, result.table.set_index('structure')
  for text in TEXTS:
    losses = []
    for seed in (0, 1):
      to = tmp_path / f'{text}-{seed}'
      export_run(workdir, text, to, checkpoint=f'pool-seed{seed}')
      module, variables = load(to)
      log_p = jax.nn.log_softmax(module.apply(variables, iris.test.x))
      logits[text, seed] = np.asarray(log_p, np.float64)
      losses.append(-logits[text, seed][np.arange(30), iris.test.y].mean())
      assert json.loads((to / 'model.json').read_text())['receipt']['max_difference'] < 1e-4
    assert table['loss'][text] == pytest.approx(np.mean(losses), rel=1e-5)
  mean = [np.log((np.exp(logits['011', s]) + np.exp(logits['111', s])) / 2) for s in (0, 1)]
  loss = np.mean([-row[np.arange(30), iris.test.y].mean() for row in mean])
  ensemble = result.comparison.set_index(['label', 'variant']).loc[('ensemble', 'cotrained')]
  assert ensemble['loss'] == pytest.approx(loss, rel=1e-5)


def test_what_it_costs_and_that_it_learns(trained, iris, tmp_path):
  result, workdir = trained
  adapted = Adapted(MODEL, 2)
  params = jax.eval_shape(adapted.init, jax.random.key(0), iris.train.x[:1])['params']
  assert result.summary['pool_params'] == sum(leaf.size for leaf in jax.tree.leaves(params))
  plain = cotrain.run(
    tiny.config('cotrain', OPTIONS | {'cotrain.adapters': False}), tmp_path / 'plain', devices=2
  )
  assert plain.summary['pool_params'] < result.summary['pool_params']
  columns = ['structure', 'flops', 'params', 'alone_loss']
  by_name = lambda found: found.table[columns].sort_values('structure').reset_index(drop=True)
  pd.testing.assert_frame_equal(by_name(plain), by_name(result))
  assert (plain.table['loss'] != result.table['loss']).all()
  losses = [
    json.loads(line)['loss']
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
    if json.loads(line).get('tag') == 'pool-seed0'
  ]
  assert losses[-1] < losses[0]
  assert result.cosines[list(TEXTS)].to_numpy().diagonal() == pytest.approx(1, abs=1e-5)


def test_killed_and_taken_up_again_it_is_the_same(trained, tmp_path):
  result, workdir = trained
  tiny.killed_copy(workdir, tmp_path / 'run', 'cotrain.jsonl', 4)  # of the structures alone
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / 'pool-seed0' / '15')
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / 'pool-seed1')
  again = cotrain.run(tiny.config('cotrain', OPTIONS), tmp_path / 'run', devices=2)
  pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)


def test_from_a_pool_all_members_begin_as_that(random_pool, iris, tmp_path):
  """A step of no length leaves them there."""
  pool = random_pool(MODEL, iris.train.x[:1])
  options = OPTIONS | {'num_seeds': 1, 'learning_rate': 1e-12, 'train.epochs': 0.2}
  result = cotrain.run(tiny.config('cotrain', options), tmp_path / 'run', devices=2, variables=pool)
  expected = aj.evaluate_structures(MODEL, pool, (iris.test.x, iris.test.y), TEXTS).loss
  found = result.table.set_index('structure')['loss'][list(TEXTS)]
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_only_members_are_exported(trained, tmp_path):
  with pytest.raises(UserError, match=r'structure 101 of .*: expected one of its members, 01'):
    export_run(trained[1], '101', tmp_path / 'net')
