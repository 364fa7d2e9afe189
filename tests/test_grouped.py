"""Experts on the tokens that chose them, in blocks, against every expert on every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax.gates.grouped import grouped, rows_of

TOKENS, EXPERTS, TOP, WIDTH = 13, 5, 2, 3


def expert(kernels, x):
  """A layer with a bias, so that rows which are filled up give something."""
  first, second = kernels
  return jnp.tanh(x @ first + 0.3) @ second


def arguments(favourites, dtype=jnp.float32):
  """Kernels, tokens, choices and weights; the first `favourites` tokens all choose experts 1 and
  4, no token chooses expert 2."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  index = np.array([rng.choice([0, 1, 3, 4], TOP, replace=False) for _ in range(TOKENS)])
  index[:favourites] = [1, 4]
  kernels = normal(EXPERTS, WIDTH, 6), normal(EXPERTS, 6, WIDTH)
  return kernels, normal(TOKENS, WIDTH), jnp.asarray(index), normal(TOKENS, TOP)


def plain(numbers, kernels, x, index, weights):
  """Every expert on every token."""
  total = jnp.zeros_like(x)
  for i, number in enumerate(numbers):
    share = jnp.where(index == number, weights, 0).sum(-1, keepdims=True)
    total += share * expert((kernels[0][i], kernels[1][i]), x)
  return total


def slopes(form, kernels, x, index, weights):
  loss = lambda kernels, x, weights: jnp.sin(form(kernels, x, index, weights)).sum()
  return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(kernels, x, weights)


@pytest.mark.parametrize(
  ('rows', 'favourites'), [(1, 5), (2, 0), (2, TOKENS), (3, 9), (8, TOKENS), (TOKENS, 5)]
)
def test_output_and_gradients_are_those_of_every_expert_on_every_token(rows, favourites):
  """Whatever the blocks: all choices in the first ones, or most in others, which then vary."""
  kernels, *tokens = arguments(favourites)
  numbers = jnp.arange(EXPERTS)
  ours = functools.partial(grouped, expert, rows)
  found = slopes(lambda kernels, *rest: ours(kernels, numbers, *rest), kernels, *tokens)
  want = slopes(functools.partial(plain, range(EXPERTS)), kernels, *tokens)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, want)
  assert (np.abs(want[1][0][0][2]) == 0).all()
  assert np.abs(want[1][0][0][1]).max() > 0.1


def test_some_experts_give_their_terms():
  """As a device does that has experts 3 and 4."""
  kernels, *tokens = arguments(9)
  kernels, numbers = jax.tree.map(lambda leaf: leaf[3:], kernels), jnp.array([3, 4])
  ours = lambda kernels, *rest: grouped(expert, 2, kernels, numbers, *rest)
  found = slopes(ours, kernels, *tokens)
  want = slopes(functools.partial(plain, (3, 4)), kernels, *tokens)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, want)


def test_one_program_for_every_choice():
  form = jax.jit(lambda *tokens: grouped(expert, 2, tokens[0], jnp.arange(EXPERTS), *tokens[1:]))
  for favourites in (0, 9, TOKENS):
    tokens = arguments(favourites)
    want = plain(range(EXPERTS), *tokens)
    np.testing.assert_allclose(form(*tokens), want, rtol=1e-4, atol=1e-5)
  assert form._cache_size() == 1


def test_no_more_rows_than_blocks_of_the_even_load():
  assert rows_of(512, 2, 64) == 24
  assert rows_of(10, 2, 64) == 8
  assert rows_of(6, 1, 1) == 6
