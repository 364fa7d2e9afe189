"""Methods of search: what each proposes to evaluate next, from what has been evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float

Canonical = Callable[[Bool[np.ndarray, 'S n']], Bool[np.ndarray, 'S n']]


class Evaluated(NamedTuple):
  """Structures in order of evaluation, and what evaluation gave.

  >>> bits = np.array([[True, True], [False, True]])
  >>> evaluated = Evaluated(bits, cost=np.array([0.2, 0.1]))
  >>> evaluated.best(1).tolist()
  [[False, True]]

  Attributes:
    bits: one row per structure, different networks in canonical form.
    cost: lower is better, such as a loss, or a metric with its sign changed; what is not finite is
      worst.
  """

  bits: Bool[np.ndarray, 'S n']
  cost: Float[np.ndarray, 'S']

  def best(self, count: int) -> Bool[np.ndarray, 'count n']:
    """Returns the `count` structures of lowest cost, best first; of equal ones the first.

    >>> bits = np.array([[True, True], [False, True], [False, False]])
    >>> Evaluated(bits, np.array([0.2, 0.1, np.nan])).best(2).astype(int)
    array([[0, 1],
           [1, 1]])
    """
    finite = np.where(np.isfinite(self.cost), self.cost, np.inf)
    return self.bits[np.argsort(finite, kind='stable')[:count]]


class Method(Protocol):
  """What a search asks at each generation but the first.

  >>> {name: method.least_population for name, method in METHODS.items()}
  {'evolution': 4, 'random': 2}
  """

  @property
  def least_population(self) -> int:
    """The smallest population that the method works with."""

  def propose(
    self, rng: np.random.Generator, evaluated: Evaluated, population: int, canonical: Canonical
  ) -> Sequence[Bool[np.ndarray, 'n']]:
    """Returns at most `population` different networks of which none is in `evaluated`.

    The search fills up what is missing with random structures. All randomness comes from `rng`.
    `canonical` gives the form by which networks are told apart.
    """


@dataclasses.dataclass(frozen=True)
class Random:
  """Proposes nothing, so that every structure is random: the control of every other method."""

  least_population: int = 2

  def propose(
    self, rng: np.random.Generator, evaluated: Evaluated, population: int, canonical: Canonical
  ) -> Sequence[Bool[np.ndarray, 'n']]:
    return []


@dataclasses.dataclass(frozen=True)
class Evolution:
  """Proposes mutants of good structures and crossovers of two of them, in turn.

  The best of all structures evaluated so far are the parents, as in the search of single-path
  one-shot networks (Guo et al. 2020, arXiv:1904.00420, section 3.4). Unlike regularised evolution
  (Real et al. 2019, arXiv:1802.01548) it lets no structure die of age: the evaluation of a trained
  pool is free of the noise that ageing guards against.

    parents  1101 0111      mutant     1101 → 1001   (each gate flips with probability flips/n)
                            crossover  1101 × 0111 → 0101   (each gate from one of the two)

  Attributes:
    flips: gates that a mutation flips, on average; at least one is.
    parent_share: one in `parent_share` of a population are parents.
    attempts: children drawn for each one wanted, before random structures fill the generation.

  >>> bits = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], bool)
  >>> evaluated = Evaluated(bits, np.array([0.1, 0.2, 0.9, 0.8]))
  >>> children = Evolution().propose(np.random.default_rng(0), evaluated, 4, lambda bits: bits)
  >>> known = {row.tobytes() for row in bits}
  >>> len(children), any(child.tobytes() in known for child in children)
  (4, False)
  """

  flips: float = 1.5
  parent_share: int = 4
  attempts: int = 100
  least_population: int = 4

  def propose(
    self, rng: np.random.Generator, evaluated: Evaluated, population: int, canonical: Canonical
  ) -> Sequence[Bool[np.ndarray, 'n']]:
    parents = evaluated.best(max(2, population // self.parent_share))
    num_gates = parents.shape[1]
    known_rows = {row.tobytes() for row in evaluated.bits}
    children = []
    for attempt in range(self.attempts * population):
      if len(children) == population:
        break
      first, second = parents[rng.integers(len(parents), size=2)]
      if attempt % 2:
        child = np.where(rng.random(num_gates) < 0.5, first, second)
      else:
        flip = rng.random(num_gates) < self.flips / num_gates
        flip[rng.integers(num_gates)] |= not flip.any()
        child = first ^ flip
      child = canonical(child[None])[0]
      if child.tobytes() not in known_rows:
        known_rows.add(child.tobytes())
        children.append(child)
    return children


METHODS: Mapping[str, Method] = MappingProxyType({'evolution': Evolution(), 'random': Random()})
