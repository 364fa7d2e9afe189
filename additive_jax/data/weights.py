"""What each example, or each token, counts: a weight beside its target."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from additive_jax.batches import named_leaves
from additive_jax.errors import UserError

EXPECTED = 'weights from 0, finite as float32, not all 0'
LARGEST = float(np.finfo(np.float32).max)


class Weighted(NamedTuple):
  """Targets with what each of them counts. Losses and metrics are means over what counts:
  Σ weight · value / Σ weight.

  Padding has weight 0, so it never counts. The weights are looked at where data enters, by
  `ArraySplit`, `Data` and evaluation; there a boolean mask becomes float32.

  >>> y = Weighted(np.array([[1, 2, 0], [3, 0, 0]]), np.array([[1, 1, 0], [1, 0, 0]], np.float32))
  >>> aj.data.ArraySplit(np.zeros((2, 3)), y)
  ArraySplit(2 examples, x [3] float64, y.y [3] int64, y.weight [3] float32)

  Attributes:
    y: targets [N, ...]; whatever the task takes.
    weight: of each example, [N], or of each token, [N, T]: from 0, finite, not all 0.
  """

  y: PyTree
  weight: Any


def unweighted(y: PyTree) -> PyTree:
  """Returns targets without their weights.

  >>> unweighted(Weighted(np.array([3]), np.array([0.5])))
  array([3])
  """
  return y.y if isinstance(y, Weighted) else y


def checked_weights(y: PyTree, name: str = 'data', *, whole: bool = True) -> PyTree:
  """Returns targets whose weights are float32, after a look at them.

  >>> checked_weights(Weighted(np.zeros(3), np.array([1.0, -0.5, 1.0])))
  Traceback (most recent call last):
  additive_jax.errors.UserError: data: weight -0.5 in 1 of 3 examples, the first in example 1:
  expected weights from 0, finite as float32, not all 0

  Args:
    y: targets; those that are `Weighted`, or have such parts, are looked at.
    name: what they are called in messages.
    whole: whether these are all examples there are, of which some must count; in a batch of them
      all may have weight 0.

  Raises:
    UserError: for weights of another shape than the examples or tokens, that are no numbers,
      negative, not finite, or all 0.
  """
  is_weighted = lambda part: isinstance(part, Weighted)
  check = lambda part: _checked(part, name, whole) if is_weighted(part) else part
  return jax.tree.map(check, y, is_leaf=is_weighted)


def _checked(y: Weighted, name: str, whole: bool) -> Weighted:
  weight, targets = np.asarray(y.weight), named_leaves(y.y)
  shapes = [np.shape(target) for _, target in targets]
  sizes = [list(shape[:axes]) for shape in shapes[:1] for axes in (1, 2) if len(shape) >= axes]
  if not weight.ndim or any(shape[: weight.ndim] != weight.shape for shape in shapes):
    expected = ' or '.join(map(str, sizes)) or 'targets beside them'
    raise UserError(f'{name}: weights of shape {list(weight.shape)}: expected {expected}')
  if weight.dtype.kind not in 'biuf':
    raise UserError(f'{name}: weights of type {weight.dtype}: expected numbers')
  wrong = ~((weight >= 0) & (weight <= LARGEST))
  if wrong.any():
    first = np.argwhere(wrong)[0].tolist()
    count = len(np.unique(np.nonzero(wrong)[0]))
    place = f'in example {first[0]}' if len(first) == 1 else f'at {first}'
    raise UserError(
      f'{name}: weight {weight[tuple(first)]} in {count} of {len(weight)} examples, the first '
      f'{place}: expected {EXPECTED}'
    )
  weight = weight.astype(np.float32, copy=False)
  if whole and weight.size and not weight.any():
    raise UserError(f'{name}: weights that are all 0: expected {EXPECTED}')
  return Weighted(y.y, weight)
