"""The loop of every search: generation after generation of different structures, up to a budget."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from additive_jax.errors import UserError
from additive_jax.run.evaluate import Evaluation
from additive_jax.search.methods import METHODS, Evaluated
from additive_jax.seeds import checked_seed

LISTED_GATES = 20  # up to here random structures are drawn from a list of all


@dataclasses.dataclass(frozen=True)
class Search:
  """Evaluates `budget` different structures, a population at a time, and looks for a low loss.

  The first generation is all-on, all-off and random structures; of later ones the method proposes
  the structures, and random ones fill up what it leaves.

  Attributes:
    method: a key of `methods.METHODS`.
    budget: S, how many structures to evaluate, at least `population`.
    population: structures of one generation.
    seed: names the draws; those of a generation depend on the seed and its number alone.

  >>> lowest = lambda bits: aj.run.evaluate.Evaluation(1.0 * bits.sum(1), np.zeros(len(bits)))
  >>> evaluated = Search('evolution', budget=64, population=8).run(lowest, 10)
  >>> evaluated.best(1).astype(int)
  array([[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
  """

  method: str = 'evolution'
  budget: int = 2048
  population: int = 64
  seed: int = 0

  def check(self, num_gates: int) -> None:
    """Raises `UserError` for an unknown method, or a seed, population or budget out of range."""
    checked_seed(self.seed)
    if self.method not in METHODS:
      raise UserError(f'search method {self.method!r}: expected one of {", ".join(METHODS)}')
    least = METHODS[self.method].least_population
    if self.population < least:
      raise UserError(f'population {self.population}: expected at least {least} for {self.method}')
    if self.budget < self.population:
      raise UserError(
        f'budget {self.budget}: expected at least one population of {self.population}'
      )
    if self.budget > 1 << num_gates:
      raise UserError(
        f'budget {self.budget}: expected at most 2^{num_gates} = {1 << num_gates}, which is '
        'every structure; enumerate them in place of searching'
      )

  def run(
    self,
    evaluate: Callable[[Bool[np.ndarray, 'S n']], Evaluation],
    num_gates: int,
    known: Evaluated | None = None,
  ) -> Evaluated:
    """Returns all structures that were evaluated, in order.

    Args:
      evaluate: from `population` structures to their loss and accuracy. Every call has the same
        shape: where the budget ends within a generation, its last structure fills the rest.
      num_gates: n.
      known: what a search with the same options evaluated before it was interrupted, or with a
        smaller budget: this one goes on after the last whole generation, and ends as if never
        interrupted. Known structures that fill the budget are evaluated no more.

    Raises:
      UserError: as `check`, and for arrays of `known` that do not fit.
    """
    self.check(num_gates)
    evaluated = self._whole_generations(known, num_gates)
    while len(evaluated.bits) < self.budget:
      count = min(self.population, self.budget - len(evaluated.bits))
      bits = self._generation(evaluated, num_gates, count)
      filler = np.repeat(bits[-1:], self.population - count, axis=0)
      scores = evaluate(np.concatenate([bits, filler]))
      added = (bits, *(np.asarray(score, float)[:count] for score in scores))
      evaluated = Evaluated(*map(np.concatenate, zip(evaluated, added)))
    return evaluated

  def _generation(self, evaluated, num_gates: int, count: int) -> Bool[np.ndarray, 'count n']:
    number = len(evaluated.bits) // self.population
    rng = np.random.default_rng([self.seed, number])
    if number == 0:
      proposed = [np.ones(num_gates, bool), np.zeros(num_gates, bool)]
    else:
      proposed = METHODS[self.method].propose(rng, evaluated, self.population)
    return _filled(rng, proposed[:count], evaluated, num_gates, count)

  def _whole_generations(self, known: Evaluated | None, num_gates: int) -> Evaluated:
    if known is None:
      return Evaluated(np.zeros((0, num_gates), bool), np.zeros(0), np.zeros(0))
    bits, loss, accuracy = (np.asarray(part) for part in known)
    if not bits.size:
      bits = bits.reshape(0, num_gates)
    if bits.ndim != 2 or bits.shape[1] != num_gates or not len(bits) == len(loss) == len(accuracy):
      raise UserError(
        f'known structures {bits.shape}, losses {loss.shape} and accuracies {accuracy.shape}: '
        f'expected [S, {num_gates}], [S] and [S]'
      )
    count = len(bits)
    if count != self.budget:
      count -= count % self.population
    return Evaluated(
      bits[:count].astype(bool), loss[:count].astype(float), accuracy[:count].astype(float)
    )


def _filled(rng, proposed, evaluated, num_gates: int, count: int) -> Bool[np.ndarray, 'count n']:
  """Returns what is proposed and random structures that are new, `count` in all."""
  rows = list(proposed)
  known_rows = {row.tobytes() for row in (*evaluated.bits, *rows)}
  if num_gates <= LISTED_GATES:  # rejection would be slow near the end of a small space
    order = rng.permutation(1 << num_gates)
    candidates = ((value >> np.arange(num_gates) & 1).astype(bool) for value in order)
  else:
    candidates = (rng.random(num_gates) < 0.5 for _ in itertools.count())
  while len(rows) < count:
    row = next(candidates)
    if row.tobytes() not in known_rows:
      known_rows.add(row.tobytes())
      rows.append(row)
  return np.array(rows)
