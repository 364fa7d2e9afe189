"""Sparse variational dropout and magnitude pruning, against integrals, samples and hand-made
cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats

from additive_jax import UserError
from additive_jax.compress import (
  Variational,
  VariationalLoss,
  below_threshold,
  divergence,
  keep_zeros,
  largest,
  make_level,
)
from additive_jax.compress.noise import Draw, NoisyKernel, ScaledKernel, with_kernels
from additive_jax.data import ArraySplit
from additive_jax.models import MLP, ConvNet, DenseStack, LeNet, Transformer
from additive_jax.models.routing import Routing
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe, Slot
from additive_jax.train.state import State, init_state
from additive_jax.train.trainer import Trainer

X = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
MODELS = {
  'dense stack': DenseStack((5, 4), num_classes=3, num_chunks=2),
  'mlp': MLP(2, 6, 5, 3),
  'transformer': Transformer(1, 6, 2, 5, 3, patch_size=2, unit='swiglu'),
}
NUMBERS = {  # of what each level finds in each model
  'weight': {'dense stack': 16 * 5 + 20 + 12, 'transformer': 276},
  'unit': {'mlp': 10, 'transformer': 2 + 5},
  'gate': {'mlp': 2},
}
CASES = [
  ('weight', 'dense stack'),
  pytest.param('weight', 'transformer', marks=pytest.mark.slow),
  ('unit', 'mlp'),
  pytest.param('unit', 'transformer', marks=pytest.mark.slow),
  ('gate', 'mlp'),
]


def random_pool(model, seed=0):
  """A pool whose every leaf is random, so that no bias or scale hides."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), X)['params']
  random = np.random.default_rng(seed)
  return jax.tree.map(lambda s: random.normal(size=s.shape).astype(np.float32) / 2, shapes)


def nonzero(params):
  return sum(int(np.count_nonzero(leaf)) for leaf in jax.tree.leaves(params))


def test_the_divergence_is_the_integral():
  """KL(N(1, α) ‖ log-uniform) = E log|θ| − ½ log α + constant: the constant is what makes it 0 for
  an infinite α; the published fit is within 0.01 nats of it."""

  def exact(log_alpha):
    deviation = np.exp(log_alpha / 2)
    # E log|1 + √α ε|: of the non-central χ² with one degree of freedom.
    density = lambda u: scipy.stats.norm.pdf(u, 1, deviation)
    near, far = 1e-12, 1 + 12 * deviation
    total = 0.0
    for sign in (-1, 1):
      integrand = lambda t, sign=sign: t * density(sign * np.exp(t)) * np.exp(t)
      points = [0.0, np.log(deviation)] if deviation < far else [0.0]
      found = scipy.integrate.quad(integrand, np.log(near), np.log(far), points=points, limit=400)
      total += found[0]
    return total - log_alpha / 2

  # For a large α, E log|θ| is ½ log α + ½ (ψ(½) + log 2).
  at_infinity = (scipy.special.digamma(0.5) + np.log(2)) / 2
  points = np.linspace(-6, 6, 13)
  want = np.array([exact(a) for a in points]) - at_infinity
  np.testing.assert_allclose(divergence(jnp.asarray(points, jnp.float32)), want, atol=0.012)
  assert divergence(jnp.float32(20.0)) == pytest.approx(0, abs=1e-4)
  assert np.ptp(want) > 3


def test_local_reparameterisation_has_the_moments_of_sampled_weights():
  random = np.random.default_rng(1)
  mean, variance = random.normal(size=(7, 3)), random.uniform(0.1, 2, (7, 3))
  x = jnp.asarray(random.normal(size=(1, 7)), jnp.float32)
  draws = 20_000
  weights = mean + np.sqrt(variance) * random.normal(size=(draws, 7, 3))
  sampled = np.einsum('i,nij->nj', np.asarray(x[0]), weights)
  draw = Draw(jax.random.split(jax.random.key(0), draws))
  kernel = NoisyKernel(jnp.float32(mean), jnp.float32(variance), draw)
  found = np.asarray(jnp.broadcast_to(x, (draws, 7)) @ kernel)
  # Six standard errors of 20,000 draws, of the mean and of the variance.
  error = 6 * sampled.std(0) / np.sqrt(draws)
  np.testing.assert_array_less(np.abs(found.mean(0) - sampled.mean(0)), 1.5 * error)
  np.testing.assert_allclose(found.var(0), sampled.var(0), rtol=6 * np.sqrt(4 / draws))
  # Outputs are independent, as of independent weights.
  np.testing.assert_allclose(np.corrcoef(found.T), np.eye(3), atol=6 / np.sqrt(draws))


def test_kernels_stand_for_their_arrays():
  """Parts and shapes of a kernel are those of the array; noise of a unit multiplies its input."""
  random = np.random.default_rng(2)
  x = jnp.asarray(random.normal(size=(4, 3, 6)), jnp.float32)
  kernel = jnp.asarray(random.normal(size=(2, 3, 5)), jnp.float32)
  still = NoisyKernel(kernel, jnp.zeros_like(kernel), Draw(jax.random.split(jax.random.key(0), 4)))
  flat = kernel.reshape(6, 5)
  close = functools.partial(np.testing.assert_allclose, atol=2e-3)  # noise of variance 1e-8
  close(x @ still.reshape(6, 5), x @ flat)
  close(x[..., 2:5] @ still.reshape(6, -1)[2:5, 1:4], x[..., 2:5] @ flat[2:5, 1:4])
  scale = jnp.asarray(random.normal(size=(4, 6)), jnp.float32)
  scaled = ScaledKernel(kernel, scale).reshape(6, 5)
  close(x @ scaled, (x * scale[:, None]) @ flat)
  close(x[..., 1:3] @ scaled[1:3], (x * scale[:, None])[..., 1:3] @ flat[1:3])


@pytest.mark.parametrize(('level', 'name'), CASES)
def test_noise_enters_every_level(level, name):
  """Without noise it is the network; with it every number has a gradient, and examples differ."""
  model = MODELS[name]
  found = make_level(level, model, X)
  assert sum(int(np.prod(shape)) for _, shape in found.shapes) == NUMBERS[level][name]
  mean, keys = random_pool(model), jax.random.split(jax.random.key(1), len(X))
  same = jnp.broadcast_to(jnp.asarray(X[:1]), X.shape)
  run = jax.jit(lambda noise, x: found.run(mean, noise, x, keys))
  full = lambda value: {name: jnp.full(shape, value) for name, shape in found.shapes}
  want = model.apply({'params': mean}, same)
  np.testing.assert_allclose(run(full(-80.0), same), want, rtol=1e-3, atol=2e-3)
  assert np.ptp(np.asarray(run(full(0.0), same)), axis=0).max() > 0.1
  loss = lambda noise: jnp.sin(found.run(mean, noise, jnp.asarray(X), keys)).sum()
  slope = jax.jit(jax.grad(loss))(full(-1.0))
  for leaf in jax.tree.leaves(slope):
    assert np.isfinite(leaf).all()
    assert (np.asarray(leaf) != 0).mean() > 0.5  # units that relu clears have none


@pytest.mark.parametrize(('level', 'name'), CASES)
def test_what_is_removed(level, name):
  """Zeros for weights, a gate that is off, and units that give nothing."""
  model = MODELS[name]
  found = make_level(level, model, X)
  mean = random_pool(model)
  sizes = found.magnitudes(mean)
  keep = largest(sizes, sum(values.size for values in sizes.values()) // 2)
  pruned = found.prune(mean, keep)
  lost = sum(int((~own).sum()) for own in keep.values())
  if level == 'gate':
    assert pruned.structure.num_on == 1
    assert nonzero(pruned.params) == nonzero(mean)
    return
  assert all(pruned.structure)
  if level == 'weight':
    assert nonzero(mean) - nonzero(pruned.params) == lost
    return
  scales = {
    module: lambda kernel, space=space, each=each: ScaledKernel(
      kernel, jnp.repeat(jnp.tile(jnp.float32(keep[space]), (len(X), 1)), each, axis=1)
    )
    for module, space, each in found.readers
  }
  want = jax.jit(lambda x: with_kernels(model, mean, x, scales))(X)
  got = jax.jit(model.apply)({'params': pruned.params}, X)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  assert np.abs(got - jax.jit(model.apply)({'params': mean}, X)).max() > 0.01


def test_inputs_are_units_too():
  model = MODELS['dense stack']
  found = make_level('unit', model, X, inputs=True)
  assert dict(found.shapes) == {'inputs': (16,), 'fc1': (5,), 'fc2': (4,)}
  assert dict(found.counts) == {'inputs': 5, 'fc1': 16 + 1 + 4, 'fc2': 5 + 1 + 3}
  mean = random_pool(model)
  sizes = found.magnitudes(mean)
  np.testing.assert_allclose(
    sizes['inputs'], np.linalg.norm(mean['fc1']['kernel'], axis=1), rtol=1e-5
  )
  keep = largest(sizes, {'inputs': 7, 'fc1': 5, 'fc2': 4})
  pruned = found.prune(mean, keep)
  inside = X * keep['inputs'].reshape(4, 4)
  np.testing.assert_allclose(
    model.apply({'params': pruned.params}, X), model.apply({'params': mean}, inside), rtol=1e-5
  )


def test_magnitudes_by_hand():
  model = DenseStack((2,), num_classes=2, num_chunks=2)
  level = make_level('unit', model, np.ones((1, 2), np.float32))
  first = np.array([[3.0, 0.0], [4.0, 1.0]])
  second = np.array([[2.0, 0.0], [0.0, 7.0]])
  params = {
    'fc1_out': {
      'fc1': {'kernel': first, 'bias': np.zeros(2)},
      'out': {'kernel': second, 'bias': np.ones(2)},
    }
  }
  found = level.magnitudes(params)
  np.testing.assert_allclose(found['fc1'], [5 * 2, 1 * 7])
  np.testing.assert_array_equal(largest(found, {'fc1': 1})['fc1'], [True, False])
  pruned = level.prune(params, {'fc1': np.array([False, True])})
  want = [[0, 0], [0, 1]]
  np.testing.assert_array_equal(pruned.params['fc1_out']['fc1']['kernel'], want)
  weights = make_level('weight', model, np.ones((1, 2), np.float32))
  found = weights.magnitudes(params)
  keep = largest(found, 2)
  np.testing.assert_array_equal(keep['fc1_out/fc1/kernel'], [[False, False], [True, False]])
  np.testing.assert_array_equal(keep['fc1_out/out/kernel'], [[False, False], [False, True]])
  keep = largest(found, 4, 'layer')
  assert [int(own.sum()) for own in keep.values()] == [2, 2]
  # The third weight that is left, 2, is read of unit 0; without it no weight reads that unit.
  pruned = weights.prune(
    params, {'fc1_out/fc1/kernel': first > 1, 'fc1_out/out/kernel': second > 2}
  )
  np.testing.assert_array_equal(pruned.units['fc1'], [False, True])


def test_the_lowest_stays_where_all_would_go():
  found = below_threshold({'a': np.array([5.0, 4.0]), 'b': np.array([1.0, 3.5, 3.0])})
  np.testing.assert_array_equal(found['a'], [False, True])
  np.testing.assert_array_equal(found['b'], [True, False, True])
  # At the value where log α is cut off, all are alike: the first stays.
  np.testing.assert_array_equal(
    below_threshold({'a': np.full((2, 2), 8.0)})['a'], [[True, False], [False] * 2]
  )


def test_zeros_stay_zero():
  """What is pruned does not move, nor count in norms; the rest moves as without it."""
  optimizer = keep_zeros(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)))
  params = {'a': jnp.array([0.0, 2.0]), 'b': jnp.array(0.0)}
  state = optimizer.init(params)
  updates, state = optimizer.update({'a': jnp.array([30.0, 2.0]), 'b': jnp.array(5.0)}, state)
  np.testing.assert_allclose(updates['a'], [0, -1])
  assert updates['b'] == 0


TRAIN = ArraySplit(
  np.random.default_rng(3).normal(size=(40, 4, 4)).astype(np.float32),
  np.random.default_rng(4).integers(0, 3, 40).astype(np.int32),
)


def trainer(recipe, data_devices=1, state=None):
  mesh = jax.make_mesh(
    (1, data_devices),
    ('structure', 'data'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:data_devices],
  )
  sampler = samplers.listed(['11'], 2, 2)
  return Trainer(
    recipe,
    TRAIN,
    sampler,
    batch_size=8,
    seed=3,
    state=state,
    placement=Placement(mesh, chunk_steps=4),
  )


@pytest.fixture(scope='module')
def recipe():
  model = Variational(make_level('weight', MODELS['mlp'], X), -3.0)
  loss = VariationalLoss(40, kl_weight=2.0, ramp_steps=4.0)
  return Recipe(model, 'classification', optax.sgd(0.05), loss)


@pytest.fixture(scope='module')
def uninterrupted(recipe):
  one = trainer(recipe)
  return one.run(6)['loss'], processes.to_host(one.state)


@pytest.mark.slow
def test_training_under_noise_does_not_depend_on_devices(recipe, uninterrupted):
  many = trainer(recipe, 2)
  loss = many.run(6)['loss']
  # Six steps of float32, each of which multiplies rounding by at most a little.
  np.testing.assert_allclose(loss, uninterrupted[0], rtol=1e-4)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, processes.to_host(many.state.params), uninterrupted[1].params)


def test_an_interruption_changes_no_bit(recipe, uninterrupted):
  first = trainer(recipe)
  losses = [first.run(3)['loss']]
  second = trainer(recipe, state=State(*processes.to_host(first.state)))
  losses.append(second.run(3)['loss'])
  np.testing.assert_array_equal(np.concatenate(losses), uninterrupted[0])
  jax.tree.map(np.testing.assert_array_equal, processes.to_host(second.state), uninterrupted[1])
  # Both slots of a step have the same structure; they differ by their examples and noise.
  assert np.ptp(uninterrupted[0], axis=1).min() > 1e-4


def test_the_loss_is_the_bound(recipe, uninterrupted):
  """At step 2 of a ramp of 4, half of the weight, over the number of terms."""
  model, loss = recipe.model, recipe.loss
  pool = model.pool(random_pool(MODELS['mlp']))
  x, y = jnp.asarray(TRAIN.x[:8]), jnp.asarray(TRAIN.y[:8])
  key, bits = jax.random.key(0), jnp.ones(2, bool)
  run = jax.jit(lambda pool, step: loss(recipe, pool, Slot(bits, x, y, key, step))[0])
  of = lambda step: float(run(pool, step))
  alphas = model.log_alpha(pool)
  total = sum(float(divergence(a).sum()) for a in alphas.values())
  assert of(2) - of(0) == pytest.approx(2.0 * 0.5 * total / 40, rel=1e-4)
  assert of(9) - of(4) == pytest.approx(0, abs=1e-6)
  want = np.clip(-3.0 - np.log(np.square(pool['mean']['embed']['kernel']) + 1e-16), -8, 8)
  np.testing.assert_allclose(alphas['embed/kernel'], want, rtol=1e-5)


@pytest.mark.parametrize(
  ('level', 'model', 'message'),
  [
    ('layer', MODELS['mlp'], "level 'layer': expected one of weight, unit, gate"),
    ('gate', MODELS['dense stack'], 'noise per gate in DenseStack with gates fc2_out/join_1: exp'),
    ('weight', ConvNet((2, 4), 1, num_classes=3), 'noise per weight in ConvNet with .*kernel: exp'),
    ('weight', LeNet(3, num_chunks=2), 'noise per weight in LeNet with .*kernel: expected kernels'),
    ('unit', ConvNet((2, 4), 1, num_classes=3), 'noise per unit in ConvNet: expected hidden units'),
    ('unit', LeNet(3, num_chunks=2), 'noise per unit in LeNet: expected one of MLP, DenseStack'),
    ('weight', MLP(1, 4, 4, 3, gates=('lane',)), 'noise per weight in MLP with routers or lanes'),
    (
      'unit',
      Transformer(1, 4, 2, 4, 3, num_chunks=2, routing=Routing('marginal')),
      'noise per unit in Transformer with routers or lanes: expected neither',
    ),
  ],
)
def test_bad_levels(level, model, message):
  with pytest.raises(UserError, match=message) as caught:
    make_level(level, model, X)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: make_level('unit', MODELS['transformer'], X, inputs=True),
      'noise of inputs of Transformer: expected a network that flattens them',
    ),
    (
      lambda: make_level('weight', MODELS['mlp'], X, inputs=True),
      'noise of inputs per weight: expected it per unit alone',
    ),
    (lambda: VariationalLoss(10, kl_weight=-1.0), 'kl_weight -1.0 and ramp_steps 0.0: expected 0'),
    (lambda: largest({'a': np.ones(3)}, 4), '4 largest of 3: expected 0 to 3'),
    (lambda: largest({'a': np.ones(3)}, {'a': 4}), '4 largest of 3 in a: expected no more'),
    (lambda: largest({'a': np.ones(3)}, 2, 'net'), "scope 'net': expected one of global, layer"),
  ],
)
def test_bad_options(make, message):
  with pytest.raises(UserError, match=message):
    make()


def test_a_loss_of_its_own_needs_all_gates(recipe):
  with pytest.raises(UserError, match='structures of Uniform for a loss of its own: expected'):
    Trainer(recipe, TRAIN, samplers.Uniform(2, 2), batch_size=8, seed=0)


def test_checkpointed_state_of_pruned_networks(recipe):
  """What may move is a part of the optimizer's state, and one recipe serves every mask."""
  tuned = Recipe(MODELS['mlp'], 'classification', keep_zeros(optax.sgd(0.1)))
  level = recipe.model.noise
  mean = random_pool(MODELS['mlp'])
  for count in (40, 100):
    keep = largest(level.magnitudes(mean), count)
    pruned = level.prune(mean, keep)
    one = trainer(tuned, state=init_state(tuned, {'params': pruned.params}))
    one.run(2)
    found = processes.to_host(one.state.params)
    assert nonzero(found) == nonzero(pruned.params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), found, pruned.params)
    assert max(jax.tree.leaves(moved)) > 1e-4
