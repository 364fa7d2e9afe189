"""The loop of every search: generation after generation of different structures, up to a budget."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool
from numpy.typing import ArrayLike

from additive_jax.errors import UserError, checked_seed
from additive_jax.gates import networks
from additive_jax.gates.structure import Gate, Space
from additive_jax.search.methods import METHODS, Evaluated

LISTED = 1 << 20  # up to so many networks random ones are drawn from a list of all


@dataclasses.dataclass(frozen=True)
class Search:
  """Evaluates `budget` different networks, a population at a time, and looks for a low cost.

  The first generation is all-on, all-off and random structures; of later ones the method proposes
  the structures, and random ones fill up what it leaves. Structures that are one network, see
  `gates.networks`, are evaluated once, in canonical form.

  Attributes:
    method: a key of `methods.METHODS`.
    budget: S, how many networks to evaluate, at least `population`.
    population: structures of one generation.
    seed: names the draws; those of a generation depend on the seed and its number alone.

  >>> evaluated = Search('evolution', budget=64, population=8).run(lambda bits: bits.sum(1), 10)
  >>> evaluated.best(1).astype(int)
  array([[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]])
  """

  method: str = 'evolution'
  budget: int = 2048
  population: int = 64
  seed: int = 0

  def check(self, gates: Space | int) -> None:
    """Raises `UserError` for an unknown method, or a seed, population or budget out of range."""
    space = _space(gates)
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
    count, of_all = networks.num_networks(space), f'2^{space.num_gates} = {1 << space.num_gates}'
    if self.budget > count:
      most = of_all if count == 1 << space.num_gates else f'{count} networks of {of_all} structures'
      raise UserError(
        f'budget {self.budget}: expected at most {most}, which is every structure; '
        'enumerate them in place of searching'
      )

  def run(
    self,
    evaluate: Callable[[Bool[np.ndarray, 'S n']], ArrayLike],
    gates: Space | int,
    known: Evaluated | None = None,
  ) -> Evaluated:
    """Returns all structures that were evaluated, in order: different networks, in canonical form.

    Args:
      evaluate: from `population` structures to what they cost, lower is better, such as
        `evaluate_structures(...).loss`. Every call has the same shape: where the budget ends within
        a generation, its last structure fills the rest.
      gates: the space of the model; n where each gate has an effect whatever the others are.
      known: what a search with the same options evaluated before it was interrupted, or with a
        smaller budget: this one goes on after the last whole generation, and ends as if never
        interrupted. Known structures that fill the budget are evaluated no more.

    Raises:
      UserError: as `check`, and for arrays of `known` that do not fit.
    """
    space = _space(gates)
    self.check(space)
    evaluated = self._whole_generations(known, space)
    while len(evaluated.bits) < self.budget:
      count = min(self.population, self.budget - len(evaluated.bits))
      bits = self._generation(evaluated, space, count)
      filler = np.repeat(bits[-1:], self.population - count, axis=0)
      costs = np.asarray(evaluate(np.concatenate([bits, filler])), float)[:count]
      added = Evaluated(bits, costs)
      evaluated = Evaluated(*map(np.concatenate, zip(evaluated, added)))
    return evaluated

  def _generation(self, evaluated, space: Space, count: int) -> Bool[np.ndarray, 'count n']:
    canonical = functools.partial(networks.canonical, space)
    number = len(evaluated.bits) // self.population
    rng = np.random.default_rng([self.seed, number])
    if number == 0:
      proposed = [np.ones(space.num_gates, bool), np.zeros(space.num_gates, bool)]
    else:
      proposed = METHODS[self.method].propose(rng, evaluated, self.population, canonical)
    return _filled(rng, proposed[:count], evaluated, space, count)

  def _whole_generations(self, known: Evaluated | None, space: Space) -> Evaluated:
    num_gates = space.num_gates
    if known is None:
      return Evaluated(np.zeros((0, num_gates), bool), np.zeros(0))
    bits, cost = (np.asarray(part) for part in known)
    if not bits.size:
      bits = bits.reshape(0, num_gates)
    if bits.ndim != 2 or bits.shape[1] != num_gates or len(bits) != len(cost):
      raise UserError(
        f'known structures {bits.shape} and costs {cost.shape}: expected [S, {num_gates}] and [S]'
      )
    bits = networks.canonical(space, bits.astype(bool))
    first = networks.first_places(bits)
    count = len(first)
    if count < self.budget:
      count -= count % self.population
    places = first[: min(count, self.budget)]
    return Evaluated(bits[places], cost[places].astype(float))


def _space(gates: Space | int) -> Space:
  return gates if isinstance(gates, Space) else Space(tuple(Gate(str(i)) for i in range(gates)))


def _filled(rng, proposed, evaluated, space: Space, count: int) -> Bool[np.ndarray, 'count n']:
  """Returns what is proposed and random networks that are new, `count` in all."""
  known_rows, rows = {row.tobytes() for row in evaluated.bits}, []

  def add(row):
    row = networks.canonical(space, row[None])[0]
    if row.tobytes() not in known_rows:
      known_rows.add(row.tobytes())
      rows.append(row)

  for row in proposed:
    add(row)
  size = networks.num_networks(space)
  if size <= LISTED:  # rejection would be slow near the end of a small space
    known = networks.places_of(space, np.array([*evaluated.bits, *rows]))
    order = rng.permutation(size)
    new = order[~np.isin(order, known)][: count - len(rows)]
    rows += list(networks.networks_at(space, new))
  while len(rows) < count:
    add(rng.random(space.num_gates) < 0.5)
  return np.array(rows)
