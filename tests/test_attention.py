"""The attention branch against loops in float64: heads, masks, rotary positions, lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax.models.attention import Attention, attend, causal_mask
from additive_jax.models.rotary import rotate

BATCH, TOKENS, HEADS, SIZE = 2, 5, 4, 6
WIDTH = HEADS * SIZE
# float32 against float64: sums of up to 24 products of order 1, and a softmax.
CLOSE = {'rtol': 1e-5, 'atol': 2e-5}


@pytest.fixture(scope='module')
def qkv():
  return np.random.default_rng(0).normal(size=(3, BATCH, TOKENS, HEADS, SIZE))


def plain_attend(q, k, v, causal):
  """Each query's softmax over the keys it may see, one at a time."""
  out = np.zeros_like(v)
  for b, t, h in np.ndindex(q.shape[:3]):
    seen = t + 1 if causal else q.shape[1]
    scores = np.array([q[b, t, h] @ k[b, s, h] for s in range(seen)]) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max())
    out[b, t, h] = (weights / weights.sum()) @ v[b, :seen, h]
  return out


def plain_rotate(x):
  """Units i and i + d/2 as a complex number, turned by t·10000^(−2i/d)."""
  half = x.shape[-1] // 2
  pairs = x[..., :half] + 1j * x[..., half:]
  rates = 10_000.0 ** (-2 * np.arange(half) / x.shape[-1])
  turned = pairs * np.exp(1j * np.arange(x.shape[1])[:, None, None] * rates)
  return np.concatenate([turned.real, turned.imag], axis=-1)


@pytest.mark.parametrize('causal', [False, True])
def test_attend(qkv, causal):
  mask = causal_mask(TOKENS) if causal else None
  found = jax.jit(attend)(*jnp.asarray(qkv, jnp.float32), mask)
  np.testing.assert_allclose(found, plain_attend(*qkv, causal), **CLOSE)


def test_causal_attention_ignores_later_keys_and_values(qkv):
  run, mask = jax.jit(attend), causal_mask(TOKENS)
  q, k, v = jnp.asarray(qkv, jnp.float32)
  for late in range(1, TOKENS):
    # Far larger than the rest: a mask that only damps would let it through.
    k_, v_ = k.at[:, late].add(1e4), v.at[:, late].add(1e4)
    before, after = run(q, k, v, mask), run(q, k_, v_, mask)
    np.testing.assert_array_equal(before[:, :late], after[:, :late])
    assert (before[:, late] != after[:, late]).any()
    assert (run(q, k, v)[:, 0] != run(q, k_, v_)[:, 0]).any()


def test_rotate(qkv):
  x = qkv[0]
  found = jax.jit(rotate)(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(found, plain_rotate(x), **CLOSE)
  np.testing.assert_allclose(found[:, 0], x[:, 0], rtol=1e-6)
  np.testing.assert_allclose(np.square(found).sum(-1), np.square(x).sum(-1), rtol=1e-5)


def test_scores_of_rotated_vectors_depend_on_distance_alone():
  """The same query and key at every position: scores are constant along each diagonal."""
  random = np.random.default_rng(1)
  q, k = (
    rotate(jnp.broadcast_to(jnp.asarray(random.normal(size=8), jnp.float32), (1, 40, 1, 8)))
    for _ in range(2)
  )
  scores = np.asarray(q[0, :, 0] @ k[0, :, 0].T)
  for distance in range(-39, 40):
    diagonal = np.diagonal(scores, distance)
    # cos and sin of angles up to 40 in float32, times eight products of order 1.
    np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=5e-5)
  first = [np.diagonal(scores, distance)[0] for distance in range(-4, 5)]
  assert np.diff(np.sort(first)).min() > 1e-3


def test_dtype_is_kept(qkv):
  q, k, v = jnp.asarray(qkv, jnp.bfloat16)
  assert rotate(q).dtype == jnp.bfloat16
  assert attend(q, k, v, causal_mask(TOKENS)).dtype == jnp.bfloat16


# The whole branch: `h + W_o attention(LayerNorm(h))`.


def normed(x, p):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']


def parts(pool, h, causal, rope):
  """What each head adds to the stream [B, T, D], without the output's bias; [heads, B, T, D]."""
  x = normed(h, pool['norm'])
  kernel, bias = pool['qkv']['kernel'], pool['qkv']['bias']
  added = []
  for head in range(HEADS):
    q, k, v = ((x @ kernel[:, i, head] + bias[i, head])[:, :, None] for i in range(3))
    if rope:
      q, k = plain_rotate(q), plain_rotate(k)
    added.append(plain_attend(q, k, v, causal)[:, :, 0] @ pool['out']['kernel'][head])
  return np.stack(added)


def double(variables):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables['params'])


@pytest.fixture(scope='module')
def stream():
  return np.random.default_rng(2).normal(size=(BATCH, TOKENS, WIDTH))


@pytest.fixture(scope='module')
def variables(random_pool, stream):
  return random_pool(Attention(HEADS), jnp.asarray(stream, jnp.float32))


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('rope', [False, True])
def test_branch(variables, stream, causal, rope):
  module, pool = Attention(HEADS, causal=causal, rope=rope), double(variables)
  want = stream + parts(pool, stream, causal, rope).sum(0) + pool['out']['bias']
  found = jax.jit(module.apply)(variables, jnp.asarray(stream, jnp.float32))
  # Two more matmuls than `CLOSE` is for, with weights that make values of order 10.
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_without_positions_tokens_may_be_permuted(variables, stream):
  order = np.array([3, 1, 4, 0, 2])
  x = jnp.asarray(stream, jnp.float32)
  for rope in (False, True):
    run = jax.jit(Attention(HEADS, rope=rope).apply)
    difference = np.abs(run(variables, x[:, order]) - run(variables, x)[:, order]).max()
    assert (difference < 1e-4) != rope


def lane_streams(count):
  """Streams of the lanes, copies and apart, [B, P, T, D]."""
  random = np.random.default_rng(3)
  apart = random.normal(size=(BATCH, count, TOKENS, WIDTH))
  return {'equal': np.broadcast_to(apart[:, :1], apart.shape), 'apart': apart}


def plain_lanes(pool, h, gate, causal, rope):
  """Each lane's own heads on its own stream; the output's bias is shared out evenly."""
  count = h.shape[1]
  each = HEADS // count
  z = np.stack(
    [
      parts(pool, h[:, p], causal, rope)[p * each : (p + 1) * each].sum(0)
      + pool['out']['bias'] / count
      for p in range(count)
    ],
    axis=1,
  )
  joined = np.broadcast_to((h.mean(1) + z.sum(1))[:, None], h.shape)
  return gate * joined + (1 - gate) * (h + z)


@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('inputs', ['equal', 'apart'])
def test_lanes(variables, inputs, count):
  module = Attention(HEADS, ('lane',), count, causal=True, rope=True)
  pool, h = double(variables), lane_streams(count)[inputs]
  run = jax.jit(lambda h, gate: module.apply(variables, h, (gate,)))
  static = jax.jit(lambda h: [module.apply(variables, h, (on,)) for on in (False, True)])
  single = jnp.asarray(h, jnp.float32)
  for on, found in enumerate(static(single)):
    want = plain_lanes(pool, h, on, True, True)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(single, jnp.array(bool(on))), want, rtol=1e-4, atol=1e-4)
  for shape in ((), (BATCH,), (BATCH, TOKENS)):
    gate = np.random.default_rng(4).uniform(size=shape)
    aligned = (
      gate[..., None, :, None]
      if len(shape) == 2
      else gate.reshape(*shape, *(1,) * (4 - len(shape)))
    )
    want = plain_lanes(pool, h, aligned, True, True)
    np.testing.assert_allclose(run(single, gate.astype(np.float32)), want, rtol=1e-4, atol=1e-4)


def test_all_lanes_joined_are_the_dense_branch(variables, stream):
  x = jnp.asarray(stream, jnp.float32)
  dense = jax.jit(Attention(HEADS).apply)(variables, x)
  for count in (1, 2, 4):
    copies = jnp.broadcast_to(x[:, None], (BATCH, count, TOKENS, WIDTH))
    module = Attention(HEADS, ('lane',), count)
    joined = jax.jit(lambda h, m=module: m.apply(variables, h, (True,)))(copies)
    np.testing.assert_allclose(joined, np.broadcast_to(dense[:, None], joined.shape), **CLOSE)
    shapes = jax.eval_shape(module.init, jax.random.key(0), copies)
    same = jax.tree.map(lambda a, b: a.shape == b.shape, shapes, variables)
    assert all(jax.tree.leaves(same))
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, copies), joined)


@pytest.mark.parametrize(
  ('kinds', 'names'),
  [
    (('residual',), ('residual',)),
    (('lane',), ('lane',)),
    (('lane', 'residual'), ('residual', 'lane')),
    ((), ()),
  ],
)
def test_gates(kinds, names):
  assert Attention(HEADS, kinds).gates == names
