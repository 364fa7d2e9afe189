"""What a running program tells its user, and how the user stops it.

On a terminal a live bar; in a log file plain lines. `Stopper` turns the first SIGTERM or Ctrl-C
into a request.
"""

import logging
import numbers
import signal
import sys
import threading
import time

import numpy as np
import rich.console
import rich.progress
import rich.text

log = logging.getLogger('additive_jax')


class LineHandler(logging.Handler):
  """Writes `HH:MM:SS message` lines, above the live bar when one is shown on the same terminal.

  Args:
    stream: where the lines go; None follows `sys.stderr`.
  """

  def __init__(self, stream=None):
    super().__init__()
    self.stream = stream
    self.setFormatter(logging.Formatter('%(asctime)s %(message)s', datefmt='%H:%M:%S'))

  def emit(self, record):
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


def setup_logging(level=logging.INFO, stream=None):
  """Sends the package's log to `stream` as lines `HH:MM:SS message`; returns the handler.

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
  """How far a piece of work is: a live bar on a terminal, a line now and then in a log file.

      with Progress(1500, 'cotrain') as progress:
        ...
        progress.advance(10, loss=0.512)

  The bar shows description, completed and total, rate, time left and the latest figures. Rate and
  time left are measured from the first advance on, since what comes before it is often the compile
  of the program that all the rest reuses; until the second advance they are not known. In a log
  file the first line comes at once, the last one at the end, and between them at most one every
  `interval` seconds: `cotrain: 400/1500 steps (27%), 3.1 s left, loss 0.512`. Bars may be nested;
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

  display = None  # The one rich display of this process, shared by nested bars and the log.

  def __init__(
    self,
    total,
    description,
    *,
    unit='step',
    stream=None,
    start=0,
    interval=10.0,
    enabled=True,
    brief=False,
  ):
    self.total = total
    self.description = description
    self.unit = unit if total == 1 else f'{unit}s'
    self.start = start
    self.completed = start
    self.interval = interval
    self._stream = stream
    self._enabled = enabled
    self._brief = brief
    self._figures = {}
    self._first = None  # when the first advance came, and what was completed then
    self._latest = None
    self._task = None
    self._owns_display = False

  def __enter__(self):
    self._began = self._shown = time.monotonic()
    if not self._enabled:
      return self
    stream = self._stream or sys.stderr
    if stream.isatty():
      if Progress.display is None:
        Progress.display = _make_display(stream)
        Progress.display.start()
        self._owns_display = True
      self._task = Progress.display.add_task(
        self.description, total=self.total, completed=self.start, bar=self, figures=''
      )
    elif not self._brief:
      log.info('%s', self._counts())
    return self

  def advance(self, n=1, **figures):
    """Counts `n` more units as done and shows `figures`, the latest numbers or strings by name."""
    self.completed += n
    self._figures |= figures
    now = time.monotonic(), self.completed
    self._first = self._first or now
    self._latest = now
    if not self._enabled:
      return
    if self._task is not None:
      Progress.display.update(self._task, advance=n, figures=', '.join(self._figure_texts()))
    elif self.completed != self.total and time.monotonic() - self._shown >= self.interval:
      self._shown = time.monotonic()
      left = [] if self.time_left is None else [f'{duration(self.time_left)} left']
      log.info('%s', ', '.join([self._counts(), *left, *self._figure_texts()]))

  def __exit__(self, *_):
    if not self._enabled:
      return
    if self._task is None:
      elapsed = time.monotonic() - self._began
      if not self._brief or elapsed >= self.interval:
        took = f'took {duration(elapsed)}'
        log.info('%s', ', '.join([self._counts(), took, *self._figure_texts()]))
    elif self._owns_display:
      Progress.display.stop()
      Progress.display = None
    elif Progress.display is not None:
      Progress.display.remove_task(self._task)

  @property
  def rate(self):
    """Units a second between the first advance and the latest; None until the second."""
    # Read once: the thread that draws the bar asks while the other counts.
    first, latest = self._first, self._latest
    if latest is None or latest == first:
      return None
    return (latest[1] - first[1]) / max(latest[0] - first[0], 1e-9)

  @property
  def time_left(self):
    """Seconds until the total is reached at this rate, None while that is not known."""
    rate, latest = self.rate, self._latest
    if not rate or self.total is None:
      return None
    return max((self.total - latest[1]) / rate - (time.monotonic() - latest[0]), 0.0)

  def _counts(self):
    if self.total is None:
      return f'{self.description}: {self.completed} {self.unit}'
    percent = round(100 * self.completed / self.total) if self.total else 100
    if self.completed < self.total:
      percent = min(percent, 99)
    return f'{self.description}: {self.completed}/{self.total} {self.unit} ({percent}%)'

  def _figure_texts(self):
    return [f'{name} {_figure(value)}' for name, value in self._figures.items()]


def duration(seconds):
  """`seconds` as a person says it: `3.1 s`, `2 min 5 s`, `1 h 20 min`."""
  if seconds < 59.95:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest} s'
  return f'{minutes // 60} h {minutes % 60} min'


def _figure(value):
  if isinstance(value, str | numbers.Integral):
    return str(value)
  return f'{float(np.asarray(value)):.4g}'


class _RateColumn(rich.progress.ProgressColumn):
  """Units a second."""

  def render(self, task):
    bar = task.fields['bar']
    rate = bar.rate
    return rich.text.Text(f'{rate:.3g} {bar.unit}/s' if rate else '')


class _TimeLeftColumn(rich.progress.ProgressColumn):
  """Time left, as in a log file."""

  max_refresh = 0.5

  def render(self, task):
    left = task.fields['bar'].time_left
    return rich.text.Text(f'{duration(left)} left' if left else '')


def _make_display(stream):
  return rich.progress.Progress(
    rich.progress.TextColumn('{task.description}', markup=False),
    rich.progress.BarColumn(bar_width=24),
    rich.progress.MofNCompleteColumn(),
    _RateColumn(),
    _TimeLeftColumn(),
    rich.progress.TextColumn('{task.fields[figures]}', markup=False),
    console=rich.console.Console(file=stream),
  )


class Stopper:
  """Turns SIGTERM and the first Ctrl-C into a request to stop, so that a loop can save before it
  ends.

      with Stopper() as stopper:
        while not stopper.stop_requested:
          ...

  Ctrl-C after a stop was requested raises KeyboardInterrupt at once. The old handlers come back on
  exit. Off the main thread, where Python allows no handlers, it does nothing. A SIGINT that the
  parent process chose to ignore stays ignored.
  """

  def __init__(self):
    self._signal = None
    self._announced = False
    self._old = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        if number == signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
          continue
        self._old[number] = signal.signal(number, self._request)
    return self

  def __exit__(self, *_):
    for number, handler in self._old.items():
      # None: the handler was not set from Python and cannot be set back from it.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._old.clear()

  @property
  def stop_requested(self):
    """True once a signal has come; the first reading says so in the log."""
    # Said here and not in the handler, which may interrupt a half-written log line.
    if self._signal is not None and not self._announced:
      self._announced = True
      log.info('%s: stopping after this step; Ctrl-C stops at once', self._signal.name)
    return self._signal is not None

  def _request(self, number, frame):
    if self._signal is not None:
      if number == signal.SIGINT:
        raise KeyboardInterrupt
      return
    self._signal = signal.Signals(number)
