"""Every structure trained alone: journalled, sharded over processes, halved in rungs."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pandas as pd

from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal, read_all
from additive_jax.files.progress import Progress
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes
from additive_jax.report import statistics
from additive_jax.run.evaluate import Evaluation

log = logging.getLogger('additive_jax')


@dataclasses.dataclass(frozen=True)
class Standalone:
  """What training alone gave.

  Attributes:
    records: journal records by (seed, structure, rung); one rung without successive halving.
    seeds: in order.
    num_rungs: rungs.
  """

  records: dict
  seeds: list[int]
  num_rungs: int

  def last_rung(self, structure: str) -> int:
    """The last rung that `structure` was trained to, −1 for none."""
    reached = (r for r in range(self.num_rungs) if (self.seeds[0], structure, r) in self.records)
    return max(reached, default=-1)

  def by_seed(self, structures: list[str]) -> Evaluation:
    """Loss and accuracy [seeds, S] at each structure's last rung; NaN where not trained."""
    return Evaluation(*(self._values(structures, key) for key in ('loss', 'accuracy')))

  def first_rung(self, structures: list[str]) -> np.ndarray:
    """Loss [seeds, S] after the first rung, which all structures reach."""
    return self._values(structures, 'loss', 0)

  @property
  def table(self) -> pd.DataFrame:
    """One row per trained structure: means over seeds at its last rung."""
    structures = sorted({structure for _, structure, _ in self.records})
    values = self.by_seed(structures)
    table = pd.DataFrame({'structure': structures})
    table['loss'], table['loss_ci95'] = statistics.mean_and_ci(values.loss)
    table['accuracy'], table['accuracy_ci95'] = statistics.mean_and_ci(values.accuracy)
    table['train_loss'] = statistics.mean_and_ci(self._values(structures, 'train_loss'))[0]
    table['steps'] = self._values(structures, 'steps')[0].astype(int)
    table['skipped'] = self._values(structures, 'skipped').sum(0).astype(int)
    return table

  def _values(self, structures, key, rung=None):
    def value(seed, structure):
      record = self.records.get(
        (seed, structure, self.last_rung(structure) if rung is None else rung)
      )
      return record[key] if record else np.nan

    return np.array([[value(seed, s) for s in structures] for seed in self.seeds], float)


def train_standalone(
  session: Session, structures: list[Structure], shard: int = 0, num_shards: int = 1
) -> Standalone | None:
  """Trains every structure from the same init, on the same examples in the same order, per seed.

  Successive halving (`config.sweep.halving` η, `config.sweep.rungs` R): rung r ends at step
  steps·η^(r+1−R); the 1/η structures of lowest mean loss over the seeds go on to the next. Source:
  Jamieson & Talwalkar 2016 (arXiv:1502.07943).

  Args:
    structures: which.
    shard, num_shards: this process trains every num_shards-th of the work, from `shard` on.

  Returns:
    What was found, or None as long as other shards' parts are missing.
  """
  halving, num_steps = session.config.sweep.halving, session.steps(session.config.train.epochs)
  num_rungs = session.config.sweep.rungs if halving else 1
  trainees = _Trainees(session, num_steps, shard, num_shards)
  for rung in range(num_rungs):
    stop = max(1, round(num_steps * halving ** (rung + 1 - num_rungs))) if halving else num_steps
    units = [(seed, structure) for seed in session.seeds for structure in structures]
    trainees.train(units[shard::num_shards], rung, stop)
    processes.barrier(f'standalone rung {rung}')
    session.check_stop()
    records = read_records(session)
    missing = sum((seed, str(structure), rung) not in records for seed, structure in units)
    if missing:
      log.info('%d of %d trainings are left to other shards', missing, len(units))
      return None
    if rung + 1 < num_rungs:
      found = Standalone(records, session.seeds, rung + 1)
      loss = found.by_seed([str(structure) for structure in structures]).loss.mean(0)
      best = np.argsort(statistics.rank(loss))[: max(1, len(structures) // halving)]
      structures = [structures[i] for i in sorted(best)]
  return Standalone(records, session.seeds, num_rungs)


def read_records(session: Session) -> dict:
  """All journalled trainings of the run, by (seed, structure, rung)."""
  records = read_all(session.rundir.journals, 'standalone-*.jsonl')
  return {(r['seed'], r['structure'], r['rung']): r for r in records}


class _Trainees:
  """The networks that this process trains, with their states where a later rung goes on."""

  def __init__(self, session, num_steps, shard, num_shards):
    self.session = session
    self.recipe = session.recipe(num_steps)
    self.journal = Journal(session.rundir.journals / f'standalone-{shard}-of-{num_shards}.jsonl')
    self.populations = {}
    self.states = {}

  def train(self, units, rung, stop):
    """Trains those (seed, structure) pairs that no journal has yet, up to step `stop`."""
    records, config = read_records(self.session), self.session.config
    going_on = set(units)
    self.states = {unit: state for unit, state in self.states.items() if unit in going_on}
    missing = [(seed, s) for seed, s in units if (seed, str(s), rung) not in records]
    title = f'standalone rung {rung}' if config.sweep.halving else 'standalone'
    bar = Progress(len(units), title, unit='structure', start=len(units) - len(missing))
    with bar as progress:
      for seed in sorted({seed for seed, _ in missing}):
        population = self.populations.get(seed) or self.session.population(self.recipe, seed)
        self.populations[seed] = population
        for start, group in self._by_start(seed, [s for other, s in missing if other == seed]):
          states = {s: self.states[seed, s][1] for s in group} if start else None
          for member in population.train(group, stop, states=states, start=start):
            if config.sweep.halving:
              self.states[seed, member.structure] = stop, processes.to_host(member.state)
            self.journal.append(_record(seed, rung, stop, member))
            progress.advance(1, loss=member.loss)
            if self.session.stopper.stop_requested:
              return

  def _by_start(self, seed, structures):
    """Structures grouped by the step to go on from; what another process began starts at 0."""
    starts = [self.states.get((seed, s), (0, None))[0] for s in structures]
    for start in sorted(set(starts)):
      yield start, [s for s, own in zip(structures, starts) if own == start]


def _record(seed, rung, stop, member):
  return {
    'seed': seed,
    'structure': str(member.structure),
    'rung': rung,
    'steps': stop,
    'loss': member.loss,
    'accuracy': member.accuracy,
    'train_loss': member.train_loss,
    'skipped': member.skipped,
  }
