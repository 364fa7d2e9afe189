"""The gates: each form follows the formula, and an off gate costs nothing where it need not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import UserError, gates


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


def forms(on):
  """One value of a gate in every form that is for a whole batch."""
  return (on, np.bool_(on), jnp.array(on), jnp.float32(on), float(on))


@pytest.mark.parametrize('scale', [0.0, 2.5, np.float32(4), jnp.float32(4)])
@pytest.mark.parametrize('on', [False, True])
def test_scale_multiplies_what_is_added(stream, weight, on, scale):
  added = np.tanh(np.asarray(stream) @ np.asarray(weight))
  want = np.asarray(stream) + on * float(scale) * added
  run = jax.jit(
    lambda gate, scale: gates.residual(stream, lambda x: jnp.tanh(x @ weight), gate, scale)
  )
  for gate in forms(on):
    found = gates.residual(stream, lambda x: jnp.tanh(x @ weight), gate, scale)
    # One matmul of depth 6 and a tanh in float32, by two libraries.
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
  for gate in forms(on)[2:]:
    np.testing.assert_allclose(run(gate, scale), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('rate', [0.25, 0.8])
def test_scale_of_one_over_the_rate_is_unbiased(stream, weight, rate):
  branch = lambda x: jnp.tanh(x @ weight)
  for on, off in ((True, False), (jnp.array(True), jnp.array(False)), (1.0, 0.0)):
    with_scale = [gates.residual(stream, branch, gate, 1 / rate) for gate in (on, off)]
    mean = rate * with_scale[0] + (1 - rate) * with_scale[1]
    np.testing.assert_allclose(mean, gates.residual(stream, branch, True), rtol=1e-5, atol=1e-5)
    without = rate * gates.residual(stream, branch, on) + (1 - rate) * stream
    assert np.abs(without - mean).max() > 0.1


@pytest.mark.parametrize('scale', [None, 3.0, jnp.float32(3)])
@pytest.mark.parametrize('on', [False, True])
def test_choose_takes_the_update_or_keeps_the_stream(stream, weight, on, scale):
  x, w = np.asarray(stream), np.asarray(weight)
  step = (1 if scale is None else float(scale)) * (np.tanh(x @ w) - x)
  for gate in forms(on):
    found = gates.choose(stream, lambda x: jnp.tanh(x @ weight), gate, scale)
    np.testing.assert_allclose(found, x + on * step, rtol=1e-4, atol=1e-5)
  if not on:
    for gate in (False, jnp.array(False)):
      found = gates.choose(stream, lambda x: x / 0, gate, scale)
      np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize('shape', [(), (4,), (4, 5)])
def test_choose_with_soft_gates(stream, weight, shape):
  gate = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
  x, u = np.asarray(stream), np.tanh(np.asarray(stream) @ np.asarray(weight))
  want = x + gate.reshape(shape + (1,) * (3 - len(shape))) * (u - x)
  found = jax.jit(lambda gate: gates.choose(stream, lambda x: jnp.tanh(x @ weight), gate))(gate)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_choose_skips_and_refuses_like_residual(stream):
  text = lambda gate: jax.jit(lambda x, g: gates.choose(x, jnp.tanh, g)).lower(stream, gate)
  assert 'conditional(' in text(jnp.array(True)).compile().as_text()
  assert 'tanh' not in jax.jit(lambda x: gates.choose(x, jnp.tanh, False)).lower(stream).as_text()
  for gate in (1, jnp.int32(1), jnp.array([True, False, True, True])):
    with pytest.raises(TypeError, match='expected a Python bool, a bool scalar, or floats'):
      gates.choose(stream, jnp.tanh, gate)


@pytest.mark.parametrize('gate', [True, jnp.array(True), jnp.float32(0.5), jnp.ones(4)])
@pytest.mark.parametrize('scale', [None, 2.0, jnp.float32(2)])
def test_dtype_is_kept_with_a_scale(stream, gate, scale):
  x = stream.astype(jnp.bfloat16)
  for gated in (gates.residual, gates.choose):
    assert gated(x, jnp.tanh, gate, scale).dtype == jnp.bfloat16
  assert gates.lane(x, x, gate, axis=1).dtype == jnp.bfloat16
  assert gates.lane_mean(x, axis=1).dtype == jnp.bfloat16


@pytest.mark.parametrize(('width', 'count'), [(13, 4), (12, 4), (5, 5), (7, 1), (9, 2), (11, 8)])
def test_chunks(width, count):
  found = gates.chunks(width, count)
  want = np.array_split(np.arange(width), count)  # larger first, sizes differing by at most one
  assert [list(range(width))[part] for part in found] == [list(units) for units in want]


@pytest.mark.parametrize(('width', 'count'), [(4, 5), (4, 0), (4, -1), (0, 1)])
def test_chunks_that_do_not_fit(width, count):
  message = f'^{count} chunks of a width of {width}: expected 1 to {width}$'
  with pytest.raises(UserError, match=message):
    gates.chunks(width, count)


def test_groups_are_the_compositions():
  assert [list(g) for g in gates.groups((True, False, False, True, True))] == [
    [0, 1],
    [2],
    [3, 4, 5],
  ]
  assert [list(g) for g in gates.groups(())] == [[0]]
  found = {
    tuple(len(g) for g in gates.groups(bits)) for bits in itertools.product((0, 1), repeat=3)
  }
  assert len(found) == 8
  assert {sum(sizes) for sizes in found} == {4}


@pytest.mark.parametrize('shape', [(), (3,), (3, 2)])
def test_joins_are_products_of_the_gates_between(shape):
  soft = np.random.default_rng(0).uniform(size=(4, *shape)).astype(np.float32)
  for values in (soft, soft > 0.5):
    table = gates.joins([jnp.asarray(value) for value in values])
    for j, i in itertools.product(range(5), repeat=2):
      want = np.ones(shape)
      for gate in values[min(i, j) : max(i, j)]:
        want = want * gate
      assert jnp.issubdtype(table[j][i].dtype, jnp.floating)
      np.testing.assert_allclose(np.broadcast_to(table[j][i], shape), want, rtol=1e-6)


LANES = 3


@pytest.fixture(scope='module')
def lanes():
  """What each of 3 lanes adds, and two streams: copies, and lanes apart; [P, B, T, D]."""
  random = np.random.default_rng(0)
  z = random.normal(size=(LANES, 4, 5, 6)).astype(np.float32)
  apart = random.normal(size=z.shape).astype(np.float32)
  return z, {'equal': np.broadcast_to(apart[:1], z.shape), 'apart': apart}


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('inputs', ['equal', 'apart'])
@pytest.mark.parametrize('on', [False, True])
def test_the_four_pictures(lanes, inputs, on, axis):
  z, streams = lanes
  x = streams[inputs]
  want = np.empty_like(x)
  for p in range(LANES):
    want[p] = (x[0] + x[1] + x[2]) / 3 + z[0] + z[1] + z[2] if on else x[p] + z[p]
  assert np.abs(want - want[0]).max() > 0.1 or on
  move = lambda a: jnp.moveaxis(jnp.asarray(a), 0, axis)
  run = jax.jit(lambda x, z, gate: gates.lane(x, z, gate, axis=axis))
  found = [gates.lane(move(x), move(z), gate, axis=axis) for gate in forms(on)]
  found += [run(move(x), move(z), gate) for gate in forms(on)[2:]]
  for one in found:
    # Sums of six numbers of order 1 in float32.
    np.testing.assert_allclose(one, np.moveaxis(want, 0, axis), rtol=0, atol=2e-6)
  if on and inputs == 'equal':  # what one stream would hold
    np.testing.assert_allclose(want[0], x[0] + z.sum(0), rtol=0, atol=2e-6)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('shape', [(), (4,), (4, 5)])
def test_soft_lane_gates_lie_between(lanes, shape, axis):
  z, streams = lanes
  x = streams['apart']
  gate = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
  weight = gate.reshape(shape + (1,) * (3 - len(shape)))
  want = (1 - weight) * (x + z) + weight * (x.mean(0) + z.sum(0))
  move = lambda a: jnp.moveaxis(jnp.asarray(a), 0, axis)
  found = jax.jit(lambda g: gates.lane(move(x), move(z), g, axis=axis))(gate)
  np.testing.assert_allclose(found, np.moveaxis(want, 0, axis), rtol=0, atol=2e-6)


def test_soft_lane_gates_where_tokens_are_as_many_as_lanes():
  """A gate per token must not be taken for one per lane."""
  random = np.random.default_rng(2)
  x, z = random.normal(size=(2, 4, 3, 3, 5)).astype(np.float32)  # [B, P, T, D]
  gate = random.uniform(size=(4, 3)).astype(np.float32)
  want = x + z + gate[:, None, :, None] * ((x.mean(1) + z.sum(1))[:, None] - x - z)
  found = gates.lane(jnp.asarray(x), jnp.asarray(z), gate, axis=1)
  np.testing.assert_allclose(found, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize('axis', [0, 1, -2])
def test_lane_mean(lanes, axis):
  x = lanes[1]['apart']
  np.testing.assert_allclose(
    gates.lane_mean(jnp.asarray(x), axis=axis), x.mean(axis), rtol=0, atol=1e-6
  )


@pytest.mark.parametrize('on', [False, True])
def test_gradients_of_lane_forms_agree(lanes, on):
  z, streams = lanes
  weights = np.random.default_rng(3).normal(size=z.shape).astype(np.float32)
  total = weights.sum(0)
  want_x = np.broadcast_to(total / LANES, z.shape) if on else weights
  want_z = np.broadcast_to(total, z.shape) if on else weights
  for gate in forms(on):
    loss = lambda x, z, gate=gate: (weights * gates.lane(x, z, gate)).sum()
    got_x, got_z = jax.grad(loss, (0, 1))(jnp.asarray(streams['apart']), jnp.asarray(z))
    np.testing.assert_allclose(got_x, want_x, rtol=0, atol=2e-6)
    np.testing.assert_allclose(got_z, want_z, rtol=0, atol=2e-6)
