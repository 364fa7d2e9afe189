"""The metrics that have names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from additive_jax.batches import is_array
from additive_jax.errors import UserError, did_you_mean
from additive_jax.run.metrics import (
  MeanMetric,
  Metric,
  Scores,
  Weight,
  spread,
  weighted,
  weighted_each,
)
from additive_jax.run.objectives import (
  CrossEntropy,
  Losses,
  LossFunction,
  Outputs,
  Targets,
  as_float,
  check_shapes,
  is_soft,
  labels_of,
  one_output,
)
from additive_jax.run.summary import Summary


def accuracy(outputs: Outputs | Summary, y: Targets) -> Losses:
  """Returns 1 where the label's logit is larger than every other.

  >>> accuracy(jnp.array([[0.0, 0.0], [2.0, 1.0]]), jnp.array([0, 0])).tolist()
  [0.0, 1.0]
  """
  if isinstance(outputs, Summary):
    return outputs.right
  # An argmax takes ten times as long on CPU, where it is not vectorised.
  y = labels_of(y)
  labelled = jnp.take_along_axis(outputs, y[..., None], axis=-1)[..., 0]
  others = jnp.where(jnp.arange(outputs.shape[-1]) == y[..., None], -jnp.inf, outputs).max(-1)
  return as_float(labelled > others)


@dataclasses.dataclass(frozen=True)
class TopK:
  """1 where fewer than k logits are as large as the label's, or larger.

  >>> TopK(2)(jnp.array([[3.0, 2.0, 1.0]] * 3), jnp.arange(3)).tolist()
  [1.0, 1.0, 0.0]
  """

  k: int

  def __call__(self, outputs: Outputs, y: Targets) -> Losses:
    """Returns the number of each example or token."""
    labelled = jnp.take_along_axis(outputs, labels_of(y)[..., None], axis=-1)
    return as_float((outputs >= labelled).sum(-1) <= self.k)


def right_labels(outputs: Outputs, y: Targets) -> Losses:
  """Returns 1 where an output is on the side of 0 that its label, yes or no, is on."""
  outputs = one_output(outputs, y)
  check_shapes(outputs, y, 'labels')
  return as_float((outputs > 0) == (y > 0.5))


def absolute_error(outputs: Outputs, y: Targets) -> Losses:
  """Returns the absolute error of each target."""
  check_shapes(outputs, y, 'targets')
  return jnp.abs(outputs - y)


@dataclasses.dataclass(frozen=True)
class Perplexity(Metric):
  """exp of the mean cross-entropy of a token.

  >>> float(Perplexity().finish(np.log([4.0]), None).round(3))
  4.0
  """

  name: str = 'perplexity'
  higher_is_better: bool = False

  def statistics(self, outputs: Any, y: Any, weight: Weight) -> Float[Array | np.ndarray, 'B 1']:
    """Returns what each example adds to the weighted sum of cross-entropies."""
    return weighted(CrossEntropy()(outputs, y), weight)

  def finish(self, means: Float[np.ndarray, '... K'], facts: Any) -> Scores:
    """Returns the exponential."""
    with np.errstate(over='ignore'):
      return np.exp(means[..., 0])


@dataclasses.dataclass(frozen=True)
class RootMeanSquare(Metric):
  """The root of the mean squared error of each target; of several targets, their mean.

  >>> RootMeanSquare().finish(np.array([4.0, 16.0, 1.0, 1.0]), None)
  np.float64(3.0)
  """

  name: str = 'rmse'
  higher_is_better: bool = False

  def statistics(self, outputs: Any, y: Any, weight: Weight) -> Float[Array | np.ndarray, 'B K']:
    """Returns weighted squared errors [B, C], and the weights."""
    check_shapes(outputs, y, 'targets')
    parts = jnp.square(outputs - y), jnp.ones(y.shape)
    return jnp.concatenate([weighted_each(part, weight) for part in parts], axis=1)

  def finish(self, means: Float[np.ndarray, '... K'], facts: Any) -> Scores:
    """Returns the roots' mean."""
    squares, weights = np.split(means, 2, axis=-1)
    return np.sqrt(squares / weights).mean(-1)


@dataclasses.dataclass(frozen=True)
class Determination(Metric):
  """The coefficient of determination R²: one minus the squared error over the variance of the
  targets that are judged; of several targets, their mean. Of targets that are all the same it is 1
  where they are predicted exactly, else 0.

  >>> y, right = np.array([[1.0], [3.0]]), Determination()
  >>> float(right.finish(np.array([0.25]), right.facts(y, None)))
  0.75
  """

  name: str = 'r2'
  higher_is_better: bool = True

  def statistics(self, outputs: Any, y: Any, weight: Weight) -> Float[Array | np.ndarray, 'B C']:
    """Returns weighted squared errors."""
    check_shapes(outputs, y, 'targets')
    return weighted_each(jnp.square(outputs - y), weight)

  def facts(self, y: Any, weight: Weight) -> Float[np.ndarray, 'C']:
    """Returns the variance of each target, over all examples: the sum of what is weighted, divided
    by the sum of all weights."""
    y = np.asarray(y, np.float64)
    weights = np.broadcast_to(spread(weight, y), y.shape).astype(np.float64)
    mean = (weights * y).sum(0) / np.maximum(weights.sum(0), np.finfo(float).tiny)
    total = len(y) if weight is None else np.sum(weight, dtype=np.float64)
    return (weights * (y - mean) ** 2).sum(0) / total

  def finish(self, means: Float[np.ndarray, '... C'], facts: Any) -> Scores:
    """Returns R²."""
    same = np.where(means > 0, 0.0, np.where(np.isnan(means), np.nan, 1.0))
    return np.where(facts > 0, 1 - means / np.where(facts > 0, facts, 1), same).mean(-1)


@dataclasses.dataclass(frozen=True)
class F1(Metric):
  """2·true positives / (predicted + actual positives): over all labels together, or the mean over
  the classes or labels that are predicted or actual anywhere.

  >>> F1().finish(np.array([1.0, 2.0, 2.0]), None)  # of ten, two predicted, two actual, one right
  np.float64(0.5)

  Attributes:
    classes: whether one class is chosen of several, as in a classification; or there are labels 0
      or 1 for each output.
    macro: whether it is a mean over classes or labels.
  """

  name: str = 'f1'
  higher_is_better: bool = True
  classes: bool = False
  macro: bool = False

  def statistics(self, outputs: Any, y: Any, weight: Weight) -> Float[Array | np.ndarray, 'B K']:
    """Returns what is right, predicted and actual, of each class or label or of all."""
    if self.classes:
      number = outputs.shape[-1]
      predicted, actual = (
        jax.nn.one_hot(labels, number) for labels in (outputs.argmax(-1), labels_of(y))
      )
    else:
      outputs = one_output(outputs, y)
      check_shapes(outputs, y, 'labels')
      predicted, actual = as_float(outputs > 0), as_float(y > 0.5)
    counts = (predicted * actual, predicted, actual)
    if not self.macro:
      return jnp.concatenate([weighted(count, weight) for count in counts], axis=1)
    return jnp.concatenate([weighted_each(count, weight) for count in counts], axis=1)

  def finish(self, means: Float[np.ndarray, '... K'], facts: Any) -> Scores:
    """Returns F1; 0 where nothing is predicted or actual."""
    right, predicted, actual = np.split(means, 3, axis=-1)
    total = predicted + actual
    known = total > 0
    scores = np.where(known, 2 * right / np.where(known, total, 1), 0)
    return scores.sum(-1) / np.maximum(known.sum(-1), 1)


@dataclasses.dataclass(frozen=True)
class ExactMatch(Metric):
  """The share of examples of which all labels that count are right.

  >>> ExactMatch().finish(np.array([1.0, 2.0]), None)
  np.float64(0.5)
  """

  name: str = 'exact_match'
  higher_is_better: bool = True

  def statistics(self, outputs: Any, y: Any, weight: Weight) -> Float[Array | np.ndarray, 'B 2']:
    """Returns which examples are right, and which count."""
    right, counts = right_labels(outputs, y) > 0, jnp.asarray(spread(weight, y)) > 0
    every = (right | ~counts).all(tuple(range(1, y.ndim)))
    if weight is None or weight.ndim == 1:
      weights = jnp.broadcast_to(1.0 if weight is None else weight, every.shape)
    else:
      weights = as_float(counts.any(tuple(range(1, y.ndim))))
    return jnp.stack([every * weights, weights], axis=1)

  def finish(self, means: Float[np.ndarray, '... K'], facts: Any) -> Scores:
    """Returns the share."""
    return means[..., 0] / means[..., 1]


_ACCURACY, _LABELS = MeanMetric(accuracy, 'accuracy'), MeanMetric(right_labels, 'accuracy')
_MEAN_ABSOLUTE = MeanMetric(absolute_error, 'mae', higher_is_better=False)
_MACRO = F1('f1_macro', classes=True, macro=True)
# By task, the metrics that it has; the first ones are its own by default.
METRICS: dict[str, tuple[Metric, ...]] = {
  'classification': (_ACCURACY, _MACRO),
  'language': (_ACCURACY, Perplexity(), _MACRO),
  'regression': (Determination(), _MEAN_ABSOLUTE, RootMeanSquare()),
  'binary': (_LABELS, F1()),
  'multi_label': (
    F1('f1_micro'),
    ExactMatch(),
    F1('f1_macro', macro=True),
    _LABELS,
  ),
}
RANKED = ('classification', 'language')  # those that have top_k, of any k


def takes_summary(loss: LossFunction, metrics: Sequence[Metric], y: Targets) -> bool:
  """Returns whether a loss and metrics can be told from a `Summary` of the logits.

  >>> takes_summary(CrossEntropy(), [Perplexity()], np.array([[1, 0]]))
  True
  >>> takes_summary(CrossEntropy(), [metric_of('top5', 'language')], np.array([[1, 0]]))
  False
  """
  known = _ACCURACY, Perplexity()
  is_labels = is_array(y) and not is_soft(y)
  return is_labels and loss == CrossEntropy() and all(metric in known for metric in metrics)


def metric_of(metric: str | Metric | Callable[[Any, Any], Any], task: str) -> Metric:
  """Returns a metric by its name, or the mean of a function.

  >>> metric_of('top5', 'classification').name
  'top5'
  >>> metric_of('acuracy', 'classification')
  Traceback (most recent call last):
  additive_jax.errors.UserError: metric 'acuracy' of a classification: expected one of accuracy,
  f1_macro, top2, top3, …; did you mean 'accuracy'?

  Args:
    metric: a name, a `Metric`, or a function as of `MeanMetric`.
    task: the name of the task; '' for one of your own, which may have the metrics of all.

  Raises:
    UserError: for a name that the task does not have.
  """
  if isinstance(metric, Metric):
    return metric
  if callable(metric):
    return MeanMetric(metric)
  known = {one.name: one for name in (task,) if name for one in METRICS[name]}
  if not task:
    known = {one.name: one for metrics in reversed(METRICS.values()) for one in metrics}
  if metric in known:
    return known[metric]
  ranked = not task or task in RANKED
  if ranked and (match := re.fullmatch(r'top_?([1-9]\d*)', str(metric))):
    return MeanMetric(TopK(int(match[1])), str(metric))
  names = [*known, *(('top2', 'top3', '…') if ranked else ())]
  raise UserError(
    f'metric {metric!r}{f" of a {task}" if task else ""}: expected one of {", ".join(names)}'
    f'{did_you_mean(str(metric), [*known, "top5"] if ranked else list(known))}'
  )
