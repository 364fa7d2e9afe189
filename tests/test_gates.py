"""The residual gate: its three forms agree, and an off gate costs nothing where it need not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import gates


@pytest.fixture(scope='module')
def stream():
  return jax.random.normal(jax.random.key(0), (4, 5, 6))


@pytest.fixture(scope='module')
def weight():
  return jax.random.normal(jax.random.key(1), (6, 6))


def gated(x, weight, gate):
  return gates.residual(x, lambda x: jnp.tanh(x @ weight), gate)


@pytest.mark.parametrize('on', [False, True])
def test_forms_agree_in_value_and_gradient(stream, weight, on):
  plain = lambda x, w: jnp.square(x + jnp.tanh(x @ w) if on else x).sum()
  expected, expected_gradient = jax.value_and_grad(plain, (0, 1))(stream, weight)
  for gate in (on, np.bool_(on), jnp.array(on), jnp.float32(on), float(on)):
    square = lambda x, w, gate=gate: jnp.square(gated(x, w, gate)).sum()
    value, gradient = jax.value_and_grad(square, (0, 1))(stream, weight)
    # The same few float32 operations; fused or not, they differ in the last bits.
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for got, want in zip(gradient, expected_gradient):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_forms_are_different_programs(stream, weight):
  static = {
    on: jax.jit(lambda x, w, on=on: gated(x, w, on)).lower(stream, weight).as_text()
    for on in (False, True)
  }
  assert 'tanh' not in static[False]
  assert 'tanh' in static[True]
  conditional = jax.jit(gated).lower(stream, weight, jnp.array(True)).compile().as_text()
  masked = jax.jit(gated).lower(stream, weight, jnp.float32(1)).compile().as_text()
  assert 'conditional(' in conditional
  assert 'conditional(' not in masked


def count_calls(gate, x, weight):
  """How often the branch runs forward when value and gradient are computed with `gate`."""
  calls = []

  def branch(x):
    jax.debug.callback(lambda: calls.append(1))
    return jnp.tanh(x @ weight)

  loss = lambda x: jnp.square(gates.residual(x, branch, gate)).sum()
  jax.block_until_ready(jax.jit(loss)(x))
  jax.effects_barrier()
  return len(calls)


def test_off_gate_skips_its_branch(stream, weight):
  assert count_calls(False, stream, weight) == 0
  assert count_calls(jnp.array(False), stream, weight) == 0
  assert count_calls(jnp.array(True), stream, weight) == 1
  assert count_calls(jnp.float32(0), stream, weight) == 1


def test_conditional_branch_is_rematerialised(stream, weight):
  """The backward pass recomputes tanh inside the branch, so nothing of it is kept."""
  loss = lambda x, gate: jnp.square(gated(x, weight, gate)).sum()
  jaxpr = str(jax.make_jaxpr(jax.grad(loss))(stream, jnp.array(True)))
  assert 'remat' in jaxpr
  assert 'remat' not in str(jax.make_jaxpr(jax.grad(loss))(stream, jnp.float32(1)))


def test_conditional_gate_inside_scan_stays_conditional(stream, weight):
  def run(x, bits):
    return jax.lax.scan(lambda x, bit: (gated(x, weight, bit), None), x, bits)[0]

  bits = jnp.array([True, False, True])
  text = jax.jit(run).lower(stream, bits).compile().as_text()
  assert 'conditional(' in text
  expected = gated(gated(stream, weight, True), weight, True)
  np.testing.assert_allclose(run(stream, bits), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('shape', [(), (4,), (4, 5)])
def test_soft_gates_on_leading_axes(stream, weight, shape):
  gate = jax.random.uniform(jax.random.key(2), shape)
  added = np.tanh(np.asarray(stream) @ np.asarray(weight))
  want = np.asarray(stream) + np.asarray(gate).reshape(shape + (1,) * (3 - len(shape))) * added
  # One matmul of depth 6 and a tanh in float32, by two libraries.
  np.testing.assert_allclose(gated(stream, weight, gate), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('gate', [True, jnp.array(True), jnp.float32(1), jnp.ones(4)])
def test_dtype_of_the_stream_is_kept(stream, weight, gate):
  x, w = stream.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
  assert gated(x, w, gate).dtype == jnp.bfloat16


@pytest.mark.parametrize('gate', [jnp.int32(1), 1, jnp.array([True, False, True, True])])
def test_other_gates_are_refused(stream, weight, gate):
  with pytest.raises(TypeError, match='expected a Python bool, a bool scalar, or floats'):
    gated(stream, weight, gate)
