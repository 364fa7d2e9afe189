"""Lists run directories: what each is of, its best network, how it is and when it was.

  additive-jax runs [DIR]     (default: runs, or this directory where there is none)

looks in DIR and in the folders below it, and prints a row for each run, the last written first:
experiment, data, state, its best network with loss and first metric on the test split (of `cotrain`
the mean of the structures), when it was begun, and how long that is before it was last written,
pauses included. On a terminal of less than 110 columns a run has a line, and below it its best
network, or how far it came.

States: finished; running, a process holds the directory; stopped, the same command goes on; failed,
with the error; damaged, with the file that is.

  --state=STATE          only runs in this state
  --json                 an object for each run, one a line, for programs

Exit codes: 0 done, 2 a mistake in what was asked, told in one line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import rich.console
import rich.padding
import rich.table
import rich.text

from additive_jax.cli.command import answered, run_command
from additive_jax.cli.words import read_words
from additive_jax.errors import UserError
from additive_jax.files.progress import duration
from additive_jax.files.runs import Run, find_runs
from additive_jax.report.headline import headline

STATES = {
  'finished': 'green',
  'running': 'cyan',
  'stopped': 'yellow',
  'failed': 'red',
  'damaged': 'red',
}
DEFAULT = 'runs'
WIDE = 160  # columns of a table that is written to no terminal
NARROW = 110  # columns of a terminal below which there is no table


def main(argv: list[str]) -> int:
  """Lists the runs that the command line `argv` names, and returns the exit code."""
  return answered(_run, argv, __doc__)


def _run(argv: list[str]) -> int:
  folders, flags = read_words(argv, {'state': str, 'json': bool}, most=1, noun='directory')
  folder = folders[0] if folders else (DEFAULT if Path(DEFAULT).is_dir() else '.')
  state = flags['state']
  if state and state not in STATES:
    raise UserError(f'--state={state}: expected one of {", ".join(STATES)}')
  runs = [run for run in find_runs(folder) if state in ('', run.state)]
  if flags['json']:
    for run in runs:
      print(json.dumps(described(run)))
  elif not runs:
    more = (
      '' if state else '; additive-jax --config=exp2 begins one, additive-jax configs has others'
    )
    print(f'no {state or "run"}{" run" if state else ""} in {folder}{more}')
  else:
    console = _console()
    shown = table if console.width >= NARROW else lines
    console.print(shown(runs, Path(folder)))
  return 0


def described(run: Run) -> dict[str, Any]:
  """Returns what is said of a run, as JSON values."""
  best = headline(run.summary)
  return {
    'path': str(run.path),
    'experiment': run.experiment,
    'data': run.data,
    'state': run.state,
    'note': run.note,
    'best': best._asdict() if best else None,
    'began': run.began,
    'seconds': max(0.0, run.written - run.began),
  }


def table(runs: list[Run], folder: Path) -> rich.table.Table:
  """Returns a row for each run.

  Args:
    folder: what the names of the runs begin after.
  """
  shown = rich.table.Table(box=None, pad_edge=False, header_style='bold')
  for name in ('run', 'experiment', 'data', 'state', 'best, or how far', 'began', 'took'):
    shown.add_column(name, overflow='fold', no_wrap=name in ('began', 'took', 'state'))
  for run in runs:
    name, came, began, took = _said(run, folder)
    cells = [rich.text.Text(word) for word in (name, run.experiment, run.data, run.state)]
    cells[3].stylize(STATES[run.state])
    shown.add_row(*cells, *map(rich.text.Text, (came, began, took)))
  return shown


def lines(runs: list[Run], folder: Path) -> rich.console.Group:
  """Returns what a table says of each run, one below another."""
  parts: list[rich.console.RenderableType] = []
  for run in runs:
    name, came, began, took = _said(run, folder)
    state = (run.state, STATES[run.state])
    told = f'  {run.experiment} on {run.data}, {began}, {took}'
    parts.append(rich.text.Text.assemble((name, 'bold'), '  ', state, told))
    if came:
      parts.append(rich.padding.Padding(rich.text.Text(came), (0, 0, 0, 4), expand=False))
  return rich.console.Group(*parts)


def _said(run: Run, folder: Path) -> tuple[str, str, str, str]:
  """Returns the name of a run, its best network or how far it came, when it was begun, and how long
  it took."""
  name = os.path.relpath(run.path, folder)
  best = None if run.state in ('failed', 'damaged') else headline(run.summary)
  began = time.localtime(run.began)
  form = '%m-%d %H:%M' if began.tm_year == time.localtime().tm_year else '%Y-%m-%d'
  took = duration(max(0.0, run.written - run.began))
  came = str(best) if best else run.note
  return run.path.name if name == '.' else name, came, time.strftime(form, began), took


def _console() -> rich.console.Console:
  """Returns a console as wide as the terminal; where there is none, wide enough for a file."""
  width = None if sys.stdout.isatty() or 'COLUMNS' in os.environ else WIDE
  return rich.console.Console(width=width)


if __name__ == '__main__':
  sys.exit(run_command(main, sys.argv))
