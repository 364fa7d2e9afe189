"""What a running run has come to: its trainings, read from its curves and journals as they grow."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Iterator

import rich.console
import rich.progress_bar
import rich.table
import rich.text

from additive_jax.files.progress import duration
from additive_jax.files.runs import Lines, Run, read_run
from additive_jax.report.wording import counted, format_value

BESIDE = 4  # lines of a terminal that are no trainings
FEWEST = 4  # trainings that are shown on the lowest terminal
BAR = 24  # columns of a bar
SHORTEST = 12  # columns of a name that is cut
NARROW = 90  # columns of a terminal below which there are no bars


@dataclasses.dataclass
class Training:
  """One training of a run.

  Attributes:
    step: the last of its curve.
    steps: all it takes; 0 where that is not known.
    loss: the training loss at the last step.
    seen: when it came to that step, by `time.monotonic`.
    begun: the step at which it was first seen, and when, for its pace.
  """

  step: int = 0
  steps: int = 0
  loss: float = math.nan
  seen: float = 0.0
  begun: tuple[int, float] = (0, 0.0)

  def left(self) -> float:
    """Returns the seconds to its last step, at the pace since it was first seen, or NaN."""
    steps, seconds = self.step - self.begun[0], self.seen - self.begun[1]
    known = self.steps and steps > 0 and seconds > 0
    return (self.steps - self.step) * seconds / steps if known else math.nan

  def __str__(self) -> str:
    of = f'/{self.steps:,}' if self.steps else ''
    loss = '' if math.isnan(self.loss) else f', training loss {format_value(self.loss)}'
    left = self.left()
    ending = '' if math.isnan(left) or not left else f', {duration(left)} left'
    return f'step {self.step:,}{of}{loss}{ending}'


class Watched:
  """A run that is being followed; `look` brings it up to date.

  Attributes:
    run: what its directory said when it was last looked at.
    trainings: by the tags of their curves, in the order in which they began.
    judged: how many networks have a record, by arm.
  """

  def __init__(self, run: Run):
    self.run = run
    self.trainings: dict[str, Training] = {}
    self.judged: dict[str, int] = {}
    self._steps: dict[str, int] = {}
    self._curves = Lines(run.path, 'metrics*.jsonl')
    self._journals = Lines(run.path / 'journals', f'{run.experiment}*.jsonl')

  def look(self) -> None:
    """Reads what is new; the state first, so that nothing is missed of a run that has ended."""
    self.run = read_run(self.run.path)
    for path, line in self._journals.new():
      if path.name.endswith('.arms.jsonl'):
        described = line.get('is', {})
        self._steps[str(line.get('arm'))] = int(described.get('steps', 0))
      elif 'variant' in line:
        name = str(line['variant'])
        self.judged[name] = self.judged.get(name, 0) + 1
    now = time.monotonic()
    for _, line in self._curves.new():
      tag, step = str(line.get('tag')), int(line.get('step', 0))
      training = self.trainings.setdefault(tag, Training(begun=(step, now)))
      training.step, training.seen = step, now
      training.steps = self._steps.get(re.sub(r'-seed\d+$', '', tag), 0)
      if isinstance(line.get('loss'), int | float):
        training.loss = float(line['loss'])


def head(watched: Watched) -> str:
  """Returns what a run is and how far it has come, in a line."""
  run = watched.run
  judged = sum(watched.judged.values())
  seeds = run.config.get('num_seeds', 1)
  texts = [f'{run.path}: {run.experiment} on {run.data}', counted(int(seeds), 'seed'), run.state]
  if judged:
    texts.append(f'{counted(judged, "training")} judged')
  if run.state == 'running':
    texts.append(f'{duration(max(0.0, time.time() - run.began))} since it was begun')
  return ', '.join(texts)


def screen(watched: Watched, height: int, width: int) -> rich.console.Group:
  """Returns what the terminal shows: a line about the run, and a line with a bar for each training;
  of more than fit, the last ones, and no bars where there is no room for them."""
  rows = rich.table.Table.grid(padding=(0, 2))
  shown = max(FEWEST, height - BESIDE)
  trainings = list(watched.trainings.items())[-shown:]
  has_bars = width >= NARROW
  longest = max((len(str(training)) for _, training in trainings), default=0)
  room = max(SHORTEST, width - longest - 2 - (BAR + 2 if has_bars else 0))
  for name, training in trainings:
    total = training.steps or None
    bar = rich.progress_bar.ProgressBar(total, training.step, width=BAR, pulse=False)
    label = rich.text.Text(name)
    label.truncate(room, overflow='ellipsis')
    cells = [label, bar if total else ''] if has_bars else [label]
    rows.add_row(*cells, rich.text.Text(str(training), no_wrap=True, overflow='ellipsis'))
  hidden = len(watched.trainings) - shown
  more = [rich.text.Text(f'{counted(hidden, "earlier training")} not shown', 'dim')]
  return rich.console.Group(
    rich.text.Text(head(watched), 'bold'), *(more if hidden > 0 else []), rows
  )


def lines(
  watched: Watched, said: dict[str, float], *, now: float, between: float
) -> Iterator[tuple[str, str]]:
  """Yields name and line of each training about which there is something new to say: when it was
  first seen, at its last step, and now and then.

  Args:
    watched: the run.
    said: by training the last time that a line was written, and by `NAME@` the step; changed.
    now: this moment.
    between: seconds between two lines about one training.
  """
  for name, training in watched.trainings.items():
    last_step, last_time = said.get(f'{name}@', -1), said.get(name, -math.inf)
    at_end = training.step == training.steps or watched.run.state != 'running'
    if training.step != last_step and (at_end or now - last_time >= between):
      said[name], said[f'{name}@'] = now, training.step
      yield name, str(training)
