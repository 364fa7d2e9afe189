"""The mean prediction of several networks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, PyTree, Shaped

from additive_jax.batches import num_examples, rows
from additive_jax.run import ways
from additive_jax.run.objectives import expected_of, regression, scores_of

BATCH = 512  # examples that are seen at once


def evaluate_ensemble(
  model: Any,
  pools: Sequence[PyTree],
  bits: Bool[np.ndarray, 'members gates'],
  batch: tuple[PyTree[Shaped[np.ndarray, 'N ...']], PyTree[Shaped[np.ndarray, 'N ...']]],
  objective: Callable[..., Any],
) -> tuple[float, float]:
  """Returns loss and accuracy of the mean prediction of several networks.

  Predicted probabilities are averaged; for regression, predictions.

  Args:
    model: the additive model of all.
    pools: `{'params': pool}` of each network.
    bits: the structure of each.
    batch: (x [N, ...], y [N, ...]).
    objective: from outputs and targets to loss and accuracy, see `objectives`.

  Two members that are one network predict as it does:

  >>> from additive_jax.run.objectives import classification
  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> x, y, bits = np.ones((5, 6), np.float32), np.zeros(5, np.int32), np.array([[True], [True]])
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)
  >>> loss, _ = evaluate_ensemble(model, [pool, pool], bits, (x, y), classification)
  >>> bool(np.isclose(loss, aj.evaluate_structures(model, pool, (x, y), ['1']).loss[0]))
  True
  """
  x, y = batch
  expected = expected_of(model, objective, rows(x, slice(1)))
  x, y = jax.tree.map(np.asarray, (x, y))
  expected.check(x, y, 'batch')
  count = num_examples(x)
  is_regression, total = objective is regression, np.zeros(2)
  for start in range(0, count, BATCH):
    part = slice(start, start + BATCH)
    x_b, y_b = rows((x, y), part)
    outputs = jnp.stack(
      [_outputs(model, is_regression, pool, row, x_b) for pool, row in zip(pools, bits)]
    )
    if is_regression:
      mean = outputs.mean(0)
    else:
      mean = jax.nn.logsumexp(outputs, axis=0) - np.log(len(pools))
    total += [
      float(values.sum()) for values in scores_of(objective, mean, jax.tree.map(jnp.asarray, y_b))
    ]
  loss, accuracy = total / count
  return float(loss), float(accuracy)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(model, is_regression, variables, bits, x):
  outputs = ways.conditional(model, variables, x, bits)
  return outputs if is_regression else jax.nn.log_softmax(outputs)
