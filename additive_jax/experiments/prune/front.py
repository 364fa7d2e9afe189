"""`prune` as a call."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from additive_jax.compress import cutting
from additive_jax.compress.exported import export
from additive_jax.errors import UserError
from additive_jax.experiments.front import opened, run_study
from additive_jax.experiments.options import Options, refused
from additive_jax.experiments.prune.study import STUDY
from additive_jax.experiments.prune.tables import SHOWN, coded, healed_pool, receipt_input
from additive_jax.experiments.study import Result
from additive_jax.gates.structure import Structure
from additive_jax.transplant.growth import Receipt


@dataclasses.dataclass(frozen=True)
class Pruned:
  """A smaller network, and how it was found.

  Attributes:
    model: a plain Flax module without gates; `model.apply(variables, x)` gives the outputs.
    variables: `{'params': its parameters}`.
    structure: that it is of the network.
    before, unhealed, after: test scores, FLOPs, parameters and seconds of an example: whole,
      unhealed and healed.
    receipt: how far its outputs are from those of the structure in the healed pool.
    result: of the run; `result.candidates` has a row for each structure that was ranked, best
      first, and see `experiments.prune`.
    cut: what was cut out, see `compress.cutting.Cut`.
    coding: of the data, which the files have too; None where it has none.
    pretrained: the network that it is of, with the healed pool; None of one's own.
  """

  model: Any
  variables: PyTree = dataclasses.field(repr=False)
  structure: Structure
  before: dict[str, float]
  unhealed: dict[str, float]
  after: dict[str, float]
  receipt: Receipt
  result: Result = dataclasses.field(repr=False)
  cut: cutting.Cut = dataclasses.field(repr=False)
  coding: Any = dataclasses.field(default=None, repr=False)
  pretrained: Any = dataclasses.field(default=None, repr=False)

  def export(
    self, directory: str | Path, *, overwrite: bool = False, dtype: str | None = None
  ) -> Path:
    """Writes the network as files that stand alone, see `additive_jax.export.load`; of a pretrained
    one as a directory that transformers opens, see `pretrained.export`.

    Args:
      directory: must not exist yet, or with `overwrite` may hold a network that was exported.
      overwrite: whether that is replaced.
      dtype: of a pretrained network, see `pretrained.export`; None is that of the run's own export.

    Raises:
      UserError: for a dtype of a network of one's own, whose files have that of its parameters.
    """
    if self.pretrained is not None:
      from additive_jax.pretrained import export as export_pretrained

      dtype = dtype or self.result.summary.get('dtype')
      options: Any = {'overwrite': overwrite, 'dtype': dtype}
      export_pretrained(self.pretrained, self.structure, directory, **options)
      return Path(directory)
    if dtype is not None:
      raise UserError(f'dtype {dtype!r} of a network of your own: expected None')
    scores = {name: getattr(self, name) for name in SHOWN}
    notes = {'receipt': dataclasses.asdict(self.receipt), 'scores': scores}
    return export(self.cut, directory, notes=notes | coded(self.coding), overwrite=overwrite)


def prune(
  model: Any,
  data: Any,
  variables: PyTree | None = None,
  *,
  budget: float = 0.6,
  cost: str = 'flops',
  heal_epochs: float = 2.0,
  workdir: str | Path | None = None,
  **options: Any,
) -> Pruned:
  """Returns the best smaller network within a network, under a budget, healed and cut out.

      pruned = aj.prune(Net(10), (x, y), budget=0.6)
      pruned.model.apply(pruned.variables, x)
      pruned.export('small')

  The structures within the budget are ranked in the pool on the validation split, all of them up to
  4,096 and those that `method` finds of more, by `task.rank_by`. The best `candidates` are trained
  a little together, taught by the full network, and ranked again. Scores that are reported are of
  the test split.

  Args:
    model, data: as of `sweep`; or in place of a model what `pretrained.load` gives.
    variables: `{'params': pool}` to prune; None trains one on random structures for `epochs`.
    budget: share of what the full network costs, up to 1; above 1 that many of the unit.
    cost: the unit: 'flops' of an example's forward pass, 'params', or 'latency', seconds of an
      example's forward pass, measured on this device.
    heal_epochs: passes over the training set that the chosen structures are trained for.
    workdir: the run directory; None is `runs/prune-<hash>`.
    options: as of `sweep`; those of `config.prune`: `method`, `candidates`, `teacher`, ….

  Raises:
    UserError: for a budget that no structure meets, variables that are not the model's, and so on.
  """
  if isinstance(model, str):
    raise UserError(f'model {model!r}: expected an additive network')
  pretrained = _pretrained(model)
  if pretrained is not None:
    variables = pretrained.variables if variables is None else variables
    model = pretrained.model
  chosen = {'budget': budget, 'cost': cost, 'heal_epochs': heal_epochs} | options
  if variables is not None:
    chosen['variables'] = variables
  if pretrained is not None:
    chosen['pretrained'] = pretrained
  config, opening = opened('prune', model, data, chosen, _check_seeds, num_seeds=1)
  result = run_study(STUDY, config, workdir, opening)
  data = opening['data']
  folder, structure = Path(result.summary['workdir'], 'checkpoints'), result.summary['structure']
  given = None if variables is None else {'params': variables['params']}
  healed = healed_pool(folder, model, data, config.seed, structure, given)
  cut_out = _cut_out(model, healed, result, receipt_input(data))
  if pretrained is not None:
    pretrained = dataclasses.replace(pretrained, variables=healed)
  return dataclasses.replace(cut_out, coding=data.coding, pretrained=pretrained)


def _pretrained(model: Any) -> Any:
  """Returns what was given, where it is a pretrained network and no module."""
  if isinstance(model, nn.Module):
    return None
  from additive_jax.pretrained import Pretrained

  return model if isinstance(model, Pretrained) else None


def _check_seeds(config: Options) -> None:
  if config.num_seeds != 1:
    raise refused(config, 'num_seeds', expected='1, since one network is pruned')


def _cut_out(model: Any, healed: PyTree, result: Result, x: Any) -> Pruned:
  """Returns the chosen structure of a run without the rest."""
  smaller = cutting.cut(model, healed, result.summary['structure'], x=x)
  before, unhealed, after = (result.summary[name] for name in SHOWN)
  return Pruned(
    model=smaller.model,
    variables=smaller.variables,
    structure=smaller.structure,
    before=before,
    unhealed=unhealed,
    after=after,
    receipt=cutting.receipt(smaller, model, healed, x),
    result=result,
    cut=smaller,
  )
