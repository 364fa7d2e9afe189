"""How good the structures of a pool are, each alone and several together."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

from additive_jax import run
from additive_jax.experiments.session import Session
from additive_jax.gates.structure import Structure, all_bits
from additive_jax.run.evaluate import Evaluation, evaluate_structures

BATCH = 512  # examples that an ensemble sees at once


def evaluate(
  session: Session, variables: Any, structures: Sequence | np.ndarray, split: Any = None
) -> Evaluation:
  """Returns loss and accuracy [S] of structures in a pool of the session's model.

  Args:
    session: names the model, what is minimised, and the devices.
    variables: `{'params': pool}`.
    structures: in any form, or as bits [S, n].
    split: (x, y), or a split in memory; None is the test split.
  """
  return evaluate_structures(
    session.model,
    variables,
    session.test if split is None else split,
    structures,
    task=session.objective,
    devices=session.workers,
  )


def sampled_structures(session: Session, limit: int) -> Bool[np.ndarray, 'structures gates']:
  """Returns all structures where they are no more than `limit`, else that many, drawn at random;
  all-on comes last."""
  num_gates = session.space.num_gates
  if num_gates < 63 and 2**num_gates <= limit:
    return all_bits(num_gates)
  random = np.random.Generator(np.random.PCG64(session.config.seed))
  rows: dict[tuple, None] = {}  # a set that keeps its order
  while len(rows) < limit - 1:
    row = tuple(bool(bit) for bit in random.integers(2, size=num_gates))
    if not all(row):
      rows[row] = None
  return np.array([*rows, Structure.all_on(num_gates).bits])


def ensemble(
  session: Session, pools: Sequence[Any], bits: Bool[np.ndarray, 'members gates']
) -> dict[str, float]:
  """Returns test loss and accuracy of the mean prediction of several networks.

  Predicted probabilities are averaged; for regression, predictions.

  Args:
    session: names the model and the data.
    pools: `{'params': pool}` of each network.
    bits: the structure of each.
  """
  x, y = session.test
  task, total = session.data.task, np.zeros(2)
  for start in range(0, len(x), BATCH):
    part = slice(start, start + BATCH)
    outputs = jnp.stack(
      [_outputs(session.model, task, pool, row, x[part]) for pool, row in zip(pools, bits)]
    )
    if task == 'regression':
      mean = outputs.mean(0)
    else:
      mean = jax.nn.logsumexp(outputs, axis=0) - np.log(len(pools))
    total += [float(values.sum()) for values in session.objective(mean, jnp.asarray(y[part]))]
  loss, accuracy = total / len(x)
  return {'loss': float(loss), 'accuracy': float(accuracy)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(model, task, variables, bits, x: Shaped[Array, 'batch ...']):
  outputs = run.conditional(model, variables, x, bits)
  return outputs if task == 'regression' else jax.nn.log_softmax(outputs)


def full_scores(session: Session, variables: Any, split: Any = None) -> dict[str, float]:
  """Returns `test_loss` and `test_accuracy` of a pool, all gates on.

  Args:
    session, variables, split: as `evaluate` takes them.
  """
  scores = evaluate(session, variables, [session.space.all_on()], split)
  return {'test_loss': float(scores.loss[0]), 'test_accuracy': float(scores.accuracy[0])}
