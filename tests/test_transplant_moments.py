"""The optimizer of a grown model knows what it would have learnt there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError
from additive_jax.models import MLP, ConvNet, Transformer
from additive_jax.transplant import average_optimizer, grow, grow_optimizer, restart_schedules

KEY = jax.random.key(7)
ROWS = jax.random.normal(jax.random.key(1), (16, 7))
IMAGES = jax.random.normal(jax.random.key(2), (8, 4, 4, 3))
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)
LM = {'num_classes': 5, 'num_tokens': 11, 'causal': True}
SMALL, LARGE = MLP(2, 8, 6, 5), MLP(3, 16, 13, 5)


@functools.partial(jax.jit, static_argnums=0)
def gradient(model, variables, x):
  def loss(params):
    logits = model.apply({'params': params}, x).reshape(len(x), -1, 5).mean(1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(x)) % 5).mean()

  return jax.grad(loss)(variables['params'])


def gathered(optimizer, model, variables, x):
  """The optimizer's state after three batches; at a rate of zero it only gathers moments."""
  state = optimizer.init(variables['params'])
  for batch in (x, x[::-1], jnp.roll(x, 3, 0)):
    _, state = optimizer.update(gradient(model, variables, batch), state, variables['params'])
  return state


def grown_pools(random_pool, small_model, large_model, x, **options):
  small, large = random_pool(small_model, x, 1), random_pool(large_model, x, 2)
  large = jax.tree.map(lambda leaf: 0.3 * leaf, large)  # nearer to the sizes of an init
  return small, grow(small_model, small, large_model, large, key=KEY, **options)


CASES = {
  'mlp': (SMALL, LARGE, ROWS),
  'mlp, pads': (MLP(2, 48, 6, 5), MLP(2, 72, 13, 5), ROWS),
  'tokens': (Transformer(1, 8, 2, 12, **LM), Transformer(2, 24, 3, 17, **LM), TOKENS),
  'swiglu': (
    Transformer(1, 8, 2, 12, **LM, unit='swiglu', positions='rope'),
    Transformer(1, 16, 4, 17, **LM, unit='swiglu', positions='rope'),
    TOKENS,
  ),
  'convnet': (
    ConvNet((4, 6), 1, num_classes=5),
    ConvNet((8, 18), 1, num_classes=5),
    IMAGES,
  ),
}


@pytest.mark.parametrize('case', tiny.thorough_but(['mlp', 'tokens'], CASES))
@pytest.mark.parametrize('unequal', [0.0, 0.5])
def test_moments_are_those_gathered_by_the_large_model(case, unequal, random_pool):
  small_model, large_model, x = CASES[case]
  small, grown = grown_pools(random_pool, *CASES[case], unequal=unequal)
  optimizer = optax.adam(0.0)
  moved = grow_optimizer(grown, gathered(optimizer, small_model, small, x))[0]
  want = gathered(optimizer, large_model, grown.variables, x)[0]
  assert int(moved.count) == int(want.count) == 3
  new, exact = grown.pairs.new, set()
  for name in ('mu', 'nu'):
    found, true = (new.flat(getattr(state, name)) for state in (moved, want))
    for path, leaf in found.items():
      if grown.pairs.origin[path] is None:
        continue
      axes = [axis and (axis.role, grown.copies[axis.space]) for axis in new.axes[path]]
      known = np.ones(leaf.shape, bool)
      for i, axis in enumerate(axes):
        if axis is not None:
          np.moveaxis(known, i, -1)[..., axis[1].is_pad] = False
      leaf, goal = np.where(known, leaf, 0), np.where(known, true[path], 0)
      writes_stream = any(axis and axis[0] == 'writes' and axis[1].norm for axis in axes)
      if writes_stream and (unequal or 'pads' in case):
        # Copies in a stream are tied by its norm, the more so the fewer they are. Measured: 5–23 %
        # (of squares 6–31 %) for streams of 4 to 8 units, 1–7 % for 48.
        error = np.linalg.norm(leaf - goal) / np.linalg.norm(goal)
        assert error < (0.25 if name == 'mu' else 0.35), path
        assert error > 1e-3, path
      else:
        # Rounding of float32 in sums of both signs; of a key's bias, zero but for rounding, too.
        atol = 2e-5 * np.abs(goal).max() + (1e-8 if name == 'mu' else 1e-16)
        np.testing.assert_allclose(leaf, goal, rtol=0, atol=atol, err_msg=path)
        exact.add(path)
  assert len(exact) >= 8


def test_what_is_not_known_is_neutral_or_typical(random_pool):
  small, grown = grown_pools(random_pool, SMALL, MLP(3, 13, 6, 5), ROWS)
  old = gathered(optax.adam(0.0), SMALL, small, ROWS)[0]
  new = grow_optimizer(grown, old)
  mu, nu = new.mu['embed']['kernel'], new.nu['embed']['kernel']
  assert not mu[:, 8:].any()
  np.testing.assert_allclose(nu[:, 8:], nu[:, :8].mean(), rtol=1e-5)
  block = new.mu['block_02'], new.nu['block_02'], old.nu['block_01']
  assert not any(leaf.any() for leaf in jax.tree.leaves(block[0]))
  np.testing.assert_allclose(
    block[1]['in']['kernel'], np.full((13, 6), block[2]['in']['kernel'].mean()), rtol=1e-5
  )


def test_state_of_a_chain_is_moved_whole(random_pool):
  small, grown = grown_pools(random_pool, SMALL, LARGE, ROWS)
  optimizer = optax.MultiSteps(
    optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.inject_hyperparams(optax.adamw)(optax.cosine_decay_schedule(1e-3, 10)),
      optax.trace(0.9),
    ),
    every_k_schedule=2,
  )
  state = gathered(optimizer, SMALL, small, ROWS)
  moved = grow_optimizer(grown, state)
  fresh = optimizer.init(grown.variables['params'])
  shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
  assert shapes(moved) == shapes(fresh)
  numbers = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 0]
  assert numbers(moved) == numbers(state) != numbers(fresh)
  update = optimizer.update(
    gradient(LARGE, grown.variables, ROWS), moved, grown.variables['params']
  )
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(update))
  assert grow_optimizer(grown, optax.sgd(0.1).init(small['params'])) == (
    optax.EmptyState(),
    optax.EmptyState(),
  )


def test_states_that_cannot_be_moved(random_pool):
  small, grown = grown_pools(random_pool, SMALL, LARGE, ROWS)
  params = small['params']
  adam = optax.adam(1e-3).init(grown.variables['params'])
  with pytest.raises(UserError, match=r'optimizer state \[0\].mu\[.block_00.\].* of shape \(13,\)'):
    grow_optimizer(grown, adam)
  wide = jax.tree.map(lambda leaf: jnp.zeros((2, *leaf.shape)), params)
  with pytest.raises(UserError, match=r"'mu'.: expected leaves in the shapes of the pool"):
    grow_optimizer(grown, {'mu': wide})
  with pytest.raises(UserError, match=r"'velocity'.: expected moments called mu, trace"):
    grow_optimizer(grown, {'velocity': params})
  with pytest.raises(UserError, match='expected leaves in the shapes of the pool'):
    grow_optimizer(grown, optax.adafactor(1e-3, min_dim_size_to_factor=2).init(params))


def test_joined_copies_know_what_their_joint_batch_would():
  """Of Adam's means after many steps on noisy gradients: each copy on its own batches, and one on
  the mean of the same gradients."""
  count, random = 4, np.random.default_rng(0)
  optimizer = optax.chain(optax.clip_by_global_norm(1e6), optax.adam(lambda step: 0.1))
  truth = np.array([0.0, 0.3, 2.0])
  update = jax.jit(optimizer.update)
  states = [optimizer.init({'w': jnp.zeros(3)}) for _ in range(count + 1)]
  for _ in range(3000):
    noisy = (truth + random.normal(size=(count, 3))).astype(np.float32)
    for j, gradient in enumerate([*noisy, noisy.mean(0)]):
      _, states[j] = update({'w': gradient}, states[j])
  *copies, together = states
  joined = average_optimizer(copies)
  assert jax.tree.structure(joined) == jax.tree.structure(together)
  found, wanted = joined[1][0], together[1][0]
  assert int(found.count) == int(wanted.count) == 3000
  np.testing.assert_allclose(found.mu['w'], wanted.mu['w'], atol=1e-5)
  # Both running means still move by a tenth; not joined, they would be 4 times as large.
  np.testing.assert_allclose(found.nu['w'], wanted.nu['w'], rtol=0.2)
  plain = np.mean([state[1][0].nu['w'] for state in copies], 0)
  assert plain[0] > 3 * wanted.nu['w'][0]
  again = restart_schedules(joined)
  assert int(again[1][1].count) == 0
  assert int(again[1][0].count) == 3000


def test_prng_keys_of_an_optimizer_move_along():
  noise = optax.add_noise(0.1, 0.5, key=3).init({})
  assert average_optimizer([noise, noise]).rng_key == jax.random.key(3)
