"""What a search gives: the best structure at every cost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure
from additive_jax.run.latency import Verified
from additive_jax.search.costs import Costs, within


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
  """The structures that a search has evaluated, and of them the best at every cost.

  >>> space = aj.Space((aj.Gate('a'), aj.Gate('b')))
  >>> costs = Costs('params', space, gates=(10.0, 30.0), fixed=60.0)
  >>> bits = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], bool)
  >>> path = Path(costs, limit=95.0, bits=bits, losses=np.array([0.1, 0.3, 0.2, 0.9]))
  >>> path.best, [str(structure) for structure in path.structures]
  (Structure('10'), ['00', '10', '11'])
  >>> path.at(60.0), path.loss(path.best)
  (Structure('00'), 0.2)

  Attributes:
    costs: the cost model.
    limit: the budget, in its unit.
    bits: the networks that were evaluated on all examples, in order.
    losses: of them, lower is better.
    evaluations: how many were made, on all examples; one by a share of them counts as that share.
    latency: of a search by latency the receipt: seconds of all-on and of the best, predicted and
      measured.
  """

  costs: Costs
  limit: float
  bits: Bool[np.ndarray, 'S n']
  losses: Float[np.ndarray, 'S']
  evaluations: float = 0.0
  latency: Verified | None = None

  @property
  def _front(self) -> np.ndarray:
    """Numbers of the structures on the front, cheapest first; of equal ones the first."""
    from additive_jax.report.statistics import pareto_front

    cost = self.costs.of(self.bits)
    places = np.flatnonzero(pareto_front(cost, self.losses))
    _, first = np.unique(cost[places], return_index=True)
    return places[first]

  @property
  def structures(self) -> list[Structure]:
    """The structures that no other beats, cheapest first: less loss costs more."""
    return [Structure(tuple(self.bits[i].tolist())) for i in self._front]

  @property
  def is_met(self) -> bool:
    """Whether a structure of finite loss within the budget was evaluated."""
    return bool((within(self.costs, self.bits, self.limit) & np.isfinite(self.losses)).any())

  @property
  def best(self) -> Structure:
    """The structure of lowest loss within the budget."""
    return self.at(self.limit)

  def at(self, cost: float) -> Structure:
    """Returns the structure of lowest loss among those that cost at most `cost`.

    Raises:
      UserError: where none was evaluated.
    """
    inside = [i for i in self._front if within(self.costs, self.bits[i : i + 1], cost)[0]]
    if not inside:
      raise UserError(
        f'no structure of at most {self.costs.told(cost)} was evaluated: expected at least '
        f'{self.costs.told(float(self.costs.of(self.bits).min()))}, or a search with that budget'
      )
    return Structure(tuple(self.bits[inside[-1]].tolist()))

  def loss(self, structure: Structure) -> float:
    """Returns the loss of a structure that was evaluated."""
    places = np.flatnonzero((self.bits == np.array(structure.bits)).all(1))
    if not len(places):
      raise UserError(f'structure {structure} was not evaluated: expected one of the path')
    return float(self.losses[places[0]])

  @property
  def table(self) -> pd.DataFrame:
    """A row for each structure of the path: `structure`, `loss`, what it costs, its `share` of what
    all-on costs, the number of gates that are `off`, and whether it is `within` the budget."""
    front = self._front
    cost = self.costs.of(self.bits[front])
    return pd.DataFrame(
      {
        'structure': [str(structure) for structure in self.structures],
        'loss': self.losses[front],
        self.costs.kind: cost,
        'share': cost / self.costs.full,
        'off': (~self.bits[front]).sum(1),
        'within': within(self.costs, self.bits[front], self.limit),
      }
    )
