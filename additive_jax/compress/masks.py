"""Training what is left: what is zero stays zero."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class KeptState(NamedTuple):
  """What `keep_zeros` keeps: where the pool may move, bool like the pool, and the state of what it
  wraps."""

  free: Any
  inner: Any


def keep_zeros(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """An optimizer for which a number that is zero at the start stays zero: it sees no gradient
  there, and its updates are left out. The mask is a part of its state, so one compiled program
  serves every mask, and a checkpoint holds it."""

  def init(params):
    free = jax.tree.map(lambda leaf: leaf != 0, params)
    return KeptState(free, optimizer.init(params))

  def update(gradient, state, params=None):
    masked = lambda tree: jax.tree.map(lambda leaf, on: jnp.where(on, leaf, 0), tree, state.free)
    updates, inner = optimizer.update(masked(gradient), state.inner, params)
    return masked(updates), KeptState(state.free, inner)

  return optax.GradientTransformation(init, update)
