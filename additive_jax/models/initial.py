"""The pool that a network begins with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Var, jaxpr_as_fun
from jaxtyping import Array, PRNGKeyArray, PyTree, Shaped

from additive_jax.batches import Shapes, shapes_of


def initial(
  model: nn.Module, key: PRNGKeyArray, x: PyTree[Shaped[Array | np.ndarray, 'B ...']]
) -> PyTree:
  """Returns what `model.init(key, x)` gives. All but the pool is left out.

  Leaves of one shape share a program, also those of several networks: random numbers compile long,
  and in one program for all leaves each of them would.

  >>> model, x = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3), np.ones((1, 6))
  >>> pool, other = initial(model, jax.random.key(0), x), model.init(jax.random.key(0), x)
  >>> all((a == b).all() for a, b in zip(jax.tree.leaves(pool), jax.tree.leaves(other)))
  True
  """
  if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((key, x))):
    return _whole(model, key, x)
  traced = _whole.trace(model, key, x)
  leaves = _needed(traced.jaxpr)(*jax.tree.leaves((key, jax.tree.map(jnp.asarray, x))))
  return jax.tree.unflatten(traced.out_tree, leaves)


def initial_shapes(model: nn.Module, x: PyTree[Any]) -> PyTree:
  """Returns the shapes of what `model.init` gives, which is traced once for a model and inputs.

  >>> initial_shapes(nn.Dense(4), np.ones((5, 6)))['params']['kernel'].shape
  (6, 4)
  """
  shapes: Shapes = shapes_of(x)
  return _whole.eval_shape(model, jax.random.key(0), shapes)


@functools.partial(jax.jit, static_argnums=0)
def _whole(model: nn.Module, key: PRNGKeyArray, x: Any) -> PyTree:
  return model.init(key, x)


def _needed(closed: ClosedJaxpr) -> Callable[..., list[Any]]:
  """Returns the function of a traced program, one operation after the other, without those whose
  results nothing needs."""
  needed = {var for var in closed.jaxpr.outvars if isinstance(var, Var)}
  kept = []
  for equation in reversed(closed.jaxpr.eqns):
    if equation.effects or not needed.isdisjoint(equation.outvars):
      kept.append(equation)
      needed |= {var for var in equation.invars if isinstance(var, Var)}
  return jaxpr_as_fun(closed.replace(jaxpr=closed.jaxpr.replace(eqns=kept[::-1])))
