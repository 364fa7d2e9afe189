"""Search for good structures where there are too many to evaluate all: evolution, or random draws.

`evolution` keeps the best of all structures evaluated so far as parents and makes half of the
children by flips and half by crossover, as the search of single-path one-shot networks does (Guo et
al. 2020, arXiv:1904.00420, section 3.4). Unlike regularised evolution (Real et al. 2019,
arXiv:1802.01548) it lets no structure die of age: the evaluation of a trained pool is free of the
noise that ageing guards against.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from additive_jax.errors import UserError

METHODS = ('evolution', 'random')
PARENT_SHARE = 4  # the best quarter of a population's size become parents
FLIPS = 1.5  # gates that a mutation flips, on average
ATTEMPTS = 100  # children drawn per wanted one before random structures fill the generation


class SearchResult(NamedTuple):
  """Everything that was evaluated, in that order: bits bool [S, n], loss [S], accuracy [S]."""

  bits: np.ndarray
  loss: np.ndarray
  accuracy: np.ndarray

  def best(self, count: int) -> np.ndarray:
    """The `count` structures of lowest loss, best first, bool [count, n]."""
    return self.bits[_ranked(self.loss)[:count]]


def search(
  evaluate: Callable,
  num_gates: int,
  *,
  budget: int,
  method: str = 'evolution',
  population: int = 64,
  seed: int = 0,
  known=None,
) -> SearchResult:
  """Evaluates `budget` different structures, a population at a time, and looks for a low loss.

  The first generation is all-on, all-off and random structures. Of the later ones, under
  `evolution`, half are mutants (a parent with each gate flipped with probability 1.5/n, at least
  one) and half crossovers (each gate from one of two parents); the parents are the best
  `population`/4 so far. Under `random` all are random. No structure is evaluated twice.

  Args:
    evaluate: from bits, bool [population, n], to loss and accuracy, each [population]; a loss that
      is not finite counts as the worst. Every call has the same shape: where the budget ends within
      a generation, its last structure fills the rest.
    num_gates: n.
    budget: S, how many structures to evaluate, at least `population`.
    method: 'evolution' or 'random'.
    population: structures of one generation, at least 4 for evolution and 2 for random.
    seed: names the draws; each generation's depend on the seed and its number alone.
    known: (bits, loss, accuracy), in order of evaluation, of a search with the same arguments that
      was interrupted or had a smaller budget: it goes on after the last whole generation and ends
      as if never interrupted. What fills the budget is evaluated no more.

  Raises:
    UserError: the budget is smaller than a population or larger than 2^n, or the method is unknown,
      or the shapes of `known` do not fit.
  """
  check_search(num_gates, budget, method, population)
  bits, loss, accuracy = _start(known, num_gates, population, budget)
  while len(bits) < budget:
    generation = len(bits) // population
    rng = np.random.default_rng([seed, generation])
    seen = {row.tobytes() for row in bits}
    if generation == 0:
      fresh = [np.ones(num_gates, bool), np.zeros(num_gates, bool)]
    elif method == 'evolution':
      parents = bits[_ranked(loss)[: max(2, population // PARENT_SHARE)]]
      fresh = _children(rng, parents, seen, population)
    else:
      fresh = []
    count = min(population, budget - len(bits))
    batch = _fill(rng, fresh, seen, num_gates, count)
    found = evaluate(np.concatenate([batch, np.repeat(batch[-1:], population - count, axis=0)]))
    bits = np.concatenate([bits, batch])
    loss, accuracy = (
      np.concatenate([old, np.asarray(new, float)[:count]])
      for old, new in zip((loss, accuracy), found)
    )
  return SearchResult(bits, loss, accuracy)


def _ranked(loss):
  """Indices from the lowest loss to the highest; what is not finite comes last."""
  return np.argsort(np.where(np.isfinite(loss), loss, np.inf), kind='stable')


def check_search(num_gates: int, budget: int, method: str, population: int) -> None:
  """Raises `UserError` for arguments that `search` does not take."""
  if method not in METHODS:
    raise UserError(f'search method {method!r}: expected one of {", ".join(METHODS)}')
  least = 4 if method == 'evolution' else 2
  if population < least:
    raise UserError(f'population {population}: expected at least {least} for {method}')
  if budget < population:
    raise UserError(f'search budget {budget}: expected at least one population of {population}')
  if budget > 1 << num_gates:
    raise UserError(
      f'search budget {budget}: expected at most 2^{num_gates} = {1 << num_gates}, which is every '
      'structure; enumerate them in place of searching'
    )


def _start(known, num_gates, population, budget):
  """What an interrupted search had in whole generations; nothing for None."""
  if known is None:
    return np.zeros((0, num_gates), bool), np.zeros(0), np.zeros(0)
  bits, loss, accuracy = (np.asarray(part) for part in known)
  if not bits.size:
    bits = bits.reshape(0, num_gates)
  if bits.ndim != 2 or bits.shape[1] != num_gates or not len(bits) == len(loss) == len(accuracy):
    raise UserError(
      f'known structures {bits.shape}, losses {loss.shape} and accuracies {accuracy.shape}: '
      f'expected [S, {num_gates}], [S] and [S]'
    )
  whole = len(bits) if len(bits) == budget else len(bits) // population * population
  return bits[:whole].astype(bool), loss[:whole].astype(float), accuracy[:whole].astype(float)


def _children(rng, parents, seen, count):
  """Up to `count` unseen children: mutants and crossovers in turn."""
  num_gates = parents.shape[1]
  children, taken = [], set()
  for attempt in range(ATTEMPTS * count):
    if len(children) == count:
      break
    first, second = parents[rng.integers(len(parents), size=2)]
    if attempt % 2:
      child = np.where(rng.random(num_gates) < 0.5, first, second)
    else:
      flip = rng.random(num_gates) < FLIPS / num_gates
      flip[rng.integers(num_gates)] |= not flip.any()
      child = first ^ flip
    name = child.tobytes()
    if name not in seen and name not in taken:
      taken.add(name)
      children.append(child)
  return children


def _fill(rng, fresh, seen, num_gates, count):
  """`fresh` and random unseen structures, `count` in all, bool [count, n]."""
  rows = list(fresh)[:count]
  taken = {row.tobytes() for row in rows}
  if num_gates <= 20:  # few enough to list what is left: rejection would be slow near the end
    order = rng.permutation(1 << num_gates)
    candidates = ((value >> np.arange(num_gates) & 1).astype(bool) for value in order)
  else:
    candidates = (rng.random(num_gates) < 0.5 for _ in itertools.count())
  while len(rows) < count:
    row = next(candidates)
    name = row.tobytes()
    if name not in seen and name not in taken:
      taken.add(name)
      rows.append(row)
  return np.array(rows)
