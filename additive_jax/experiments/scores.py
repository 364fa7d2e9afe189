"""How good the structures of a pool are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from additive_jax.experiments.session import Session
from additive_jax.gates.structure import sampled_bits
from additive_jax.run.evaluate import Evaluation, evaluate_structures


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
    devices=session.machine.workers,
  )


def sampled_structures(session: Session, limit: int) -> Bool[np.ndarray, 'structures gates']:
  """Returns all structures, or where they are more than `limit` that many drawn by the seed."""
  return sampled_bits(session.space.num_gates, limit, session.config.seed)


def full_scores(session: Session, variables: Any, split: Any = None) -> dict[str, float]:
  """Returns `test_loss` and `test_accuracy` of a pool, all gates on.

  Args:
    session, variables, split: as `evaluate` takes them.
  """
  scores = evaluate(session, variables, [session.space.all_on()], split)
  return {'test_loss': float(scores.loss[0]), 'test_accuracy': float(scores.accuracy[0])}
