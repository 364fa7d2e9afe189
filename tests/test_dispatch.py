"""Functions on chosen tokens alone: against computing all and masking, at every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax.gates.dispatch import in_blocks, packed, sizes_of

ROWS, LENGTH, WIDTH = 3, 8, 4
X = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, LENGTH, WIDTH)), jnp.float32)
SHARE = jnp.asarray(np.random.default_rng(2).uniform(size=(ROWS, LENGTH)), jnp.float32)
NUMBER = jnp.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)  # has no gradient
KERNEL = jnp.asarray(np.random.default_rng(1).normal(size=(WIDTH, 6)), jnp.float32)


def layer(kernel, tokens, positions, valid):
  """Uses the position too, and lets tokens that are not chosen give nonsense."""
  x, share, number = tokens
  y = share[..., None] * jnp.tanh(x @ kernel) * (1 + positions[..., None]) + number[..., None]
  return jnp.where(valid[..., None], y, jnp.inf)


def masked(function, kernel, tokens, chosen):
  """All tokens computed, the others zeroed."""
  positions = jnp.broadcast_to(jnp.arange(chosen.shape[-1]), chosen.shape)
  return jnp.where(chosen[..., None], function(kernel, tokens, positions, chosen | True), 0)


def choices(most):
  """Chosen tokens, at most so many in a row and as many in one of them."""
  rng = np.random.default_rng(most)
  counts = rng.permutation([most, *rng.integers(0, most + 1, ROWS - 1)])
  rows = [rng.permutation(LENGTH) < count for count in counts]
  return jnp.asarray(rows)


def value_and_gradients(form):
  """The program of a form: what it gives, and its gradients."""

  def loss(kernel, x, share, number, chosen):
    y = form(layer, kernel, (x, share, number), chosen)
    return jnp.sin(y).sum(), y

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


PACKED, MASKED = value_and_gradients(packed), value_and_gradients(masked)
IN_BLOCKS = value_and_gradients(in_blocks)


def check(found, want):
  """Outputs and gradients, to rounding of sums over all tokens."""
  ((_, y), gradients), ((_, other), others) = found, want
  np.testing.assert_allclose(y, other, rtol=1e-5, atol=1e-6)
  for a, b in zip(gradients, others, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('most', range(LENGTH + 1))
def test_packed_is_the_masked_form(most):
  arguments = KERNEL, X, SHARE, NUMBER, choices(most)
  found = PACKED(*arguments)
  check(found, MASKED(*arguments))
  assert (np.abs(found[1][0]).max() > 0.1) == (most > 0)


@pytest.mark.parametrize('most', [0, 1, 5, 21])
@pytest.mark.parametrize('length', [21, 5, 1])
def test_in_blocks_is_the_masked_form(most, length):
  """Of 21 tokens the last block is cut short; of 5 each is one."""
  chosen = jnp.asarray(np.random.default_rng(most).permutation(length) < most)
  flat = lambda a: a.reshape(-1, *a.shape[2:])[:length]
  arguments = KERNEL, flat(X), flat(SHARE), flat(NUMBER), chosen
  found = IN_BLOCKS(*arguments)
  check(found, MASKED(*arguments))
  assert (np.abs(found[1][0]).max() > 0.01) == (most > 0)


def counted(ran):
  """A function that notes how many tokens it was given, and the loss of it in some form."""

  def function(kernel, x, positions, valid):
    jax.debug.callback(lambda valid: ran.append(valid.shape[-1]), valid)
    return x @ kernel

  return lambda form: jax.jit(lambda x, chosen: form(function, KERNEL, x, chosen).sum())


def test_the_smallest_size_that_holds_the_fullest_row_runs():
  ran = []
  program = counted(ran)(packed)
  for most in range(LENGTH + 1):
    program(X, choices(most)).block_until_ready()
  jax.effects_barrier()
  assert ran == [1, 2, 3, 4, 6, 6, 8, 8]
  assert program._cache_size() == 1


def test_as_many_blocks_run_as_the_chosen_tokens_fill():
  ran, x = [], X.reshape(-1, WIDTH)[:16]
  program = counted(ran)(in_blocks)
  for most in (0, 1, 2, 3, 16):
    program(x, jnp.arange(16) >= 16 - most).block_until_ready()
  jax.effects_barrier()
  assert ran == [2] * (0 + 1 + 1 + 2 + 8)
  assert program._cache_size() == 1


def test_the_function_is_compiled_twice_for_each_size():
  """Forward, and in the backward pass with its gradient: with all of its matmuls, no other one."""
  text = PACKED.lower(KERNEL, X, SHARE, NUMBER, choices(1)).as_text()
  assert text.count('dot_general') == len(sizes_of(LENGTH)) * (1 + 3)
  arguments = KERNEL, X[0], SHARE[0], NUMBER[0], choices(1)[0]
  assert IN_BLOCKS.lower(*arguments).as_text().count('dot_general') == 1 + 3


def test_sizes():
  assert sizes_of(3) == (1, 2, 3)
  assert sizes_of(LENGTH) == (1, 2, 3, 4, 6, 8)
