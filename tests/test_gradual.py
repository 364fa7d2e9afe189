"""Gradual pruning, against a loop in NumPy and by hand."""

import json

import jax
import numpy as np
import optax
import pytest
import studies
import tiny

from additive_jax import UserError
from additive_jax.compress import Gradual, input_power, make_level
from additive_jax.data import ArraySplit
from additive_jax.data.order import Order
from additive_jax.experiments import compress
from additive_jax.export import load
from additive_jax.models import MLP, DenseStack, Transformer
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import State
from additive_jax.train.trainer import Trainer

X = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
TRAIN = ArraySplit(
  np.random.default_rng(3).normal(size=(40, 4, 4)).astype(np.float32),
  np.random.default_rng(4).integers(0, 3, 40).astype(np.int32),
)
MODEL = MLP(1, 6, 5, 3)
LEVEL = make_level('weight', MODEL, X)
SIZE = 16 * 6 + 6 * 5 + 5 * 6 + 6 * 3


@pytest.fixture(scope='module')
def pool():
  return jax.jit(MODEL.init)(jax.random.key(0), X)['params']


def forward(pool, x):
  """Logits of `MODEL`, and what each kernel is multiplied by, in NumPy."""
  pool = jax.tree.map(np.asarray, pool)
  inputs = {'embed/kernel': x.reshape(len(x), -1)}
  h = inputs['embed/kernel'] @ pool['embed']['kernel'] + pool['embed']['bias']

  def norm(h, parameters):
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    return h * parameters['scale'] + parameters['bias']

  block = pool['block_00']
  inputs['block_00/in/kernel'] = norm(h, block['norm'])
  hidden = inputs['block_00/in/kernel'] @ block['in']['kernel'] + block['in']['bias']
  inputs['block_00/out/kernel'] = np.asarray(jax.nn.gelu(hidden))
  h = h + inputs['block_00/out/kernel'] @ block['out']['kernel'] + block['out']['bias']
  inputs['readout/out/kernel'] = norm(h, pool['readout']['norm'])
  return inputs


def test_the_power_of_inputs_is_that_of_a_network_by_hand(pool):
  found = jax.jit(lambda pool: input_power(LEVEL, pool, X))(pool)
  for name, inputs in forward(pool, X).items():
    want = np.broadcast_to(np.square(inputs).sum(0)[:, None], found[name].shape)
    np.testing.assert_allclose(found[name], want, rtol=2e-5)


@pytest.mark.parametrize(
  'model',
  [
    DenseStack((5, 4), num_classes=3, num_chunks=2),
    pytest.param(Transformer(1, 6, 2, 5, 3, patch_size=2, unit='swiglu'), marks=pytest.mark.slow),
  ],
  ids=['chunks', 'transformer'],
)
def test_the_power_of_inputs_is_the_slope_of_noise(model):
  """Of independent noise of variance v on each weight of a linear map, outputs gain Σ x² v: the
  power is heard wherever a kernel is cut into rows or reshaped. Doubling a batch doubles it."""
  level = make_level('weight', model, X)
  pool = jax.jit(model.init)(jax.random.key(0), X)['params']
  run = jax.jit(lambda x: input_power(level, pool, x))
  found, twice = run(X), run(np.concatenate([X, X]))
  assert set(found) == {name for name, _ in level.shapes}
  for name, shape in level.shapes:
    assert found[name].shape == shape
    assert float(found[name].min()) >= 0
    assert float(found[name].max()) > 0
    np.testing.assert_allclose(twice[name], 2 * found[name], rtol=1e-5)


def trainer(recipe, data_devices=1, state=None):
  mesh = jax.make_mesh(
    (1, data_devices),
    ('structure', 'data'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:data_devices],
  )
  placement = Placement(mesh, chunk_steps=4)
  sampler = samplers.listed(['1'], 1, 1)
  options = {'batch_size': 8, 'seed': 3, 'state': state, 'placement': placement}
  return Trainer(recipe, TRAIN, sampler, **options)


def gradual(**options):
  given = {'level': LEVEL, 'keep': 20, 'num_steps': 6, 'every': 2} | options
  return Recipe(MODEL, 'classification', optax.adam(0.01), Gradual(**given))


@pytest.fixture(scope='module')
def recipe():
  return gradual()


@pytest.fixture(scope='module')
def uninterrupted(recipe):
  one = trainer(recipe)
  return one.run(9)['loss'], processes.to_host(one.state)


def kernels(params):
  flat = {'/'.join(p.key for p in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
  return {name: np.asarray(flat[name]) for name, _ in LEVEL.shapes}


def nonzero(params):
  return sum(int(np.count_nonzero(leaf)) for leaf in kernels(params).values())


def nonzero_kernels(variables):
  flat = jax.tree.leaves_with_path(variables['params'])
  return sum(int(np.count_nonzero(leaf)) for path, leaf in flat if path[-1].key == 'kernel')


def test_how_many_stay(recipe):
  """After steps 2, 4 and 6 as many as the cubic says, and none leave between or later."""
  one, counts = trainer(recipe), []
  for _ in range(9):
    one.run(1)
    counts.append(nonzero(processes.to_host(one.state.params)))
  of = lambda step: round(20 + (SIZE - 20) * (1 - step / 6) ** 3)
  assert counts == [SIZE, of(2), of(2), of(4), of(4), 20, 20, 20, 20]
  assert len(set(counts)) == 4


def test_the_least_important_leave(recipe):
  """Of the pool that a plain step makes, what is small times its input is what leaves."""
  one = trainer(recipe)
  one.run(1)
  before = processes.to_host(one.state.params)
  plain = Recipe(MODEL, 'classification', optax.adam(0.01))
  other = trainer(plain)
  other.run(2)
  after = kernels(processes.to_host(other.state.params))
  one.run(1)
  left = kernels(processes.to_host(one.state.params))
  # The examples of the second step, in their order of the seed.
  x = np.asarray(TRAIN.x)[Order(40, 8, seed=3).indices(1, 1)[0]]
  power = {name: np.square(values).sum(0)[:, None] for name, values in forward(before, x).items()}
  scores = np.concatenate([(np.abs(after[n]) * np.sqrt(power[n])).ravel() for n in after])
  stays = np.concatenate([(left[n] != 0).ravel() for n in after])
  assert scores[stays].min() > scores[~stays].max()
  for name in after:  # what stays is what a plain step made
    np.testing.assert_allclose(left[name][left[name] != 0], after[name][left[name] != 0], rtol=1e-5)


@pytest.mark.slow
def test_devices_that_share_a_batch_remove_the_same(recipe, uninterrupted):
  many = trainer(recipe, 2)
  # Nine steps of float32, each of which multiplies rounding by at most a little.
  np.testing.assert_allclose(many.run(9)['loss'], uninterrupted[0], rtol=1e-4)
  there, here = kernels(processes.to_host(many.state.params)), kernels(uninterrupted[1].params)
  for name in here:
    np.testing.assert_array_equal(there[name] != 0, here[name] != 0)
    np.testing.assert_allclose(there[name], here[name], rtol=1e-3, atol=1e-5)


def test_an_interruption_changes_no_bit(recipe, uninterrupted):
  first = trainer(recipe)
  losses = [first.run(3)['loss']]
  second = trainer(recipe, state=State(*processes.to_host(first.state)))
  losses.append(second.run(6)['loss'])
  np.testing.assert_array_equal(np.concatenate(losses), uninterrupted[0])
  jax.tree.map(np.testing.assert_array_equal, processes.to_host(second.state), uninterrupted[1])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'keep': 0}, '0 weights of 174 stay: expected 1 to 174'),
    ({'keep': 175}, '175 weights of 174 stay: expected 1 to 174'),
    ({'every': 0}, 'num_steps 6, every 0: expected 1 or more'),
    ({'level': make_level('unit', MODEL, X)}, 'gradual pruning of Units: expected of weights'),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(UserError, match=message):
    gradual(**options)


def test_other_structures_are_refused(recipe):
  with pytest.raises(UserError, match='gradual pruning'):
    Trainer(recipe, TRAIN, samplers.listed(['0'], 1, 1), batch_size=8, seed=0)


@pytest.mark.slow
def test_a_run(tmp_path):
  """A network for each share, with as many weights as it says, exported, in tables and page."""
  options = studies.CASES['compress'].options | {
    'compress.sparsities': (),
    'compress.level': 'weight',
  }
  options |= {'compress.gradual': (0.5, 0.8), 'compress.gradual_epochs': 1.0}
  workdir = tmp_path / 'run'
  result = compress.run(tiny.config('compress', options), workdir, devices=1)
  rows = result.variants.set_index('variant')
  size = rows.loc['dense', 'weights']
  for share in (0.5, 0.8):
    row = rows.loc[f'gradual_{share}']
    assert row['nonzero'] == round((1 - share) * size)
    _, variables = load(workdir / 'exported' / f'gradual_{share}-seed0')
    assert 0 < nonzero_kernels(variables) <= row['nonzero']
  assert 'gradual' in (workdir / 'report.html').read_text()
  summary = json.loads((workdir / 'summary.json').read_text())
  assert {'gradual_0.5', 'gradual_0.8'} < set(summary['variants'])
