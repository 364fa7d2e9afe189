"""The mean prediction of several networks."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax import run
from additive_jax.run.objectives import objective_of

EVALUATION_BATCH = 512


def ensemble(model, pools, bits: np.ndarray, batch, data) -> tuple[float, float]:
  """Loss and accuracy of the mean prediction of several networks.

  Predicted probabilities are averaged; for regression, predictions.

  Args:
    model: the additive model of all.
    pools: one `{'params': pool}` per network.
    bits: the structure of each, bool [K, n].
    batch: (x [N, ...], y [N, ...]).
    data: tells the task.
  """
  x, y = batch
  objective = objective_of(data.task)
  total = np.zeros(2)
  for start in range(0, len(x), EVALUATION_BATCH):
    part = slice(start, start + EVALUATION_BATCH)
    outputs = jnp.stack(
      [_outputs(model, data.task, pool, row, x[part]) for pool, row in zip(pools, bits)]
    )
    if data.task == 'regression':
      mean = outputs.mean(0)
    else:
      mean = jax.nn.logsumexp(outputs, axis=0) - np.log(len(pools))
    total += [float(values.sum()) for values in objective(mean, jnp.asarray(y[part]))]
  loss, accuracy = total / len(x)
  return float(loss), float(accuracy)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(model, task, variables, bits, x):
  outputs = run.conditional(model, variables, x, bits)
  return outputs if task == 'regression' else jax.nn.log_softmax(outputs)
