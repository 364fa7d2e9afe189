"""The one loop of all experiments. A study is data, and `Study.run` runs it.

The heart of a study is a generator: from the open run it yields arms, ways of training, a stage at
a time. For every seed the loop trains the arms that have no record yet, judges them, and appends
what they scored to the journal. Then the generator goes on, and may look at these records. Tables,
page and summary come last:

    arms ──▶ fit, judge ──▶ journal ──▶ more arms ──▶ … ──▶ tables ──▶ page, summary

A run that was killed goes on with the first arm that has no record, from its newest checkpoint.

A study of one's own needs a name and its arms; see `docs/own_study.md`:

    def stages(session, records):
      steps = session.training.steps(session.config.train.epochs)
      yield [Arm(n, session, session.training.recipe(steps), sampler, steps) for n, sampler in ...]

    result = Study('samplers', stages).run(config, workdir)
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd
from ml_collections import ConfigDict

from additive_jax.experiments import averages, stored
from additive_jax.experiments.explored import explored
from additive_jax.experiments.left_out import check_scores, of_run, said
from additive_jax.experiments.noted import check_same
from additive_jax.experiments.opening import Opening, open_session
from additive_jax.experiments.options import (
  Options,
  named,
  read_options,
  refused,
  replaced,
)
from additive_jax.experiments.pages import finished_page, plain_page, warn_of_lost_points
from additive_jax.experiments.records import Incomplete, Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.speed import speeds
from additive_jax.experiments.stage_cost import check_stage
from additive_jax.experiments.tables import plain_tables
from additive_jax.files.programs import kept_programs
from additive_jax.files.rundir import RunDir
from additive_jax.files.runs import noting_failure
from additive_jax.files.showing import shown
from additive_jax.parallel import processes
from additive_jax.report.page import Page
from additive_jax.report.wording import counted

log = logging.getLogger('additive_jax')

PAGE = 'report.html'


@dataclasses.dataclass(frozen=True)
class Result:
  """What a study gave; every part is also a file of the run directory.

  Each table is an attribute: `result.variants` is `variants.csv`. `result.table` is the table of
  structures, `structures.csv`, best first.

  Attributes:
    tables: pandas frames by name.
    summary: the headline figures (`summary.json`).
    extras: what only the page shows, by name; no file has it.
    complete: False for one shard of several, which leaves only its journal; its tables are empty.
  """

  tables: dict[str, pd.DataFrame]
  summary: dict[str, Any]
  extras: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)
  complete: bool = True

  def __getattr__(self, name: str) -> pd.DataFrame:
    tables = self.__dict__.get('tables', {})
    if not self.__dict__.get('complete', True) and not name.startswith('_'):
      return pd.DataFrame()
    key = 'structures' if name == 'table' else name
    if key not in tables:
      raise AttributeError(f'{name!r} of a result: expected one of {", ".join(tables)}')
    return tables[key]

  @property
  def agreement(self) -> dict[str, Any]:
    """How well a sweep's shared pool ranks the standalone losses; empty where not both ran."""
    return self.summary.get('shared_against_standalone', {})

  @classmethod
  def read(cls, rundir: RunDir) -> Result:
    """Returns the result of a finished run."""
    summary, tables = rundir.read_finished()
    return cls(tables, summary)


@dataclasses.dataclass(frozen=True)
class Study:
  """An experiment as data.

  Attributes:
    name: of its journal, and of the experiment in the summary.
    stages: a generator of (session, records) that yields lists of arms, those of a list of one
      kind. When it goes on, `records` has what they scored.
    check: raises `UserError` for what the study cannot do; called before anything is written.
    tables: a function (session, records) → `Result`; by default a row for each arm, compared with
      the baseline.
    page: a function (session, result, records) → `Page`.
    baseline: the arm that the default tables compare the others with; '' is the first.
    sharded: whether `config.shard` may leave a part of the arms to other processes.
  """

  name: str
  stages: Callable[[Session, Records], Iterable[Sequence[Any]]]
  check: Callable[[Session], None] = lambda session: None
  tables: Callable[[Session, Records], Result] | None = None
  page: Callable[[Session, Result, Records], Page] = plain_page
  baseline: str = ''
  sharded: bool = False

  def run(
    self,
    config: ConfigDict | Options,
    workdir: str | Path | None = None,
    **opening: Unpack[Opening],
  ) -> Result:
    """Runs the study, or goes on with it, and writes its run directory.

    Args:
      config: as in `configs/default.py`.
      workdir: the run directory; None is `runs/<name>-<hash of the config>`.
      opening: what else may be given, see `opening.Opening`.

    Raises:
      UserError: for options that make no sense; nothing has been written then.
      Stopped: when the run was asked to stop; the same call goes on.
    """
    options = replaced(read_options(config), {'experiment': self.name})
    if options.shard and not self.sharded:
      raise refused(options, 'shard', expected='none, a pool is trained as one')
    session_of = open_session(options, workdir, check=self.check, **opening)
    progress = shown(opening.get('progress', True))
    with progress, kept_programs(), named(options), session_of as session:
      if session.rundir.finished:
        log.info('%s is finished: %s', session.rundir.path, session.rundir.path / PAGE)
        return Result.read(session.rundir)
      with noting_failure(session.rundir.path, session.rundir.primary), named(options):
        return self._train(session, options.shard)

  def _train(self, session: Session, shard: str) -> Result:
    """Trains what is missing, and writes the results unless other shards have to go on."""
    records = Records(session.rundir, self.name, session.seeds, session.task.scores)
    try:
      for arms in self.stages(session, records):
        records.arms |= {arm.name: arm for arm in arms}
        check_same(session, self.name, arms)
        train_missing(session, arms, records)
    except Incomplete:
      if session.shard[1] == 1:
        raise
    if session.shard[1] > 1:
      log.info('shard %s is done; run again without config.shard to merge', shard)
      return Result({}, {}, complete=False)
    return self._write(session, records)

  def _write(self, session: Session, records: Records) -> Result:
    """Writes the tables, the page, and last the summary: the run is finished."""
    rundir, seeds = session.rundir, len(session.seeds)
    make = self.tables or (lambda s, r: Result(*plain_tables(s, r, self.baseline)))
    result = make(session, records)
    head = {'experiment': self.name, 'data': session.data.name, 'num_seeds': seeds}
    head |= {'chosen_on': session.chosen_on, 'reported_on': 'test'}
    if units := session.data.target_units:
      head['target_units'] = units
    result = dataclasses.replace(result, summary=head | result.summary)
    warn_of_lost_points(session, records)
    tables, figures, of_means = averages.parts(records, session.task.scores)
    of_stored, last = stored.parts(result.tables)
    summary, tables = result.summary | of_stored | figures, result.tables | tables
    result = dataclasses.replace(result, summary=summary, tables=tables)
    note = said(of_run(session, records))
    page = self.page(session, result, records)
    page = finished_page(session, page, note, (last, of_means), explored(session, result))
    for name, table in result.tables.items():
      rundir.write_table(f'{name}.csv', table)
    rundir.write_text(PAGE, page)
    rundir.write_json('speed.json', speeds(session))
    rundir.mark_finished(result.summary, [*(f'{name}.csv' for name in result.tables), PAGE])
    processes.barrier('written')
    log.info('report: %s', rundir.path / PAGE)
    return Result.read(rundir)


def train_missing(session: Session, arms: Sequence[Any], records: Records) -> None:
  """Trains and judges, for every seed, the arms that have no record; adds a record of each.

  One shard of several does every so many of them, and processes that share arms out likewise; what
  they leave to each other is read from the journals when all have done their part.
  """
  if not (units := [(seed, arm) for seed in session.seeds for arm in arms]):
    return
  kind, part = arms[0], session.shard
  if kind.spread and part[1] == 1:
    part = processes.process()
  share = units[part[0] :: part[1]]
  missing = [(seed, arm) for seed, arm in share if not records.get(arm.name, seed)]
  check_stage(session, missing)
  for seed, arm, values in kind.train_all(missing, len(share)):
    check_scores(arm.name, seed, values, getattr(arm, 'may_diverge', False))
    write = kind.spread or processes.is_primary()
    records.append(arm.name, seed, values, part=part, write=write)
  if kind.spread:
    processes.barrier(f'{arms[0].name} to {arms[-1].name}')
    session.check_stop()
    records.read()
  others = sum(not records.get(arm.name, seed) for seed, arm in units)
  if others:
    log.info('%d of %s are left to other shards', others, counted(len(units), 'training'))
