"""Members of a population against plain training of their structures alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from additive_jax import Structure, UserError, all_structures, static
from additive_jax.data import ArraySplit, Data, Order, SourceSplit
from additive_jax.models import MLP
from additive_jax.parallel import processes
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe, Structures

MODEL = MLP(num_blocks=2, width=8, hidden=8, num_classes=3)
OPTIMIZER = optax.adamw(0.05)
RECIPE = Recipe(MODEL, 'classification', OPTIMIZER)
BATCH, SEED, STEPS = 4, 2, 6


def split_of(size, seed):
  random = np.random.default_rng(seed)
  x = random.normal(size=(size, 6)).astype(np.float32)
  return ArraySplit(x, (x[:, 0] > 0).astype(np.int32) + (x[:, 1] > 0))


DATA = Data('noise', 'classification', split_of(25, 0), split_of(11, 1), 3)
STRUCTURES = list(all_structures(2))


@pytest.fixture(scope='module')
def population():
  return Population(RECIPE, DATA, batch_size=BATCH, seed=SEED, devices=[jax.local_devices()[0]] * 2)


@pytest.fixture(scope='module')
def members(population):
  return {member.structure: member for member in population.train(STRUCTURES, STEPS)}


def plain_training(variables, structure):
  """Flax and Optax the ordinary way: final parameters, losses of the steps, test loss and
  accuracy.
  """

  @jax.jit
  def step(params, opt_state, x, y):
    def loss(params):
      logits = MODEL.apply({'params': params}, x, structure)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, opt_state = OPTIMIZER.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  params = variables['params']
  opt_state = OPTIMIZER.init(params)
  losses = []
  for rows in Order(len(DATA.train), BATCH, SEED).indices(0, STEPS):
    params, opt_state, value = step(params, opt_state, *DATA.train[rows])
    losses.append(float(value))
  logits = static(MODEL, {'params': params}, DATA.test.x, structure)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, DATA.test.y).mean()
  return params, losses, float(loss), float((logits.argmax(-1) == DATA.test.y).mean())


def test_members_are_trained_the_ordinary_way(population, members):
  assert set(members) == set(STRUCTURES)
  for structure, member in members.items():
    params, losses, loss, accuracy = plain_training(population.variables, structure)
    # AdamW divides by the root of the second moment, which magnifies rounding where a gradient
    # is near zero; six steps move a parameter by at most 0.3.
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
      member.state.params,
      params,
    )
    np.testing.assert_allclose(member.loss, loss, rtol=1e-4)
    np.testing.assert_allclose(member.scores['accuracy'], accuracy, rtol=1e-6)
    np.testing.assert_allclose(member.train_loss, losses[-1], rtol=1e-4)
    assert member.skipped == 0
    assert int(member.state.step) == STEPS
  values = sorted(member.loss for member in members.values())
  assert np.diff(values).min() > 1e-3  # ten times the tolerance


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, processes.to_host(got), processes.to_host(want))


def assert_same_member(got, want):
  assert_same(got.state, want.state)
  assert (got.scores, got.train_loss) == (want.scores, want.train_loss)


@pytest.mark.parametrize('devices', [[0], [0, 0, 0], [1, 2]], ids=str)
def test_others_and_workers_change_no_bit(members, devices, compiles):
  devices = [jax.local_devices()[i] for i in devices]
  population = Population(RECIPE, DATA, batch_size=BATCH, seed=SEED, devices=devices)
  some = [STRUCTURES[2], STRUCTURES[0], STRUCTURES[3]]
  del compiles[:]  # placing the data may have compiled a copy
  for member in population.train(some, STEPS):
    assert_same_member(member, members[member.structure])
  assert len(compiles) == 0 or jax.local_devices()[0] not in devices


def test_compiles_once_for_all_structures(population, members, compiles):
  """So the structure is data to the program, unlike in the plain training above."""
  del compiles[:]
  again = list(population.train([STRUCTURES[1], STRUCTURES[3]], STEPS))
  assert len(compiles) == 0
  assert [member.structure.num_gates for member in again] == [2, 2]


def test_going_on_is_never_having_stopped(population, members):
  """In two halves, the state kept in host memory between them."""
  some = [STRUCTURES[3], STRUCTURES[1]]
  half = STEPS // 2
  first = {member.structure: member for member in population.train(some, half)}
  states = {s: processes.to_host(member.state) for s, member in first.items()}
  for member in population.train(some, STEPS, states=states, start=half):
    assert_same_member(member, members[member.structure])
    assert member.loss != first[member.structure].loss


def test_the_states_given_are_not_consumed(population, members):
  states = {STRUCTURES[3]: members[STRUCTURES[3]].state}
  before = processes.to_host(states[STRUCTURES[3]])
  list(population.train([STRUCTURES[3]], 2 * STEPS, states=states, start=STEPS))
  assert_same(states[STRUCTURES[3]], before)


def test_steps_that_are_not_finite_are_counted(population):
  x = DATA.train.x.copy()
  bad = 3
  x[bad] = 3e38
  spoilt = Data('spoilt', 'classification', ArraySplit(x, DATA.train.y), DATA.test, 3)
  one = Population(RECIPE, spoilt, batch_size=BATCH, seed=SEED, devices=population.devices)
  (member,) = one.train([Structure.from_string('11')], STEPS)
  hit = (Order(25, BATCH, SEED).indices(0, STEPS) == bad).any(-1).sum()
  assert member.skipped == hit
  assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(member.state.params))
  assert np.isfinite(member.loss)


def test_seeds_differ(population):
  other = Population(RECIPE, DATA, batch_size=BATCH, seed=SEED + 1, devices=population.devices)
  kernel = lambda p: p.variables['params']['embed']['kernel']
  assert not np.array_equal(kernel(population), kernel(other))


def test_streamed_data_is_refused():
  streamed = SourceSplit(25, lambda indices: DATA.train[indices])
  data = Data('far', 'classification', streamed, DATA.test, 3)
  with pytest.raises(UserError, match="data 'far' is read from its source as needed: expected"):
    Population(RECIPE, data, batch_size=BATCH, seed=SEED)


def test_structures_of_another_length(population):
  with pytest.raises(UserError, match='structure 101 has 3 gates: expected 2'):
    list(population.train([Structure.from_string('101')], STEPS))


def test_average_and_distillation_play_no_part():
  other = dataclasses.replace(RECIPE, average='coverage', loss=Structures(distill=0.5))
  assert other != RECIPE
  assert Population(other, DATA, batch_size=BATCH, seed=SEED).recipe == RECIPE


def test_scores_are_finished_as_those_of_pools(members):
  """Of eleven examples: the same count right is the same accuracy, to the last bit."""
  for member in members.values():
    assert member.scores['accuracy'] in [count / 11 for count in range(12)]
