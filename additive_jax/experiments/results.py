"""What every experiment does at its end: tables, a page and a summary, written and read back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from additive_jax.experiments.options import PLACEMENT
from additive_jax.experiments.session import Session, open_session
from additive_jax.files.rundir import RunDir, flatten
from additive_jax.parallel import processes
from additive_jax.report import statistics
from additive_jax.report.page import Page, details
from additive_jax.report.wording import counted

log = logging.getLogger('additive_jax')

PAGE = 'report.html'


def run_once(
  config: ConfigDict,
  workdir,
  *,
  work: Callable[[Session], Any],
  read: Callable[[RunDir], Any],
  **opening,
) -> Any:
  """What `work` gives of a session, or `read` of the directory where the run is finished.

  Args:
    config, workdir, opening: as `open_session` takes them.
  """
  with open_session(config, workdir, **opening) as session:
    rundir = session.rundir
    if not rundir.finished:
      return work(session)
    log.info('%s is finished: %s', rundir.path, rundir.path / PAGE)
    return read(rundir)


def write_results(
  session: Session, tables: dict[str, pd.DataFrame], summary: dict, page: Page
) -> None:
  """Writes the tables by name, the page, and last the summary: the run is finished."""
  rundir = session.rundir
  for name, table in tables.items():
    rundir.write_table(f'{name}.csv', table)
  rundir.write_text(PAGE, finished_page(session, page))
  rundir.mark_finished(summary)
  processes.barrier('written')
  log.info('report: %s', rundir.path / PAGE)


def read_results(rundir: RunDir, names: tuple[str, ...]) -> tuple[list[pd.DataFrame], dict]:
  """The tables of these names, and the summary, of a finished run."""
  tables = [rundir.read_table(f'{name}.csv') for name in names]
  return tables, rundir.read_json('summary.json')


def with_interval(name: str, values) -> dict[str, float]:
  """The mean of one value per seed [seeds], and as `<name>_ci95` half its 95 % interval."""
  mean, half_width = statistics.mean_and_ci(np.asarray(values, float)[:, None])
  return {name: mean[0], f'{name}_ci95': half_width[0]}


def finished_page(session: Session, page: Page) -> str:
  """Returns the page as HTML, with what was run under its title, and the command and the options of
  the run at its foot.
  """
  gates, seeds = counted(session.space.num_gates, 'gate'), counted(len(session.seeds), 'seed')
  options = flatten(session.rundir.read_json('config.json'), PLACEMENT)
  width = max(map(len, options))
  lines = [f'{name:{width}}  {json.dumps(value)}' for name, value in options.items()]
  texts = {'Command, which also continues the run': session.command} if session.command else {}
  return Page(
    page.title,
    *page.pieces,
    details('How this run was made', texts | {'Options': '\n'.join(lines)}),
    subtitle=f'{gates}, {seeds}; loss is on the test split',
  ).html()
