"""What a step will take, before anything is made: by the formula, by XLA, and of arrays that lie on
devices."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError
from additive_jax.data import ArraySplit
from additive_jax.experiments import planning
from additive_jax.gates.structure import all_bits
from additive_jax.models import MLP, Additive, BatchNorm, Transformer
from additive_jax.models.additive import canonical, sites_of
from additive_jax.models.liveness import live_bytes, saved_bytes
from additive_jax.parallel import traffic
from additive_jax.parallel.mesh import exact_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.parallel.zero import bytes_per_device
from additive_jax.run import prefix
from additive_jax.run.walk import walk
from additive_jax.train import samplers
from additive_jax.train.plan import plan
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.trainer import Trainer

SIZES = {'num_heads': 4, 'hidden': 256, 'num_classes': 64, 'num_tokens': 64}
MODEL = Transformer(2, 64, **SIZES, causal=True, positions='rope', unit='swiglu')
SLOTS, BATCH, TOKENS = 2, 8, 128
RECIPE = Recipe(MODEL, 'language', optax.adamw(1e-3))
IN_PIECES = dataclasses.replace(RECIPE, dtype='bfloat16', accumulate=2)
SAMPLER = samplers.make_sampler('uniform', 4, SLOTS)
TEXT = jax.ShapeDtypeStruct((BATCH, TOKENS), jnp.int32)


@pytest.mark.parametrize(
  ('recipe', 'sizes', 'options'),
  [
    (RECIPE, {'structure': 2, 'fsdp': 4}, {}),
    pytest.param(IN_PIECES, {'fsdp': 4}, {}, marks=pytest.mark.thorough),
    pytest.param(RECIPE, {'structure': 2, 'data': 4}, {'zero': True}, marks=pytest.mark.thorough),
  ],
  ids=['spread', 'in pieces', 'zero'],
)
def test_the_formula_is_close_to_what_xla_counts(recipe, sizes, options):
  """And the state is to the byte what lies on a device."""
  found = plan(recipe, SAMPLER, TEXT, TEXT, sizes, **options)
  guess, held = found.forecast, found.held
  assert guess.total == pytest.approx(held.total, rel=0.15)
  assert guess.parameters + guess.optimizer == pytest.approx(held.arguments, rel=0.05)
  assert guess.flops == pytest.approx(found.flops, rel=0.1)
  big = {kind: size for kind, size in found.moved.items() if size > 1e4}
  assert big == pytest.approx(guess.moved, rel=0.02)
  tokens = np.zeros((BATCH, TOKENS), np.uint8)
  placement = Placement(exact_mesh(sizes), **options)
  trainer = Trainer(
    recipe, ArraySplit(tokens, tokens), SAMPLER, batch_size=BATCH, seed=0, placement=placement
  )
  measured = bytes_per_device(trainer.sharded_state)
  assert measured['parameters'].device[0] == guess.parameters
  assert measured['optimizer'].device[0] == guess.optimizer


def test_a_pool_that_no_machine_holds():
  """Of 550 GB; nothing is made."""
  model = MLP(1, 2**17, 2**19, 2)
  recipe = Recipe(model, 'classification', optax.sgd(0.1, momentum=0.9))
  x, y = jax.ShapeDtypeStruct((8, 6), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
  before = len(jax.live_arrays())
  found = plan(recipe, samplers.make_sampler('uniform', 1, 1), x, y, {'fsdp': 8})
  assert found.num_params > 2**37
  assert found.held.total > 2**37 * 4 * 2 / 8
  assert len(jax.live_arrays()) - before < 9
  assert f'{found.num_params:,} parameters on structure 1 × data 1 × fsdp 8' in str(found)


@pytest.mark.parametrize(
  ('experiment', 'options', 'names'),
  [
    ('cotrain', {'structures': ('11', '01', '10'), 'model.num_blocks': 2}, ['pool']),
    (
      'stochastic',
      {'stochastic.modes': ('per_sample',)},
      ['none', 'per_sample', 'per_sample_equal_flops'],
    ),
  ],
)
def test_the_pools_of_a_config(experiment, options, names, monkeypatch, tmp_path):
  """Nothing is trained or written."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(planning, 'plan', lambda recipe, sampler, x, y, mesh, **rest: (sampler, x, y))
  pools = dict(planning.plan_config(tiny.config(experiment, options), devices=2))
  assert list(pools) == names
  for sampler, x, y in pools.values():
    assert sampler.num_structures == {'cotrain': 2}.get(experiment, sampler.num_structures)
    assert len(x.shape) > 1
    assert x.shape[0] == y.shape[0] == tiny.config(experiment, options).train.batch_size
  assert not list(tmp_path.iterdir())


class Normed(Additive):
  """A site with statistics of its batch, of which a plan has none."""

  def setup(self):
    self.embed, self.readout = nn.Dense(4), nn.Dense(3)
    self.sites = [nn.Sequential([BatchNorm(), nn.Dense(4)], name='a')]


def test_a_network_with_batch_norms():
  recipe = Recipe(Normed(), 'classification', optax.sgd(0.1))
  x, y = np.zeros((4, 6), np.float32), np.zeros(4, np.int32)
  found = plan(recipe, samplers.make_sampler('uniform', 1, 1), x, y, {'data': 2})
  assert found.num_params == 7 * 4 + 8 + 5 * 4 + 5 * 3
  assert found.forecast.activations > 0
  assert '| parameters | 284 B |  |  |' in str(found)
  assert re.search(r'\| a step, all devices \| [\d.]+ k?FLOP \| [\d.]+ k?FLOP \|', str(found))


def test_a_loss_that_the_formula_does_not_know():
  """XLA counts it alone."""
  recipe = Recipe(MLP(1, 4, 8, 3), 'classification', optax.sgd(0.1), Structures(distill=0.5))
  x, y = np.zeros((4, 6), np.float32), np.zeros(4, np.int32)
  found = plan(recipe, samplers.make_sampler('uniform', 1, 1), x, y, {'data': 2})
  assert found.forecast is None
  assert '| temporaries |  |' in str(found)


def test_collectives_in_loops_and_branches():
  """Five times in a loop, and of two branches the one that moves more."""
  mesh = jax.sharding.Mesh(jax.devices()[:4], 'data')
  add_up = lambda x: jax.lax.psum(x, 'data')

  def run(x, gate):
    x = jax.lax.fori_loop(0, 5, lambda i, x: add_up(x) * 0.5, x)
    return jax.lax.cond(gate, lambda x: x, lambda x: jax.lax.all_gather(x, 'data')[0], x)

  everywhere = jax.P()
  options = {'mesh': mesh, 'in_specs': everywhere, 'out_specs': everywhere, 'check_vma': False}
  text = jax.jit(jax.shard_map(run, **options)).lower(jnp.ones(8), True).compile().as_text()
  assert traffic.moved(text) == {'all-reduce': 5 * 2 * 32 * 3 / 4, 'all-gather': 4 * 32 * 3 / 4}


def test_live_bytes():
  """A chain of element-wise work needs one array, two matmuls need two."""
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  assert live_bytes(lambda x: jnp.sin(jnp.cos(x)) + 1, x) == 256
  assert live_bytes(lambda x: (x @ x) @ x, x) == 512
  assert live_bytes(lambda x: (x @ x).reshape(64).sum(), x) == 260
  assert saved_bytes(lambda x: (jnp.sin(x) @ x).sum(), x) == 2 * 256


@pytest.mark.parametrize(
  'model',
  [MLP(6, 4, 8, 3), MLP(2, 6, 8, 3, gates=('residual', 'sub_activation'), num_chunks=3)],
  ids=['residual', 'chunks'],
)
def test_the_walk_of_all_structures(model):
  """Sites run as often as a plan of the walk says; of some structures too."""
  x = jax.ShapeDtypeStruct((2, 6), jnp.float32)
  bits = np.unique(canonical(model, all_bits(model.space.num_gates)), axis=0)
  for given, found in ((bits, walk(model, x)), (bits[::3], walk(model, x, bits[::3]))):
    plan_ = prefix.plan(given, 1, 64, sites_of(model), keep=-1)
    assert found.runs == tuple(plan_.count.sum(0))
    assert found.networks == len(given)


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'fsdp': 16}, 'a mesh of 1 × 1 × 16 devices: expected at most 8, the cpu devices here'),
    ({'batch': 2}, "axis 'batch' of a mesh: expected one of structure, data"),
    ({'data': 0}, '0 devices along data: expected a whole number, at least 1'),
    ({'structure': 4}, 'a mesh of 4 × 1 devices for 2 structures a step, each on 8 examples'),
  ],
  ids=str,
)
def test_what_cannot_be(sizes, message):
  with pytest.raises(UserError, match=message):
    plan(RECIPE, SAMPLER, TEXT, TEXT, sizes)
