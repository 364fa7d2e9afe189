"""Gradual pruning: weights leave while a network trains, the least important first.

The importance of a weight is its magnitude times the root-mean-square of what it multiplies, so a
weight on an input that is nearly always zero goes before a smaller one on an input that is not
(Sun et al. 2023, arXiv:2306.11695, equation 1). How many stay falls by a cubic, fast at first and
slowly at the end (Zhu & Gupta 2017, arXiv:1710.01878, equation 1):

    weights   N ┐
                 ╲
                  ╲__
                     ‾‾─────── keep
            step 0      num_steps
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from additive_jax.compress.levels import Batch, Weights
from additive_jax.compress.noise import KERNEL, Change, StandIn, with_kernels
from additive_jax.errors import UserError
from additive_jax.train.recipe import Facts, Recipe, Scalar, Slot, Structures
from additive_jax.train.samplers import Sampler, check_all_on

POWER, DUE, STEP, KEPT = 'power', 'due', 'step', 'kept'


@dataclasses.dataclass(frozen=True, eq=False)
class _Listening(StandIn):
  """A kernel that notes the squares of what it is multiplied by.

  `heard` grows by `Σ x² · v` for each product, whose slope with respect to `v`, zeros of the shape
  of the kernel, is for each weight the sum of the squares of its input; whichever rows, columns and
  shapes of the kernel the network asks for.
  """

  kernel: Float[Array, '...']
  v: Float[Array, '...']
  heard: list[Float[Array, '']]

  @property
  def array(self) -> Float[Array | np.ndarray, '...']:
    return self.kernel

  def changed(self, change: Change) -> _Listening:
    return _Listening(change(self.kernel), change(self.v), self.heard)

  def astype(self, dtype: Any) -> _Listening:
    """Returns the kernel in another dtype; squares are added up as they were."""
    return _Listening(self.kernel.astype(dtype), self.v, self.heard)

  def __rmatmul__(self, x: Float[Array, '... inputs']) -> Float[Array, '... outputs']:
    self.heard.append((jnp.square(x.astype(self.v.dtype)) @ self.v).sum())
    return x @ self.kernel


def input_power(level: Weights, params: PyTree, x: Batch) -> dict[str, Float[Array, '...']]:
  """Returns of each weight the sum over a batch of the square of what it multiplies, all gates on.

  >>> from additive_jax.compress import make_level
  >>> model, x = aj.models.MLP(1, width=4, hidden=8, num_classes=3), jnp.full((2, 5), 3.0)
  >>> params = jax.jit(model.init)(jax.random.key(0), x)['params']
  >>> power = input_power(make_level('weight', model, x), params, x)
  >>> power['embed/kernel'].shape, float(power['embed/kernel'][0, 0])
  ((5, 4), 18.0)

  Args:
    level: whose weights they are.
    params: the pool.
    x: inputs [B, ...]; of several tokens each the squares of all are added up.
  """

  def heard(v):
    told: list[Float[Array, '']] = []
    listening = lambda name: lambda kernel: _Listening(kernel, v[name], told)
    kernels = {name.removesuffix(f'/{KERNEL}'): listening(name) for name, _ in level.shapes}
    with_kernels(level.model, params, x, kernels)
    return sum(told, jnp.zeros(()))

  zeros = {name: jnp.zeros(shape) for name, shape in level.shapes}
  return jax.grad(heard)(zeros)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradual(Structures):
  """The task's mean loss of all-on, and weights that leave after some steps; what left stays zero.

  Attributes:
    level: whose weights leave.
    keep: how many stay in the end.
    num_steps: over which they leave.
    every: steps from one time that weights leave to the next.

  >>> import optax
  >>> from additive_jax.compress import make_level
  >>> model, x = aj.models.MLP(1, width=4, hidden=8, num_classes=3), np.ones((1, 5), np.float32)
  >>> loss = Gradual(level=make_level('weight', model, x), keep=9, num_steps=100, every=10)
  >>> recipe = Recipe(model, 'classification', optax.adam(0.01), loss)
  >>> [int(loss.count(step)) for step in (0, 50, 100, 200)]
  [96, 20, 9, 9]
  """

  level: Weights
  keep: int
  num_steps: int
  every: int

  by_parts: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.level, Weights):
      name = type(self.level).__name__
      raise UserError(f'gradual pruning of {name}: expected of weights')
    if not 1 <= self.keep <= self.size:
      raise UserError(f'{self.keep} weights of {self.size} stay: expected 1 to {self.size}')
    if min(self.num_steps, self.every) < 1:
      raise UserError(f'num_steps {self.num_steps}, every {self.every}: expected 1 or more')

  @property
  def size(self) -> int:
    """How many weights there are."""
    return sum(int(np.prod(shape)) for _, shape in self.level.shapes)

  def count(self, step: Any) -> Float[Array, '']:
    """Returns how many weights stay after a step."""
    left = 1 - jnp.minimum(jnp.asarray(step, jnp.float32) / self.num_steps, 1)
    return jnp.round(self.keep + (self.size - self.keep) * left**3)

  def __call__(self, recipe: Recipe, params: PyTree, slot: Slot) -> tuple[Scalar, Facts]:
    """Returns the mean loss and facts: of each weight the power of its input, where weights are
    about to leave."""
    loss, _ = super().__call__(recipe, params, slot)
    fixed, step = jax.lax.stop_gradient(params), jnp.asarray(slot.step)
    # The last time is at the last step, wherever it falls among the others.
    due = (((step + 1) % self.every == 0) | (step + 1 == self.num_steps)) & (step < self.num_steps)
    zeros = lambda: {name: jnp.zeros(shape) for name, shape in self.level.shapes}
    power = jax.lax.cond(due, lambda: input_power(self.level, fixed, slot.x), zeros)
    leaves = flatten_dict(fixed, sep='/')
    kept = sum((leaves[name] != 0).sum() for name, _ in self.level.shapes) / self.size
    facts = {
      POWER: slot.mean(power),
      DUE: due.astype(jnp.float32),
      STEP: (step + 1).astype(jnp.float32),
    }
    return loss, facts | {KEPT: jnp.asarray(kept, jnp.float32)}

  def gradient(
    self, recipe: Recipe, params: PyTree, slot: Slot
  ) -> tuple[tuple[Scalar, Facts], PyTree]:
    """Returns loss, facts and gradient; that of a weight that left is zero."""
    told, gradient = super().gradient(recipe, params, slot)
    leaves, values = flatten_dict(gradient, sep='/'), flatten_dict(params, sep='/')
    leaves |= {name: jnp.where(values[name] != 0, leaves[name], 0) for name, _ in self.level.shapes}
    return told, unflatten_dict(leaves, sep='/')

  def adjust(self, params: PyTree, before: PyTree, facts: Facts) -> PyTree:
    """Returns the pool after a step without the weights that left, now or before."""
    leaves, old = flatten_dict(params, sep='/'), flatten_dict(before, sep='/')
    names = [name for name, _ in self.level.shapes]
    present = {name: old[name] != 0 for name in names}

    def fewer():
      parts = [
        jnp.where(present[n], jnp.abs(leaves[n]) * jnp.sqrt(facts[POWER][n]), -1).ravel()
        for n in names
      ]
      scores = jnp.concatenate(parts)
      order = jnp.argsort(-scores)  # stable: of equal ones the first stay
      rank = (
        jnp.zeros(scores.size, jnp.int32).at[order].set(jnp.arange(scores.size, dtype=jnp.int32))
      )
      stays = (rank < self.count(facts[STEP])) & (scores >= 0)
      cuts = np.cumsum([part.size for part in parts])[:-1]
      return {n: part.reshape(old[n].shape) for n, part in zip(names, jnp.split(stays, cuts))}

    stays = jax.lax.cond(facts[DUE] > 0, fewer, lambda: present)
    leaves |= {name: jnp.where(stays[name], leaves[name], 0) for name in names}
    return unflatten_dict(leaves, sep='/')

  def curves(self, facts: Facts) -> dict[str, float]:
    """Returns the share of the weights that are left."""
    return {KEPT: float(facts[KEPT])}

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` for structures other than all-on."""
    super().check_training(recipe, sampler, batch_size, mesh)
    check_all_on(sampler, 'gradual pruning')
