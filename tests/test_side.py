"""Side inputs: a decoder that reads an encoder under a padding mask, through all that runs, trains
and judges a network of one stream."""

import dataclasses
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
from additive_jax.data import ArraySplit, Data
from additive_jax.experiments import sweep
from additive_jax.gates import subsets
from additive_jax.models import WithSide
from additive_jax.models.additive import embed, step
from additive_jax.models.contract import check_network
from additive_jax.models.surrounding import Mode, in_mode
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import pipeline, processes
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.placement import Placement
from additive_jax.run.prefix import shared_prefix
from additive_jax.testing.check import check_model
from additive_jax.train import samplers
from additive_jax.train.losses import PerSample
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

SOURCE, TARGET, TOKENS, WIDTH = 4, 3, 7, 8
RANDOM = np.random.default_rng(0)


class Cross(nn.Module):
  """The decoder reads what the encoder gave, but not padding."""

  @nn.compact
  def __call__(self, h, side):
    q = nn.Dense(WIDTH, name='q')(h)
    k, v = (nn.Dense(WIDTH, name=name)(side['memory']) for name in 'kv')
    scores = jnp.einsum('bqd,bkd->bqk', q, k) + jnp.where(side['mask'], 0, -1e9)[:, None]
    return nn.softmax(scores) @ v


class Gated(nn.Module):
  """A site with a gate of its own, which takes the side too."""

  gates = ('residual', 'half')

  @nn.compact
  def __call__(self, h, gates, side):
    half = jnp.asarray(gates[0], h.dtype)
    half = half.reshape(half.shape + (1,) * (h.ndim - half.ndim))
    memory = side['memory'].mean(1, keepdims=True)
    return h + nn.Dense(WIDTH)(h + half * memory)


class Translator(Additive):
  """The stream is the decoder's; the encoder and its mask are the side."""

  kinds: tuple = (Cross, nn.Dense, Gated)

  def setup(self):
    self.source, self.target = nn.Embed(TOKENS, WIDTH), nn.Embed(TOKENS, WIDTH)
    self.encoder = nn.Dense(WIDTH)
    names = [f'site_{i}' for i in range(len(self.kinds))]
    self.sites = [
      kind(*[WIDTH] * (kind is nn.Dense), name=name) for kind, name in zip(self.kinds, names)
    ]
    self.head = nn.Dense(TOKENS)

  def embed(self, x):
    memory = jnp.tanh(self.encoder(self.source(x['source'])))
    return WithSide(self.target(x['target']), {'memory': memory, 'mask': x['source'] > 0})

  def readout(self, h, side):
    return self.head(h + side['memory'].mean(1, keepdims=True))


def split_of(count):
  source = RANDOM.integers(1, TOKENS, (count, SOURCE)).astype(np.uint8)
  y = np.sort(source, axis=1)[:, :TARGET]
  source[::2, -1] = 0
  return ArraySplit({'source': source, 'target': np.roll(y, 1, axis=1)}, y)


MODEL = Translator()
DATA = Data('pairs', 'language', split_of(48), split_of(12), TOKENS)
X, Y = DATA.test.x, DATA.test.y
RECIPE = Recipe(MODEL, 'language', optax.sgd(0.1, momentum=0.9))


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def pool(random_pool):
  return random_pool(MODEL, X)


def test_ways_to_run_agree(pool):
  statics = {s: run.static(MODEL, pool, X, s) for s in ('1011', '1110', '0000')}
  for structure, logits in statics.items():
    near(logits, MODEL.apply(pool, X, structure))
    near(logits, run.conditional(MODEL, pool, X, structure))
  by_example = run.masked(MODEL, pool, X, [list(map(int, s)) for s in statics] * 4)
  prefixes = shared_prefix(MODEL, pool, X, list(statics))
  for i, logits in enumerate(statics.values()):
    near(by_example[i::3], logits[i::3])
    near(prefixes[i], logits)
  some = subsets.draw(jax.random.key(1), (0.5, 1.0, 0.75, 1.0), num_examples(X))
  outputs = run.gathered(MODEL, pool, X, some)
  gates = np.stack([np.isin(np.arange(12), on) for on in some], axis=1).astype(np.float32)
  near(outputs, run.masked(MODEL, pool, X, gates))
  bits = jnp.array([True, True, True, False])
  slope = lambda way, s: jax.grad(lambda v: jnp.square(way(MODEL, v, X, s)).sum())(pool)
  near(slope(run.static, '1110'), slope(run.conditional, bits))


def test_a_gate_that_is_off_leaves_stream_and_side(pool):
  h = embed(MODEL, pool, X)
  assert isinstance(h, WithSide)
  off = step(MODEL, pool, 0, h, (False,))
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), off, h))
  on = step(MODEL, pool, 0, h, (True,))
  assert (on.h != h.h).any()
  assert on.side is h.side
  other = rows(X, slice(0, 1)) | {'source': X['source'][:1] * np.array([[1, 1, 1, 0]], np.uint8)}
  padded = other | {'source': other['source'] + np.array([[0, 0, 0, 5]], np.uint8)}
  side = embed(MODEL, pool, padded).side | {'mask': embed(MODEL, pool, other).side['mask']}
  after = [
    step(MODEL, pool, 0, embed(MODEL, pool, other)._replace(side=s), (True,))
    for s in (embed(MODEL, pool, other).side, side)
  ]
  near(after[0].h, after[1].h)  # what stands in padding does not matter


def test_evaluation_costs_and_checks(pool):
  evaluation = aj.evaluate_structures(MODEL, pool, (X, Y), task='language', batch_size=5)
  losses = optax.softmax_cross_entropy_with_integer_labels(run.static(MODEL, pool, X, '1111'), Y)
  near(evaluation.loss[-1], losses.mean())
  space = aj.measure(MODEL, X)
  assert space.params('1111') == sum(leaf.size for leaf in jax.tree.leaves(pool))
  assert space.flops('1110') > space.flops('0110') > space.flops('0000') > 0
  assert 'keeps the contract' in check_model(MODEL, (X, Y), task='language', max_structures=2)


class Short(Translator):
  def embed(self, x):
    return WithSide(self.target(x['target']), {'mask': x['source'][0]})


def test_a_side_of_other_rows_is_refused():
  with pytest.raises(UserError, match=r"side\['mask'\] of embed gives \(4,\): expected one array "):
    check_network(Short((nn.Dense,)), X)


@functools.cache
def trained(count, loss=RECIPE.loss, *, fsdp=1):
  num_structures = 1 if isinstance(loss, PerSample) else 2
  mesh = mesh_.make_mesh(
    num_structures, loss.batch_parts(4), jax.devices()[:count], fsdp_devices=fsdp
  )
  recipe = dataclasses.replace(RECIPE, loss=loss)
  sampler = samplers.listed(['1111', '0110'][:num_structures], 4)
  options = {'batch_size': 4, 'seed': 1, 'placement': Placement(mesh, chunk_steps=2)}
  trainer = Trainer(recipe, DATA.train, sampler, **options)
  metrics = trainer.run(2)
  return processes.to_host(trainer.variables), metrics['loss']


@pytest.mark.parametrize(
  'options',
  [pytest.param({'count': 4}, marks=pytest.mark.thorough), {'count': 4, 'fsdp': 2}],
  ids=str,
)
def test_training_on_a_mesh_is_that_of_one_device(options):
  near(trained(**options), trained(1))
  start = jax.jit(MODEL.init)(jax.random.key(1), X)['params']['encoder']['kernel']
  assert (trained(1)[0]['params']['encoder']['kernel'] != start).any()


def test_training_with_a_structure_for_each_example():
  loss = PerSample(subsets=subsets.Subsets(((1.0, 0.5, 0.5, 0.5),), parts=2))
  near(trained(2, loss), trained(1, loss))


def test_bfloat16(pool):
  with in_mode(Mode(dtype=jnp.bfloat16)):
    logits = jax.jit(lambda v: run.static(MODEL, v, X, '1111'))(pool)
  exact = run.static(MODEL, pool, X, '1111')
  assert logits.dtype == jnp.float32
  assert 0 < np.abs(logits - exact).max() < 0.1


@pytest.mark.slow
def test_stages(random_pool):
  model, stages = Translator((Cross, Cross)), Pipeline(2, 3)
  pool = random_pool(model, X)
  mesh = mesh_.make_mesh(1, 1, jax.devices()[:2], pipe_devices=2)
  placed = pipeline.place_pool(model, pool, mesh, stages, X)
  outputs = jax.jit(pipeline.over_mesh(model, mesh, stages))(placed, X, jnp.array([True, True]))
  near(outputs, run.static(model, pool, X, '11'))


def test_a_sweep(tmp_path):
  options = {'num_seeds': 1, 'train.epochs': 0.5, 'sweep.shared_epochs': 0.5, 'train.batch_size': 8}
  options |= {'sweep.modes': ('shared',)}
  result = sweep.run(tiny.config('sweep', options), tmp_path, model=MODEL, data=DATA)
  assert len(result.table) == 12
