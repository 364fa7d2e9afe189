"""A grown model computes what the small one did, in all its structures, and its copies part."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax.traverse_util import flatten_dict

from additive_jax import Additive, UserError, conditional
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.models import MLP, ConvNet, Transformer
from additive_jax.transplant import Axis, Wiring, grow, grow_optimizer, merge, receipt, shrink

KEY = jax.random.key(7)
ROWS = jax.random.normal(jax.random.key(1), (16, 7))
IMAGES = jax.random.normal(jax.random.key(2), (8, 4, 4, 3))
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)
LM = {'num_classes': 5, 'num_tokens': 11, 'causal': True}
ROPE = {**LM, 'positions': 'rope', 'unit': 'swiglu'}
VIT = Transformer(2, 8, 2, 12, 5)
ALL_KINDS = {'gates': ('residual', 'sub_activation', 'lane'), 'num_chunks': 4, 'num_lanes': 2}


class RmsBlock(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, h):
    x = nn.tanh(nn.Dense(self.hidden, name='in')(nn.RMSNorm(name='norm')(h)))
    return nn.Dense(h.shape[-1], name='out')(x)


class RmsNet(Additive):
  """A network of one's own, with RMSNorm, whose wiring it tells itself."""

  width: int
  hidden: int
  depth: int = 2

  def setup(self):
    self.stem = nn.Dense(self.width, name='stem')
    self.sites = [RmsBlock(self.hidden, name=f'block_{i}') for i in range(self.depth)]
    self.norm = nn.RMSNorm(name='norm')
    self.head = nn.Dense(3, name='head')

  def embed(self, x):
    return self.stem(x)

  def readout(self, h):
    return self.head(self.norm(h))

  def wiring(self):
    reads, writes = Axis('reads', 'stream'), Axis('writes', 'stream')
    axes = {
      'stem/kernel': (None, writes),
      'stem/bias': (writes,),
      'norm/scale': (Axis('scale', 'stream'),),
      'head/kernel': (reads, None),
      'head/bias': (None,),
    }
    blocks = [f'block_{i}' for i in range(self.depth)]
    for name in blocks:
      axes |= {
        f'{name}/norm/scale': (Axis('scale', 'stream'),),
        f'{name}/in/kernel': (reads, Axis('writes', f'{name}/hidden')),
        f'{name}/in/bias': (Axis('writes', f'{name}/hidden'),),
        f'{name}/out/kernel': (Axis('reads', f'{name}/hidden'), writes),
        f'{name}/out/bias': (writes,),
      }
    return Wiring(axes, {'stream': 'rms'}, (tuple((name,) for name in blocks),))


CASES = {
  'mlp, copies': (MLP(2, 8, 6, 5), MLP(2, 16, 18, 5), ROWS),
  'mlp, pads': (MLP(2, 8, 6, 5), MLP(2, 13, 6, 5), ROWS),
  'mlp, copies and pads, uneven hidden': (MLP(2, 8, (6, 3), 5), MLP(2, 21, (7, 11), 5), ROWS),
  'mlp, depth': (MLP(2, 8, 6, 5), MLP(5, 8, 6, 5), ROWS),
  'mlp, width and depth': (MLP(2, 8, 6, 5), MLP(3, 20, 13, 5), ROWS),
  'images, more heads': (VIT, Transformer(2, 16, 4, 12, 5), IMAGES),
  'images, larger heads': (VIT, Transformer(2, 24, 2, 12, 5), IMAGES),
  'images, all at once': (VIT, Transformer(3, 21, 3, 29, 5), IMAGES),
  'images, swiglu': (VIT.clone(unit='swiglu'), Transformer(3, 12, 2, 17, 5, unit='swiglu'), IMAGES),
  'tokens, learned': (Transformer(2, 8, 2, 12, **LM), Transformer(3, 30, 3, 17, **LM), TOKENS),
  'tokens, rope, swiglu': (
    Transformer(1, 8, 2, 12, **ROPE),
    Transformer(3, 20, 5, 17, **ROPE),
    TOKENS,
  ),
  'convnet': (ConvNet((4, 6), 1, num_classes=5), ConvNet((8, 17), 2, num_classes=5), IMAGES),
  'rms norm': (RmsNet(6, 5), RmsNet(15, 8, 3), ROWS),
}


@pytest.fixture(scope='module')
def start(random_pool):
  """A random pool of a small model and another of a large one, for a case."""
  return lambda small_model, large_model, x: (
    random_pool(small_model, x, 1),
    random_pool(large_model, x, 2),
  )


apply = functools.partial(jax.jit, static_argnums=(0, 3))(
  lambda model, variables, x, structure=None: model.apply(variables, x, structure)
)


def leaves(variables):
  return flatten_dict(variables['params'], sep='/')


QUICK = ('mlp, copies', 'mlp, width and depth', 'images, more heads', 'convnet', 'rms norm')


@pytest.mark.parametrize('case', tiny.slow_but(QUICK, CASES))
def test_grow_is_exact(case, start):
  small_model, large_model, x = CASES[case]
  small, large = start(*CASES[case])
  assert float(jnp.ptp(apply(small_model, small, x), axis=0).max()) > 0.1
  for depth in ('zero', 'gated'):
    grown = grow(small_model, small, large_model, large, key=KEY, depth=depth)
    found = receipt(grown, small_model, small, large_model, x)
    # Measured: 4e-6 at most, for logits of about 3.
    assert found.max_difference <= 1e-5
    assert found.exact
    if grown.pairs.depths[0] == grown.pairs.depths[1]:
      break
  shapes = lambda pool: {path: (leaf.shape, leaf.dtype) for path, leaf in leaves(pool).items()}
  assert shapes(grown.variables) == shapes(large)
  # The way back: shares sum to 1 to rounding.
  back = merge(grown, grown.variables)
  for path, leaf in leaves(back.variables).items():
    np.testing.assert_allclose(leaf, leaves(small)[path], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  'case',
  tiny.slow_but(['rms norm'], ['mlp, width and depth', 'images, all at once', 'rms norm']),
)
def test_growth_is_exact_in_float64_whatever_the_epsilon(case, start):
  """Streams of a variance below the norms' epsilon."""
  small_model, large_model, x = CASES[case]
  if x.ndim == 4:  # images are cast to float32
    large_model, small_model = (m.clone(num_tokens=11) for m in (large_model, small_model))
    x = TOKENS
  with jax.enable_x64(True):
    pools = start(small_model, large_model, x)
    small, large = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), pools)
    small = jax.tree.map_with_path(
      lambda path, leaf: leaf * (1 if 'norm' in str(path) or 'in' in str(path) else 1e-3), small
    )
    grown = grow(small_model, small, large_model, large, key=KEY)
    # 1e-16 times what the norms multiply by, 1e3.
    assert receipt(grown, small_model, small, large_model, x).max_difference < 1e-11
    assert float(jnp.ptp(apply(small_model, small, x))) > 1e-4


def inner_cases():
  for depth in ('zero', 'gated'):
    lanes = {'gates': ('residual', 'lane')}
    yield MLP(2, 8, 6, 5, **ALL_KINDS), MLP(3, 16, 10, 5, **ALL_KINDS), ROWS, depth
    yield MLP(2, 8, 6, 5, **lanes), MLP(3, 13, 10, 5, **lanes), ROWS, depth
    yield (
      Transformer(1, 8, 2, 4, **LM, **lanes),
      Transformer(2, 20, 4, 6, **LM, **lanes),
      TOKENS,
      depth,
    )
  conv = {'gates': ('residual', 'sub_activation'), 'num_chunks': 2, 'num_classes': 5}
  yield ConvNet((4, 6), 1, **conv), ConvNet((8, 12), 2, **conv), IMAGES, 'zero'


@pytest.mark.parametrize('case', list(inner_cases()))
def test_other_structures_agree(case, start):
  small_model, large_model, x, depth = case
  small, large = start(small_model, large_model, x)
  grown = grow(small_model, small, large_model, large, key=KEY, depth=depth)
  count = len(small_model.space)
  run = jax.jit(conditional, static_argnums=0)
  draws = np.random.default_rng(0).integers(0, 2, (8, count)).astype(bool)
  small_logits = [run(small_model, small, x, jnp.asarray(bits)) for bits in draws]
  for bits, logits in zip(draws, small_logits):
    structure = jnp.asarray(np.array(grown.structure(bits)))
    found = run(large_model, grown.variables, x, structure)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)
  assert max(float(jnp.abs(other - small_logits[0]).max()) for other in small_logits) > 0.1


def test_new_blocks_in_structures(start):
  small_model, large_model = MLP(2, 8, 6, 5, **ALL_KINDS), MLP(4, 8, 6, 5, **ALL_KINDS)
  small, large = start(small_model, large_model, ROWS)
  structure = '11011' + '01111'
  zero = grow(small_model, small, large_model, large, key=KEY)
  assert str(zero.structure()) == '1' * 20
  assert str(zero.structure('1' * 9 + '0')) == '11111' + '11110' + '11110' + '11110'
  assert str(zero.structure(structure)) == '11011' + '11111' + '01111' + '11111'
  gated = grow(small_model, small, large_model, large, key=KEY, depth='gated')
  assert str(gated.structure()) == '11111' + '00000' + '11111' + '00000'
  end = grow(small_model, small, large_model, large, key=KEY, depth='gated', place='end')
  assert str(end.structure()) == '11111' * 2 + '00000' * 2
  with pytest.raises(UserError, match='structure 11 has 2 gates: expected 10'):
    end.structure('11')
  kernel = lambda pool, block: pool['params'][block]['out']['kernel']
  for grown, blocks in ((zero, ('00', '02')), (end, ('00', '01'))):
    for old, new in zip(('00', '01'), blocks):
      same = kernel(grown.variables, f'block_{new}'), kernel(small, f'block_{old}')
      np.testing.assert_array_equal(*same)
  assert not kernel(zero.variables, 'block_01').any()
  assert not zero.variables['params']['block_01']['out']['bias'].any()
  np.testing.assert_array_equal(kernel(gated.variables, 'block_01'), kernel(large, 'block_01'))


def loss_of(model, x):
  labels = jnp.arange(len(x)) % 5

  def loss(variables):
    logits = model.apply(variables, x).reshape(len(x), -1, 5).mean(1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  return loss


def apart(variables):
  """How far the two copies of each hidden unit and of each unit of the stream are apart."""
  kernel = variables['params']['block_00']['in']['kernel']
  embed = variables['params']['embed']['kernel']
  return [float(jnp.abs(a[:, ::2] - a[:, 1::2]).max()) for a in (kernel, embed)]


@pytest.mark.parametrize('optimizer', [optax.sgd(0.1), optax.adam(0.01)], ids=['sgd', 'adam'])
def test_copies_part_unless_their_shares_are_equal(optimizer, start):
  small_model, large_model = MLP(1, 8, 6, 5), MLP(1, 16, 12, 5)
  small, large = start(small_model, large_model, ROWS)
  step = jax.jit(jax.grad(loss_of(large_model, ROWS)))
  ends = {}
  for unequal in (0.0, 0.5):
    pool = grow(small_model, small, large_model, large, key=KEY, unequal=unequal).variables
    state = optimizer.init(pool)
    begins = apart(pool)
    for _ in range(4):
      update, state = optimizer.update(step(pool), state)
      pool = optax.apply_updates(pool, update)
    ends[unequal] = begins, apart(pool)
  # Shares begin unequal only where units are read: the rows of the stream differ, not the columns.
  assert ends[0.5][0] == [0, 0]
  assert min(ends[0.5][1]) > 1e-3
  assert max(ends[0.0][1]) < 1e-5


def test_copies_of_queries_and_keys_are_no_multiples_after_a_step(start):
  small_model, large_model = Transformer(1, 4, 1, 4, 5), Transformer(1, 8, 1, 4, 5)
  small, large = start(small_model, large_model, IMAGES)
  pool = grow(small_model, small, large_model, large, key=KEY).variables
  gradient = jax.jit(jax.grad(loss_of(large_model, IMAGES)))(pool)
  after = jax.tree.map(lambda leaf, g: leaf - 0.1 * g, pool, gradient)

  def parallel(variables):
    q = variables['params']['block_00__attention']['qkv']['kernel'][:, 0, 0]
    a, b = q[:, ::2], q[:, 1::2]
    return (a * b).sum(0) / jnp.linalg.norm(a, axis=0) / jnp.linalg.norm(b, axis=0)

  np.testing.assert_allclose(parallel(pool), 1, atol=1e-6)
  assert float(parallel(after).min()) < 1 - 1e-6


def test_pads_start_neutral_and_learn(start):
  small_model, large_model, x = CASES['mlp, pads']
  small, large = start(*CASES['mlp, pads'])
  pool = grow(small_model, small, large_model, large, key=KEY).variables
  h = large_model.apply(pool, x, method=lambda module, x: module.embed(x))
  np.testing.assert_allclose(h[:, 8:], jnp.repeat(h.mean(1, keepdims=True), 5, 1), atol=1e-6)
  rows = lambda variables: variables['params']['block_00']['in']['kernel'][8:]
  np.testing.assert_array_equal(rows(pool), rows(large))
  gradient = jax.jit(jax.grad(loss_of(large_model, x)))(pool)['params']
  assert float(jnp.abs(gradient['embed']['kernel'][:, 8:]).min()) > 1e-5


def test_receipt_is_one_line(start):
  small_model, large_model, x = CASES['mlp, width and depth']
  small, large = start(*CASES['mlp, width and depth'])
  grown = grow(small_model, small, large_model, large, key=KEY)
  found = receipt(grown, small_model, small, large_model, x)
  assert found.num_examples == 16
  assert str(found) == (
    'grow stream 8→20, hidden 6→13, depth 2→3 (zero, spread) (exact): max |Δoutput| '
    f'{found.max_difference:.2g} of outputs up to {found.max_logit:.2g} on 16 examples'
  )
  # It measures: a wrong pool does not pass for the rule it was made by.
  wrong = dataclasses.replace(grown, variables=large)
  assert receipt(wrong, small_model, small, large_model, x).max_difference > 0.1
  assert receipt(grown, small_model, small, large_model, x, '01').max_difference < 1e-5
  same = grow(small_model, small, small_model, small, key=KEY)
  assert same.rule == 'grow same sizes'
  with pytest.raises(UserError, match='structure 011 has 3 gates: expected 2'):
    receipt(grown, small_model, small, large_model, x, '011')


def test_shares_depend_on_the_key_alone(start):
  small_model, large_model, _ = CASES['mlp, copies']
  small, large = start(*CASES['mlp, copies'])
  kernel = lambda key: grow(small_model, small, large_model, large, key=key).variables['params'][
    'block_00'
  ]['in']['kernel']
  np.testing.assert_array_equal(kernel(KEY), kernel(KEY))
  ratio = kernel(KEY)[::2] / (kernel(KEY)[::2] + kernel(KEY)[1::2])
  assert float(jnp.abs(kernel(KEY) - kernel(jax.random.key(8))).max()) > 0.01
  # One share for each copy of a unit, in [0.25, 0.75] with the default.
  np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-4)
  assert 0.25 <= float(ratio.min()) < 0.45
  assert float(ratio.max()) <= 0.75
  shares = grow(small_model, small, large_model, large, key=KEY).copies
  for space, own in shares.items():
    np.testing.assert_allclose(np.bincount(own.source, own.shares), 1, err_msg=space)


def test_checkpoints_go_into_models_of_another_size(start, tmp_path):
  """A small checkpoint into a large model, with its optimizer; and a large one into a small."""
  small_model, large_model, x = CASES['images, all at once']
  small, large = start(small_model, large_model, x)
  optimizer = optax.adam(1e-3)

  def through_disk(name, model, variables):
    state = optimizer.init(variables['params'])
    with Checkpointer(tmp_path / name, identity={'model': name}) as checkpoints:
      checkpoints.save(3, {'params': variables['params'], 'opt_state': state}, wait=True)
      shapes = jax.eval_shape(model.init, jax.random.key(0), x)['params']
      template = {'params': shapes, 'opt_state': jax.eval_shape(optimizer.init, shapes)}
      return checkpoints.restore(template).state

  state = through_disk('small', small_model, small)
  grown = grow(small_model, {'params': state['params']}, large_model, large, key=KEY)
  assert receipt(grown, small_model, small, large_model, x).max_difference < 1e-5
  moved = grow_optimizer(grown, state['opt_state'])
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(moved) == shapes(optimizer.init(grown.variables['params']))

  state = through_disk('large', large_model, grown.variables)
  back = merge(grown, {'params': state['params']})
  found = receipt(back, large_model, grown.variables, small_model, x)
  assert found.max_difference < 1e-5
  template = jax.eval_shape(small_model.init, jax.random.key(0), x)
  shrunk = shrink(large_model, {'params': state['params']}, small_model, template)
  assert shapes(shrunk.variables) == shapes(template)
