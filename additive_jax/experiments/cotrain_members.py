"""Exp 2 with `config.cotrain.adapters`: each structure is a member of the pool with vectors of its
own."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, PyTree

from additive_jax.experiments.arms import Start, Trained
from additive_jax.experiments.options import refused
from additive_jax.experiments.session import Session, first_input
from additive_jax.experiments.shared import judge_all
from additive_jax.models.costs import num_params
from additive_jax.train.adapters import ADAPTERS, Adapted, Members, members
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state

# Options that members do without, and what they have to be.
WITHOUT = {
  'train.distill': 0.0,
  'train.average': 'mean',
  'train.pipe_devices': 1,
  'train.fsdp_devices': 1,
  'train.tensor_devices': 1,
  'train.expert_devices': 1,
}


def check_adapters(session: Session) -> None:
  """Raises `UserError` for options and networks that members with vectors do not go with."""
  if not session.config.cotrain.adapters:
    return
  for name, value in WITHOUT.items():
    if getattr(session.config.train, name.partition('.')[2]) != value:
      raise refused(session.config, 'cotrain.adapters', name, expected=str(value))
  if session.has_statistics:
    name = type(session.model).__name__
    raise refused(
      session.config, 'cotrain.adapters', expected=f'False, since {name} has BatchNorms'
    )


def recipe_of(session: Session, num_steps: int, count: int) -> Recipe:
  """Returns how the structures are trained together, `count` of them."""
  recipe = session.training.recipe(num_steps)
  if not session.config.cotrain.adapters:
    return recipe
  return dataclasses.replace(recipe, model=Adapted(session.model, count), loss=Members())


def start_of(session: Session, recipe: Recipe, seed: int) -> Start:
  """Returns where the pool begins; members of one that is given all begin as that."""
  given = session.begin(seed) if isinstance(recipe.model, Adapted) else None
  if given is None:
    return Start()
  return Start(init_state(recipe, {'params': recipe.model.pool(given['params'])}))


def pools_of(variables: PyTree, count: int) -> list[PyTree]:
  """Returns `{'params': pool}` of each of the structures: the pool, or that of each member."""
  return members(variables) if ADAPTERS in variables['params'] else [variables] * count


def judge_each(
  bits: Bool[np.ndarray, 'structures gates'], trained: Trained
) -> dict[str, list[float]]:
  """Returns what `judge_all` does, of structures that may have pools of their own."""
  if ADAPTERS not in trained.variables['params']:
    return judge_all(bits, trained)
  each = [
    judge_all(row[None], dataclasses.replace(trained, variables=pool))
    for row, pool in zip(bits, members(trained.variables), strict=True)
  ]
  return {name: [record[name][0] for record in each] for name in each[0]}


def pool_params(session: Session, count: int) -> int:
  """Returns how many parameters the pool has, vectors included."""
  if not session.config.cotrain.adapters:
    return session.space.params(session.space.all_on())
  adapted: Any = Adapted(session.model, count)  # asked for its shapes as a module is
  return num_params(adapted, first_input(session.data))
