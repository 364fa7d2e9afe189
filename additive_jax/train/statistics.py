"""What trainings of networks with BatchNorms have beside the pool: the statistics of all-on."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from additive_jax.errors import UserError
from additive_jax.models.additive import gate_names
from additive_jax.models.contract import statistics_of
from additive_jax.run.recalibration import recalibrate
from additive_jax.train.recipe import Recipe


def has_statistics(recipe: Recipe, x: Any) -> bool:
  """Returns whether a recipe's network has BatchNorms.

  Args:
    x: inputs [B, ...].

  Raises:
    UserError: for one in stages, or whose batches go through in pieces.
  """
  has = isinstance(recipe.model, nn.Module) and bool(statistics_of(recipe.model, x))
  name = f'{type(recipe.model).__name__} with BatchNorms'
  if has and recipe.accumulate > 1:
    raise UserError(
      f'{name} and accumulate {recipe.accumulate}: expected 1, for a batch is normalised as a '
      'whole, or another norm'
    )
  if has and recipe.loss.stages() is not None:
    raise UserError(
      f'{name} in a pipeline, whose microbatches pass by themselves: expected '
      'config.train.pipe_devices=1, or another norm'
    )
  return has


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
