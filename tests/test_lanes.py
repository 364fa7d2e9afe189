"""Lanes over a mesh: the numbers of one device, and one all-reduce for each gate that is on."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from additive_jax import UserError, run
from additive_jax.gates.structure import all_bits
from additive_jax.models import MLP, Transformer
from additive_jax.models.additive import gate_names, sites_of
from additive_jax.parallel import lanes

# Sums over lanes in another order, through at most four branches in float32.
TOLERANCE = 5e-6
RNG = np.random.default_rng(0)
ROWS = {
  'mlp': (
    MLP(3, 8, 8, 3, gates=('lane',), num_lanes=4),
    RNG.normal(size=(4, 5)).astype(np.float32),
  ),
  'mlp, all kinds': (
    MLP(1, 8, 8, 3, gates=('residual', 'sub_activation', 'lane'), num_lanes=4, num_chunks=2),
    RNG.normal(size=(4, 5)).astype(np.float32),
  ),
  'text': (
    Transformer(
      1,
      16,
      4,
      8,
      11,
      gates=('residual', 'lane'),
      num_lanes=4,
      num_tokens=11,
      causal=True,
      positions='rope',
      unit='swiglu',
    ),
    RNG.integers(0, 11, (4, 6)),
  ),
  'images': (
    Transformer(1, 8, 4, 8, 3, gates=('lane',), num_lanes=4),
    RNG.normal(size=(4, 4, 4)).astype(np.float32),
  ),
}
WAYS = {'conditional': run.conditional, 'masked': run.masked}


def loss(outputs):
  return jnp.sin(outputs).sum()  # another slope for each output


def apart(tree, other):
  """Largest difference between two pytrees, relative to the largest number in them."""
  pairs = list(zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True))
  scale = max(np.abs(a).max() for a, _ in pairs)
  return max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in pairs) / scale


def num_reduced(model, bits):
  """Lane gates that are on in sites that are run, and the readout's mean where lanes differ: where
  the last of these gates is off."""
  gates = [
    bool(bits[site.start + site.names.index('lane')])
    for site in sites_of(model)
    if not site.has_residual or bits[site.start]
  ]
  return sum(gates) + (not gates or not gates[-1])


@pytest.mark.parametrize('row', tiny.slow_but(['mlp'], ROWS))
def test_one_all_reduce_for_each_gate_that_is_on(row, random_pool):
  model, x = ROWS[row]
  variables = random_pool(model, x)
  mesh = lanes.lane_mesh(4, jax.devices()[:4])
  placed = lanes.place_pool(model, variables, mesh, x)
  way = lanes.over_mesh(run.static, model, mesh)
  structures = all_bits(len(gate_names(model)))
  counts = set()
  for bits in structures[::-3]:  # all-on first, and every gate off and on
    structure = tuple(map(bool, bits))
    program = jax.jit(lambda v, x, s=structure: way(v, x, s)).lower(placed, x).compile()
    found = len(re.findall(r' all-reduce(?:-start)?\(', program.as_text()))
    assert found == num_reduced(model, bits), bits
    for other in ('all-gather', 'collective-permute', 'all-to-all', 'reduce-scatter'):
      assert other not in program.as_text()
    assert apart(run.static(model, variables, x, structure), program(placed, x)) < TOLERANCE
    counts.add(found)
  assert len(counts) > 1 or len(sites_of(model)) == 1  # of one site only where it is differs


@functools.cache
def alone(row):
  """Loss and gradient of variables and bits on one device."""
  model, x = ROWS[row]
  return jax.jit(jax.value_and_grad(lambda v, s: loss(run.conditional(model, v, x, s))))


# Ways to run and devices are independent of each other; one model takes part in all pairings.
PAIRINGS = [
  *(
    pytest.param(row, how, marks=() if row == 'mlp' else pytest.mark.slow)
    for row, how in itertools.product(ROWS, [('conditional', 4), ('masked', 2)])
  ),
  *itertools.product(['mlp'], [('conditional', 2), ('masked', 4)]),
]


@pytest.mark.parametrize(('row', 'how'), PAIRINGS, ids=str)
def test_outputs_and_gradients_of_one_device(row, how, random_pool):
  way, devices = how
  model, x = ROWS[row]
  variables = random_pool(model, x)
  mesh = lanes.lane_mesh(devices, jax.devices()[:4])
  placed = lanes.place_pool(model, variables, mesh, x)
  over = lanes.over_mesh(WAYS[way], model, mesh)
  spread = jax.jit(jax.value_and_grad(lambda v, s: loss(over(v, x, s))))
  structures = all_bits(len(gate_names(model)))
  gradients = []
  for bits in structures[:: max(1, len(structures) // 5)]:
    form = jnp.asarray(bits if way == 'conditional' else bits.astype(np.float32))
    got = spread(placed, form)
    gradients.append(alone(row)(variables, bits))
    assert apart(gradients[-1], got) < TOLERANCE
  assert max(apart(gradients[0], other) for other in gradients) > 1e-2


def test_a_structure_for_each_example(random_pool):
  model, x = ROWS['mlp']
  variables = random_pool(model, x)
  mesh = lanes.lane_mesh(2, jax.devices()[:4])  # and two halves of the batch
  placed = lanes.place_pool(model, variables, mesh, x)
  gates = jnp.asarray(RNG.random((4, 3)), jnp.float32)
  got = jax.jit(lanes.over_mesh(run.masked, model, mesh))(placed, x, gates)
  want = jax.jit(lambda v, x, g: run.masked(model, v, x, g))(variables, x, gates)
  assert apart(want, got) < TOLERANCE


def test_each_device_holds_its_share(random_pool):
  model, x = ROWS['text']
  mesh = lanes.lane_mesh(4, jax.devices()[:4])
  placed = lanes.place_pool(model, random_pool(model, x), mesh, x)['params']
  kernels = {
    'block_00__attention': {'qkv': (None, None, 'lane'), 'out': ('lane',)},
    'block_00__mlp': {'in': (None, 'lane'), 'gate': (None, 'lane'), 'out': ('lane',)},
  }
  for site, names in kernels.items():
    for name, spec in names.items():
      kernel = placed[site][name]['kernel']
      assert tuple(kernel.sharding.spec)[: len(spec)] == spec
      assert kernel.addressable_shards[0].data.size * 4 == kernel.size
  assert placed['embed']['embedding'].sharding.is_fully_replicated


@pytest.mark.parametrize('count', [0, 3, 5])
def test_axis_that_does_not_divide_the_devices(count):
  with pytest.raises(UserError, match=f'a lane axis of {count} on 4 devices: expected a number'):
    lanes.lane_mesh(count, jax.devices()[:4])


def test_model_that_does_not_divide():
  with pytest.raises(UserError, match='4 lanes over 3 devices: expected a multiple of 3'):
    lanes.check_lanes(ROWS['mlp'][0], 3)
  plain = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])
  with pytest.raises(
    UserError, match=r"a mesh of axes \('data',\): expected one with the axis 'la"
  ):
    lanes.over_mesh(run.static, MLP(1, 4, 4, 3, gates=('lane',)), plain)
  two = lanes.over_mesh(
    run.static, MLP(1, 4, 4, 3, gates=('lane',)), lanes.lane_mesh(2, jax.devices()[:4])
  )
  with pytest.raises(UserError, match='3 examples over 2 devices along the data axis: expected a'):
    two({}, jnp.ones((3, 4)), '1')
  with pytest.raises(UserError, match=r"MLP with gates \('residual',\) on a lane axis"):
    lanes.check_lanes(MLP(1, 8, 8, 3), 2)
