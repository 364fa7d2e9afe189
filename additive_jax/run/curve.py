"""What cascades score and cost, for each window of confidences: sums over sorted examples.

An example goes on where the confidence lies in [low, high). With the examples sorted by confidence
a window is a stretch of them, and all that tasks are judged by is made of sums over examples. So
one running sum of what changes where an example goes on gives the scores of every window:

    confidence   0.3  0.4  0.7  0.9
    change        −2   −1   +1   +3
    window [0, 0.7)                     the first two: −3
    window [0.4, 0.9)                   the second and third: 0
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from additive_jax.errors import UserError, checked_size
from additive_jax.run.tasks import Task

CONFIDENCES = ('probability', 'margin')


@dataclasses.dataclass(frozen=True)
class Window:
  """The confidences with which an example goes on: low ≤ confidence < high.

  >>> Window(high=0.9).holds(np.array([0.5, 0.9])).tolist()
  [True, False]

  Attributes:
    low, high: 0 and infinity for all examples, 0 and 0 for none.
  """

  low: float = 0.0
  high: float = math.inf

  def __post_init__(self):
    if not 0 <= self.low <= self.high:
      raise UserError(f'window from {self.low} to {self.high}: expected 0 ≤ low ≤ high')

  def holds(self, confidence: Float[np.ndarray, 'N']) -> Bool[np.ndarray, 'N']:
    """Returns which of the confidences lie in the window."""
    return (confidence >= self.low) & (confidence < self.high)


class Costs(NamedTuple):
  """FLOPs of one example's forward pass.

  >>> Costs(cheap=10.0, dear=30.0, shared=5.0).expected(0.5)
  22.5

  Attributes:
    cheap, dear: of the structures by themselves.
    shared: of what both begin with, which is computed once.
  """

  cheap: float
  dear: float
  shared: float

  def expected(self, share: Any) -> Any:
    """Returns the mean FLOPs of an example where this share of them goes on; those of the
    confidence itself, a few for each class, do not count."""
    return self.cheap + share * (self.dear - self.shared)


@dataclasses.dataclass(frozen=True)
class Curve:
  """Cost against score of W windows, cheapest first.

  >>> curve = Curve(
  ...   [Window(0, 0), Window(0, 0.5), Window()],
  ...   np.array([0.0, 0.5, 1.0]),
  ...   {'loss': np.array([0.6, 0.4, 0.5])},
  ...   flops=np.array([10.0, 15.0, 20.0]),
  ...   dear={'loss': 0.5},
  ...   task=Task('classification', metrics=()),
  ... )
  >>> curve.cheapest(), curve.within(12.0)
  (Window(low=0, high=0.5), Window(low=0, high=0))

  Attributes:
    windows: W of them.
    share: of the examples that go on.
    scores: loss and metrics by name.
    flops: the mean of an example's.
    dear: the scores of the dear structure by itself.
    task: says which of the scores windows are chosen by, and which way is better.
  """

  windows: Sequence[Window]
  share: Float[np.ndarray, 'W']
  scores: dict[str, Float[np.ndarray, 'W']]
  flops: Float[np.ndarray, 'W'] = dataclasses.field(default_factory=lambda: np.zeros(0))
  dear: dict[str, float] = dataclasses.field(default_factory=dict)
  task: Task = dataclasses.field(default_factory=lambda: Task('classification'))

  def cheapest(self) -> Window:
    """Returns the window of the least expected FLOPs whose score, `Task.rank_by`, is no worse than
    that of the dear structure by itself.

    Raises:
      UserError: where there is none, which can happen with averages.
    """
    name = self.task.rank_by
    cost, bar = self.task.cost(self.scores), float(self.task.cost(self.dear))
    good = np.flatnonzero(cost <= bar + 1e-9 * abs(bar))
    if not len(good):
      best, dear = self.scores[name][np.argmin(cost)], self.dear[name]
      raise UserError(
        f'no window is as good as the dear structure: {name} {best:.4g} at best, not {dear:.4g}; '
        'expected average=False, or a budget (within)'
      )
    return self.windows[self._first_of(good, cost)]

  def within(self, flops: float) -> Window:
    """Returns the window with the best score, `Task.rank_by`, of those that cost no more.

    Raises:
      UserError: for less than the cheap structure costs.
    """
    good = np.flatnonzero(self.flops <= flops * (1 + 1e-9))
    if not len(good):
      raise UserError(f'{flops:g} FLOPs: expected at least {self.flops.min():g}, the cheap ones')
    cost = self.task.cost(self.scores)[good]
    # Sums in another order differ by rounding: among those as good, the cheapest.
    good = good[cost <= cost.min() + 1e-9 * abs(cost.min())]
    return self.windows[self._first_of(good, self.task.cost(self.scores))]

  def _first_of(self, numbers, cost):
    """Returns which of some windows is the cheapest, of those the one with the best score."""
    return numbers[np.lexsort((cost[numbers], self.flops[numbers]))[0]]


def confidence_of(log_probabilities: Float[Array, 'B C'], kind: str) -> Float[Array, 'B']:
  """Returns how sure predictions are, 0 to 1.

  >>> said = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  >>> [float(confidence_of(said, kind)[0]) for kind in CONFIDENCES]
  [0.5, 0.25]

  Args:
    kind: 'probability', the largest, or 'margin', its lead over the second largest.
  """
  largest = jnp.exp(jax.lax.top_k(log_probabilities, min(2, log_probabilities.shape[-1]))[0])
  return largest[:, 0] if kind == 'probability' else largest[:, 0] - largest[:, -1]


def curve_of(
  confidence: Float[np.ndarray, 'N'],
  stays: Sequence[Float[np.ndarray, 'N _']],
  goes_on: Sequence[Float[np.ndarray, 'N _']],
  finish: Callable[[list[Any]], dict[str, Any]],
  *,
  two_sided: bool = False,
  points: int = 256,
) -> Curve:
  """Returns shares and scores of windows, cheapest first; its FLOPs are for the caller to give.

  >>> sums = lambda *values: [np.array(values, float)[:, None]]
  >>> mean = lambda parts: {'loss': parts[0][..., 0] / 3}
  >>> confidence = np.array([0.5, 0.9, 0.3])
  >>> curve = curve_of(confidence, sums(3.0, 0.0, 6.0), sums(0.0, 3.0, 3.0), mean)
  >>> curve.scores['loss'].tolist(), [window.high for window in curve.windows]
  ([3.0, 2.0, 1.0, 2.0], [0.0, 0.5, 0.9, inf])

  Args:
    confidence: of each example.
    stays, goes_on: what each example adds to the sums of each score, see `Task.statistics`, where
      it stays with the cheap structure and where it goes on.
    finish: makes scores by name of the sums, each [W, K].
    two_sided: also windows that begin above 0.
    points: thresholds at most, evenly over the examples.
  """
  points = max(2, checked_size(points, 'points'))
  order, count = np.argsort(confidence, kind='stable'), len(confidence)
  sorted_ = np.asarray(confidence, float)[order]
  # Places between examples where a threshold can stand: ends, and where the confidence changes.
  places = np.r_[0, 1 + np.flatnonzero(np.diff(sorted_) > 0), count]
  if len(places) > points:
    places = np.unique(places[np.linspace(0, len(places) - 1, points).round().astype(int)])
  thresholds = np.r_[0.0, sorted_[places[1:-1]], math.inf]
  if two_sided:
    starts, stops = np.triu_indices(len(places), k=1)
    starts, stops = np.r_[0, starts], np.r_[0, stops]  # none goes on
  else:
    starts, stops = np.zeros(len(places), int), np.arange(len(places))
  by_share = np.argsort(places[stops] - places[starts], kind='stable')
  starts, stops = starts[by_share], stops[by_share]
  sums = []
  for before, after in zip(stays, goes_on):
    before, after = np.asarray(before, float), np.asarray(after, float)
    running = np.cumsum((after - before)[order], axis=0)
    running = np.concatenate([np.zeros((1, running.shape[1])), running])[places]
    sums.append(before.sum(0) + running[stops] - running[starts])
  windows = [
    Window(low, high) for low, high in zip(thresholds[starts].tolist(), thresholds[stops].tolist())
  ]
  share = (places[stops] - places[starts]) / count
  return Curve(windows, share, finish(sums))
