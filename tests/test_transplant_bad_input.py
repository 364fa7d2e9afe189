"""What cannot be transplanted is refused in one line, and nothing is touched."""

import functools

import jax
import numpy as np
import pytest

from additive_jax import UserError
from additive_jax.models import MLP, ConvNet, DenseStack, Experts, LeNet, Transformer
from additive_jax.transplant import grow, shrink

KEY = jax.random.key(7)
ROWS, IMAGES = np.ones((2, 7), np.float32), np.ones((2, 4, 4, 3), np.float32)
TOKENS = np.ones((2, 6), np.int32)
LM = {'num_classes': 5, 'num_tokens': 11, 'causal': True}
VIT = Transformer(2, 8, 2, 12, 5)
ALL_KINDS = {'gates': ('residual', 'sub_activation', 'lane'), 'num_chunks': 4, 'num_lanes': 2}


def lm(*sizes, **options):
  return Transformer(*sizes, **(LM | options))


MLP_2 = MLP(2, 8, 6, 5)
BAD = [
  (MLP_2, MLP(2, 6, 6, 5), ROWS, r'leaf block_00/in/kernel of shape \(8, 6\) into shape \(6, 6\)'),
  (MLP_2, MLP(2, 6, 6, 5), ROWS, 'expected at least 8 in place of 6'),
  (MLP_2, MLP(2, 8, (6, 5), 5), ROWS, r'block_01/in/bias of shape \(6,\) into shape \(5,\)'),
  (MLP_2, MLP(2, 9, 6, 4), ROWS, r'leaf readout/out/bias of shape \(5,\) into shape \(4,\)'),
  (MLP_2, MLP(1, 8, 6, 5), ROWS, r'2 blocks \(block_00 to block_01\) into 1: expected at least as'),
  (
    MLP_2,
    MLP(2, 8, 6, 5, **ALL_KINDS),
    ROWS,
    r"gates \('residual',\) into one with \('res",
  ),
  (
    MLP(2, 8, 6, 5, **ALL_KINDS),
    MLP(2, 8, 6, 5, **(ALL_KINDS | {'num_lanes': 3})),
    ROWS,
    'MLP with num_lanes 2 into one with 3: expected the same',
  ),
  (VIT, VIT.clone(num_classes=7), IMAGES, r'\(5,\) into shape \(7,\): expected 7 to be 5'),
  (VIT, VIT.clone(patch_size=1), IMAGES, r'embed/kernel of shape \(12, 8\) into shape \(3, 8\)'),
  (VIT, VIT.clone(max_tokens=9), IMAGES, r'position of shape \(256, 8\) into shape \(9, 8\)'),
  (VIT, VIT.clone(unit='swiglu'), IMAGES, "Transformer with unit 'gelu' into one with 'swiglu'"),
  (VIT, VIT.clone(causal=True), IMAGES, 'Transformer with causal False into one with True'),
  (lm(1, 8, 2, 4), lm(1, 8, 2, 4, num_tokens=12), TOKENS, r'embed/embedding of shape \(11, 8\)'),
  (
    lm(1, 8, 2, 4, positions='rope'),
    lm(1, 16, 2, 4, positions='rope'),
    TOKENS,
    r'leaf block_00__attention/out/kernel of shape \(2, 4, 8\) into shape \(2, 8, 16\): expected 8 '
    'to be 4, on an axis that cannot change',
  ),
  (lm(1, 8, 2, 4), lm(1, 8, 2, 4, positions='rope'), TOKENS, "with positions 'learned' into one"),
  (
    lm(1, 8, 4, 4),
    lm(1, 9, 3, 4),
    TOKENS,
    r'\(4, 2, 8\) into shape \(3, 3, 9\): expected at least 4',
  ),
  (
    ConvNet((4, 6), 1, num_classes=5),
    ConvNet((4, 6, 8), 1, num_classes=5),
    IMAGES,
    '2 stages into 3: expected as many',
  ),
  (
    DenseStack((6,), num_classes=5, num_chunks=2),
    DenseStack((8, 9, 7), num_classes=5, num_chunks=2),
    ROWS,
    r'DenseStack with hidden layers \(6,\) into one with \(8, 9, 7\): expected as many layers',
  ),
  (MLP_2, VIT, ROWS, 'transplant of MLP into Transformer: expected the same kind of model'),
  (LeNet(num_classes=5), LeNet(num_classes=5), IMAGES, 'transplant of LeNet: expected MLP, '),
  (
    VIT.clone(routing=Experts(2)),
    VIT.clone(routing=Experts(2)),
    IMAGES,
    'transplant of Transformer with routers: expected MLP, ConvNet, Transformer without',
  ),
]


@pytest.mark.parametrize(('small_model', 'large_model', 'x', 'message'), BAD)
def test_models_that_do_not_fit(small_model, large_model, x, message):
  key = jax.random.key(0)
  pool = lambda model, x: jax.eval_shape(model.init, key, x)
  small = pool(small_model, x)
  large = pool(large_model, IMAGES if isinstance(large_model, Transformer) and x is ROWS else x)
  with pytest.raises(UserError, match=message) as raised:
    grow(small_model, small, large_model, large, key=KEY)
  assert '\n' not in str(raised.value)


def test_bad_options_leave_everything_as_it_was(random_pool):
  small_model, large_model, x = MLP_2, MLP(3, 20, 13, 5), ROWS
  pools = (random_pool(small_model, x, 1), random_pool(large_model, x, 2))
  before = jax.tree.map(np.array, pools)
  small, large = pools
  make = functools.partial(grow, small_model, small, large_model, large, key=KEY)
  lanes, two = MLP(2, 8, 6, 5, gates=('lane',)), MLP(2, 20, 13, 5)
  pool = {'params': dict(small['params'])}
  del pool['params']['block_01']
  for call, message in (
    (lambda: make(depth='none'), "depth 'none': expected one of zero, gated"),
    (lambda: make(place='start'), "place 'start': expected one of spread, end"),
    (lambda: make(unequal=1.0), r'unequal 1.0: expected a number in \[0, 1\)'),
    (
      lambda: grow(
        lanes,
        small,
        lanes.clone(num_blocks=3),
        random_pool(MLP(3, 8, 6, 5), x),
        key=KEY,
        depth='gated',
      ),
      r"depth 'gated' with a new site block_02 of gates \('lane',\): expected a residual gate",
    ),
    (lambda: grow(small_model, small['params'], large_model, large, key=KEY), 'expected .*params'),
    (lambda: grow(small_model, pool, large_model, large, key=KEY), 'a pool without block_01: exp'),
    (lambda: grow(large_model, large, small_model, small, key=KEY), 'expected at least as many'),
    (lambda: shrink(small_model, small, large_model, large), 'expected at most as many'),
    (
      lambda: grow(two, large, two, random_pool(two, x), key=KEY),
      'leaf block_02/in/bias of the old MLP: expected a place in the new pool',
    ),
  ):
    with pytest.raises(UserError, match=message):
      call()
  jax.tree.map(np.testing.assert_array_equal, before, pools)
  make()
  jax.tree.map(np.testing.assert_array_equal, before, pools)
