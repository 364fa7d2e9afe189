"""Exp 4 and DNA: which networks are compared, what a run leaves, and going on after a kill."""

import json

import numpy as np
import pytest
import tiny

from additive_jax import UserError
from additive_jax.experiments import contenders, dna, experts
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.scores import evaluate
from additive_jax.models import DNA, MLP, Experts, Routing
from additive_jax.parallel import processes
from additive_jax.report import paths
from additive_jax.run.inspection import inspect

# Images of 4 tokens, 6 steps of one structure.
SHARED = {
  'data.name': 'digits',
  'data.train_examples': 48,
  'data.test_examples': 40,
  'model.name': 'transformer',
  'model.patch_size': 4,
  'model.num_blocks': 1,
  'model.width': 8,
  'model.num_heads': 2,
  'model.hidden': (24,),
  'model.num_chunks': 3,
  'train.epochs': 1.0,
  'train.batch_size': 8,
  'train.structures_per_step': 1,
  'train.log_every': 3,
}
EXPERTS = SHARED | {
  'experts.variants': ('softmax', 'single', 'moe'),
  'experts.budgets': ('params',),
  'experts.keep': 0.6,
  'experts.num_experts': 3,
}
MODULES = {'num_backbone': 1, 'num_steps': 2, 'attention': 1, 'mlp': 1, 'identity': 1, 'top_k': 2}
CHOSEN = {f'dna.{name}': value for name, value in MODULES.items()}
DNAS = (
  SHARED
  | CHOSEN
  | {'model.num_blocks': 2}
  | {'balance.bias_rate': 0.01, 'dna.examples': 36, 'num_seeds': 1}
)


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tmp_path_factory.getbasetemp() / 'programs'), tiny.two_sizes():
    yield


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('experts') / 'run'
  return experts.run(tiny.config('experts', EXPERTS), workdir, devices=1), workdir


@pytest.fixture(scope='module')
def distributed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('dna') / 'run'
  return dna.run(tiny.config('dna', DNAS), workdir, devices=1), workdir


def session_of(experiment, options, tmp_path):
  config = tiny.config(experiment, options)
  return open_session(config, tmp_path / 'run', check=lambda session: None, devices=1)


def test_networks_have_the_budget_of_the_dense_one(tmp_path):
  options = SHARED | {'experts.num_experts': 4, 'experts.shared_router': True}
  with session_of('experts', options, tmp_path) as session:
    found = {c.name: c for c in experts.make_contenders(session)}
    x = session.test[0][:1]
    kinds = {'flops': contenders.active_flops, 'params': contenders.num_params}
    for budget, cost in kinds.items():
      target = cost(found['dense'].model, x)
      for router in ('softmax', 'factorised', 'marginal', 'random', 'moe'):
        model = found[f'{router}_equal_{budget}'].model
        own, more = (cost(model.clone(hidden=model.hidden + i), x) for i in (0, 1))
        assert abs(own - target) <= (more - own) / 2
    shared = {name: c.model.routing.shared for name, c in found.items() if 'softmax' in name}
    assert all(shared.values())
    assert len(found) == 11
    assert found['moe_equal_flops'].model.routing == Experts(4, 2)
    assert isinstance(found['random_equal_flops'].model.routing, Routing)
    single = experts.make_contenders(session, '01')[1]
    assert (single.name, str(single.structure)) == ('single', '01')


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


def test_inspection_is_the_evaluation_whatever_the_batches(mixed, tmp_path):
  """Losses are those of shared-prefix evaluation, and loads those counted from the choices."""
  with session_of('experts', EXPERTS | {'experts.keep': 1.0}, tmp_path) as session:
    contender = experts.make_contenders(session)[1]
    own = contender.own_session
    pool = processes.to_host(own.trainer(contender.recipe, contender.sampler, 0).variables)
    found = inspect(own.model, own.objective, pool, session.test)
    want = evaluate(own, pool, [contender.structure])
    np.testing.assert_allclose([found.loss, found.accuracy], np.ravel(want), rtol=1e-5)
    assert found.chosen.shape == (40, 4, 1, 2)
    whole = found.chosen[:32]  # the last 8 do not fill a batch
    load = paths.utilisation(whole, 4) / 4
    np.testing.assert_allclose(found.facts['block_00__mlp'].load, load, atol=1e-6)


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


def test_a_killed_run_goes_on_to_the_same_numbers(distributed, tmp_path):
  """After one DNA: the other and the dense networks, which are sized by both, are still to do."""
  _, workdir = distributed
  tiny.killed_copy(workdir, tmp_path / 'run', 'dna.jsonl', 1, b'{"seed": 0, "vari')
  dna.run(tiny.config('dna', DNAS), tmp_path / 'run', devices=1)
  for name in ('variants.csv', 'structures.csv', 'paths.csv', 'modules.csv', 'summary.json'):
    assert (tmp_path / 'run' / name).read_bytes() == (workdir / name).read_bytes()


def test_a_model_of_your_own_must_be_a_transformer(tmp_path):
  model = MLP(1, 8, 8, 10)
  with pytest.raises(UserError, match='MLP for networks with routers'):
    dna.run(tiny.config('dna', DNAS), tmp_path / 'run', model=model, devices=1)


def test_dnas_are_made_of_the_options(tmp_path):
  options = {'dna.block': 1, 'dna.rescale_inside': True, 'dna.renormalise': True, 'dna.skip': 0.0}
  with session_of('dna', DNAS | options, tmp_path) as session:
    (found,) = dna.make_dnas(session)
    model = found.model
    assert isinstance(model, DNA)
    assert (model.modules.block, model.modules.rescale_inside, model.modules.skip) == (1, True, 0.0)
    assert model.modules.renormalise
    assert [c.name for c in dna.make_baselines(session, {'dna': 1e5})] == ['dense']
