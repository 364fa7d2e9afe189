"""What a method of search under a budget is given, and the moves that all of them make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from additive_jax.errors import UserError
from additive_jax.gates.structure import Space
from additive_jax.search.costs import Costs, within
from additive_jax.search.evaluations import Evaluations

Bits = Bool[np.ndarray, 'S n']
Row = Bool[np.ndarray, 'n']
# What each site changes in the stream, see `probe`: from 'cosine' or 'blockwise' to [gates].
Probe = Callable[[str], Float[np.ndarray, ' n']]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """What a search is about.

  Attributes:
    costs: the cost model, with the gates.
    limit: the most that a structure may cost.
    judge: gives losses.
    seed: of all that is random.
    probe: looks into the network; None where only an evaluator is there.
  """

  costs: Costs
  limit: float
  judge: Evaluations
  seed: int = 0
  probe: Probe | None = None

  @property
  def space(self) -> Space:
    return self.costs.space

  def all_on(self) -> Row:
    return np.ones(self.space.num_gates, bool)

  def is_within(self, row: Row, limit: float | None = None) -> bool:
    """Whether a structure costs no more than the budget, or another limit."""
    return bool(within(self.costs, row[None], self.limit if limit is None else limit)[0])

  def loss(self, row: Row) -> float:
    return float(self.judge(row[None])[0])

  def children(self, row: Row) -> tuple[Int[np.ndarray, ' C'], Bits, Float[np.ndarray, ' C']]:
    """Returns the gates whose switching off makes a structure cheaper, the structures without each
    of them, and what that saves.

    Of gates that share their parameters none alone may save anything: then those count that cost
    nothing more.
    """
    gates = np.flatnonzero(row)
    bits = np.repeat(row[None], len(gates), axis=0)
    bits[np.arange(len(gates)), gates] = False
    bits = self.costs.canonical(bits)
    saved = self.costs.of(row[None])[0] - self.costs.of(bits) if len(gates) else np.zeros(0)
    chosen = saved > 1e-12 * self.costs.full
    if not chosen.any() and self.costs.shared:
      among = {gate for _, some in self.costs.shared for gate in some}
      chosen = np.array([gate in among for gate in gates], bool)
    return gates[chosen], bits[chosen], saved[chosen]

  def harm(
    self, delta: Float[np.ndarray, ' C'], saved: Float[np.ndarray, ' C']
  ) -> Float[np.ndarray, ' C']:
    """Returns by how much the loss grows for what is saved: `delta / saved`; a loss that falls
    counts the more, the more is saved, `delta · saved`. Lower is better."""
    share = np.maximum(saved / self.costs.full, 1e-9)
    return np.where(delta > 0, delta / share, delta * share)

  def shrunk(self, row: Row, order: Int[np.ndarray, ' n'], limit: float) -> Row:
    """Returns a structure with gates off, in that order, as many as a limit needs. A gate whose
    switching off costs more stays on; where all others do not suffice, it is the cheapest
    structure."""
    row = self.costs.canonical(row[None])[0]
    cost = self.costs.of(row[None])[0]
    for gate in order:
      if self.is_within(row, limit):
        return row
      without = row.copy()
      without[gate] = False
      without = self.costs.canonical(without[None])[0]
      if row[gate] and (lower := self.costs.of(without[None])[0]) <= cost:
        row, cost = without, lower
    return row if self.is_within(row, limit) else np.array(self.costs.cheapest().bits)

  def levels(self, count: int) -> Float[np.ndarray, ' count']:
    """Returns limits in equal steps from below what all-on costs down to the budget."""
    return np.linspace(self.costs.full, self.limit, count + 1)[1:]

  def look(self, kind: str) -> Float[np.ndarray, ' n']:
    """Returns what each site changes in the stream; infinity for gates that are none of a whole
    site.

    Raises:
      UserError: where only an evaluator is there.
    """
    if self.probe is None:
      raise UserError(f'{kind} looks into the network: expected a search of a model with a pool')
    return self.probe(kind)


class Method(Protocol):
  """A way to search under a budget: it asks `problem.judge` for losses, and what it has asked for
  is its result."""

  def run(self, problem: Problem) -> None:
    """Evaluates structures, among them some within the budget."""


def layers(names: tuple[str, ...]) -> list[str]:
  """Returns the layer of each gate: the first part of its name.

  >>> layers(('layer_00/attention/residual', 'layer_00/mlp/residual', 'block_01/residual'))
  ['layer_00', 'layer_00', 'block_01']
  """
  return [name.partition('/')[0] for name in names]
