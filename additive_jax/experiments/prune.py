"""`prune`: the smaller network within a network, under a budget.

    pool (trained, or given) ─▶ structures within the budget, ranked ─▶ heal the best ─▶ cut

A study of two arms: `pool`, trained on random structures where no pool is given, and `healed`, a
short training of the chosen structure alone.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, PyTree

from additive_jax.compress import cutting
from additive_jax.compress.exported import export
from additive_jax.errors import UserError
from additive_jax.experiments.budget import Budget
from additive_jax.experiments.front import opened, run_study
from additive_jax.experiments.options import Options, refused
from additive_jax.experiments.prune_page import SHOWN, page
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.shared import shared_arm
from additive_jax.experiments.start import as_of_model
from additive_jax.experiments.stored import PREFIX, stored_scores, stored_table
from additive_jax.experiments.study import Arm, Result, Start, Study, Trained
from additive_jax.files.journal import Journal
from additive_jax.gates.networks import all_networks, num_networks
from additive_jax.gates.structure import Structure
from additive_jax.models.batch_norm import BATCH_STATS
from additive_jax.models.contract import check_pool
from additive_jax.parallel import processes
from additive_jax.report.statistics import rank
from additive_jax.run.recalibration import recalibrate, variables_with_statistics
from additive_jax.search import Search
from additive_jax.train.state import init_state
from additive_jax.transplant.growth import Receipt
from additive_jax.transplant.restore import Checkpoints

POOL, HEALED = 'pool', 'healed'
ENUMERATED = 4096  # up to so many networks all within the budget are ranked
SEARCHED, POPULATION = 1024, 64  # of more, so many are evaluated
RECEIPT = 64  # examples that the receipt is of


@dataclasses.dataclass(frozen=True)
class Pruned:
  """A smaller network, and how it was found.

  Attributes:
    model: a plain Flax module without gates; `model.apply(variables, x)` gives the outputs.
    variables: `{'params': its parameters}`.
    structure: that it is of the network.
    before, unhealed, after: test scores, FLOPs and parameters: whole, unhealed and healed.
    receipt: how far its outputs are from those of the structure in the healed pool.
    result: of the run; `result.candidates` has a row for each structure that was ranked, best
      first.
    cut: what was cut out, see `compress.cutting.Cut`.
  """

  model: Any
  variables: PyTree
  structure: Structure
  before: dict[str, float]
  unhealed: dict[str, float]
  after: dict[str, float]
  receipt: Receipt
  result: Result
  cut: cutting.Cut = dataclasses.field(repr=False)

  def export(self, directory: str | Path) -> Path:
    """Writes the network as files that stand alone, see `additive_jax.export.load`.

    Args:
      directory: must not exist yet.
    """
    scores = {name: getattr(self, name) for name in SHOWN}
    notes = {'receipt': dataclasses.asdict(self.receipt), 'scores': scores}
    return export(self.cut, directory, notes=notes)


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
  4,096 and a searched thousand of more, by `task.rank_by`. The best one is trained a little on its
  own. Scores that are reported are of the test split.

  Args:
    model, data: as of `sweep`.
    variables: `{'params': pool}` to prune; None trains one on random structures for `epochs`.
    budget: share of what the full network costs, up to 1; above 1 that many of the unit.
    cost: the unit, 'flops' of an example's forward pass or 'params'.
    heal_epochs: passes over the training set that the chosen structure is trained for.
    workdir: the run directory; None is `runs/prune-<hash>`.
    options: as of `sweep`.

  Raises:
    UserError: for a budget that no structure meets, variables that are not the model's, and so on.
  """
  limit = Budget(budget, cost)
  if not isinstance(heal_epochs, int | float) or not 0 <= heal_epochs < float('inf'):
    raise UserError(f'heal_epochs {heal_epochs!r}: expected passes over the training set, or 0')
  if isinstance(model, str):
    raise UserError(f'model {model!r}: expected an additive network')
  config, opening = opened('prune', model, data, options, _check_seeds, num_seeds=1)
  data = opening['data']
  x = data.test[np.arange(min(RECEIPT, len(data.test)))][0]
  if variables is not None:
    check_pool(model, variables_with_statistics(model, variables, x), x)
    variables = {**variables, 'params': as_of_model(variables['params'], model, x)}
  task = _Task(limit, float(heal_epochs), variables)
  opening.setdefault('name', f'prune-{task.digest}')
  study = Study('prune', task.stages, check=task.check, tables=task.tables, page=page)
  result = run_study(study, config, workdir, opening)
  task.check_same(result.summary['task'], result.summary['workdir'])
  healed = variables
  if heal_epochs or healed is None:
    name = f'{HEALED if heal_epochs else POOL}-seed{config.seed}'
    folder = Path(result.summary['workdir'], 'checkpoints', name)
    healed = Checkpoints(folder, model).read(x).variables
  (healed,) = recalibrate(model, healed, [result.summary['structure']], data.train)
  return _cut_out(model, healed, result, x)


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


@dataclasses.dataclass(frozen=True, eq=False)
class _Task:
  """What is pruned to what.

  Attributes:
    budget: the most that the structure may cost.
    heal_epochs: of the chosen structure.
    given: the pool, or None.
  """

  budget: Budget
  heal_epochs: float
  given: PyTree | None

  @functools.cached_property
  def digest(self) -> str:
    """Names what is no option: another one is another run."""
    crc = zlib.crc32(f'{self.budget} {self.heal_epochs}'.encode())
    for leaf in jax.tree.leaves(self.given):
      crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
    return f'{crc:08x}'

  def check(self, session: Session) -> None:
    """Everything that can be said before any training."""
    session.machine.check_networks([session.model])
    self.budget.limit(session)
    for line in _journal(session).sound():
      self.check_same(line['task'], session.rundir.path)
    if self.given is None:
      shared_arm(session, POOL, session.config.train.epochs)

  def check_same(self, digest: str, path: str | Path) -> None:
    """Raises `UserError` for a run of another task."""
    if digest != self.digest:
      raise UserError(f'{path} is of another budget, healing or pool: choose another workdir')

  def stages(self, session: Session, records: Records) -> Iterator[list[Arm]]:
    """The pool, unless it is given, and the healing of the best structure within the budget."""
    del records
    variables = self.given
    if variables is None:
      arm = shared_arm(session, POOL, session.config.train.epochs)
      yield [arm]
      variables = arm.train(session.config.seed).variables
    structure = self.chosen(session, variables)
    alone = session.with_options({'train.structures_per_step': 1})
    steps = alone.training.steps(self.heal_epochs) if self.heal_epochs else 0
    recipe = alone.training.recipe(max(steps, 1))
    pool = {name: variables[name] for name in ('params', BATCH_STATS) if name in variables}

    def judge(trained: Trained) -> dict[str, Any]:
      return {
        'structure': str(structure),
        **_scores(session, trained.variables, structure),
        'before': _scores(session, pool, session.space.all_on()),
        'unhealed': _scores(session, pool, structure),
        'skipped': trained.skipped,
      }

    start = Start(state=init_state(recipe, pool))
    sampler = alone.training.sampler_of(structure)
    yield [Arm(HEALED, alone, recipe, sampler, steps, start=lambda seed: start, judge=judge)]

  def chosen(self, session: Session, variables: PyTree) -> Structure:
    """Returns the structure of lowest loss on the split to choose by within the budget; written
    down, so that a run goes on with it."""
    journal = _journal(session)
    for line in journal.sound():
      return session.space.parse(line['best'][0]['structure'])
    bits, cost = self.ranked(session, variables)
    score = session.task.rank_by
    flops, params = session.space.costs(bits)
    table = pd.DataFrame({'structure': [str(Structure(tuple(row))) for row in bits]})
    table[score] = session.task.sign(score) * cost
    stored = stored_scores(session, variables, bits, session.valid)
    if (name := f'{PREFIX}{score}') in stored:
      table[name] = stored[name]
    table['flops'], table['params'], table['rank'] = flops, params, rank(cost)
    best = table.sort_values('rank').to_dict('records')
    if processes.is_primary():
      journal.append({'task': self.digest, 'split': session.chosen_on, 'best': best})
    return session.space.parse(best[0]['structure'])

  def ranked(
    self, session: Session, variables: PyTree
  ) -> tuple[Bool[np.ndarray, 'S n'], Float[np.ndarray, 'S']]:
    """Returns structures within the budget and their scores, lower is better."""
    space, limit = session.space, self.budget.limit(session)
    task = session.task
    judged = lambda bits: task.cost(session.evaluate(variables, bits, session.valid).scores)
    if num_networks(space) <= ENUMERATED:
      bits = all_networks(space)
      bits = bits[self.budget.costs(session, bits) <= limit]
      return bits, judged(bits)
    order = self.least_harm(session, judged)
    tried: dict[bytes, float] = {}

    def evaluate(bits):
      session.check_stop()
      bits = self.within(session, bits, order, limit)
      costs = judged(bits)
      tried.update(zip((row.tobytes() for row in bits), costs.tolist()))
      return costs

    evaluate(np.ones((1, space.num_gates), bool))  # the greedy one
    Search('evolution', SEARCHED, POPULATION, session.config.seed).run(evaluate, space)
    bits = np.array([np.frombuffer(row, bool) for row in tried])
    return bits, np.array(list(tried.values()))

  def least_harm(self, session: Session, judged: Any) -> list[int]:
    """Returns the gates that save something, least harm for what they save first: by the loss with
    that gate alone off."""
    n = session.space.num_gates
    bits = ~np.eye(n + 1, n, -1, dtype=bool)  # all on, then each off
    loss, costs = judged(bits), self.budget.costs(session, bits)
    saved = costs[0] - costs[1:]
    harm = np.where(saved > 0, (loss[1:] - loss[0]) / np.maximum(saved, 1e-9), np.inf)
    return [int(gate) for gate in np.argsort(harm, kind='stable') if saved[gate] > 0]

  def within(
    self, session: Session, bits: Bool[np.ndarray, 'S n'], order: list[int], limit: float
  ) -> Bool[np.ndarray, 'S n']:
    """Returns structures with gates off, in order, as many as the budget needs."""
    bits = bits.copy()
    for gate in order:
      over = self.budget.costs(session, bits) > limit
      if not over.any():
        break
      bits[over, gate] = False
    over = self.budget.costs(session, bits) > limit
    bits[over] = False
    return bits

  def tables(self, session: Session, records: Records) -> Result:
    """Returns the candidates, the full network beside the chosen one, and the summary."""
    (record,), space = records[HEALED], session.space
    chosen, full = space.parse(record['structure']), space.all_on()
    scores = record['unhealed']
    rows: dict[str, dict[str, Any]] = {}
    for name, structure, values in (
      ('before', full, record['before']),
      ('unhealed', chosen, record['unhealed']),
      ('after', chosen, {key: record[key] for key in scores}),
    ):
      costs = {'flops': space.flops(structure), 'params': space.params(structure)}
      rows[name] = {'structure': str(structure)} | values | costs
    (line,) = _journal(session).sound()
    frame = pd.DataFrame(rows.values())
    frame.insert(0, 'network', list(rows))
    summary = {'structure': record['structure'], 'chosen_on': line['split'], **rows}
    summary |= {'budget': self.budget.most, 'cost': self.budget.unit}
    summary |= {'task': self.digest, 'workdir': str(session.rundir.path.absolute())}
    candidates = pd.DataFrame(line['best'])
    tables = {'candidates': candidates, 'networks': frame}
    both = {POOL: {str(name): [values] for name, values in candidates.items()}}
    return Result(tables | stored_table(session.task, both), summary)


def _journal(session: Session) -> Journal:
  return Journal(session.rundir.journals / 'choice.jsonl')


def _scores(session: Session, variables: PyTree, structure: Structure) -> dict[str, float]:
  """Returns the test scores of a structure in a pool."""
  scores: dict[str, Any] = {**session.evaluate(variables, [structure]).scores}
  scores |= stored_scores(session, variables, np.array([structure.bits]))
  return {key: float(values[0]) for key, values in scores.items()}
