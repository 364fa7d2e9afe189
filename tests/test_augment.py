"""Augmentations against NumPy, and the same on any devices and after a restart."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError, data
from additive_jax.data import ArraySplit, SourceSplit, Weighted
from additive_jax.experiments.studies import STUDIES
from additive_jax.models import MLP
from additive_jax.parallel.mesh import make_mesh
from additive_jax.parallel.placement import Placement
from additive_jax.run.objectives import CrossEntropy
from additive_jax.train.augment import (
  Crop,
  Flip,
  InTurn,
  Mixup,
  augmented_shapes,
  make_augment,
  of_examples,
)
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import make_sampler
from additive_jax.train.trainer import Trainer

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 8, 6, 2)).astype(np.float32)
Y = (np.arange(24) % 3).astype(np.int32)


@pytest.fixture(autouse=True)
def programs(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


def test_crop():
  x, y = jax.jit(Crop(2))(KEY, X, Y)
  keys = of_examples(KEY, 24)
  offsets = np.array([jax.random.randint(key, (2,), 0, 5) for key in keys])
  assert len({tuple(offset) for offset in offsets}) > 5
  padded = np.pad(X, ((0, 0), (2, 2), (2, 2), (0, 0)))
  for i, (top, left) in enumerate(offsets):
    np.testing.assert_array_equal(x[i], padded[i, top : top + 8, left : left + 6])
  np.testing.assert_array_equal(y, Y)
  np.testing.assert_array_equal(Crop()(KEY, X, Y)[0], Crop(1)(KEY, X, Y)[0])  # an eighth of 8


def test_flip():
  x, _ = jax.jit(Flip(0.3))(KEY, X, Y)
  chosen = np.array([bool(jax.random.bernoulli(key, 0.3)) for key in of_examples(KEY, 24)])
  assert 0 < chosen.sum() < 24
  expected = X.copy()
  expected[chosen] = X[chosen][:, :, ::-1]
  np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize('weighted', [False, True])
def test_mixup(weighted):
  weight = (np.arange(24) % 4).astype(np.float32)
  y = Weighted(Y, weight) if weighted else Y
  x, mixed = jax.jit(Mixup(3, alpha=0.5))(KEY, X, y)
  partners = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, 24), 24))
  share = np.array([float(jax.random.beta(key, 0.5, 0.5)) for key in of_examples(KEY, 24)])
  of = lambda a, by: by.reshape(-1, *[1] * (a.ndim - 1)) * a
  np.testing.assert_allclose(x, of(X, share) + of(X[partners], 1 - share), atol=1e-6)
  labels = np.eye(3)[Y]
  if not weighted:
    expected = of(labels, share) + of(labels[partners], 1 - share)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    return
  total = share * weight + (1 - share) * weight[partners]
  np.testing.assert_allclose(mixed.weight, total, atol=1e-6)
  # What counts of each class is what both examples bring along.
  brought = of(labels, share * weight) + of(labels[partners], (1 - share) * weight[partners])
  np.testing.assert_allclose(mixed.y * total[:, None], brought, atol=1e-5)


def test_numbers_are_mixed_as_they_are():
  targets = RNG.normal(size=(24, 2)).astype(np.float32)
  x, y = Mixup(2)(KEY, {'a': X, 'b': X[..., 0]}, targets)
  both = Mixup(2)(KEY, X, targets)
  yes = (Y > 0).astype(np.int32)
  share = Mixup(0)(KEY, X, yes)[1]
  np.testing.assert_allclose(share, Mixup(2)(KEY, X, yes)[1][:, 1], rtol=1e-6)
  np.testing.assert_array_equal(x['a'], both[0])
  np.testing.assert_array_equal(y, both[1])


def test_in_turn():
  made = make_augment(('crop', 'flip'), 3, crop_pixels=2, flip_rate=1.0)
  assert made == InTurn((Crop(2), Flip(1.0)))
  moved, _ = Crop(2)(jax.random.fold_in(KEY, 0), X, Y)
  np.testing.assert_array_equal(made(KEY, X, Y)[0], moved[:, :, ::-1])
  assert make_augment((), 3) is None


@pytest.mark.parametrize(
  ('augment', 'x', 'message'),
  [
    (Crop(), X[:, 0], 'crop of x [6, 2] float32: expected images [height, width, channels]'),
    (Flip(), {'a': X}, "flip of x['a'] [8, 6, 2] float32: expected images"),
    (Mixup(3), Y[:, None], 'mixup of inputs of type int32: expected floats'),
    (
      lambda key, x, y: (x[:, 1:], y),
      X,
      'augment <lambda> gives x [7, 6, 2] float32 of x [8, 6, 2]',
    ),
    (lambda key, x, y: (x, y[:1]), X, 'augment <lambda> gives targets [1]: expected a batch of 5'),
    (lambda key, x, y: x, X, 'augment <lambda> gives no pair (x, y): expected a batch of 5'),
  ],
)
def test_what_cannot_be_augmented(augment, x, message):
  with pytest.raises(UserError, match=re.escape(message)):
    augmented_shapes(augment, x, Y, 5)


def by_place(key, x, y):
  """An augmentation of one's own, whose draws differ between examples."""
  return x + jax.random.normal(key, x.shape), y


MODEL = MLP(num_blocks=2, width=4, hidden=8, num_classes=3)


def trainer(augment, *, mesh=(1, 1), state=None, shared=False, far=False, **spread):
  recipe = Recipe(MODEL, 'classification', optax.sgd(0.05), augment=augment)
  train = SourceSplit(24, lambda i: (X[i], Y[i])) if far else ArraySplit(X, Y)
  devices = jax.devices()[: max(1, mesh[0] * mesh[1])]
  placement = Placement(make_mesh(*mesh, devices, **spread), chunk_steps=4)
  sampler = make_sampler('sandwich', 2, 2)
  options = {'batch_size': 8, 'seed': 0, 'shared_batch': shared, 'state': state}
  return Trainer(recipe, train, sampler, placement=placement, **options)


def pool_of(trained):
  return jax.tree.map(np.asarray, trained.variables)


@pytest.mark.parametrize(
  ('augment', 'shared'),
  [
    # By default `test_alike` has slots with batches of their own.
    pytest.param(by_place, False, marks=pytest.mark.thorough),
    pytest.param(make_augment(('crop', 'flip', 'mixup'), 3), False, marks=pytest.mark.thorough),
    (by_place, True),
  ],
)
def test_many_devices_augment_as_one(augment, shared):
  one = trainer(augment, shared=shared)
  losses = one.run(6)['loss']
  plain = trainer(None, shared=shared).run(6)['loss']
  assert np.abs(losses - plain).max() > 1e-3
  meshes = [({}, (2, 4))] if shared else [({'fsdp_devices': 2}, (2, 2))]
  for spread, mesh in meshes:
    many = trainer(augment, mesh=mesh, shared=shared, **spread)
    np.testing.assert_allclose(many.run(6)['loss'], losses, rtol=2e-5, atol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      pool_of(one),
      pool_of(many),
    )


@pytest.mark.parametrize('far', [False, True])
def test_training_with_augmentation_goes_on_to_the_bit(far):
  whole = trainer(by_place, far=far)
  whole.run(7)
  first = trainer(by_place, far=far)
  first.run(3)
  again = trainer(by_place, far=far, state=jax.tree.map(np.asarray, first.state))
  again.run(4)
  jax.tree.map(np.testing.assert_array_equal, pool_of(whole), pool_of(again))


def test_a_step_is_on_augmented_examples():
  """The first losses are those of the examples that the augmentation gives for its key."""
  seen = []

  def noted(key, x, y):
    x, y = by_place(key, x, y)
    return x, y

  made = trainer(noted)
  before = pool_of(made)
  order = made._feed._reader.order
  losses = made.run(1)['loss'][0]
  now = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0)
  for slot, rows in enumerate(order.indices(0, 1).reshape(2, 8)):
    key = jax.random.fold_in(jax.random.fold_in(now, slot), 0x61756721)
    x, y = by_place(key, jnp.asarray(X[rows]), Y[rows])
    outputs = MODEL.apply(before, x, ('11', '00')[slot])
    seen.append(optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean())
  np.testing.assert_allclose(losses, seen, rtol=1e-5)


def test_networks_alone_are_augmented():
  split = ArraySplit(X, Y)
  loaded = data.Data('rows', 'classification', split, split, 3)
  results = {}
  for name, augment in (('plain', None), ('one', by_place), ('again', by_place)):
    recipe = Recipe(MODEL, 'classification', optax.sgd(0.05), augment=augment)
    population = Population(recipe, loaded, batch_size=8, seed=0)
    results[name] = [member.loss for member in population.train(['11'], stop=4)]
  assert results['one'] == results['again']
  assert results['one'] != results['plain']


def test_config_augments(tmp_path):
  options = {'data.name': 'digits', 'data.train_examples': 48, 'data.test_examples': 40}
  options |= {'num_seeds': 1, 'sweep.modes': ('shared',), 'data.augment': ('crop', 'mixup')}
  options |= {'model.num_blocks': 1, 'sweep.top_k': 1}
  config = tiny.config('sweep', options)
  assert len(STUDIES['sweep'].run(config, tmp_path / 'run', devices=2).table) == 2
  own = tiny.config('sweep', options | {'data.augment': ()})
  losses = {
    name: STUDIES['sweep'].run(own, tmp_path / name, devices=2, **given).table['loss'].tolist()
    for name, given in (('plain', {}), ('own', {'augment': by_place}))
  }
  assert losses['plain'] != losses['own']
  assert '"augment": "by_place"' in (tmp_path / 'own' / 'config.json').read_text()
  wrong = options | {'data.name': 'tabular:iris', 'data.test_examples': 0}
  config = tiny.config('sweep', wrong)
  with pytest.raises(UserError, match=r"^config\.data\.augment \('crop', 'mixup'\): crop of x"):
    STUDIES['sweep'].run(config, tmp_path / 'other', devices=2)
  assert not (tmp_path / 'other').exists()


def test_shares_of_classes_are_labels_where_they_are_whole():
  outputs = jnp.asarray(RNG.normal(size=(24, 3)), jnp.float32)
  whole = CrossEntropy()(outputs, jax.nn.one_hot(Y, 3))
  np.testing.assert_allclose(whole, CrossEntropy()(outputs, Y), rtol=1e-6)
