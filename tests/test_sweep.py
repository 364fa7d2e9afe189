"""Exp 1 against brute force, plain loops and itself."""

import functools
import html
import itertools
import json
import logging
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.stats
import studies
import tiny

import additive_jax
from additive_jax import data as data_
from additive_jax import run as run_
from additive_jax.errors import UserError
from additive_jax.experiments import sweep

COLUMNS = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
DIFFERENCE = ['loss_minus_all_on', 'loss_minus_all_on_ci95']
SHARED = [
  'shared_loss',
  'shared_loss_ci95',
  'shared_accuracy',
  *(f'shared_{name}' for name in DIFFERENCE),
  'shared_rank',
]
ALONE = ['accuracy_ci95', 'train_loss', 'steps', *DIFFERENCE, 'skipped']


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  return studies.finished('sweep', tmp_path_factory)


@pytest.fixture(scope='module')
def iris():
  return data_.load('tabular:iris', valid=0.0)


def journal(workdir, name):
  lines = (workdir / 'journals' / name).read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_directory(swept):
  result, workdir = swept
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
    'config.json',
    'environment.json',
    'metrics.jsonl',
    'tensorboard',
    'checkpoints',
    'structures.csv',
    'effects.csv',
    'interactions.csv',
    'summary.json',
    'report.html',
  }
  table = pd.read_csv(workdir / 'structures.csv', dtype={'structure': str})
  assert list(table) == [*COLUMNS, *SHARED, *ALONE, 'pareto']
  assert len(table) == 8
  assert list(result.effects) == ['gate', 'effect', 'ci95', 'rank']
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['best_structure'] == table['structure'][0]
  assert summary['finished']
  assert summary['noise_ceiling'].keys() == set(additive_jax.report.rankings.NoiseCeiling._fields)
  assert '<script src' not in (workdir / 'report.html').read_text()


def details(workdir):
  """What the collapsed part of a report opens to."""
  page = (workdir / 'report.html').read_text()
  found = re.search(r'<details><summary>(.*?)</summary>(.*?)</details>', page, re.DOTALL)
  assert page.count('<details') == 1
  return [html.unescape(text) for text in re.findall(r'<(?:h3|pre)>(.*?)<', found[2], re.DOTALL)]


def test_report_tells_the_options(swept, tmp_path):
  heading, options = details(swept[1])
  assert heading == 'Options'
  lines = dict(line.split(maxsplit=1) for line in options.splitlines())
  assert lines['train.epochs'] == '2.0'
  assert lines['data.name'] == '"tabular:iris"'
  assert lines['sweep.modes'] == '["standalone", "shared"]'
  assert 'shard' not in lines
  saved = json.loads((swept[1] / 'config.json').read_text())
  assert json.loads(lines['gates']) == saved['gates']


@pytest.mark.slow
def test_report_of_one_seed_claims_no_interval_and_tells_the_command(tmp_path):
  config = tiny.config('sweep', {'num_seeds': 1})
  command = 'python -m additive_jax.launch --config=a.py'
  result = sweep.run(config, tmp_path / 'run', devices=2, command=command)
  assert np.isnan(result.table['loss_ci95']).all()
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert '3 gates, 1 seed, no intervals;' in page
  assert '95 %' not in page
  assert 'nan' not in re.sub(r'<img .*?>', '', page)
  assert details(tmp_path / 'run')[1] == command


def test_report_of_several_seeds_tells_of_intervals(swept):
  page = (swept[1] / 'report.html').read_text()
  assert '3 gates, 2 seeds;' in page
  assert 'Test loss by rank, with 95 % intervals over the seeds.' in page


def test_table_is_in_rank_order(swept):
  table = swept[0].table
  assert table['rank'].tolist() == list(range(1, 9))
  assert table['loss'].is_monotonic_increasing
  assert sorted(table['structure']) == [f'{i:03b}' for i in range(8)]


def test_means_and_intervals_over_the_seeds(swept):
  result, workdir = swept
  records = [r for r in journal(workdir, 'sweep.jsonl') if r['variant'] != 'shared']
  for row in result.table.itertuples():
    losses = [r['loss'] for r in records if r['structure'] == row.structure]
    assert len(losses) == 2
    assert row.loss == pytest.approx(np.mean(losses), rel=1e-12)
    half_width = scipy.stats.t.ppf(0.975, 1) * np.std(losses, ddof=1) / np.sqrt(2)
    assert row.loss_ci95 == pytest.approx(half_width, rel=1e-9)


@pytest.mark.parametrize('structure', ['101', '011'])
def test_standalone_equals_a_plain_training_loop(swept, iris, structure):
  workdir, seed = swept[1], 1
  model = additive_jax.models.MLP(3, 8, 8, 3)
  x, y = iris.train.x, iris.train.y
  key = jax.random.fold_in(jax.random.key(seed), 0)
  params = model.init(key, x[:1], structure)['params']
  num_steps = 15
  optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, num_steps), weight_decay=1e-4)
  state = optimizer.init(params)

  def loss_of(params, x, y):
    logits = model.apply({'params': params}, x, structure)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  @jax.jit
  def step(params, state, x, y):
    updates, state = optimizer.update(jax.grad(loss_of)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state

  for rows in data_.Order(len(x), 16, seed).indices(0, num_steps):
    params, state = step(params, state, x[rows], y[rows])
  want = loss_of(params, iris.test.x, iris.test.y)
  untrained = loss_of(model.init(key, x[:1])['params'], iris.test.x, iris.test.y)
  records = [r for r in journal(workdir, 'sweep.jsonl') if r['variant'] != 'shared']
  got = next(r for r in records if (r['seed'], r['structure']) == (seed, structure))
  # Fifteen float32 steps of Adam, compiled differently.
  assert got['loss'] == pytest.approx(float(want), rel=1e-4)
  assert abs(want - untrained) > 0.01


def test_shared_losses_are_those_of_each_structure_in_the_pool(swept, iris):
  from additive_jax.experiments.opening import open_session
  from additive_jax.files.checkpoint import Checkpointer

  result, workdir = swept
  by_seed = []
  opening = open_session(tiny.config('sweep'), workdir, check=lambda session: None, devices=2)
  with opening as session:
    for seed in session.seeds:
      trainer = session.trainer(session.training.recipe(15), session.training.sampler(15), seed)
      folder = workdir / 'checkpoints' / f'shared-seed{seed}'
      with Checkpointer(folder, identity=session.identity) as checkpoints:
        state = checkpoints.restore(trainer.state).state
      pool = jax.device_get({'params': state.params})
      logits = [run_.static(session.model, pool, iris.test.x, s) for s in result.table['structure']]
      losses = jax.vmap(optax.softmax_cross_entropy_with_integer_labels, in_axes=(0, None))
      by_seed.append(losses(jnp.stack(logits), iris.test.y).mean(-1))
  # Thirty examples' float32 losses, added up in another order.
  np.testing.assert_allclose(result.table['shared_loss'], np.mean(by_seed, 0), rtol=1e-5)
  assert np.ptp(result.table['shared_loss']) > 0.01


def test_effects_and_interactions_by_brute_force(swept):
  result, _ = swept
  loss = dict(zip(result.table['structure'], result.table['loss']))
  mean = lambda test: np.mean([value for structure, value in loss.items() if test(structure)])
  names = result.effects['gate'].tolist()
  assert names == ['block_00/residual', 'block_01/residual', 'block_02/residual']
  for i, effect in enumerate(result.effects['effect']):
    want = mean(lambda s, i=i: s[i] == '1') - mean(lambda s, i=i: s[i] == '0')
    assert effect == pytest.approx(want, abs=1e-12)
  assert result.interactions['gate'].tolist() == names
  matrix = result.interactions[names].to_numpy()
  for i, j in itertools.combinations(range(3), 2):
    at = lambda a, b, i=i, j=j: mean(lambda s: s[i] + s[j] == a + b)
    want = at('1', '1') - at('1', '0') - at('0', '1') + at('0', '0')
    assert matrix[i, j] == matrix[j, i] == pytest.approx(want, abs=1e-12)
  assert not matrix.diagonal().any()


def test_agreement_and_pareto_front(swept):
  result, _ = swept
  table, agreement = result.table, result.agreement
  tau = scipy.stats.kendalltau(table['shared_loss'], table['loss']).statistic
  assert agreement['tau'] == pytest.approx(tau)
  best = set(table['structure'][:3])
  found = set(table.sort_values('shared_loss')['structure'][:3])
  assert agreement['top_k_recall'] == pytest.approx(len(best & found) / 3)
  reached = table[table['structure'].isin(found)]['loss'].min()
  assert agreement['regret'] == pytest.approx(reached - table['loss'].min())
  for row in table.itertuples():
    beaten = (table['flops'] <= row.flops) & (table['loss'] < row.loss)
    beaten |= (table['flops'] < row.flops) & (table['loss'] <= row.loss)
    assert row.pareto == (not beaten.any())


def test_costs(swept, iris):
  space = additive_jax.measure(additive_jax.models.MLP(3, 8, 8, 3), iris.train.x[:1])
  for row in swept[0].table.itertuples():
    assert (row.flops, row.params) == (space.flops(row.structure), space.params(row.structure))


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['shared', 'standalone'])
def test_one_mode_gives_the_numbers_it_gives_beside_the_other(
  swept, tmp_path, mode, caplog, monkeypatch
):
  monkeypatch.setattr(logging.getLogger('additive_jax'), 'propagate', True)
  both = swept[0].table.set_index('structure').sort_index()
  config = tiny.config('sweep', {'sweep.modes': (mode,)})
  with caplog.at_level(logging.INFO, 'additive_jax'):
    result = sweep.run(config, tmp_path / 'run', devices=2)
  assert caplog.messages[-1] == f'report: {tmp_path / "run" / "report.html"}'
  assert not result.agreement
  table = result.table
  assert list(table) == [
    *COLUMNS,
    *([*SHARED, *DIFFERENCE] if mode == 'shared' else ALONE),
    'pareto',
  ]
  table = table.set_index('structure').sort_index()
  prefix = 'shared_' if mode == 'shared' else ''
  for column in ('loss', 'accuracy', 'loss_ci95'):
    assert table[column].tolist() == both[f'{prefix}{column}'].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
  'method', ['evolution', pytest.param('random', marks=pytest.mark.thorough)]
)
def test_search(tmp_path, method):
  options = {
    'model.num_blocks': 4,
    'search.method': method,
    'search.budget': 12,
    'search.population': 4,
    'sweep.modes': ('standalone', 'shared') if method == 'evolution' else ('shared',),
  }
  result = sweep.run(tiny.config('sweep', options), tmp_path / 'run', devices=2)
  table = result.table
  assert len(set(table['structure'])) == len(table) == 12
  assert {'1111', '0000'} <= set(table['structure'])
  assert table['rank'].tolist() == list(range(1, 13))
  assert result.summary['all_on_rank'] == table['structure'].tolist().index('1111') + 1
  if method == 'random':
    assert table['shared_loss'].is_monotonic_increasing
    return
  trained = table['loss'].notna()
  assert trained.tolist() == [True] * 6 + [False] * 6  # the best 3 of the search, and 3 at random
  assert set(table.nsmallest(3, 'shared_loss')['structure']) <= set(table['structure'][:6])
  assert table['loss'][:6].is_monotonic_increasing
  assert table['shared_loss'][6:].is_monotonic_increasing
  bits = np.array([[c == '1' for c in s] for s in table['structure']])
  want = additive_jax.report.statistics.effects_from_sample(bits, table['shared_loss'])[0]
  np.testing.assert_allclose(result.effects['effect'], want, rtol=1e-9)
  assert result.agreement['num_structures'] == 6


class Narrow(nn.Module):
  width: int
  activation: object = functools.partial(nn.leaky_relu, negative_slope=0.1)

  @nn.compact
  def __call__(self, h):
    return nn.Dense(h.shape[-1])(self.activation(nn.Dense(self.width)(h)))


class Own(additive_jax.models.Additive):
  """A user's network, with a function among its fields."""

  num_classes: int
  width: int = 4
  activation: object = functools.partial(nn.leaky_relu, negative_slope=0.1)

  def setup(self):
    self.embed = nn.Dense(6)
    self.sites = [Narrow(self.width, self.activation, name=f'site_{i}') for i in range(2)]
    self.readout = nn.Dense(self.num_classes)


@pytest.mark.slow
def test_own_model_by_name_or_as_an_object_on_own_data(tmp_path):
  random = np.random.default_rng(0)
  x = random.normal(size=(90, 4)).astype(np.float32)
  y = (x[:, :1] * x[:, 1:2]).astype(np.float32)
  parts = (data_.ArraySplit(x[rows], y[rows]) for rows in (slice(60), slice(60, None)))
  data = data_.Data('products', 'regression', *parts, num_outputs=1)
  config = tiny.config('sweep', {'sweep.top_k': 2, 'model.name': 'test_sweep:Own'})
  config.model.kwargs.width = 5
  result = sweep.run(config, tmp_path / 'run', data=data, devices=2)
  assert sorted(result.table['structure']) == ['00', '01', '10', '11']
  assert result.effects['gate'].tolist() == ['site_0/residual', 'site_1/residual']
  # One minus the loss in units of the variance that is judged; both are sums of float32.
  r2 = 1 - result.table['loss'] / y[60:].var()
  np.testing.assert_allclose(result.table['r2'], r2, atol=1e-5)
  saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert saved['data']['name'] == 'products'
  assert saved['model']['name'] == 'Own'
  assert 'width=5' in saved['model']['fields']
  # The same model as an object is the same run, whose functions lie anywhere in memory.
  again = sweep.run(config, tmp_path / 'run', model=Own(1, 5), data=data, devices=2)
  pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)
  assert ' at 0x' in repr(Own(1, 5))
  with pytest.raises(UserError, match='width'):
    sweep.run(config, tmp_path / 'run', model=Own(1, 6), data=data, devices=2)
