"""Networks with BatchNorm: statistics of the batch in training, of all-on stored, of each structure
in judging."""

import dataclasses
import functools
import logging
import types
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import additive_jax as aj
from additive_jax import UserError
from additive_jax.compress import cutting, make_level
from additive_jax.compress.exported import export, load
from additive_jax.experiments.compress import judging
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.options import Options, TrainOptions
from additive_jax.experiments.tables import structure_table
from additive_jax.models import BatchNorm
from additive_jax.models.contract import check_network
from additive_jax.parallel.mesh import make_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.testing import check_model
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import make_sampler
from additive_jax.train.trainer import Trainer


class Branch(nn.Module):
  flax_own: bool = False

  @nn.compact
  def __call__(self, h):
    norm = (
      nn.BatchNorm(use_running_average=not self.is_mutable_collection('batch_stats'))
      if self.flax_own
      else BatchNorm()
    )
    return nn.Dense(h.shape[-1])(nn.relu(norm(nn.Dense(5)(h))))


ALWAYS = functools.partial(nn.BatchNorm, use_running_average=False)


class Net(aj.Additive):
  num_sites: int = 2
  last: Callable[[], nn.Module] = BatchNorm

  def setup(self):
    self.first, self.stem = nn.Dense(6), BatchNorm()
    self.sites = [Branch(bool(i), name=f'b{i}') for i in range(self.num_sites)]
    self.norm, self.head = self.last(), nn.Dense(3)

  def embed(self, x):
    return self.stem(self.first(x))

  def readout(self, h):
    return self.head(self.norm(h))


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  x = (3 * rng.normal(size=(48, 4)) + 1).astype(np.float32)
  return aj.data.ArraySplit(x, rng.integers(3, size=48))


@pytest.fixture(scope='module')
def variables(data):
  return jax.jit(Net().init)(jax.random.key(0), data.x)


def by_hand(variables, x, bits):
  """Logits of one structure with the statistics of its batch."""

  def run(module, x):
    h = module.embed(x)
    for bit, site in zip(bits, module.sites):
      h = h + site(h) if bit == '1' else h
    return module.readout(h)

  pool = {'params': variables['params']}
  return nn.Module.apply(Net(), pool, x, method=run, mutable=['batch_stats'])[0]


def test_the_whole_contract_holds(data):
  assert 'BatchNorms' in check_model(Net(), (data.x, data.y), max_structures=4)


def test_recalibrated_structures_give_what_their_batch_gives(data, variables):
  structures = ['11', '01', '00', '10', '01']
  own = aj.recalibrate(Net(), variables, structures, data)
  for bits, of_structure in zip(structures, own):
    expected = by_hand(variables, data.x, bits)
    for run in (aj.static, aj.conditional):
      np.testing.assert_allclose(
        run(Net(), of_structure, data.x, bits), expected, rtol=1e-4, atol=1e-4
      )
    stored = aj.static(Net(), variables, data.x, bits)
    assert np.abs(stored - expected).max() > 0.1
  untouched = own[2]['batch_stats']['b0']['BatchNorm_0']['mean']  # of a site that is off
  assert (untouched == 0).all()


def test_evaluation_takes_statistics_of_each_structure_and_warns_without(data, variables, caplog):
  batch = data.x, data.y
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    scores = aj.evaluate_structures(Net(), variables, batch, recalibrate=data.x, batch_size=32)
  assert not caplog.records
  losses = [
    float(
      optax.softmax_cross_entropy_with_integer_labels(
        by_hand(variables, data.x, bits), data.y
      ).mean()
    )
    for bits in ('00', '10', '01', '11')
  ]  # in integer order
  np.testing.assert_allclose(scores.loss, losses, rtol=1e-4)
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    aj.evaluate_structures(Net(), variables, batch)
  assert [record.getMessage() for record in caplog.records] == [
    'Net has BatchNorms, and structures (3) are judged by stored statistics, which are those of '
    'all-on unless additive_jax.recalibrate gave them: recalibrate=(training examples) gives each '
    'its own'
  ]


RECIPE = Recipe(Net(), 'classification', optax.sgd(0.1))


def trained(data, devices, *, steps=4, state=None, **spread):
  mesh = make_mesh(2, 8, jax.devices()[:devices], **spread)
  sampler = make_sampler('uniform', 2, 2)
  placement = Placement(mesh=mesh)
  options = {'batch_size': 8, 'seed': 0, 'state': state, 'placement': placement}
  trainer = Trainer(RECIPE, data, sampler, **options)
  return trainer.run(steps)['loss'], trainer


def test_a_batch_that_devices_split_is_normalised_as_a_whole(data):
  losses, trainer = trained(data, 1)
  others, on_mesh = trained(data, 8, fsdp_devices=2)
  assert dict(on_mesh.mesh.shape) == {'structure': 2, 'data': 2, 'fsdp': 2}
  np.testing.assert_allclose(others, losses, rtol=1e-5)
  x = data.x
  stored = trainer.variables
  expected = by_hand(stored, x, '11')
  np.testing.assert_allclose(aj.static(Net(), stored, x, '11'), expected, rtol=1e-3, atol=1e-3)


def test_a_training_that_goes_on_is_the_uninterrupted_one_to_the_bit(data):
  _, whole = trained(data, 2)
  _, begun = trained(data, 2, steps=3)
  _, again = trained(data, 2, steps=1, state=begun.state)
  assert again.step == whole.step == 4
  jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)
  stale = begun.variables['batch_stats']['stem']['mean']
  assert np.abs(whole.variables['batch_stats']['stem']['mean'] - stale).max() > 1e-3


def test_networks_trained_alone_are_judged_by_their_own_statistics(data):
  both = aj.data.Data('rows', 'classification', data, data, 3)
  population = Population(RECIPE, both, batch_size=8, seed=0)
  (member,) = population.train(['10'], stop=3)
  logits = by_hand({'params': member.state.params}, data.x, '10')
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, data.y).mean()
  np.testing.assert_allclose(member.loss, loss, rtol=1e-4)


class Counter(nn.Module):
  @nn.compact
  def __call__(self, h):
    self.variable('counts', 'calls', lambda: jnp.zeros(()))
    return h


@pytest.mark.parametrize(
  ('model', 'words'),
  [
    (
      Net(last=nn.BatchNorm),
      'Net has a BatchNorm that is not told when to use stored statistics: expected',
    ),
    (
      Net(last=ALWAYS),
      'it changes stored statistics when it is judged: expected additive_jax',
    ),
    (Net(last=Counter), "Net has a collection 'counts' beside its parameters: expected parameters"),
  ],
)
def test_wrong_norms_end_in_one_line(model, words):
  with pytest.raises(UserError) as error:
    check_network(model, np.ones((2, 4), np.float32))
  assert words in str(error.value)
  assert '\n' not in str(error.value)


def test_a_norm_that_learns_with_stored_statistics_is_told_of_once(data, caplog):
  frozen = Net(last=functools.partial(nn.BatchNorm, use_running_average=True))
  sampler = make_sampler('uniform', 2, 2)
  with caplog.at_level(logging.WARNING, 'additive_jax'):
    for _ in range(2):
      Trainer(dataclasses.replace(RECIPE, model=frozen), data, sampler, batch_size=8, seed=0).run(1)
  told = [record.getMessage() for record in caplog.records]
  assert len(told) == 1
  assert told[0].startswith('norm normalises by stored statistics in training too, for use_running')


def test_variables_without_statistics_and_no_examples_are_refused(data, variables):
  for bits, missing in (('11', 'b0/BatchNorm_0/mean'), ('01', 'b1/BatchNorm_0/mean')):
    with pytest.raises(UserError, match=f'batch_stats of Net with no {missing} and'):
      aj.static(Net(), {'params': variables['params']}, data.x, bits)
  stored = {name: tree for name, tree in variables['batch_stats'].items() if name != 'b0'}
  fewer = {'params': variables['params'], 'batch_stats': stored}
  np.testing.assert_array_equal(
    aj.static(Net(), fewer, data.x, '01'), aj.static(Net(), variables, data.x, '01')
  )
  with pytest.raises(UserError, match='no examples to calibrate by: expected'):
    aj.recalibrate(Net(), variables, ['11'], data.x[:0])


def test_batches_in_pieces_are_refused_before_anything_is_written(data, tmp_path):
  words = r'Net with BatchNorms and (config.train.)?accumulate 2: expected 1, for a batch is norm'
  both = aj.data.from_arrays(data.x, data.y, test=0.25)
  recipe = dataclasses.replace(RECIPE, accumulate=2)
  with pytest.raises(UserError, match=words):
    Population(recipe, both, batch_size=8, seed=0)
  with pytest.raises(UserError, match=words):
    Trainer(recipe, data, make_sampler('uniform', 2, 2), batch_size=8, seed=0)
  options = {'batch_size': 8, 'seeds': 1, 'devices': 1, 'progress': False, 'train.accumulate': 2}
  for study in (aj.sweep, aj.cotrain, aj.stochastic, aj.prune):
    few = {} if study in (aj.stochastic, aj.prune) else {'top_k': 2}
    with pytest.raises(UserError, match=words):
      study(Net(), both, workdir=tmp_path / 'run', **options, **few)
  assert not (tmp_path / 'run').exists()


class Plain(aj.Additive):
  """A network of one's own whose fields a file can hold."""

  num_classes: int = 3

  def setup(self):
    self.embed, self.readout = nn.Dense(6), nn.Dense(self.num_classes)
    self.sites = [Branch(name=f'b{i}') for i in range(2)]


def test_what_is_exported_has_the_statistics_of_its_structure(data, tmp_path):
  pool = jax.jit(Plain().init)(jax.random.key(0), data.x)
  (own,) = aj.recalibrate(Plain(), pool, ['10'], data)
  smaller = cutting.cut(Plain(), own, '10', x=data.x)
  assert list(smaller.variables['batch_stats']) == ['b0']
  module, variables = load(export(smaller, tmp_path / 'small'), model=Plain)
  wanted = Plain().apply(own, data.x, '10')
  np.testing.assert_array_equal(jax.jit(module.apply)(variables, data.x), wanted)
  with pytest.raises(UserError, match=r"cut of Plain without statistics .* \['10'\], data\)\[0\]"):
    cutting.cut(Plain(), {'params': pool['params']}, '10', x=data.x)


SMALL = {'epochs': 2.0, 'batch_size': 8, 'structures_per_step': 2, 'seeds': 1, 'devices': 1}
SMALL |= {'progress': False, 'learning_rate': 0.1}


def test_tables_have_scores_by_stored_statistics_beside_recalibrated_ones(data, tmp_path):
  both = aj.data.from_arrays(data.x, data.y, test=0.25)
  result = aj.cotrain(Plain(), both, structures=('11', '01'), top_k=2, workdir=tmp_path, **SMALL)
  table = result.table.set_index('structure')
  pool = aj.restore_pool(tmp_path, Plain(), data.x, name='pool-seed0')
  (variables,) = aj.recalibrate(Plain(), pool, ['11'], both.train)
  for prefix, recalibrate in (('', both.train), ('stored_', False)):
    judged = aj.evaluate_structures(
      Plain(), variables, both.test, list(table.index), recalibrate=recalibrate
    )
    np.testing.assert_allclose(table[f'{prefix}loss'], judged.loss, rtol=1e-5)
    np.testing.assert_allclose(table[f'{prefix}accuracy'], judged.accuracy, rtol=1e-5)
  assert abs(table['loss']['01'] - table['stored_loss']['01']) > 1e-3
  (row,) = result.stored.to_dict('records')
  assert (row['pool'], row['structures']) == ('pool', 2)
  assert row['stored_loss'] == pytest.approx(table['stored_loss'].mean())
  assert result.summary['stored']['pool']['loss'] == pytest.approx(table['loss'].mean())
  assert 'begin with “stored”' in (tmp_path / 'report.html').read_text()


def test_columns_of_stored_scores_are_there_where_all_records_have_them():
  space = aj.Space((aj.Gate('a', 1, 1), aj.Gate('b', 1, 1)), 1, 1)
  task = aj.Task('classification')
  session = types.SimpleNamespace(task=task, space=space)
  plain = {'loss': [0.5, 0.25], 'accuracy': [0.5, 0.75]}
  both = plain | {'stored_loss': [0.5, 0.75], 'stored_accuracy': [0.5, 0.25]}
  bits = np.array([[True, True], [False, True]])
  table = structure_table(session, bits, {'': [both, both], 'none_': [both, plain]})
  assert list(table['structure']) == ['01', '11']
  assert list(table['stored_loss']) == [0.75, 0.5]
  assert not [name for name in table if name.startswith('none_stored')]


def test_a_compressed_network_is_judged_and_cut_with_statistics_of_its_own(data, tmp_path):
  both = aj.data.from_arrays(data.x, data.y, test=0.25)
  options = Options(experiment='compress', train=TrainOptions(batch_size=8))
  opening = {'check': lambda session: None, 'model': Plain(), 'data': both}
  with open_session(options, tmp_path / 'run', **opening) as session:
    pool = jax.jit(Plain().init)(jax.random.key(0), data.x)
    level = make_level('gate', Plain(), data.x)
    trained = types.SimpleNamespace(arm=types.SimpleNamespace(name='dense'), seed=0)
    network = judging.Network(pool['params'], aj.Structure((True, False)))
    record = judging.judge(session, level, trained, network)
    wanted = session.evaluate(pool, ['10']).loss[0]
  assert record['loss'] == pytest.approx(wanted)
  assert (record['structure'], record['receipt'] < 1e-5) == ('10', True)


@pytest.mark.slow
def test_a_searched_sweep_has_scores_by_stored_statistics(data, tmp_path):
  options = {'search.method': 'random', 'search.budget': 3, 'search.population': 3, 'top_k': 2}
  options |= SMALL | {'sweep.modes': ('shared',), 'workdir': tmp_path}
  result = aj.sweep(Plain(), (data.x, data.y), **options)
  table = result.table.set_index('structure')
  assert len(table) == 3
  assert table['shared_stored_loss'].notna().all()
  assert table['shared_stored_loss']['11'] == pytest.approx(table['shared_loss']['11'], rel=1e-5)


@pytest.mark.slow
def test_a_run_is_pruned_and_exported(data, tmp_path):
  options = SMALL | {'workdir': tmp_path / 'run'}
  pruned = aj.prune(Plain(), (data.x, data.y), budget=0.8, heal_epochs=1.0, **options)
  assert {'loss', 'stored_loss'} <= set(pruned.result.candidates)
  assert set(pruned.before) == {*pruned.after} >= {'loss', 'stored_loss'}
  assert pruned.receipt.max_difference < 1e-5
  module, variables = load(pruned.export(tmp_path / 'small'), model=Plain)
  wanted = pruned.model.apply(pruned.variables, data.x)
  np.testing.assert_allclose(module.apply(variables, data.x), wanted, rtol=1e-6)
