"""The most that a structure may cost, in FLOPs or parameters."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from additive_jax.errors import UserError
from additive_jax.experiments.session import Session

COSTS = ('flops', 'params')


@dataclasses.dataclass(frozen=True)
class Budget:
  """The most that a structure may cost.

  Attributes:
    most: a share of what the full network costs, up to 1; above 1 that many of the unit.
    unit: one of `COSTS`.
  """

  most: float
  unit: str

  def __post_init__(self) -> None:
    if self.unit not in COSTS:
      raise UserError(f'cost {self.unit!r}: expected one of {", ".join(COSTS)}')
    number = isinstance(self.most, int | float) and not isinstance(self.most, bool)
    if not number or not 0 < self.most < float('inf'):
      raise UserError(
        f'budget {self.most!r}: expected a share of the {self.unit} of the full network, such as '
        '0.6, or their number'
      )

  def costs(self, session: Session, bits: Bool[np.ndarray, 'S n']) -> Float[np.ndarray, 'S']:
    """Returns what structures cost."""
    return np.asarray(session.space.costs(bits)[COSTS.index(self.unit)], float)

  def limit(self, session: Session) -> float:
    """Returns the budget in units.

    Raises:
      UserError: where no structure is within it.
    """
    n = session.space.num_gates
    most, least = self.costs(session, np.array([[True] * n, [False] * n]))
    limit = self.most * most if self.most <= 1 else float(self.most)
    if limit < least:
      raise UserError(
        f'budget {self.most:g} of {most:,.0f} {self.unit}: expected at least {least / most:.2g}, '
        f'the share that no gate switches off, or {least:,.0f}'
      )
    return limit
