"""What trainings of networks with BatchNorms have beside the pool: the statistics of all-on."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from additive_jax.models.additive import gate_names
from additive_jax.models.contract import statistics_of
from additive_jax.run.recalibration import recalibrate
from additive_jax.train.recipe import Recipe


def has_statistics(recipe: Recipe, x: Any) -> bool:
  """Returns whether a recipe's network has BatchNorms.

  Args:
    x: inputs [B, ...].
  """
  return isinstance(recipe.model, nn.Module) and bool(statistics_of(recipe.model, x))


def of_all_on(recipe: Recipe, params: PyTree, train: Any) -> PyTree:
  """Returns the statistics of all-on in a pool, `{'batch_stats': …}`, found by one pass over the
  first training examples.

  Args:
    params: the pool.
    train: the training split.
  """
  all_on = [(True,) * len(gate_names(recipe.model))]
  own = recalibrate(recipe.model, {'params': params}, all_on, train)[0]
  return {name: tree for name, tree in own.items() if name != 'params'}
