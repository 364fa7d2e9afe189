"""What single gates do: by switching each off alone, and from any set that was evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, PyTree
from numpy.typing import ArrayLike

from additive_jax.errors import UserError
from additive_jax.gates.structure import Space, StructureLike, bits_of
from additive_jax.models.additive import space_of
from additive_jax.run.tasks import Task, task_of
from additive_jax.search.budgeted import batch_of
from additive_jax.search.evaluator import PoolEvaluator
from additive_jax.search.path import Path
from additive_jax.search.sparse import Fit, fit


@dataclasses.dataclass(frozen=True, eq=False)
class Contributions:
  """What each gate contributes to all-on.

  >>> found = Contributions(('a', 'b'), loss=1.0, without=np.array([1.5, 0.9]))
  >>> found.delta.round(3).tolist(), found.table['gate'].tolist()  # the least needed first
  ([0.5, -0.1], ['b', 'a'])

  Attributes:
    names: of the gates.
    loss: of all-on.
    without: the loss with each gate alone off.
  """

  names: tuple[str, ...]
  loss: float
  without: Float[np.ndarray, ' n']

  @property
  def delta(self) -> Float[np.ndarray, ' n']:
    """By how much the loss grows when each gate alone is off: above zero where it helps."""
    return self.without - self.loss

  @property
  def table(self) -> pd.DataFrame:
    """A row for each gate, the least needed first: `gate`, `loss` without it, `delta`."""
    columns = {'gate': self.names, 'loss': self.without, 'delta': self.delta}
    return pd.DataFrame(columns).sort_values('delta', kind='stable', ignore_index=True)


def leave_one_out(
  model: nn.Module,
  variables: PyTree,
  data: Any,
  *,
  task: str | Task = 'classification',
  batch_size: int = 256,
  recalibrate: Any = None,
) -> Contributions:
  """Returns what each of n gates contributes: the loss of all-on, and with each gate alone off.

  With the loss L(s) of structure s, `delta[i] = L(1 − e_i) − L(1)`. The n + 1 structures share
  their first sites, so about half of them run: n²/2 + n site passes in place of n².

  >>> model = aj.models.MLP(num_blocks=3, width=4, hidden=8, num_classes=3)
  >>> x, y = np.ones((5, 6), 'f'), np.zeros(5, np.int32)
  >>> leave_one_out(model, model.init(jax.random.key(0), x), (x, y)).delta.shape
  (3,)

  Args:
    model: an additive network of n gates.
    variables: `{'params': pool}`.
    data: as `search` takes it: (x [N, ...], y [N, ...]), a split in memory, or a `data.Data`.
    task, batch_size, recalibrate: as `evaluate_structures` takes them; what is compared is
      `task.rank_by`, lower is better.

  Raises:
    UserError: as `evaluate_structures`.
  """
  evaluate = PoolEvaluator(model, variables, batch_of(data), task_of(task), batch_size, recalibrate)
  n = space_of(model).num_gates
  losses = evaluate(~np.eye(n + 1, n, -1, dtype=bool))  # all on, then each off
  return Contributions(space_of(model).names, float(losses[0]), losses[1:])


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """How well a model of the loss predicts structures that it was not fitted to, by five-fold
  cross-validation.

  Attributes:
    structures: how many were predicted.
    rmse: the root of the mean squared error, in the unit of the loss.
    r2: the share of the variance that is predicted; 1 is all, below 0 worse than the mean.
    tau: Kendall's, between predicted and evaluated.
  """

  structures: int
  rmse: float
  r2: float
  tau: float


@dataclasses.dataclass(frozen=True, eq=False)
class Effects:
  """Main effects and interactions of gates, and how far to trust them.

  Attributes:
    names: of the gates.
    main: [n] the mean loss with the gate on less that with it off, over all 2^n structures as the
      model has them; negative where the gate helps.
    alone: [n] by how much the loss grows when that gate alone is off in all-on.
    interactions: [n, n] the difference of differences, L(11) − L(10) − L(01) + L(00): positive
      where two gates can stand in for each other. NaN for pairs that no model of `order` 1 has.
    held_out: the receipt; None of fewer than ten structures.
    model: predicts the loss of any structure.
  """

  names: tuple[str, ...]
  main: Float[np.ndarray, ' n']
  alone: Float[np.ndarray, ' n']
  interactions: Float[np.ndarray, 'n n'] = dataclasses.field(repr=False)
  held_out: HeldOut | None
  model: Fit = dataclasses.field(repr=False)

  def predict(self, structures: Iterable[StructureLike]) -> Float[np.ndarray, ' S']:
    """Returns the modelled losses of structures."""
    return self.model.predict(bits_of(structures, len(self.names)))

  @property
  def table(self) -> pd.DataFrame:
    """A row for each gate, in order: `gate`, `main`, `alone`."""
    return pd.DataFrame({'gate': self.names, 'main': self.main, 'alone': self.alone})


def effects(
  structures: Path | Iterable[StructureLike] | Bool[np.ndarray, 'S n'],
  losses: ArrayLike | None = None,
  *,
  gates: Space | Sequence[str] | int | None = None,
  order: int = 2,
) -> Effects:
  """Returns main effects and interactions of gates from any set of structures that was evaluated.

  Fits `L(s) = c + Σ_i a_i·u_i + Σ_{i<j} b_ij·u_i·u_j` with u = 1 − s, whether each gate is off: by
  least squares where there are more structures than terms, else by the lasso, which sets most b to
  zero. Then `main[i] = −(a_i + ½·Σ_j b_ij)`, `interactions = b`. Of a table of all 2^n structures
  these are the averages over it (Walsh and Hadamard), to second order.

  A fit speaks of the region that it was made in: `held_out` says how well there. A gate, or a pair,
  that no structure of the set has off has effect 0.

  >>> space = aj.Space((aj.Gate('a'), aj.Gate('b')))
  >>> found = effects(['11', '01', '10', '00'], [1.0, 1.5, 1.2, 2.0], gates=space)
  >>> found.alone.round(3).tolist(), found.main.round(3).tolist()
  ([0.5, 0.2], [-0.65, -0.35])
  >>> round(float(found.interactions[0, 1]), 3), found.held_out is None
  (0.3, True)

  Args:
    structures: S structures in any form, bool [S, n], or the `Path` of a search, which has its
      losses.
    losses: [S], lower is better; what is not finite is left out.
    gates: a space, the names of the gates, or their number; None is known of bits and of a path.
    order: 2, or 1 for main effects alone.

  Raises:
    UserError: for another number of losses, or none that is finite.
  """
  if isinstance(structures, Path):
    if losses is not None:
      raise UserError('losses beside a path: expected None, as the path has its own')
    gates = structures.costs.space if gates is None else gates
    losses, structures = structures.losses, structures.bits
  if order not in (1, 2):
    raise UserError(f'order {order!r}: expected 1 or 2')
  bits, names = _bits(structures, gates)
  values = np.asarray(losses, float)
  if losses is None or values.shape != (len(bits),):
    given = 'no losses' if losses is None else f'losses of shape {values.shape}'
    raise UserError(f'{given} for {len(bits)} structures: expected one for each')
  model = fit(bits, values, order)
  finite = np.isfinite(values)
  held_out = _held_out(bits[finite], values[finite], order) if finite.sum() >= 10 else None
  pairs = model.pairs if order > 1 else np.full_like(model.pairs, np.nan)
  return Effects(names, model.main, model.alone, pairs, held_out, model)


def _bits(structures, gates) -> tuple[Bool[np.ndarray, 'S n'], tuple[str, ...]]:
  is_table = isinstance(structures, np.ndarray) and structures.ndim == 2
  if isinstance(gates, Space):
    names = gates.names
  elif gates is None or isinstance(gates, int):
    many = structures if is_table else list(structures)
    first = many[0] if len(many) else ()
    if gates is None and isinstance(first, int):
      raise UserError('structures as integers: expected gates=, their number')
    structures, count = many, len(first) if gates is None else gates
    names = tuple(f'gate_{i}' for i in range(count))
  else:
    names = tuple(gates)
  return bits_of(structures, len(names)), names


def _held_out(bits, values, order) -> HeldOut:
  """Predicts every fifth structure from the others, five times."""
  from additive_jax.report.rankings import kendall_tau

  fold = np.random.default_rng(0).permutation(len(bits)) % 5
  predicted = np.empty(len(bits))
  for k in range(5):
    predicted[fold == k] = fit(bits[fold != k], values[fold != k], order).predict(bits[fold == k])
  error = float(np.square(predicted - values).mean())
  variance = float(values.var())
  return HeldOut(
    structures=len(bits),
    rmse=error**0.5,
    r2=1 - error / variance if variance else float('nan'),
    tau=float(kendall_tau(predicted, values)),
  )
