"""Search by chance: evolution by swaps at constant cost, and random structures as its control."""

from __future__ import annotations

import dataclasses

import numpy as np

from additive_jax.search.problem import Bits, Problem, Row


@dataclasses.dataclass(frozen=True)
class Evolution:
  """One parent, many offspring; the best of all is the next parent, the (1+λ) strategy.

  An offspring has a few gates swapped, so that it costs what its parent does: some that are off are
  switched on, and others off until it is within the limit again. Most offspring are bad, and few
  examples tell: the offspring are judged by `shares[0]` of the examples, the best `keep[0]` of them
  by `shares[1]`, and so on; those that are left, and the parent, by all.

      parent 1101   +gate 2   1111   −gate 0   0111 offspring

  It starts near all-on: the first generations are at a limit close to what all-on costs, from
  all-on less a few random gates; those of the next level start at what the last one found. Source:
  EvoPress (Sieberling et al. 2024, arXiv:2410.14649), which has one level.

  Attributes:
    generations: of all levels together.
    offspring: λ, of each generation.
    shares: of the examples, rising; the last ones left are judged by all.
    keep: how many go on after each share.
    swaps: the most gates that are switched on for one offspring.
    levels: limits in equal steps down to the budget.
  """

  generations: int = 40
  offspring: int = 32
  shares: tuple[float, ...] = (1 / 16, 1 / 4)
  keep: tuple[int, ...] = (8, 2)
  swaps: int = 3
  levels: int = 4

  def run(self, problem: Problem) -> None:
    rng = np.random.default_rng([problem.seed, 0])
    parent = problem.all_on()
    problem.loss(parent)
    limits = problem.levels(self.levels)
    for number, limit in enumerate(limits):
      start = parent
      first = [_randomly_shrunk(rng, problem, start, limit) for _ in range(self.offspring)]
      parent = self._survivor(problem, np.array(first))
      count = self.generations // self.levels + (number < self.generations % self.levels)
      for _ in range(count):
        offspring = [self._offspring(rng, problem, parent, limit) for _ in range(self.offspring)]
        survivor = self._survivor(problem, np.array(offspring))
        if problem.loss(survivor) <= problem.loss(parent):
          parent = survivor

  def _survivor(self, problem: Problem, bits: Bits) -> Row:
    """Returns the best of some structures, most of which few examples rule out."""
    bits = np.unique(bits, axis=0)
    for share, keep in zip(self.shares, self.keep):
      if len(bits) > keep:
        bits = bits[np.argsort(problem.judge(bits, share), kind='stable')[:keep]]
    return bits[int(np.argmin(problem.judge(bits)))]

  def _offspring(self, rng, problem: Problem, parent: Row, limit: float) -> Row:
    child = parent.copy()
    off = np.flatnonzero(~child)
    # The least of two draws: mostly one swap.
    count = int(rng.integers(1, self.swaps + 1, size=2).min())
    on = rng.permutation(off)[:count]
    child[on] = True
    if not len(on):  # all-on has nothing to swap with
      child[rng.integers(len(child))] = False
    hosts = problem.costs.hosts
    child[hosts[on]] = True  # an inner gate has no effect without its site
    order = rng.permutation(np.setdiff1d(np.arange(len(child)), on))
    child = problem.shrunk(child, np.concatenate([order, on]), limit)
    return _filled(rng, problem, child, limit)


@dataclasses.dataclass(frozen=True)
class Random:
  """Random structures that meet the limit: the control of every other method.

  Attributes:
    count: structures, in equal parts at every level.
    levels: limits in equal steps down to the budget.
  """

  count: int = 256
  levels: int = 4

  def run(self, problem: Problem) -> None:
    rng = np.random.default_rng([problem.seed, 0])
    limits = problem.levels(self.levels)
    rows = [problem.all_on()]
    rows += [
      _randomly_shrunk(rng, problem, rows[0], limits[-1 - number % self.levels])
      for number in range(self.count)
    ]
    problem.judge(np.unique(np.array(rows), axis=0))


def _randomly_shrunk(rng: np.random.Generator, problem: Problem, row: Row, limit: float) -> Row:
  """Returns a structure with random gates off until it meets a limit, and those on again that it
  has room for."""
  row = problem.shrunk(row, rng.permutation(len(row)), limit)
  return _filled(rng, problem, row, limit)


def _filled(rng: np.random.Generator, problem: Problem, row: Row, limit: float) -> Row:
  """Returns a structure with sites on again, in random order, as long as it meets a limit."""
  row = row.copy()
  hosts = problem.costs.hosts
  for gate in rng.permutation(np.flatnonzero(~row & (hosts == np.arange(len(row))))):
    row[gate] = True
    row[gate] = problem.is_within(row, limit)
  return row
