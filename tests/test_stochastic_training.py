"""Training with random structures: one loss by hand, devices, interruptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from additive_jax import UserError, masked, static
from additive_jax.data import ArraySplit
from additive_jax.gates.subsets import Subsets, as_gates, draw
from additive_jax.models import MLP
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.gradients import Slots, averaged_gradient
from additive_jax.train.losses import PerSample
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.state import State, init_state
from additive_jax.train.trainer import Trainer

# Sums over all examples and outputs in float32, with much cancellation.
CLOSE_GRADIENT = {'rtol': 1e-4, 'atol': 1e-4}

MODEL = MLP(3, 8, 8, 3)
TRAIN = ArraySplit(
  np.random.default_rng(0).normal(size=(29, 6)).astype(np.float32),
  np.random.default_rng(1).integers(0, 3, 29).astype(np.int32),
)
PLAN = Subsets(((1.0, 0.75, 0.5), (0.75, 0.5, 0.25)), (0, 4), parts=2)
LOSS = PerSample(subsets=PLAN, distill=0.3, rescale='inverse')
RECIPE = Recipe(MODEL, 'classification', optax.sgd(0.1, momentum=0.9), LOSS)


def test_gradient_of_a_step_is_that_of_the_masked_form(random_pool):
  """Two slots, each with subsets of its own, rescaled and distilled, against one loss by hand; in
  both stages of one program."""
  x, y = TRAIN.x[:16].reshape(2, 8, 6), TRAIN.y[:16].reshape(2, 8)
  params = random_pool(MODEL, x[0])['params']
  keys = jax.random.split(jax.random.key(4), 2)

  @functools.partial(jax.jit, static_argnums=2)
  def own(params, gates, stage):
    probabilities = np.asarray(PLAN.probabilities(stage, 8))
    scales = np.divide(1, probabilities, where=probabilities > 0, out=np.zeros(3)).tolist()

    def loss(params):
      losses = []
      for slot in range(2):
        logits = masked(MODEL, {'params': params}, x[slot], gates[slot], scales=scales)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y[slot])
        teacher = jax.lax.stop_gradient(static(MODEL, {'params': params}, x[slot], '111'))
        apart = jax.nn.log_softmax(teacher) - jax.nn.log_softmax(logits)
        mixed = 0.7 * entropy + 0.3 * (jax.nn.softmax(teacher) * apart).sum(-1)
        losses.append(jnp.where(gates[slot].all(1), entropy, mixed).mean())
      return sum(losses) / 2, jnp.stack(losses)

    return jax.grad(loss, has_aux=True)(params)

  bits = jnp.ones((2, 3), bool)
  program = jax.jit(
    lambda params, step: averaged_gradient(RECIPE, params, Slots(bits, x, y, keys, step))
  )
  gradients = []
  for stage, step in enumerate(PLAN.starts):
    rates = PLAN.keep_rates[stage]
    gates = jnp.stack([as_gates(draw(key, rates, 4, parts=2), 8) for key in keys])
    assert np.ptp(gates, axis=0).any()
    want, want_loss = own(params, gates, stage)
    got, loss, finite, *_ = program(params, jnp.int32(step))
    assert finite.all()
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)  # one float32 mean
    jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE_GRADIENT), got, want)
    gradients.append(got)
  gap = jax.tree.map(lambda a, b: np.abs(a - b).max(), *gradients)
  assert max(jax.tree.leaves(gap)) > 0.01
  assert program._cache_size() == 1


def test_conditional_gradient_is_rescaled_by_the_rates(random_pool):
  x, y = TRAIN.x[None, :8], TRAIN.y[None, :8]
  params, bits = random_pool(MODEL, x[0])['params'], jnp.array([[True, False, True]])
  rates = jnp.array([0.5, 0.0, 0.8])
  recipe = Recipe(MODEL, 'classification', optax.sgd(0.1), Structures(rescale='inverse'))
  slots = Slots(bits, x, y, rates=rates)
  got = jax.jit(lambda params: averaged_gradient(recipe, params, slots).gradient)(params)

  def by_hand(params):
    outputs = static(MODEL, {'params': params}, x[0], '101', scales=[2.0, 1.0, 1.25])
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y[0]).mean()

  close = functools.partial(np.testing.assert_allclose, **CLOSE_GRADIENT)
  jax.tree.map(close, got, jax.grad(by_hand)(params))


def trainer(recipe, mesh, sampler=None, **options):
  devices = jax.devices()[: mesh[0] * mesh[1]]
  mesh = jax.make_mesh(
    mesh, ('structure', 'data'), axis_types=(jax.sharding.AxisType.Auto,) * 2, devices=devices
  )
  sampler = sampler or samplers.listed(['111'], 3, 4)
  options = {'batch_size': 8, 'seed': 3} | options
  return Trainer(recipe, TRAIN, sampler, placement=Placement(mesh, chunk_steps=5), **options)


@pytest.fixture(scope='module')
def uninterrupted():
  one = trainer(RECIPE, (1, 1))
  return one.run(7)['loss'], processes.to_host(one.state)


@pytest.mark.thorough  # `test_fsdp` has a structure for each example by default
def test_many_devices_are_one(uninterrupted):
  """Four slots over two devices, whose batches two more split by whole parts."""
  many = trainer(RECIPE, (2, 2))
  loss = many.run(7)['loss']
  # Seven steps of float32, each of which multiplies rounding by at most a little.
  np.testing.assert_allclose(loss, uninterrupted[0], rtol=1e-4)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, processes.to_host(many.state.params), uninterrupted[1].params)
  assert np.ptp(loss, axis=1).min() > 1e-3


def test_an_interruption_changes_no_bit(uninterrupted):
  """Stopped within a stage, and again where one ends."""
  state, losses = None, []
  for count in (2, 2, 3):
    part = trainer(RECIPE, (1, 1), state=state)
    losses.append(part.run(count)['loss'])
    state = State(*processes.to_host(part.state))
  np.testing.assert_array_equal(np.concatenate(losses), uninterrupted[0])
  jax.tree.map(np.testing.assert_array_equal, state, uninterrupted[1])


def test_other_rates_over_time_compile_nothing(compiles):
  make = lambda **options: samplers.KeepRates(**options).sampler(3, 4)
  recipe = Recipe(MODEL, 'classification', optax.sgd(0.1), Structures(rescale='inverse'))
  state = init_state(recipe, MODEL.init(jax.random.key(0), TRAIN.x[:1]))
  run = lambda sampler: trainer(recipe, (1, 1), sampler, state=state).run(4)['loss']
  losses = [run(make(rate=0.5))]
  del compiles[:]
  losses.append(run(make(rate=0.2, ramp='linear', ramp_steps=3)))
  losses.append(run(make(by_gate=(0.2, 1, 0), ramp_steps=3, ramp_shape='cosine')))
  assert len(compiles) == 0
  assert len({loss.tobytes() for loss in losses}) == 3


BERNOULLI = samplers.make_sampler('bernoulli', 3, 4)


@pytest.mark.parametrize(
  ('loss', 'arguments', 'message'),
  [
    (LOSS, {'sampler': BERNOULLI}, 'structures of Bernoulli for subsets per sample: expected'),
    (LOSS, {'sampler': samplers.listed(['101'] * 4, 3)}, 'structures of Listed for subsets'),
    (LOSS, {'batch_size': 7}, 'a batch of 7 in 2 parts: expected parts that divide'),
    (LOSS, {'mesh': (1, 4)}, '4 devices split a batch of 2 parts with a subset each: expected'),
    (PerSample(subsets=Subsets(((0.5,),))), {}, '1 keep rates: expected 3, one per gate'),
    (
      Structures(rescale='inverse'),
      {},
      "rescale 'inverse' of the structures of Listed: expected a",
    ),
  ],
)
def test_draws_that_cannot_be(loss, arguments, message):
  with pytest.raises(UserError, match=message):
    trainer(Recipe(MODEL, 'classification', optax.sgd(0.1), loss), **{'mesh': (1, 1)} | arguments)


def test_unknown_rescaling():
  with pytest.raises(UserError, match="rescale 'half': expected one of none, inverse"):
    Structures(rescale='half')
