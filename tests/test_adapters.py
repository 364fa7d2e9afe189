"""Members of one pool with vectors of their own, against NumPy by hand and the plain pool."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import additive_jax as aj
from additive_jax import UserError
from additive_jax.compress import cut
from additive_jax.compress.exported import export, load
from additive_jax.models import MLP
from additive_jax.models.costs import num_params
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.adapters import Adapted, Members, kernels, member, members
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state
from additive_jax.train.trainer import Trainer

MODEL = MLP(num_blocks=2, width=8, hidden=6, num_classes=3)
ADAPTED = Adapted(MODEL, members=3)
STRUCTURES = ('11', '01', '11')  # the same one twice: other vectors
TRAIN = aj.data.ArraySplit(
  np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32),
  (np.arange(40) % 3).astype(np.int32),
)
X = TRAIN.x[:7]
# Sums of float32 in another order.
CLOSE = {'rtol': 1e-4, 'atol': 1e-5}


@pytest.fixture(scope='module')
def params(random_pool):
  """A pool with random vectors."""
  pool, random = random_pool(MODEL, X)['params'], np.random.default_rng(1)
  drawn = lambda leaf: jnp.asarray(random.normal(1.0, 0.4, leaf.shape), jnp.float32)
  made = ADAPTED.pool(pool)
  return made | {'adapters': jax.tree.map(drawn, made['adapters'])}


def by_hand(params, number, x, on):
  """The logits of a member, vectors applied to inputs and outputs as BatchEnsemble has them."""
  pool = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  flat = flatten_dict(pool, sep='/')

  def linear(name, x):
    inputs, outputs = (flat[f'adapters/{name}/kernel/{side}'] for side in ('inputs', 'outputs'))
    scaled = (x * inputs[number]) @ flat[f'{name}/kernel']
    return scaled * outputs[number] + flat[f'{name}/bias']

  def norm(name, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * flat[f'{name}/scale'] + flat[f'{name}/bias']

  h = linear('embed', np.asarray(x, np.float64))
  for i, is_on in enumerate(on):
    if is_on:
      hidden = linear(f'block_{i:02}/in', norm(f'block_{i:02}/norm', h))
      h = h + linear(f'block_{i:02}/out', np.asarray(jax.nn.gelu(hidden)))
  return linear('readout/out', norm('readout/norm', h))


@pytest.mark.parametrize('number', range(3))
def test_a_member_is_as_by_hand(params, number):
  structure = STRUCTURES[number]
  found = aj.static(MODEL, members({'params': params})[number], X, structure)
  expected = by_hand(params, number, X, [bit == '1' for bit in structure])
  np.testing.assert_allclose(found, expected, **CLOSE)
  others = [by_hand(params, other, X, (1, 1)) for other in range(3) if other != number]
  assert min(np.abs(other - by_hand(params, number, X, (1, 1))).max() for other in others) > 0.1


def test_with_ones_a_member_is_the_pool(random_pool):
  pool = random_pool(MODEL, X)
  for found in members({'params': ADAPTED.pool(pool['params'])}):
    jax.tree.map(np.testing.assert_array_equal, found, pool)


def test_start_is_the_pool_of_the_model_with_signs_in_front():
  key = jax.random.key(3)
  params = jax.jit(ADAPTED.init)(key, X)['params']
  flat = flatten_dict(params.pop('adapters'), sep='/')
  jax.tree.map(np.testing.assert_array_equal, params, jax.jit(MODEL.init)(key, X)['params'])
  signs = np.asarray(flat.pop('embed/kernel/inputs'))
  assert set(signs.ravel()) == {-1.0, 1.0}
  assert len(np.unique(signs, axis=0)) == 3
  assert all((leaf == 1).all() for leaf in flat.values())
  ones = jax.jit(Adapted(MODEL, 3, start='ones').init)(key, X)['params']['adapters']
  assert all((leaf == 1).all() for leaf in jax.tree.leaves(ones))


def test_parameters_are_those_of_one_network_and_of_the_vectors(params):
  ends = sum(a + b for a, b in ((5, 8), (8, 6), (6, 8), (8, 6), (6, 8), (8, 3)))
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  assert count == num_params(MODEL, X) + 3 * ends == num_params(ADAPTED, X)


def trainer(model, loss, structures, *, seed=0, devices=None, steps=0, state=None):
  recipe = Recipe(model, 'classification', optax.sgd(0.5), loss)
  mesh = mesh_.make_mesh(len(structures), 8, jax.devices()[: devices or 1])
  sampler = samplers.listed(structures, 2)
  made = Trainer(
    recipe, TRAIN, sampler, batch_size=8, seed=seed, placement=Placement(mesh), state=state
  )
  if steps:
    made.run(steps)
  return made


def test_a_step_is_the_mean_gradient_of_the_members(params):
  """By differentiating the sum of the members' losses, written out."""
  recipe = Recipe(ADAPTED, 'classification', optax.sgd(0.5), Members())
  start = init_state(recipe, {'params': params})
  made = trainer(ADAPTED, Members(), STRUCTURES, state=start, steps=1)
  rows = aj.data.Order(40, 24, 0).indices(0, 1).reshape(3, 8)

  def total(params):
    losses = [
      recipe.task.mean_loss(
        aj.static(MODEL, {'params': member(params, k)}, TRAIN.x[rows[k]], structure),
        TRAIN.y[rows[k]],
      )
      for k, structure in enumerate(STRUCTURES)
    ]
    return sum(losses) / 3

  expected = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.jit(jax.grad(total))(params))
  found = made.variables['params']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-4, expected, params)
  assert all(jax.tree.leaves(moved))


def test_many_devices_are_one(params):
  one, three = (
    trainer(ADAPTED, Members(), STRUCTURES, devices=count, steps=4).variables for count in (1, 3)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), one, three)


def test_frozen_at_ones_a_training_is_that_of_the_plain_pool():
  """As Exp 2 has it, to the last bit but for what multiplying by one makes XLA reorder."""
  recipe = Recipe(
    Adapted(MODEL, 2, start='ones'),
    'classification',
    optax.sgd(0.5),
    Members(),
    frozen=('adapters',),
  )
  sampler = samplers.listed(('11', '01'), 2)
  placement = Placement(mesh_.make_mesh(2, 8, jax.devices()[:1]))
  made = Trainer(recipe, TRAIN, sampler, batch_size=8, seed=0, placement=placement)
  made.run(5)
  plain = trainer(MODEL, aj.train.recipe.Structures(), ('11', '01'), steps=5)
  found, expected = dict(made.variables['params']), plain.variables['params']
  del found['adapters']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found, expected)


def test_taken_up_again_it_is_the_same():
  whole = trainer(ADAPTED, Members(), STRUCTURES, steps=6).variables
  half = trainer(ADAPTED, Members(), STRUCTURES, steps=3)
  state = jax.tree.map(np.array, half.state)
  again = trainer(ADAPTED, Members(), STRUCTURES, state=state, steps=3).variables
  jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_a_member_is_exported(params, tmp_path):
  """As an ordinary pool, with the receipt of any export."""
  pool = members({'params': params})[1]
  export(cut(MODEL, pool, '01'), tmp_path / 'small')
  module, variables = load(tmp_path / 'small')
  expected = by_hand(params, 1, X, (0, 1))
  np.testing.assert_allclose(module.apply(variables, X), expected, **CLOSE)


def test_networks_with_heads_and_images(random_pool):
  """Vectors lie on the last two axes of every kernel, and a member is a pool of the model."""
  model = aj.models.Transformer(1, 8, 2, 12, 3, num_tokens=5, causal=True)
  tokens = np.arange(8).reshape(2, 4) % 5
  pool = random_pool(model, tokens)['params']
  made = Adapted(model, 2).pool(pool)
  for path, shape in kernels(pool).items():
    vectors = functools.reduce(operator.getitem, path.split('/'), made['adapters'])
    assert vectors['inputs'].shape == (2, shape[-2])
    assert vectors['outputs'].shape == (2, shape[-1])
  plain = aj.static(model, {'params': pool}, tokens, '11')
  for found in members({'params': made}):
    np.testing.assert_array_equal(aj.static(model, found, tokens, '11'), plain)


def test_what_is_refused(params):
  with pytest.raises(UserError, match="start 'zeros': expected one of signs, ones"):
    Adapted(MODEL, 2, start='zeros')
  with pytest.raises(UserError, match='Members of a MLP: expected a model in Adapted'):
    Recipe(MODEL, 'classification', optax.sgd(0.1), Members())
  with pytest.raises(UserError, match="average 'coverage' of members with adapters: expected mean"):
    Recipe(ADAPTED, 'classification', optax.sgd(0.1), Members(), average='coverage')
  with pytest.raises(
    UserError, match='3 members with the sampler 2, 2 structures a step: expected'
  ):
    trainer(ADAPTED, Members(), ('11', '01'))
  with pytest.raises(UserError, match='adapters of a pool of a/bias: expected a kernel'):
    kernels({'a': {'bias': jnp.ones(3)}})
