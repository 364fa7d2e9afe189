"""One page about several runs: their best networks, what their options differ in, curves overlaid,
and tables side by side.

    runs = [RunFacts('short', summary, options, curves, tables), ...]
    path.write_text(comparison_page(runs).html())

Runs may be of different experiments, and need not be finished: what two of them have is compared,
and the page says what is not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from additive_jax.report import figures
from additive_jax.report.explorer import OfRun, explorers
from additive_jax.report.figures.style import Colours, palette
from additive_jax.report.headline import headline
from additive_jax.report.page import Page, Piece, picture, section, table, text
from additive_jax.report.side_by_side import gates, others, structures, variants
from additive_jax.report.wording import counted, format_value, plain, score_name

MAX_LINES = 12  # curves of one picture
MAX_OPTIONS = 200  # rows of differing options
MAX_TEXT = 40  # characters of an option's value
FACTS = ('budget', 'num_gates', 'num_structures')  # of a summary, for the overview


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """What is known of a run that is compared.

  Attributes:
    name: on the page; unique.
    state: finished, running, failed, stopped or damaged.
    summary: its headline figures; {} until it is finished.
    options: its config, flat, by dotted names.
    curves: columns `tag`, `step` and every value; no rows for none.
    tables: its tables by name, which a finished run has.
    note: what could not be read; '' for nothing.
    explorer: of its own page; None where that has none.
    folder: its directory from that of the page, for commands that export.
  """

  name: str
  state: str
  summary: Mapping[str, Any]
  options: Mapping[str, Any]
  curves: pd.DataFrame
  tables: Mapping[str, pd.DataFrame]
  note: str = ''
  explorer: Piece | None = None
  folder: str = ''

  @property
  def experiment(self) -> str:
    """The name of the experiment."""
    return str(self.options.get('experiment', '?'))

  @property
  def data(self) -> str:
    """The name of the data."""
    return str(self.summary.get('data', self.options.get('data.name', '?')))


def comparison_page(runs: Sequence[RunFacts], defaults: Mapping[str, Any] | None = None) -> Page:
  """Returns the page about several runs.

  Args:
    runs: at least two, the one that others are compared with first.
    defaults: of options, which a run has that does not name them.
  """
  names = [run.name for run in runs]
  colours = palette(names)
  tables = {run.name: run.tables for run in runs}
  return Page(
    f'{counted(len(runs), "run")} compared',
    *map(text, notes(runs)),
    section('Overview', table(overview(runs), _overview_caption(runs), max_rows=100)),
    _explorers(runs, colours),
    section('What their options differ in', _options(runs, defaults or {})),
    section('Training', *_curves(runs, colours)),
    section('Structures', *structures(tables, colours)),
    section('Arms', *variants(tables, colours)),
    section('Gates', *gates(tables, colours)),
    section('Other tables', *others(tables)),
    subtitle='; '.join(f'{run.name}: {run.experiment} on {run.data}' for run in runs),
  )


def _explorers(runs: Sequence[RunFacts], colours: Colours) -> Piece | None:
  """Returns the explorers of the runs that have one, with those named that have none."""
  shown = [
    OfRun(run.name, colours[run.name], run.data, run.folder, run.explorer)
    for run in runs
    if run.explorer
  ]
  without = [run.name for run in runs if run.explorer is None]
  names = f'Without one, or without a report yet: {", ".join(without)}.'
  return explorers(shown, names if without else '')


def notes(runs: Sequence[RunFacts]) -> list[str]:
  """Returns what keeps runs from being compared in full, a sentence or two each."""
  found = []
  experiments = list(dict.fromkeys(run.experiment for run in runs))
  if len(experiments) > 1:
    kinds = ', '.join(map(plain, experiments))
    found.append(
      f'These runs are of different experiments ({kinds}). Options and curves are compared, and '
      'those tables that two of them have; the rest is in the report of each.'
    )
  sets = list(dict.fromkeys(run.data for run in runs))
  if len(sets) > 1:
    found.append(
      f'They are of different data ({", ".join(sets)}): a difference between losses or metrics '
      'says nothing of networks.'
    )
  for run in runs:
    if run.state != 'finished':
      found.append(f'{run.name} is {run.state}: it has curves and options, and no tables yet.')
    if run.note:
      found.append(f'{run.name}: {run.note}.')
  return found


def overview(runs: Sequence[RunFacts]) -> pd.DataFrame:
  """Returns a row for each run: what it is of, and its best network."""
  rows = []
  for run in runs:
    best = headline(run.summary)
    row: dict[str, Any] = {'run': run.name, 'experiment': plain(run.experiment), 'data': run.data}
    row |= {'seeds': run.options.get('num_seeds'), 'state': run.state}
    row['best network'] = best.network if best else None
    row['test loss'] = best.loss if best else None
    if best and best.metric:
      row[f'test {score_name(best.metric)}'] = best.score
    facts = {plain(key): run.summary.get(key) for key in FACTS}
    rows.append(row | {key: format_value(v) for key, v in facts.items() if v is not None})
  return pd.DataFrame(rows).dropna(axis='columns', how='all')


def _overview_caption(runs):
  kinds = {run.experiment for run in runs}
  of = ['The best network of each run, on the test split']
  of += ['; of cotrain the mean of its structures'] if 'cotrain' in kinds else []
  return ''.join(of) + '.'


def differing(runs: Sequence[RunFacts], defaults: Mapping[str, Any] | None = None) -> pd.DataFrame:
  """Returns a row for each option in which runs differ, and a column for each run.

  >>> none = pd.DataFrame()
  >>> a = RunFacts('a', 'finished', {}, {'seed': 0}, none, {})
  >>> differing([a, dataclasses.replace(a, name='b', options={'seed': 1})])
    option  a  b
  0   seed  0  1

  Args:
    runs: those to compare.
    defaults: of options, which a run has that does not name them.
  """
  names = list(dict.fromkeys(name for run in runs for name in run.options))
  known = {name: [value] for name, value in (defaults or {}).items()}
  rows = []
  for name in names:
    values = [[run.options[name]] if name in run.options else known.get(name) for run in runs]
    shown = [_option_text(*value) if value else None for value in values]
    if len({json.dumps(value) for value in values}) > 1:
      rows.append({'option': name, **{run.name: one for run, one in zip(runs, shown)}})
  return pd.DataFrame(rows)


def _option_text(value):
  """Returns a value as one reads it in a table: without quotes, and not too long."""
  if isinstance(value, list) and value:
    text = ', '.join(map(str, value))
  else:
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
  return text if len(text) <= MAX_TEXT else f'{text[: MAX_TEXT - 1]}…'


def _options(runs, defaults):
  found = differing(runs, defaults)
  if not len(found):
    return text('All options are the same.')
  caption = 'Options that are not the same in all runs; – is one that a run does not have.'
  return table(found, caption, max_rows=MAX_OPTIONS)


def _curves(runs, colours) -> list[Piece]:
  """Returns pictures of the curves of all runs: the training loss, and what two of them log."""
  means = {run.name: _mean_losses(run) for run in runs}
  measured = [name for name in means if len(means[name])]
  pieces = []
  for measure in ['loss', *_shared_measures(runs)]:
    frames = {run.name: _mean_losses(run, measure) for run in runs if run.name in measured}
    lines, hidden = _fitting({name: frame for name, frame in frames.items() if len(frame)})
    if not lines:
      continue
    tints = {tag: colours[name] for name, frame in lines.items() for tag in frame['tag']}
    what = 'Training loss' if measure == 'loss' else plain(measure).capitalize()
    more = f' {counted(hidden, "more curve")}, of which two runs have none, are left out.'
    caption = f'{what} of all runs over their steps, means over the seeds.{more if hidden else ""}'
    figure = figures.training_curves(pd.concat(lines.values()), measure, colours=tints)
    pieces.append(picture(figure, caption))
  return pieces


def _mean_losses(run, measure='loss'):
  """Returns the mean curves of a run, with its name before those of its trainings."""
  if measure not in run.curves:
    return pd.DataFrame(columns=['tag', 'step', measure])
  return figures.mean_curves(run.curves, measure, label=lambda name: f'{run.name}: {plain(name)}')


def _shared_measures(runs):
  """Returns the columns of losses on other splits that two runs have."""
  losses = [c for run in runs for c in run.curves if c in ('test_loss', 'valid_loss')]
  return [name for name in dict.fromkeys(losses) if losses.count(name) > 1]


def _fitting(frames):
  """Returns as many curves as a legend can name, those first that several runs have, and how many
  are left out."""
  tags = {name: list(dict.fromkeys(frame['tag'])) for name, frame in frames.items()}
  trainings = [tag.partition(': ')[2] for own in tags.values() for tag in own]
  every = [(name, tag) for name, own in tags.items() for tag in own]
  every.sort(key=lambda one: -trainings.count(one[1].partition(': ')[2]))
  kept = set(every[:MAX_LINES])
  lines = {
    name: frame[[(name, tag) in kept for tag in frame['tag']]] for name, frame in frames.items()
  }
  return {name: frame for name, frame in lines.items() if len(frame)}, len(every) - len(kept)
