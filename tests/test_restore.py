"""Checkpoints of one model in another: the same as a transplant of what was saved, or nothing."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.models import MLP, DenseStack
from additive_jax.models.additive import gate_names
from additive_jax.models.identity import describe
from additive_jax.train.state import State
from additive_jax.transplant import grow, grow_optimizer, shrink
from additive_jax.transplant.restore import Checkpoints

KEY = jax.random.key(7)
ROWS = jax.random.normal(jax.random.key(1), (16, 7))
SMALL, LARGE = MLP(2, 8, 6, 5), MLP(3, 20, 13, 5)
ADAM = optax.adamw(1e-3)
EXACT = 1e-5  # of logits of about 1, in float32


def state_of(pool, seed=0):
  """A training's state with an optimizer that has seen one gradient."""
  random = np.random.default_rng(seed)
  gradient = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype('float32'), pool)
  _, opt_state = ADAM.update(gradient, ADAM.init(pool), pool)
  return State(pool, opt_state, jnp.int32(3), jnp.int32(0))


def save(directory, model, states):
  """Checkpoints 1, 2, … as a run of `model` writes them."""
  identity = {'model': describe(model), 'gates': list(gate_names(model))}
  with Checkpointer(directory, identity=identity) as checkpoints:
    for step, state in enumerate(states, 1):
      checkpoints.save(step, state, meta={'seed': 0}, wait=True)


@pytest.fixture(scope='module')
def pools(random_pool):
  return random_pool(SMALL, ROWS, 1), random_pool(LARGE, ROWS, 2)


@pytest.fixture(scope='module')
def saved(pools, tmp_path_factory):
  """The directories of a small and a large model's checkpoints, each with two."""
  root = tmp_path_factory.mktemp('checkpoints')
  for name, model, pool in zip(('small', 'large'), (SMALL, LARGE), pools):
    earlier = jax.tree.map(lambda leaf: 2 * leaf, pool['params'])
    save(root / name, model, [state_of(earlier), state_of(pool['params'])])
  return root


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
    assert np.array_equal(a, b)


def test_small_into_large(saved, pools):
  small, large = pools
  found = Checkpoints(saved / 'small', SMALL, ADAM).grow(LARGE, large, ROWS, key=KEY, place='end')
  grown = grow(SMALL, small, LARGE, large, key=KEY, place='end')
  assert_same(found.transplant.variables, grown.variables)
  assert_same(found.opt_state, grow_optimizer(grown, state_of(small['params']).opt_state))
  assert found.step == 2
  assert found.receipt.exact
  assert found.receipt.max_difference <= EXACT


def test_large_into_small(saved, pools):
  small, large = pools
  found = Checkpoints(saved / 'large', LARGE).shrink(SMALL, ROWS)
  assert_same(found.transplant.variables, shrink(LARGE, large, SMALL, small).variables)
  assert not found.receipt.exact
  assert found.receipt.max_difference > EXACT
  assert found.opt_state is None


def test_large_into_small_with_what_its_optimizer_knows(random_pool, tmp_path):
  """The rows and columns of the units that stay, of the pool and of both moments alike."""
  large_model = DenseStack((20, 13), num_classes=4, num_chunks=2)
  small_model = DenseStack((8, 5), num_classes=4, num_chunks=2)
  large = random_pool(large_model, ROWS)
  state = state_of(large['params'])
  save(tmp_path, large_model, [state])
  found = Checkpoints(tmp_path, large_model, ADAM).shrink(small_model, ROWS)
  own = {name: found.transplant.copies[name].source for name in ('fc1', 'fc2')}
  before, after = state.opt_state[0], found.opt_state[0]
  for old, new in (
    (large['params'], found.transplant.variables['params']),
    (before.mu, after.mu),
    (before.nu, after.nu),
  ):
    old, new = old['fc2_out'], new['fc2_out']
    kernel = np.asarray(old['fc2']['kernel'])[np.ix_(own['fc1'], own['fc2'])]
    np.testing.assert_allclose(new['fc2']['kernel'], kernel, rtol=1e-6)
    np.testing.assert_allclose(new['out']['kernel'], old['out']['kernel'][own['fc2']], rtol=1e-6)
  assert after.count == before.count == 1


def test_dense_stack_into_a_larger_one(random_pool, tmp_path):
  """In all structures, as the chunks of the first layer become equal chunks of the larger one."""
  small_model = DenseStack((8, 4), num_classes=4, num_chunks=2)
  large_model = DenseStack((20, 13), num_classes=4, num_chunks=2)
  small, large = random_pool(small_model, ROWS, 1), random_pool(large_model, ROWS, 2)
  save(tmp_path, small_model, [state_of(small['params'])])
  found = Checkpoints(tmp_path, small_model).grow(large_model, large, ROWS, key=KEY)
  assert found.receipt.max_difference <= EXACT
  structure = found.transplant.structure('0')
  before = small_model.apply(small, ROWS, '0')
  after = large_model.apply(found.transplant.variables, ROWS, structure)
  assert jnp.abs(before - after).max() <= EXACT
  assert jnp.abs(before - small_model.apply(small, ROWS)).max() > 1e-2


def test_a_damaged_checkpoint_is_skipped(random_pool, tmp_path, caplog):
  pool = random_pool(SMALL, ROWS)
  states = [state_of(pool['params']), state_of(jax.tree.map(jnp.zeros_like, pool['params']))]
  save(tmp_path, SMALL, states)
  for path in (tmp_path / '2' / 'state').rglob('d/*'):
    path.write_bytes(bytes(len(path.read_bytes())))
  before = tiny.contents(tmp_path)
  found = Checkpoints(tmp_path, SMALL, ADAM).read(ROWS)
  assert found.step == 1
  assert_same(found.variables, pool)
  assert_same(found.opt_state, states[0].opt_state)
  assert found.meta == {'seed': 0}
  assert f'checkpoint {tmp_path / "2"} is damaged and skipped' in caplog.text
  assert tiny.contents(tmp_path) == before


@pytest.mark.parametrize(
  ('name', 'small_model', 'large_model', 'message'),
  [
    (
      'small',
      SMALL,
      MLP(2, 8, 5, 5),
      'leaf block_00/in/bias of shape (6,) into shape (5,): expected at least 6',
    ),
    (
      'small',
      SMALL,
      MLP(2, 16, 6, 4),
      'leaf readout/out/bias of shape (5,) into shape (4,): expected 4 to be 5',
    ),
    ('small', MLP(2, 8, 7, 5), LARGE, 'is a checkpoint of another model: model: "MLP(num_blocks=2'),
    ('large', SMALL, LARGE, 'is a checkpoint of another model: model: "MLP(num_blocks=3'),
    ('none', SMALL, LARGE, 'none: expected a directory of checkpoints, and there is none in it'),
  ],
)
def test_a_failure_leaves_the_target_untouched(
  name, small_model, large_model, message, saved, random_pool
):
  target = random_pool(large_model, ROWS, 2)
  leaves, before, files = jax.tree.leaves(target), copy.deepcopy(target), tiny.contents(saved)
  with pytest.raises(UserError) as error:
    Checkpoints(saved / name, small_model, ADAM).grow(large_model, target, ROWS, key=KEY)
  assert message in str(error.value)
  assert '\n' not in str(error.value)
  assert all(a is b for a, b in zip(jax.tree.leaves(target), leaves))
  assert_same(target, before)
  assert tiny.contents(saved) == files


@pytest.mark.parametrize('optimizer', [optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)])
def test_another_optimizer(saved, pools, optimizer):
  """Also one without any state of its own."""
  with pytest.raises(UserError, match='is a checkpoint of another state: '):
    Checkpoints(saved / 'small', SMALL, optimizer).grow(LARGE, pools[1], ROWS, key=KEY)


def test_receipt_beside_the_checkpoints(saved, pools, tmp_path, caplog):
  """It is said and written, and is in nobody's way."""
  with caplog.at_level('INFO', 'additive_jax'):
    found = Checkpoints(saved / 'small', SMALL).grow(LARGE, pools[1], ROWS, key=KEY)
  assert str(found.receipt) in caplog.text
  path = found.receipt.save(tmp_path / 'large')
  assert json.loads(path.read_bytes()) == {
    'rule': 'grow stream 8→20, hidden 6→13, depth 2→3 (zero, spread)',
    'exact': True,
    'max_difference': found.receipt.max_difference,
    'num_examples': 16,
    'max_logit': found.receipt.max_logit,
  }
  save(tmp_path / 'large', LARGE, [state_of(found.transplant.variables['params'])])
  read = Checkpoints(tmp_path / 'large', LARGE).read(ROWS)
  assert_same(read.variables, found.transplant.variables)
  with pytest.raises(UserError, match='expected a directory that may be written'):
    found.receipt.save('/proc/run')
