"""Exp 4 and DNA: which networks are compared, what a run leaves, and going on after a kill."""

import json

import jax
import numpy as np
import pytest
import studies
import tiny

from additive_jax import UserError
from additive_jax.experiments import contenders, dna, experts
from additive_jax.experiments.opening import open_session
from additive_jax.models import DNA, MLP, Experts, Routing
from additive_jax.parallel import processes
from additive_jax.report import paths
from additive_jax.run.inspection import inspect

SHARED, EXPERTS, DNAS = studies.IMAGES, *(studies.CASES[n].options for n in ('experts', 'dna'))


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)), tiny.two_sizes():
    yield


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
  return studies.finished('experts', tmp_path_factory)


@pytest.fixture(scope='module')
def distributed(tmp_path_factory):
  return studies.finished('dna', tmp_path_factory)


def session_of(experiment, options, tmp_path):
  config = tiny.config(experiment, options)
  return open_session(config, tmp_path / 'run', check=lambda session: None, devices=1)


ROUTERS = ('softmax', 'factorised', 'marginal', 'random', 'moe')


@pytest.mark.slow
@pytest.mark.parametrize(
  'routers',
  [('softmax', 'random', 'moe'), pytest.param(ROUTERS, marks=pytest.mark.thorough)],
  ids=['some', 'all'],
)
def test_networks_have_the_budget_of_the_dense_one(routers, tmp_path):
  options = SHARED | {'experts.num_experts': 4, 'experts.shared_router': True}
  options |= {'experts.variants': routers}
  with session_of('experts', options, tmp_path) as session:
    found = {c.name: c for c in experts.make_contenders(session)}
    x = session.test[0][:1]
    kinds = {'flops': contenders.active_flops, 'params': contenders.num_params}
    for budget, cost in kinds.items():
      target = cost(found['dense'].model, x)
      for router in routers:
        model = found[f'{router}_equal_{budget}'].model
        own, more = (cost(model.clone(hidden=model.hidden + i), x) for i in (0, 1))
        assert abs(own - target) <= (more - own) / 2
    shared = {name: c.model.routing.shared for name, c in found.items() if 'softmax' in name}
    assert all(shared.values())
    assert len(found) == 1 + 2 * len(routers)
    assert found['moe_equal_flops'].model.routing == Experts(4, 2)
    assert isinstance(found['random_equal_flops'].model.routing, Routing)
    single = experts.make_contenders(session, '01')[1]
    assert (single.name, str(single.structure)) == ('single', '01')


@pytest.mark.slow
def test_what_exp4_leaves(mixed):
  result, workdir = mixed
  names = ['dense', 'single', 'softmax_equal_params', 'moe_equal_params']
  assert result.variants['variant'].tolist() == names
  assert sorted(result.table['structure']) == ['00', '01', '10', '11']
  first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
  assert list(result.table)[:7] == first
  assert result.routers['site'].tolist() == ['block_00/mlp'] * 2
  assert {'entropy', 'kept', 'utilisation_max', 'max_violation', 'dead'} < set(result.routers)
  summary = json.loads((workdir / 'summary.json').read_text())
  assert set(summary['variants']) == set(names)
  below = result.table[result.table['structure'] != '11']
  best = below.loc[below['train_loss'].idxmin(), 'structure']
  assert summary['single_structure'] == best
  assert 'path_exponent' in summary['variants']['softmax_equal_params']['first_seed']
  page = (workdir / 'report.html').read_text()
  for text in (
    'paired by',
    'What tokens choose',
    'Tokens that are computed',
    'MaxVio',
    'parameters',
  ):
    assert text in page
  assert page.index('<img') < page.index('<table')
  metrics = (workdir / 'metrics.jsonl').read_text()
  assert '"block_00/mlp/max_violation"' in metrics
  assert '"block_00/mlp/kept"' in metrics


@pytest.mark.slow
def test_differences_are_paired_by_seed(mixed):
  result, workdir = mixed
  lines = (workdir / 'journals' / 'experts.jsonl').read_text().splitlines()
  records = {(r['seed'], r['variant']): r for r in map(json.loads, lines)}
  assert set(records) == {
    (seed, name) for seed in (0, 1) for name in ('pool', *result.variants['variant'])
  }
  rows = result.variants.set_index('variant')
  for name in rows.index:
    own = np.array([records[seed, name]['loss'] for seed in (0, 1)])
    assert rows.loc[name, 'loss'] == pytest.approx(own.mean())
    if name != 'dense':
      apart = own - [records[seed, 'dense']['loss'] for seed in (0, 1)]
      assert rows.loc[name, 'loss_minus_dense'] == pytest.approx(apart.mean())
  kept = [records[seed, 'softmax_equal_params']['sites']['block_00/mlp']['kept'] for seed in (0, 1)]
  assert result.routers.loc[0, 'kept'] == pytest.approx(np.mean(kept))
  assert records[0, 'softmax_equal_params']['flops'] != records[1, 'softmax_equal_params']['flops']


@pytest.mark.slow
def test_inspection_is_the_evaluation_whatever_the_batches(mixed, tmp_path):
  """Losses are those of shared-prefix evaluation, and loads those counted from the choices."""
  with session_of('experts', EXPERTS | {'experts.keep': 1.0}, tmp_path) as session:
    contender = experts.make_contenders(session)[1]
    own = contender.session
    pool = processes.to_host(own.trainer(contender.recipe, contender.sampler, 0).variables)
    found = inspect(own.model, own.task, pool, session.test)
    want = own.evaluate(pool, [contender.structure])
    np.testing.assert_allclose(
      list(found.scores.values()), np.ravel(list(want.scores.values())), rtol=1e-5
    )
    assert found.chosen.shape == (40, 4, 1, 2)
    whole = found.chosen[:32]  # the last 8 do not fill a batch
    load = paths.utilisation(whole, 4) / 4
    np.testing.assert_allclose(found.facts['block_00__mlp'].load, load, atol=1e-6)


@pytest.mark.slow
def test_what_dna_leaves(distributed):
  result, workdir = distributed
  names = ['dense', 'shallow', 'dna', 'dna_skipping']
  assert result.variants['variant'].tolist() == names
  rows = result.variants.set_index('variant')
  for dense, free in (('dense', 'dna'), ('shallow', 'dna_skipping')):
    assert rows.loc[dense, 'flops'] == pytest.approx(rows.loc[free, 'flops'], rel=0.05)
  assert result.modules['module'].tolist() == ['attention 0', 'mlp 0', 'identity 0']
  assert result.modules['load'].mean() == pytest.approx(1)
  assert len(result.paths) == 36 * 4
  step = result.paths['step_00'].str.split(r' \+ ', expand=True)
  assert set(step.to_numpy().ravel()) <= set(result.modules['module'])
  identities = result.paths[['step_00', 'step_01']].apply(lambda c: c.str.count('identity'))
  np.testing.assert_allclose(result.paths['compute'], 1 - identities.sum(axis=1) / 4)
  counts = result.paths['path'].value_counts()
  np.testing.assert_array_equal(result.paths['path_tokens'], counts[result.paths['path']])
  summary = result.summary['variants']['dna_skipping']['first_seed']
  assert summary['compute_share'] == pytest.approx(result.paths['compute'].mean())
  assert {'path_exponent', 'path_exponent_ci95', 'uses_per_module', 'class_bits'} < set(summary)
  page = (workdir / 'report.html').read_text()
  for text in ('Paths in dna skipping', 'Specialisation', 'Reuse of parameters', 'power laws'):
    assert text in page


def test_a_model_of_your_own_must_be_a_transformer(tmp_path):
  model = MLP(1, 8, 8, 10)
  with pytest.raises(UserError, match='MLP for networks with routers'):
    dna.run(tiny.config('dna', DNAS), tmp_path / 'run', model=model, devices=1)


@pytest.mark.slow
def test_dnas_are_made_of_the_options(tmp_path):
  options = {'dna.block': 1, 'dna.rescale_inside': True, 'dna.renormalise': True, 'dna.skip': 0.0}
  options |= {'dna.shared_keys': True}
  with session_of('dna', DNAS | options, tmp_path) as session:
    (found,) = dna.make_dnas(session)
    model = found.model
    assert isinstance(model, DNA)
    assert (model.modules.block, model.modules.rescale_inside, model.modules.skip) == (1, True, 0.0)
    assert model.modules.renormalise
    assert model.modules.shared_keys
    assert [c.name for c in dna.make_baselines(session, {'dna': 1e5})] == ['dense']


@pytest.mark.slow
def test_routers_have_a_learning_rate_of_their_own(tmp_path):
  """At a rate of 0 they stay where they began, and all else moves; dense networks have none."""
  options = DNAS | {'balance.router_rate': 0.0, 'dna.skip': 0.0}
  with session_of('dna', options, tmp_path) as session:
    (found,), (dense,) = dna.make_dnas(session), dna.make_baselines(session, {'dna': 1e5})
    assert not dense.recipe.learning_rates
    begun = processes.to_host(found.begin(0)[0].variables)['params']
    trained = found.train(0).variables['params']
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, begun, trained)
  assert not moved['step_00']['router']['kernel']
  assert not moved['step_01']['router']['kernel']
  assert moved['embed']['kernel']
  assert moved['pool']['mlp_mlp_in']['kernel']


def test_networks_without_routers_have_no_rate_of_theirs(tmp_path):
  options = SHARED | {'balance.router_rate': 0.5, 'train.learning_rates': {'embed': 0.1}}
  options |= {'experts.variants': ('softmax', 'random'), 'experts.budgets': ('params',)}
  with session_of('experts', options, tmp_path) as session:
    rates = [len(c.recipe.learning_rates) for c in experts.make_contenders(session)]
  assert rates == [1, 2, 1]  # dense, softmax, random
