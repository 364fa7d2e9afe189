"""Metrics: what a network is judged by, beside its loss.

A metric is a function of means over what counts: of each example it says what this one adds to some
sums, and from their means, once they are over all examples, what the metric is. So perplexity, R²,
F1 and the rest are the same for any batches and any devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from additive_jax.run.objectives import as_float, check_values

Weight = Float[Array | np.ndarray, 'B ...'] | None
Values = Shaped[Array | np.ndarray, '...']
Scores = Float[np.ndarray, '...'] | np.floating[Any]  # those of structures, or of one


def by_weight(values: Values, weight: Weight) -> Values:
  """Returns values of examples, or of what they consist of, as finely as they are weighted: means
  over all finer axes. None weighs examples.

  >>> by_weight(jnp.array([[1.0, 3.0], [2.0, 2.0]]), None).tolist()
  [2.0, 2.0]
  """
  axes = 1 if weight is None else weight.ndim
  return values.mean(tuple(range(axes, values.ndim))) if values.ndim > axes else values


def weighted(values: Values, weight: Weight) -> Float[Array | np.ndarray, 'B 1']:
  """Returns what each example adds to Σ weight · value."""
  values = by_weight(values, weight)
  if weight is not None:
    values = jnp.where(weight > 0, values, 0) * weight
  return values[:, None] if values.ndim == 1 else values.reshape(len(values), -1).sum(1)[:, None]


def weighted_each(values: Values, weight: Weight) -> Float[Array | np.ndarray, 'B C']:
  """Returns what each example adds to Σ weight · value of each class, label or target, which are
  the last axis.

  >>> weighted_each(jnp.array([[1.0, 3.0], [2.0, 2.0]]), jnp.array([2.0, 0.0])).tolist()
  [[2.0, 6.0], [0.0, 0.0]]
  """
  axes = 1 if weight is None else weight.ndim
  if values.ndim - 1 > axes:
    values = values.mean(tuple(range(axes, values.ndim - 1)))
  if weight is not None:
    weight = spread(weight, values)
    values = jnp.where(weight > 0, values, 0) * weight
  return values.reshape(len(values), -1, values.shape[-1]).sum(1)


def spread(weight: Weight, values: Values) -> Float[Array | np.ndarray, 'B ...']:
  """Returns weights with as many axes as values have; ones where all weigh alike."""
  if weight is None:
    return np.ones((1,) * values.ndim, np.float32)
  return weight.reshape(*weight.shape, *[1] * (values.ndim - weight.ndim))


class Metric:
  """What networks are judged by; one of your own that is no mean is a frozen dataclass derived from
  this class, with these attributes and methods. One that is a mean is a `MeanMetric`.

  >>> @dataclasses.dataclass(frozen=True)
  ... class Spread(Metric):
  ...   name: str = 'spread'
  ...   higher_is_better: bool = False
  ...
  ...   def statistics(self, outputs, y, weight):
  ...     error = outputs[:, 0] - y
  ...     return jnp.concatenate([weighted(error**2, weight), weighted(error, weight)], axis=1)
  ...
  ...   def finish(self, means, facts):
  ...     return np.sqrt(means[..., 0] - means[..., 1] ** 2)
  >>> Spread().finish(np.array([5.0, 1.0]), None)
  np.float64(2.0)

  Attributes:
    name: of columns and figures.
    higher_is_better: the direction.
  """

  name: str
  higher_is_better: bool

  def statistics(self, outputs: Any, y: Any, weight: Weight) -> Float[Array | np.ndarray, 'B K']:
    """Returns what each example adds to K weighted sums; `weighted` gives one of them.

    Args:
      outputs: of one structure, [B, ..., C].
      y: targets, without weights.
      weight: of each example [B], or of each token, label or target; None: each example counts 1.
    """
    raise NotImplementedError

  def facts(self, y: Any, weight: Weight) -> Any:
    """Returns what `finish` has to know of the targets of all examples, of NumPy."""
    del y, weight

  def finish(self, means: Float[np.ndarray, '... K'], facts: Any) -> Scores:
    """Returns the metric from the sums over all examples, divided by the sum of their weights."""
    del facts
    return means[..., 0]


@dataclasses.dataclass(frozen=True)
class MeanMetric(Metric):
  """The mean of a function of outputs [B, ..., C] and targets, which gives a number for each
  example, or for each token or label.

  >>> close = MeanMetric(lambda outputs, y: jnp.abs(outputs[:, 0] - y) < 0.5, 'close')
  >>> close.statistics(jnp.array([[1.0], [3.0]]), jnp.ones(2), None).tolist()
  [[1.0], [0.0]]

  Attributes:
    function: the function; jitted.
    name: by default the function's.
    higher_is_better: the direction.
  """

  function: Callable[[Any, Any], Any]
  name: str = ''
  higher_is_better: bool = True

  def __post_init__(self):
    name = self.name or getattr(self.function, '__name__', '').strip('<>') or 'metric'
    object.__setattr__(self, 'name', name)

  def statistics(self, outputs: Any, y: Any, weight: Weight) -> Float[Array | np.ndarray, 'B 1']:
    """Returns what each example adds to the weighted sum."""
    values = self.function(outputs, y)
    check_values('metric', self.function, values, outputs.shape)
    return weighted(as_float(values), weight)
