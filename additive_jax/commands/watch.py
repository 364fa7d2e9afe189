"""Follows a run in the terminal until it ends.

  additive-jax watch RUN

shows each training of the run, what it has reached of its steps and its last training loss, which
of its networks are judged, and at the end the best network and the report. Ctrl-C ends this
command, not the run. Where the output is no terminal, or a dumb one, a line is written now and
then.

  --every=SECONDS        how often to look (default: 1)

Exit codes: those of the run: 0 it is finished, 75 it has stopped, and the same command goes on; 1
it has failed; 2 a mistake in what was asked, told in one line; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
import time

import rich.console
import rich.live

from additive_jax.cli.command import answered, run_command
from additive_jax.cli.words import read_words
from additive_jax.commands.watched import Watched, lines, screen
from additive_jax.errors import STOPPED, UserError
from additive_jax.files.runs import Run, read_run
from additive_jax.report.headline import headline

CODES = {'finished': 0, 'stopped': STOPPED}
EVERY = 1.0
BETWEEN_LINES = 10.0  # seconds between two lines about one training, in a file


def main(argv: list[str]) -> int:
  """Follows the run that the command line `argv` names; returns the exit code of its end."""
  return answered(_run, argv, __doc__)


def _run(argv: list[str]) -> int:
  (path,), flags = read_words(argv, {'every': float}, least=1, most=1)
  every = flags['every'] or EVERY
  if not 0.05 <= every <= 3600:
    raise UserError(f'--every={every:g}: expected 0.05 to 3,600 seconds')
  watched = Watched(read_run(path))
  console = rich.console.Console()
  # A terminal that cannot move its cursor is written to as a file is.
  moves = console.is_terminal and not console.is_dumb_terminal
  run = _live(watched, every, console) if moves else _in_lines(watched, every)
  print(ending(run))
  return CODES.get(run.state, 1)


def _live(watched: Watched, every: float, console: rich.console.Console) -> Run:
  """Shows the run until it ends, and leaves the last picture."""
  with rich.live.Live(console=console, auto_refresh=False, transient=False) as live:
    while True:
      watched.look()
      live.update(screen(watched, console.height, console.width), refresh=True)
      if watched.run.state != 'running':
        return watched.run
      time.sleep(every)


def _in_lines(watched: Watched, every: float) -> Run:
  """Writes lines about the run until it ends."""
  said: dict[str, float] = {}
  while True:
    watched.look()
    ended = watched.run.state != 'running'
    for name, line in lines(watched, said, now=time.monotonic(), between=BETWEEN_LINES):
      print(f'{time.strftime("%H:%M:%S")} {name}: {line}', flush=True)
    if ended:
      return watched.run
    time.sleep(every)


def ending(run: Run) -> str:
  """Returns how a run that is not at work has ended, in a line."""
  if run.state == 'finished':
    best = headline(run.summary)
    report = run.path / 'report.html'
    return f'finished: {f"{best}; " if best else ""}{report if report.exists() else run.path}'
  more = f': {run.note}' if run.note else ''
  again = '; the same command goes on' if run.state == 'stopped' else ''
  return f'{run.state}{more}{again}'


if __name__ == '__main__':
  sys.exit(run_command(main, sys.argv))
