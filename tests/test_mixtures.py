"""Mixtures of structures against the explicit weighted sum of static layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from additive_jax import UserError
from additive_jax.gates import mixtures
from additive_jax.gates.layers import Layer, LayerPair, sub_activation
from additive_jax.gates.structure import all_bits

SHAPE = (3, 4)  # of tokens


def make(num_chunks, gated, seed=0):
  """x and the kernels of a layer with uneven chunks, float32."""
  rng = np.random.default_rng(seed)
  width, hidden, out = 9, 10, 8  # the same for all: operations are compiled by shape
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x, kernels = normal(*SHAPE, width), [normal(width, hidden), normal(hidden, out) / 3]
  layers = LayerPair(*(Layer(kernel, normal(kernel.shape[1])) for kernel in kernels))
  return x, layers._replace(gating=Layer(normal(width, hidden))) if gated else layers


def weighted_sum(x, layers, structures, weights, activation=jax.nn.gelu):
  """Σ_s w_s f_s(x) in float64, each layer by its static form, which is tested on its own."""
  total = 0
  for s, row in enumerate(structures):
    y = sub_activation(x, layers, tuple(map(bool, row)), activation)
    total = total + np.asarray(weights[..., s], np.float64)[..., None] * np.asarray(y, np.float64)
  return total


def probabilities(gates):
  """Of every structure when gates are independent, float64 [..., 2^(m−1)]."""
  bits = all_bits(gates.shape[-1])
  on = np.asarray(gates, np.float64)[..., None, :]
  return np.where(bits, on, 1 - on).prod(-1)


# Sums of up to 64 structures of hidden values of order one.
CLOSE = {'rtol': 1e-5, 'atol': 1e-5}


def test_spans():
  assert mixtures.spans(3) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize('num_chunks', [1, 2, 5, 7])
def test_span_weights_are_probabilities_of_groups(num_chunks):
  gates = np.random.default_rng(1).random((5, num_chunks - 1)).astype(np.float32)
  found = mixtures.span_weights(jnp.asarray(gates))
  bits = all_bits(num_chunks - 1) if num_chunks > 1 else np.zeros((1, 0), bool)
  for k, (a, b) in enumerate(mixtures.spans(num_chunks)):
    left = ~bits[:, a - 1] if a else True
    right = ~bits[:, b] if b < num_chunks - 1 else True
    is_group = bits[:, a:b].all(1) & left & right
    want = (probabilities(gates) * is_group).sum(-1)
    np.testing.assert_allclose(found[:, k], want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('num_chunks', tiny.slow_but([1, 2, 3, 4], range(1, 8)))
def test_marginal_mixture_is_the_sum_over_all_structures(num_chunks, gated):
  x, layers = make(num_chunks, gated)
  gates = jax.nn.sigmoid(jax.random.normal(jax.random.key(1), (*SHAPE, num_chunks - 1)))
  weights = mixtures.span_weights(gates)
  found = mixtures.span_mixture(x, layers, weights, jax.nn.gelu)
  bits = all_bits(num_chunks - 1) if num_chunks > 1 else np.zeros((1, 0), bool)
  want = weighted_sum(x, layers, bits, probabilities(gates))
  np.testing.assert_allclose(found, want, **CLOSE)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize(
  ('num_chunks', 'k'),
  [
    (2, 1),
    (4, 1),
    (4, 2),
    (4, 3),
    *(pytest.param(7, k, marks=pytest.mark.slow) for k in (2, 3, 6)),
  ],
)
def test_mixture_of_k_structures(num_chunks, k, gated):
  """In both of its forms: few structures in turn, and many by their spans."""
  x, layers = make(num_chunks, gated)
  rng = np.random.default_rng(2)
  structures = all_bits(num_chunks - 1)
  index = rng.permuted(np.tile(np.arange(len(structures)), (*SHAPE, 1)), axis=-1)[..., :k]
  weights = jnp.asarray(rng.random((*SHAPE, k)), jnp.float32)  # that do not sum to 1
  bits = jnp.asarray(structures[index])
  found = mixtures.structure_mixture(x, layers, bits, weights, jax.nn.gelu)
  dense = np.zeros((*SHAPE, len(structures)))
  np.put_along_axis(dense, index, np.asarray(weights), -1)
  want = weighted_sum(x, layers, structures, dense)
  np.testing.assert_allclose(found, want, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize(
  ('num_chunks', 'k'), [(4, None), (5, 2), pytest.param(4, 3, marks=pytest.mark.thorough)]
)
def test_gradients_are_those_of_the_sum(num_chunks, k, gated):
  """With respect to x, the kernels and biases, and the weights or the gates."""
  x, layers = make(num_chunks, gated)
  structures = all_bits(num_chunks - 1)
  rng = np.random.default_rng(3)
  if k is None:
    free = jnp.asarray(rng.random((*SHAPE, num_chunks - 1)), jnp.float32)
    form = lambda x, layers, free: mixtures.span_mixture(
      x, layers, mixtures.span_weights(free), jax.nn.gelu
    )
    on = lambda free: jnp.where(structures, free[..., None, :], 1 - free[..., None, :]).prod(-1)
  else:
    free = jnp.asarray(rng.random((*SHAPE, k)), jnp.float32)
    index = rng.permuted(np.tile(np.arange(len(structures)), (*SHAPE, 1)), axis=-1)[..., :k]
    form = lambda x, layers, free: mixtures.structure_mixture(
      x, layers, jnp.asarray(structures[index]), free, jax.nn.gelu
    )
    on = lambda free: (jax.nn.one_hot(index, len(structures)) * free[..., None]).sum(-2)

  def plain(x, layers, free):
    outputs = [sub_activation(x, layers, tuple(map(bool, row)), jax.nn.gelu) for row in structures]
    return (jnp.stack(outputs, -1) * on(free)[..., None, :]).sum(-1)

  arguments = (x, layers, free)
  loss = lambda layer: jax.jit(jax.grad(lambda *a: jnp.sin(layer(*a)).sum(), (0, 1, 2)))
  for found, want in zip(
    jax.tree.leaves(loss(form)(*arguments)), jax.tree.leaves(loss(plain)(*arguments)), strict=True
  ):
    # Sums of twelve tokens' terms in float32.
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want).max() > 1e-3


def test_one_structure_of_weight_one_is_that_layer():
  x, layers = make(4, gated=False)
  for row in all_bits(3):
    bits = jnp.broadcast_to(jnp.asarray(row), (*SHAPE, 1, 3))
    found = mixtures.structure_mixture(x, layers, bits, jnp.ones((*SHAPE, 1)), jax.nn.gelu)
    want = sub_activation(x, layers, tuple(map(bool, row)), jax.nn.gelu)
    np.testing.assert_allclose(found, want, **CLOSE)


def test_bad_shapes():
  x, layers = make(4, gated=False)
  with pytest.raises(UserError, match=r'9 weights of spans: expected m\(m\+1\)/2 for some m'):
    mixtures.span_mixture(x, layers, jnp.ones((*SHAPE, 9)), jax.nn.gelu)
  with pytest.raises(UserError, match=r'x of width 8: expected 9, as first\.kernel has'):
    mixtures.span_mixture(x[..., 1:], layers, jnp.ones((*SHAPE, 10)), jax.nn.gelu)


def test_slopes_have_the_types_of_what_they_belong_to():
  """As of a bfloat16 stream before float32 parameters."""
  ones = jnp.ones
  layers = LayerPair(Layer(ones((4, 3)), ones(3)), Layer(ones((3, 4)), ones(4)))
  x, weights = ones((2, 4), jnp.bfloat16), ones((2, 1), jnp.bfloat16)
  bits = jnp.zeros((2, 1, 3), bool)
  loss = lambda *a: mixtures.structure_mixture(a[0], layers, bits, a[1], jnp.tanh).sum()
  assert [g.dtype for g in jax.grad(loss, (0, 1))(x, weights)] == [jnp.bfloat16] * 2
