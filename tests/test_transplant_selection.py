"""One pool of several, and small pools of large ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from additive_jax import UserError
from additive_jax.models import MLP, ConvNet, Transformer
from additive_jax.transplant import average, best, grow, merge, pack, receipt, shrink

KEY = jax.random.key(7)
ROWS = jax.random.normal(jax.random.key(1), (16, 7))
IMAGES = jax.random.normal(jax.random.key(2), (8, 4, 4, 3))
SMALL, LARGE = MLP(2, 8, 6, 5), MLP(3, 16, 12, 5)


def leaves(variables):
  return flatten_dict(variables['params'], sep='/')


@pytest.fixture(scope='module')
def pools(random_pool):
  return [random_pool(SMALL, ROWS, seed) for seed in range(3)]


@pytest.fixture(scope='module')
def large(random_pool):
  return random_pool(LARGE, ROWS, 9)


def test_average_is_the_mean_leaf_by_leaf(pools):
  mean = average(pools)
  for path, leaf in leaves(mean).items():
    each = [leaves(pool)[path] for pool in pools]
    np.testing.assert_allclose(leaf, np.mean(each, 0), rtol=1e-6, atol=1e-6)
    assert leaf.dtype == each[0].dtype
  for path, leaf in leaves(average(pools[:1])).items():
    np.testing.assert_array_equal(leaf, leaves(pools[0])[path])


def test_best_has_the_lowest_finite_loss(pools):
  assert best(pools, [0.3, 0.2, 0.4]) is pools[1]
  assert best(pools, [0.3, float('nan'), float('-inf')]) is pools[0]
  with pytest.raises(UserError, match='2 losses of 3 pools: expected one each'):
    best(pools, [1, 2])
  with pytest.raises(UserError, match=r'losses \[nan, inf, inf\]: expected at least one finite'):
    best(pools, [float('nan'), float('inf'), float('inf')])


@pytest.mark.parametrize(
  ('small_model', 'large_model', 'x'),
  [
    (SMALL, MLP(3, 16, 12, 5), ROWS),
    (Transformer(1, 8, 2, 6, 5), Transformer(2, 16, 4, 12, 5), IMAGES),
    (ConvNet((4, 6), 1, num_classes=5), ConvNet((8, 12), 1, num_classes=5), IMAGES),
  ],
)
def test_pack_of_equal_models_is_that_model(small_model, large_model, x, random_pool):
  small, large = random_pool(small_model, x, 1), random_pool(large_model, x, 2)
  packed = pack(small_model, [small, small], large_model, large, key=KEY)
  found = receipt(packed, small_model, small, large_model, x)
  assert found.max_difference < 1e-5
  assert not found.exact
  assert '(not exact)' in str(found)


def test_pack_puts_models_side_by_side(pools, large):
  packed = pack(SMALL, pools[:2], LARGE, large, key=KEY)
  assert packed.rule == 'pack 2 × stream 8→16, hidden 6→12, depth 2→3'
  kernel = packed.variables['params']['block_00']['in']['kernel']
  for i, pool in enumerate(pools[:2]):
    own = slice(8 * i, 8 * i + 8), slice(6 * i, 6 * i + 6)
    np.testing.assert_array_equal(kernel[own], pool['params']['block_00']['in']['kernel'])
  assert not kernel[:8, 6:].any()
  assert not kernel[8:, :6].any()
  readout = packed.variables['params']['readout']['out']
  first, second = (pool['params']['readout']['out'] for pool in pools[:2])
  np.testing.assert_allclose(readout['kernel'][:8], first['kernel'] / 2, rtol=1e-6)
  np.testing.assert_allclose(readout['bias'], (first['bias'] + second['bias']) / 2, rtol=1e-5)
  # Not that of either model, but nearer to their mean than to each.
  logits = [SMALL.apply(pool, ROWS) for pool in pools[:2]]
  found = LARGE.apply(packed.variables, ROWS)
  distance = lambda other: float(jnp.abs(found - other).mean())
  assert 0.01 < distance((logits[0] + logits[1]) / 2) < 0.5 * min(map(distance, logits))


def test_pack_keeps_the_strongest(pools, random_pool):
  """Three models of 8 and 6 units into 16 and 12."""
  model = MLP(2, 24, 7, 5)
  large = random_pool(model, ROWS, 9)
  scores = [{'block_00/hidden': np.arange(6) + bonus} for bonus in (0.5, 10, 0)]
  packed = pack(SMALL, pools, model, large, key=KEY, scores=scores)
  assert packed.copies['block_00/hidden'].source.tolist() == [5, *range(6, 12)]
  strength = []
  for pool in pools:
    block = pool['params']['block_01']
    ins = np.sqrt((block['in']['kernel'] ** 2).sum(0) + block['in']['bias'] ** 2)
    strength.append(ins * np.sqrt((block['out']['kernel'] ** 2).sum(1)))
  want = np.sort(np.argsort(np.concatenate(strength))[-7:])
  np.testing.assert_array_equal(packed.copies['block_01/hidden'].source, want)
  single = pack(SMALL, pools[:1], SMALL, pools[1], key=KEY)
  for path, leaf in leaves(single.variables).items():
    np.testing.assert_array_equal(leaf, leaves(pools[0])[path])


def test_pools_that_do_not_go_together(pools, large, random_pool):
  with pytest.raises(UserError, match='no pools: expected at least one'):
    average([])
  other = random_pool(MLP(2, 8, 7, 5), ROWS)
  for join in (average, lambda pools: pack(SMALL, pools, LARGE, large, key=KEY)):
    with pytest.raises(UserError, match=r"pool 1 with leaf .*'in'.* of shape \(7,\): expected"):
      join([pools[0], other])
  with pytest.raises(UserError, match='1 scores of 2 pools: expected one each'):
    pack(SMALL, pools[:2], LARGE, large, key=KEY, scores=[{}])


def test_merge_brings_trained_copies_together(pools, large):
  """Whatever the copies have become."""
  grown = grow(SMALL, pools[0], LARGE, large, key=KEY)
  moved = jax.tree.map(lambda leaf: leaf + 0.1, grown.variables)
  back = leaves(merge(grown, moved).variables)
  old = leaves(pools[0])
  # What is read is summed over two copies, of stream or hidden units; what is written is averaged.
  np.testing.assert_allclose(back['readout/out/kernel'], old['readout/out/kernel'] + 0.2, atol=1e-5)
  np.testing.assert_allclose(back['block_00/out/bias'], old['block_00/out/bias'] + 0.1, atol=1e-5)
  np.testing.assert_allclose(back['block_01/in/kernel'], old['block_01/in/kernel'] + 0.2, atol=1e-5)
  with pytest.raises(UserError, match='a pool without block_02: expected the pool of the model'):
    merge(grown, pools[0])
  mixed = {'params': {**moved['params'], 'block_00': pools[0]['params']['block_00']}}
  with pytest.raises(UserError, match=r'block_00/in/bias: found \(6,\), expected \(12,\) as in'):
    merge(grown, mixed)


def test_shrink_keeps_the_strongest(random_pool):
  model, small_model = MLP(2, 6, 5, 3), MLP(1, 4, 2, 3)
  large = random_pool(model, ROWS, 3)
  shapes = jax.eval_shape(small_model.init, jax.random.key(0), ROWS)
  scores = {'stream': [3, 9, 1, 5, 0, 4], 'block_00/hidden': [0, 1, 5, 2, 7]}
  shrunk = shrink(model, large, small_model, shapes, scores=scores)
  assert shrunk.rule == 'shrink stream 6→4, hidden 5→2, depth 2→1, strongest'
  old, new = leaves(large), leaves(shrunk.variables)
  assert jax.tree.map(jnp.shape, shrunk.variables) == jax.tree.map(jnp.shape, shapes)
  stream, hidden = np.array([0, 1, 3, 5]), np.array([2, 4])
  np.testing.assert_array_equal(new['embed/kernel'], old['embed/kernel'][:, stream])
  want = old['block_00/in/kernel'][np.ix_(stream, hidden)]
  np.testing.assert_array_equal(new['block_00/in/kernel'], want)
  np.testing.assert_array_equal(new['readout/norm/scale'], old['readout/norm/scale'][stream])
  found = receipt(shrunk, model, large, small_model, ROWS)
  assert found.max_difference > 0.1
  assert not found.exact
  for scores, message in (
    ({'block_07/hidden': [1.0]}, 'scores of block_07/hidden: expected spaces out of block_00/hidd'),
    ({'stream': np.ones(5)}, r'scores of stream of shape \(5,\): expected \(6,\), one a unit'),
  ):
    with pytest.raises(UserError, match=message):
      shrink(model, large, small_model, shapes, scores=scores)


def test_shrink_drops_what_does_nothing(random_pool):
  """Hidden units, heads and blocks without output can go, and then it is exact."""
  x = IMAGES
  model, small_model = Transformer(2, 8, 4, 9, 5), Transformer(1, 8, 4, 6, 5)
  large = random_pool(model, x, 3)
  pool = jax.tree.map(jnp.array, large['params'])
  pool['block_00__mlp']['out']['kernel'] = pool['block_00__mlp']['out']['kernel'].at[2:5].set(0)
  for site in ('attention', 'mlp'):
    pool[f'block_01__{site}']['out'] = jax.tree.map(
      jnp.zeros_like, pool[f'block_01__{site}']['out']
    )
  small = jax.eval_shape(small_model.init, jax.random.key(0), x)
  shrunk = shrink(model, {'params': pool}, small_model, small)
  assert receipt(shrunk, model, {'params': pool}, small_model, x).max_difference < 1e-5
  assert str(shrunk.structure('1101')) == '11'
