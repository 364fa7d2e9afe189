"""The losses of structures in a pool, by all of some examples or by a few."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree

from additive_jax.batches import named_leaves, num_examples, rows
from additive_jax.files.functions import digest_of
from additive_jax.models.identity import describe
from additive_jax.parallel import processes
from additive_jax.run.evaluate import evaluate_structures
from additive_jax.run.tasks import Task

SUBSET = 0x5EED  # names the order in which few examples are drawn, the same for every search


class PoolEvaluator:
  """An evaluator of a pool: structures that agree on their first gates share that work.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> x, y = np.ones((5, 6), 'f'), np.zeros(5, np.int32)
  >>> variables, task = model.init(jax.random.key(0), x), Task('classification')
  >>> evaluate = PoolEvaluator(model, variables, (x, y), task)
  >>> evaluate(np.array([[True, True], [True, False]]), 0.5).shape
  (2,)

  Args:
    model, variables: the pool.
    batch: x [N, ...] and y [N, ...].
    task: lower is better by what it ranks by.
    batch_size, recalibrate: as of `evaluate_structures`.

  Attributes:
    batch: the examples, in memory.
  """

  def __init__(
    self,
    model: nn.Module,
    variables: PyTree,
    batch: tuple[Any, Any],
    task: Task,
    batch_size: int | None = None,
    recalibrate: Any = None,
  ):
    self._model, self._variables, self._task = model, variables, task
    self.batch = jax.tree.map(np.asarray, batch)
    self._batch_size, self._recalibrate = batch_size, recalibrate

  def __call__(self, bits: Bool[np.ndarray, 'S n'], share: float = 1.0) -> Float[np.ndarray, 'S']:
    """Returns the losses of structures, by a share of the examples: of a smaller share some of
    those of a larger one, drawn at random once."""
    return np.asarray(self._task.cost(self.scores(bits, self._examples(share))), float)

  def scores(self, bits: Bool[np.ndarray, 'S n'], batch: tuple[Any, Any]) -> Mapping[str, Any]:
    """Returns loss and metrics of structures by some examples; for a run to override."""
    found = evaluate_structures(
      self._model,
      self._variables,
      batch,
      bits,
      task=self._task,
      batch_size=self._batch_size,
      recalibrate=self._recalibrate,
    )
    return found.scores

  def _examples(self, share):
    if share >= 1:
      return self.batch
    count = num_examples(self.batch)
    order = np.random.default_rng(SUBSET).permutation(count)
    return rows(self.batch, np.sort(order[: math.ceil(share * count)]))

  def identity(self) -> dict[str, Any]:
    """Returns what the losses are of, for a journal."""
    return {
      'model': describe(self._model),
      'pool': _digest(processes.to_host(self._variables)),
      'data': _digest(self.batch),
      'task': digest_of(self._task).partition(':')[2],
      'recalibrate': self._recalibrate is not None and self._recalibrate is not False,
    }


def _digest(tree: PyTree) -> str:
  crc = 0
  for name, leaf in named_leaves(tree):
    array = np.ascontiguousarray(leaf)
    crc = zlib.crc32(f'{name} {array.dtype} {array.shape}'.encode(), crc)
    crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
  return f'{crc:08x}'
