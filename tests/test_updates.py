"""What a step leaves out, and slots that are clipped each by itself, wherever the pool lies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError, static
from additive_jax.data import ArraySplit, Data, Order
from additive_jax.models import MLP
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.fleet import Fleet
from additive_jax.train.gradients import Slots, averaged_gradient, gradient_norm
from additive_jax.train.losses import Piped
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.state import apply_gradient, init_state
from additive_jax.train.trainer import Trainer

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(16, 6)).astype(np.float32)
TRAIN = ArraySplit(ROWS, np.arange(16, dtype=np.int32) % 3)
MODEL = MLP(num_blocks=2, width=8, hidden=8, num_classes=3)
HALF = '10'  # the last site is off: its gradient is 0, and its update 0/0
NO_EPSILON = optax.adam(1e-2, eps=0.0)
STEPS = 3
# Where a pool may lie: devices along each axis.
PLACES = {
  'one device': {},
  'data': {'data': 2},
  'structures': {'structure': 2},
  'zero': {'structure': 2, 'zero': True},
  'pipeline': {'pipe_devices': 2},
  'fsdp': {'fsdp_devices': 2},
  'tensor': {'tensor_devices': 2},
}


def trainer_of(place, recipe, sampler, state=None):
  options = dict(PLACES[place])
  zero, data = options.pop('zero', False), options.pop('data', 1)
  structure = options.pop('structure', 1)
  count = structure * data * int(np.prod(list(options.values())))
  mesh = mesh_.make_mesh(structure, 4 if options else data, jax.devices()[:count], **options)
  if 'pipe_devices' in options:
    loss = Piped(pipeline=Pipeline(2, 2))
    recipe = Recipe(recipe.model, 'classification', recipe.optimizer, loss)
  placement = Placement(mesh, zero=zero, chunk_steps=STEPS)
  return Trainer(recipe, TRAIN, sampler, batch_size=4, seed=0, placement=placement, state=state)


def assert_untouched(state, steps):
  first = init_state(
    Recipe(MODEL, 'classification', NO_EPSILON), {'params': processes.to_host(state.params)}
  )
  assert int(state.skipped) == steps
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first.params))
  moments = jax.tree.leaves(processes.to_host(state.opt_state))
  assert not any(np.any(leaf) for leaf in moments)


@pytest.mark.parametrize('place', tiny.slow_but(('one device', 'zero', 'pipeline', 'fsdp'), PLACES))
def test_an_update_that_is_not_finite_is_left_out(place):
  sampler = samplers.fixed(HALF, 2)
  if PLACES[place].get('structure'):
    sampler = samplers.listed([HALF, HALF], 2, 2)
  trainer = trainer_of(place, Recipe(MODEL, 'classification', NO_EPSILON), sampler)
  before = processes.to_host(trainer.variables)
  metrics = trainer.run(STEPS)
  assert np.isfinite(metrics['loss']).all()
  assert np.isfinite(metrics['gradient_norm']).all()
  assert not metrics['finite'].any()
  jax.tree.map(np.testing.assert_array_equal, processes.to_host(trainer.variables), before)
  assert_untouched(trainer.state, STEPS * sampler.num_structures)


def test_networks_alone_and_side_by_side_leave_it_out_too():
  recipe = Recipe(MODEL, 'classification', NO_EPSILON)
  data = Data('rows', 'classification', TRAIN, TRAIN, 3)
  (member,) = Population(recipe, data, batch_size=4, seed=0).train([HALF], STEPS)
  assert_untouched(member.state, STEPS)
  fleet = Fleet(recipe, TRAIN, [range(8), range(8, 16)], structure=HALF, batch_size=4, seed=0)
  assert not fleet.run(STEPS)['finite'].any()
  for state in fleet.members():
    assert_untouched(state, STEPS)


def test_steps_with_finite_updates_go_on():
  """Where the site is on, the update is finite; with it off all steps before are left out."""
  unit = optax.GradientTransformation(
    lambda params: optax.EmptyState(),
    lambda g, s, p=None: (jax.tree.map(lambda leaf: -0.01 * leaf / jnp.abs(leaf).max(), g), s),
  )
  sampler = samplers.Uniform(2, 1)
  trainer = trainer_of('one device', Recipe(MODEL, 'classification', unit), sampler)
  on = []
  key = jax.random.wrap_key_data(trainer._key)
  for step in range(12):
    on.append(bool(sampler(jax.random.fold_in(key, step), step)[0].all()))
  metrics = trainer.run(12)
  assert metrics['finite'][:, 0].tolist() == on
  assert 0 < sum(on) < 12
  assert int(trainer.state.skipped) == 12 - sum(on)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.variables))


LIMIT = 0.05
BITS = ['11', '01', '10', '11']


def spiked(outputs, y):
  """The loss of examples of class 2 is 10⁴ times as large."""
  loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
  return loss * jnp.where(y == 2, 1e4, 1.0)


@functools.cache
def sgd(limit):
  return Recipe(MODEL, spiked, optax.sgd(0.1), slot_clip_norm=limit)


def by_hand(params, examples, limit):
  """The mean of the gradients of all slots, each of them clipped."""

  def gradient(bits, x, y):
    loss = lambda params: spiked(static(MODEL, {'params': params}, x, bits), y).mean()
    gradient = jax.grad(loss)(params)
    norm = float(optax.tree.norm(gradient))
    return jax.tree.map(lambda leaf: leaf * min(1.0, limit / norm), gradient), norm

  slots = [gradient(bits, *batch) for bits, batch in zip(BITS, examples)]
  mean = jax.tree.map(lambda *leaves: np.mean(leaves, 0), *(clipped for clipped, _ in slots))
  return mean, [norm for _, norm in slots]


@pytest.fixture(scope='module')
def start(random_pool):
  return init_state(sgd(LIMIT), random_pool(MODEL, ROWS[:1]))


@pytest.mark.parametrize(
  'place', tiny.slow_but(('one device', 'data', 'fsdp'), [p for p in PLACES if p != 'pipeline'])
)
def test_slots_are_clipped_each_by_its_own_norm(place, start):
  sampler = samplers.listed(BITS, 2, 4)
  trainer = trainer_of(place, sgd(LIMIT), sampler, start)
  rows = Order(len(TRAIN), 16, seed=0).indices(0, 1).reshape(4, 4)
  want, norms = by_hand(start.params, [TRAIN[r] for r in rows], LIMIT)
  assert max(norms) > 1000 * min(norms)
  trainer.run(1)
  moved = jax.tree.map(
    lambda new, old: (np.asarray(old) - np.asarray(new)) / 0.1,
    processes.to_host(trainer.variables)['params'],
    start.params,
  )
  # Differences of parameters of order one, in float32.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-6), moved, want)


def test_slots_in_stages_are_clipped_alike(start):
  sampler = samplers.listed(BITS, 2, 4)
  whole = trainer_of('one device', sgd(LIMIT), sampler, start)
  pipeline = Piped(pipeline=Pipeline(2, 2))
  recipe = Recipe(MODEL, spiked, optax.sgd(0.1), pipeline, slot_clip_norm=LIMIT)
  mesh = mesh_.make_mesh(2, 2, jax.devices()[:8], pipe_devices=2)
  placement = Placement(mesh, chunk_steps=STEPS)
  staged = Trainer(recipe, TRAIN, sampler, batch_size=4, seed=0, placement=placement, state=start)
  for trainer in (whole, staged):
    trainer.run(STEPS)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, *(processes.to_host(t.variables) for t in (whole, staged)))


def test_norms_that_are_no_norms():
  for limit in (-1.0, float('nan'), float('inf')):
    with pytest.raises(UserError, match=f'slot_clip_norm {limit}: expected 0, or a positive'):
      Recipe(MODEL, 'classification', optax.sgd(0.1), Structures(), slot_clip_norm=limit)


def test_the_check_of_an_update_is_compiled_once():
  """Neither with each leaf's update, nor for each leaf where leaves have one shape."""
  model = MODEL.clone(num_blocks=8)
  recipe = Recipe(model, 'classification', optax.adam(0.1))
  state = jax.eval_shape(lambda: init_state(recipe, model.init(jax.random.key(0), ROWS[:1])))
  slots = Slots(jnp.ones((1, 8), bool), ROWS[None], TRAIN.y[None])
  averaged = jax.eval_shape(functools.partial(averaged_gradient, recipe), state.params, slots)
  program = jax.jit(functools.partial(apply_gradient, recipe)).lower(state, averaged)
  leaves = [leaf for leaf in jax.tree.leaves(state[:2]) if leaf.dtype == jnp.float32]
  reductions = program.as_text().count('stablehlo.reduce(')
  assert reductions <= len({leaf.shape for leaf in leaves}) + 2  # the norm is that of the slot
  assert program.compile().as_text().count(' and(') <= 2 * len(leaves)


def test_a_norm_is_compiled_for_each_shape():
  tree = {name: jax.random.normal(jax.random.key(i), (4, 2)) for i, name in enumerate('abc')}
  tree['d'] = jnp.array([3.0, jnp.inf])
  program = jax.jit(gradient_norm).lower(tree)
  assert program.as_text().count('stablehlo.reduce(') == 2
  assert gradient_norm(tree) == jnp.inf
  tree['d'] = jnp.array([3.0, 4.0])
  np.testing.assert_allclose(gradient_norm(tree), optax.tree.norm(tree), rtol=1e-6)
  np.testing.assert_allclose(gradient_norm(tree, one_device=False), optax.tree.norm(tree), 1e-6)
