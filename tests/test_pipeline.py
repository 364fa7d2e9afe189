"""Stages over the devices of a mesh: the gradients and the training of one device, from stages that
each device holds its own of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import Additive, UserError, run
from additive_jax.data import ArraySplit
from additive_jax.experiments.arms import Arm
from additive_jax.experiments.opening import open_session
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.models import MLP, ConvNet, Transformer
from additive_jax.models.additive import gate_names
from additive_jax.models.dna import DNA, Modules
from additive_jax.models.moe import Experts
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import pipeline, processes
from additive_jax.parallel.pipeline_schedule import Pipeline, bubble, microbatches
from additive_jax.parallel.pipeline_timing import BubbleReport, measure_bubble
from additive_jax.parallel.placement import Placement
from additive_jax.parallel.staging import stack, staging, unstack
from additive_jax.report import figures
from additive_jax.run.tasks import Task
from additive_jax.train import samplers
from additive_jax.train.losses import Piped
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.state import init_state
from additive_jax.train.trainer import Trainer

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(12, 6)).astype(np.float32)
IMAGES = RANDOM.normal(size=(8, 4, 4)).astype(np.float32)
TOKENS = RANDOM.integers(0, 7, (8, 5))
BLOCKS = MLP(4, 4, 4, 3)
TEXT = {'num_heads': 2, 'hidden': 4, 'num_classes': 7, 'num_tokens': 7, 'causal': True}


def example_of(x):
  return jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)


def mesh_of(how, structure=1, data=1):
  devices = jax.devices()[: structure * data * how.devices]
  return mesh_.make_mesh(structure, data, devices, pipe_devices=how.devices)


@pytest.mark.parametrize(
  'how',
  [
    Pipeline(4, 8),
    Pipeline(4, 3),
    Pipeline(3, 6, 'circular', 2),
    Pipeline(4, 4, 'circular', 3),
    Pipeline(2, 4, 'circular'),
  ],
  ids=str,
)
def test_schedule(how):
  """Every stage works once on every microbatch, in the tick after the stage before it did."""
  busy, repeat, number = how.turn(np.arange(how.ticks), np.arange(how.devices)[:, None])
  found = {}
  for device, tick in zip(*np.nonzero(busy)):
    stage = repeat[device, tick] * how.devices + device
    assert (stage, number[device, tick]) not in found
    found[stage, number[device, tick]] = tick
  assert set(found) == {(s, m) for s in range(how.stages) for m in range(how.microbatches)}
  assert all(found[s, m] == found[s - 1, m] + 1 for s, m in found if s)
  assert bubble(how) == pytest.approx((~busy).mean(), rel=1e-12)
  np.testing.assert_array_equal(microbatches(how) >= 0, busy)


def test_devices_hold_their_own_stages(random_pool):
  """Device d of P has the leaves of stages d and P + d, and no other of a site's."""
  model, how = MLP(8, 4, 4, 3), Pipeline(2, 4, 'circular', 2)
  variables = random_pool(model, ROWS)
  mesh = mesh_of(how)
  placed = pipeline.place_pool(model, variables, mesh, how, ROWS)['params']
  pool = variables['params']
  for place, own in ((0, ('block_00', 'block_04')), (1, ('block_01', 'block_05'))):
    leaf = placed.stages[place]['in']['kernel']
    first = next(s for s in leaf.addressable_shards if s.device == mesh.devices[0, 0, 0])
    np.testing.assert_array_equal(first.data[0], [pool[name]['in']['kernel'] for name in own])
  assert set(placed.ends) == {'embed', 'readout'}
  found = staging(model, how, example_of(ROWS))
  state = init_state(Recipe(model, 'classification', optax.adam(0.1)), variables)
  back = unstack(found, stack(found, state))
  jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize(
  ('model', 'x', 'how', 'data'),
  [
    (MLP(4, 6, 4, 3, ('residual', 'sub_activation'), num_chunks=2), ROWS, Pipeline(4, 3), 1),
    pytest.param(
      Transformer(2, 4, 2, 4, 3),
      IMAGES,
      Pipeline(2, 4, remat=False),
      1,
      marks=pytest.mark.thorough,
    ),
    pytest.param(
      Transformer(4, 4, gates=('residual', 'sub_activation'), num_chunks=2, **TEXT),
      TOKENS,
      Pipeline(2, 2, 'circular', 2),
      2,
      marks=pytest.mark.slow,
    ),
  ],
  ids=['mlp', 'images', 'text'],
)
def test_gradients_are_those_of_one_device(model, x, how, data, random_pool):
  variables = random_pool(model, x)
  mesh = mesh_of(how, data=data)
  forward = pipeline.over_mesh(model, mesh, how)
  placed = pipeline.place_pool(model, variables, mesh, how, x)
  want = jax.jit(
    jax.value_and_grad(lambda v, bits: jnp.square(run.conditional(model, v, x, bits)).mean())
  )
  got = jax.jit(jax.value_and_grad(lambda v, bits: jnp.square(forward(v, x, bits)).mean()))
  found, count = staging(model, how, example_of(x)), len(gate_names(model))
  seen = []
  for bits in (np.ones(count, bool), np.arange(count) % 3 != 1, np.zeros(count, bool)):
    (loss, gradient), (value, staged) = want(variables, bits), got(placed, bits)
    np.testing.assert_allclose(value, loss, rtol=1e-6)  # a mean over parts of a batch
    whole = unstack(found, processes.to_host(staged))
    gap = optax.tree.norm(jax.tree.map(jnp.subtract, whole, gradient))
    assert gap <= 1e-6 * optax.tree.norm(gradient)  # the figure to reach
    seen.append(gradient)
  for other in seen[1:]:
    assert optax.tree.norm(jax.tree.map(jnp.subtract, other, seen[0])) > 1e-2


def test_static_structures(random_pool):
  how, bits = Pipeline(2, 3), '1011'
  variables = random_pool(BLOCKS, ROWS)
  mesh = mesh_of(how)
  forward = jax.jit(pipeline.over_mesh(BLOCKS, mesh, how), static_argnums=2)
  got = forward(pipeline.place_pool(BLOCKS, variables, mesh, how, ROWS), ROWS, bits)
  want = run.static(BLOCKS, variables, ROWS, bits)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)  # four blocks of float32
  assert np.abs(want - run.static(BLOCKS, variables, ROWS, '1111')).max() > 0.01


TRAIN = ArraySplit(
  RANDOM.normal(size=(29, 6)).astype(np.float32), RANDOM.integers(0, 3, 29).astype(np.int32)
)
# Not Adam, which turns the rounding of a gradient near zero into steps.
LOSS = Task('classification').mean_loss
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.2, momentum=0.9))


@pytest.fixture(scope='module')
def trainer_of(random_pool):
  """A trainer of four slots of random structures, with what gates add rescaled."""
  state = init_state(Recipe(BLOCKS, 'classification', OPTIMIZER), random_pool(BLOCKS, TRAIN.x[:1]))

  @functools.cache
  def recipe(how):
    loss = Piped(pipeline=how, rescale='inverse') if how else Structures(rescale='inverse')
    return Recipe(BLOCKS, 'classification', OPTIMIZER, loss)

  def build(how=None, *mesh):
    mesh = mesh_of(how, *mesh) if how else mesh_.make_mesh(1, 1, jax.devices()[:1])
    sampler = samplers.make_sampler('uniform', 4, 4)
    options = {'batch_size': 8, 'seed': 1, 'state': state}
    return Trainer(recipe(how), TRAIN, sampler, placement=Placement(mesh, chunk_steps=4), **options)

  return build


def assert_close(got, want):
  """After a few steps of float32, each of which multiplies rounding by at most a little."""
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, processes.to_host(got), processes.to_host(want))


@pytest.mark.slow
def test_training_is_that_of_one_device(trainer_of, tmp_path):
  """Structures × data × stages; and its checkpoint goes on without a pipeline, and back."""
  plain, piped = trainer_of(), trainer_of(Pipeline(2, 2, 'circular', 2), 2, 2)
  assert dict(piped.mesh.shape) == {'structure': 2, 'data': 2, 'pipe': 2}
  start = plain.variables['params']['block_03']['out']['kernel']
  start = processes.to_host(start)
  want, got = plain.run(6), piped.run(6)
  for name in ('loss', 'gradient_norm'):
    np.testing.assert_allclose(got[name], want[name], rtol=1e-4)  # as in assert_close
  assert np.ptp(want['loss'], axis=1).min() > 1e-3  # the slots are distinguishable
  assert_close(piped.state, plain.state)
  assert piped.variables['params'].keys() == plain.variables['params'].keys()
  assert np.abs(piped.variables['params']['block_03']['out']['kernel'] - start).max() > 1e-2
  for tree in (piped.sharded_state.params, piped.sharded_state.opt_state[1][0].trace):
    for leaf in jax.tree.leaves(tree.stages):
      assert leaf.addressable_shards[0].data.shape == (1, *leaf.shape[1:])

  kernel = piped.state.params['block_03']['out']['kernel']  # in parts, though in no stages
  assert kernel.addressable_shards[0].data.size == kernel.size // 2

  with Checkpointer(tmp_path, identity={}) as checkpoints:
    checkpoints.save(6, piped.state, wait=True)
    for trainer in (plain, piped):
      restored = checkpoints.restore(trainer.state)
      jax.tree.map(np.testing.assert_array_equal, processes.to_host(restored.state), piped.state)
      trainer.state = restored.state
  assert piped.step == 6
  np.testing.assert_allclose(piped.run(3)['loss'], plain.run(3)['loss'], rtol=1e-4)
  assert_close(piped.state, plain.state)


def test_bubble_of_a_run(random_pool):
  how = Pipeline(4, 4)
  y = RANDOM.integers(0, 3, len(ROWS))
  variables = random_pool(BLOCKS, ROWS)
  report = measure_bubble(BLOCKS, LOSS, how, variables, ROWS, y, repeats=2)
  np.testing.assert_array_equal(report.busy, microbatches(how) >= 0)
  assert report.formula == bubble(how) == 3 / 7
  for seconds in (report.forward, report.backward):
    assert seconds.shape == (4, 7)
    assert (seconds > 0).all()
  assert report.formula / 2 < report.measured < 1  # ticks so short are mostly calls of the host
  with pytest.raises(UserError, match='pipe_devices 4 on 2 devices: expected a number that'):
    measure_bubble(BLOCKS, LOSS, how, variables, ROWS, y, devices=jax.devices()[:2])


def test_bubble_of_given_seconds():
  """Equal ticks give the formula; one slow device makes the others wait."""
  how = Pipeline(4, 8)
  table = microbatches(how)
  busy, seconds = table >= 0, np.where(table >= 0, 2.0, 0.1)
  even = BubbleReport(how, busy, table, seconds, 2 * seconds)
  assert even.measured == pytest.approx(even.formula, rel=1e-9)
  assert even.idle_tick == pytest.approx(0.05)
  slow = seconds * np.array([[1], [1], [1], [2]])
  uneven = BubbleReport(how, busy, table, slow, slow)
  # The last device's 8 ticks last 4 each, the 3 before them 2.
  assert uneven.measured == pytest.approx(1 - (3 * 16 + 32) / (4 * (8 * 4 + 3 * 2)))


@pytest.mark.parametrize('how', [Pipeline(4, 4), Pipeline(2, 4, 'circular', 3)], ids=str)
def test_timeline(how):
  table = microbatches(how)
  seconds = np.where(table >= 0, 2.0, 0.1)
  figure = figures.pipeline_timeline(table >= 0, table, seconds, 2 * seconds)
  axes = figure.axes[0]
  assert axes.get_xlim()[1] == pytest.approx(3 * 2.0 * how.ticks)
  assert len(axes.texts) == 2 * (table >= 0).sum()
  alone = figures.pipeline_timeline(table >= 0, table, seconds)
  assert len(alone.axes[0].texts) == (table >= 0).sum()


class Tied(Additive):
  """Sites that share one kernel."""

  def setup(self):
    self.stem, self.shared = nn.Dense(4), nn.Dense(4)
    self.sites = [Through(self.shared, name=f'site_{i}') for i in range(2)]

  def embed(self, x):
    return self.stem(x)

  def readout(self, h):
    return h


class Through(nn.Module):
  layer: nn.Module

  def __call__(self, h):
    return self.layer(h)


class Halving(Additive):
  """Sites that are alike, each of which drops every other row of the stream."""

  def setup(self):
    self.sites = [Half(name=f'site_{i}') for i in range(2)]

  def embed(self, x):
    return x

  def readout(self, h):
    return h


class Half(nn.Module):
  gates = ()

  @nn.compact
  def __call__(self, h, values=()):
    return nn.Dense(h.shape[-1])(h[:, ::2])


@pytest.mark.parametrize(
  ('model', 'x', 'how', 'message'),
  [
    (MLP(6, 4, 4, 3), ROWS, (4, 2), r'6 sites of MLP in 4 stages \(4 pipe_devices × 1\): expected'),
    (MLP(6, 4, 4, 3), ROWS, (2, 2, 'circular', 2), r'6 sites of MLP in 4 stages \(2 pipe_devices'),
    (MLP(4, 4, (4, 4, 4, 5), 3), ROWS, (2, 2), 'sites block_01 and block_03 at the same place'),
    (
      Transformer(2, 4, **TEXT),
      TOKENS,
      (4, 2),
      'sites block_00/attention and block_00/mlp at the same place of 4 stages: expected',
    ),
    (MLP(4, 4, 4, 3, ('lane',)), ROWS, (2, 2), 'MLP with lane gates over 2 pipe_devices: expected'),
    (
      Transformer(2, 4, routing=Experts(4), **TEXT),
      TOKENS,
      (2, 2),
      'Transformer with routers over 2 pipe_devices: expected none',
    ),
    (
      DNA(2, 4, modules=Modules(1, 1, 0, 1, 1), **TEXT),
      TOKENS,
      (2, 2),
      'DNA with routers over 2 pipe_devices: expected none',
    ),
    (
      ConvNet(channels=(2, 4), blocks_per_stage=1, num_classes=3),
      IMAGES,
      (3, 2),
      'at the same place of 3 stages: expected sites that are alike',
    ),
    (
      Halving(),
      IMAGES,
      (2, 2),
      r'streams of \(4, 4\) and \(2, 4\) between 2 stages of Halving: expected one shape',
    ),
    (Tied(), ROWS, (2, 2), 'site site_0 shares shared with other parts: expected none in stages'),
  ],
  ids=lambda value: type(value).__name__,
)
def test_models_that_do_not_fit(model, x, how, message):
  with pytest.raises(UserError, match=message) as caught:
    staging(model, Pipeline(*how), example_of(x))
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ((1, 2), 'pipe_devices 1 of a pipeline: expected at least 2'),
    ((2, 0), 'microbatches 0 of a pipeline: expected at least 1'),
    ((2, 2, 'circular', 0), 'pipe_repeats 0 of a pipeline: expected at least 1'),
    ((2, 2, 'gpipe', 2), 'pipe_repeats 2 of gpipe: expected 1, or circular'),
    ((2, 2, 'zigzag'), "pipe_schedule 'zigzag': expected one of gpipe, circular"),
    ((4, 6, 'circular', 2), '6 microbatches around 4 pipe_devices: expected a multiple of 4'),
  ],
)
def test_bad_pipelines(options, message):
  with pytest.raises(UserError, match=message):
    Pipeline(*options)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'average': 'coverage'}, 'average coverage in a pipeline: expected mean'),
    ({'optimizer': optax.lamb(0.1)}, 'an optimizer that does not treat all numbers of the pool'),
  ],
)
def test_recipes_without_a_pipeline(options, message):
  optimizer = options.pop('optimizer', OPTIMIZER)
  with pytest.raises(UserError, match=message):
    Recipe(BLOCKS, 'classification', optimizer, Piped(pipeline=Pipeline(2, 2)), **options)


def test_batches_and_meshes_that_do_not_fit():
  recipe = Recipe(BLOCKS, 'classification', OPTIMIZER, Piped(pipeline=Pipeline(2, 3)))
  sampler = samplers.make_sampler('uniform', 4, 1)
  build = functools.partial(Trainer, recipe, TRAIN, sampler, seed=0)
  mesh = mesh_of(recipe.loss.pipeline)
  with pytest.raises(UserError, match='a batch of 8 examples in 3 microbatches: expected a mult'):
    build(batch_size=8, placement=Placement(mesh))
  with pytest.raises(UserError, match="for 2 pipe_devices: expected an axis 'pipe' of as many"):
    build(batch_size=6, placement=Placement(mesh_.make_mesh(1, 6, jax.devices()[:2])))
  with pytest.raises(UserError, match='pipe_devices 3 on 8 devices: expected a number that div'):
    mesh_.make_mesh(1, 6, jax.devices(), pipe_devices=3)


def opened(options, workdir, check=lambda session: None):
  options = {'model.num_blocks': 4, 'train.pipe_devices': 2, **options}
  return open_session(tiny.config('sweep', options), workdir, check=check, devices=4)


@pytest.mark.slow
def test_options_of_a_run(tmp_path):
  """The mesh has an axis for stages; directory and checkpoints are the same for any number."""
  identities = []
  for options in (
    {'train.microbatches': 8},
    {'train.microbatches': 2, 'train.pipe_schedule': 'circular', 'train.pipe_repeats': 2},
    {'train.pipe_devices': 1},
  ):
    with opened(options, tmp_path / 'run') as session:
      recipe, sampler = session.training.recipe(4), session.training.sampler(4)
      identities.append(session.identity)
      if isinstance(recipe.loss, Piped):
        trainer = session.trainer(recipe, sampler, 3)
        assert dict(trainer.mesh.shape) == {'structure': 2, 'data': 1, 'pipe': 2}
        assert trainer.recipe.loss.pipeline.stages == 2 * options.get('train.pipe_repeats', 1)
  assert recipe.loss == Structures()
  assert identities[0] == identities[1] == identities[2]


def test_stages_do_not_make_another_arm(tmp_path):
  """A run may go on with another number of them, and is not refused for what it minimises."""
  described = []
  for options in ({'train.pipe_devices': 1}, {'train.pipe_devices': 2, 'train.microbatches': 2}):
    config = tiny.config('sweep', options | {'model.num_blocks': 2})
    with open_session(config, tmp_path / 'run', check=lambda session: None, devices=2) as session:
      recipe, sampler = session.training.recipe(4), session.training.sampler(4)
      described.append(Arm('shared', session, recipe, sampler, 4).described())
  assert described[0] == described[1]
  assert described[0]['loss'].startswith('Structures')
