"""How far gradients of structures disagree about a gate: along which gate a pool is best split."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from additive_jax.batches import shapes_of
from additive_jax.models.additive import Inputs
from additive_jax.models.batch_norm import of_batch
from additive_jax.train.gradients import usage
from additive_jax.train.recipe import Recipe, Slot


def disagreement(
  recipe: Recipe, params: PyTree, bits: Bool[Array, 'M n'], x: Inputs, y: PyTree
) -> Float[Array, 'n']:
  """Returns for each gate 1 − the cosine between the gradients of a structure with the gate on and
  with it off, averaged over M structures, on one batch.

  Only parameters that both of them read count. It costs M·(n + 1) gradients.

  Args:
    params: the pool.
    bits: the structures, whose gates are turned one at a time.
    x, y: the batch [B, ...].

  >>> import optax
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> recipe = Recipe(model, 'classification', optax.sgd(0.1))
  >>> x, y = jnp.ones((5, 6)), jnp.zeros(5, int)
  >>> params = jax.jit(model.init)(jax.random.key(0), x)['params']
  >>> disagreement(recipe, params, jnp.array([[True, True], [True, False]]), x, y).shape
  (2,)

  Source: gradient matching, Hu et al. 2022 (arXiv:2203.15207), section 3.2; with two choices for
  each gate, so that there is one way to split along it.
  """
  reads = jax.tree.leaves(usage(recipe.model, shapes_of(x)))

  def gradient(structure):
    with of_batch():
      _, gradient = recipe.loss.gradient(recipe, params, Slot(structure, x, y))
    return jax.tree.leaves(gradient)

  def of_structure(structure):
    first = gradient(structure)

    def of_gate(gate):
      second = gradient(structure.at[gate].set(~structure[gate]))
      off = jnp.pad(structure.at[gate].set(False), (0, 1), constant_values=True)
      products = jnp.zeros(3)
      for a, b, readers in zip(first, second, reads):
        both = jnp.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()])
        products += jnp.where((off & readers).any(), both, 0)
      product, *squares = products
      return 1 - product / jnp.sqrt(jnp.maximum(squares[0] * squares[1], jnp.finfo(float).tiny))

    return jax.lax.map(of_gate, jnp.arange(len(structure)))

  return jax.lax.map(of_structure, bits).mean(0)
