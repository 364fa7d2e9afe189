"""Functions on chosen tokens alone: against computing all and masking, at every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax.gates.dispatch import packed, sizes_of

ROWS, LENGTH, WIDTH = 3, 8, 4
X = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, LENGTH, WIDTH)), jnp.float32)
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(WIDTH, 6)), jnp.float32)


def layer(x, positions, valid):
  """Uses the position too, and lets tokens that are not chosen give nonsense."""
  y = jnp.tanh(x @ KERNEL) + positions[..., None]
  return jnp.where(valid[..., None], y, jnp.inf)


def masked(x, chosen):
  """All tokens computed, the others zeroed."""
  positions = jnp.broadcast_to(jnp.arange(LENGTH), x.shape[:2])
  return jnp.where(chosen[..., None], layer(x, positions, jnp.ones(x.shape[:2], bool)), 0)


def choices(most):
  """Chosen tokens, at most so many in a row and as many in one of them."""
  rng = np.random.default_rng(most)
  counts = rng.permutation([most, *rng.integers(0, most + 1, ROWS - 1)])
  rows = [rng.permutation(LENGTH) < count for count in counts]
  return jnp.asarray(rows)


@pytest.mark.parametrize('most', range(LENGTH + 1))
def test_is_the_masked_form(most):
  chosen = choices(most)
  found = jax.jit(lambda x, c: packed(layer, x, c))(X, chosen)
  np.testing.assert_allclose(found, masked(X, chosen), rtol=1e-6)


@pytest.mark.parametrize('most', [0, 1, 4, 8])
def test_gradients(most):
  chosen = choices(most)

  def of(form):
    def loss(x, kernel):
      layer = lambda x, positions, valid: jnp.tanh(x @ kernel) * (1 + positions[..., None])
      return jnp.sin(form(layer, x)).sum()

    return jax.jit(jax.grad(loss, (0, 1)))(X, KERNEL)

  def plain(layer, x):
    positions = jnp.broadcast_to(jnp.arange(LENGTH), x.shape[:2])
    return jnp.where(chosen[..., None], layer(x, positions, None), 0)

  found = of(lambda layer, x: packed(layer, x, chosen))
  for a, b in zip(found, of(plain), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  assert (np.abs(found[1]).max() > 0.1) == (most > 0)


def test_the_smallest_size_that_holds_the_fullest_row_runs():
  ran = []

  def counted(x, positions, valid):
    jax.debug.callback(lambda valid: ran.append(valid.shape[1]), valid)
    return layer(x, positions, valid)

  program = jax.jit(lambda x, c: packed(counted, x, c))
  for most in range(LENGTH + 1):
    program(X, choices(most)).block_until_ready()
  jax.effects_barrier()
  assert ran == [1, 2, 3, 4, 6, 6, 8, 8]
  assert program._cache_size() == 1


def test_sizes():
  assert sizes_of(3) == (1, 2, 3)
  assert sizes_of(LENGTH) == (1, 2, 3, 4, 6, 8)
