"""A search that proposes what a model of the loss, and its doubt, call best."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from additive_jax.errors import UserError
from additive_jax.search.costs import within
from additive_jax.search.pair_process import Posterior, Prior
from additive_jax.search.problem import Bits, Problem, Row, layers

FAR = 3.0  # structures that do more harm than so many times the best of a level tell nothing of it
PARENTS = 3  # of a level, and of the one before
SWAPS = 8  # gates of a parent that are tried on again
BRANCHES = 3  # of the children of a start that are followed down to the limit
CANDIDATE_GATES = 64  # the most gates of a structure that are tried off
ROWS = 128  # the most structures whose children are looked at together
KNOWN = 512  # the most evaluations that the process is told


@dataclasses.dataclass(frozen=True)
class Bayesian:
  """Goes down to the budget level by level; at each it evaluates the structures that may be best.

      all-on ─▶ every gate off alone ─▶ for each limit of cost, `rounds` times:
        the best so far, of this limit and the last
          ─▶ their neighbours within the limit: gates off, one gate on again and others off
          ─▶ the `batch` of lowest `mean − doubt·deviation` by a Gaussian process
          ─▶ evaluated, and the process is told

  The process (`pair_process`) models what pairs of gates cost beyond their sum, and knows how
  unsure it is where pairs were not seen together: those are tried, which greedy searches that try
  few gates again do not. n + 1 evaluations and levels·rounds·batch, whatever is switched off:
  by default about 5·n.

  Source: after BOCS (Baptista and Poloczek 2018, arXiv:1806.08838), for a path of costs.

  Attributes:
    levels: limits in equal steps down to the budget.
    rounds: of proposals at each.
    batch: structures of a round; None is an eighth of the gates.
    doubt: standard deviations by which a structure may be better than expected.
  """

  levels: int = 16
  rounds: int = 2
  batch: int | None = None
  doubt: float = 1.0

  def __post_init__(self) -> None:
    for name in ('levels', 'rounds', 'batch'):
      value = getattr(self, name)
      if name == 'batch' and value is None:
        continue
      if not isinstance(value, int) or value < 1:
        raise UserError(f'{name} {value!r}: expected a whole number of at least 1')
    if not self.doubt >= 0:
      raise UserError(f'doubt {self.doubt!r}: expected at least 0')

  def run(self, problem: Problem) -> None:
    prior = _prior(problem)
    batch = self._affordable(problem)
    limits = problem.levels(self.levels)
    last = problem.costs.full  # the lowest limit that a structure with a finite loss was within
    for limit in limits:
      for _ in range(self.rounds):
        rows = self._proposals(problem, prior, (last, limit), batch)
        if not len(rows):
          break
        problem.judge(rows)
      last = limit if _is_reached(problem, limit) else last
    if not _is_reached(problem, problem.limit):
      order = np.argsort(prior.alone, kind='stable')
      problem.judge(problem.shrunk(problem.all_on(), order, problem.limit)[None])

  def _affordable(self, problem: Problem) -> int:
    """Returns how many structures a round may evaluate, where evaluations are limited."""
    batch = self.batch or -(-problem.space.num_gates // 8)
    if problem.judge.most is None:
      return batch
    left = problem.judge.most - problem.judge.used
    return int(np.clip(left // (self.levels * self.rounds), 1, batch))

  def _proposals(
    self, problem: Problem, prior: Prior, limits: tuple[float, float], count: int
  ) -> Bits:
    """Returns structures within the second limit that were not evaluated, the most promising."""
    bits, losses = problem.judge.evaluated()
    inside = [within(problem.costs, bits, limit) for limit in limits]
    reached = [losses[some].min(initial=np.inf) for some in inside]
    known = [loss - prior.constant for loss in reached if np.isfinite(loss)]
    most = FAR * max([*known, 2 * float(np.median(prior.sizes))])
    near = losses - prior.constant <= most
    # Those nearest in cost tell most; of one gate off alone there is no pair to be told of.
    apart = np.abs(problem.costs.of(bits) - limits[1])
    told = np.flatnonzero(near & ((~bits).sum(1) != 1))
    told = np.sort(told[np.argsort(apart[told], kind='stable')[:KNOWN]])
    posterior = prior.given(bits[told], losses[told])
    start = Neighbours(problem, posterior, limits[1], self.doubt, prior.alone <= most)
    parents = []
    for some in inside:
      places = np.flatnonzero(some & near)
      parents += [*bits[places[np.argsort(losses[places], kind='stable')[:PARENTS]]]]
    start.add_of(np.unique(np.array(parents), axis=0))
    return start.best(count)


def _is_reached(problem: Problem, limit: float) -> bool:
  """Whether a structure within a limit was evaluated, and has a finite loss."""
  bits, losses = problem.judge.evaluated()
  return bool((within(problem.costs, bits, limit) & np.isfinite(losses)).any())


def _prior(problem: Problem) -> Prior:
  """Evaluates all-on and every structure with one gate off, and returns what they tell."""
  row = problem.all_on()
  _, bits, _ = problem.children(row)
  losses = problem.judge(np.concatenate([row[None], bits]))
  finite = np.isfinite(losses[1:])
  # A gate that is off with those within it costs what they do not explain.
  off = (~bits[finite]).astype(float)
  alone = np.linalg.lstsq(off, losses[1:][finite] - losses[0])[0]
  unknown = ~(off > 0).any(0)
  alone[unknown] = np.abs(alone).sum() + 1.0 if unknown.any() else 0.0
  names = layers(problem.space.names)
  places = {name: place for place, name in enumerate(dict.fromkeys(names))}
  return Prior(float(losses[0]), alone, np.array([places[name] for name in names], float))


class Neighbours:
  """Structures within a limit of cost that are near some others, and how good they may be.

  Args:
    problem: of the search.
    posterior: of the loss.
    limit: of their costs.
    doubt: see `Bayesian`.
    worth: gates [n] that may go off.
  """

  def __init__(
    self,
    problem: Problem,
    posterior: Posterior,
    limit: float,
    doubt: float,
    worth: Bool[np.ndarray, ' n'],
  ):
    self._problem, self._posterior, self._limit = problem, posterior, limit
    self._doubt, self._worth = doubt, worth
    self._known = {row.tobytes() for row in problem.judge.evaluated().bits}
    self._found: dict[bytes, float] = {}

  def best(self, count: int) -> Bits:
    """Returns the most promising ones, best first."""
    order = sorted(self._found, key=lambda content: (self._found[content], content))[:count]
    rows = [np.frombuffer(content, bool) for content in order]
    return np.array(rows, bool).reshape(len(rows), self._problem.space.num_gates)

  def add_of(self, parents: Bits) -> None:
    """Adds structures near some: each with gates off, and with one gate on again and others off."""
    starts = [*parents]
    for parent in parents:
      again = np.repeat(parent[None], (~parent).sum(), axis=0)
      again[np.arange(len(again)), np.flatnonzero(~parent)] = True
      again = self._problem.costs.canonical(again)
      again = again[(again != parent).any(1)]
      starts += [*again[np.argsort(self._promise(again), kind='stable')[:SWAPS]]]
    self._down(starts)

  def _down(self, starts: list[Row]) -> None:
    """Adds what is within the limit on the ways down from some structures, a gate at a time."""
    rows, ways = np.array(starts), np.arange(len(starts))
    while len(rows):
      families = [self._children(row) for row in rows]
      ways = np.repeat(ways, [len(family) for family in families])
      children = np.concatenate(families)
      scores = self._promise(children)
      inside = within(self._problem.costs, children, self._limit)
      for row, score in zip(children[inside], scores[inside]):
        if row.tobytes() not in self._known:
          self._found[row.tobytes()] = float(score)
      rows, ways = _first_of_each(children[~inside], scores[~inside], ways[~inside])
      rows, ways = rows[:ROWS], ways[:ROWS]

  def _children(self, row: Row) -> Bits:
    """Returns a structure with one gate off, of those that are worth it and do least harm alone."""
    gates, bits, _ = self._problem.children(row)
    tried = np.flatnonzero(self._worth[gates])
    harm = self._posterior.prior.alone[gates[tried]]
    return bits[tried[np.argsort(harm, kind='stable')[:CANDIDATE_GATES]]]

  def _promise(self, bits: Bits) -> Float[np.ndarray, ' S']:
    """Returns how low the losses of structures may be."""
    if not len(bits):
      return np.zeros(0)
    mean, deviation = self._posterior.predict(bits)
    return mean - self._doubt * deviation


def _first_of_each(
  rows: Bits, scores: Float[np.ndarray, ' S'], ways: Int[np.ndarray, ' S']
) -> tuple[Bool[np.ndarray, 'left n'], Int[np.ndarray, ' left']]:
  """Returns the most promising rows of each way, none twice."""
  order = np.lexsort((scores, ways))
  place = np.arange(len(order)) - np.searchsorted(ways[order], ways[order])
  kept = order[place < BRANCHES]
  kept = kept[np.argsort(place[place < BRANCHES], kind='stable')]  # the first of all ways first
  _, first = np.unique(rows[kept], axis=0, return_index=True)
  kept = kept[np.sort(first)]
  return rows[kept], ways[kept]
