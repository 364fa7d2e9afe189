"""Sub-activation gates against vectors of an independent implementation, the definition in float64,
and the count of matmul operations."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import Structure, UserError
from additive_jax.gates.layers import Layer, LayerPair, sub_activation

VECTORS = Path(__file__).parent / 'data' / 'subactivation.npz'
KINDS = ('gated', 'plain')
# float32 matmuls of depth 13 and 20 with entries of order 1, as the vectors themselves are.
CLOSE = {'rtol': 0, 'atol': 1e-5}
ALL = [Structure(bits) for bits in itertools.product((False, True), repeat=3)]

WEIGHTS = ('in_kernel', 'out_kernel', 'gate_kernel', 'in_bias', 'out_bias')
# D, H, E, m: chunks of one unit; 3 + 2 + 2 into 2 + 2 + 1; 2 + 1 + 1 + 1 into 2 + 2 + 2 + 1.
SIZES = [(4, 3, 4, 4), (7, 6, 5, 3), (5, 2, 7, 4)]


@pytest.fixture(scope='module')
def vectors():
  with np.load(VECTORS) as file:
    return dict(file)


def layer(vectors, kind):
  """The vectors' layer as a function of x and a structure; SwiGLU and a ReLU layer with biases."""
  v = {key.removeprefix(f'{kind}_'): value for key, value in vectors.items() if kind in key}
  if kind == 'gated':
    layers = LayerPair(Layer(v['up_kernel']), Layer(v['down_kernel']), Layer(v['gate_kernel']))
    return lambda x, s: sub_activation(x, layers, s, jax.nn.silu)
  layers = LayerPair(Layer(v['in_kernel'], v['in_bias']), Layer(v['out_kernel'], v['out_bias']))
  return lambda x, s: sub_activation(x, layers, s, jax.nn.relu)


def bits_of(vectors, kind):
  """The vectors' structures as bool [8, 3]."""
  return np.array([[char == '1' for char in text] for text in vectors[f'{kind}_structures']])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  'form', [str, Structure.from_string, lambda text: [c == '1' for c in text]]
)
def test_static_matches_the_vectors(vectors, kind, form):
  run = layer(vectors, kind)
  structures = [form(str(text)) for text in vectors[f'{kind}_structures']]
  found = jax.jit(lambda x: jnp.stack([run(x, s) for s in structures]))(vectors[f'{kind}_x'])
  np.testing.assert_allclose(found, vectors[f'{kind}_y'], **CLOSE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [bool, np.float32, np.int32])
def test_traced_matches_the_vectors(vectors, kind, dtype, compiles):
  run, x = jax.jit(layer(vectors, kind)), jnp.asarray(vectors[f'{kind}_x'])
  bits = [jnp.asarray(row) for row in bits_of(vectors, kind).astype(dtype)]
  found = [run(x, bits[0])]
  before = len(compiles)
  found += [run(x, row) for row in bits[1:]]
  assert len(compiles) == before
  np.testing.assert_allclose(np.stack(found), vectors[f'{kind}_y'], **CLOSE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [bool, np.float32])
def test_a_structure_per_example_matches_the_vectors(vectors, kind, dtype):
  run, bits = jax.jit(layer(vectors, kind)), bits_of(vectors, kind).astype(dtype)
  x, want = vectors[f'{kind}_x'], vectors[f'{kind}_y']
  example = np.arange(len(x))
  for shift in (0, 3):
    chosen = (example + shift) % 8
    np.testing.assert_allclose(run(x, bits[chosen]), want[chosen, example], **CLOSE)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [bool, np.float32])
def test_a_structure_per_token_matches_the_vectors(vectors, kind, dtype):
  run, bits = jax.jit(layer(vectors, kind)), bits_of(vectors, kind).astype(dtype)
  x, want = vectors[f'{kind}_x'], vectors[f'{kind}_y']
  chosen = np.random.default_rng(0).permutation(40).reshape(8, 5) % 8
  found = run(np.broadcast_to(x, (8, *x.shape)), bits[chosen])
  np.testing.assert_allclose(found, want[chosen, np.arange(5)], **CLOSE)


@pytest.mark.parametrize('kind', KINDS)
def test_gates_as_separate_arrays(vectors, kind):
  run, bits = layer(vectors, kind), bits_of(vectors, kind)[5]
  found = run(jnp.asarray(vectors[f'{kind}_x']), [jnp.asarray(bit) for bit in bits])
  np.testing.assert_allclose(found, vectors[f'{kind}_y'][5], **CLOSE)


def test_the_vectors_tell_structures_apart(vectors):
  for kind in KINDS:
    for one, other in itertools.combinations(vectors[f'{kind}_y'], 2):
      assert np.abs(one - other).max() > 0.01


# The definition, in float64: chunks by hand, groups as sets of joined chunks.


def split(width, m):
  """Lists of the units of each chunk, larger chunks first."""
  units, lists = list(range(width)), []
  for left in range(m, 0, -1):
    size = -(-len(units) // left)
    lists.append(units[:size])
    units = units[size:]
  return lists


def silu(x):
  return x / (1 + np.exp(-x))


def by_groups(x, weights, bits):
  """`h_G = act(Σ_{i∈G} P_i)`, output chunk j from the group of j."""
  a, b, c, in_bias, out_bias = (weights[name] for name in WEIGHTS)
  m = len(bits) + 1
  inputs, outputs = split(len(a), m), split(b.shape[1], m)
  y = np.zeros((*x.shape[:-1], b.shape[1]))
  for j in range(m):
    group = [i for i in range(m) if all(bits[min(i, j) : max(i, j)])]
    units = [unit for i in group for unit in inputs[i]]
    p = x[..., units] @ a[units] + in_bias * len(group) / m
    h = silu(p) if c is None else silu(x[..., units] @ c[units]) * p
    y[..., outputs[j]] = h @ b[:, outputs[j]] + out_bias[outputs[j]]
  return y


def by_mask(x, weights, gates):
  """`h_j = act(Σ_i M[j,i] P_i)`, M the product of the gates between; gates [..., m − 1]."""
  a, b, c, in_bias, out_bias = (weights[name] for name in WEIGHTS)
  m = gates.shape[-1] + 1
  inputs, outputs = split(len(a), m), split(b.shape[1], m)
  y = np.zeros((*x.shape[:-1], b.shape[1]))
  for j in range(m):
    p, q = 0.0, 0.0
    for i in range(m):
      joined = gates[..., min(i, j) : max(i, j)].prod(-1)
      joined = np.reshape(joined, joined.shape + (1,) * (x.ndim - joined.ndim))
      p = p + joined * (x[..., inputs[i]] @ a[inputs[i]] + in_bias / m)
      q = q + joined * (x[..., inputs[i]] @ c[inputs[i]]) if c is not None else None
    h = silu(p) if c is None else silu(q) * p
    y[..., outputs[j]] = h @ b[:, outputs[j]] + out_bias[outputs[j]]
  return y


def make(size, *, gated, leading=(3, 4)):
  """x and weights in float64."""
  width, hidden, out, _ = size
  random = np.random.default_rng(1)
  shapes = [(width, hidden), (hidden, out), (width, hidden), (hidden,), (out,)]
  weights = {name: random.normal(size=shape) for name, shape in zip(WEIGHTS, shapes)}
  if not gated:
    weights['gate_kernel'] = None
  return random.normal(size=(*leading, width)), weights


def single(tree):
  return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def pair(weights):
  first, second, gating, *biases = (weights.get(name) for name in WEIGHTS)
  gating = None if gating is None else Layer(gating)
  return LayerPair(Layer(first, biases[0]), Layer(second, biases[1]), gating)


def ours(x, weights, structure):
  return sub_activation(x, pair(weights), structure, jax.nn.silu)


def structures(m):
  return list(itertools.product((False, True), repeat=m - 1))


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_uneven_chunks_follow_the_definition(size, gated):
  x, weights = make(size, gated=gated)
  every = structures(size[-1])
  run = jax.jit(
    lambda x, w, bits: (
      jnp.stack([ours(x, w, s) for s in every]),
      jax.lax.map(lambda s: ours(x, w, s), bits),
    )
  )
  want = np.stack([by_groups(x, weights, s) for s in every])
  for found in run(single(x), single(weights), jnp.array(every)):
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_no_gates_is_the_dense_layer():
  x, weights = make((5, 4, 3, 1), gated=False)
  want = silu(x @ weights['in_kernel'] + weights['in_bias']) @ weights['out_kernel']
  for structure in ('', (), jnp.zeros((0,), bool)):
    found = ours(single(x), single(weights), structure)
    np.testing.assert_allclose(found, want + weights['out_bias'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('leading', [(), (3,), (3, 4)])
def test_soft_gates_are_products(gated, leading):
  size = SIZES[2]
  x, weights = make(size, gated=gated)
  soft = np.random.default_rng(2).uniform(size=(*leading, size[-1] - 1))
  found = jax.jit(ours)(single(x), single(weights), single(soft))
  np.testing.assert_allclose(found, by_mask(x, weights, soft), rtol=1e-5, atol=1e-5)
  rounded = by_mask(x, weights, soft.round())
  assert np.abs(rounded - by_mask(x, weights, soft)).max() > 0.1


def slopes(function, arguments):
  """Derivatives of a float64 function along a random direction of each leaf, and the directions."""
  leaves, tree = jax.tree.flatten(arguments)
  random = np.random.default_rng(3)
  directions = [random.normal(size=np.shape(leaf)) for leaf in leaves]
  found = []
  for k, direction in enumerate(directions):
    moved = lambda step, k=k, direction=direction: function(
      *tree.unflatten(
        [leaf + step * direction if i == k else leaf for i, leaf in enumerate(leaves)]
      )
    )
    found.append((moved(1e-5) - moved(-1e-5)) / 2e-5)
  return np.array(found), directions


def along(gradient, directions):
  return np.array([np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), directions)])


@pytest.mark.parametrize('gated', [False, True])
def test_gradients_of_both_forms_are_finite_differences(gated):
  x, weights = make(SIZES[2], gated=gated)
  cotangent = np.random.default_rng(4).normal(size=(3, 4, 7))
  loss = lambda x, w, s: (cotangent * ours(x, w, s)).sum()
  every = structures(4)
  gradient = jax.grad(loss, (0, 1))
  static = jax.jit(lambda x, w: [gradient(x, w, s) for s in every])(single(x), single(weights))
  traced = jax.jit(gradient)
  for structure, one in zip(every, static):
    want, directions = slopes(
      lambda x, w, s=structure: (cotangent * by_groups(x, w, s)).sum(), (x, weights)
    )
    other = traced(single(x), single(weights), jnp.array(structure))
    # Sums of some 84 products of order 1 in float32, along directions of up to 60 such sums.
    np.testing.assert_allclose(along(one, directions), want, rtol=1e-4, atol=1e-3)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('leading', [(), (3,), (3, 4)])
def test_gradient_of_soft_gates_is_the_finite_difference(leading):
  x, weights = make(SIZES[2], gated=True)
  soft = np.random.default_rng(5).uniform(0.1, 0.9, size=(*leading, 3))
  loss = lambda s: jnp.square(ours(single(x), single(weights), s)).mean()
  want, directions = slopes(lambda s: np.square(by_mask(x, weights, s)).mean(), (soft,))
  found = along(jax.jit(jax.grad(loss))(single(soft)), directions)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
  assert abs(want[0]) > 2e-3


def ones(**changed):
  """A layer of 4, 5 and 4 units, with some arrays changed."""
  shapes = {'in_kernel': (4, 5), 'out_kernel': (5, 4)} | changed
  return pair({name: jnp.ones(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize(
  ('changed', 'structure', 'message'),
  [
    ({'gate_kernel': (4, 1)}, '1', r'gating.kernel of shape \(4, 1\): expected \(4, 5\), to fit'),
    ({'out_kernel': (6, 4)}, '1', r'second.kernel of shape \(6, 4\): expected \(5, 4\)'),
    ({'in_bias': (4,)}, '1', r'first.bias of shape \(4,\): expected \(5,\)'),
    ({'out_bias': (5,)}, '1', r'second.bias of shape \(5,\): expected \(4,\)'),
    ({}, jnp.bool_(True), 'gates True: expected m − 1 gates, not a number'),
    ({}, 5, 'gates 5: expected a Structure, its text, or m − 1 gates'),
    ({}, jnp.ones((3, 1)), r'gates of shape \(3,\) for x of shape \(2, 4\): expected leading axes'),
  ],
)
def test_arrays_that_do_not_fit(changed, structure, message):
  with pytest.raises(UserError, match=message):
    sub_activation(jnp.ones((2, 4)), ones(**changed), structure, jnp.tanh)


@pytest.mark.parametrize('form', [np.array, list, lambda bits: [np.bool_(b) for b in bits]])
def test_rows_of_plain_bits_are_static(form):
  layer = lambda x, s: sub_activation(x, ones(), s, jnp.tanh)
  text = lambda s: str(jax.make_jaxpr(lambda x: layer(x, s))(jnp.ones((2, 4))))
  assert text(form([1, 0])) == text('10')
  assert text(form([True, False])) == text('10')
  assert text(jnp.array([True, False])) != text('10')


def matmul_flops(function, *arguments):
  """2 × multiplications of every dot in the lowered program, and how many dots it has."""
  text = jax.jit(function).lower(*arguments).as_text()
  dots = re.findall(r'dot_general.*', text)
  total = 0
  for dot in dots:
    left, _, out = ([int(n) for n in s.split('x')[:-1]] for s in re.findall(r'tensor<(.*?)>', dot))
    axes = re.search(r'contracting_dims = \[(.*?)\] x', dot).group(1).split(',')
    total += 2 * int(np.prod(out)) * int(np.prod([left[int(axis)] for axis in axes]))
  return total, len(dots)


@pytest.mark.parametrize('gated', [False, True])
def test_matmuls_are_those_of_the_dense_layer(gated):
  """Forward once, with all gradients three times, whatever the structure and the form."""
  width, hidden, out, _ = size = (13, 20, 11, 4)
  x, weights = make(size, gated=gated)
  dense = 2 * x[..., 0].size * hidden * (width * (2 if gated else 1) + out)
  arguments = single(x), single(weights)
  loss = lambda x, w, s: jnp.square(ours(x, w, s)).sum()
  both = jax.value_and_grad(loss, (0, 1))
  for s in ALL:
    flops, dots = matmul_flops(lambda x, w, s=s: ours(x, w, s), *arguments)
    assert flops == dense
    assert dots == (3 if gated else 2) * (4 - s.num_on)
    assert matmul_flops(lambda x, w, s=s: both(x, w, s), *arguments)[0] == 3 * dense
  for leading in ((), (3,), (3, 4)):
    gates = jnp.ones((*leading, 3))
    assert matmul_flops(ours, *arguments, gates)[0] == dense
    assert matmul_flops(both, *arguments, gates)[0] == 3 * dense


def test_activations_once_for_each_group_or_chunk():
  x, weights = single(make((13, 20, 11, 4), gated=False))
  for structure, want in [(s, 4 - s.num_on) for s in ALL] + [(jnp.ones(3), 4)]:
    layers = LayerPair(Layer(weights['in_kernel']), Layer(weights['out_kernel']))
    static = isinstance(structure, Structure)  # else the compiler would know the gates
    layer = jax.jit(lambda *a: sub_activation(*a, jnp.tanh), static_argnums=2 if static else ())
    program = layer.lower(single(x), single(layers), structure).compile().as_text()
    shapes = re.findall(r'= f32\[([\d,]*)\]\S* tanh\(', program)
    assert [np.prod([int(n) for n in shape.split(',')]) for shape in shapes] == [3 * 4 * 20] * want


@pytest.mark.parametrize('gates', ['10', jnp.array([True, False]), jnp.ones((3, 2))])
@pytest.mark.parametrize('gated', [False, True])
def test_dtype_is_kept(gates, gated):
  x, weights = make((5, 4, 7, 3), gated=gated)
  half = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), tree)
  assert ours(half(x), half(weights), gates).dtype == jnp.bfloat16


@pytest.mark.parametrize('gates', ['1010', jnp.zeros(4, bool), jnp.ones((3, 4))])
@pytest.mark.parametrize('size', [(4, 6, 8), (8, 6, 4)])
def test_more_chunks_than_units_of_input_or_output(gates, size):
  x, weights = single(make((*size, 5), gated=False))
  with pytest.raises(UserError, match=r'^5 chunks of a width of 4: expected 1 to 4$'):
    ours(x, weights, gates)
