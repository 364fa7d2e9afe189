"""Experts over the devices of a mesh, and a state that is split otherwise: the numbers of one
device, from the parts that each holds."""

import functools
import os
import socket
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_fsdp
import tiny
from jax.sharding import PartitionSpec

from additive_jax import Additive, UserError
from additive_jax.data import ArraySplit
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.gates.shares import sum_of_experts
from additive_jax.models import MLP, Transformer
from additive_jax.models.additive import gate_names
from additive_jax.models.dna import DNA, Modules
from additive_jax.models.moe import Experts
from additive_jax.parallel import layout, processes
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.balance import Balance
from additive_jax.train.losses import Routed
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.state import State, init_state
from additive_jax.train.trainer import Trainer

TEXT = {'num_heads': 2, 'hidden': 6, 'num_classes': 7, 'num_tokens': 7, 'causal': True}
MODELS = {
  'dna': DNA(2, 4, modules=Modules(4, 4, 0, 1, 2, skip=0.2), unit='swiglu', **TEXT),
  'blocks': DNA(1, 4, modules=Modules(0, 0, 4, 1, 2), num_backbone=1, **TEXT),
  'experts': Transformer(1, 4, routing=Experts(4, 2), **TEXT),
}
# Where in the pool the leaves with an axis of modules or experts lie.
SPLIT = {
  'dna': ["['pool']"],
  'blocks': ["['pool']"],
  'experts': ["['block_00__mlp']['in']", "['block_00__mlp']['out']"],
}
TRAIN = ArraySplit(*np.random.default_rng(1).integers(0, 7, (2, 16, 2)).astype(np.uint8))
STEPS, SLOTS, BATCH, CLIP = 4, 2, 2, 0.5
# Not Adam, which turns the rounding of a gradient that is zero, as of keys' biases, into steps.
OPTIMIZER = optax.chain(optax.clip_by_global_norm(CLIP), optax.sgd(0.3, momentum=0.9))
WHOLE = (1, 1, 1)


@functools.cache
def mesh_of(structure, data, expert):
  """Of the given shape; the axis `expert` is there where it is more than one device."""
  count = structure * data * expert
  mesh = mesh_.make_mesh(structure, data, jax.devices()[:count], expert_devices=expert)
  wanted = {'structure': structure, 'data': data} | ({'expert': expert} if expert > 1 else {})
  assert dict(mesh.shape) == wanted
  return mesh


@functools.cache
def recipe_of(name):
  return Recipe(MODELS[name], 'language', OPTIMIZER, Routed(Balance(0.1, 0.01, 0.01)))


def trainer_of(name, mesh, random_pool, **options):
  recipe = recipe_of(name)
  state = init_state(recipe, random_pool(recipe.model, TRAIN.x[:1]))
  num_gates = len(gate_names(recipe.model))
  options = {'batch_size': BATCH, 'seed': 0, 'state': state} | options
  sampler = samplers.listed(['1' * num_gates], num_gates, SLOTS)
  placement = Placement(mesh_of(*mesh), chunk_steps=STEPS)
  return Trainer(recipe, TRAIN, sampler, placement=placement, **options)


@pytest.fixture(scope='module', autouse=True)
def sizes():
  with tiny.two_sizes():
    yield


@pytest.fixture(scope='module')
def trained(random_pool):
  """A function of a model's name and a mesh: the trainer after some steps, and what they gave."""

  @functools.cache
  def train(name, mesh):
    trainer = trainer_of(name, mesh, random_pool)
    return trainer, trainer.run(STEPS)

  return train


def assert_close(got, want):
  """After some steps of float32, each of which multiplies rounding by at most a little."""
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, processes.to_host(got), processes.to_host(want))


@pytest.mark.parametrize(
  ('name', 'mesh'),
  [
    pytest.param('dna', (1, 2, 2), marks=pytest.mark.slow),
    pytest.param('blocks', (1, 1, 4), marks=pytest.mark.thorough),
    pytest.param('experts', (1, 1, 4), marks=pytest.mark.slow),
    ('experts', (2, 2, 2)),
  ],
  ids=str,
)
def test_experts_over_devices_train_as_on_one(name, mesh, trained, random_pool):
  """Losses, facts, biases, the norm that clips, the pool and what the optimizer keeps of it."""
  (one, want), (many, got) = trained(name, WHOLE), trained(name, mesh)
  assert_close(got, want)
  assert_close(many.state, one.state)
  assert want['gradient_norm'].min() > CLIP
  initial = random_pool(MODELS[name], TRAIN.x[:1])['params']
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), processes.to_host(one.state.params), initial
  )
  seen = set()
  for path, leaf in jax.tree.leaves_with_path({'params': moved}):
    place = jax.tree_util.keystr(path)
    split = any(part in place for part in SPLIT[name])
    seen.add((split, leaf > 1e-3))
  assert seen >= {(True, True), (False, True)}


@pytest.mark.parametrize(('name', 'mesh'), [('dna', (1, 2, 2)), ('experts', (1, 1, 4))], ids=str)
def test_each_device_holds_its_experts_alone(name, mesh, trained):
  """Of the pool and of the momentum, bytes; and the program never gathers the experts of others."""
  trainer, count = trained(name, mesh)[0], 0
  state, now = trainer.state, (trainer._key, np.int32(1), trainer._feed.chunk(0, 1), trainer._data)
  program = trainer._program.lower(state, trainer._sampler, *now).compile().as_text()
  assert 'all-reduce' in program
  assert 'all-gather' not in program
  for path, leaf in jax.tree.leaves_with_path((state.params, state.opt_state)):
    split = any(part in jax.tree_util.keystr(path) for part in SPLIT[name])
    held = [shard.data.nbytes for shard in leaf.addressable_shards]
    assert held == [leaf.nbytes // (mesh[2] if split else 1)] * np.prod(mesh), path
    count += split
  assert count >= 8


def test_a_checkpoint_goes_on_with_another_number_of_devices(tmp_path, trained, random_pool):
  """Two steps on four devices, and two more on one."""
  with Checkpointer(tmp_path / 'c', identity={}) as checkpoints:
    first = trainer_of('experts', (1, 1, 4), random_pool)
    first.run(2)
    checkpoints.save(2, first.state, wait=True)
    second = trainer_of('experts', WHOLE, random_pool)
    second.state = checkpoints.restore(second.state).state
    assert len(second.state.params['block_00__mlp']['in']['kernel'].addressable_shards) == 1
    second.run(2)
    assert second.step == STEPS
    assert_close(second.state, trained('experts', WHOLE)[0].state)
    # And back: what one device saved, spread over two.
    checkpoints.save(STEPS, second.state, wait=True)
    third = trainer_of('experts', (1, 1, 2), random_pool)
    third.state = checkpoints.restore(third.state).state
    jax.tree.map(
      np.testing.assert_array_equal, *map(processes.to_host, (third.state, second.state))
    )


@pytest.mark.slow
def test_gates_of_a_model_with_experts(random_pool):
  """Devices with different structures skip different sites, each with its all-reduce of experts."""
  model = MODELS['experts']
  recipe = Recipe(model, 'language', OPTIMIZER, Structures(distill=0.3), 'coverage', 'ring')
  state = init_state(recipe, random_pool(model, TRAIN.x[:1]))
  sampler = samplers.make_sampler('bernoulli', 2, SLOTS)
  options = {'batch_size': BATCH, 'seed': 0, 'state': state}
  train = lambda mesh: Trainer(
    recipe, TRAIN, sampler, placement=Placement(mesh_of(*mesh)), **options
  )
  one, many = train(WHOLE), train((2, 1, 2))
  want, got = one.run(8), many.run(8)
  assert_close(got, want)
  assert_close(many.state, one.state)
  assert np.ptp(want['loss'], axis=1).min() > 1e-3  # the structures of a step differ


class Roots(nn.Module):
  """Adds the roots of its parts, whose gradient is infinite at 0."""

  gates = ('residual',)

  def axis_names(self):
    return {'parts': ('expert',)}

  @nn.compact
  def __call__(self, h, values=()):
    parts = self.param('parts', nn.initializers.ones, (4,))
    root = lambda part, number, h: jnp.broadcast_to(jnp.sqrt(part), h.shape)
    return h + sum_of_experts(root, parts, h)


class Own(Additive):
  """A network of a user's with parts that may be spread."""

  num_classes: int = 3

  def setup(self):
    self.sites = [Roots(name='roots')]
    self.head = nn.Dense(self.num_classes)

  def embed(self, x):
    return x

  def readout(self, h):
    return self.head(h)


ROWS = ArraySplit(np.ones((8, 2), np.float32), np.arange(8, dtype=np.int32) % 3)


def own(devices, **options):
  recipe = Recipe(Own(), 'classification', OPTIMIZER)
  mesh = mesh_.make_mesh(1, 1, jax.devices()[:devices], expert_devices=devices)
  options = {'batch_size': 2, 'seed': 0} | options
  return Trainer(recipe, ROWS, samplers.fixed('1', 1), placement=Placement(mesh), **options)


def test_a_gradient_that_is_bad_on_one_device_is_left_out_on_all():
  initial = processes.to_host(own(1).state)
  initial.params['roots']['parts'][2] = 0.0
  trainer = own(4, state=State(*initial))
  values = trainer.run(2)
  assert np.isfinite(values['loss']).all()
  assert not values['finite'].any()
  assert int(trainer.state.skipped) == 2
  jax.tree.map(
    np.testing.assert_array_equal, processes.to_host(trainer.state.params), initial.params
  )
  initial.params['roots']['parts'][2] = 1.0
  assert own(4, state=State(*initial)).run(2)['finite'].all()


def test_what_an_optimizer_keeps_lies_like_the_pool():
  pool = {'a': {'kernel': jnp.ones((4, 2)), 'bias': jnp.ones(4)}, 'b': {'kernel': jnp.ones((4, 2))}}
  split, whole = PartitionSpec('expert'), PartitionSpec()
  specs = {'a': {'kernel': split, 'bias': whole}, 'b': {'kernel': whole}}
  found = layout.like_pool(optax.adam(0.1).init(pool), pool, specs)
  assert (found[0].mu, found[0].nu) == (specs, specs)
  assert found[0].count == whole
  factored = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
  found = layout.like_pool(factored.init(pool), pool, specs)
  assert set(jax.tree.leaves((found.v_row, found.v_col))) == {whole}  # of another shape


PROCESS = """
import sys
import jax
import numpy as np

rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.parallel import processes
with processes.distributed(f'localhost:{port}', 2, rank):
  import test_fsdp
  import test_layout
  trainer = test_layout.own(2)
  trainer.run(2)
  parts = trainer.variables['params']['roots']['parts']
  assert [shard.data.shape for shard in parts.addressable_shards] == [(2,)]
  split = test_fsdp.trainer_of('own', test_fsdp.FSDP)
  split.run(2)
  with Checkpointer(folder, identity={}) as checkpoints:
    checkpoints.save(2, split.state, wait=True)
    split.run(1)
    split.state = checkpoints.restore(split.state).state
  kernel = split.variables['params']['first']['kernel']
  assert [shard.data.shape for shard in kernel.addressable_shards] == [(4, 8)]
  split.run(2)
  for leaf in jax.tree.leaves(processes.to_host((trainer.variables, split.variables))):
    print('leaf', *leaf.reshape(-1).tolist())
"""


@pytest.mark.thorough
def test_two_processes(tmp_path):
  """Experts, and a pool in pieces, of which each process writes and reads its own.

  By default `test_cotrain` trains and `test_checkpoint` saves and restores in two processes.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  folder = os.path.dirname(__file__)
  paths = os.pathsep.join([folder, os.path.dirname(folder)])
  environment = os.environ | {'XLA_FLAGS': '', 'PYTHONPATH': paths, 'JAX_PLATFORMS': 'cpu'}
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  runs = [
    subprocess.Popen(
      [sys.executable, '-c', PROCESS, str(rank), port, str(tmp_path / 'c')],
      env=environment,
      **pipes,
    )
    for rank in range(2)
  ]
  try:
    outputs = [run.communicate(timeout=120) for run in runs]
  finally:
    for run in runs:
      run.kill()
  alone = own(1)
  alone.run(2)
  whole = test_fsdp.on_one_device('own')[0]
  for run, (output, errors) in zip(runs, outputs):
    assert run.returncode == 0, errors
    said = [line.split() for line in output.splitlines()]  # Gloo speaks too
    got = [np.array(words[1:], float) for words in said if words[0] == 'leaf']
    want = [np.reshape(a, -1) for a in jax.tree.leaves((alone.variables, whole.variables))]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize(
  ('model', 'devices', 'message'),
  [
    (MLP(1, 4, 4, 3), 2, 'MLP over 2 expert_devices: expected a model with experts or modules'),
    (
      MODELS['experts'],
      3,
      '4 expert of block_00__mlp/in/bias over 3 expert_devices: expected a mu',
    ),
    (MODELS['dna'], 8, '4 expert of pool/attention_attention_norm_bias over 8 expert_devices: exp'),
    (
      DNA(1, 4, modules=Modules(2, 3, 2), **TEXT),
      2,
      '3 expert of pool/mlp_mlp_in/bias over 2 expert_devices: expected a multiple of 2',
    ),
    (Transformer(1, 4, **TEXT), 2, 'Transformer over 2 expert_devices: expected a model with ex'),
  ],
)
def test_models_that_cannot_be_spread(model, devices, message):
  with pytest.raises(UserError, match=message):
    layout.check_model(model, {'expert': devices}, jax.ShapeDtypeStruct((1, 2), 'uint8'))
  task, train = 'language', TRAIN
  if isinstance(model, MLP):  # no network of tokens
    task, train = 'classification', ArraySplit(TRAIN.x, TRAIN.y[:, 0] % 3)
  recipe = Recipe(model, task, OPTIMIZER)
  num_gates = len(gate_names(model))
  sampler = samplers.fixed('1' * num_gates, num_gates)
  mesh = mesh_.make_mesh(1, 1, jax.devices()[:devices], expert_devices=devices)
  with pytest.raises(UserError, match=message):
    Trainer(recipe, train, sampler, batch_size=2, seed=0, placement=Placement(mesh))
