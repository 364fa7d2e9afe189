"""What training adds to how parts run: the dtype of branches, and dropout that is the same on one
device as on many."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from additive_jax import Additive, UserError, run
from additive_jax.data import ArraySplit, Data
from additive_jax.models import MLP, Dropout
from additive_jax.models.surrounding import Mode, in_mode
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.fleet import Fleet
from additive_jax.train.losses import Piped
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe, Structures
from additive_jax.train.trainer import Trainer

RANDOM = np.random.default_rng(0)
ROWS = ArraySplit(RANDOM.normal(size=(24, 6)).astype(np.float32), np.arange(24, dtype=np.int32) % 3)


class Branch(nn.Module):
  """A branch with dropout inside."""

  rate: float = 0.5

  @nn.compact
  def __call__(self, h):
    return nn.Dense(8)(Dropout(self.rate)(nn.relu(nn.Dense(8)(h))))


class Adding(nn.Module):
  """A site of a user's that adds to the stream by itself."""

  gates = ('residual',)

  @nn.compact
  def __call__(self, h, gates=()):
    return h + nn.Dense(h.shape[-1])(h)


class Own(Additive):
  """A network of a user's."""

  sites_of: type = Branch
  rate: float = 0.5

  def setup(self):
    make = functools.partial(Branch, self.rate) if self.sites_of is Branch else self.sites_of
    self.embed, self.sites = nn.Dense(8), [make(name=f'block_{i}') for i in range(2)]
    self.readout = nn.Dense(3)


OWN = Own()


def recipe_of(model=OWN, loss=None, **options):
  return Recipe(model, 'classification', optax.sgd(0.1), loss or Structures(), **options)


def trained(recipe, steps=3, **spread):
  mesh = mesh_.make_mesh(2, 2, jax.devices()[:4], **spread) if spread else mesh_.make_mesh(1, 1)
  if not spread:
    mesh = mesh_.make_mesh(1, 1, jax.devices()[:1])
  sampler = samplers.listed(['11', '10'], 2)
  placement = Placement(mesh, chunk_steps=3)
  trainer = Trainer(recipe, ROWS, sampler, batch_size=4, seed=0, placement=placement)
  values = trainer.run(steps)
  return values['loss'], processes.to_host(trainer.state.params)


def assert_close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_what_is_dropped_is_the_same_however_devices_share_the_work():
  """In stages; `test_alike` has the other axes."""
  alone = trained(recipe_of())
  assert not np.allclose(alone[0], trained(recipe_of(OWN.clone(rate=0.0)))[0])
  piped = recipe_of(loss=Piped(pipeline=Pipeline(2, 2)))
  assert_close(trained(piped, pipe_devices=2), alone)


def test_judging_drops_nothing_and_the_number_of_examples_is_checked():
  variables = jax.jit(OWN.init)(jax.random.key(0), ROWS.x[:4])
  none = OWN.clone(rate=0.0)
  judged = run.static(OWN, variables, ROWS.x, '11')
  np.testing.assert_array_equal(judged, run.static(none, variables, ROWS.x, '11'))
  mode = Mode(dropout=jax.random.key(0), rows=jnp.arange(5))
  with in_mode(mode), pytest.raises(UserError, match=r'shape \(24, 8\) in a batch of 5'):
    run.static(OWN, variables, ROWS.x, '11')


def test_networks_alone_drop_by_seed_and_step():
  data = Data('rows', 'classification', ROWS, ROWS, 3)
  lone = Population(recipe_of(), data, batch_size=4, seed=0)
  (whole,) = lone.train(['11'], 4)
  (half,) = lone.train(['11'], 2)
  (again,) = lone.train(['11'], 4, states={half.structure: half.state}, start=2)
  jax.tree.map(np.testing.assert_array_equal, whole.state.params, again.state.params)
  fleets = [
    Fleet(recipe_of(), ROWS, [range(12), range(12, 24)], batch_size=4, seed=0, devices=devices)
    for devices in (jax.devices()[:1], jax.devices()[:2])
  ]
  first, second = (fleet.run(3)['loss'] for fleet in fleets)
  np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize(
  'model',
  [
    OWN.clone(rate=0.0),
    OWN.clone(sites_of=Adding),
    MLP(2, 8, 16, 3, gates=('residual', 'lane')).clone(),
  ],
  ids=['own', 'adding', 'mlp'],
)
def test_branches_run_in_bfloat16_and_all_else_stays_float32(model):
  variables = jax.jit(model.init)(jax.random.key(0), ROWS.x[:4])
  bits = jnp.ones(model.space.num_gates, bool)

  def loss(variables):
    return jnp.square(run.conditional(model, variables, ROWS.x, bits)).mean()

  def slope(mode):
    with in_mode(mode):
      traced = jax.jit(jax.grad(lambda v: loss(v))).trace(variables)
    return str(traced.jaxpr), traced.lower().compile()(variables)

  plain, exact = slope(Mode())
  text, rounded = slope(Mode(dtype=jnp.bfloat16))
  assert 'bf16' not in plain
  matmuls = [line for line in text.splitlines() if 'dot_general' in line]
  assert matmuls
  assert all('f32[' not in line.split('=')[0] for line in matmuls)
  for got, want in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact)):
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0.1, atol=0.05 * np.abs(want).max() + 1e-6)


def test_training_in_bfloat16_follows_float32():
  exact, rounded = (
    trained(recipe_of(MLP(2, 8, 16, 3), dtype=dtype), steps=30)[0]
    for dtype in ('float32', 'bfloat16')
  )
  assert not np.array_equal(exact, rounded)
  np.testing.assert_allclose(rounded.mean(1), exact.mean(1), rtol=0.03)
