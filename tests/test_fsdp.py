"""Pools that devices hold in pieces, along `fsdp` and `tensor`: the numbers of one device, from the
parts that each holds."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import Additive, UserError, run
from additive_jax.data import ArraySplit
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.gates import subsets
from additive_jax.models import MLP, ConvNet, Decoder, Transformer
from additive_jax.models.additive import gate_names
from additive_jax.models.dna import DNA, Modules
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.parallel.zero import bytes_per_device
from additive_jax.train import samplers
from additive_jax.train.balance import Balance
from additive_jax.train.losses import PerSample, Routed
from additive_jax.train.recipe import Loss, Recipe, Structures
from additive_jax.train.trainer import Trainer

RANDOM = np.random.default_rng(0)
LABELS = np.arange(24, dtype=np.int32) % 4
ROWS = ArraySplit(RANDOM.normal(size=(24, 6)).astype(np.float32), LABELS)
IMAGES = ArraySplit(RANDOM.normal(size=(24, 4, 4)).astype(np.float32), LABELS)
TEXT = ArraySplit(*RANDOM.integers(0, 7, (2, 24, 2)).astype(np.uint8))
TOKENS = {'num_heads': 2, 'hidden': 6, 'num_classes': 7, 'num_tokens': 7, 'max_tokens': 2}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.3, momentum=0.9))
STEPS, BATCH = 4, 4


class Shuffled(nn.Module):
  """A branch of a user's with names of axes, which does more with its units than to sum over them:
  left to XLA, it would take a collective-permute."""

  @nn.compact
  def __call__(self, h):
    init = nn.initializers.lecun_normal()
    named = functools.partial(nn.with_logical_partitioning, init)
    x = nn.Dense(8, use_bias=False, kernel_init=named(('embed', 'hidden')))(h)
    x = x.reshape(-1, 2, 4).swapaxes(1, 2).reshape(h.shape) + jnp.roll(x, 3, 1)
    return nn.Dense(8, use_bias=False, kernel_init=named(('hidden', 'embed')))(nn.relu(x))


class Own(Additive):
  """A network of a user's; most axes have no names."""

  def setup(self):
    self.sites = [nn.Dense(8, name='first'), Shuffled(name='second')]
    self.head = nn.Dense(4)

  def embed(self, x):
    return jnp.pad(x, ((0, 0), (0, 2)))

  def readout(self, h):
    return self.head(h)


def squares(params):
  return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params))


@dataclasses.dataclass(frozen=True)
class Decayed(Loss):
  """A loss that reads the pool by itself."""

  def __call__(self, recipe, params, slot):
    outputs = run.conditional(recipe.model, {'params': params}, slot.x, slot.structure)
    return recipe.losses(outputs, slot.y).mean() + 0.1 * squares(params), {'norm': squares(params)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Derived(Structures):
  """One that does, derived from one that does not."""

  def __call__(self, recipe, params, slot):
    loss, facts = super().__call__(recipe, params, slot)
    return loss + 0.1 * squares(params), facts


MLP_ = MLP(2, 8, 12, 4)
SUBSETS = subsets.Subsets(((0.5, 0.75),), parts=2)
ROWS_OF = {  # model, task, data, options of the recipe
  'mlp': (MLP_, 'classification', ROWS, {'loss': Structures(distill=0.3)}),
  'chunks': (
    MLP(2, 8, 12, 4, gates=('residual', 'sub_activation')),
    'classification',
    ROWS,
    {'average': 'coverage', 'collective': 'ring'},
  ),
  'text': (Transformer(1, 4, unit='swiglu', causal=True, **TOKENS), 'language', TEXT, {}),
  'grouped': (
    Decoder(1, 4, 4, 6, 7, num_kv_heads=2, head_size=2, qk_norm=True),
    'language',
    TEXT,
    {},
  ),
  'images': (ConvNet((4,), 1, num_classes=4), 'classification', IMAGES, {}),
  'own': (Own(), 'classification', ROWS, {}),
  'per sample': (MLP_, 'classification', ROWS, {'loss': PerSample(subsets=SUBSETS)}),
  'reads the pool': (MLP_, 'classification', ROWS, {'loss': Decayed()}),
  'derived': (MLP_, 'classification', ROWS, {'loss': Derived()}),
  'modules': (
    DNA(2, 4, modules=Modules(2, 2, 0, 1, 2), causal=True, **TOKENS | {'hidden': 5}),
    'language',
    TEXT,
    {'loss': Routed(Balance(0.1, 0.01, 0.01))},
  ),
}
FSDP, TENSOR = {'fsdp_devices': 2}, {'tensor_devices': 2}


@pytest.fixture(scope='module', autouse=True)
def sizes():
  with tiny.two_sizes():
    yield


@functools.cache
def recipe_of(name):
  model, task, _, options = ROWS_OF[name]
  return Recipe(model, task, OPTIMIZER, **options)


def sampler_of(name):
  num_gates = len(gate_names(recipe_of(name).model))
  if isinstance(recipe_of(name).loss, PerSample | Routed):
    return samplers.listed(['1' * num_gates], num_gates, 2)
  return samplers.make_sampler('uniform', num_gates, 2)


def trainer_of(name, spread=None, structures=1, data=1, **placed):
  count = structures * data * int(np.prod(list((spread or {}).values())))
  mesh = mesh_.make_mesh(structures, BATCH, jax.devices()[:count], **(spread or {}))
  assert mesh.size == count
  return Trainer(
    recipe_of(name),
    ROWS_OF[name][2],
    sampler_of(name),
    batch_size=BATCH,
    seed=0,
    placement=Placement(mesh, chunk_steps=STEPS, **placed),
  )


@functools.cache
def on_one_device(name):
  trainer = trainer_of(name)
  return trainer, trainer.run(STEPS)


def assert_close(got, want):
  """After some steps of float32, each of which multiplies rounding by at most a little."""
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, processes.to_host(got), processes.to_host(want))


def program_of(trainer):
  state, inputs = trainer.sharded_state, trainer._feed.chunk(0, 1)
  now = trainer._sampler, trainer._key, np.int32(1), inputs, trainer._data
  return trainer._program.lower(state, *now).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'spread', 'structures', 'data'),
  [
    pytest.param('mlp', FSDP, 2, 2, marks=pytest.mark.thorough),
    pytest.param('mlp', TENSOR, 2, 2, marks=pytest.mark.thorough),
    ('chunks', FSDP | TENSOR, 2, 1),
    ('text', FSDP | TENSOR, 2, 1),
    pytest.param('text', {'fsdp_devices': 4}, 2, 1, marks=pytest.mark.thorough),
    ('grouped', FSDP | TENSOR, 2, 1),
    ('images', TENSOR, 2, 1),
    ('own', FSDP | TENSOR, 2, 1),
    ('per sample', FSDP, 2, 1),
    ('reads the pool', FSDP | TENSOR, 2, 1),
    pytest.param('derived', FSDP, 1, 2, marks=pytest.mark.thorough),
    pytest.param('modules', FSDP | {'expert_devices': 2}, 2, 1, marks=pytest.mark.thorough),
    # By default `test_layout` spreads modules over devices.
    pytest.param('modules', TENSOR | {'expert_devices': 2}, 1, 2, marks=pytest.mark.thorough),
  ],
  ids=str,
)
def test_training_is_that_of_one_device(name, spread, structures, data):
  """Losses, facts, the norm that clips, the pool and what the optimizer keeps of it. And no device
  waits for one that takes another branch, as on CPU in a collective-permute."""
  (one, want), many = on_one_device(name), trainer_of(name, spread, structures, data)
  assert_close(many.run(STEPS), want)
  assert_close(many.state, one.state)
  assert want['gradient_norm'].max() > 0.5
  if recipe_of(name).collective == 'psum':
    assert not re.findall(r' (collective-permute|all-to-all)', program_of(many))


@pytest.mark.parametrize('spread', [FSDP, TENSOR, FSDP | TENSOR, {'fsdp_devices': 4}], ids=str)
def test_bytes_of_each_device(spread):
  """Of parameters, gradients and the optimizer: its share of all that divides."""
  trainer, parts = trainer_of('own', spread, 2), int(np.prod(list(spread.values())))
  whole = bytes_per_device(on_one_device('own')[0].sharded_state)
  for kind, split in bytes_per_device(trainer.sharded_state).items():
    assert set(split.device.values()) == {min(split.device.values())}
    # A bias of 8 or 4 divides over one of two axes.
    vectors = 4 * (8 + 4)
    rest = vectors * (1 / max(spread.values()) - 1 / parts)
    assert split.device[0] == whole[kind].device[0] / parts + rest, kind


def test_a_site_gathers_what_it_reads_where_it_is_on():
  """Each gather of a site's parameters stands inside of its branch."""
  text = program_of(trainer_of('mlp', FSDP, 2))
  lines = [line for line in text.splitlines() if ' all-gather' in line and 'metadata' in line]
  inside = [line for line in lines if '/cond/branch_1_fun' in line]
  assert len(inside) >= 2 * 6  # six leaves of a block, forward and backward
  assert any(' reduce-scatter' in line and 'branch_1_fun' in line for line in text.splitlines())


@pytest.mark.parametrize(
  'options',
  [pytest.param({'zero': True}, marks=pytest.mark.thorough), {'zero': True, 'offload': True}],
  ids=str,
)
def test_with_zero(options):
  """What the optimizer keeps is split further, over the other axes."""
  one, want = on_one_device('mlp')
  many = trainer_of('mlp', FSDP, 2, 2, **options)
  assert_close(many.run(STEPS), want)
  assert_close(many.state, one.state)
  kept, whole = (bytes_per_device(t.sharded_state)['optimizer'] for t in (many, one))
  here = kept.host if 'offload' in options else kept.device
  assert max(here.values()) <= 1.03 * whole.device[0] / 8


def test_a_checkpoint_goes_on_on_other_devices(tmp_path):
  """Two steps on eight devices, and two more on one; and back."""
  with Checkpointer(tmp_path / 'c', identity={}) as checkpoints:
    first = trainer_of('text', FSDP | TENSOR, 2)
    first.run(2)
    checkpoints.save(2, first.state, wait=True)
    second = trainer_of('text')
    second.state = checkpoints.restore(second.state).state
    second.run(2)
    assert_close(second.state, on_one_device('text')[0].state)
    checkpoints.save(4, second.state, wait=True)
    third = trainer_of('text', {'fsdp_devices': 4})
    third.state = checkpoints.restore(third.state).state
    jax.tree.map(
      np.testing.assert_array_equal, *map(processes.to_host, (third.state, second.state))
    )


@pytest.mark.parametrize('options', [{}, {'zero': True}, {'zero': True, 'offload': True}], ids=str)
def test_no_host_has_a_whole_state(options, tmp_path, monkeypatch):
  """Between two trainings and on the way through a checkpoint; and no device has one either."""
  trainer = trainer_of('mlp', FSDP, 2, 2, **options)
  with Checkpointer(tmp_path / 'c', identity={}) as checkpoints:
    trainer.run(2)
    with monkeypatch.context() as patch:
      patch.setattr(processes, 'to_host', None)
      checkpoints.save(2, trainer.state, wait=True)
      trainer.state = checkpoints.restore(trainer.state).state
    trainer.run(2)
  assert_close(trainer.state, on_one_device('mlp')[0].state)
  for leaf in jax.tree.leaves(trainer.state.params):
    assert leaf.addressable_shards[0].data.size == leaf.size // 2


@pytest.mark.parametrize(
  ('model', 'spread', 'message'),
  [
    (
      MLP(1, 8, 9, 4),
      TENSOR,
      '9 hidden of block_00/in/bias over 2 tensor_devices: expected a',
    ),
    (
      MLP_,
      {'fsdp_devices': 8},
      'fsdp_devices 8 for a batch of 4 parts: expected a number that',
    ),
    (MLP_, {'tensor_devices': 3}, 'tensor_devices 3 on 8 devices: expected a number that divides'),
    (MLP_, FSDP | {'pipe_devices': 2}, 'fsdp_devices 2 with pipe_devices 2: expected 1 of either'),
  ],
  ids=str,
)
def test_what_does_not_divide(model, spread, message):
  recipe = Recipe(model, 'classification', OPTIMIZER)
  sampler = samplers.make_sampler('uniform', len(gate_names(model)), 2)

  def train():
    placement = Placement(mesh_.make_mesh(2, BATCH, **spread))
    Trainer(recipe, ROWS, sampler, batch_size=BATCH, seed=0, placement=placement)

  with pytest.raises(UserError, match=message):
    train()
