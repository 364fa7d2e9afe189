"""Whatever a training is told to do, it does the same on structure × data × fsdp devices as on one:
a row for each feature, and one for several at once."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from additive_jax import Additive
from additive_jax.data import ArraySplit, Weighted
from additive_jax.models import BatchNorm, Dropout
from additive_jax.parallel import processes
from additive_jax.parallel.mesh import exact_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(24, 6)).astype(np.float32), np.arange(24, dtype=np.int32) % 4
WEIGHTS = RANDOM.uniform(0, 1, 24).astype(np.float32) * (np.arange(24) % 3 > 0)
ONE, MANY = {}, {'structure': 2, 'data': 2, 'fsdp': 2}
STEPS, BATCH = 3, 8


class Branch(nn.Module):
  rate: float = 0.0
  norm: bool = False

  @nn.compact
  def __call__(self, h):
    h = nn.Dense(8)(h)
    h = BatchNorm()(h) if self.norm else h
    return nn.Dense(8)(Dropout(self.rate)(nn.tanh(h)))


class Net(Additive):
  rate: float = 0.0
  norm: bool = False

  def setup(self):
    self.stem, self.readout = nn.Dense(8), nn.Dense(4)
    self.sites = [Branch(self.rate, self.norm, name=name) for name in ('first', 'second')]

  def embed(self, x):
    return self.stem(x['left'] - x['right'] if isinstance(x, dict) else x)


PLAIN = Net()
ROUNDED = 0.02  # bfloat16 has 8 bits, and devices round the sums of their own shares


def moved(key, x, y):
  return x + 0.5 * jax.random.normal(key, x.shape), y


FEATURES = {  # the network, options of the recipe, x, tolerance
  'plain': (PLAIN, {}, X, 1e-4),
  'bfloat16': (PLAIN, {'dtype': 'bfloat16'}, X, ROUNDED),
  'pieces': (PLAIN, {'accumulate': 2}, X, 1e-4),
  'a mean of the pool': (PLAIN, {'ema': 0.5}, X, 1e-4),
  'rates and frozen': (PLAIN, {'learning_rates': {'first': 0.1}, 'frozen': ('stem',)}, X, 1e-4),
  'dropout': (Net(rate=0.4), {}, X, 1e-4),
  'BatchNorm': (Net(norm=True), {}, X, 1e-4),
  'several inputs': (PLAIN, {}, {'left': X, 'right': np.roll(X, 1, 0)}, 1e-4),
  'augmentation': (PLAIN, {'augment': moved}, X, 1e-4),
  'weights': (PLAIN, {}, X, 1e-4),
  'all at once': (
    Net(rate=0.4),
    {'dtype': 'bfloat16', 'accumulate': 2, 'ema': 0.5, 'frozen': ('stem',)},
    {'left': X, 'right': np.roll(X, 1, 0)},
    ROUNDED,
  ),
}
QUICK = ('dropout', 'pieces')


@functools.cache
def trained(name, on_many):
  """The state, the variables and the losses after some steps."""
  model, options, x, _ = FEATURES[name]
  recipe = Recipe(model, 'classification', optax.sgd(0.3, momentum=0.9), **options)
  trainer = Trainer(
    recipe,
    ArraySplit(x, Weighted(Y, WEIGHTS) if name == 'weights' else Y),
    samplers.make_sampler('uniform', 2, 2),
    batch_size=BATCH,
    seed=0,
    placement=Placement(exact_mesh(MANY if on_many else ONE), chunk_steps=STEPS),
  )
  loss = trainer.run(STEPS)['loss']
  return processes.to_host((trainer.state, trainer.variables, loss))


@pytest.mark.parametrize(
  'name',
  [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FEATURES],
)
def test_many_devices_do_what_one_does(name):
  tolerance = FEATURES[name][-1]
  close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance / 10)
  jax.tree.map(close, trained(name, True), trained(name, False))


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in FEATURES if name != 'plain'])
def test_each_feature_changes_something(name):
  """But pieces, of which the gradient is that of the whole."""
  losses, plain = trained(name, False)[-1], trained('plain', False)[-1]
  same = np.allclose(losses, plain, rtol=1e-5)
  state, before = trained(name, False)[0], trained('plain', False)[0]
  assert same == (name in ('pieces', 'a mean of the pool'))
  assert (len(jax.tree.leaves(state)) > len(jax.tree.leaves(before))) == (
    name in ('a mean of the pool', 'BatchNorm')
  ) or name == 'all at once'
