"""What an optimizer keeps, split over devices and in host memory: the same updates, to the bit."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec

from additive_jax import UserError
from additive_jax.data import ArraySplit
from additive_jax.experiments.opening import open_session
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.models import MLP, Transformer
from additive_jax.models.moe import Experts
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.parallel.zero import HOST, Packed, Storage, bytes_per_device, split_further
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

RANDOM = np.random.default_rng(0)
TRAIN = ArraySplit(
  RANDOM.normal(size=(40, 7)).astype(np.float32), np.arange(40, dtype=np.int32) % 10
)
# Of its leaves 8 divides the axes of none, one or both; biases of 9 and 10 go into the vector.
MODEL = MLP(num_blocks=1, width=48, hidden=9, num_classes=10)
CLIP = 0.5
ADAMW = optax.adamw(0.01, weight_decay=0.1)
RECIPE = Recipe(MODEL, 'classification', optax.chain(optax.clip_by_global_norm(CLIP), ADAMW))
SAMPLER = samplers.make_sampler('uniform', 1, 2)
STEPS = 5
ZERO, BOTH = {'zero': True}, {'zero': True, 'offload': True}
# The level at which the tests compile leaves kernels unoptimised by the part of the program that
# they fall into, and so rounds the same operations differently in two programs: one part only.
ONE_PART = {'xla_cpu_parallel_codegen_split_count': 1}


@functools.cache
def mesh_of(structure, data):
  mesh = mesh_.make_mesh(structure, data, jax.devices()[: structure * data])
  assert dict(mesh.shape) == {'structure': structure, 'data': data}
  return mesh


def in_one_part(trainer):
  inputs = trainer._feed.chunk(0, 1)
  arguments = (
    trainer.sharded_state,
    trainer._sampler,
    trainer._key,
    np.int32(1),
    inputs,
    trainer._data,
  )
  trainer._program = trainer._program.lower(*arguments).compile(compiler_options=ONE_PART)
  return trainer


def trainer_of(mesh=(2, 4), recipe=RECIPE, **options):
  placed = {name: options.pop(name) for name in ('zero', 'offload') if name in options}
  placement = Placement(mesh_of(*mesh), chunk_steps=3, **placed)
  options = {'batch_size': 8, 'seed': 0} | options
  return in_one_part(Trainer(recipe, TRAIN, SAMPLER, placement=placement, **options))


@pytest.fixture(scope='module')
def trained():
  """A function of a mesh and options: the trainer after some steps, and what they gave."""

  @functools.cache
  def train(mesh, **options):
    trainer = trainer_of(mesh, **options)
    return trainer, trainer.run(STEPS)

  return train


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, processes.to_host(got), processes.to_host(want))


@pytest.mark.parametrize(
  ('mesh', 'options'),
  [
    pytest.param((1, 8), ZERO, marks=pytest.mark.thorough),
    pytest.param((2, 4), ZERO, marks=pytest.mark.slow),
    ((2, 4), BOTH),
  ],
  ids=str,
)
def test_updates_are_those_of_whole_states_to_the_bit(mesh, options, trained):
  """With clipping, by a norm whose terms are added in the same order; over structure and data."""
  (plain, want), (split, got) = trained(mesh), trained(mesh, **options)
  assert_same(got, want)
  assert_same(split.state, plain.state)
  assert want['gradient_norm'].min() > CLIP
  assert np.ptp(want['loss'], axis=1).min() > 1e-3  # the structures or their examples differ
  assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(plain.state.opt_state)) > 1e-9
  assert split.step == STEPS


@pytest.mark.parametrize(
  ('mesh', 'options'),
  [pytest.param((1, 8), ZERO, marks=pytest.mark.thorough), ((2, 4), ZERO), ((2, 4), BOTH)],
  ids=str,
)
def test_bytes_of_each_device(mesh, options, trained):
  """At most an eighth and one in a hundred, as measured; none on the device where they are kept in
  host memory."""
  plain, split = (
    bytes_per_device(trained(mesh, **chosen)[0].sharded_state) for chosen in ({}, options)
  )
  whole = plain['optimizer'].device[0]
  assert whole > 2 * plain['parameters'].device[0] > 0
  assert set(plain['optimizer'].host.values()) == {0}
  assert split['parameters'] == split['gradients'] == plain['parameters']
  here, there = split['optimizer'].device, split['optimizer'].host
  if 'offload' in options:
    here, there = there, here
  assert list(here) == list(there) == [device.id for device in jax.devices()]
  assert max(here.values()) <= 1.01 * whole / 8
  assert set(there.values()) == {0}


def test_leaves_that_do_not_divide_share_a_vector(trained):
  kept = trained((2, 4), **ZERO)[0].sharded_state.opt_state
  assert isinstance(kept, Packed)
  # Two moments, each with biases of 9 and 10; then up to a multiple of 8.
  assert {name: vector.shape for name, vector in kept.vectors.items()} == {'float32': (40,)}
  for leaf in [*kept.leaves, *kept.vectors.values()]:
    parts = {shard.data.size for shard in leaf.addressable_shards}
    assert parts == {leaf.size // 8 if leaf.ndim else 1}


def test_the_program_gathers_parameters_and_reduces_gradients_once(trained):
  """No collective for each bias of the vector, and none for the parts of a norm; one more tells
  whether all parts stay finite."""
  texts = [trained((2, 4), **options)[0]._program.as_text() for options in ({}, ZERO)]
  plain, split = ({kind: t.count(f' {kind}(') for kind in KINDS} for t in texts)
  assert split['all-reduce'] - 1 == plain['all-reduce'] > 0
  assert split['all-gather'] > plain['all-gather']
  assert split['collective-permute'] == split['all-to-all'] == 0


KINDS = ('all-reduce', 'all-gather', 'collective-permute', 'all-to-all')


@pytest.mark.slow
def test_a_checkpoint_moves_between_all_ways_to_keep_it(tmp_path, trained):
  """Two steps with each device's part in host memory, and the rest on two whole devices; back."""
  want = trained((2, 4))[0].state
  with Checkpointer(tmp_path / 'c', identity={}) as checkpoints:
    first = trainer_of(**BOTH)
    first.run(2)
    checkpoints.save(2, first.state, wait=True)
    second = trainer_of()
    second.state = checkpoints.restore(second.state).state
    assert second.step == 2
    second.run(STEPS - 2)
    assert_same(second.state, want)
    checkpoints.save(STEPS, second.state, wait=True)
    first.state = checkpoints.restore(first.state).state
  assert_same(first.state, want)
  kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(first.sharded_state.opt_state)}
  assert kinds == {HOST}
  fewer = trainer_of((1, 1), **ZERO)
  fewer.state = first.state
  assert_same(fewer.state, want)


def test_a_state_starts_as_the_optimizer_says(trained):
  """Also one that keeps the pool itself, which then is a copy of its own."""
  keeps = optax.GradientTransformation(lambda params: {'pool': params}, ADAMW.update)
  params = trained((2, 4))[0].variables['params']
  shapes = jax.eval_shape(keeps.init, params)
  specs = jax.tree.map(lambda _: PartitionSpec(), params)
  lies = trained((2, 4))[0].sharded_state._replace(params=specs, opt_state={'pool': specs})
  for options in ({}, ZERO):
    storage = Storage(keeps, params, lies, Placement(mesh_of(2, 4), **options))
    kept = storage.init(params)
    assert jax.tree.structure(storage.unpack(kept)) == jax.tree.structure(shapes)
    assert_same(storage.unpack(kept)['pool'], params)
    jax.tree.map(lambda leaf: leaf.delete(), kept)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
def test_experts_and_their_moments_are_split_over_the_rest_too():
  """Within rounding: what the pool splits over `expert` is added up by two programs."""
  text = {'num_heads': 2, 'hidden': 6, 'num_classes': 7, 'num_tokens': 7, 'causal': True}
  model = Transformer(1, 4, routing=Experts(4, 2), **text)
  train = ArraySplit(*RANDOM.integers(0, 7, (2, 16, 2)).astype(np.uint8))
  # Not Adam, which turns the rounding of gradients that are zero into steps.
  optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(0.3, momentum=0.9))
  recipe = Recipe(model, 'language', optimizer)
  mesh = mesh_.make_mesh(2, 2, expert_devices=2)
  make = lambda **options: in_one_part(
    Trainer(
      recipe,
      train,
      samplers.make_sampler('bernoulli', 2, 2),
      batch_size=2,
      seed=0,
      placement=Placement(mesh, chunk_steps=3, **options),
    )
  )
  plain, split = make(), make(**ZERO)
  want, got = plain.run(3), split.run(3)
  close = functools.partial(np.testing.assert_allclose, atol=2e-6)
  jax.tree.map(close, got, want)
  jax.tree.map(close, processes.to_host(split.state), processes.to_host(plain.state))
  whole, parts = (bytes_per_device(t.sharded_state) for t in (plain, split))
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(plain.state.opt_state))
  assert whole['optimizer'].device[0] > total / 2
  assert parts['optimizer'].device[0] <= 1.01 * total / 8
  assert parts['parameters'] == whole['parameters']


@pytest.mark.parametrize(
  ('shape', 'spec', 'want'),
  [
    ((16, 3), PartitionSpec(), PartitionSpec(('data', 'structure'), None)),
    ((3, 16), PartitionSpec(), PartitionSpec(None, ('data', 'structure'))),
    ((4, 6), PartitionSpec(), PartitionSpec('data', 'structure')),
    ((16, 3), PartitionSpec('structure'), PartitionSpec(('structure', 'data'), None)),
    ((2, 8), PartitionSpec('structure'), PartitionSpec('structure', 'data')),
    ((10,), PartitionSpec(), None),
    ((9, 7), PartitionSpec(), None),
    ((), PartitionSpec(), PartitionSpec()),
  ],
)
def test_axes_of_a_leaf(shape, spec, want):
  assert split_further(shape, spec, mesh_of(2, 4)) == want


def test_devices_without_host_memory():
  memory = SimpleNamespace(kind='beads')
  device = SimpleNamespace(platform='abacus', addressable_memories=lambda: [memory])
  mesh = SimpleNamespace(local_devices=[device])
  with pytest.raises(UserError, match='offload on abacus devices with memory beads: expected'):
    Storage(ADAMW, {'w': jnp.ones(2)}, None, Placement(mesh, offload=True))


def test_options_make_no_other_run(tmp_path):
  """A directory belongs to a run with and without them."""
  for options in ({}, {'train.zero': True, 'train.offload': True}):
    config = tiny.config('sweep', options)
    with open_session(config, tmp_path / 'run', check=lambda session: None) as session:
      trainer = session.trainer(session.training.recipe(4), session.training.sampler(4), 0)
    found = bytes_per_device(trainer.sharded_state)['optimizer']
    assert (max(found.device.values()) == 0) == bool(options)
