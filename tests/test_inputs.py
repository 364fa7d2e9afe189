"""Networks of several inputs: an encoder and decoder of two texts, through all that runs, trains
and judges a network of one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny import near

import additive_jax as aj
from additive_jax import Additive, UserError, run
from additive_jax.batches import num_examples, rows
from additive_jax.data import ArraySplit, Data, SourceSplit
from additive_jax.experiments import cotrain, stochastic, sweep
from additive_jax.gates import subsets
from additive_jax.models import MLP, ConvNet, Transformer
from additive_jax.models.contract import check_network
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import pipeline, processes
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.placement import Placement
from additive_jax.run.ensemble import evaluate_ensemble
from additive_jax.run.prefix import shared_prefix
from additive_jax.run.tasks import Task
from additive_jax.testing.check import check_model
from additive_jax.train import samplers
from additive_jax.train.fleet import Fleet
from additive_jax.train.losses import PerSample, Piped
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

SOURCE, TARGET, TOKENS, WIDTH = 4, 3, 7, 8
RANDOM = np.random.default_rng(0)


class Mix(nn.Module):
  """Tokens of the source see the source; those of the target also what comes before them."""

  width: int

  @nn.compact
  def __call__(self, h):
    place = np.arange(SOURCE + TARGET)
    sees = (place[None] < SOURCE) | (place[None] <= place[:, None])
    q, k, v = (nn.Dense(self.width, name=name)(h) for name in 'qkv')
    scores = jnp.where(sees, jnp.einsum('bqd,bkd->bqk', q, k), -1e9)
    return jax.nn.softmax(scores) @ v


class Translator(Additive):
  """The stream has the tokens of the source first, then those of the target."""

  names: tuple = ('mix', 'dense', 'mix_again')

  def setup(self):
    self.source, self.target = nn.Embed(TOKENS, WIDTH), nn.Embed(TOKENS, WIDTH)
    kinds = [(Mix, nn.Dense)[name == 'dense'] for name in self.names]
    self.sites = [kind(WIDTH, name=name) for kind, name in zip(kinds, self.names)]
    self.head = nn.Dense(TOKENS)

  def embed(self, x):
    source = self.source(x['source']) * x['scale'][:, None, None]
    return jnp.concatenate([source, self.target(x['target'])], axis=1)

  def readout(self, h):
    return self.head(h[:, SOURCE:])


def split_of(count):
  source = RANDOM.integers(0, TOKENS, (count, SOURCE)).astype(np.uint8)
  y = np.sort(source, axis=1)[:, :TARGET]
  target = np.concatenate([np.zeros((count, 1), np.uint8), y[:, :-1]], axis=1)
  scale = RANDOM.uniform(0.5, 1.5, count).astype(np.float32)
  return ArraySplit({'source': source, 'target': target, 'scale': scale}, y)


MODEL = Translator()
DATA = Data('pairs', 'language', split_of(48), split_of(21), TOKENS)
X, Y = DATA.test.x, DATA.test.y
RECIPE = Recipe(MODEL, 'language', optax.sgd(0.1, momentum=0.9))
CHUNK = 2


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def pool(random_pool):
  return random_pool(MODEL, X)


def test_ways_to_run_agree(pool):
  near(run.static(MODEL, pool, X, '101'), MODEL.apply(pool, X, '101'))
  near(run.static(MODEL, pool, X, '101'), run.conditional(MODEL, pool, X, '101'))
  by_example = run.masked(MODEL, pool, X, [[1, 0, 1], [1, 1, 1], [0, 0, 0]] * 7)
  prefixes = shared_prefix(MODEL, pool, X, ['101', '111', '000'])
  for i in range(3):
    near(by_example[i::3], prefixes[i][i::3])
  some = subsets.draw(jax.random.key(1), (1.0, 0.5, 1.0), num_examples(X) - 1)
  part = rows(X, slice(1, None))
  outputs, on = run.gathered(MODEL, pool, part, some), np.isin(np.arange(20), some[1])
  near(outputs[on], run.static(MODEL, pool, rows(part, on), '111'))
  near(outputs[~on], run.static(MODEL, pool, rows(part, ~on), '101'))
  assert run.sampled(MODEL, pool, part, jax.random.key(0), (1.0, 0.5, 0.0)).shape == (20, 3, TOKENS)


def test_evaluation_and_costs(pool):
  evaluation = aj.evaluate_structures(MODEL, pool, (X, Y), task='language', batch_size=8)
  statistics = Task('language').statistics(run.static(MODEL, pool, X, '011'), jnp.asarray(Y))
  loss, accuracy, _ = map(np.asarray, statistics)
  near(evaluation.loss[6], loss.mean())
  near(evaluation.accuracy[6], accuracy.mean())
  bits = np.array([[True, True, True], [False, True, True]])
  near(evaluate_ensemble(MODEL, [pool], bits[1:], (X, Y), Task('language'))['loss'], loss.mean())
  space = aj.measure(MODEL, X)
  assert space.params('111') == sum(leaf.size for leaf in jax.tree.leaves(pool))
  assert space.flops('111') > space.flops('101') > space.flops('000') > 0
  assert space == aj.measure(MODEL, rows(X, slice(1)))


def test_a_network_of_ones_own_is_checked(pool):
  report = check_model(MODEL, (X, Y), task='language', max_structures=2)
  assert 'keeps the contract' in report
  with pytest.raises(
    UserError, match=r"on inputs \{'scale': \(21,\), 'source': \(21, 4\), 'target'"
  ):
    run.static(MODEL, {'params': pool['params'] | {'mix': {}}}, X, '111')
  with pytest.raises(UserError, match=r"\['scale'\] of shape \(20,\) and \['source'\] of shape "):
    check_network(MODEL, X | {'scale': X['scale'][:20]})
  with pytest.raises(UserError, match=r"inputs\['scale'\] that are int: expected an array"):
    check_network(MODEL, X | {'scale': 3})


@pytest.mark.parametrize(
  'model', [MLP(1, 4, 4, 3), ConvNet(num_classes=3), Transformer(1, 8, 2, 16, 3)]
)
def test_networks_of_one_input_say_so(model):
  with pytest.raises(UserError, match=r"inputs \['scale'\] .*: expected one array"):
    check_network(model, X)


@functools.cache
def trained(count, loss=RECIPE.loss, *, read=False, fsdp=1):
  """The pool after four steps of four structures, and the losses."""
  num_structures = 1 if isinstance(loss, PerSample) else 4
  devices = jax.devices()[:count]
  mesh = mesh_.make_mesh(num_structures, loss.batch_parts(4), devices, fsdp_devices=fsdp)
  placement = Placement(mesh, chunk_steps=CHUNK)
  recipe = Recipe(MODEL, 'language', RECIPE.optimizer, loss)
  split = SourceSplit(48, DATA.train.__getitem__) if read else DATA.train
  sampler = samplers.listed(['111', '101', '011', '110'][:num_structures], 3)
  trainer = Trainer(recipe, split, sampler, batch_size=4, seed=1, placement=placement)
  metrics = trainer.run(4)
  return processes.to_host(trainer.variables), metrics['loss']


@pytest.mark.parametrize(
  'options',
  [
    pytest.param({'count': 8}, marks=pytest.mark.thorough),
    pytest.param({'count': 4, 'fsdp': 2}, marks=pytest.mark.slow),
    {'count': 1, 'read': True},
    pytest.param({'count': 4, 'read': True}, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_training_on_a_mesh_is_that_of_one_device(options):
  near(trained(**options), trained(1))
  assert trained(1)[1].std() > 0


@pytest.mark.slow
def test_training_with_a_structure_for_each_example():
  loss = PerSample(subsets=subsets.Subsets(((1.0, 0.5, 0.5),), parts=2))
  near(trained(2, loss), trained(1, loss))


@pytest.mark.slow
def test_stages(random_pool):
  model, stages = Translator(names=('a', 'b')), Pipeline(2, 3)
  pool = random_pool(model, X)
  mesh = mesh_.make_mesh(1, 1, jax.devices()[:2], pipe_devices=2)
  placed = pipeline.place_pool(model, pool, mesh, stages, X)
  outputs = jax.jit(pipeline.over_mesh(model, mesh, stages))(placed, X, jnp.array([True, True]))
  near(outputs, run.static(model, pool, X, '11'))
  recipe = Recipe(model, 'language', RECIPE.optimizer, Piped(pipeline=stages))
  placement, sampler = Placement(mesh, chunk_steps=CHUNK), samplers.listed(['11'], 2)
  options = {'batch_size': 6, 'seed': 1}
  trainer = Trainer(recipe, DATA.train, sampler, placement=placement, **options)
  whole = Trainer(Recipe(model, 'language', RECIPE.optimizer), DATA.train, sampler, **options)
  near(trainer.run(2)['loss'], whole.run(2)['loss'])


@pytest.mark.slow
def test_networks_alone_and_side_by_side():
  population = Population(RECIPE, DATA, batch_size=4, seed=1)
  (member,) = population.train(['101'], stop=4)
  sampler = samplers.listed(['101'], 3)
  trainer = Trainer(RECIPE, DATA.train, sampler, batch_size=4, seed=1)
  trainer.run(4)
  near(member.state.params, processes.to_host(trainer.variables['params']))
  scores = aj.evaluate_structures(MODEL, trainer.variables, (X, Y), ['101'], task='language')
  near(member.loss, scores.loss[0])
  fleet = Fleet(RECIPE, DATA.train, [np.arange(24), np.arange(24, 48)], batch_size=4, seed=1)
  assert np.isfinite(fleet.run(3)['loss']).all()


def test_experiments_take_them(tmp_path):
  options = {'num_seeds': 1, 'train.epochs': 0.5, 'sweep.shared_epochs': 0.5, 'train.batch_size': 8}
  options |= {'sweep.modes': ('shared',)}
  result = sweep.run(tiny.config('sweep', options), tmp_path, model=MODEL, data=DATA)
  assert len(result.table) == 8


@pytest.mark.slow
def test_exp_2_takes_them(tmp_path):
  options = {'num_seeds': 1, 'train.epochs': 0.5, 'train.batch_size': 8}
  options |= {'structures': ('111', '101'), 'cotrain.top_k': 0}
  config = tiny.config('cotrain', options)
  assert cotrain.run(config, tmp_path / 'cotrain', model=MODEL, data=DATA).summary


@pytest.mark.thorough
def test_exp_3_takes_them(tmp_path):
  options = {'num_seeds': 1, 'train.epochs': 0.5, 'train.batch_size': 8}
  options |= {'cotrain.top_k': 0, 'sampler.name': 'bernoulli'}
  config = tiny.config('stochastic', options)
  assert stochastic.run(config, tmp_path / 'stochastic', model=MODEL, data=DATA).summary
