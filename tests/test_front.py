"""Experiments as calls: names of options, data as people have it, and a smaller network."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import additive_jax as aj
from additive_jax import export
from additive_jax.errors import UserError
from additive_jax.experiments import front
from additive_jax.files.functions import digest_of
from additive_jax.files.journal import Journal

QUICK = {'epochs': 1.0, 'batch_size': 16, 'structures_per_step': 2, 'devices': 1, 'progress': False}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def arrays():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(120, 6)).astype(np.float32)
  return x, (x @ rng.normal(size=(6, 3))).argmax(1)


@pytest.fixture
def net():
  return aj.models.MLP(num_blocks=3, width=8, hidden=(4, 8, 16), num_classes=3)


def test_a_call_ranks_and_a_second_one_reads(net, arrays, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  options = QUICK | {'seeds': 1, 'modes': ('shared',)}
  first = aj.sweep(net, arrays, **options)
  assert len(first.table) == 8
  (path,) = (tmp_path / 'runs').iterdir()
  assert capsys.readouterr() == ('', '')
  again = aj.sweep(net, arrays, **(options | {'progress': True}))
  assert again.table.equals(first.table)
  assert f'{path.name} is finished' in capsys.readouterr().err
  aj.sweep(net, (arrays[0] + 1, arrays[1]), **options)
  assert len(list((tmp_path / 'runs').iterdir())) == 2  # other data, another run


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'epoch': 2.0}, "option 'epoch': .*did you mean 'epochs'"),
    ({'train': {'epoch': 2.0}}, "option 'train.epoch'"),
    ({'seeds': 0}, 'config.num_seeds 0: expected 1 to 10,000'),
    ({'top_k': 99}, 'config.sweep.top_k 99: expected at most'),
    ({'experiment': 'dna'}, "option 'experiment'"),
    ({'metrics': ('top3',)}, 'metric top3 of 3 classes, which is always 1: expected fewer'),
    ({'dtype': np.float16}, "dtype 'float16': expected one of float32, bfloat16"),
    ({'frozen': ('emb3d',)}, 'fits no leaf of the pool'),
    ({'frozen': ('.*',)}, 'is all of the pool'),
    ({'learning_rates': {'emb3d': 0.1}}, 'fits no leaf of the pool'),
    ({'frozen': ('embed(',)}, r"frozen 'embed\(': expected a regular expression"),
    ({'learning_rates': {'embed': -0.1}}, "learning_rates 'embed' -0.1: expected what multiplies"),
    ({'batch_size': 32, 'accumulate': 5}, 'accumulate 5 of config.train.batch_size 32: expected a'),
  ],
)
def test_options_that_cannot_be(net, arrays, tmp_path, options, message):
  with pytest.raises(UserError, match=message):
    aj.sweep(net, arrays, workdir=tmp_path / 'run', **options)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('call', 'options', 'message'),
  [
    ('prune', {'seeds': 2}, 'config.num_seeds 2: expected 1, since one network is pruned'),
    (
      'prune',
      {'modes': ('shared',)},
      "option 'modes' of prune: expected none.*stochastic",
    ),
    ('prune', {'structures': ('110',)}, "option 'structures' of prune: expected none.* cotrain"),
    ('prune', {'population': 8}, "option 'population' of prune: expected none.* sweep, cotrain"),
    ('cotrain', {'halving': 2}, "option 'halving' of cotrain: expected none, it is one of sweep"),
    ('sweep', {'cotrain.top_k': 3}, "option 'cotrain.top_k' of sweep: expected none.* cotrain"),
    ('sweep', {'seeds': 1, 'num_seeds': 2}, "option 'num_seeds', 1 and 2: expected it once"),
  ],
)
def test_options_of_another_call_are_refused_first(call, options, message):
  """Before data are read: of this name there are none."""
  with pytest.raises(UserError, match=message):
    getattr(aj, call)(aj.models.MLP(2, 4, 4, 3), 'tfds:none', **options)


def test_names_of_options():
  named = lambda experiment, **given: dict(front.named_options(experiment, given.items()))
  assert named('sweep', top_k=3) == {'sweep.top_k': 3}
  assert named('cotrain', top_k=3) == {'cotrain.top_k': 3}
  assert named('sweep', optimizer='sgd', learning_rate=0.1, method='evolution') == {
    'optimizer.name': 'sgd',
    'learning_rate': 0.1,
    'search.method': 'evolution',
  }
  assert named('sweep', **{'model.kwargs': {'a': 1}}) == {'model.kwargs': {'a': 1}}


def test_data_as_people_have_it(arrays):
  assert front.made('digits').name == 'digits'
  data = front.made(arrays)
  assert front.made(data) is data
  assert len(front.made(aj.data.ArraySplit(*arrays)).test) == len(data.test)
  with pytest.raises(UserError, match='data of type int: expected'):
    front.made(3)
  x, y = arrays[0], np.where(np.arange(len(arrays[1])) % 5, arrays[1], -1)
  with pytest.raises(UserError, match='where -1 means no label: ignore_label of the task'):
    front.made((x, y))
  _, opening = front.opened('sweep', 'mlp', (x, y), {'ignore_label': -1})
  assert opening['data'].task == aj.Task('classification', ignore_label=-1)


def test_functions_are_known_by_what_they_do(net, arrays, tmp_path):
  """Not by their names alone: a directory with another's results is refused."""

  def making(power):
    def focal(outputs, y):
      log_p = jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y]
      return -((1 - jnp.exp(log_p)) ** power) * log_p

    return focal

  options = QUICK | {'seeds': 1, 'modes': ('shared',), 'shared_epochs': 0.5, 'workdir': tmp_path}
  margin = lambda outputs, y: outputs.max(-1) - outputs.min(-1)
  mine = {'loss': making(2.0), 'metrics': ['accuracy', margin]}
  first = aj.sweep(net, arrays, **options, **mine)
  again = aj.sweep(net, arrays, **options, **mine | {'loss': making(2.0)})
  assert again.table.equals(first.table)
  for other in ({'loss': making(3.0)}, {'metrics': ['accuracy', lambda outputs, y: outputs[:, 0]]}):
    with pytest.raises(
      UserError, match=r'another config: code\.(focal|<lambda>): .* there, '
    ) as told:
      aj.sweep(net, arrays, **options, **mine | other)
    assert '\n' not in str(told.value)
  # A version that kept no digests goes on by names.
  path = tmp_path / 'config.json'
  values = json.loads(path.read_text())
  del values['code'], values['crc']
  path.write_text(json.dumps(values))
  assert aj.sweep(net, arrays, **options, **mine | {'loss': making(3.0)}).table.equals(first.table)


def test_digests_of_functions():
  schedule = lambda peak: optax.cosine_decay_schedule(peak, 10)
  mean = lambda scale: functools.partial(lambda scale, o, y: scale * o.mean(-1), scale)
  same = lambda make, *values: [digest_of(make(value)) == digest_of(make(1.0)) for value in values]
  assert same(lambda rate: optax.adam(rate), 1.0, 2.0) == [True, False]
  assert same(lambda rate: optax.adam(schedule(rate)), 1.0, 2.0) == [True, False]
  assert same(mean, 1.0, 2.0) == [True, False]
  assert same(lambda value: jax.jit(mean(value)), 1.0, 2.0) == [True, False]
  assert same(lambda value: lambda o, y: o * np.full(3, value), 1.0, 2.0) == [True, False]


def test_small_data_make_small_batches(net, arrays):
  config, _ = front.opened('sweep', net, arrays, {})
  assert config.train.batch_size < 120


def test_prune(net, arrays, tmp_path):
  options = QUICK | {'workdir': tmp_path / 'run'}
  pruned = aj.prune(net, arrays, budget=0.6, heal_epochs=1.0, **options)
  assert pruned.after['flops'] <= 0.6 * pruned.before['flops']
  assert pruned.unhealed['loss'] != pruned.after['loss']
  assert pruned.receipt.max_difference < 1e-4
  candidates = pruned.result.candidates
  assert candidates['loss'].is_monotonic_increasing
  assert str(pruned.structure) == candidates['structure'][0]
  assert (candidates['flops'] <= 0.6 * pruned.before['flops']).all()
  logits = pruned.model.apply(pruned.variables, arrays[0][:5])
  directory = pruned.export(tmp_path / 'small')
  model, variables = export.load(directory)
  np.testing.assert_array_equal(model.apply(variables, arrays[0][:5]), logits)
  again = aj.prune(net, arrays, budget=0.6, heal_epochs=1.0, **options)
  assert again.after == pruned.after
  with pytest.raises(UserError, match=r'prune\.budget'):
    aj.prune(net, arrays, budget=0.5, heal_epochs=1.0, **options)


def test_prune_of_a_pool_that_is_given(net, arrays, random_pool, tmp_path):
  pool = random_pool(net, arrays[0][:1])
  options = QUICK | {'workdir': tmp_path / 'run', 'heal_epochs': 0}
  pruned = aj.prune(net, arrays, pool, budget=0.7, cost='params', **options)
  assert pruned.after['params'] <= 0.7 * pruned.before['params']
  assert pruned.after['loss'] == pytest.approx(pruned.unhealed['loss'])
  expected = net.apply(pool, arrays[0][:5], pruned.structure)
  actual = pruned.model.apply(pruned.variables, arrays[0][:5])
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_prune_searches_many(arrays, random_pool, tmp_path, monkeypatch):
  monkeypatch.setattr('additive_jax.experiments.prune.searching.ENUMERATED', 4)
  net = aj.models.MLP(num_blocks=6, width=8, hidden=4, num_classes=3)
  pool = random_pool(net, arrays[0][:1])
  options = QUICK | {'workdir': tmp_path / 'run', 'heal_epochs': 0}
  pruned = aj.prune(net, arrays, pool, budget=0.5, **options)
  assert pruned.after['flops'] <= 0.5 * pruned.before['flops']
  assert len(pruned.result.candidates) > 1


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (
      lambda leaf: leaf * np.nan,
      r'block_00/in/bias, 4 of 4 numbers not finite: expected finite ones',
    ),
    (lambda leaf: leaf.astype(int), r'block_00/in/bias of dtype int64: expected float32'),
  ],
)
def test_pools_that_cannot_be(net, arrays, tmp_path, random_pool, spoil, message):
  pool = jax.tree.map(lambda leaf: spoil(np.asarray(leaf)), random_pool(net, arrays[0][:1]))
  with pytest.raises(UserError, match=message):
    aj.sweep(net, arrays, variables=pool, workdir=tmp_path / 'run', **QUICK)
  with pytest.raises(UserError, match=message):
    aj.prune(net, arrays, pool, budget=0.5, workdir=tmp_path / 'run', **QUICK)
  assert not (tmp_path / 'run').exists()


def test_a_pool_of_bfloat16_is_trained_in_float32(net, arrays, tmp_path, random_pool):
  pool = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_pool(net, arrays[0][:1]))
  options = QUICK | {'seeds': 1, 'modes': ('shared',), 'workdir': tmp_path / 'run'}
  aj.sweep(net, arrays, variables=pool, **options)
  restored = aj.restore_pool(tmp_path / 'run', net, arrays[0][:1])
  assert {leaf.dtype for leaf in jax.tree.leaves(restored)} == {np.dtype('float32')}


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'budget': 0}, 'config.prune.budget 0'),
    ({'budget': float('nan')}, 'config.prune.budget nan'),
    ({'cost': 'bytes'}, "config.prune.cost 'bytes': expected one of params, flops, latency"),
    ({'heal_epochs': -1}, 'config.prune.heal_epochs -1'),
    ({'method': 'gready'}, "config.prune.method 'gready': expected .*did you mean 'greedy'"),
    ({'calibration_examples': 10**6}, 'expected at most the 12 of the split to choose by'),
    ({'alone': True}, 'config.prune.alone True .*: expected several candidates'),
  ],
)
def test_what_cannot_be_pruned_is_refused(net, arrays, tmp_path, given, message):
  with pytest.raises(UserError, match=message):
    aj.prune(net, arrays, workdir=tmp_path / 'run', **(QUICK | given))
  assert not (tmp_path / 'run').exists()


def test_a_budget_below_all_off(net, arrays, tmp_path):
  with pytest.raises(UserError, match=r'budget 0.01, 16 FLOPs: expected at least 0\.14'):
    aj.prune(net, arrays, budget=0.01, workdir=tmp_path / 'run', **QUICK)
  assert not (tmp_path / 'run').exists()


def test_values_that_are_an_options(net, arrays):
  given = {'augment': ('flip',), 'optimizer': 'sgd', 'learning_rates': {'embed': 0.1}}
  given |= {'dtype': jnp.bfloat16}
  config, opening = front.opened('sweep', net, arrays, given)
  assert config.data.augment == ('flip',)
  assert config.optimizer.name == 'sgd'
  assert config.train.learning_rates == {'embed': 0.1}
  assert config.train.dtype == 'bfloat16'
  assert not given.keys() & opening.keys()
  flipped = lambda key, x, y: (x[..., ::-1], y)
  assert front.opened('sweep', net, arrays, {'augment': flipped})[1]['augment'] is flipped


def test_a_run_on_arrays_is_exported(net, arrays, tmp_path):
  workdir = tmp_path / 'run'
  aj.sweep(net, arrays, workdir=workdir, **QUICK, seeds=1, modes=('shared',))
  again = r"given its data, 'arrays', in Python, which no command has: .* data=\(x, y\)\)"
  with pytest.raises(UserError, match=again):
    export.export_run(workdir, '110', tmp_path / 'small')
  with pytest.raises(UserError, match='data arrays of digest'):
    export.export_run(
      workdir, '110', tmp_path / 'small', model=net, data=(arrays[0] + 1, arrays[1])
    )
  assert not (tmp_path / 'small').exists()
  export.export_run(workdir, '110', tmp_path / 'small', model=net, data=arrays)
  module, variables = export.load(tmp_path / 'small')
  assert module.apply(variables, arrays[0]).shape == (120, 3)
  alone = functools.partial(aj.export_run, workdir, '110', tmp_path / 'alone', model=net)
  for options, message in (
    ({'seed': 1}, 'seed 1 without alone'),
    ({'alone': True, 'ema': True}, 'ema with alone'),
    ({'alone': True, 'checkpoint': 'shared-seed0'}, "checkpoint 'shared-seed0' with alone"),
    ({'alone': True, 'seed': 1}, 'seed 1 of .*run: expected 0 to 0'),
    ({'alone': True}, 'structure 110 alone, seed 0, in .*: expected one that the run has trained'),
  ):
    with pytest.raises(UserError, match=message):
      alone(data=arrays, **options)
  line = {'seed': 0, 'variant': '110', 'structure': '110', 'loss': 0.5}
  Journal(workdir / 'journals' / 'sweep.jsonl').append(line)
  with pytest.raises(UserError, match=r'not kept: expected a sweep with config.sweep.keep_alone'):
    alone(data=arrays, alone=True)
  assert not (tmp_path / 'alone').exists()


def test_a_network_that_was_trained_alone_is_exported(net, arrays, tmp_path):
  """It scores what `structures.csv` ranks it by."""
  workdir, seeds = tmp_path / 'run', [0, 1]
  options = QUICK | {'seeds': len(seeds), 'modes': ('standalone',), 'keep_alone': True}
  best = aj.sweep(net, arrays, workdir=workdir, **options).table.iloc[0]
  data, losses = front.made(arrays), []
  for seed in seeds:
    small = tmp_path / f'small-{seed}'
    given = {'model': net, 'data': arrays, 'alone': True, 'seed': seed}
    aj.export_run(workdir, best['structure'], small, **given)
    module, variables = aj.export.load(small)
    log_p = jax.nn.log_softmax(module.apply(variables, data.valid.x))
    losses.append(float(-log_p[jnp.arange(len(data.valid)), data.valid.y].mean()))
    described = json.loads((small / 'model.json').read_bytes())
    assert (described['alone'], described['seed']) == (True, seed)
    assert described['scores']['loss'] == pytest.approx(losses[-1], rel=1e-6)
  assert np.mean(losses) == pytest.approx(best['loss'], rel=1e-6)
  assert losses[0] != losses[1]
  file = workdir / 'checkpoints' / 'alone-seed0' / f'{best["structure"]}.msgpack'
  file.write_bytes(b'')
  with pytest.raises(UserError, match='damaged or missing'):
    aj.export_run(workdir, best['structure'], tmp_path / 'x', model=net, data=arrays, alone=True)
