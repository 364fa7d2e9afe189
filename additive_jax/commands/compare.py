"""Writes one page about several runs: their best networks, the explorer of each, what their options
differ in, curves overlaid, and tables side by side.

  additive-jax compare A B … [--to=FILE]

The page holds all that it shows and needs no network. The first run is the one that others are
compared with. Runs may be of different experiments, and need not be finished: what two of them have
is compared, and the page says what is not.

  --to=FILE              the page (default: compare.html); an earlier comparison is replaced,
                         anything else is refused

Exit codes: 0 done, 2 a mistake in what was asked, told in one line.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pandas as pd

from additive_jax.cli.command import answered, run_command
from additive_jax.cli.manual import settings
from additive_jax.cli.words import read_words
from additive_jax.errors import UserError, one_line, user_errors, user_path
from additive_jax.files.journal import replace_file, to_plain
from additive_jax.files.metrics import Metrics
from additive_jax.files.progress import setup_logging
from additive_jax.files.rundir import RunDir, flatten
from additive_jax.files.runs import Run, read_run
from additive_jax.report.explorer import read_explorer
from additive_jax.report.page import Piece
from additive_jax.report.several import RunFacts, comparison_page

log = logging.getLogger('additive_jax')

DEFAULT = 'compare.html'
PAGE = 'report.html'  # of a run
MARK = 'compared</h1>'  # of a page that this command has written
# Options that were something else than their default before they were there.
BEFORE = {'data.valid': 0.0}
PLACEMENT = "Not part of a run's identity."  # at the end of what an option means


def main(argv: list[str]) -> int:
  """Compares the runs that the command line `argv` names, and returns the exit code."""
  return answered(_run, argv, __doc__)


def _run(argv: list[str]) -> int:
  paths, flags = read_words(argv, {'to': str}, least=2)
  setup_logging()
  page = user_path(flags['to'] or DEFAULT, '--to')
  _check_page(page)
  compare(paths, page)
  print(page)
  return 0


def compare(paths: list[str], page: Path) -> None:
  """Writes one page about several runs.

  Args:
    paths: at least two run directories, the one that others are compared with first.
    page: the file to write.

  Raises:
    UserError: a path is none of a run, or one is given twice.
  """
  runs = [read_run(path) for path in paths]
  for number, run in enumerate(runs):
    if run.path.resolve() in [other.path.resolve() for other in runs[:number]]:
      raise UserError(f'{run.path}: given twice; expected different runs')
  facts = [facts_of(run, name, page.parent) for run, name in zip(runs, names_of(runs))]
  defaults = {one.name: to_plain(one.default) for one in settings()} | BEFORE
  html = comparison_page(facts, defaults).html()
  with user_errors('write', page, 'a file that may be written'):
    replace_file(page, html.encode())


def names_of(runs: list[Run]) -> list[str]:
  """Returns a name for each run: that of its directory, with as many folders above it as tell it
  from the others."""
  parts = [run.path.resolve().parts for run in runs]
  depth = 1
  while len({part[-depth:] for part in parts}) < len(parts):
    depth += 1
  return ['/'.join(part[-depth:]) for part in parts]


def facts_of(run: Run, name: str, place: Path) -> RunFacts:
  """Returns what a page in a directory says of a run; what is damaged is left out, and named."""
  tables: dict[str, pd.DataFrame] = {}
  explorer = None
  note = run.note if run.state in ('failed', 'damaged') else ''
  if run.state == 'finished':
    try:
      tables = RunDir(run.path).read_finished()[1]
      explorer = _explorer_of(run.path / PAGE)
    except UserError as error:
      note = one_line(error).partition(';')[0]
  where = [option.name for option in settings() if option.meaning.endswith(PLACEMENT)]
  curves = Metrics.read(run.path)
  curves = curves if len(curves) else pd.DataFrame(columns=['tag', 'step'])
  options = flatten(run.config, where)
  folder = Path(os.path.relpath(run.path.resolve(), place.resolve())).as_posix()
  return RunFacts(name, run.state, run.summary, options, curves, tables, note, explorer, folder)


def _explorer_of(report: Path) -> Piece | None:
  """Returns the explorer of a run's own page."""
  if not report.exists():
    return None
  with user_errors('read', report, 'a page that may be read'):
    return read_explorer(report.read_text('utf-8'))


def _check_page(page: Path) -> None:
  """Raises `UserError` unless the page can be written without a loss."""
  if page.is_dir():
    raise UserError(f'--to={page} is a directory; expected the file of the page')
  if not page.parent.is_dir():
    raise UserError(f'--to={page}: no such directory {page.parent}; expected one that is there')
  if page.exists() and os.path.getsize(page) and MARK not in page.read_text(errors='replace'):
    raise UserError(f'--to={page} is another file; expected a new one, or an earlier comparison')


if __name__ == '__main__':
  sys.exit(run_command(main, sys.argv))
