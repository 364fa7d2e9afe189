"""Training a model with routers: penalties, biases outside the gradient, and devices that agree."""

import functools

import jax
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError, run
from additive_jax.data import ArraySplit, Order
from additive_jax.experiments.fit import point
from additive_jax.gates import routers
from additive_jax.models import Transformer
from additive_jax.models.moe import Experts
from additive_jax.models.routing import SELECTION_BIAS, Routing
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.balance import Balance, summary
from additive_jax.train.losses import Routed
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state
from additive_jax.train.trainer import Trainer

BATCH, STEPS, RATE = 4, 3, 0.01
TOKENS = np.random.default_rng(0).integers(0, 5, (2, 12, 6)).astype(np.uint8)
TRAIN = ArraySplit(*TOKENS)
# Not Adam, which turns the rounding of a gradient that is zero, as of keys' biases, into steps.
OPTIMIZER = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
ROUTINGS = {
  'softmax': Routing('softmax', 2),
  'factorised': Routing('factorised', 2, True),
  'marginal': Routing('marginal'),
  'random': Routing('random', 2),
  'experts': Experts(3, 2),
}


@functools.cache
def model_of(router):
  return Transformer(
    1, 6, 2, 8, 5, num_tokens=5, causal=True, unit='swiglu', num_chunks=3, routing=ROUTINGS[router]
  )


def recipe_of(router, **weights):
  weights = weights or {'auxiliary': 0.3, 'z': 0.1, 'bias_rate': RATE}
  return Recipe(model_of(router), 'language', OPTIMIZER, Routed(Balance(**weights)))


def all_on(count):
  return samplers.listed(['11'], 2, count)


def trainer_of(recipe, random_pool, mesh=(1, 1), slots=1):
  state = init_state(recipe, random_pool(recipe.model, TOKENS[0][:1]))
  devices = jax.make_mesh(
    mesh,
    (mesh_.STRUCTURE, mesh_.DATA),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[: mesh[0] * mesh[1]],
  )
  return Trainer(
    recipe,
    TRAIN,
    all_on(slots),
    batch_size=BATCH,
    seed=0,
    state=state,
    placement=Placement(devices, chunk_steps=2),
  )


def host(tree):
  return jax.tree.map(np.array, tree)


@pytest.mark.parametrize(
  ('router', 'mesh'),
  [
    ('softmax', (1, 2)),
    pytest.param('random', (2, 2), marks=pytest.mark.thorough),
    pytest.param('experts', (2, 2), marks=pytest.mark.thorough),
  ],
)
def test_devices_agree(router, mesh, random_pool):
  """Losses, pools, biases and facts, whether devices split the batches alone or slots as well."""
  recipe = recipe_of(router)
  want = trainer_of(recipe, random_pool, slots=2)
  values = want.run(STEPS)
  assert values['facts']['block_00__mlp'].load.shape[0] == STEPS
  trainer = trainer_of(recipe, random_pool, mesh, slots=2)
  found = trainer.run(STEPS)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, host(found), host(values))
  jax.tree.map(close, host(trainer.state.params), host(want.state.params))


def test_one_step_by_hand(random_pool):
  recipe = recipe_of('factorised')
  trainer = trainer_of(recipe, random_pool)
  params = host(trainer.state.params)
  opt_state = recipe.optimizer.init(params)
  rows = Order(len(trainer.train), BATCH, seed=0).indices(0, 1).reshape(-1)
  x, y = TOKENS[0][rows], TOKENS[1][rows]

  def loss(params):
    outputs, facts = run.routed(recipe.model, {'params': params}, x)
    site = facts['block_00__mlp']
    load = jax.lax.stop_gradient(site.load)
    even = (load * site.importance + (1 - load) * (1 - site.importance)).mean() * 2
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
    return loss + 0.3 * even + 0.1 * site.z, site

  (value, site), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  updates, _ = recipe.optimizer.update(gradient, opt_state, params)
  want = host(optax.apply_updates(params, updates))
  bias = params['block_00__mlp'][SELECTION_BIAS]
  want['block_00__mlp'][SELECTION_BIAS] = bias + RATE * np.sign(0.5 - site.load)
  found = trainer.run(1)
  np.testing.assert_allclose(found['loss'][0, 0], value, rtol=1e-5)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, host(trainer.state.params), want)
  assert not np.array_equal(
    gradient['block_00__mlp']['router']['kernel'], 0 * params['block_00__mlp']['router']['kernel']
  )
  assert np.array_equal(gradient['block_00__mlp'][SELECTION_BIAS], np.zeros(2))


@pytest.mark.slow
def test_without_a_rate_biases_stay_and_no_decay_moves_them(random_pool):
  trainer = trainer_of(recipe_of('softmax', auxiliary=0.1), random_pool)
  before = host(trainer.state.params['block_00__mlp'][SELECTION_BIAS])
  assert np.abs(before).max() > 0
  trainer.run(STEPS)
  np.testing.assert_array_equal(trainer.state.params['block_00__mlp'][SELECTION_BIAS], before)


def test_random_routes_anew_each_step(random_pool):
  loads = (
    trainer_of(recipe_of('random'), random_pool, slots=2).run(6)['facts']['block_00__mlp'].load
  )
  assert len({tuple(row) for row in np.asarray(loads)}) > 2
  np.testing.assert_allclose(np.sum(loads, axis=-1), 1, rtol=1e-6)


@pytest.mark.slow
def test_the_share_of_computed_tokens_settles(random_pool):
  """At the target, whatever it is before the biases move."""
  model = Transformer(
    1, 6, 2, 8, 5, num_tokens=5, causal=True, num_chunks=3, routing=Routing('softmax', 1, keep=0.3)
  )
  recipe = Recipe(model, 'language', optax.sgd(0.01), Routed(Balance(keep_rate=0.02)))
  with tiny.two_sizes():
    values = trainer_of(recipe, random_pool, slots=2).run(300)
  kept = values['facts']['block_00__mlp'].kept
  assert abs(kept[:10].mean() - 0.3) > 0.1
  assert abs(kept[-100:].mean() - 0.3) < 0.03


def test_summary_of_facts():
  facts = routers.ListFacts(np.array([0.5, 0.25, 0.25, 0]), np.ones(4) / 4, 0.0, 1.2)
  assert summary(facts) == {
    'entropy': 1.2,
    'kept': 1.0,
    'utilisation_max': 2.0,
    'utilisation_min': 0.0,
    'max_violation': 1.0,
    'dead': 1,
  }
  everything = routers.GateFacts(np.ones(2), np.ones(2), 0.0, 0.5, np.zeros(0))
  assert summary(everything) == {'entropy': 0.5, 'kept': 1.0}


def test_curves_tell_of_routers(random_pool):
  recipe = recipe_of('softmax')
  values = trainer_of(recipe, random_pool, slots=2).run(STEPS)
  curves = point(values, recipe.loss)
  load = values['facts']['block_00__mlp'].load.mean(0)
  assert curves['block_00/mlp/utilisation_max'] == pytest.approx(load.max() * 4)
  assert curves['block_00/mlp/dead'] == (load == 0).sum()
  assert 0 < curves['block_00/mlp/entropy'] <= np.log(4) + 1e-5


def test_bad_input(random_pool):
  with pytest.raises(UserError, match='z -1 of the balance: expected a weight, 0 or more'):
    Balance(z=-1)
  recipe = recipe_of('softmax')
  with pytest.raises(UserError, match='structures of Uniform for a model with routers: expected'):
    Trainer(recipe, TRAIN, samplers.Uniform(2, 2), batch_size=BATCH, seed=0)
  plain = Transformer(1, 6, 2, 8, 5, num_tokens=5)
  with pytest.raises(UserError, match='a balance of routers for a model without any: expected one'):
    trainer_of(Recipe(plain, 'language', OPTIMIZER, Routed(Balance())), random_pool).run(1)
  with pytest.raises(
    UserError, match=r"gate kinds .*'lane'.* with routers: expected residual alone"
  ):
    Transformer(1, 6, 2, 8, 5, gates=('residual', 'lane'), routing=Routing())
