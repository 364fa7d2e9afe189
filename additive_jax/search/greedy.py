"""Methods that switch gates off from all-on, a gate at a time.

    all-on ─▶ every structure with one gate off ─▶ the one of least harm ─▶ its children ─▶ …

Harm is the growth of the loss for what is saved (`Problem.harm`), so that a dear gate and a cheap
one can be compared.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from additive_jax.search.problem import Problem, Row


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
  """Ranks gates once, by the loss with that gate alone off, and switches them off in that order.

  n + 1 evaluations, and one for each structure on the way to the budget. Scores of single gates
  do not add up far from all-on, so this is a first look and a baseline.
  """

  def run(self, problem: Problem) -> None:
    problem.judge(np.array(chain(problem, by_harm(problem))))


@dataclasses.dataclass(frozen=True)
class Greedy:
  """Switches off the gate of least harm in the structure at hand, until the budget is met.

  All remaining gates are tried at every step, as in SLEB (Song et al. 2024, arXiv:2402.09025) and
  BlockPruner (Zhong et al. 2024, arXiv:2406.10594): about n evaluations a step.

  Attributes:
    fresh: at each step only so many gates are tried, those whose last known harm is least; None is
      all. See `LazyGreedy`.
    by_cost: compare by loss for what is saved; False by loss alone, as in those papers.
  """

  fresh: int | None = None
  by_cost: bool = True

  def run(self, problem: Problem) -> None:
    row, loss = problem.all_on(), problem.loss(problem.all_on())
    last = np.zeros(problem.space.num_gates)  # growth of the loss when each was last tried
    tried_all = self.fresh is None
    while not problem.is_within(row):
      gates, bits, saved = problem.children(row)
      if not len(gates):
        problem.judge(np.array([problem.costs.cheapest().bits]))
        return
      chosen = np.arange(len(gates))
      if self.fresh is not None and tried_all:
        chosen = np.argsort(self._harm(problem, last[gates], saved), kind='stable')[: self.fresh]
      tried_all = True
      losses = problem.judge(bits[chosen])
      last[gates[chosen]] = losses - loss
      best = chosen[int(np.argmin(self._harm(problem, losses - loss, saved[chosen])))]
      row, loss = bits[best], float(losses[list(chosen).index(best)])

  def _harm(self, problem, delta, saved):
    return problem.harm(delta, saved) if self.by_cost else delta


@dataclasses.dataclass(frozen=True)
class LazyGreedy(Greedy):
  """Greedy that tries again only the few gates that did least harm when they were last tried.

  A leave-one-out, and `fresh` evaluations a step. Minoux 1978 (accelerated greedy) does it for
  submodular functions, where it is exact; a loss is none, so here it may miss a step.
  """

  fresh: int | None = 8


@dataclasses.dataclass(frozen=True)
class Beam:
  """Keeps the best `width` structures at every level of cost, and tries all children of each.

  Levels are equal steps of cost from all-on to the budget, about as many as gates are switched off
  on the way. The children of near parents share most of their prefixes: a level costs little more
  than one greedy step.

      level 0   1111
      level 1   0111  1011          the best 2 of the children
      level 2   0011  1010 | 0101   the best 2 of the children of both

  Attributes:
    width: structures of a level whose children are tried.
    fresh: of each structure only the children that switch off one of so many gates, those of least
      harm when they were last tried; None is all.
    levels: number of levels; None is what the median gate saves.
  """

  width: int = 4
  fresh: int | None = None
  levels: int | None = None

  def run(self, problem: Problem) -> None:
    row = problem.all_on()
    limits = problem.levels(self.levels or self._num_levels(problem))
    last = np.zeros(problem.space.num_gates)
    # By level, the structures that cost no more than its limit, with their losses.
    pending: list[dict[bytes, float]] = [{} for _ in range(len(limits) + 1)]
    pending[0][row.tobytes()] = problem.loss(row)
    tried_all = self.fresh is None
    for level in range(len(limits)):
      expanded: set[bytes] = set()
      while parents := self._best(pending[level], expanded):
        expanded |= set(parents)
        kids = [
          self._children(problem, np.frombuffer(parent, bool), last, tried_all)
          for parent in parents
        ]
        tried_all = True
        losses = np.split(
          problem.judge(np.concatenate([bits for _, bits in kids])),
          np.cumsum([len(bits) for _, bits in kids])[:-1],
        )
        for parent, (gates, bits), found in zip(parents, kids, losses):
          last[gates] = found - pending[level][parent]
          cost = problem.costs.of(bits)
          # The first level whose limit is met, the last one that it is.
          place = (cost[:, None] <= limits[None] * (1 + 1e-9)).sum(1)
          for bit, where, loss in zip(bits, place, found):
            pending[int(where)][bit.tobytes()] = float(loss)
    if not pending[-1]:
      problem.judge(np.array([problem.costs.cheapest().bits]))

  def _children(self, problem, row, last, tried_all):
    gates, bits, saved = problem.children(row)
    if self.fresh is None or not tried_all:
      return gates, bits
    chosen = np.argsort(problem.harm(last[gates], saved), kind='stable')[: self.fresh]
    return gates[chosen], bits[chosen]

  def _best(self, losses: dict[bytes, float], expanded: set[bytes]) -> list[bytes]:
    """Returns those of the best `width` whose children have not been tried."""
    best = sorted(losses, key=lambda content: (losses[content], content))[: self.width]
    return [content for content in best if content not in expanded]

  def _num_levels(self, problem: Problem) -> int:
    _, _, saved = problem.children(problem.all_on())
    step = float(np.median(saved)) if len(saved) else 0.0
    whole = problem.costs.full - problem.limit
    return max(1, round(whole / step)) if step > 0 else problem.space.num_gates


def by_harm(problem: Problem) -> Int[np.ndarray, ' n']:
  """Returns the gates in order of harm, those that save something first; evaluates all-on and every
  structure with one of them off."""
  row = problem.all_on()
  gates, bits, saved = problem.children(row)
  losses = problem.judge(np.concatenate([row[None], bits]))
  order = gates[np.argsort(problem.harm(losses[1:] - losses[0], saved), kind='stable')]
  others = np.setdiff1d(np.arange(len(row)), order)
  return np.concatenate([order, others])


def chain(problem: Problem, order: Int[np.ndarray, ' n']) -> list[Row]:
  """Returns the different structures on the way from all-on to the budget, gates off in order."""
  row, rows = problem.all_on(), []
  for limit in problem.levels(2 * problem.space.num_gates):
    row = problem.shrunk(row, order, limit)
    if not rows or (row != rows[-1]).any():
      rows.append(row)
  return rows
