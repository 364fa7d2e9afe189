"""Convolutional networks: the ways to run, an oracle by the formula, plain networks, costs."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import signal

from additive_jax import (
  UserError,
  conditional,
  evaluate_structures,
  masked,
  measure,
  shared_prefix,
  static,
)
from additive_jax.gates.layers import Layer, LayerPair
from additive_jax.gates.structure import all_bits
from additive_jax.models import VGG, ConvNet, LeNet
from additive_jax.models.additive import embed, gate_names, sites_of
from additive_jax.models.conv import conv, conv_sub_activation, conv_tiles

# Uneven chunks (5 = 2 + 2 + 1, 7 = 4 + 3, 9 = 3 + 2 + 2 + 2), and stages of different widths.
MODELS = {
  'convnet residual': ConvNet((5, 9), 1, num_classes=5, gates=('residual',)),
  'convnet sub_activation': ConvNet(
    (9,), 1, num_classes=5, gates=('sub_activation',), num_chunks=4
  ),
  'convnet both': ConvNet(
    (5,), 1, num_classes=5, gates=('residual', 'sub_activation'), num_chunks=3
  ),
  'lenet': LeNet(5, num_chunks=2),
  'vgg': VGG((7, 9), num_classes=5, num_chunks=2),
}
CASES = pytest.mark.parametrize('name', MODELS)
# float32 sums of up to 225 products in another order, through up to seven layers.
CLOSE = {'rtol': 1e-4, 'atol': 2e-4}


@pytest.fixture(scope='module', autouse=True)
def quick_compiles():
  """Most of the time here would go to optimizing programs that run once."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def x():
  return jax.random.normal(jax.random.key(3), (3, 7, 6, 2))  # odd and unequal sides


@pytest.fixture(scope='module')
def pool(random_pool, x):
  """The pool of a named model, scaled so that many channels do not saturate what they feed."""

  @functools.cache
  def draw(name):
    def calm(leaf):
      return leaf / np.sqrt(max(1, leaf[..., 0].size / 8)) if leaf.ndim > 1 else leaf

    return jax.tree.map(calm, random_pool(MODELS[name], x))

  return draw


@pytest.fixture(scope='module')
def outputs(pool, x):
  """Static logits of every structure of a named model, [2^n, B, C]."""

  @functools.cache
  def run(name):
    model = MODELS[name]
    program = jax.jit(lambda v, x: [static(model, v, x, s) for s in structures(model)])
    return np.stack(program(pool(name), x))

  return run


def structures(model):
  return [tuple(bits.tolist()) for bits in all_bits(len(gate_names(model)))]


def distinct(model):
  """The structures that differ in function: inner gates of skipped sites are off."""
  skipped = lambda s: any(
    not s[site.start] and any(s[site.inner]) for site in sites_of(model) if site.has_residual
  )
  return [i for i, s in enumerate(structures(model)) if not skipped(s)]


def test_gate_names():
  names = {name: gate_names(model) for name, model in MODELS.items()}
  assert names['convnet residual'] == ('stage_00/block_00/residual', 'stage_01/block_00/residual')
  both = ('residual', 'join_1', 'join_2')
  assert names['convnet both'] == tuple(f'stage_00/block_00/{gate}' for gate in both)
  assert names['lenet'] == ('c3_c5/join_1', 'f6_out/join_1')
  assert names['vgg'] == ('stage_00/join_1', 'stage_01/join_1')


@pytest.mark.parametrize('name', tiny.thorough_but(['convnet both'], MODELS))
def test_the_ways_to_run_agree(name, pool, outputs, x):
  model, variables, want = MODELS[name], pool(name), outputs(name)
  bits = all_bits(len(gate_names(model)))
  program = jax.jit(
    lambda v, x, bits: (
      jax.lax.map(lambda s: conditional(model, v, x, s), bits),
      jax.lax.map(lambda s: masked(model, v, x, s), bits.astype(jnp.float32)),
    )
  )
  for found in (*program(variables, x, bits), shared_prefix(model, variables, x, bits)):
    np.testing.assert_allclose(found, want, **CLOSE)
  # Each example its own structure, all structures in turn.
  each = jax.jit(functools.partial(masked, model))
  for start in range(0, len(bits), len(x)):
    rows = np.arange(start, start + len(x)) % len(bits)
    mixed = each(variables, x, bits[rows].astype(np.float32))
    np.testing.assert_allclose(mixed, want[rows, np.arange(len(x))], **CLOSE)


@pytest.mark.parametrize('name', tiny.thorough_but(['convnet both'], MODELS))
def test_gradients_agree(name, pool, x):
  model, variables = MODELS[name], pool(name)
  chosen = [structures(model)[i] for i in (-1, len(structures(model)) // 2)]
  weights = jax.random.normal(jax.random.key(5), (len(x), 5))

  def gradient(forward):
    loss = lambda v, x, s: (weights * forward(model, v, x, s)).sum()
    return lambda s: jax.grad(loss, argnums=(0, 1))(variables, x, s)

  want = jax.jit(lambda: [gradient(static)(s) for s in chosen])()
  traced = jax.jit(
    lambda bits: (
      jax.lax.map(gradient(conditional), bits),
      jax.lax.map(gradient(masked), bits.astype(jnp.float32)),
    )
  )
  for found in traced(np.array(chosen)):
    for i, one in enumerate(want):
      other = jax.tree.map(lambda leaf, i=i: leaf[i], found)
      assert largest(jax.tree.map(jnp.subtract, one, other)) < 1e-4 * largest(one)
  assert largest(jax.tree.map(jnp.subtract, *want)) > 1e-2 * largest(want)


def largest(tree):
  return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


# The oracle: float64 NumPy and SciPy by the formula of the design, chunk by chunk.


def correlate(x, kernel):
  """Images [B, h, w, C] with a kernel of odd sides, borders of zeros."""
  out = np.zeros((*x.shape[:3], kernel.shape[3]))
  for b, c, e in itertools.product(range(len(x)), *map(range, kernel.shape[2:])):
    out[b, ..., e] += signal.correlate2d(x[b, ..., c], kernel[..., c, e], mode='same')
  return out


def whole(x, kernel):
  return np.einsum('bhwc,hwcd->bd', x, kernel)


def halves(x):
  height, width = x.shape[1] // 2, x.shape[2] // 2
  return np.stack([x[:, i : 2 * height : 2, j : 2 * width : 2] for i in (0, 1) for j in (0, 1)])


def split(width, m):
  return np.array_split(np.arange(width), m)  # sizes differ by at most one, larger first


def pair(x, first, second, joined, act, linear=(np.matmul, np.matmul)):
  """h_j = act(Σ_i M[j,i] P_i + b·(size of the group)/m); chunk j of the output is h_j B_j."""
  m = len(joined) + 1
  a, b = first['kernel'], second['kernel']
  inputs, outputs = split(a.shape[-2], m), split(b.shape[-1], m)
  partial = [linear[0](x[..., i], a[..., i, :]) + first['bias'] / m for i in inputs]
  y = []
  for j in range(m):
    group = [i for i in range(m) if all(joined[min(i, j) : max(i, j)])]
    y.append(linear[1](act(sum(partial[i] for i in group)), b[..., outputs[j]]))
  return np.concatenate(y, -1) + second['bias']


def norm(x, p):
  variance = ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True)
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6) * p['scale'] + p['bias']


def gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def relu(x):
  return np.maximum(x, 0)


def oracle(name, pool, x, bits):
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pool['params'])
  x, convs = np.asarray(x, np.float64), (correlate, correlate)
  h = correlate(x, p['embed']['kernel']) + p['embed']['bias']
  if name == 'lenet':
    squash = lambda h: halves(np.tanh(h)).mean(0)
    c = pair(squash(h), p['c3_c5']['c3'], p['c3_c5']['c5'], bits[:1], squash, (correlate, whole))
    return pair(np.tanh(c), p['f6_out']['f6'], p['f6_out']['out'], bits[1:], np.tanh)
  if name == 'vgg':
    h = relu(h)
    for i in range(2):
      site = p[f'stage_0{i}']
      y = pair(h, site['in'], site['out'], bits[i : i + 1], relu, convs)
      h = halves(relu(y)).max(0)
    return h.mean((1, 2)) @ p['readout']['kernel'] + p['readout']['bias']
  bits, model = list(bits), MODELS[name]
  for i in range(len(model.channels)):
    if i:
      down = p['stage_01__down']
      kernel = down['conv']['kernel'].reshape(4, *down['conv']['kernel'].shape[2:])
      h = np.einsum('kbhwc,kcd->bhwd', halves(norm(h, down['norm'])), kernel)
      h = h + down['conv']['bias']
    block = p[f'stage_0{i}__block_00']
    on = bits.pop(0) if 'residual' in model.gates else True
    joined = ()
    if 'sub_activation' in model.gates:
      joined = [bits.pop(0) for _ in range(model.num_chunks - 1)]
    y = pair(norm(h, block['norm']), block['in'], block['out'], joined, gelu, convs)
    h = h + y if on else h
  pooled = norm(h, p['readout']['norm']).mean((1, 2))
  return pooled @ p['readout']['out']['kernel'] + p['readout']['out']['bias']


@CASES
def test_every_structure_is_the_formula(name, pool, outputs, x):
  for bits, found in zip(structures(MODELS[name]), outputs(name)):
    np.testing.assert_allclose(found, oracle(name, pool(name), x, bits), **CLOSE)


@CASES
def test_structures_differ(name, outputs):
  kept = outputs(name)[distinct(MODELS[name])]
  apart = [np.abs(a - b).max() for a, b in itertools.combinations(kept, 2)]
  assert min(apart) > 10 * CLOSE['atol']


# All-on is a network that anyone would write in Flax.


def test_convnet_is_a_residual_network(pool, outputs, x):
  class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
      h = nn.Conv(5, (3, 3), name='embed')(x)
      for i, channels in enumerate((5, 9)):
        if i:
          h = nn.LayerNorm(name='down_norm')(h)
          h = nn.Conv(channels, (2, 2), 2, padding='VALID', name='down_conv')(h)
        y = nn.Conv(channels, (3, 3), name=f'in_{i}')(nn.LayerNorm(name=f'norm_{i}')(h))
        h = h + nn.Conv(channels, (3, 3), name=f'out_{i}')(nn.gelu(y))
      return nn.Dense(5, name='out')(nn.LayerNorm(name='norm')(h).mean((1, 2)))

  p = pool('convnet residual')['params']
  flat = {'embed': p['embed'], **p['readout']}
  flat |= {f'down_{key}': value for key, value in p['stage_01__down'].items()}
  for i in range(2):
    flat |= {f'{key}_{i}': value for key, value in p[f'stage_0{i}__block_00'].items()}
  want = Plain().apply({'params': flat}, x)
  np.testing.assert_allclose(outputs('convnet residual')[-1], want, **CLOSE)


def test_lenet_is_lenet(pool, outputs, x):
  class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
      for name, channels in (('embed', 6), ('c3', 16)):
        x = nn.tanh(nn.Conv(channels, (5, 5), name=name)(x))
        x = nn.avg_pool(x, (2, 2), (2, 2))
      x = nn.tanh(nn.Dense(120, name='c5')(x.reshape(len(x), -1)))
      return nn.Dense(5, name='out')(nn.tanh(nn.Dense(84, name='f6')(x)))

  p = pool('lenet')['params']
  flat = {'embed': p['embed'], **p['c3_c5'], **p['f6_out']}
  c5 = p['c3_c5']['c5']
  flat['c5'] = {'kernel': c5['kernel'].reshape(-1, 120), 'bias': c5['bias']}
  want = Plain().apply({'params': flat}, x)
  np.testing.assert_allclose(outputs('lenet')[-1], want, **CLOSE)


def test_vgg_is_a_plain_stack(pool, outputs, x):
  class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.relu(nn.Conv(7, (3, 3), name='embed')(x))
      for i, channels in enumerate((7, 9)):
        for part in ('in', 'out'):
          x = nn.relu(nn.Conv(channels, (3, 3), name=f'{part}_{i}')(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
      return nn.Dense(5, name='readout')(x.mean((1, 2)))

  p = pool('vgg')['params']
  flat = {'embed': p['embed'], 'readout': p['readout']}
  for i in range(2):
    flat |= {f'{key}_{i}': value for key, value in p[f'stage_0{i}'].items()}
  np.testing.assert_allclose(outputs('vgg')[-1], Plain().apply({'params': flat}, x), **CLOSE)


# The convolutions themselves.


def flax_conv(x, kernel):
  layout = ('NHWC', 'HWIO', 'NHWC')
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=layout)


@pytest.mark.parametrize('channels', [6, 9])  # matmuls of patches, and convolutions
def test_convolution_and_its_derivatives(channels):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = (2, 6, 5, channels), (3, 5, channels, 4)
  x, kernel, dx, dk = (jax.random.normal(k, s) for k, s in zip(keys, shapes * 2))

  def derivatives(function):
    scalar = lambda x, kernel: jnp.tanh(function(x, kernel) / 8).sum()
    gradient = jax.grad(scalar, argnums=(0, 1))
    in_loop = lambda i, total: jax.tree.map(jnp.add, total, gradient(x + i, kernel))
    return (
      jax.jvp(function, (x, kernel), (dx, dk)),
      jax.jvp(gradient, (x, kernel), (dx, dk)),  # and second order, forward over reverse
      jax.lax.fori_loop(0, 2, in_loop, (x, kernel)),
    )

  found, want = (jax.jit(lambda f=f: derivatives(f))() for f in (conv, flax_conv))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, want)


def test_gradients_in_a_loop_keep_the_fast_layout():
  """XLA on CPU runs a convolution of another layout than b01f_01io in a loop 30 times slower."""
  x, kernel = jnp.ones((4, 6, 6, 8)), jnp.ones((3, 3, 8, 8))

  def layouts(function):
    gradient = jax.grad(lambda x, k: (function(x, k) ** 2).sum(), argnums=(0, 1))
    program = lambda n: jax.lax.fori_loop(0, n, lambda i, a: gradient(*a), (x, kernel))
    text = jax.jit(program).lower(3).compile().as_text()
    return [
      line.split('dim_labels=')[1].split(',')[0]
      for line in text.splitlines()
      if ' convolution(' in line
    ]

  assert layouts(conv) == ['b01f_01io->b01f'] * 3
  assert set(layouts(flax_conv)) > {'b01f_01io->b01f'}


def test_tiles_are_strided_and_whole_convolutions(x):
  kernel = jax.random.normal(jax.random.key(1), (2, 2, 2, 3))
  layout = ('NHWC', 'HWIO', 'NHWC')
  strided = jax.lax.conv_general_dilated(x, kernel, (2, 2), 'VALID', dimension_numbers=layout)
  np.testing.assert_allclose(conv_tiles(x, kernel), strided, rtol=1e-5, atol=1e-5)


def test_soft_gates_weigh_partial_sums(x):
  """With one gate g: h_0 = act(P_0 + g·P_1), h_1 = act(g·P_0 + P_1)."""
  a, b = (jax.random.normal(jax.random.key(i), (3, 3, 2, 2)) for i in (1, 2))
  gate = jnp.array([0.0, 0.3, 1.0])
  found = jax.jit(lambda: conv_sub_activation(x, LayerPair(Layer(a), Layer(b)), (gate,), nn.gelu))()
  p = [conv(x[..., i : i + 1], a[:, :, i : i + 1]) for i in range(2)]
  g = gate[:, None, None, None]
  hidden = nn.gelu(p[0] + g * p[1]), nn.gelu(g * p[0] + p[1])
  want = jnp.concatenate([conv(h, b[..., j : j + 1]) for j, h in enumerate(hidden)], -1)
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


# Costs, the pool, evaluation, errors.


@pytest.mark.parametrize(
  'model',
  [
    ConvNet((8, 16), 1, num_classes=10, gates=('residual', 'sub_activation')),
    LeNet(10),
    VGG((8, 16), num_classes=10),
  ],
  ids=lambda model: type(model).__name__,
)
def test_costs_are_those_of_whole_structures(model):
  """Parts add up to the whole program but for the few operations that only the shape of the batch
  or a group at the edge asks for. Compiled, XLA's fusions repeat element-wise operations: on this
  8 × 8 image up to 7 %, less on wider networks.
  """
  x = jnp.zeros((8, 8, 8, 1))
  space = measure(model, x)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  ones = np.ones(space.num_gates, bool)
  mixed = np.random.default_rng(0).random((3, len(ones))) < 0.5
  for bits in (ones, *mixed, ~ones):
    structure = tuple(bits.tolist())
    program = jax.jit(lambda v, x, s=structure: static(model, v, x, s)).lower(variables, x)
    found = space.flops(structure) * len(x)
    np.testing.assert_allclose(found, program.cost_analysis()['flops'], rtol=1e-3)
  np.testing.assert_allclose(found, program.compile().cost_analysis()['flops'], rtol=0.1)
  assert space.params(ones) == sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize('name', ['convnet both', 'lenet'])
def test_pool_does_not_depend_on_the_structure_of_init(name, x):
  model = MODELS[name]
  off = (False,) * len(gate_names(model))
  init = jax.jit(lambda: [model.init(jax.random.key(0), x, s) for s in (None, off)])
  jax.tree.map(np.testing.assert_array_equal, *init())


@pytest.mark.parametrize('name', ['convnet residual', 'convnet both', 'lenet'])
def test_evaluation_is_that_of_static_structures(name, pool, outputs, x):
  y = np.array([0, 3, 1])
  found = evaluate_structures(MODELS[name], pool(name), (x, y), batch_size=2)
  log_p = jax.nn.log_softmax(outputs(name), -1)
  want = -np.asarray(log_p)[:, np.arange(3), y].mean(1)
  np.testing.assert_allclose(found.loss, want, **CLOSE)
  assert np.ptp(found.loss) > 1e-2


def test_images_need_no_channel_axis(random_pool, x):
  variables = random_pool(MODELS['lenet'], x[..., 0])
  flat, whole = (embed(MODELS['lenet'], variables, images) for images in (x[..., 0], x[..., :1]))
  np.testing.assert_array_equal(flat, whole)
  assert flat.any()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: ConvNet((8,), 1, num_classes=2, gates=('lane',)), "gate kind 'lane' for convnet: "),
    (lambda: VGG((8,), num_classes=2, gates=('residual',)), "gate kind 'residual' for vgg: "),
    (lambda: LeNet(10, gates=('residual',)), "'residual' for lenet: expected some of sub_act"),
    (lambda: LeNet(10, num_chunks=7), '7 chunks of a width of 6: expected 1 to 6'),
    (lambda: LeNet(3, num_chunks=4), '4 chunks of a width of 3: expected 1 to 3'),
    (lambda: VGG((3, 8), num_classes=2), '4 chunks of a width of 3: expected 1 to 3'),
    (
      lambda: ConvNet((8, 4), 1, num_classes=2, gates=('sub_activation',), num_chunks=5),
      '5 chunks of a width of 4: expected 1 to 4',
    ),
    (lambda: ConvNet((), 1, num_classes=2), r'channels \(\): expected a number for each stage'),
    (lambda: VGG((8, 0), num_classes=2), 'channels 0: expected at least 1'),
    (lambda: ConvNet((8,), 0, num_classes=2), 'blocks_per_stage 0: expected at least 1'),
    (lambda: LeNet(0), 'num_classes 0: expected at least 1'),
  ],
)
def test_bad_models(make, message):
  with pytest.raises(UserError, match=message) as caught:
    make()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('name', 'shape', 'message'),
  [
    ('lenet', (2, 64), r'inputs of shape \(2, 64\): expected images \[B, height, width'),
    ('vgg', (2, 3, 8, 8, 1), r'inputs of shape \(2, 3, 8, 8, 1\): expected images'),
    ('lenet', (2, 8, 3, 1), 'images of 8 × 3: expected at least 4 × 4'),
    ('vgg', (2, 3, 8), 'images of 3 × 8: expected at least 4 × 4'),
    ('convnet residual', (2, 1, 8), 'images of 1 × 8: expected at least 2 × 2'),
  ],
)
def test_bad_inputs(name, shape, message):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(MODELS[name].init, jax.random.key(0), jnp.zeros(shape))


def test_shapes_of_streams_follow_the_images():
  run = lambda model, side: jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x)[0], jnp.zeros((2, side, side, 1))
  )
  for model in MODELS.values():
    assert run(model, 8).shape == run(model, 28).shape == (2, 5)
