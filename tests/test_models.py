"""The models' own promises: the pool, the names, the arithmetic of the MLP, and its costs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import Additive, UserError, all_structures, evaluate_structures, measure, static
from additive_jax.models import MLP
from additive_jax.models.additive import gate_names
from additive_jax.models.reads import parts


@pytest.fixture(scope='module')
def model():
  return MLP(num_blocks=3, width=8, hidden=(4, 12, 9), num_classes=5)


@pytest.fixture(scope='module')
def x():
  return jax.random.normal(jax.random.key(3), (6, 2, 5))


@pytest.fixture(scope='module')
def variables(model, x, random_pool):
  return random_pool(model, x)


def test_pool_does_not_depend_on_the_structure_of_init():
  model, x = MLP(num_blocks=3, width=4, hidden=4, num_classes=4), jnp.ones((1, 4))
  pools = [model.init(jax.random.key(0), x, structure) for structure in (None, '000', '010')]
  for other in pools[1:]:
    jax.tree.map(np.testing.assert_array_equal, pools[0], other)
  different = model.init(jax.random.key(1), x)
  kernel = lambda pool: pool['params']['block_00']['in']['kernel']
  assert not np.array_equal(kernel(pools[0]), kernel(different))


def test_off_sites_need_no_parameters(model, variables, x):
  pool = dict(variables['params'])
  full = static(model, variables, x, '101')
  del pool['block_01']
  np.testing.assert_array_equal(static(model, {'params': pool}, x, '101'), full)
  with pytest.raises(Exception, match='block_01'):
    static(model, {'params': pool}, x, '111')


def norm(x):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((x**2).mean(-1, keepdims=True) - x.mean(-1, keepdims=True) ** 2 + 1e-6)


def numpy_mlp(pool, x, bits):
  """The MLP in NumPy, in float64."""
  pool = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), pool)
  dense = lambda h, p: h @ p['kernel'] + p['bias']
  layer_norm = lambda h, p: norm(h) * p['scale'] + p['bias']
  gelu = lambda h: h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  h = dense(np.asarray(x, np.float64).reshape(len(x), -1), pool['embed'])
  for i, bit in enumerate(bits):
    if bit:
      block = pool[f'block_{i:02}']
      h = h + dense(gelu(dense(layer_norm(h, block['norm']), block['in'])), block['out'])
  return dense(layer_norm(h, pool['readout']['norm']), pool['readout']['out'])


def test_mlp_is_the_plain_network(model, variables, x):
  outputs = [numpy_mlp(variables['params'], x, s) for s in all_structures(3)]
  for structure, want in zip(all_structures(3), outputs):
    # float32 against float64 through at most eight layers.
    np.testing.assert_allclose(model.apply(variables, x, structure), want, rtol=1e-4, atol=2e-5)
  assert min(np.abs(a - b).max() for i, a in enumerate(outputs) for b in outputs[:i]) > 0.1


def test_structure_defaults_to_all_on_and_takes_every_form(model, variables, x):
  want = model.apply(variables, x)
  for form in ('111', 7, (1, 1, 1), model.space.all_on()):
    np.testing.assert_array_equal(model.apply(variables, x, form), want)
  with pytest.raises(UserError, match='structure 11 has 2 gates: expected 3'):
    model.apply(variables, x, '11')


def test_inputs_are_flattened_and_cast(model, variables, x):
  np.testing.assert_array_equal(
    model.apply(variables, x), model.apply(variables, x.reshape(len(x), -1))
  )
  whole = (10 * x).astype(jnp.int32)
  np.testing.assert_array_equal(
    model.apply(variables, whole), model.apply(variables, whole.astype(jnp.float32))
  )


def test_gate_names(model):
  assert model.space.names == gate_names(model)
  assert model.space.names == ('block_00/residual', 'block_01/residual', 'block_02/residual')
  many = gate_names(MLP(101, 2, 2, 2))
  assert many[100] == 'block_100/residual'
  assert list(many) == sorted(many)


def test_equal_models_are_equal():
  assert MLP(2, 8, [4, 4], 3) == MLP(2, 8, (4, 4), 3)
  assert hash(MLP(2, 8, [4, 4], 3)) == hash(MLP(2, 8, (4, 4), 3))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((0, 8, 8, 3), 'num_blocks 0: expected at least 1'),
    ((2, 0, 8, 3), 'width 0: expected at least 1'),
    ((2, 8, 0, 3), 'hidden 0: expected at least 1'),
    ((2, 8, (4, -1), 3), 'hidden -1: expected at least 1'),
    ((2, 8, 8, 0), 'num_classes 0: expected at least 1'),
    ((2, 8, (4, 4, 4), 3), r'hidden \(4, 4, 4\) has 3 sizes: expected 1 or 2'),
  ],
)
def test_bad_mlp(arguments, message):
  with pytest.raises(UserError, match=message):
    MLP(*arguments)


def xla_flops(model, x, structure):
  """XLA's count for the compiled program of one structure, per example."""
  pool = jax.eval_shape(model.init, jax.random.key(0), x)
  program = jax.jit(lambda v, x: static(model, v, x, structure)).lower(pool, x).compile()
  return program.cost_analysis()['flops'] / len(x)


def test_costs_are_those_of_compiled_structures():
  """XLA's fusions repeat or save a few element-wise operations per unit, which the costs of the
  separate parts cannot know: fewer than 4 per unit of the stream in all, and at a width where
  matmuls dominate (measured) 0.2–0.5 % of a gate.
  """
  model = MLP(num_blocks=3, width=64, hidden=(32, 128, 64), num_classes=10)
  x = jnp.zeros((16, 30))
  space = measure(model, x)
  compiled = {s: xla_flops(model, x, s) for s in ('111', '101', '100', '000')}
  for structure, flops in compiled.items():
    np.testing.assert_allclose(space.flops(structure), flops, rtol=0, atol=4 * 64)
  np.testing.assert_allclose(space.gates[1].flops, compiled['111'] - compiled['101'], rtol=0.01)
  np.testing.assert_allclose(space.gates[2].flops, compiled['101'] - compiled['100'], rtol=0.01)
  matmuls = 2 * 2 * 64 * 128  # two matmuls, a multiplication and an addition each
  assert matmuls < space.gates[1].flops < 1.1 * matmuls


def test_parameters_are_those_of_the_pool(model, x, variables):
  space = measure(model, x)
  pool = variables['params']
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  assert space.params('111') == count(pool)
  assert space.fixed_params == count(pool['embed']) + count(pool['readout'])
  for i, gate in enumerate(space):
    assert gate.params == count(pool[f'block_{i:02}'])
  assert len({gate.params for gate in space}) == 3


def test_measure_takes_shapes_of_any_batch(model):
  small = measure(model, jax.ShapeDtypeStruct((1, 10), jnp.uint8))
  large = measure(model, np.zeros((32, 10), np.uint8))
  assert small.gates == large.gates
  # Casting or broadcasting once per batch is shared by more examples in the larger one.
  np.testing.assert_allclose(small.fixed_flops, large.fixed_flops, rtol=0.02)


class Tied(Additive):
  """Embed and readout share a table; both sites share one layer."""

  def setup(self):
    self.table = nn.Embed(11, 8, name='table')
    self.shared = nn.Dense(8, name='shared')
    self.sites = [Twice(self.shared, name='first'), Twice(self.shared, name='second')]

  def embed(self, x):
    return self.table(x)

  def readout(self, h):
    return self.table.attend(h)


class Twice(nn.Module):
  layer: nn.Module

  def __call__(self, h):
    return jnp.tanh(self.layer(h))


def test_shared_parameters_count_once():
  x = jnp.zeros((2, 7), jnp.int32)
  space = measure(Tied(), x)
  assert space.names == ('first/residual', 'second/residual')
  assert space.fixed_params == 11 * 8
  assert [gate.params for gate in space] == [0, 0]
  _, params = space.costs(['00', '10', '01', '11'])
  assert (params - space.fixed_params).tolist() == [0, *[8 * 8 + 8] * 3]
  assert space.gates[0].flops == space.gates[1].flops > 7 * 2 * 8 * 8
  assert Tied().space.gates[0].flops is None
  found = parts(Tied(), x)
  assert set(found.embed) == set(found.readout) == {'table'}
  assert set(found.sites[0]) == set(found.sites[1]) == {'shared'}


def test_variables_and_inputs_that_do_not_fit():
  model = MLP(2, 8, 8, 3)
  x = np.zeros((4, 5), np.float32)
  variables = model.init(jax.random.key(0), x)
  pool_alone = r"variables \[.*'block_00', .*\]: expected \{'params': pool\}, which model\.init"
  for way in (model.apply, functools.partial(static, model)):
    with pytest.raises(UserError, match=pool_alone):
      way(variables['params'], x, '11')
    with pytest.raises(UserError, match=r'MLP on inputs .*\(4, 6\)'):
      way(variables, np.zeros((4, 6), np.float32), '11')
  with pytest.raises(UserError, match=pool_alone):
    evaluate_structures(model, variables['params'], (x, np.zeros(4, int)))
