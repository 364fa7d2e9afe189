"""What is cut out computes what the masked network does, is smaller, and has no gates."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax.traverse_util import flatten_dict

from additive_jax import Additive, UserError, measure
from additive_jax.compress.cutting import cost, cut, logits, make, receipt, spaces, used
from additive_jax.models import DNA, MLP, VGG, ConvNet, DenseStack, LeNet, Routing, Transformer

ROWS = jax.random.normal(jax.random.key(1), (16, 7))
IMAGES = jax.random.normal(jax.random.key(2), (8, 4, 4, 3))
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)
LM = {'num_classes': 5, 'num_tokens': 11, 'causal': True}
KINDS = {'gates': ('residual', 'sub_activation', 'lane'), 'num_chunks': 3, 'num_lanes': 2}
CHUNKED = {'gates': ('residual', 'sub_activation'), 'num_chunks': 2}
EXACT = 1e-5  # of logits of about 1, in float32: some 50 roundings

# A model, its inputs, a structure, and the spaces of which nothing is kept.
CASES = {
  'mlp': (MLP(3, 8, (12, 6, 12), 5), ROWS, '110', ['block_01/hidden']),
  'mlp, chunks and lanes': (MLP(2, 8, 12, 5, **KINDS), ROWS, '10111010', []),
  'mlp, a lane and a block without units': (MLP(2, 8, 6, 5, **KINDS), ROWS, '11101110', None),
  'dense stack': (DenseStack((30, 10), num_classes=5, num_chunks=2), ROWS, '1', []),
  'dense stack, chunks': (DenseStack((9, 8, 7), num_classes=5, num_chunks=3), ROWS, '1001', []),
  'images': (Transformer(2, 8, 4, 12, 5), IMAGES, '1011', ['block_00__mlp/hidden']),
  'tokens, rope, swiglu': (
    Transformer(2, 8, 4, 12, positions='rope', unit='swiglu', **LM),
    TOKENS,
    '1111',
    ['block_00__attention/heads', 'block_01__mlp/hidden'],
  ),
  'tokens, chunks and lanes': (
    Transformer(1, 8, 4, 12, **LM, **KINDS),
    TOKENS,
    '101010',
    [],
  ),
  'convnet': (
    ConvNet((8, 6), 1, num_classes=5, **CHUNKED),
    IMAGES,
    '1011',
    ['stage_01__block_00/hidden'],
  ),
}


def half(model, variables, without=()):
  """About half of the units of every space, and none of those of `without`; None: the first lane's
  and the whole of block_01's."""
  keep = {}
  for name, size in spaces(model, variables).items():
    keep[name] = np.arange(size) % 3 != 1
    if without is None and name.startswith('block'):
      keep[name] = (np.arange(size) >= size // 2) & (name != 'block_01/hidden')
    elif name in (without or ()):
      keep[name] = np.zeros(size, bool)
  return keep


@pytest.mark.parametrize('case', tiny.slow_but(['mlp', 'dense stack, chunks', 'images'], CASES))
def test_cut_is_exact_and_smaller(case, random_pool):
  model, x, structure, without = CASES[case]
  variables = random_pool(model, x)
  keep = half(model, variables, without)
  found = cut(model, variables, structure, keep)
  assert receipt(found, model, variables, x).max_difference <= EXACT
  # What is cut would have mattered.
  whole = logits(model, variables, x, found.structure)
  assert jnp.abs(logits(found.model, found.variables, x) - whole).max() > 1e-2
  before, after = cost(model, variables, x), cost(found.model, found.variables, x)
  assert after.flops < cost(model, variables, x, structure).flops
  assert after.bytes < before.bytes
  # Its config is all that the module is.
  again = make(json.loads(json.dumps(found.config)))
  assert again == found.model
  shapes = jax.eval_shape(again.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, found.variables)


def test_cut_against_a_narrow_network(random_pool):
  """An MLP cut by hand: the library's own of other sizes, with slices of the pool."""
  model, small = MLP(2, 8, 12, 5), MLP(2, 8, (7, 3), 5)
  variables = random_pool(model, ROWS)
  pool = jax.tree.map(lambda leaf: leaf, variables['params'])
  for name, size in (('block_00', 7), ('block_01', 3)):
    block = pool[name]
    block['in'] = jax.tree.map(lambda leaf, size=size: leaf[..., :size], block['in'])
    block['out'] = {'kernel': block['out']['kernel'][:size], 'bias': block['out']['bias']}
  keep = {'block_00/hidden': np.arange(12) < 7, 'block_01/hidden': np.arange(12) < 3}
  found = cut(model, variables, keep=keep)
  expected = small.apply({'params': pool}, ROWS)
  assert jnp.abs(found.model.apply(found.variables, ROWS) - expected).max() <= EXACT
  sizes = [leaf.size for leaf in jax.tree.leaves(found.variables)]
  assert sum(sizes) == sum(leaf.size for leaf in jax.tree.leaves(pool))


def test_what_is_left_of_a_branch(random_pool):
  """Off: nothing. Without units: its output bias, if it has one."""
  model = Transformer(2, 8, 4, 12, 5)
  variables = random_pool(model, IMAGES)
  none = {
    'block_00__attention/heads': np.zeros(4, bool),
    'block_01__mlp/hidden': np.zeros(12, bool),
  }
  found = cut(model, variables, '1011', none)
  kinds = [entry['kind'] for entry in found.config['steps']]
  assert kinds == [
    'patches', 'dense', 'positions', 'shift', 'attention', 'shift', 'mean', 'head'
  ]  # fmt: skip
  names = {path for path in flatten_dict(found.variables['params'], sep='/') if 'block' in path}
  assert {name for name in names if 'block_01__attention' not in name} == {
    'block_00__attention/bias',
    'block_01__mlp/bias',
  }
  assert str(receipt(found, model, variables, IMAGES)).startswith(
    'cut Transformer: 1 of 4 gates off, heads 8→4, hidden 24→12 (exact): max |Δoutput| '
  )


def test_lanes_that_always_meet_are_one(random_pool):
  model = MLP(2, 8, 12, 5, gates=('residual', 'lane'))
  variables = random_pool(model, ROWS)
  met = cut(model, variables, '1101')  # the gate of a site that is off does not count
  apart = cut(model, variables, '1110')
  assert 'split' not in {entry['kind'] for entry in met.config['steps']}
  assert 'split' in {entry['kind'] for entry in apart.config['steps']}
  assert receipt(met, model, variables, ROWS).max_difference <= EXACT


def test_units_that_zeros_leave_unused(random_pool):
  """A unit of fc2 that nothing reads is why one of fc1 is not read either, and a pixel in turn."""
  model = DenseStack((6, 5), num_classes=4, num_chunks=2)
  variables = random_pool(model, ROWS)
  fc1, pair = variables['params']['fc1'], variables['params']['fc2_out']
  pair['out']['kernel'] = pair['out']['kernel'].at[2].set(0)
  pair['fc2']['kernel'] = pair['fc2']['kernel'].at[3, :2].set(0).at[3, 3:].set(0)
  fc1['kernel'] = fc1['kernel'].at[4, :3].set(0).at[4, 4:].set(0).at[:, 5].set(0)
  fc1['bias'] = fc1['bias'].at[5].set(0)
  keep = used(model, variables)
  unused = {name: np.flatnonzero(~kept).tolist() for name, kept in keep.items()}
  assert unused == {'inputs': [4], 'fc1': [3, 5], 'fc2': [2]}
  found = cut(model, variables, keep=keep)
  before, after = model.apply(variables, ROWS), found.model.apply(found.variables, ROWS)
  assert jnp.abs(before - after).max() <= EXACT
  pair['out']['kernel'] = jnp.zeros_like(pair['out']['kernel'])
  assert used(model, variables)['fc2'].tolist() == [True, False, False, False, False]


class Own(Additive):
  """A network of one's own, of which the library knows no units."""

  sizes: tuple = (5, 6)
  activation: object = None

  def setup(self):
    self.stem = nn.Dense(4, name='stem')
    self.sites = [nn.Sequential([nn.Dense(n), nn.Dense(4)], name=f'site_{n}') for n in self.sizes]

  def embed(self, x):
    return self.stem(x)

  def readout(self, h):
    return h


@pytest.mark.slow
@pytest.mark.parametrize(
  ('model', 'x', 'structure', 'gone'),
  [
    (VGG((4, 6), num_classes=5, num_chunks=2), IMAGES, '01', set()),
    (Own(), ROWS, '01', {'site_5'}),
  ],
)
def test_other_networks_are_held_in_a_structure(model, x, structure, gone, random_pool):
  variables = random_pool(model, x)
  found = cut(model, variables, structure)
  assert variables['params'].keys() - found.variables['params'].keys() == gone
  assert receipt(found, model, variables, x).max_difference <= EXACT
  own = Own if isinstance(model, Own) else None
  again = make(json.loads(json.dumps(found.config)), own)
  assert again == found.model
  expected = model.apply(variables, x, structure)
  assert jnp.array_equal(again.apply(found.variables, x), expected)
  assert jnp.abs(expected - model.apply(variables, x)).max() > 1e-2


@pytest.mark.parametrize(
  ('structure', 'gone'),
  [('010', {'shared'}), ('011', set()), ('100', {'b'}), ('000', {'shared', 'b'})],
)
def test_what_sites_share_goes_with_the_last_of_them(structure, gone, random_pool):
  model = tiny.Tied()
  variables = random_pool(model, ROWS)
  found = cut(model, variables, structure, x=ROWS)
  assert variables['params'].keys() - found.variables['params'].keys() == gone
  again = make(json.loads(json.dumps(found.config)), tiny.Tied)
  expected = model.apply(variables, ROWS, structure)
  assert jnp.array_equal(again.apply(found.variables, ROWS), expected)
  assert receipt(found, model, variables, ROWS).max_difference <= EXACT
  numbers = sum(leaf.size for leaf in jax.tree.leaves(found.variables))
  assert numbers == measure(model, ROWS).params(structure)


MLP_2 = MLP(2, 8, 12, 5)
STACK = DenseStack((6, 4), num_classes=5, num_chunks=2)
ROUTED = Transformer(1, 8, 2, 12, 5, routing=Routing())


@pytest.mark.parametrize(
  ('model', 'structure', 'keep', 'message'),
  [
    (MLP_2, '101', {}, 'structure 101 has 3 gates: expected 2, one per gate'),
    (MLP_2, None, {'hidden': [True]}, "keep of 'hidden': expected some of block_00/hidden, "),
    (MLP_2, None, {'stream': [True] * 8}, "keep of 'stream': expected some of block_00/hidden, "),
    (MLP_2, None, {'block_00/hidden': np.ones(9, bool)}, 'of bool[9]: expected bool[12], one for'),
    (MLP_2, None, {'block_00/hidden': np.ones(12)}, 'of float64[12]: expected bool[12], one for'),
    (STACK, None, {'fc1': np.zeros(6, bool)}, 'keep of fc1 without units: expected at least one'),
    (MLP_2, None, {'inputs': np.zeros(7, bool)}, 'keep of inputs without units: expected at least'),
    (ROUTED, None, {}, 'cut of Transformer with routers: expected a network that runs the same'),
    (DNA(1, 8, 2, 12, 5), None, {}, 'cut of DNA with routers: expected a net'),
    (LeNet(num_classes=5), None, {'f6': [True]}, "'f6': expected some of no units of LeNet"),
    (Own(activation=nn.relu), None, {}, 'Own with activation '),
  ],
)
def test_bad_input(model, structure, keep, message):
  images = not isinstance(model, MLP | DenseStack | Own)
  shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES if images else ROWS)
  with pytest.raises(UserError) as error:
    cut(model, shapes, structure, keep)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_a_pool_of_another_network(random_pool):
  with pytest.raises(UserError, match='a pool without embed and 3 more: expected the pool of the'):
    cut(MLP_2, random_pool(STACK, ROWS))
  with pytest.raises(UserError, match=r"expected {'params': pool}"):
    cut(MLP_2, random_pool(MLP_2, ROWS)['params'])


def test_bad_config():
  for config, message in (
    ({'network': 'dense'}, "config with network 'dense': expected 'steps' or 'fixed'"),
    ({'network': 'steps', 'steps': [{'kind': 'dens', 'name': 'fc1'}]}, "step {'kind': 'dens'"),
    (
      {'network': 'fixed', 'model': 'nowhere:Net', 'fields': {}, 'structure': '1'},
      "network 'nowhere:Net': expected one of the library",
    ),
  ):
    with pytest.raises(UserError) as error:
      make(config)
    assert message in str(error.value)
