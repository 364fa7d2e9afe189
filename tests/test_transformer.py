"""The transformer against an oracle in float64, what later tokens may change, and its errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from additive_jax import UserError, conditional, masked, shared_prefix, static
from additive_jax.gates.structure import all_bits
from additive_jax.models import Transformer
from additive_jax.models.additive import gate_names
from additive_jax.models.kinds import KINDS
from additive_jax.models.transformer import patches

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(3, 4, 6, 2)).astype(np.float32)  # 6 patches of 2 × 2 × 2
TOKENS = RANDOM.integers(0, 7, (3, 5))
# Chunks of 3 + 3 + 2 units; 2 lanes of two heads or of one.
VIT = {'num_layers': 1, 'width': 8, 'num_heads': 4, 'hidden': 12, 'num_classes': 4}
TEXT = {'num_layers': 2, 'width': 8, 'num_heads': 2, 'hidden': 6, 'num_classes': 7, 'num_tokens': 7}
ROWS = {
  'vit': (VIT | {'unit': 'gelu', 'positions': 'learned', 'max_tokens': 9}, IMAGES),
  'vit, rope': (VIT | {'unit': 'swiglu', 'positions': 'rope'}, IMAGES),
  'vit, relu': (VIT | {'unit': 'relu', 'positions': 'rope'}, IMAGES),
  'text': (TEXT | {'unit': 'swiglu', 'positions': 'rope', 'causal': True}, TOKENS),
  'text, learned': (
    TEXT | {'unit': 'gelu', 'positions': 'learned', 'causal': True, 'num_layers': 1},
    TOKENS,
  ),
}
MIXES = [mix for size in (1, 2, 3) for mix in itertools.combinations(KINDS, size)]
# float32 against float64 through four branches and a readout.
CLOSE = {'rtol': 2e-4, 'atol': 2e-4}


def make(row, gates=KINDS, **options):
  options = {**ROWS[row][0], 'num_chunks': 3, 'num_lanes': 2, **options}
  return Transformer(gates=gates, **options)


def compiled(function):
  """Compiled in a third of the time, for programs that run a few times."""
  return jax.jit(function, compiler_options={'xla_backend_optimization_level': 0})


# The oracle: the formulas in float64, with gates [..., n] for all, per example or per token.


def normed(x, p):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p['scale'] + p['bias']


def turned(x):
  """Rotary positions of [B, T, heads, d], pairs (i, i + d/2) as complex numbers."""
  half = x.shape[-1] // 2
  rates = 10_000.0 ** (-np.arange(half) / half)
  angle = np.arange(x.shape[1])[:, None, None] * rates
  pairs = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
  return np.concatenate([pairs.real, pairs.imag], axis=-1)


def attention(model, pool, h, heads):
  """What some of the heads add to h [B, T, D]."""
  x = normed(h, pool['norm'])
  kernel, bias = pool['qkv']['kernel'][:, :, heads], pool['qkv']['bias'][:, heads]
  q, k, v = (np.einsum('btd,dhk->bthk', x, kernel[:, i]) + bias[i] for i in range(3))
  if model.positions == 'rope':
    q, k = turned(q), turned(k)
  scores = np.einsum('bqhk,bshk->bhqs', q, k) / np.sqrt(q.shape[-1])
  if model.causal:
    later = np.arange(h.shape[1])[:, None] < np.arange(h.shape[1])
    scores = np.where(later, -np.inf, scores)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('bhqs,bshk,hkd->bqd', weights, v, pool['out']['kernel'][heads])


def feed_forward(model, pool, h, units, joins):
  """What some of the hidden units add to h [B, T, D]; joins are m − 1 gates that multiply h."""
  x, m = normed(h, pool['norm']), len(joins) + 1
  kernel, out = pool['in']['kernel'][:, units], pool['out']['kernel'][units]
  cuts = np.array_split(np.arange(x.shape[-1]), m)
  added = []
  for j in range(m):
    p = q = 0.0
    for i in range(m):
      joined = np.prod(np.broadcast_arrays(1.0, *joins[min(i, j) : max(i, j)]), axis=0)
      p = p + joined * (x[..., cuts[i]] @ kernel[cuts[i]])
      if model.unit == 'swiglu':
        q = q + joined * (x[..., cuts[i]] @ pool['gate']['kernel'][cuts[i]][:, units])
      else:
        p = p + joined * pool['in']['bias'][units] / m
    if model.unit == 'swiglu':
      hidden = q / (1 + np.exp(-q)) * p
    elif model.unit == 'relu':
      hidden = np.maximum(p, 0)
    else:
      hidden = p / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (p + 0.044715 * p**3)))
    added.append(hidden @ out[:, cuts[j]])
  return np.concatenate(added, axis=-1)


def oracle(model, pool, x, gates):
  """Logits of the network."""
  pool = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pool['params'])
  gates = np.asarray(gates, np.float64)
  values = iter(
    np.moveaxis(gates.reshape(gates.shape[:-1] + (1,) * (3 - gates.ndim) + (1, -1)), -1, 0)
  )
  if model.num_tokens:
    h = pool['embed']['embedding'][x]
  else:
    size = model.patch_size
    rows = [
      x[:, i : i + size, j : j + size].reshape(len(x), -1)
      for i in range(0, x.shape[1], size)
      for j in range(0, x.shape[2], size)
    ]
    h = np.stack(rows, axis=1) @ pool['embed']['kernel'] + pool['embed']['bias']
  if model.positions == 'learned':
    h = h + pool['position'][: h.shape[1]]
  count = model.num_lanes if 'lane' in model.gates else 1
  lanes = [h] * count
  for layer, site in itertools.product(range(model.num_layers), ('attention', 'mlp')):
    part = pool[f'block_{layer:02}__{site}']
    chosen = model.num_chunks - 1 if 'sub_activation' in model.gates and site == 'mlp' else 0
    residual = next(values) if 'residual' in model.gates else 1.0
    joins = [next(values) for _ in range(chosen)]
    lane = next(values) if 'lane' in model.gates else 1.0
    units = np.array_split(
      np.arange(model.num_heads if site == 'attention' else model.hidden), count
    )
    bias = part['out'].get('bias', 0.0) / count
    if site == 'attention':
      z = [attention(model, part, h, own) + bias for h, own in zip(lanes, units)]
    else:
      z = [feed_forward(model, part, h, own, joins) + bias for h, own in zip(lanes, units)]
    joined = sum(lanes) / count + sum(z)
    new = [lane * joined + (1 - lane) * (h + one) for h, one in zip(lanes, z)]
    lanes = [h + residual * (after - h) for h, after in zip(lanes, new)]
  assert next(values, None) is None
  h = sum(lanes) / count
  h = normed(h if model.num_tokens else h.mean(1), pool['readout']['norm'])
  return h @ pool['readout']['out']['kernel'] + pool['readout']['out']['bias']


def structures(model):
  """All-on, all-off, each kind of gate off, and two with inner gates drawn at random."""
  names = gate_names(model)
  ends = {'residual': 'mlp/residual', 'sub_activation': ('join_1', 'join_2'), 'lane': 'lane'}
  found = [[True] * len(names), [False] * len(names)]
  found += [[not name.endswith(ends[kind]) for name in names] for kind in model.gates]
  keep = [name.endswith('residual') for name in names]
  found += (np.random.default_rng(1).integers(0, 2, (2, len(names))) | keep).astype(bool).tolist()
  return np.array(found)


@pytest.mark.parametrize('row', tiny.slow_but(['vit', 'text, learned'], ROWS))
def test_structures_follow_the_formulas(row, random_pool):
  model, x = make(row), ROWS[row][1]
  pool, chosen = random_pool(model, x), structures(model)
  want = np.stack([oracle(model, pool, x, bits) for bits in chosen])
  program = compiled(
    lambda v, x, bits: {
      'static': jnp.stack([static(model, v, x, s) for s in chosen[:5].tolist()]),
      'conditional': jax.lax.map(lambda s: conditional(model, v, x, s), bits),
      'masked': jax.lax.map(lambda s: masked(model, v, x, s), bits.astype(jnp.float32)),
      'shared-prefix': shared_prefix(model, v, x, chosen),
    }
  )
  for way, found in program(pool, x, chosen).items():
    np.testing.assert_allclose(found, want[: len(found)], **CLOSE, err_msg=way)
    assert len(found) == (5 if way == 'static' else len(want))
  for one, other in itertools.combinations(want, 2):
    assert np.abs(one - other).max() > 0.05


@pytest.mark.parametrize('mix', tiny.slow_but([KINDS], MIXES), ids='+'.join)
def test_every_mix_follows_the_formulas(mix, random_pool):
  model = make('text', mix)
  pool, chosen = random_pool(model, TOKENS), structures(model)
  run = compiled(lambda v, x, bits: jax.lax.map(lambda s: conditional(model, v, x, s), bits))
  want = [oracle(model, pool, TOKENS, bits) for bits in chosen]
  np.testing.assert_allclose(run(pool, TOKENS, chosen), np.stack(want), **CLOSE)


@pytest.mark.parametrize(
  ('gates', 'tokens'), [*(((kind,), 5) for kind in KINDS), (KINDS, 5), (KINDS, 2)]
)
def test_gates_per_example_and_per_token(gates, tokens, random_pool):
  """With as many tokens as lanes, too: a gate of a token must not be taken for a lane's."""
  model, x = make('text', gates, num_layers=1), TOKENS[:, :tokens]
  pool, num_gates = random_pool(model, x), len(gate_names(model))
  run = compiled(lambda v, x, g: masked(model, v, x, g))
  for shape in ((len(x),), (len(x), tokens)):
    soft = np.random.default_rng(2).uniform(size=(*shape, num_gates)).astype(np.float32)
    for values in (soft, soft.round()):
      np.testing.assert_allclose(run(pool, x, values), oracle(model, pool, x, values), **CLOSE)


@pytest.mark.parametrize('row', ['vit', 'text'])
def test_all_on_is_the_dense_network_whatever_the_kinds(row, random_pool):
  x = ROWS[row][1]
  pool = random_pool(make(row), x)
  apply = [make(row, mix, num_layers=1).apply for mix in MIXES]
  outputs = compiled(lambda v, x: [run(v, x) for run in apply])(pool, x)
  for found in outputs[1:]:
    np.testing.assert_allclose(found, outputs[0], **CLOSE)


def test_gate_names():
  layer = (
    'attention/residual',
    'attention/lane',
    'mlp/residual',
    'mlp/join_1',
    'mlp/join_2',
    'mlp/lane',
  )
  assert gate_names(make('vit', num_layers=2)) == tuple(
    f'block_0{i}/{name}' for i in range(2) for name in layer
  )
  assert gate_names(make('vit', ('sub_activation',), num_layers=2))[1:3] == (
    'block_00/mlp/join_2',
    'block_01/mlp/join_1',
  )


def ways(model):
  """A function of the pool and tokens: logits of many structures, every way, [S, B, T, C]."""
  bits = all_bits(len(gate_names(model)))
  each = np.random.default_rng(3).integers(0, 2, (*TOKENS.shape, bits.shape[1]))
  chosen = [bits[len(bits) // 3].tolist(), bits[-1].tolist()]
  return lambda v, x: {
    'static': jnp.stack([static(model, v, x, s) for s in chosen]),
    'conditional': jax.lax.map(lambda s: conditional(model, v, x, s), bits),
    'masked': jax.lax.map(lambda s: masked(model, v, x, s), bits.astype(np.float32)),
    'masked, per token': masked(model, v, x, each.astype(np.float32))[None],
    'shared-prefix': shared_prefix(model, v, x, bits),
  }


@pytest.mark.parametrize('mix', tiny.slow_but([KINDS], MIXES), ids='+'.join)
def test_a_token_changes_nothing_before_it(mix, random_pool):
  model = make('text', mix, num_layers=1)
  # Nothing may move by a bit, in programs optimised in earnest too: once, with all kinds of gates.
  run = (jax.jit if mix == KINDS else compiled)(ways(model))
  pool = random_pool(model, TOKENS)
  before = run(pool, TOKENS)
  for t in range(TOKENS.shape[1]):
    other = TOKENS.copy()
    other[:, t] = (other[:, t] + 3) % 7
    for way, after in run(pool, other).items():
      changed = np.asarray(before[way] != after).any(-1)  # [S, B, T]
      assert not changed[..., :t].any(), way
      assert changed[..., t:].any(-1).all(), way
      if way != 'masked, per token':  # all-on is last: there, every later token hears of it
        assert changed[-1, :, t:].all(), way


def test_without_the_mask_earlier_tokens_change(random_pool):
  model = make('text', ('residual',), causal=False)
  pool, other = random_pool(model, TOKENS), TOKENS.copy()
  other[:, -1] = (other[:, -1] + 3) % 7
  run = compiled(lambda v, x: static(model, v, x, '1111'))
  assert (run(pool, TOKENS) != run(pool, other)).any(-1).all()


@pytest.mark.parametrize('channels', [None, 1, 3])
def test_patches_put_together_are_the_image(channels):
  shape = (2, 6, 9) if channels is None else (2, 6, 9, channels)
  x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  rows = np.asarray(patches(jnp.asarray(x), 3))
  assert rows.shape == (2, 6, 9 * (channels or 1))
  image = np.zeros((2, 6, 9, channels or 1))
  for token, (i, j) in enumerate(itertools.product(range(2), range(3))):
    image[:, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3] = rows[:, token].reshape(2, 3, 3, -1)
  np.testing.assert_array_equal(image.reshape(shape), x)


def test_learned_positions_take_shorter_inputs_and_refuse_longer(random_pool):
  model = make('vit')  # at most 9 tokens
  pool = random_pool(model, IMAGES)
  assert pool['params']['position'].shape == (9, 8)
  run = lambda shape: jax.eval_shape(model.apply, pool, jnp.zeros(shape))
  assert run((3, 2, 6, 2)).shape == (3, 4)
  with pytest.raises(UserError) as error:
    run((3, 4, 10, 2))
  assert str(error.value) == '10 tokens: expected at most 9, max_tokens'
  rope = make('text')
  assert 'position' not in random_pool(rope, TOKENS)['params']


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_heads': 4, 'num_lanes': 3}, '4 heads over 3 lanes: expected a multiple of 3'),
    ({'hidden': 9, 'num_lanes': 2}, '9 hidden units over 2 lanes: expected a multiple of 2'),
    ({'num_heads': 3}, '8 units of width over 3 heads: expected a multiple of 3'),
    (
      {'width': 12, 'positions': 'rope'},
      '3 units over 2 halves of a head: expected a multiple of 2',
    ),
    ({'positions': 'sine'}, "positions 'sine': expected one of learned, rope"),
    ({'unit': 'silu'}, "unit 'silu': expected one of gelu, relu, swiglu"),
    (
      {'gates': ('residual', 'width')},
      "gate kind 'width' for transformer: expected some of residual, sub_activation, lane",
    ),
    (
      {'gates': ('lane', 'lane')},
      "gate kinds ('lane', 'lane') for transformer: "
      'expected some of residual, sub_activation, lane, once',
    ),
    (
      {'gates': ()},
      'gate kinds () for transformer: expected some of residual, sub_activation, lane, once',
    ),
    ({'num_chunks': 9}, '9 chunks of a width of 8: expected 1 to 8'),
    ({'num_chunks': 0}, 'num_chunks 0 with sub_activation gates: expected at least 2'),
    ({'num_lanes': 0}, 'num_lanes 0: expected at least 1'),
    ({'num_layers': 0}, 'num_layers 0: expected at least 1'),
    ({'patch_size': 0}, 'patch_size 0: expected at least 1'),
    ({'num_heads': 0}, 'num_heads 0: expected at least 1'),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(UserError) as error:
    Transformer(**VIT | {'gates': KINDS} | options)
  assert str(error.value) == message


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    ((1, 4, 5), 'patch_size 2 of images of 4 × 5: expected a size that divides both'),
    ((1, 3, 4, 1), 'patch_size 2 of images of 3 × 4: expected a size that divides both'),
    ((1, 4), 'inputs of shape (1, 4): expected images [B, height, width, channels]'),
  ],
)
def test_images_that_patches_do_not_fit(shape, message):
  with pytest.raises(UserError) as error:
    make('vit').init(jax.random.key(0), jnp.zeros(shape))
  assert str(error.value) == message


@pytest.mark.parametrize('x', [np.ones((2, 3), np.float32), np.ones((2, 3, 1), np.int32)])
def test_what_are_not_tokens(x):
  with pytest.raises(UserError, match=r'inputs of dtype .* expected tokens, integers \[B, T\]'):
    Transformer(**TEXT).init(jax.random.key(0), x)
