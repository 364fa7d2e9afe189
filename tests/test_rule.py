"""Accumulated gradients, means of pools, rates by path and frozen parts: the same on one device as
on many, and after a stop."""

import functools

import flax.serialization
import jax
import numpy as np
import optax
import optax.contrib
import pytest
import tiny
from ml_collections import ConfigDict

from additive_jax import UserError
from additive_jax.data import ArraySplit, Data, from_arrays
from additive_jax.experiments import sweep
from additive_jax.experiments.pools import open_pools
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.gates.subsets import Subsets
from additive_jax.models import MLP
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.placement import Placement
from additive_jax.run.evaluate import evaluate_structures
from additive_jax.train import samplers
from additive_jax.train.balance import Balance
from additive_jax.train.fleet import Fleet
from additive_jax.train.losses import PerSample, Piped, Routed
from additive_jax.train.optimizers import make_optimizer
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.rule import average_of
from additive_jax.train.trainer import Trainer
from additive_jax.transplant.foreign import restore_pool
from additive_jax.transplant.restore import Checkpoints

RANDOM = np.random.default_rng(0)
ROWS = ArraySplit(RANDOM.normal(size=(48, 6)).astype(np.float32), np.arange(48, dtype=np.int32) % 3)
MODEL = MLP(2, 8, 8, 3)
ADAM = optax.adamw(0.02, weight_decay=0.1)
BATCH = 8


def recipe_of(optimizer=ADAM, loss=None, **options):
  return Recipe(MODEL, 'classification', optimizer, loss or Structures(), **options)


def trainer_of(recipe, structures=('11', '10'), train=ROWS, devices=1, zero=False, **spread):
  shape = (2, BATCH // recipe.accumulate) if devices > 1 else (1, 1)
  mesh = mesh_.make_mesh(*shape, jax.devices()[:devices], **spread)
  placement = Placement(mesh, chunk_steps=3, zero=zero)
  sampler = samplers.listed(structures, 2)
  return Trainer(recipe, train, sampler, batch_size=BATCH, seed=0, placement=placement)


def trained(recipe, *args, steps=3, **where):
  trainer = trainer_of(recipe, *args, **where)
  values = trainer.run(steps)
  return processes.to_host((values['loss'], trainer.state))


def assert_close(got, want, rtol=2e-5, atol=1e-6):
  close = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol)
  jax.tree.map(close, got, want)


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_gradient_in_pieces_is_that_of_the_whole_batch():
  """`test_alike` has pieces on many devices."""
  whole, pieces = (trained(recipe_of(optax.sgd(0.1), accumulate=count)) for count in (1, 4))
  assert_close(pieces, whole)
  subsets = PerSample(subsets=Subsets(((0.5, 0.5),), parts=4))
  drawn = [
    trained(recipe_of(optax.sgd(0.1), subsets, accumulate=count), ('11', '11')) for count in (1, 4)
  ]
  assert_close(drawn[1], drawn[0])


def test_what_cannot_be_cut_is_refused():
  with pytest.raises(UserError, match=r'accumulate 2 with a load-balance loss of weight 0\.01'):
    recipe_of(loss=Routed(Balance(auxiliary=0.01)), accumulate=2)
  recipe_of(loss=Routed(Balance(auxiliary=0.0)), accumulate=2)
  with pytest.raises(UserError, match='accumulate 3 of a batch of 8 on 1 devices'):
    trainer_of(recipe_of(accumulate=3))
  with pytest.raises(UserError, match='1 devices, 4 pieces on each, split a batch of 2 parts'):
    trainer_of(
      recipe_of(loss=PerSample(subsets=Subsets(((0.5, 0.5),), parts=2)), accumulate=4), ('11', '11')
    )


def test_the_mean_of_the_pool_is_exact_and_the_same_on_any_devices(tmp_path):
  recipe = recipe_of(ema=0.9)
  trainer = trainer_of(recipe)
  mean = processes.to_host(trainer.variables['params'])
  for step in range(4):
    trainer.run(1)
    decay = min(0.9, (1 + step) / (10 + step))
    pool = processes.to_host(trainer.variables['params'])
    mean = jax.tree.map(lambda m, p, d=decay: d * m + (1 - d) * p, mean, pool)
  assert_close(processes.to_host(trainer.averaged['params']), mean)
  assert not np.allclose(mean['embed']['kernel'], pool['embed']['kernel'])
  _, alone = trained(recipe, steps=4)
  zero = trained(recipe, steps=4, devices=4, zero=True)[1]  # others are in `test_alike`
  assert_close(zero, alone, rtol=1e-4, atol=1e-5)
  piped = recipe_of(loss=Piped(pipeline=Pipeline(2, 2)), ema=0.9)
  assert_close(trained(piped, steps=4, devices=4, pipe_devices=2)[1], alone, rtol=1e-4, atol=1e-5)
  half = trainer_of(recipe)
  half.run(2)
  with Checkpointer(tmp_path, identity={}) as checkpoints:
    checkpoints.save(2, half.state, wait=True)
    again = trainer_of(recipe)
    again.state = checkpoints.restore(again.state).state
  again.run(2)
  assert_same(processes.to_host(again.state), alone)


def test_networks_alone_keep_means_too():
  recipe = recipe_of(ema=0.9)
  data = Data('rows', 'classification', ROWS, ROWS, 3, valid=ArraySplit(ROWS.x[:7], ROWS.y[:7]))
  (member,) = Population(recipe, data, batch_size=BATCH, seed=0).train(['11'], 3)
  state = processes.to_host(member.state)
  mean = average_of(state.opt_state, state.params)
  assert not np.allclose(mean['embed']['kernel'], member.state.params['embed']['kernel'])
  assert member.averaged.loss != member.loss
  judge = functools.partial(evaluate_structures, recipe.model, {'params': mean}, structures=['11'])
  named = {'loss': judge(data.valid).loss, 'test_loss': judge(data.test).loss}
  for name, loss in named.items():
    np.testing.assert_allclose(member.averaged.columns[name], loss[0], rtol=1e-5)
  fleet = Fleet(recipe, ROWS, [range(24), range(24, 48)], batch_size=BATCH, seed=0)
  fleet.run(3)
  first = fleet.members()[0]
  assert average_of(first.opt_state, first.params)['embed']['kernel'].shape == (6, 8)


def test_a_step_whose_update_is_not_finite_moves_no_mean():
  bad = ArraySplit(np.where(np.arange(48)[:, None] < 8, 3e38, ROWS.x), ROWS.y)
  recipe = recipe_of(ema=0.5, accumulate=2)
  trainer = trainer_of(recipe, ('11',), train=bad)
  before = processes.to_host(trainer.averaged)
  finite = trainer.run(1)['finite']
  if not finite.all():
    assert_same(processes.to_host(trainer.averaged), before)
  trainer.run(11)
  assert int(trainer.state.skipped) > 0
  assert all(
    np.isfinite(leaf).all() for leaf in jax.tree.leaves(processes.to_host(trainer.averaged))
  )


def test_frozen_parts_stay_and_rates_multiply_updates():
  frozen = ('embed', r'block_0[1]/.*')
  start = processes.to_host(trainer_of(recipe_of()).variables['params'])
  for where in ({}, {'devices': 4, 'fsdp_devices': 2, 'zero': True}):
    _, state = trained(recipe_of(frozen=frozen, ema=0.5), **where)
    for name in ('embed', 'block_01'):
      assert_same(state.params[name], start[name])
    assert not np.array_equal(
      state.params['block_00']['in']['kernel'], start['block_00']['in']['kernel']
    )
    kept = [
      jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state.opt_state.inner)
    ]
    assert not any('embed' in path for path in kept)
    assert any('block_00' in path for path in kept)
  moved = {}
  for rates in ({}, {'readout': 0.5, 'readout/out/bias': 4.0, '.*/norm': 0.0}):
    _, state = trained(recipe_of(optax.sgd(0.1), learning_rates=rates), steps=1)
    moved[len(rates)] = jax.tree.map(np.subtract, state.params, start)
  plain, scaled = moved[0], moved[3]
  assert_close(
    scaled['readout']['out']['kernel'], 0.5 * plain['readout']['out']['kernel'], atol=1e-7
  )
  assert_close(scaled['readout']['out']['bias'], 2 * plain['readout']['out']['bias'], atol=1e-7)
  assert_same(scaled['block_00']['in']['kernel'], plain['block_00']['in']['kernel'])
  assert not scaled['block_00']['norm']['scale'].any()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'frozen': ('embde',)},
      r"\('embde',\): 'embde' fits no leaf of the pool; .* such as embed/",
    ),
    ({'frozen': ('.*',)}, 'is all of the pool: expected some of it to learn'),
    ({'frozen': 'embed'}, "frozen 'embed': expected a list of regular expressions"),
    ({'frozen': ('(',)}, r"frozen '\(': expected a regular expression"),
    ({'learning_rates': {'embed': -1.0}}, "learning_rates 'embed' -1.0: expected what multiplies"),
    (
      {'learning_rates': {'blok': 1.0}},
      r"learning_rates \{'blok': 1.0\}: 'blok' fits no leaf",
    ),
    ({'ema': 1.0}, r'ema 1.0: expected a decay in \[0, 1\)'),
    ({'accumulate': 0}, 'accumulate 0'),
    ({'dtype': 'float16'}, "dtype 'float16': expected one of float32, bfloat16"),
  ],
)
def test_messages(options, message):
  with pytest.raises(UserError, match=message):
    trainer_of(recipe_of(**options))


def test_patterns_are_refused_in_a_pipeline():
  with pytest.raises(UserError, match=r"frozen \('embed',\) in a pipeline: expected none"):
    recipe_of(loss=Piped(pipeline=Pipeline(2, 2)), frozen=('embed',))


def test_means_are_judged_beside_pools_in_a_run(tmp_path):
  options = {'train.ema': 0.9, 'train.frozen': ('embed',), 'sweep.modes': ('shared', 'standalone')}
  result = sweep.run(tiny.config('sweep', options), tmp_path / 'run')
  rows = result.averages.set_index(['arm', 'score'])
  assert {('shared', 'loss'), ('111', 'loss')} <= set(rows.index)
  row = rows.loc['shared', 'loss']
  assert np.isfinite(row['pool'])
  assert row['ema'] != row['pool']
  assert result.summary['averages']['shared']['loss']['ema'] == pytest.approx(row['ema'])
  assert 'Means over the steps' in (tmp_path / 'run' / 'report.html').read_text()
  pools, x = open_pools(tmp_path / 'run'), np.zeros((1, 4), np.float32)
  texts = [f'{number:03b}' for number in range(8)]
  split = pools.data.valid or pools.data.test
  for column, ema in (('ema', True), ('pool', False)):
    taken = [
      restore_pool(tmp_path / 'run', pools.model, x, name=f'shared-seed{seed}', ema=ema)
      for seed in (0, 1)
    ]
    losses = [evaluate_structures(pools.model, pool, split, texts).loss for pool in taken]
    assert np.mean(losses) == pytest.approx(row[column], rel=1e-5)
  sweep.run(tiny.config('sweep', {'sweep.modes': ('shared',), 'num_seeds': 1}), tmp_path / 'none')
  with pytest.raises(UserError, match=r'expected a training with config\.train\.ema'):
    restore_pool(tmp_path / 'none', pools.model, x, ema=True)
  (tmp_path / 'mine.msgpack').write_bytes(flax.serialization.to_bytes(taken[0]))
  with pytest.raises(UserError, match=r'ema of checkpoint .*mine.msgpack.: expected a run with'):
    restore_pool(tmp_path / 'mine.msgpack', pools.model, x, ema=True)
  with pytest.raises(UserError, match='ema with an optimizer: expected one of them'):
    Checkpoints(tmp_path / 'run', pools.model, optax.sgd(0.1), ema=True)


def test_means_of_networks_alone_are_of_the_split_that_the_pool_is_of(tmp_path):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40, 4)).astype(np.float32)
  y = (x[:, 0] > 0).astype(int)
  data = from_arrays(
    x, y, valid=(x, y), test=(x, 1 - y)
  )  # a loss on test is far from that on valid
  options = {
    'train.ema': 0.5,
    'sweep.modes': ('standalone',),
    'learning_rate': 0.05,
    'train.epochs': 10.0,
  }
  result = sweep.run(tiny.config('sweep', options), tmp_path, data=data)
  rows = result.averages.set_index(['arm', 'score'])
  for score in ('loss', 'test_loss'):
    row = rows.loc['111', score]
    assert row['ema'] == pytest.approx(row['pool'], rel=0.2)
  assert rows.loc['111', 'test_loss']['pool'] > 1.5 * rows.loc['111', 'loss']['pool']
  assert {('111', 'accuracy'), ('111', 'test_accuracy')} <= set(rows.index)  # equal ones are told


CONTRIB = ('muon', 'schedule_free_adamw', 'prodigy', 'ademamix')


@pytest.mark.parametrize('name', tiny.thorough_but(CONTRIB[:2], CONTRIB))
def test_optimizers_of_contrib_train(name):
  options = {
    'learning_rate': 0.1,
    'clip_norm': 1.0,
    'optimizer': {'name': name, 'kwargs': {}},
    'schedule': {'name': 'constant', 'kwargs': {}},
  }
  recipe = recipe_of(make_optimizer(ConfigDict(options), 6), frozen=('embed',))
  trainer = trainer_of(recipe, ('11',))
  losses = trainer.run(6)['loss']
  assert np.isfinite(losses).all()
  mean = trainer.averaged
  assert (mean is None) == (name != 'schedule_free_adamw')


def test_schedule_free_ones_are_judged_by_their_mean():
  wanted = optax.contrib.schedule_free_eval_params
  free = optax.contrib.schedule_free_sgd(0.1)
  trainer = trainer_of(recipe_of(free))
  trainer.run(3)
  assert_close(trainer.averaged['params'], wanted(trainer.state.opt_state, trainer.state.params))
  with pytest.raises(UserError, match='with a schedule-free optimizer: expected none'):
    trainer_of(recipe_of(free, learning_rates={'embed': 2.0}))
