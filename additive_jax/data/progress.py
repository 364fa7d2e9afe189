"""Progress of work on data: a bar on a terminal, a line now and then in a log."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.markup
import rich.progress

log = logging.getLogger('additive_jax')

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def progress(description: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
  """Shows how far `description` is while the block runs, on standard error or in the log.

  Args:
    description: what is being done, such as `reading idx:DIR`.
    total: the amount of work; None when it isn't known.

  Yields:
    advance: call it with the amount done since the last call.
  """
  if sys.stderr.isatty():
    columns = [
      rich.progress.TextColumn('{task.description}'),
      rich.progress.BarColumn(),
      rich.progress.TaskProgressColumn(),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TimeRemainingColumn(),
    ]
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
      # A path in the description may hold square brackets, which rich would take for markup.
      task = bar.add_task(rich.markup.escape(description), total=total)
      yield lambda amount: bar.advance(task, amount)
    return
  log.info('%s', description)
  state = {'done': 0.0, 'next': time.monotonic() + SECONDS_BETWEEN_LINES}

  def advance(amount: float) -> None:
    state['done'] += amount
    if time.monotonic() >= state['next']:
      state['next'] = time.monotonic() + SECONDS_BETWEEN_LINES
      share = f'{state["done"] / total:.0%}' if total else f'{state["done"]:.0f} so far'
      log.info('%s: %s', description, share)

  yield advance
