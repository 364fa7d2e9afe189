"""Members of one pool that differ by vectors: each scales the inputs and outputs of every kernel.

Member k has the kernels `W ∘ (r_k s_kᵀ)`, the pool's own times a product of rank one, so that it
computes `s_k ∘ (Wᵀ(r_k ∘ x))`: K networks for the parameters of one and K vectors a kernel. A
pool with the vectors of a member multiplied in is an ordinary pool, for everything that takes one.

Sources: Wen et al. 2020 (arXiv:2002.06715, BatchEnsemble); Gorishniy et al. 2024 (arXiv:2410.24210,
TabM, section 3.3: random signs for the first layer's inputs, ones elsewhere). Unlike there, members
share biases and may have structures of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from additive_jax import run
from additive_jax.batches import shapes_of
from additive_jax.errors import UserError, checked_size
from additive_jax.models.batch_norm import BATCH_STATS
from additive_jax.models.reads import parts
from additive_jax.train.recipe import Facts, Loss, Recipe, Slot
from additive_jax.train.samplers import Listed, Sampler

ADAPTERS = 'adapters'
INPUTS, OUTPUTS = 'inputs', 'outputs'
STARTS = ('signs', 'ones')


@dataclasses.dataclass(frozen=True)
class Adapted:
  """A model with vectors for each of K members, as the trainer takes one: its pool is that of the
  model, and beside it `adapters`, with `{'inputs': [K, D], 'outputs': [K, E]}` in the place of each
  kernel.

  Kernels are the leaves of that name with two axes or more, [..., D, E].

  >>> model = Adapted(aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), members=2)
  >>> params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 6)))['params']
  >>> list(params)
  ['adapters', 'block_00', 'embed', 'readout']
  >>> params['adapters']['embed']['kernel']['inputs'].shape
  (2, 6)

  Attributes:
    model: an additive model.
    members: K.
    start: 'signs', random ones for the inputs of the kernels that embed reads, and ones elsewhere;
      or 'ones', with which all members begin as the pool.
  """

  model: Any
  members: int
  start: str = 'signs'

  def __post_init__(self):
    checked_size(self.members, 'members')
    if self.start not in STARTS:
      raise UserError(f'start {self.start!r}: expected one of {", ".join(STARTS)}')

  def init(self, key: PRNGKeyArray, *args: Any, method: Any = None) -> Any:
    """Returns `{'params': pool}`, as a Flax module does, or the result of `method` of the model."""
    if method is not None:
      return self.model.init(key, *args, method=method)
    variables = self.model.init(key, *args)
    if BATCH_STATS in variables:
      raise UserError(
        f'adapters of {type(self.model).__name__}, which has BatchNorms: expected another norm'
      )
    first = flatten_dict(parts(self.model, shapes_of(args[0])).embed, sep='/')
    return {'params': self.pool(variables['params'], jax.random.fold_in(key, 1), set(first))}

  def pool(
    self, pool: PyTree, key: PRNGKeyArray | None = None, first: Any = ()
  ) -> dict[str, PyTree]:
    """Returns a pool of the model with vectors.

    Args:
      pool: of the model.
      key: draws signs; None is for ones.
      first: the paths of the kernels whose inputs begin with signs.
    """
    if ADAPTERS in pool:
      raise UserError(f'a pool with a part {ADAPTERS!r}: expected another name')
    adapters: dict[str, Any] = {}
    for path, shape in kernels(pool).items():
      inputs, outputs = (jnp.ones((self.members, size), jnp.float32) for size in shape[-2:])
      if self.start == 'signs' and key is not None and path in first:
        inputs = jax.random.rademacher(key, inputs.shape, jnp.float32)
      adapters |= {f'{path}/{INPUTS}': inputs, f'{path}/{OUTPUTS}': outputs}
    return {**pool, ADAPTERS: unflatten_dict(adapters, sep='/')}


def kernels(pool: PyTree) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of the kernels of a pool that have adapters, by path.

  >>> kernels({'a': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}})
  {'a/kernel': (2, 3)}

  Raises:
    UserError: for a pool without.
  """
  flat = {path: leaf.shape for path, leaf in flatten_dict(pool, sep='/').items()}
  found = {
    path: shape for path, shape in flat.items() if path.endswith('kernel') and len(shape) > 1
  }
  if not found:
    raise UserError(f'adapters of a pool of {", ".join(flat)}: expected a kernel [..., D, E]')
  return found


def member(params: PyTree, number: int | Int[Array, '']) -> PyTree:
  """Returns the pool of one member: its vectors multiplied into the kernels.

  >>> ones = jnp.ones((1, 2))
  >>> adapters = {'a': {'kernel': {'inputs': ones * jnp.array([2.0, 3.0]), 'outputs': ones}}}
  >>> member({'a': {'kernel': jnp.ones((2, 2))}, 'adapters': adapters}, 0)['a']['kernel'].tolist()
  [[2.0, 2.0], [3.0, 3.0]]

  Args:
    params: of an `Adapted`.
    number: of the member; may be traced.
  """
  pool = {name: tree for name, tree in params.items() if name != ADAPTERS}
  flat, vectors = flatten_dict(pool, sep='/'), flatten_dict(params[ADAPTERS], sep='/')
  for path in kernels(pool):
    inputs, outputs = (vectors[f'{path}/{side}'][number] for side in (INPUTS, OUTPUTS))
    flat[path] = flat[path] * inputs[:, None] * outputs
  return unflatten_dict(flat, sep='/')


def members(variables: Mapping[str, PyTree]) -> list[dict[str, PyTree]]:
  """Returns `{'params': pool}` of each member, ordinary pools of the model.

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> variables = jax.jit(Adapted(model, 2).init)(jax.random.key(0), jnp.ones((1, 6)))
  >>> [aj.static(model, pool, jnp.ones((5, 6)), '1').shape for pool in members(variables)]
  [(5, 3), (5, 3)]
  """
  params = variables['params']
  count = len(jax.tree.leaves(params[ADAPTERS])[0])
  return [{'params': member(params, number)} for number in range(count)]


@dataclasses.dataclass(frozen=True)
class Members(Loss):
  """The task's mean loss of member k in the structure of slot k: each slot trains one member, and
  all of them the pool.

  >>> import optax
  >>> model = Adapted(aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), members=2)
  >>> recipe = Recipe(model, 'classification', optax.sgd(0.1), Members())
  """

  def __call__(self, recipe: Recipe, params: PyTree, slot: Slot) -> tuple[Float[Array, ''], Facts]:
    """Returns the mean loss and no facts."""
    number: Any = slot.number  # every slot of a training has one
    variables = {'params': member(params, number)}
    outputs = run.conditional(recipe.model.model, variables, slot.x, slot.structure)
    return recipe.mean_loss(outputs, slot), {}

  def check(self, recipe: Recipe) -> None:
    """Raises `UserError` for a model without adapters, or an average by structures."""
    if not isinstance(recipe.model, Adapted):
      raise UserError(f'Members of a {type(recipe.model).__name__}: expected a model in Adapted')
    if recipe.average != 'mean':
      raise UserError(f'average {recipe.average!r} of members with adapters: expected mean')

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` for another number of slots than members, or slots that change."""
    given = len(sampler.bits) if isinstance(sampler, Listed) else type(sampler).__name__
    if given != recipe.model.members or sampler.num_structures != given:
      raise UserError(
        f'{recipe.model.members} members with the sampler {given}, {sampler.num_structures} '
        'structures a step: expected a listed one with a structure for each member, all in each '
        'step'
      )
