"""What a running program tells its user: on a terminal or in a notebook a live bar, in a log file
plain lines."""

from __future__ import annotations

import logging
import numbers
import sys
import time
from typing import Any, ClassVar, TextIO

import numpy as np
import rich.console
import rich.progress
import rich.text

from additive_jax.files.notebook import Output, in_notebook

log = logging.getLogger('additive_jax')


class LineHandler(logging.Handler):
  """Writes `HH:MM:SS message` lines, above the live bar when one is shown on the same terminal.

  Args:
    stream: where the lines go; None follows `sys.stderr`.
  """

  def __init__(self, stream: TextIO | None = None):
    super().__init__()
    self.stream = stream
    self.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))

  def emit(self, record: logging.LogRecord) -> None:
    """Writes one record."""
    try:
      line = self.format(record)
      display = Progress.display
      if display is not None and self.stream in (None, display.console.file):
        style = 'yellow' if record.levelno >= logging.WARNING else ''
        display.console.print(rich.text.Text(line, style), soft_wrap=True)
        return
      stream = self.stream or sys.stderr
      stream.write(line + '\n')
      stream.flush()
    except Exception:
      self.handleError(record)


def setup_logging(level: int = logging.INFO, stream: TextIO | None = None) -> LineHandler:
  """Sends the package's log to `stream` as lines `HH:MM:SS message`, and returns the handler.

  `stream` None is standard error. Called again, it replaces the handler it installed before.
  Records no longer reach the root logger, whose handlers would write each line a second time.
  """
  for handler in [h for h in log.handlers if isinstance(h, LineHandler)]:
    log.removeHandler(handler)
  handler = LineHandler(stream)
  log.addHandler(handler)
  log.setLevel(level)
  log.propagate = False
  return handler


class Progress:
  """How far a piece of work is: a live bar on a terminal or in a notebook, a line now and then in a
  log file.

      with Progress(1500, 'cotrain') as progress:
        ...
        progress.advance(10, loss=0.512)

  The bar shows description, completed and total, time left, rate and the latest figures. Rate and
  time left are measured from the first advance on, since what comes before it is often the compile
  of the program that all the rest reuses; until the second advance they are not known. In a log
  file the first line comes at once, the last one at the end, and between them at most one every
  `interval` seconds: `cotrain: 400/1500 steps (27%), 3.0 s left, loss 0.512`. Bars may be nested;
  the inner one stands below the outer.

  Args:
    total: the units of work in all; None when that is not known.
    description: what is being done, in a word or two.
    unit: the noun of one unit, singular.
    stream: decides between bar and lines by whether it is a terminal; None is `sys.stderr`.
    start: units done before this process started.
    interval: seconds between two lines in a log file.
    enabled: False shows nothing (processes other than the first of several).
    brief: in a log file, work that ends within `interval` is not mentioned.
  """

  # The one rich display on the terminal, shared by nested bars and the log; where a notebook shows
  # it, the output of a cell.
  display: ClassVar[rich.progress.Progress | None] = None
  output: ClassVar[Output | None] = None
  silent: ClassVar[bool] = False  # whether nothing is shown of any work

  def __init__(
    self,
    total: int | None,
    description: str,
    *,
    unit: str = 'step',
    stream: TextIO | None = None,
    start: int = 0,
    interval: float = 10.0,
    enabled: bool = True,
    brief: bool = False,
  ):
    self.total = total
    self.description = description
    self.unit = unit if total == 1 else f'{unit}s'
    self.start = start
    self.interval = interval
    self._stream = stream
    self._enabled = enabled
    self._brief = brief
    self._figures: dict[str, Any] = {}

  def __enter__(self) -> Progress:
    self._began = self._shown = time.monotonic()
    stream = self._stream or sys.stderr
    self._enabled = self._enabled and not Progress.silent
    notebook = self._stream is None and in_notebook()
    self._live = self._enabled and (notebook or stream.isatty())
    outer = Progress.display if self._live else None
    self._nested = outer is not None
    # Without a terminal rich counts and measures all the same, and draws nothing.
    self._bars = outer or _bars(stream, drawn=self._live and not notebook)
    id_ = self._bars.add_task(self.description, total=self.total, completed=self.start, figures='')
    self._task = self._bars.tasks[self._bars.task_ids.index(id_)]
    if self._live and not self._nested:
      Progress.display = self._bars
      Progress.output = Output() if notebook else None
      self._bars.start()
    self._draw(at_once=True)
    if not self._brief:
      self._say()
    return self

  def advance(self, n: int = 1, **figures: Any) -> None:
    """Counts `n` more units as done and shows `figures`, the latest numbers or strings by name."""
    self._figures |= figures
    self._bars.advance(self._task.id, n)
    if self._live:
      rate = [f'{self._task.speed:.3g} {self.unit}/s'] if self._task.speed else []
      self._bars.update(self._task.id, figures=', '.join(rate + self._figure_texts()))
      self._draw()
    elif not self._task.finished and time.monotonic() - self._shown >= self.interval:
      self._shown = time.monotonic()
      remaining = self._task.time_remaining
      self._say(*[] if remaining is None else [f'{duration(remaining)} left'])

  def __exit__(self, *_: object) -> None:
    elapsed = time.monotonic() - self._began
    if not self._brief or elapsed >= self.interval:
      self._say(f'took {duration(elapsed)}')
    if self._nested:
      self._bars.remove_task(self._task.id)
    self._draw(at_once=True)
    if self._live and not self._nested:
      if Progress.output is None:
        self._bars.stop()
      Progress.display = Progress.output = None

  def _draw(self, at_once=False):
    """Shows the bars in a notebook; a terminal's draw themselves."""
    if self._live and Progress.output is not None:
      Progress.output.draw(self._bars.get_renderable(), at_once=at_once)

  def _say(self, *facts: str) -> None:
    """Writes a line of counts, facts and figures, unless a bar shows them."""
    if self._enabled and not self._live:
      log.info('%s', ', '.join([self._counts(), *facts, *self._figure_texts()]))

  def _counts(self) -> str:
    completed = int(self._task.completed)
    if self.total is None:
      return f'{self.description}: {completed} {self.unit}'
    percent = round(100 * completed / self.total) if self.total else 100
    if completed < self.total:
      percent = min(percent, 99)
    return f'{self.description}: {completed}/{self.total} {self.unit} ({percent}%)'

  def _figure_texts(self) -> list[str]:
    return [f'{name} {_figure(value)}' for name, value in self._figures.items()]


def duration(seconds: float) -> str:
  """Returns `seconds` as a person says it.

  >>> duration(3.14), duration(125), duration(4800)
  ('3.1 s', '2 min 5 s', '1 h 20 min')
  """
  if seconds < 59.95:
    return f'{seconds:.1f} s'
  minutes, remainder = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {remainder} s'
  return f'{minutes // 60} h {minutes % 60} min'


def _figure(value: Any) -> str:
  if isinstance(value, str | numbers.Integral):
    return str(value)
  return f'{float(np.asarray(value)):.4g}'


def _bars(stream: TextIO, *, drawn: bool) -> rich.progress.Progress:
  return rich.progress.Progress(
    rich.progress.TextColumn('{task.description}', markup=False),
    rich.progress.BarColumn(bar_width=24),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeRemainingColumn(),
    rich.progress.TextColumn('{task.fields[figures]}', markup=False),
    console=rich.console.Console(file=stream, force_jupyter=False),
    disable=not drawn,
    get_time=time.monotonic,
    speed_estimate_period=float('inf'),  # a unit may take longer than rich's half a minute
  )
