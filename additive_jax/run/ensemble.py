"""The mean prediction of several networks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PyTree, Shaped

from additive_jax.batches import num_examples, rows
from additive_jax.run import ways
from additive_jax.run.expected import check_task, expected_of
from additive_jax.run.tasks import LABELLED, SIGMOID, Task, added_up

BATCH = 512  # examples that are seen at once


def evaluate_ensemble(
  model: Any,
  pools: Sequence[PyTree],
  bits: Bool[np.ndarray, 'members gates'],
  batch: tuple[PyTree[Shaped[np.ndarray, 'N ...']], PyTree[Shaped[np.ndarray, 'N ...']]],
  task: Task,
) -> dict[str, float]:
  """Returns loss and metrics of the mean prediction of several networks.

  Predicted probabilities are averaged, of one class among several or of yes and no; in a regression
  and in tasks of your own, outputs.

  Args:
    model: the additive model of all.
    pools: `{'params': pool}` of each network.
    bits: the structure of each.
    batch: (x [N, ...], y [N, ...]).
    task: see `tasks`.

  Two members that are one network predict as it does:

  >>> model, task = aj.models.MLP(1, width=4, hidden=8, num_classes=3), Task('regression')
  >>> x, y, bits = np.ones((5, 6), np.float32), np.eye(5, 3), np.array([[True], [True]])
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)
  >>> loss = evaluate_ensemble(model, [pool, pool], bits, (x, y), task)['loss']
  >>> bool(np.isclose(loss, aj.evaluate_structures(model, pool, (x, y), ['1'], task=task).loss[0]))
  True
  """
  expected = expected_of(model, task, rows(batch[0], slice(1)))
  x, y = jax.tree.map(np.asarray, batch)
  expected.check(x, y, 'batch')
  check_task(model, task, rows(x, slice(BATCH)), y)
  sums: list[tuple[Any, ...]] = []
  for start in range(0, num_examples(x), BATCH):
    x_b, y_b = rows((x, y), slice(start, start + BATCH))
    every = [_predicted(model, task, pool, row, x_b) for pool, row in zip(pools, bits)]
    sums.append(added_up(task.statistics(_mean(task, jnp.stack(every)), y_b)))
  scores = task.finish([np.sum(parts, axis=0) for parts in zip(*sums)], task.facts(y))
  return {name: float(value) for name, value in scores.items()}


def what_is_averaged(task: Task) -> str:
  """Returns in a word what the mean prediction is the mean of.

  >>> what_is_averaged(Task('language')), what_is_averaged(Task('regression'))
  ('probabilities', 'outputs')
  """
  return 'probabilities' if task.name in (*LABELLED, *SIGMOID) else 'outputs'


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predicted(model, task, variables, bits, x):
  """Returns logarithms of probabilities, of all classes or of yes and no, or outputs."""
  outputs = ways.conditional(model, variables, x, bits)
  if task.name in LABELLED:
    return jax.nn.log_softmax(outputs)
  if task.name in SIGMOID:
    return jnp.stack([jax.nn.log_sigmoid(outputs), jax.nn.log_sigmoid(-outputs)], axis=-1)
  return outputs


def _mean(task, predicted):
  """Returns the outputs of the mean prediction."""
  if task.name in LABELLED:
    return jax.nn.logsumexp(predicted, axis=0) - np.log(len(predicted))
  if task.name in SIGMOID:
    yes, no = jnp.moveaxis(jax.nn.logsumexp(predicted, axis=0), -1, 0)
    return yes - no
  return predicted.mean(0)
