"""Tasks: what a network is trained for and judged by.

A `Task` is a loss, metrics, and what counts. It takes outputs [B, ..., C] and targets [B, ...], as
arrays, pytrees of them or `data.Weighted`, and gives exact means, Σ weight · value / Σ weight over
all that counts, whatever the batches and devices.

| task | y | losses | metrics |
| --- | --- | --- | --- |
| classification | labels [B], or shares [B, C] | cross_entropy | accuracy, f1_macro, top5, … |
| language | labels [B, T] | cross_entropy | accuracy, perplexity, f1_macro, top5, … |
| binary | 0 or 1 [B], one output | sigmoid | accuracy, f1 |
| multi_label | 0 or 1 [B, C] | sigmoid | f1_micro, f1_macro, exact_match, accuracy |
| regression | numbers [B, C] | squared, absolute, huber | r2, mae, rmse |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, PyTree

from additive_jax.batches import is_array
from additive_jax.data.weights import Weighted, unweighted
from additive_jax.errors import UserError, did_you_mean
from additive_jax.run.measures import METRICS, metric_of
from additive_jax.run.metrics import MeanMetric, Metric, Scores, by_weight, spread, weighted
from additive_jax.run.objectives import (
  LOSSES,
  LossFunction,
  Taught,
  as_float,
  check_values,
  is_soft,
)
from additive_jax.run.summary import Summary

# By task the names of its losses, the first by default, and how many metrics it has by default.
TASKS: dict[str, tuple[str, ...]] = {
  'classification': ('cross_entropy',),
  'language': ('cross_entropy',),
  'regression': ('squared', 'absolute', 'huber'),
  'binary': ('sigmoid',),
  'multi_label': ('sigmoid',),
}
DEFAULT_METRICS = {'language': 2, 'binary': 2, 'multi_label': 2, 'regression': 2}
LABELLED = ('classification', 'language')  # targets are numbers of outputs
SIGMOID = ('binary', 'multi_label')  # targets are yes or no
LOSS = 'loss'

Means = Sequence[Any]  # of each score, [..., K]


@dataclasses.dataclass(frozen=True)
class Task:
  """What a network is trained for and judged by: hashable, one compiled program each.

  >>> task = Task('classification', metrics=('accuracy', 'top2'))
  >>> task.scores, task.headline
  (('loss', 'accuracy', 'top2'), 'accuracy')
  >>> print(np.asarray(task.losses(jnp.zeros((1, 3)), jnp.array([2]))).round(3))
  [1.099]

  Of targets that are padded with −1:

  >>> padded = Task('language', ignore_label=-1)
  >>> logits, y = jnp.array([[[0.0, 0.0], [9.0, 0.0]]]), jnp.array([[1, -1]])
  >>> print(padded.mean_loss(logits, y).round(3))
  0.693

  Attributes:
    name: of the table above; '' for targets of your own.
    loss: a name, or a function from outputs and targets to the loss of each example [B], or of each
      token [B, T]; '' is the task's first.
    metrics: names, functions as of `MeanMetric`, or `Metric`s, or a dict of functions by the names
      they shall have; the first one is the headline. By default some of the task's.
    rank_by: 'loss' or the name of a metric, by which structures are chosen and ranked.
    ignore_label: the label that does not count, in training nor in judging; None: all count.
    class_weights: what the loss of an example or token counts by its label; () is 1. Metrics do
      not know them.
  """

  name: str = ''
  loss: Any = ''  # a function, once the task is made
  metrics: Any = None  # a tuple of `Metric`, once the task is made
  rank_by: str = LOSS
  ignore_label: int | None = None
  class_weights: tuple[float, ...] = ()

  def __post_init__(self):
    if self.name and self.name not in TASKS:
      hint = did_you_mean(str(self.name), list(TASKS))
      raise UserError(f'task {self.name!r}: expected one of {", ".join(TASKS)}{hint}')
    set_ = lambda name, value: object.__setattr__(self, name, value)
    set_('loss', self._loss_of(self.loss))
    known = METRICS[self.name][: DEFAULT_METRICS.get(self.name, 1)] if self.name else ()
    given = known if self.metrics is None else self.metrics
    given = [given] if isinstance(given, str | Metric) or callable(given) else given
    if isinstance(given, Mapping):
      given = [MeanMetric(function, name) for name, function in given.items()]
    set_('metrics', tuple(metric_of(metric, self.name) for metric in given))
    set_('class_weights', tuple(map(float, self.class_weights)))
    self._check()

  def _loss_of(self, loss):
    names = TASKS.get(self.name, tuple(LOSSES))
    if not callable(loss) and loss not in names and (loss or not self.name):
      of = f' of a {self.name}' if self.name else ''
      hint = did_you_mean(str(loss), list(names))
      known = f'{", ".join(names)}, or a function of outputs and targets'
      raise UserError(f'loss {loss!r}{of}: expected one of {known}{hint}')
    return loss if callable(loss) else LOSSES[loss or names[0]]

  def _check(self):
    names = [metric.name for metric in self.metrics]
    if len({LOSS, *names}) <= len(names):
      raise UserError(f'metrics {", ".join(names)}: expected different names, and none called loss')
    if self.rank_by not in self.scores:
      is_known = self._is_metric(self.rank_by)
      hint = f'; add {self.rank_by!r} to metrics to rank by it' if is_known else ''
      raise UserError(
        f'rank_by {self.rank_by!r}: expected one of {", ".join(self.scores)}'
        f'{hint or did_you_mean(str(self.rank_by), list(self.scores))}'
      )
    ignored = self.ignore_label
    if ignored is not None and (isinstance(ignored, bool) or not isinstance(ignored, int)):
      raise UserError(f'ignore_label {ignored!r}: expected an integer, or None')
    if ignored is not None and self.name == 'regression':
      raise UserError(f'ignore_label {ignored} of a regression: expected None; weights leave out')
    weights = self.class_weights
    if weights and self.name not in ('', *LABELLED):
      raise UserError(f'class_weights {weights} of a {self.name}: expected none, it has no classes')
    if weights and (not all(0 <= weight < np.inf for weight in weights) or not any(weights)):
      raise UserError(f'class_weights {weights}: expected numbers from 0, not all 0')
    for part in (self.loss, *self.metrics):
      if getattr(type(part), '__hash__', None) is None:
        raise UserError(f'{part!r}: expected a hashable function, such as a frozen dataclass')

  def _is_metric(self, name):
    """Whether the task has a metric of a name, among its own or not."""
    try:
      return bool(metric_of(str(name), self.name))
    except UserError:
      return False

  @property
  def scores(self) -> tuple[str, ...]:
    """The names of what a network is judged by: 'loss', then those of the metrics."""
    return (LOSS, *(metric.name for metric in self.metrics))

  @property
  def headline(self) -> str:
    """The name of the first metric; 'loss' where there is none."""
    return self.scores[:2][-1]

  def sign(self, score: str) -> float:
    """Returns 1 for a score of which lower is better, else −1.

    >>> Task('regression').sign('r2'), Task('regression').sign('mae')
    (-1.0, 1.0)
    """
    better = {metric.name: metric.higher_is_better for metric in self.metrics}
    return -1.0 if better.get(score, False) else 1.0

  def cost(self, scores: Mapping[Any, Any] | pd.DataFrame) -> Float[np.ndarray, '...']:
    """Returns what structures are ranked by, lower is better.

    >>> Task('classification', rank_by='accuracy').cost({'accuracy': [0.5, 0.75]}).tolist()
    [-0.5, -0.75]
    """
    return np.asarray(self.sign(self.rank_by) * np.asarray(scores[self.rank_by], float))

  def weights(
    self, y: PyTree, *, of_loss: bool = False
  ) -> Float[Array | np.ndarray, 'B ...'] | None:
    """Returns what each example counts, or each token, label or target; None: all examples 1.

    Args:
      y: targets, of JAX or NumPy.
      of_loss: whether with the weights of classes.
    """
    weight, targets = (y.weight if isinstance(y, Weighted) else None), unweighted(y)
    targets = targets.y if isinstance(targets, Taught) else targets
    factors = []
    if self.ignore_label is not None:
      if not is_array(targets):
        raise UserError(
          f'ignore_label {self.ignore_label} of targets that are several arrays: expected None; '
          'data.Weighted leaves out'
        )
      factors.append((targets != self.ignore_label).astype(np.float32))
    if of_loss and self.class_weights:
      by_class = np.asarray(self.class_weights, np.float32)
      by_class = by_class if isinstance(targets, np.ndarray) else jnp.asarray(by_class)
      labels = self.clean(y)
      labels = labels.y if isinstance(labels, Taught) else labels
      factors.append(labels @ by_class if is_soft(labels) else by_class[labels.astype(np.int32)])
    for factor in factors:
      finer = weight is None or weight.ndim < factor.ndim
      weight = (
        factor
        if weight is None
        else (spread(weight, factor) * factor if finer else weight * spread(factor, weight))
      )
    return weight

  def clean(self, y: PyTree) -> PyTree:
    """Returns targets without weights, with 0 in place of those that do not count, whatever they
    are; targets that are several arrays stay as they are."""
    weight, targets = self.weights(y), unweighted(y)
    if isinstance(targets, Taught):
      return Taught(self.clean(Weighted(targets.y, weight)), targets.logits)
    if weight is None or not is_array(targets):
      return targets
    where = np.where if isinstance(targets, np.ndarray) else jnp.where
    return where(spread(weight, targets) > 0, targets, np.zeros((), targets.dtype))

  def losses(self, outputs: Any, y: PyTree) -> Float[Array, 'B ...']:
    """Returns the loss of each example, or of each token, label or target, of float32.

    Raises:
      UserError: for a function that gives something else.
    """
    return self._losses(as_float(outputs), self.clean(y))

  def _losses(self, outputs, targets):
    losses = self.loss(outputs, targets)
    check_values(LOSS, self.loss, losses, outputs.shape, floats=True)
    return as_float(losses)

  def total(self, y: PyTree) -> Float[Array, ''] | None:
    """Returns the sum of the weights of a batch, by which `mean` divides; None: its number of
    examples."""
    weight = self.weights(y, of_loss=True)
    return None if weight is None else weight.sum()

  def mean(
    self, values: Float[Array, 'B ...'], y: PyTree, total: Float[Array, ''] | None = None
  ) -> Float[Array, '']:
    """Returns Σ weight · value / Σ weight, and 0 where nothing counts.

    Args:
      values: of each example or token, as `losses` gives them, as finely as they are weighted or
        finer.
      y: what they are of.
      total: what is divided by, in place of the sum of these weights; that of a batch of which
        these are one of n equal parts, divided by n, so that the parts' results have the mean of
        the batch for their mean.
    """
    weight = self.weights(y, of_loss=True)
    if weight is None:
      return by_weight(values, weight).mean()
    total = weight.sum() if total is None else total
    return weighted(values, weight).sum() / jnp.where(total > 0, total, 1)

  def mean_loss(
    self, outputs: Any, y: PyTree, total: Float[Array, ''] | None = None
  ) -> Float[Array, '']:
    """Returns the mean loss of a batch; see `mean`."""
    return self.mean(self.losses(outputs, y), y, total)

  def statistics(self, outputs: Any, y: PyTree) -> tuple[Float[Array, 'B _'], ...]:
    """Returns what each example adds to the sums that loss and metrics are made of, in the order of
    `scores`, each [B, K].

    Args:
      outputs: of one structure; or their summary, of a task that takes it.
      y: targets [B, ...].
    """
    outputs = outputs if isinstance(outputs, Summary) else as_float(outputs)
    targets, weight = self.clean(y), self.weights(y)
    losses = self._losses(outputs, targets)
    targets = targets.y if isinstance(targets, Taught) else targets
    if self.class_weights:
      of_loss = self.weights(y, of_loss=True)
      ones = jnp.ones(losses.shape)
      loss = jnp.concatenate([weighted(losses, of_loss), weighted(ones, of_loss)], axis=1)
    else:
      loss = weighted(losses, weight)
    return loss, *(metric.statistics(outputs, targets, weight) for metric in self.metrics)

  def facts(self, y: PyTree) -> tuple[Any, ...]:
    """Returns what `finish` needs to know of the targets of all examples: the sum of their weights,
    and what each metric asks of them.

    Raises:
      UserError: where nothing counts.
    """
    y = jax.tree.map(np.asarray, y)
    weight, targets = self.weights(y), self.clean(y)
    count = len(jax.tree.leaves(targets)[0])
    total = float(count) if weight is None else float(np.sum(weight, dtype=np.float64))
    if not total > 0:
      raise UserError(
        f'{count} examples of which none counts: expected some with a weight above 0'
        + (f' and a label other than {self.ignore_label}' if self.ignore_label is not None else '')
      )
    return total, *(metric.facts(targets, weight) for metric in self.metrics)

  def finish(self, sums: Means, facts: tuple[Any, ...]) -> dict[str, Scores]:
    """Returns loss and metrics by name, from the sums over all examples.

    Args:
      sums: of what `statistics` gives, each [..., K].
      facts: what `facts` gives of all examples.
    """
    total, *others = facts
    loss, *means = (np.asarray(part) / total for part in sums)
    loss = loss[..., 0] / loss[..., 1] if self.class_weights else loss[..., 0]
    finished = zip(self.metrics, means, others)
    return {LOSS: loss} | {m.name: m.finish(mean, fact) for m, mean, fact in finished}


def added_up(statistics: Sequence[Any]) -> tuple[Float[np.ndarray, 'K'], ...]:
  """Returns the sums over examples of what `Task.statistics` gives, in float64.

  >>> added_up([np.ones((5, 2), np.float32)])[0].tolist()
  [5.0, 5.0]
  """
  return tuple(np.asarray(part).sum(0, dtype=np.float64) for part in statistics)


def task_of(
  task: str | Task | LossFunction,
  loss: str | LossFunction = '',
  metrics: Sequence[Any] | None = None,
) -> Task:
  """Returns a task by its name, that of a loss of your own, or a task as it is; with another loss
  or other metrics where they are given.

  >>> task_of('regression', loss='huber').loss
  Huber(delta=1.0)
  >>> task_of(lambda outputs, y: jnp.abs(outputs[:, 0] - y)).headline
  'loss'

  Raises:
    UserError: for what is unknown, or does not suit the task.
  """
  if not isinstance(task, Task):
    task = Task('', task) if callable(task) else Task(task, loss)
  changes: dict[str, Any] = {'loss': loss} if loss else {}
  if metrics is not None:
    changes['metrics'] = metrics
  return dataclasses.replace(task, **changes) if changes else task
