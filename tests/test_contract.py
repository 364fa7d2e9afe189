"""Models and pools that do not fit are refused at every door, in one line; those of the library fit
with floats of 64 bits too."""

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from additive_jax import (
  Additive,
  UserError,
  conditional,
  data,
  evaluate_structures,
  masked,
  measure,
  shared_prefix,
  static,
)
from additive_jax.gates.structure import Structure
from additive_jax.models import DNA, MLP, ConvNet, Experts, Modules, Routing, Transformer
from additive_jax.models.contract import check_network, check_pool
from additive_jax.run.ways import gathered, routed, sampled
from additive_jax.train.fleet import Fleet
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import listed
from additive_jax.train.state import init_state
from additive_jax.train.trainer import Trainer

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])


class Add(nn.Module):
  """A site that adds what its field makes of a dense layer's result."""

  change: object = jnp.tanh

  @nn.compact
  def __call__(self, h):
    return self.change(nn.Dense(5, name='dense')(h))


class Net(Additive):
  """A network of a user's with two sites, of which the tests exchange the second."""

  last: nn.Module = Add()
  stem_dtype: object = None
  finish: object = jnp.asarray

  def setup(self):
    self.stem, self.head = nn.Dense(5, dtype=self.stem_dtype), nn.Dense(3)
    self.sites = [Add(name='first'), self.last.copy(name='second')]

  def embed(self, x):
    return self.stem(x)

  def readout(self, h):
    return self.finish(self.head(h.astype(jnp.float32)))


def recipe_of(model, optimizer=None):
  return Recipe(model, 'classification', optimizer or optax.sgd(0.1))


def doors(model, variables):
  """Every way in of a model with a pool, by name."""
  rows = [jnp.arange(3)] * 2
  return {
    'static': lambda: static(model, variables, X, '11'),
    'conditional': lambda: conditional(model, variables, X, '11'),
    'masked': lambda: masked(model, variables, X, [1.0, 1.0]),
    'sampled': lambda: sampled(model, variables, X, jax.random.key(0), (0.5, 0.5)),
    'gathered': lambda: gathered(model, variables, X, rows),
    'routed': lambda: routed(model, variables, X),
    'shared prefix': lambda: shared_prefix(model, variables, X, ['11', '01']),
    'evaluation': lambda: evaluate_structures(model, variables, (X, Y)),
    'compiled': lambda: jax.jit(lambda v: conditional(model, v, X, '11'))(variables),
    'gradient': lambda: jax.grad(lambda v: conditional(model, v, X, '11').sum())(variables),
  }


def ways_in(model):
  """Every way in of a model without a pool, by name."""
  split = data.ArraySplit(X, Y)
  whole = data.Data('rows', 'classification', split, split, 3)
  recipe, options = recipe_of(model), {'batch_size': 2, 'seed': 0}
  return {
    'measure': lambda: measure(model, X),
    'trainer': lambda: Trainer(recipe, split, listed(['11'], 2, 1), **options),
    'population': lambda: Population(recipe, whole, **options),
    'fleet': lambda: Fleet(recipe, split, [[0, 1]], **options),
  }


def refused(doors, expected):
  for name, door in doors.items():
    with pytest.raises(UserError, match=expected) as error:
      door()
    assert '\n' not in str(error.value), name


@pytest.mark.parametrize(
  ('model', 'expected'),
  [
    (Net(stem_dtype=jnp.bfloat16), r"'first' turns a stream of bfloat16 \(6, 5\) into float32"),
    (Net(Add(lambda h: jnp.stack([h, h]))), r"'second' turns .* into float32 \(2, 6, 5\)"),
    (Net(nn.Dense(7)), r"'second' turns a stream of float32 \(6, 5\) into float32 \(6, 7\)"),
    (Net(nn.BatchNorm(use_running_average=False)), 'changes stored statistics when it is judged'),
    (Net(nn.Dropout(0.5, deterministic=False)), "'second' fails: it draws random numbers"),
    (Net(Add(lambda h: h if h.sum() > 0 else -h)), "'second' fails: it takes a Python decision on"),
    (Net(Add(lambda h: (h, h))), "site 'second' gives a tuple: expected one array"),
    (Net(finish=lambda h: h.mean()), r'readout gives \(\): expected one array \[\d, \.\.\.\]'),
  ],
)
def test_a_model_that_does_not_fit_is_refused_at_every_door(model, expected):
  try:
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)['params']
  except Exception:
    shapes = {}
  pool = {'params': jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)}
  rows = expected.replace('6, ', r'\d, ')  # of a batch: trainers look at one example
  refused(doors(model, pool) | ways_in(model), rows)


def test_a_site_may_broadcast_where_the_stream_keeps_its_shape(random_pool):
  model = Net(Add(lambda h: h.mean(-1, keepdims=True)))
  variables = random_pool(model, X)
  run = jax.jit(lambda v: (shared_prefix(model, v, X, [3, 1]), static(model, v, X, 3)))
  found, want = run(variables)
  np.testing.assert_allclose(found[0], want, rtol=1e-5, atol=1e-6)


def test_a_pool_of_another_model_is_refused_at_every_door(random_pool):
  model = MLP(2, 4, 4, 3)
  for other, expected in (
    (model.clone(num_blocks=3), r'with a surplus block_02/in/bias and 5 more'),
    (model.clone(num_blocks=1), r'with no block_01/in/bias and 5 more'),
    (model.clone(hidden=6), r'with block_00/in/bias of shape \(6,\), not \(4,\) and 5 more'),
  ):
    pool = random_pool(other, X)
    refused(doors(model, pool), f'a pool for MLP on inputs .6, 4. {expected}: expected a pool of')
    split, recipe = data.ArraySplit(X, Y), recipe_of(model)
    state = init_state(recipe, pool)
    with pytest.raises(
      UserError, match=f'a state whose pool has {expected[5:]}: expected the pool'
    ):
      Trainer(recipe, split, listed(['11'], 2, 1), batch_size=2, seed=0, state=state)
  state = init_state(recipe_of(model), random_pool(model, X))
  recipe = recipe_of(model, optax.sgd(0.1, momentum=0.9))
  with pytest.raises(UserError, match=r'a state whose optimizer keeps no .*trace'):
    Trainer(recipe, split, listed(['11'], 2, 1), batch_size=2, seed=0, state=state)


class NoEmbed(Additive):
  def setup(self):
    self.sites = [nn.Dense(5)]


class NoSites(NoEmbed):
  wide: object = ()

  def setup(self):
    self.embed = self.readout = nn.Dense(5)


class NoModules(NoSites):
  def setup(self):
    self.embed = self.readout = nn.Dense(5)
    self.sites = [jnp.tanh]


class NoNames(NoSites):
  def setup(self):
    self.embed = self.readout = nn.Dense(5)
    self.sites = [Gated(name='only')]


class Gated(nn.Module):
  gates: object = 3

  def __call__(self, h, gates=()):
    return h


@pytest.mark.parametrize(
  ('model', 'expected'),
  [
    (NoEmbed(), 'NoEmbed: .*; expected embed, from inputs to the stream'),
    (NoSites(), 'NoSites: .*; expected sites, a list of submodules made in setup'),
    (NoModules(), r'site 0, a \w+: expected a flax.linen.Module made in setup'),
    (NoNames(), "site 'only' with gates 3: expected a tuple of the names of the gates it owns"),
    (NoSites(wide=[1]), 'field wide of NoSites, a list: expected a value with a hash'),
    (NoSites, 'model the class NoSites: expected an instance of an additive module'),
  ],
)
def test_what_is_no_additive_module_is_refused(model, expected):
  for door in (lambda: static(model, {'params': {}}, X, '1'), lambda: measure(model, X)):
    with pytest.raises(UserError, match=expected):
      door()


def test_a_check_that_has_passed_is_not_made_again(random_pool, monkeypatch):
  model = MLP(2, 4, 4, 3)
  pool = random_pool(model, X)
  check_pool(model, pool, X)
  part = {'params': {name: tree for name, tree in pool['params'].items() if name != 'block_01'}}
  check_pool(model, part, X, Structure.from_string('10'))
  monkeypatch.setattr(jax, 'eval_shape', None)
  check_pool(model, jax.tree.map(np.negative, pool), X)
  check_pool(model, part, X, Structure.from_string('10'))


def test_a_frozen_pool_is_one(random_pool):
  model = MLP(2, 4, 4, 3)
  pool = random_pool(model, X)
  found = static(model, flax.core.freeze(pool), X, '10')
  np.testing.assert_array_equal(found, static(model, pool, X, '10'))


@pytest.mark.parametrize('optimizer', [optax.lbfgs(), optax.polyak_sgd()])
def test_an_optimizer_that_needs_more_than_a_gradient(optimizer):
  split, recipe = data.ArraySplit(X, Y), recipe_of(MLP(2, 4, 4, 3), optimizer)
  with pytest.raises(UserError, match=r"needs more than a gradient .*'value'.* such as adamw"):
    Trainer(recipe, split, listed(['11'], 2, 1), batch_size=2, seed=0)
  with pytest.raises(UserError, match=r'optimizer <function sgd .*: expected one of Optax'):
    recipe_of(MLP(2, 4, 4, 3), optax.sgd)


IMAGES = np.random.default_rng(0).normal(size=(2, 4, 4, 1))
TOKENS = np.zeros((2, 4), np.uint8)
TEXT = {'num_heads': 2, 'hidden': 4, 'num_classes': 7, 'num_tokens': 7, 'causal': True}
ROTATED = TEXT | {'positions': 'rope', 'unit': 'swiglu'}
KINDS = ('residual', 'sub_activation', 'lane')


@pytest.mark.parametrize(
  ('model', 'x'),
  [
    (MLP(2, 4, 4, 3, gates=KINDS, num_chunks=2), X.astype(float)),
    (ConvNet((2, 4), 1, num_classes=3, gates=KINDS[:2], num_chunks=2), IMAGES),
    (Transformer(1, 4, 2, 4, 3, patch_size=2), IMAGES),
    (Transformer(1, 4, **ROTATED, gates=KINDS, num_chunks=2), TOKENS),
    (Transformer(1, 4, **TEXT, num_chunks=3, routing=Routing('random', 1)), TOKENS),
    (Transformer(1, 4, **TEXT, num_chunks=3, routing=Routing('marginal', keep=0.5)), TOKENS),
    (Transformer(1, 4, **TEXT, routing=Experts(3, 2)), TOKENS),
    (DNA(1, 4, modules=Modules(1, 1, 1, 1, 2), **TEXT), TOKENS),
  ],
)
def test_the_library_fits_with_wide_floats(model, x):
  with jax.enable_x64(True):
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {'float32'}
    assert check_network(model, x).dtype == np.float32


@pytest.mark.parametrize(
  ('model', 'x', 'structure'),
  [
    (MLP(2, 4, 4, 3, gates=KINDS, num_chunks=2), X.astype(float), '101110'),
    (Transformer(1, 4, **ROTATED), TOKENS, '01'),
  ],
)
def test_ways_to_run_agree_with_wide_floats(model, x, structure, random_pool):
  bits = np.array([bit == '1' for bit in structure])

  @jax.jit
  def ways(variables, bits):
    found = [
      static(model, variables, x, structure),
      conditional(model, variables, x, bits),
      masked(model, variables, x, bits.astype(jnp.float64)),
    ]
    return [*found, *shared_prefix(model, variables, x, [structure])]

  with jax.enable_x64(True):
    want, *others = ways(random_pool(model, x), bits)
    for found in others:
      np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
      assert found.dtype == want.dtype == np.float32
