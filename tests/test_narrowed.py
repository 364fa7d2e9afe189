"""Narrow copies of a model, and that `grow` puts their blocks back where they came from."""

import functools

import jax
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError
from additive_jax.gates.structure import parse
from additive_jax.models import MLP, ConvNet, DenseStack, Experts, LeNet, Transformer
from additive_jax.transplant import grow, grow_optimizer, narrowed, receipt

KEY = jax.random.key(7)
ROWS = jax.random.normal(jax.random.key(1), (16, 7))
IMAGES = jax.random.normal(jax.random.key(2), (8, 4, 4, 3))
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)
LM = {'num_classes': 5, 'num_tokens': 11, 'causal': True}
ROPE = {**LM, 'positions': 'rope', 'unit': 'swiglu'}
MLP_4, VIT_3 = MLP(4, 16, 12, 5), Transformer(3, 24, 6, 10, 5)
LM_3, CONVNET = Transformer(3, 16, 4, 10, **ROPE), ConvNet((8, 6), 3, num_classes=5)
SOME = (MLP_4, 0.5, '0101')

# Model, width, structure; and by hand what comes of it, and the blocks that it becomes.
CASES = {
  'mlp': (*SOME, MLP(2, 8, 6, 5), (1, 3), ROWS),
  'mlp, depth alone': (MLP_4, 1.0, '0110', MLP(2, 16, 12, 5), (1, 2), ROWS),
  'mlp, all gates': (
    MLP(3, 16, 12, 5, gates=('residual', 'sub_activation', 'lane'), num_chunks=2),
    0.5,
    '111000111',
    MLP(2, 8, 6, 5, gates=('residual', 'sub_activation', 'lane'), num_chunks=2),
    (0, 2),
    ROWS,
  ),
  'images': (VIT_3, 0.5, '001111', Transformer(2, 12, 3, 5, 5), (1, 2), IMAGES),
  'tokens, rope, swiglu': (LM_3, 0.5, '110011', Transformer(2, 8, 2, 5, **ROPE), (0, 2), TOKENS),
  'convnet': (
    CONVNET,
    0.5,
    '101011',
    ConvNet((4, 3), 2, num_classes=5),
    (0, 2, 4, 5),
    IMAGES,
  ),
}


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, variables, x, structure=None):
  return model.apply(variables, x, structure)


@pytest.mark.parametrize('case', tiny.slow_but(['mlp'], CASES))
def test_the_large_model_grown_from_it_computes_the_same(case, random_pool):
  model, width, structure, want, where, x = CASES[case]
  small_model, place = narrowed(model, width, structure)
  assert (small_model, place) == (want, where)
  small, large = random_pool(small_model, x, 1), random_pool(model, x, 2)
  before = apply(small_model, small, x)
  assert abs(before - apply(model, large, x)).max() > 0.1
  # With gates off, what new blocks hold does not matter: their random values stay.
  depth = 'gated' if 'all gates' in case else 'zero'
  grown = grow(small_model, small, model, large, key=KEY, place=place, depth=depth)
  found = receipt(grown, small_model, small, model, x)
  assert grown.exact
  assert found.max_difference <= 1e-5
  if depth == 'zero':
    np.testing.assert_allclose(apply(model, grown.variables, x), before, atol=1e-5)
  if structure is not None:
    gated = grow(small_model, small, model, large, key=KEY, place=place, depth='gated')
    assert gated.structure() == parse(structure, len(structure))


def test_blocks_lie_exactly_where_the_structure_has_them(random_pool):
  """Of the full width, so that no unit is copied."""
  small_model, place = narrowed(MLP_4, 1.0, '0101')
  small, large = random_pool(small_model, ROWS, 1), random_pool(MLP_4, ROWS, 2)
  pool = grow(small_model, small, MLP_4, large, key=KEY, place=place).variables['params']
  for old, new in (('block_00', 'block_01'), ('block_01', 'block_03')):
    jax.tree.map(np.testing.assert_array_equal, small['params'][old], pool[new])
  for new in ('block_00', 'block_02'):
    assert not np.any(pool[new]['out']['kernel'])
    np.testing.assert_array_equal(pool[new]['in']['kernel'], large['params'][new]['in']['kernel'])
  spread = grow(small_model, small, MLP_4, large, key=KEY).variables['params']
  assert np.any(spread['block_00']['out']['kernel'])
  assert 'at 1, 3' in grow(small_model, small, MLP_4, large, key=KEY, place=place).rule


def test_moments_go_to_the_same_blocks(random_pool):
  small_model, place = narrowed(MLP_4, 1.0, '0101')
  small, large = random_pool(small_model, ROWS, 1), random_pool(MLP_4, ROWS, 2)
  grown = grow(small_model, small, MLP_4, large, key=KEY, place=place)
  state = optax.trace(0.9).init(small['params'])._replace(trace=small['params'])
  moved = grow_optimizer(grown, state).trace
  for old, new in (('block_00', 'block_01'), ('block_01', 'block_03')):
    jax.tree.map(np.testing.assert_allclose, small['params'][old], moved[new])
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(moved['block_02']))


def test_sizes_are_rounded_and_at_least_one():
  assert narrowed(MLP(2, 8, 3, 5), 0.3)[0] == MLP(2, 2, 1, 5)
  assert narrowed(MLP(2, 8, 3, 5), 0.01)[0] == MLP(2, 1, 1, 5)
  small = narrowed(VIT_3, 0.3)[0]  # 1.8 heads of 4 units
  assert (small.num_heads, small.width, small.hidden) == (2, 8, 3)
  assert narrowed(ConvNet((3, 9), 2, num_classes=5), 0.1)[0].channels == (1, 1)
  assert narrowed(MLP_4, 1.0) == (MLP_4, (0, 1, 2, 3))
  assert narrowed(MLP_4, 0.25) == (MLP(4, 4, 3, 5), (0, 1, 2, 3))
  # 3.5 is rounded to 4.
  several = narrowed(MLP(3, 10, (12, 7, 4), 5), 0.5, '011')
  assert several == (MLP(2, 5, (4, 2), 5), (1, 2))
  assert narrowed(CONVNET, 0.5, '010001') == (ConvNet((4, 3), 1, num_classes=5), (1, 5))


def test_everything_else_stays():
  model = Transformer(2, 16, 4, 12, 5, patch_size=1, max_tokens=9, num_lanes=4)
  small, _ = narrowed(model, 0.5, '0011')
  assert small == model.clone(num_layers=1, width=8, num_heads=2, hidden=6)


@pytest.mark.parametrize('form', ['0101', (False, True, False, True), 0b0101])
def test_structures_in_any_form(form):
  assert narrowed(MLP_4, 0.5, form)[1] == narrowed(MLP_4, 0.5, parse(form, 4))[1]
  assert narrowed(MLP_4, 0.5, parse(form, 4))[1] != (0, 1, 2, 3)


@pytest.mark.parametrize(
  ('model', 'width', 'structure', 'message'),
  [
    (MLP_4, 0, None, r'width 0 of a narrow copy: expected a share in \(0, 1\]'),
    (MLP_4, 1.5, None, 'width 1.5 of a narrow copy'),
    (MLP_4, -0.5, None, 'width -0.5 of a narrow copy'),
    (MLP_4, float('nan'), None, 'width nan of a narrow copy'),
    (MLP_4, 0.5, '0000', 'structure 0000: expected a block that is on in every stage'),
    (MLP_4, 0.5, '111', 'structure 111 has 3 gates: expected 4'),
    (VIT_3, 0.5, '110111', r'structure 110111 turns off part of block 1: .*\(2\) on, or all off'),
    (CONVNET, 0.5, '000111', 'structure 000111: expected a block that is on in every stage'),
    (CONVNET, 0.5, '011111', 'structure 011111 of 2 stages: expected as many blocks on in each'),
    (LeNet(num_classes=5), 0.5, None, 'LeNet: expected MLP, '),
    (VIT_3.clone(routing=Experts(2)), 0.5, None, 'Transformer with routers: expected MLP, '),
    (
      DenseStack((8, 4), num_classes=5),
      0.5,
      None,
      'a narrow copy of DenseStack: expected an MLP, a Trans',
    ),
    (MLP(2, 8, 6, 5, gates=('sub_activation',)), 0.25, None, 'chunks'),
    (MLP(2, 8, 6, 5, gates=('lane',)), 0.5, None, 'lanes'),
  ],
)
def test_what_has_no_narrow_copy(model, width, structure, message):
  with pytest.raises(UserError, match=message) as raised:
    narrowed(model, width, structure)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('small_model', 'model', 'place'),
  [
    (MLP(2, 8, 6, 5), MLP_4, (1,)),
    (MLP(2, 8, 6, 5), MLP_4, (0, 1, 2)),
    (MLP(2, 8, 6, 5), MLP_4, ()),
    (MLP(2, 8, 6, 5), MLP_4, (3, 1)),
    (MLP(2, 8, 6, 5), MLP_4, (1, 1)),
    (MLP(2, 8, 6, 5), MLP_4, (1, 4)),
    (MLP(2, 8, 6, 5), MLP_4, (-1, 1)),
    (MLP(2, 8, 6, 5), MLP_4, (0, 2, 7)),  # 7 is no block, and says nothing of where one lies
    (MLP(2, 8, 6, 5), MLP_4, (-3, 0, 2)),
    (ConvNet((4, 3), 1, num_classes=5), CONVNET, (0, 1)),
    (ConvNet((4, 3), 1, num_classes=5), CONVNET, (4, 1)),
    (ConvNet((4, 3), 1, num_classes=5), CONVNET, (1, 4, 9)),
  ],
)
def test_places_that_are_none(small_model, model, place):
  x = IMAGES if isinstance(model, ConvNet) else ROWS
  small, large = (jax.eval_shape(each.init, KEY, x) for each in (small_model, model))
  said = 'place .*: expected'
  with pytest.raises(UserError, match=said) as raised:
    grow(small_model, small, model, large, key=KEY, place=place)
  assert '\n' not in str(raised.value)
  assert str(place) in str(raised.value)
