"""What an explorer shows: gates and what they cost, structures and what they scored.

S structures, n gates.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from additive_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Gate:
  """One switch.

  Attributes:
    name: such as `block_03/residual`.
    flops, params: what it adds when it is on.
    seconds: the same, measured on a device; None where nobody has.
    within: the number of the gate that skips this one with its site, or None.
  """

  name: str
  flops: float = 0.0
  params: float = 0.0
  seconds: float | None = None
  within: int | None = None


@dataclasses.dataclass(frozen=True)
class Site:
  """A place of the network: what it is called, and the numbers of its gates; it may have none."""

  label: str
  gates: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
  """A loss or metric of all structures.

  Attributes:
    label: what it is called, with the split: `test loss`.
    values: NaN where a structure was not judged.
    half_widths: of the 95 % intervals; None where there are none.
    lower_is_better: whether the best is the lowest.
    difference: whether it is what the loss differs by from that of all-on.
  """

  label: str
  values: Float[np.ndarray, ' S']
  half_widths: Float[np.ndarray, ' S'] | None = None
  lower_is_better: bool = True
  difference: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
  """A model of a score: `constant + Σ alone_i·u_i + Σ_{i<j} pairs_ij·u_i·u_j` with u = 1 − s, and
  how well it predicts structures that it was not fitted to.

  Attributes:
    constant: of all-on.
    alone: what each gate costs when it alone is off.
    pairs: symmetric, zero on the diagonal.
    only: the value of a gate that was the same in all structures of the fit, of whose being
      different nothing can be said; −1 for those that were not.
    structures: how many were predicted from the others.
    rmse, r2, tau: of these predictions: root of the mean squared error, share of the variance, and
      Kendall's.
  """

  constant: float
  alone: Float[np.ndarray, ' n']
  pairs: Float[np.ndarray, 'n n']
  only: Int[np.ndarray, ' n']
  structures: int
  rmse: float
  r2: float
  tau: float


@dataclasses.dataclass(frozen=True)
class Export:
  """How a structure becomes files: a command, in which {run} and {structure} stand for these; or
  in words why there is none."""

  command: str = ''
  reason: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
  """What structures are worth in one way of judging, such as in a shared pool, or trained alone.

  Attributes:
    label: what it is called.
    scores: the first is what is predicted and drawn.
    prediction: of the first score; None where too few structures are known.
    effects: what each gate does to the first score, lower is better; None where not known.
    effect_half_widths: of their 95 % intervals.
    effect_meaning: in words, such as mean over all structures.
    export: how such a structure becomes files.
  """

  label: str
  scores: tuple[Score, ...]
  prediction: Prediction | None = None
  effects: Float[np.ndarray, ' n'] | None = None
  effect_half_widths: Float[np.ndarray, ' n'] | None = None
  effect_meaning: str = ''
  export: Export = Export()


@dataclasses.dataclass(frozen=True, eq=False)
class Explorer:
  """A network, its structures and what is known of them.

  A structure costs the fixed part, what each gate adds that is on, and of what several gates share
  all if any of these is on.

  >>> gates = Gate('a', 10.0, 2.0), Gate('b', 20.0, 4.0)
  >>> loss = Score('test loss', np.array([0.5, 0.75]))
  >>> bits = np.array([[True, True], [True, False]])
  >>> found = Explorer(gates, (Site('a', (0,)), Site('b', (1,))), bits, (Judged('pool', (loss,)),))
  >>> found.num_structures
  2

  Attributes:
    gates: in the order of a structure's bits.
    sites: in the order of the network.
    bits: different structures, in canonical form, best first.
    judged: one or more ways of judging.
    fixed: a gate that is always on, embed and readout.
    shared: pairs of parameters and of the numbers of the gates that share them.
    ranks: of the structures; None is their order.
    comparable: which structures may be on the Pareto front, such as those that were trained
      longest; None is all.
    cost: what the page shows first: 'flops', 'params' or 'seconds'.
    note: what else is to be said, in a sentence or two.
  """

  gates: tuple[Gate, ...]
  sites: tuple[Site, ...]
  bits: Bool[np.ndarray, 'S n']
  judged: tuple[Judged, ...]
  fixed: Gate = Gate('fixed')
  shared: tuple[tuple[float, tuple[int, ...]], ...] = ()
  ranks: Int[np.ndarray, ' S'] | None = None
  comparable: Bool[np.ndarray, ' S'] | None = None
  cost: str = 'flops'
  note: str = ''

  def __post_init__(self) -> None:
    rows, columns = self.bits.shape
    if columns != len(self.gates):
      raise UserError(f'structures of {columns} gates: expected {len(self.gates)}, one per gate')
    for judged in self.judged:
      for score in judged.scores:
        if len(score.values) != rows:
          raise UserError(f'{score.label} of {len(score.values)} structures: expected {rows}')
    placed = sorted(gate for site in self.sites for gate in site.gates)
    if placed != list(range(columns)):
      raise UserError(f'sites with the gates {placed}: expected each of {columns} once')

  @property
  def num_structures(self) -> int:
    """How many structures there is something known of."""
    return len(self.bits)
