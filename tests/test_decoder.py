"""The decoder of the Llama family: padding, packed documents, windows, groups of heads, precision
and lanes. Its numbers are those of transformers by `test_pretrained`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import near

import additive_jax as aj
from additive_jax import UserError, run
from additive_jax.models import GPT2, Decoder, ViT
from additive_jax.models.rotary import Rotary
from additive_jax.models.surrounding import Mode, in_mode
from additive_jax.parallel import lanes

SIZES = {'width': 8, 'num_heads': 4, 'hidden': 8, 'num_tokens': 11}
MODEL = Decoder(2, num_kv_heads=2, **SIZES)
RANDOM = np.random.default_rng(0)
X = RANDOM.integers(0, 11, (2, 6)).astype(np.int32)


@pytest.fixture(scope='module')
def pool(random_pool):
  return random_pool(MODEL, X)


def apply(model, pool, x, structure=None):
  return np.asarray(jax.jit(lambda v, x: model.apply(v, x, structure))(pool, x))


@pytest.mark.parametrize('model', [MODEL, GPT2(2, max_tokens=9, **SIZES)], ids=['decoder', 'gpt2'])
def test_padding_and_packing_change_nothing(model, random_pool):
  """Tokens give what they give alone, wherever padding stands and whatever stands beside them."""
  pool = random_pool(model, X)
  alone = [apply(model, pool, row[None]) for row in (X[:1, :4][0], X[1, :5])]
  padded = np.zeros((2, 6), np.int32)
  padded[0, :4], padded[1, 1:] = X[0, :4], X[1, :5]
  mask = np.array([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
  found = apply(model, pool, {'tokens': padded, 'mask': mask})
  near(found[0, :4], alone[0][0])
  near(found[1, 1:], alone[1][0])
  assert np.isfinite(found).all()
  packed = {
    'tokens': np.concatenate([X[:1, :4], X[1:, :5]], axis=1),
    'segments': np.array([[1] * 4 + [2] * 5]),
  }
  found = apply(model, pool, packed)
  near(found[0, :4], alone[0][0])
  near(found[0, 4:], alone[1][0])
  crossing = apply(model, pool, packed['tokens'])
  assert np.abs(crossing[0, 4:] - alone[1][0]).max() > 0.01


def test_a_window_ends_what_is_seen(pool):
  model = MODEL.clone(num_layers=1, window=2)
  one = {'params': {k: v for k, v in pool['params'].items() if 'layer_01' not in k}}
  before = apply(model, one, X)
  changed = X.copy()
  changed[:, 1] = (X[:, 1] + 1) % 11
  moved = np.abs(apply(model, one, changed) - before).max((0, 2)) > 1e-6
  assert moved.tolist() == [False, True, True, False, False, False]
  assert len(set(MODEL.clone(window=(0, 2)).window)) == 2


def test_groups_share_keys_and_values(pool):
  """A network whose heads have keys and values of their own, copies of those of their group."""
  whole = MODEL.clone(num_kv_heads=0)

  def spread(path, leaf):
    path = jax.tree_util.keystr(path)
    if "['kv']" in path:
      return jnp.repeat(leaf, 2, axis=2)
    if "['q']" in path:  # [D, K, G, U] to [D, N, 1, U]
      return leaf.reshape(leaf.shape[0], 4, 1, -1)
    if 'attention' in path and "['out']" in path:
      return leaf.reshape(4, 1, *leaf.shape[2:])
    return leaf

  near(apply(whole, jax.tree.map_with_path(spread, pool), X), apply(MODEL, pool, X))


def test_logits_are_float32_whatever_is_computed_with(pool):
  exact = apply(MODEL, pool, X)
  with in_mode(Mode(dtype=jnp.bfloat16)):
    rough = jax.jit(lambda v: run.static(MODEL, v, X, '1111'))(pool)
  assert rough.dtype == jnp.float32
  assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()
  # Not rounded to bfloat16 at the end, as their losses would be.
  assert (rough != rough.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.5


def test_lanes_over_a_mesh(random_pool):
  """Groups of heads and hidden units over devices: one all-reduce for each gate that is on, and the
  readout's."""
  model = Decoder(1, num_kv_heads=2, gates=('lane',), **SIZES)
  pool, mesh = random_pool(model, X), lanes.lane_mesh(2, jax.devices()[:2])
  placed, way = lanes.place_pool(model, pool, mesh, X), lanes.over_mesh(run.static, model, mesh)
  for structure, count in (('11', 2), ('10', 2), ('00', 1)):
    program = jax.jit(way, static_argnums=2).lower(placed, X, structure).compile()
    near(program(placed, X), run.static(model, pool, X, structure))
    assert len(re.findall(r' all-reduce(?:-start)?\(', program.as_text())) == count, structure


def test_costs_and_a_cut(pool, tmp_path):
  """What a structure costs, and a smaller network of it."""
  space = aj.measure(MODEL, X)
  assert space.params('1111') == sum(leaf.size for leaf in jax.tree.leaves(pool))
  assert space.flops('1111') > space.flops('0111') > space.flops('0000') > 0
  assert space.gates[1].flops > 2 * 6 * 3 * 8 * 8  # three matrices, for each of six tokens
  from additive_jax.compress import exported
  from additive_jax.compress.cutting import cut

  exported.export(cut(MODEL, pool, '1001'), tmp_path / 'cut')
  module, variables = exported.load(tmp_path / 'cut')
  near(module.apply(variables, X), apply(MODEL, pool, X, '1001'))


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Decoder(1, 8, 4, 8, 11, num_kv_heads=3), '4 heads over 3 heads of keys and values: e'),
    (lambda: Decoder(1, 8, 8, 8, 11), '1 units over 2 halves of a head: expected a multiple of 2'),
    (lambda: Decoder(1, 9, 4, 8, 11), '9 units of width over 4 heads: expected a multiple of 4'),
    (lambda: MODEL.clone(sites_by='block'), "sites_by 'block': expected one of sublayer, layer"),
    (
      lambda: MODEL.clone(sites_by='layer', gates=('lane',)),
      r"gate kinds \('lane',\) of whole layers: expected residual alone",
    ),
    (lambda: MODEL.clone(window=(1, 2, 3)), 'has 3 sizes: expected 1 or 2'),
    (lambda: Rotary(scaling=(('rope_type', 'linear'),)), 'without factor: expected a number'),
    (lambda: MODEL.clone(theta=0.5), r'rope theta 0\.5: expected more than 1'),
    (lambda: GPT2(1, 8, 2, 8, 11, activation='swish'), "activation 'swish': expected one of gelu"),
    (lambda: ViT(1, 8, 2, 8, 3, image_size=9, patch_size=2), '9 pixels over 2 patches of a side'),
    (lambda: MODEL.init(jax.random.key(0), X * 1.0), r'inputs float64 \(2, 6\): expected tokens'),
    (
      lambda: MODEL.init(jax.random.key(0), {'tokens': X, 'masks': X}),
      r"inputs .*\['masks'\] int32 \(2, 6\)",
    ),
    (
      lambda: MODEL.init(jax.random.key(0), {'tokens': X, 'mask': X, 'segments': X}),
      'expected tokens, integers',
    ),
    (
      lambda: GPT2(max_tokens=5, num_layers=1, **SIZES).init(jax.random.key(0), X),
      '6 tokens: expected at most 5, max_tokens',
    ),
  ],
)
def test_bad_networks_and_inputs(make, message):
  with pytest.raises(UserError, match=message) as caught:
    make()
  assert '\n' not in str(caught.value)
