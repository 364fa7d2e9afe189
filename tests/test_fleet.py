"""Networks side by side against each of them trained alone by a plain loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError, run
from additive_jax.data import ArraySplit, Order
from additive_jax.models import MLP
from additive_jax.train import fleet as fleet_
from additive_jax.train.fleet import Fleet
from additive_jax.train.recipe import Recipe

MODEL = MLP(3, 8, 6, 4)
OPTIMIZER = optax.sgd(0.05, momentum=0.9)
RECIPE = Recipe(MODEL, 'classification', OPTIMIZER)
# Of unequal sizes; the last is smaller than a batch, and so passed through more than once a step.
GROUPS = [np.arange(0, 20), np.arange(20, 31), np.arange(5, 47, 3), np.arange(40, 45)]
BATCH, SEED, STEPS = 6, 3, 5
# Sums over a batch in another order; momenta add up gradients of the size of one.
CLOSE = {'rtol': 1e-5, 'atol': 1e-6}
CLOSE_MOMENTA = {'rtol': 1e-5, 'atol': 1e-5}


def split():
  random = np.random.default_rng(0)
  x = random.normal(size=(48, 5)).astype(np.float32)
  return ArraySplit(x, random.integers(0, 4, 48).astype(np.int32))


TRAIN = split()


def fleet(groups=GROUPS, train=TRAIN, *, devices=1, **options):
  options = {'batch_size': BATCH, 'seed': SEED, 'chunk_steps': 4} | options
  return Fleet(RECIPE, train, groups, devices=jax.devices()[:devices], **options)


@functools.partial(jax.jit, static_argnums=3)
def plain_step(params, x, y, structure):
  def loss(params):
    logits = run.static(MODEL, {'params': params}, x, structure)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  return jax.value_and_grad(loss)(params)


def plain(starts, *, steps=STEPS, structure='111', sync_every=0, names=range(4)):
  """Each network alone, one after the other: parameters, momenta and losses [steps, J]."""
  momenta = [jax.tree.map(np.zeros_like, start) for start in starts]
  pools, losses = list(starts), np.zeros((steps, len(starts)))
  seeds = [np.random.SeedSequence([SEED, name]).generate_state(1)[0] for name in names]
  orders = [Order(len(group), BATCH, int(seed)) for group, seed in zip(GROUPS, seeds)]
  mean = lambda trees: jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees)
  for t in range(steps):
    for j in range(len(starts)):
      rows = GROUPS[j][orders[j].indices(t, 1)[0]]
      losses[t, j], found = plain_step(pools[j], TRAIN.x[rows], TRAIN.y[rows], structure)
      momenta[j] = jax.tree.map(lambda m, g: np.asarray(0.9 * m + g), momenta[j], found)
      pools[j] = jax.tree.map(lambda p, m: np.asarray(p - 0.05 * m), pools[j], momenta[j])
    if sync_every and (t + 1) % sync_every == 0:
      pools, momenta = [mean(pools)] * len(starts), [mean(momenta)] * len(starts)
  return pools, momenta, losses


def check(found, want):
  """The networks of a fleet against what `plain` gave."""
  for state, pool, momentum in zip(found.members(), *want[:2], strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), state.params, pool)
    (trace,) = [s for s in state.opt_state if isinstance(s, optax.TraceState)]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, **CLOSE_MOMENTA), trace.trace, momentum
    )


def starts(made):
  return [state.params for state in made.members()]


def apart(a, b):
  """The largest difference between two pytrees."""
  differences = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)
  return max(jax.tree.leaves(differences))


@pytest.fixture(scope='module')
def alone():
  return plain(starts(fleet()))


@pytest.mark.parametrize('devices', tiny.slow_but([2], [1, 2, 4]))
def test_side_by_side_is_alone(devices, alone):
  """Over two chunks; several devices give what one does."""
  made = fleet(devices=devices)
  assert (made.size, made.step, made.mesh.shape['structure']) == (4, 0, devices)
  metrics = made.run(STEPS)
  assert made.step == STEPS
  check(made, alone)
  np.testing.assert_allclose(metrics['loss'], alone[2], rtol=1e-5)
  assert metrics['finite'].shape == (STEPS, 4)
  assert metrics['finite'].all()
  assert metrics['gradient_norm'].shape == (STEPS,)
  pools = starts(made)
  assert min(apart(pools[0], pool) for pool in pools[1:]) > 1e-2
  assert [int(state.step) for state in made.members()] == [STEPS] * 4


def test_devices_that_are_left_over_are_told(caplog):
  for count, devices, used, said in (
    (1, 4, 1, '1 network trains on 1 of 4 devices'),
    (4, 3, 2, '4 networks train on 2 of 3 devices'),
    (4, 4, 4, ''),
  ):
    caplog.clear()
    mesh = fleet_._mesh(count, jax.devices()[:devices])
    assert mesh.shape['structure'] == mesh.size == used
    assert said in caplog.text
    assert 'structures a step' not in caplog.text
    assert bool(caplog.text) == bool(said)


@pytest.mark.parametrize('devices', tiny.slow_but([2], [1, 2]))
def test_synchronised_every_second_step(devices):
  made = fleet(devices=devices, sync_every=2)
  first = starts(made)
  for upto in (1, 4, 5):
    made.run(upto - made.step)
    check(made, plain(first, steps=upto, sync_every=2))
    pools = starts(made)
    same = apart(pools[0], pools[3])
    assert same == 0 if upto == 4 else same > 1e-3


def test_how_steps_are_cut_into_calls_does_not_matter(alone):
  made = fleet()
  parts = [made.run(count)['loss'] for count in (0, 1, 0, 4)]
  assert [len(part) for part in parts] == [0, 1, 0, 4]
  np.testing.assert_allclose(np.concatenate(parts), alone[2], rtol=1e-5)
  check(made, alone)


def test_a_compiled_fleet_compiles_nothing_more(compiles):
  made = fleet()
  made.warm_up()
  assert made.step == 0
  before = starts(made)
  made.run(1)
  compiles.clear()
  made.run(STEPS)
  assert not compiles
  assert apart(before[0], starts(made)[0]) > 0


def test_gates_that_are_off_stay_as_they_began():
  made = fleet(structure='101')
  first = starts(made)
  made.run(2)
  check(made, plain(first, steps=2, structure='101'))
  for before, after in zip(first, starts(made)):
    jax.tree.map(np.testing.assert_array_equal, before['block_01'], after['block_01'])
    assert apart(before['block_02'], after['block_02']) > 1e-4


def test_where_networks_start():
  together, own = starts(fleet()), starts(fleet(same_start=False))
  assert apart(together[0], together[3]) == 0
  distances = [apart(own[i], own[j]) for i in range(4) for j in range(i)]
  assert min(distances) > 1e-2
  assert apart(together[0], starts(fleet(seed=4))[0]) > 1e-2


@pytest.mark.parametrize('same_start', [True, False])
def test_one_of_them_made_alone_is_the_same(same_start, alone):
  """As in a process of its own, which is given the network's number."""
  whole = fleet(same_start=same_start)
  whole.run(2)
  made = fleet([GROUPS[2]], names=[2], same_start=same_start)
  assert made.mesh.size == 1
  made.run(2)
  (state,) = made.members()
  assert apart(state.params, starts(whole)[2]) < 1e-6
  other = fleet([GROUPS[2]], names=[1], same_start=same_start)
  other.run(2)
  assert apart(state.params, starts(other)[0]) > 1e-3


def test_a_network_without_finite_losses_holds_up_no_other(alone):
  x = TRAIN.x.copy()
  x[GROUPS[1]] = 3e38
  made = fleet(GROUPS, ArraySplit(x, TRAIN.y))
  first = starts(made)
  metrics = made.run(STEPS)
  found = made.members()
  touched = [bool(np.isin(group, GROUPS[1]).any()) for group in GROUPS]
  assert touched == [False, True, True, False]
  for j in (0, 3):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), found[j].params, alone[0][j]
    )
  assert apart(found[1].params, first[1]) == 0
  assert [int(found[j].skipped) for j in (0, 1, 3)] == [0, STEPS, 0]
  assert not metrics['finite'][:, 1].any()


def test_the_state_goes_on_from_what_was_saved(alone):
  made = fleet()
  made.run(3)
  saved = jax.device_get(made.state)
  other = fleet()
  other.state = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), saved, other.state)
  assert other.step == 3
  other.run(2)
  check(other, alone)


def test_what_optimizers_count_is_no_mean():
  recipe = Recipe(MODEL, 'classification', optax.adam(1e-2))
  made = Fleet(
    recipe, TRAIN, GROUPS[:2], batch_size=2, seed=0, sync_every=1, devices=jax.devices()[:1]
  )
  made.run(3)
  for state in made.members():
    assert state.opt_state[0].count.dtype == jnp.int32
    assert int(state.opt_state[0].count) == 3


@pytest.mark.parametrize(
  ('groups', 'options', 'message'),
  [
    ([], {}, '0 groups, of which .* are empty: expected some examples'),
    ([GROUPS[0], []], {}, r'2 groups, of which \[1\] are empty'),
    ([[0, 48]], {}, 'example 48 of a group: expected a number from 0 to 47'),
    ([GROUPS[0], [-1, 3]], {}, 'example -1 of a group'),
    (GROUPS, {'batch_size': 0}, 'batch_size 0: expected at least 1'),
    (GROUPS, {'chunk_steps': 0}, 'chunk_steps 0: expected at least 1'),
    (GROUPS, {'sync_every': -1}, 'sync_every -1: expected 0 or more'),
    (GROUPS, {'structure': '1011'}, 'structure 1011 has 4 gates: expected 3'),
    (GROUPS, {'names': [0, 1]}, r'names \[0, 1\] of 4 groups: expected one for each'),
  ],
)
def test_bad_input(groups, options, message):
  with pytest.raises(UserError, match=message) as raised:
    fleet(groups, **options)
  assert '\n' not in str(raised.value)


def test_a_negative_number_of_steps():
  with pytest.raises(UserError, match='num_steps -1: expected 0 or more'):
    fleet().run(-1)
