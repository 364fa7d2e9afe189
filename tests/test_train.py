"""The trainer: against a loop by hand, across devices, chunks and interruptions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError, static
from additive_jax.data import ArraySplit, Order, SourceSplit
from additive_jax.models import MLP
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.gradients import Slots
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.state import State, init_state, train_step
from additive_jax.train.trainer import Trainer

MODEL = MLP(num_blocks=3, width=8, hidden=8, num_classes=3)
# Momentum and a schedule, so that the state of the optimizer matters to every step.
OPTIMIZER = optax.sgd(optax.linear_schedule(0.2, 0.02, 12), momentum=0.9)
RECIPE = Recipe(MODEL, 'classification', OPTIMIZER)
BATCH = 4
SEED = 3


def split_of(size, bad=()):
  random = np.random.default_rng(0)
  x = random.normal(size=(size, 6)).astype(np.float32)
  x[list(bad)] = 3e38  # too much for float32 in the first layer
  return ArraySplit(x, random.integers(0, 3, size).astype(np.int32))


TRAIN = split_of(29)  # a batch often straddles two epochs


@functools.cache
def mesh_of(structure, data):
  return jax.make_mesh(
    (structure, data),
    ('structure', 'data'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[: structure * data],
  )


@pytest.fixture(scope='module')
def initial(random_pool):
  return init_state(RECIPE, random_pool(MODEL, TRAIN.x[:1]))


@pytest.fixture
def trainer_of(initial):
  def build(sampler, mesh=(1, 1), train=TRAIN, recipe=RECIPE, **options):
    options = {'batch_size': BATCH, 'seed': SEED, 'state': initial} | options
    placement = Placement(mesh_of(*mesh), chunk_steps=options.pop('chunk_steps', 5))
    return Trainer(recipe, train, sampler, placement=placement, **options)

  return build


def ramped():
  return samplers.KeepRates(ramp_steps=8).sampler(3, 4)


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, processes.to_host(got), processes.to_host(want))


def assert_close(got, want):
  """After a dozen steps of float32, each of which multiplies rounding by at most a little."""
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, processes.to_host(got), processes.to_host(want))


@functools.partial(jax.jit, static_argnames='structure')
def static_gradient(params, x, y, structure):
  def loss(params):
    outputs = static(MODEL, {'params': params}, x, structure)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

  return jax.value_and_grad(loss)(params)


def by_hand(initial, lists, num_steps):
  """The listed structures, trained with the static forms and Optax, one slot after the other."""
  params, opt_state = initial.params, initial.opt_state
  order = Order(len(TRAIN), len(lists) * BATCH, SEED)
  losses = []
  for rows in order.indices(0, num_steps).reshape(num_steps, len(lists), BATCH):
    slots = [static_gradient(params, *TRAIN[slot], s) for slot, s in zip(rows, lists)]
    gradient = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(g for _, g in slots))
    updates, opt_state = OPTIMIZER.update(gradient, opt_state, params)
    params = optax.apply_updates(params, updates)
    losses.append([value for value, _ in slots])
  return params, np.array(losses)


def test_is_the_loop_written_by_hand(trainer_of, initial):
  structures = ['101', '111', '010', '101']
  trainer = trainer_of(samplers.listed(structures, 3))
  metrics = trainer.run(6)
  params, losses = by_hand(initial, structures, 6)
  np.testing.assert_allclose(metrics['loss'], losses, rtol=1e-4)  # six steps of float32
  assert_close(trainer.variables['params'], params)
  assert metrics['finite'].all()
  assert (metrics['gradient_norm'] > 0).all()
  assert trainer.step == 6
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, initial.params)
  assert min(jax.tree.leaves(moved)) > 1e-3  # a hundred times the tolerance


@pytest.fixture(scope='module')
def uninterrupted(initial):
  options = {'batch_size': BATCH, 'seed': SEED, 'state': initial}
  trainer = Trainer(RECIPE, TRAIN, ramped(), placement=Placement(mesh_of(1, 1)), **options)
  return trainer.run(11), processes.to_host(trainer.state)


@pytest.mark.parametrize('mesh', tiny.thorough_but([(2, 2)], [(2, 2), (4, 1), (4, 2)]), ids=str)
def test_many_devices_are_one(trainer_of, uninterrupted, mesh):
  metrics, state = uninterrupted
  trainer = trainer_of(ramped(), mesh)
  assert len(trainer.state.step.addressable_shards) == mesh[0] * mesh[1]
  got = trainer.run(11)
  np.testing.assert_allclose(got['loss'], metrics['loss'], rtol=1e-4)  # as in assert_close
  assert_close(trainer.state, state)
  assert np.ptp(metrics['loss'], axis=1).min() > 1e-3  # the slots are distinguishable


def test_chunks_and_interruptions_change_no_bit(trainer_of, uninterrupted):
  """Three chunks in place of one, and a stop in the middle of one, kept in host memory only."""
  metrics, state = uninterrupted
  whole = trainer_of(ramped())
  got = whole.run(11)
  jax.tree.map(np.testing.assert_array_equal, got, metrics)
  assert_same(whole.state, state)

  first = trainer_of(ramped())
  before = first.run(4)
  kept = processes.to_host(first.state)
  second = trainer_of(ramped(), state=State(*kept))
  after = second.run(7)
  for name, values in metrics.items():
    np.testing.assert_array_equal(np.concatenate([before[name], after[name]]), values)
  assert_same(second.state, state)
  assert second.step == 11
  unlike = jax.tree.map(lambda a, b: np.array_equal(a, b), kept.params, state.params)
  assert not any(jax.tree.leaves(unlike))


def test_one_compile_for_any_structures(trainer_of, initial, compiles):
  """K = 4 on 4 devices: a hundred lists, run in turn, share the first one's program."""
  random = np.random.default_rng(0)
  lists = [random.choice(8, 4, replace=False) for _ in range(100)]
  assert len({tuple(values) for values in lists}) > 95
  trainer_of(samplers.listed(lists[0], 3), (4, 1)).run(1)
  trainer = trainer_of(samplers.listed(lists[0], 3), (4, 1))
  del compiles[:]
  losses = []
  for values in lists[:10]:
    losses.append(trainer_of(samplers.listed(values, 3), (4, 1)).run(2)['loss'])
  bits = np.array([[value >> np.arange(3) & 1 for value in values] for values in lists], bool)
  # One sampler that lists all of them in turn: the trainer's own way to change structures.
  assert len(compiles) == 0
  assert len({loss.tobytes() for loss in losses}) == 10
  for values in lists:
    trainer._sampler = mesh_.replicate(samplers.listed(values, 3), trainer.mesh)
    trainer.run(1)
  assert len(compiles) == 0
  assert trainer.step == len(bits)


def test_streamed_examples_are_the_same(trainer_of):
  streamed = SourceSplit(len(TRAIN), lambda indices: (TRAIN.x[indices], TRAIN.y[indices]))
  assert not streamed.in_memory
  far, near = (trainer_of(ramped(), (2, 2), train=train) for train in (streamed, TRAIN))
  assert_close(far.run(8), near.run(8))  # two programs, whose sums may be ordered differently
  assert_close(far.state, near.state)


@pytest.mark.slow
def test_shared_batch(trainer_of, initial):
  """Four slots of one structure are one slot when they share their examples."""
  four = samplers.listed(['101'] * 4, 3)
  shared = trainer_of(four, (2, 2), shared_batch=True)
  loss = shared.run(5)['loss']
  np.testing.assert_allclose(loss, loss[:, :1] * np.ones(4), rtol=1e-6)  # the same operations
  params, by_hand_loss = by_hand(initial, ['101'], 5)
  np.testing.assert_allclose(loss[:, 0], by_hand_loss[:, 0], rtol=1e-4)  # as in assert_close
  assert_close(shared.state.params, params)
  own = trainer_of(four, (2, 2)).run(5)['loss']
  assert np.ptp(own, axis=1).min() > 1e-3


@pytest.mark.parametrize('mesh', [(1, 1), (2, 2)], ids=str)
def test_bad_examples_never_reach_the_pool(trainer_of, mesh):
  bad = 7
  trainer = trainer_of(ramped(), mesh, train=split_of(29, bad=[bad]))
  metrics = trainer.run(11)
  rows = Order(29, 4 * BATCH, SEED).indices(0, 11).reshape(11, 4, BATCH)
  spoilt = (rows == bad).any(-1)
  np.testing.assert_array_equal(metrics['finite'], ~spoilt)
  np.testing.assert_array_equal(np.isfinite(metrics['loss']), ~spoilt)
  assert int(trainer.state.skipped) == spoilt.sum() > 3
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trainer.state.params))
  assert np.isfinite(metrics['gradient_norm']).all()


def test_a_step_without_a_finite_slot_changes_nothing(trainer_of, initial):
  trainer = trainer_of(ramped(), (2, 2), train=split_of(29, bad=range(29)))
  metrics = trainer.run(3)
  assert not metrics['finite'].any()
  assert_same(trainer.state.params, initial.params)
  assert_same(trainer.state.opt_state, initial.opt_state)
  assert (int(trainer.state.step), int(trainer.state.skipped)) == (3, 12)


@pytest.mark.slow
def test_options_of_the_recipe_on_many_devices(trainer_of):
  """Coverage, ring and distillation: two devices are one, and differ from the default recipe."""
  recipe = Recipe(MODEL, 'classification', OPTIMIZER, Structures(distill=0.5), 'coverage', 'ring')
  two, one = (trainer_of(ramped(), mesh, recipe=recipe) for mesh in ((2, 1), (1, 1)))
  plain = trainer_of(ramped())
  for trainer in (two, one, plain):
    trainer.run(5)
  assert_close(two.state, one.state)
  gap = lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max()
  assert max(jax.tree.leaves(jax.tree.map(gap, one.state.params, plain.state.params))) > 0.01


def test_source_of_the_state_survives(trainer_of, initial):
  copy = processes.to_host(initial)
  trainer = trainer_of(ramped())
  trainer.run(5)
  trainer.run(5)
  assert_same(initial, copy)


def test_starts_from_the_init_of_its_seed():
  trainers = [
    Trainer(
      RECIPE, TRAIN, ramped(), batch_size=BATCH, seed=seed, placement=Placement(mesh_of(1, 1))
    )
    for seed in (0, 0, 1)
  ]
  kernel = [np.asarray(t.variables['params']['embed']['kernel']) for t in trainers]
  np.testing.assert_array_equal(kernel[0], kernel[1])
  assert not np.array_equal(kernel[0], kernel[2])
  assert int(trainers[0].state.skipped) == trainers[0].step == 0


def test_no_steps(trainer_of, initial):
  trainer = trainer_of(ramped())
  metrics = trainer.run(0)
  assert {name: value.shape for name, value in metrics.items()} == {
    'loss': (0, 4),
    'finite': (0, 4),
    'gradient_norm': (0,),
  }
  assert_same(trainer.state, initial)


def test_default_mesh_takes_every_device(initial):
  trainer = Trainer(RECIPE, TRAIN, ramped(), batch_size=BATCH, seed=SEED, state=initial)
  assert dict(trainer.mesh.shape) == {'structure': 4, 'data': 2}


def test_train_step_alone(initial):
  """Outside of any mesh, as `population` uses it."""
  x, y = TRAIN[np.arange(2 * BATCH).reshape(2, BATCH)]
  bits = jnp.array([[True, False, True], [True, True, True]])
  state, metrics = jax.jit(lambda state: train_step(RECIPE, state, Slots(bits, x, y)))(initial)
  (first, g), (second, h) = (
    static_gradient(initial.params, x[k], y[k], s) for k, s in enumerate(['101', '111'])
  )
  gradient = jax.tree.map(lambda g, h: (g + h) / 2, g, h)
  np.testing.assert_allclose(metrics['loss'], [first, second], rtol=1e-5)  # one float32 mean
  np.testing.assert_allclose(metrics['gradient_norm'], optax.tree.norm(gradient), rtol=1e-5)
  assert_close(state.params, jax.tree.map(lambda p, g: p - 0.2 * g, initial.params, gradient))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'batch_size': 0}, 'batch_size 0: expected at least 1'),
    ({'chunk_steps': 0}, 'chunk_steps 0: expected at least 1'),
    ({'seed': -1}, 'seed -1: expected an integer from 0'),
    ({'mesh': (3, 1)}, 'a mesh of 3 × 1 devices for 4 structures a step, each on 4 examples'),
    ({'mesh': (1, 3)}, 'a mesh of 1 × 3 devices for 4 structures a step, each on 4 examples'),
  ],
)
def test_bad_options(trainer_of, options, message):
  with pytest.raises(UserError, match=message):
    trainer_of(ramped(), **options)


def test_structures_of_another_model(trainer_of):
  with pytest.raises(UserError, match=r'shape \(4,\): expected bool \[3\]'):
    trainer_of(samplers.listed(['1011'] * 4, 4)).run(1)
