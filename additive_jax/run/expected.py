"""What a network and a task take of examples, checked by shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from additive_jax.batches import is_array, shapes_of
from additive_jax.data import Expected
from additive_jax.errors import UserError
from additive_jax.models.additive import Inputs
from additive_jax.models.contract import check_network
from additive_jax.models.token_inputs import TOKENS
from additive_jax.run.objectives import Distilled, Taught, name_of
from additive_jax.run.tasks import Task, task_of


def expected_of(model: Any, task: str | Task, x: Inputs) -> Expected:
  """Returns what a network and a task take of examples, to check them with.

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> expected_of(model, 'classification', np.ones((2, 6), np.float32))
  Expected(task='classification', num_outputs=3, num_tokens=0, target_shape=(), ignore_label=None,
           tokens='')

  Args:
    x: a batch of inputs, of which the shape matters.
  """
  task = task_of(task)
  of = TOKENS if isinstance(x, Mapping) and TOKENS in x else ''
  ids = x[TOKENS] if of else x
  is_tokens = is_array(ids) and np.issubdtype(ids.dtype, np.integer)
  tokens = getattr(model, 'num_tokens', 0) if is_tokens else 0
  if isinstance(task.loss, Distilled):
    return Expected(num_tokens=tokens, tokens=of)
  # In place of a module there may be something with parts alone.
  if not task.name or not hasattr(model, 'init_with_output'):
    return Expected(task.name, num_tokens=tokens, ignore_label=task.ignore_label, tokens=of)
  _, *shape, outputs = check_network(model, x).shape
  whole = task.name in ('regression', 'multi_label')
  targets = (*shape, outputs) if whole else tuple(shape)
  return Expected(task.name, outputs, tokens, targets, task.ignore_label, of)


def check_task(model: Any, task: Task, x: PyTree, y: PyTree) -> None:
  """Raises `UserError` for a task whose loss or metrics do not give what is expected of them, for a
  batch of a network's outputs; by shapes alone.

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> mean = Task(loss=lambda outputs, y: outputs.mean())
  >>> check_task(model, mean, np.ones((32, 6)), np.ones(32))
  Traceback (most recent call last):
  additive_jax.errors.UserError: loss <lambda> gives float32 (): expected floats of shape (32,), one
  for each example, or one for each token

  Args:
    x: a batch, of which the shape matters.
    y: some examples' targets, of which the shape of one matters.
  """
  if not hasattr(model, 'init_with_output'):  # see `expected_of`
    return
  outputs = check_network(model, x)
  size = outputs.shape[0]
  targets = shapes_of(y, size)
  if task.class_weights and len(task.class_weights) != outputs.shape[-1]:
    raise UserError(
      f'class_weights {task.class_weights}: expected {outputs.shape[-1]} numbers, one for each '
      'class'
    )
  weight = jax.eval_shape(lambda y: task.weights(y, of_loss=True), targets)
  losses = _shapes_of(task.loss, 'loss', task.losses, outputs, targets)
  bare = _targets(task, targets)
  if task.name and is_array(bare) and losses.shape != bare.shape[: len(losses.shape)]:
    raise UserError(
      f'loss {name_of(task.loss)} gives {losses.shape} of targets {bare.shape}: expected a loss of '
      'each example, or of each token, label or target of it'
    )
  if weight is not None and losses.shape[: len(weight.shape)] != weight.shape:
    raise UserError(
      f'loss {name_of(task.loss)} gives {losses.shape} and weights are {weight.shape}: expected '
      'losses of what is weighted, or of its parts'
    )
  _check_metrics(task, outputs, targets)


def _targets(task, targets):
  """Returns the shapes of targets without weights, and without what a teacher says of them."""
  bare = jax.eval_shape(task.clean, targets)
  return bare.y if isinstance(bare, Taught) else bare


def _check_metrics(task, outputs, targets):
  count = outputs.shape[0]
  bare, weight = _targets(task, targets), jax.eval_shape(task.weights, targets)
  for metric in task.metrics:
    given = _shapes_of(metric.name, 'metric', metric.statistics, outputs, bare, weight)
    if getattr(given, 'ndim', 0) != 2 or given.shape[0] != count:
      shape = getattr(given, 'shape', given)
      raise UserError(
        f'metric {metric.name} gives statistics {shape}: expected ({count}, K), K of each example'
      )


def _shapes_of(function, word, call, *args):
  """Returns the shapes of what a function of the task's gives, or its error in one line."""
  try:
    return jax.eval_shape(call, *args)
  except UserError as error:
    raise UserError(str(error)) from None  # without the notes of JAX
  except (TypeError, ValueError, IndexError, AttributeError) as error:
    name = function if isinstance(function, str) else name_of(function)
    shapes = ', '.join(str(leaf.shape) for leaf in jax.tree.leaves(args))
    text = ' '.join(str(error).split())
    raise UserError(
      f'{word} {name} fails on outputs and targets {shapes}: {text[:200]}; expected a function of '
      'both'
    ) from error
