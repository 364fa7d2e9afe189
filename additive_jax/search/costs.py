"""What structures cost, as a sum over gates: parameters, FLOPs, or seconds measured on a device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from additive_jax.errors import UserError
from additive_jax.gates.structure import Space, Structure, StructureLike, bits_of
from additive_jax.run.latency import Latency

KINDS = ('params', 'flops', 'latency')
UNITS = {'params': 'parameters', 'flops': 'FLOPs', 'latency': 'seconds'}


@dataclasses.dataclass(frozen=True)
class Costs:
  """A cost model of the structures of a space.

  A structure s costs `fixed + Σ_i gates[i]·s_i + Σ_k shared_k·max_{i∈k} s_i`, of its network: a
  gate inside of a site that is off counts as off.

  >>> space = aj.Space((aj.Gate('a'), aj.Gate('b')))
  >>> costs = Costs('params', space, gates=(10.0, 30.0), fixed=60.0)
  >>> costs.of(['00', '10', '11']).tolist()
  [60.0, 70.0, 100.0]

  Attributes:
    kind: one of `KINDS`.
    space: the gates.
    gates: what each gate adds when it is on.
    fixed: what every structure costs.
    shared: pairs of a cost and the numbers of the gates of which any one makes it due.
  """

  kind: str
  space: Space
  gates: tuple[float, ...]
  fixed: float
  shared: tuple[tuple[float, tuple[int, ...]], ...] = ()

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise UserError(f'costs {self.kind!r}: expected one of {", ".join(KINDS)}')
    if len(self.gates) != self.space.num_gates:
      raise UserError(
        f'costs of {len(self.gates)} gates: expected {self.space.num_gates}, one per gate'
      )
    if not np.isfinite([self.fixed, *self.gates]).all():
      raise UserError(f'costs {self.fixed}, {self.gates}: expected finite numbers')

  @classmethod
  def of_space(cls, kind: str, space: Space) -> Costs:
    """Returns the parameters or FLOPs that `additive_jax.measure(model, x)` has found.

    Args:
      kind: 'params' or 'flops'.
      space: with its costs.

    Raises:
      UserError: for another kind, or a space without costs.
    """
    if kind not in KINDS[:2]:
      hint = ', or a table of measure_latency(...).costs()' if kind == 'latency' else ''
      raise UserError(f'costs {kind!r}: expected one of {", ".join(KINDS[:2])}{hint}')
    space.costs([space.all_on()])  # says so where there are none
    if kind == 'flops':
      return cls(
        kind, space, tuple(float(g.flops or 0) for g in space), float(space.fixed_flops or 0)
      )
    shared = tuple(
      (float(one.params), tuple(space.index(name) for name in one.gates)) for one in space.shared
    )
    gates = tuple(float(gate.params or 0) for gate in space)
    return cls(kind, space, gates, float(space.fixed_params or 0), shared)

  @classmethod
  def of_latency(cls, table: Latency, space: Space) -> Costs:
    """Returns the seconds of a table that `measure_latency` gave.

    Raises:
      UserError: for a table of other gates.
    """
    if table.names != space.names:
      raise UserError(
        f'latencies of {len(table.names)} gates from {table.names[0]} on: expected those of the '
        f'{space.num_gates} gates from {space.names[0]} on'
      )
    return cls('latency', space, table.seconds, table.fixed)

  def of(
    self, structures: Iterable[StructureLike] | Bool[np.ndarray, 'S n']
  ) -> Float[np.ndarray, 'S']:
    """Returns what structures cost."""
    bits = self.canonical(structures)
    total = self.fixed + bits @ self._gates
    for cost, gates in self.shared:
      total = total + cost * bits[:, list(gates)].any(1)
    return np.asarray(total, float)

  def canonical(
    self, structures: Iterable[StructureLike] | Bool[np.ndarray, 'S n']
  ) -> Bool[np.ndarray, 'S n']:
    """Returns structures as bits, with the gates that have no effect off."""
    bits = structures
    if not isinstance(bits, np.ndarray) or bits.dtype != bool:  # else nothing is to be checked
      bits = bits_of(structures, self.space.num_gates)
    return bits & bits[:, self.hosts]

  @functools.cached_property
  def _gates(self) -> Float[np.ndarray, ' n']:
    return np.array(self.gates, float)

  @functools.cached_property
  def hosts(self) -> Int[np.ndarray, ' n']:
    """The number of the gate that skips each gate with its site; its own where there is none."""
    place = {name: i for i, name in enumerate(self.space.names)}
    return np.array([place[gate.within or gate.name] for gate in self.space], int)

  @functools.cached_property
  def full(self) -> float:
    """What all-on costs."""
    return float(self.of([self.space.all_on()])[0])

  def cheapest(self) -> Structure:
    """Returns the structure that costs least: not all-off where a gate saves something.

    >>> gates = aj.Gate('r'), aj.Gate('a', within='r')
    >>> str(Costs('flops', aj.Space(gates), gates=(10.0, -30.0), fixed=60.0).cheapest())
    '11'
    """
    # Sites add up, so each is at its own cheapest; what several gates share is never below zero.
    on = np.zeros(self.space.num_gates, bool)
    for i in np.flatnonzero(self.hosts == np.arange(len(on))):
      saving = [k for k in np.flatnonzero(self.hosts == i) if k != i and self.gates[k] < 0]
      if self.gates[i] + sum(self.gates[k] for k in saving) < 0:
        on[[i, *saving]] = True
    return Structure(tuple(on.tolist()))

  def told(self, cost: float) -> str:
    """Returns a cost in words.

    >>> Costs('params', aj.Space((aj.Gate('a'),)), gates=(1.0,), fixed=0.0).told(1234.0)
    '1,234 parameters'
    """
    number = f'{cost:.3g}' if self.kind == 'latency' else f'{cost:,.0f}'
    return f'{number} {UNITS[self.kind]}'


@dataclasses.dataclass(frozen=True)
class Budget:
  """The most that a structure may cost.

  >>> space = aj.Space((aj.Gate('a'), aj.Gate('b')))
  >>> costs = Costs('params', space, gates=(10.0, 30.0), fixed=60.0)
  >>> Budget('params', 0.8).limit(costs), Budget('params', 75).limit(costs)
  (80.0, 75.0)
  >>> Budget('params', 0.5, of='gates').limit(costs)  # half of the 40 that gates switch
  80.0

  Attributes:
    kind: one of `KINDS`.
    most: a share of what all-on costs, up to 1; above 1 that many parameters or FLOPs. For latency
      a share, or `absolute` seconds.
    of: what a share is of: 'network', or 'gates', what the gates alone switch, such as the body of
      a language model without its embedding.
    absolute: whether `most` is a cost even up to 1.
  """

  kind: str
  most: float
  of: str = 'network'
  absolute: bool = False

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise UserError(f'cost {self.kind!r}: expected one of {", ".join(KINDS)}')
    if self.of not in ('network', 'gates'):
      raise UserError(f'budget of {self.of!r}: expected a share of the network or of the gates')
    number = isinstance(self.most, int | float) and not isinstance(self.most, bool)
    if not number or not 0 < self.most < float('inf'):
      raise UserError(
        f'budget {self.most!r}: expected a share of the {UNITS[self.kind]} of the full network, '
        'such as 0.6, or their number'
      )

  def limit(self, costs: Costs) -> float:
    """Returns the budget in the unit of the costs.

    Raises:
      UserError: where no structure is within it, with the cheapest one; and for costs of another
        kind.
    """
    if costs.kind != self.kind:
      raise UserError(f'budget in {self.kind}: expected costs in {self.kind}, not in {costs.kind}')
    full, cheapest = costs.full, costs.cheapest()
    limit = float(self.most)
    if self.most <= 1 and not self.absolute:
      base = costs.fixed if self.of == 'gates' else 0.0
      limit = base + self.most * (full - base)
    least = float(costs.of([cheapest])[0])
    if limit < least * (1 - 1e-9):
      raise UserError(
        f'budget {self.most:g}, {costs.told(limit)}: expected at least {least / full:.2g} of '
        f'{costs.told(full)}, which are those of the cheapest structure, {cheapest}, '
        f'{costs.told(least)}'
      )
    return limit


def within(
  costs: Costs, structures: Sequence[StructureLike] | Bool[np.ndarray, 'S n'], limit: float
) -> Bool[np.ndarray, 'S']:
  """Returns which structures cost no more than a limit, to rounding."""
  return costs.of(structures) <= limit * (1 + 1e-9)
