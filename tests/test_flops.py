"""FLOPs of loops, of tokens that choose, and of parts against whole programs; parameters that parts
share. Counts by hand: a dot has 2 operations for each product, element-wise work 1 an element."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental import pallas
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import PartitionSpec

from additive_jax import Additive, UserError, measure, static
from additive_jax.compress.cutting import cost
from additive_jax.models import (
  DNA,
  MLP,
  VGG,
  ConvNet,
  DenseStack,
  Experts,
  LeNet,
  Modules,
  Routing,
  Transformer,
)
from additive_jax.models.active import active_flops
from additive_jax.models.flops import count_flops, count_traced, stated
from additive_jax.models.kinds import KINDS, RESIDUAL, SUB_ACTIVATION

X, W = jnp.ones((4, 8)), jnp.ones((8, 8))
DOT = 2 * 4 * 8 * 8
fori, scan = jax.lax.fori_loop, jax.lax.scan


def dot(x):
  return x @ W


def repeated(times, function=dot):
  return lambda x: fori(0, times, lambda i, x: function(x), x)


@jax.custom_vjp
def backwards_of_its_own(x):
  return repeated(3)(x)


backwards_of_its_own.defvjp(lambda x: (x, x), lambda x, g: (g,))


def on_two_devices(x):
  mesh = jax.make_mesh((2,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  rows = PartitionSpec('d')
  options = {'mesh': mesh, 'in_specs': rows, 'out_specs': rows}
  straight = jax.shard_map(dot, **options)
  loop = jax.shard_map(lambda x: repeated(3)(jax.lax.psum(x, 'd')), check_vma=False, **options)
  return loop(straight(x))


# What a loop counts, and how much beside the dots may be counted: XLA counts a loop's own counter.
LOOPS = {
  'scan': (lambda x: scan(lambda x, _: (dot(x), None), x, None, length=7)[0], 7),
  'unrolled': (lambda x: scan(lambda x, _: (dot(x), None), x, None, length=7, unroll=3)[0], 7),
  'none': (repeated(0), 0),
  'nested': (repeated(7, repeated(3)), 21),
  'map': (lambda x: jax.lax.map(lambda row: row @ W, x), 1),
  'vmap': (jax.vmap(repeated(3)), 3),
  'jit and checkpoint': (jax.jit(jax.checkpoint(repeated(3))), 3),
  'custom_vjp': (backwards_of_its_own, 3),
  'a counter': (
    lambda x: jax.lax.while_loop(lambda c: c[0] < 5, lambda c: (c[0] + 2, dot(c[1])), (0, x))[1],
    3,
  ),
  'a counter that falls': (
    lambda x: jax.lax.while_loop(lambda c: c[0] >= 2, lambda c: (c[0] - 3, dot(c[1])), (9, x))[1],
    3,
  ),
  'bounds as arrays': (lambda x: fori(jnp.int32(1), jnp.int32(5), lambda i, x: dot(x), x), 4),
  'the dearest branch': (lambda x: jax.lax.switch(x[0, 0].astype(int), [dot, repeated(3)], x), 3),
  'devices': (on_two_devices, 4),
  'groups of rows': (lambda x: jax.lax.ragged_dot(x, jnp.ones((3, 8, 8)), jnp.array([1, 2, 1])), 1),
}


@pytest.mark.parametrize('name', LOOPS)
def test_a_loop_counts_its_trips(name):
  function, trips = LOOPS[name]
  assert trips * DOT <= count_flops(function, X) < trips * DOT + 64


REFUSED = {
  'a while loop whose trips are known only when it runs .test_flops.py:.*: expected lax.scan': (
    lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, dot, x)
  ),
  'a while loop whose trips': lambda x: fori(0, x[0, 0].astype(int), lambda i, x: dot(x), x),
  'pure_callback .test_flops.py:.*stated': lambda x: jax.pure_callback(np.sin, x, x),
  'lu.*expected what XLA can count': jnp.linalg.inv,
}


@pytest.mark.parametrize('message', REFUSED)
def test_what_nobody_can_count_is_refused_unless_it_says(message):
  with pytest.raises(UserError, match=f'the FLOPs of mine: {message}'):
    count_flops(REFUSED[message], W, of='mine')
  twice = lambda x: 2 * stated(REFUSED[message], 100)(x)
  assert count_flops(twice, W) == 100 + 64
  with pytest.raises(UserError, match='stated flops -1: expected a finite number'):
    stated(REFUSED[message], -1)


class Deep(nn.Module):
  """Eight dense layers in a scan."""

  @nn.compact
  def __call__(self, h):
    options = {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}, 'length': 8}
    return nn.scan(lambda module, h, _: (module(h), None), **options)(nn.Dense(32), h, None)[0]


class Endless(nn.Module):
  def __call__(self, h):
    return jax.lax.while_loop(lambda h: h.sum() > 1, lambda h: h / 2, h)


class Own(Additive):
  site: type = Deep

  def setup(self):
    self.embed, self.readout = nn.Dense(32), nn.Dense(10)
    self.sites = [self.site(name='deep')]


def test_a_scan_in_ones_own_network():
  x = np.zeros((1, 16), np.float32)
  want = 8 * (2 * 32 * 32 + 32) + 32  # its layers and the residual +
  assert measure(Own(), x).gates[0].flops == pytest.approx(want, abs=4)
  pool = Own().init(jax.random.key(0), x)
  ends = 2 * 32 * (16 + 10) + 32 + 10
  assert cost(Own(), pool, x).flops == pytest.approx(want + ends, abs=4)
  with pytest.raises(UserError, match="site 'deep' of Own: a while loop"):
    measure(Own(Endless), x)


def language_model(routing, width=8, tokens=8, **options):
  sizes = {'num_tokens': 5, 'causal': True, 'max_tokens': tokens, 'num_chunks': 4}
  return Transformer(2, width, 2, 16, 5, routing=routing, **sizes, **options)


@pytest.mark.slow
def test_experts_of_their_own_weights_cost_those_that_a_token_uses():
  x = np.zeros((1, 8), np.uint8)
  costs = {k: active_flops(language_model(Experts(4, k)), x) for k in (1, 2, 4)}
  expert = 2 * 8 * (2 * 8 * 16) + 8 * 16 * (1 + 8)  # two dots, a bias and an activation
  assert costs[2] - costs[1] == pytest.approx(2 * expert, rel=0.02)  # in two layers
  assert costs[4] - costs[2] == 2 * (costs[2] - costs[1])
  dense = active_flops(language_model(None), x)
  assert costs[1] - dense == 2 * (2 * 8 * 8 * 4)  # the routers
  at_most = measure(language_model(Experts(4, 1)), x).flops('1111')
  assert costs[1] < at_most


def test_a_token_of_a_mixture_costs_the_same_among_many():
  """Spans go in blocks of tokens, of which there are 1 and 4 here."""
  of_a_token = []
  for tokens in (256, 1024):
    model = Transformer(
      1, 8, 2, 256, 5, 5, causal=True, num_chunks=4, max_tokens=tokens, routing=Routing('marginal')
    )
    mlp = measure(model, np.zeros((1, tokens), np.uint8)).gates[1]
    of_a_token.append(mlp.flops / tokens)
    assert active_flops(model.clone(num_chunks=4), np.zeros((1, tokens), np.uint8)) > mlp.flops / 2
  assert of_a_token[0] == pytest.approx(of_a_token[1], rel=1e-3)
  assert of_a_token[0] > 2 * 2 * 8 * 256


class Layers(nn.Module):
  """A site whose inner gates each have a layer of their own, and share one."""

  gates: tuple = (RESIDUAL, 'left', 'right')

  @nn.compact
  def __call__(self, h, values=()):
    shared = nn.Dense(8, name='shared')
    for name, on in zip(self.gates[1:], values, strict=True):
      if on or self.is_initializing():
        h = h + shared(nn.Dense(8, name=name)(h))
    return h


class Layered(Additive):
  def setup(self):
    self.embed, self.readout = nn.Dense(8), nn.Dense(3)
    self.sites = [Layers(name='a'), nn.Dense(8, name='b')]


DIGITS, IMAGES = np.zeros((2, 8, 8), np.float32), np.zeros((2, 4, 4, 1), np.float32)
TABLE, TEXT = np.zeros((2, 3), np.float32), np.zeros((2, 8), np.uint8)
MIXED = {'gates': KINDS, 'num_chunks': 2, 'num_lanes': 2}
CHUNKS = {'gates': (SUB_ACTIVATION,), 'num_chunks': 2}
MODELS = {
  'mlp': (MLP(2, 4, (2, 4), 3, **MIXED), TABLE),
  'vit': (Transformer(2, 4, 2, 4, 3, patch_size=2, **MIXED), IMAGES),
  'language model': (language_model(None, unit='swiglu', positions='rope', gates=KINDS), TEXT),
  'convnet': (
    ConvNet((6, 9), 1, num_classes=3, gates=(RESIDUAL, SUB_ACTIVATION), num_chunks=2),
    IMAGES,
  ),
  'dense stack': (DenseStack((4, 2), num_classes=3, **CHUNKS), TABLE),
  'lenet': (LeNet(num_classes=3, **CHUNKS), DIGITS),
  'vgg': (VGG((2, 3), num_classes=3, **CHUNKS), IMAGES),
  'a shared router': (language_model(Routing('softmax', shared=True)), TEXT),
  'factorised': (language_model(Routing('factorised')), TEXT),
  'marginal': (language_model(Routing('marginal', shared=True)), TEXT),
  'random': (language_model(Routing('random')), TEXT),
  'gates of tokens': (language_model(Routing('marginal', keep=0.5)), TEXT),
  'experts': (language_model(Experts(3, 2)), TEXT),
  'dna': (
    DNA(2, 8, 2, 8, 5, Modules(1, 1, 0, 1), 1, num_tokens=5, causal=True, max_tokens=8),
    TEXT,
  ),
  'tied': (tiny.Tied(), TABLE),
  'layers of inner gates': (Layered(), TABLE),
  'a loop': (Own(), TABLE),
}


QUICK = set(MODELS) - {'dna', 'gates of tokens', 'language model', 'experts', 'factorised'}


@pytest.mark.parametrize('name', tiny.slow_but(QUICK, MODELS))
def test_a_structure_costs_its_static_program(name):
  """FLOPs are those of the whole program, and parameters the leaves that its result depends on."""
  model, x = MODELS[name]
  space, pool = measure(model, x), jax.eval_shape(model.init, jax.random.key(0), x)
  sizes = [leaf.size for leaf in jax.tree.leaves(pool)]
  assert space.params(space.all_on()) == sum(sizes)
  by_gate = space.params_by_gate().sum() + space.fixed_params
  assert by_gate == pytest.approx(sum(sizes), rel=1e-12)
  random = np.random.default_rng(0).integers(0, 2, space.num_gates).astype(bool)
  for bits in (random, ~random):
    traced = jax.jit(lambda v, x, bits=bits: static(model, v, x, tuple(bits))).trace(pool, x)
    program = traced.jaxpr.jaxpr
    _, used = dce_jaxpr(program, [True] * len(program.outvars))
    read = sum(size for size, is_used in zip(sizes, used) if is_used)
    flops, params = (costs[0] for costs in space.costs([tuple(bits)]))
    assert (flops, params) == (count_traced(traced) / len(x), read), ''.join(map(str, 1 * bits))


def test_inner_gates_add_up_but_for_a_few_operations():
  """Of three chunks, the share of the first bias is a product for each unit and group but one."""
  model = MLP(1, 6, 6, 3, gates=(RESIDUAL, SUB_ACTIVATION), num_chunks=3)
  space, pool = measure(model, TABLE), jax.eval_shape(model.init, jax.random.key(0), TABLE)
  for bits in ('100', '110', '101', '111'):
    whole = count_flops(lambda v, x, bits=bits: static(model, v, x, bits), pool, TABLE) / 2
    assert abs(space.flops(bits) - whole) <= 6, bits


def test_what_sites_share_counts_with_any_of_them():
  space = measure(tiny.Tied(), TABLE)
  shared, own = 8 * 8 + 8, 8 * 8 + 8
  assert [gate.params for gate in space] == [0, own, 0]
  assert [(one.params, one.gates) for one in space.shared] == [
    (shared, ('a/residual', 'c/residual'))
  ]
  _, params = space.costs(['000', '100', '001', '101', '010', '111'])
  added = [0, shared, shared, shared, own, shared + own]
  assert (params - space.fixed_params).tolist() == added


def double(x_ref, y_ref):
  y_ref[...] = 2 * x_ref[...]


def kernel(x, estimate=None, interpret=True):
  options = {'cost_estimate': estimate, 'interpret': interpret}
  return pallas.pallas_call(double, jax.ShapeDtypeStruct(x.shape, x.dtype), **options)(x)


def test_a_kernel_counts_what_it_says():
  estimate = pallas.CostEstimate(flops=100, transcendentals=0, bytes_accessed=0)
  assert count_flops(lambda x: dot(kernel(x, estimate)), X) == DOT + 100
  with pytest.raises(UserError, match='pallas_call'):
    count_flops(kernel, X)


def test_programs_of_an_accelerator_are_counted_on_the_host(monkeypatch):
  """Its backend has no counts before it compiles; what it alone can lower is lowered for it."""
  mine = stated(lambda x: kernel(x, interpret=False), 100)
  with pytest.raises(ValueError, match='on CPU backend'):
    count_flops(mine, X)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert count_flops(dot, X) == DOT
  assert count_flops(repeated(3, lambda x: dot(mine(x))), X) == pytest.approx(3 * DOT + 300, abs=8)

  def no_host(backend):
    raise RuntimeError(f'Unknown backend {backend}')

  monkeypatch.setattr(jax, 'local_devices', no_host)
  with pytest.raises(UserError, match='JAX has tpu alone: expected JAX_PLATFORMS without'):
    count_flops(dot, X)
