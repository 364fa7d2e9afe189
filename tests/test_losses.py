"""A loss of the user's own, in the trainer, against averaged gradients made by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from additive_jax import conditional, static
from additive_jax.data import ArraySplit, Order
from additive_jax.models import MLP
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.recipe import Loss, Recipe
from additive_jax.train.state import init_state
from additive_jax.train.trainer import Trainer

MODEL = MLP(num_blocks=3, width=8, hidden=8, num_classes=3)
RANDOM = np.random.default_rng(0)
TRAIN = ArraySplit(
  RANDOM.normal(size=(29, 6)).astype(np.float32), RANDOM.integers(0, 3, 29).astype(np.int32)
)
STRUCTURES = ['101', '111', '010', '100']
BATCH, RATE, STEPS = 4, 0.2, 5


@dataclasses.dataclass(frozen=True)
class LabelSmoothed(Loss):
  """Cross-entropy with a share of each label spread over all classes, and noise on the inputs."""

  amount: float

  def __call__(self, recipe, params, slot):
    rows = slot.share * len(slot.x) + jnp.arange(len(slot.x))
    noise = jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(slot.key, row), (6,)))(rows)
    x = slot.x + 0.1 * noise
    logits = conditional(recipe.model, {'params': params}, x, slot.structure)
    targets = optax.smooth_labels(jax.nn.one_hot(slot.y, logits.shape[-1]), self.amount)
    facts = {'logits': {'size': jnp.abs(logits).mean(), 'by_class': jnp.abs(logits).mean(0)}}
    return optax.softmax_cross_entropy(logits, targets).mean(), facts


RECIPE = Recipe(MODEL, 'classification', optax.sgd(RATE), LabelSmoothed(0.3))


@pytest.fixture(scope='module')
def initial(random_pool):
  return init_state(RECIPE, random_pool(MODEL, TRAIN.x[:1]))


def trainer(initial, structures=STRUCTURES, mesh=(1, 1)):
  mesh = mesh_.make_mesh(*mesh, jax.devices()[: mesh[0] * mesh[1]])
  options = {'batch_size': BATCH, 'seed': 3, 'state': initial}
  sampler = samplers.listed(structures, 3)
  return Trainer(RECIPE, TRAIN, sampler, placement=Placement(mesh, chunk_steps=4), **options)


@functools.partial(jax.jit, static_argnames='structure')
def slot_by_hand(params, x, y, key, structure):
  """Loss with its size of logits, and gradient, of the static form."""

  def loss(params):
    keys = [jax.random.fold_in(key, row) for row in range(BATCH)]
    noise = jnp.stack([jax.random.normal(key, (6,)) for key in keys])
    logits = static(MODEL, {'params': params}, x + 0.1 * noise, structure)
    targets = 0.7 * jnp.eye(3)[y] + 0.3 / 3
    return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), jnp.abs(logits).mean()

  return jax.value_and_grad(loss, has_aux=True)(params)


def by_hand(params):
  order = Order(len(TRAIN), len(STRUCTURES) * BATCH, 3)
  key, losses, sizes = jax.random.fold_in(jax.random.key(3), 1), [], []
  for step in range(STEPS):
    rows = order.indices(step, 1).reshape(len(STRUCTURES), BATCH)
    now = jax.random.fold_in(key, step)
    slots = [
      slot_by_hand(params, *TRAIN[rows[k]], jax.random.fold_in(now, k), structure)
      for k, structure in enumerate(STRUCTURES)
    ]
    gradient = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *(g for _, g in slots))
    params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    losses.append([loss for (loss, _), _ in slots])
    sizes.append(np.mean([size for (_, size), _ in slots]))
  return params, np.array(losses), np.array(sizes)


@pytest.mark.parametrize('mesh', [(1, 1), (2, 2)], ids=str)
def test_a_loss_of_ones_own_trains(initial, mesh):
  own = trainer(initial, mesh=mesh)
  values = own.run(STEPS)
  params, losses, sizes = by_hand(initial.params)
  np.testing.assert_allclose(values['loss'], losses, rtol=1e-4)  # five steps of float32
  np.testing.assert_allclose(values['facts']['logits']['size'], sizes, rtol=1e-4)
  assert values['facts']['logits']['by_class'].shape == (STEPS, 3)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, processes.to_host(own.variables['params']), processes.to_host(params))
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, initial.params)
  assert max(jax.tree.leaves(moved)) > 0.01


def test_the_second_call_compiles_nothing(initial, compiles):
  first = trainer(initial)
  first.run(STEPS)
  del compiles[:]
  first.run(3)
  trainer(initial, ['110', '001', '011', '000']).run(STEPS)
  assert len(compiles) == 0


def test_curves_of_facts(initial):
  facts = trainer(initial).run(STEPS)['facts']
  mean = jax.tree.map(lambda leaf: leaf.mean(0), facts)
  assert RECIPE.loss.curves(mean) == {'logits/size': pytest.approx(mean['logits']['size'])}
