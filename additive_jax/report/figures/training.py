"""The pictures of training: curves over steps, and keep rates over depth."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from additive_jax.report.figures import marks, style
from additive_jax.report.wording import plain, short_names

_MAX_LEGEND = 12
_MAX_POINTS = 300  # points of one training curve


def training_curves(
  curves: pd.DataFrame,
  measure: str = 'loss',
  target: float | None = None,
  colours: style.Colours | None = None,
) -> Figure:
  """Draws a measure over training steps, a line for each tag.

  Long curves are averaged in bins of steps; values that are not finite are left out.

  >>> curves = pd.DataFrame({'step': [1, 2, 1, 2], 'tag': ['10', '10', '11', '11']})
  >>> figure = training_curves(curves.assign(loss=[0.9, 0.7, 0.8, 0.6]))
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  ['10', '11']

  Args:
    curves: columns `step`, `tag` and the measure's.
    measure: the column to draw, which names the axis.
    target: where the measure should be, drawn dashed; None draws nothing.
    colours: by tag, with or without its `-seed0`; lines of one colour differ in their dashes.
  """
  marks.require(curves, 'step', 'tag', measure)
  curves = curves[np.isfinite(marks.column(curves, measure))]
  groups = list(curves.groupby('tag', sort=False))
  if not groups:
    return style.empty('nothing was logged')
  alone = len({seed for tag, _ in groups for seed in re.findall(r'-seed(\d+)$', str(tag))}) < 2
  looks = _line_looks([str(tag) for tag, _ in groups], colours)
  with style.drawing(7.2, 3.6) as (figure, [[axes]]):
    for (tag, rows), look in zip(groups, looks):
      step, value = _binned(marks.column(rows, 'step'), marks.column(rows, measure))
      look['marker'] = look['marker'] if len(step) == 1 else None
      axes.plot(step, value, label=seed_in_words(tag, alone), **look)
    marks.log_scale_if_wide(axes, curves[measure])
    if target is not None:
      axes.axhline(target, color=style.INK, lw=1.2, ls='--', zorder=3, label='target')
    axes.margins(x=0.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel='step', ylabel='training loss' if measure == 'loss' else measure)
    if len(groups) <= _MAX_LEGEND:
      marks.legend_beside(axes)
    else:
      axes.set_title(f'{len(groups)} runs, from {groups[0][0]} (dark) to {groups[-1][0]} (light)')
  return figure


def seed_in_words(tag: str, alone: bool = False) -> str:
  """Returns what the curve of a training is called; without its seed where that is `alone`.

  >>> seed_in_words('pool-seed0'), seed_in_words('pool-seed0', alone=True)
  ('pool, seed 0', 'pool')
  """
  return re.sub(r'-seed(\d+)$', '' if alone else r', seed \1', str(tag))


def _line_looks(tags, colours):
  """Returns the look of each line: lines of an arm have its colour, and differ in their dashes."""
  if colours is None:
    many = len(tags) > len(style.PALETTE)
    tints = style.shades(len(tags)) if many else style.PALETTE
    line = {'lw': 0.9 if many else 1.6, 'marker': 'o'}
    return [{'color': tint, **line} for tint, _ in zip(tints, tags)]
  arms = [tag if tag in colours else re.sub(r'-seed\d+$', '', tag) for tag in tags]
  by_arm, seen, looks = style.palette(arms, colours), Counter[str](), []
  for tint in (by_arm[arm] for arm in arms):
    number = seen[tint]
    marks_of_arm = {'ls': style.dashes(number), 'marker': style.marker(number)}
    looks.append({'color': tint, 'lw': 1.6, **marks_of_arm})
    seen[tint] += 1
  return looks


def _binned(step, value):
  """Returns at most `_MAX_POINTS` points of a curve in order of steps, each the mean of
  neighbours."""
  order = np.argsort(step, kind='stable')
  parts = np.array_split(order, min(len(order), _MAX_POINTS))
  return np.array([step[part].mean() for part in parts]), np.array([value[p].mean() for p in parts])


def mean_curves(
  curves: pd.DataFrame,
  measure: str = 'loss',
  names: Sequence[str] | None = None,
  label: Callable[[str], str] = plain,
  columns: Sequence[str] | None = None,
) -> pd.DataFrame:
  """Returns the mean over seeds of a run's curves, for `training_curves`.

  Args:
    curves: columns `step`, `tag` (`NAME-seed0`, …) and the measure's.
    measure: the column of the result.
    names: of the curves to take, in order; all by default.
    label: gives what a name is called in the result's `tag`.
    columns: those whose mean is the measure; the measure's own by default.

  >>> curves = pd.DataFrame({'step': [1, 1], 'tag': ['a-seed0', 'a-seed1'], 'loss': [0.5, 0.7]})
  >>> mean_curves(curves).to_dict('records')
  [{'tag': 'a', 'step': 1, 'loss': 0.6}]
  """
  columns = [measure] if columns is None else list(columns)
  if not len(curves) or not columns:
    return pd.DataFrame(columns=['tag', 'step', measure])
  tags = curves['tag'].str.replace(r'-seed\d+$', '', regex=True)
  values = curves[columns].mean(axis=1)
  frame = pd.DataFrame({'tag': tags, 'step': curves['step'], measure: values}).dropna()
  names = list(frame['tag'].unique()) if names is None else list(names)
  frame = frame[frame['tag'].isin(names)].groupby(['tag', 'step'], as_index=False).mean()
  frame = frame.sort_values('tag', key=lambda tag: tag.map(names.index), kind='stable')
  return frame.assign(tag=frame['tag'].map(label))


def keep_rates(
  tables: Mapping[str, ArrayLike], names: Sequence[str], colours: style.Colours | None = None
) -> Figure:
  """Draws keep rates over depth: a line for each moment of a training, a panel for each variant.

  >>> falling = np.linspace([1.0, 1.0], [1.0, 0.5], 5)  # five steps, two gates
  >>> figure = keep_rates({'falling': falling}, ['block_0/mlp', 'block_1/mlp'])
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()][:2]
  ['at 0 % of the steps', 'at 25 % of the steps']

  Args:
    tables: by variant rates `[num_steps, n]`.
    names: of the n gates.
    colours: of variants; by default all have one.
  """
  width = 9.6 if len(tables) > 1 else 5.6
  with style.drawing(width, 2.6, columns=len(tables)) as (figure, [panels]):
    for axes, (label, table) in zip(panels, tables.items()):
      table = np.asarray(table)
      moments = np.linspace(0, len(table) - 1, 5).round().astype(int)
      rates = {}  # those that stay are drawn once, at the first share of the steps
      for share, moment in zip(range(0, 101, 25), moments):
        rates.setdefault(tuple(table[moment]), share)
      for number, (rate, share) in enumerate(rates.items(), start=1):
        line = {
          'color': (colours or {}).get(label, style.BLUE),
          'alpha': number / len(rates),
          'ms': 3.5,
        }
        axes.plot(rate, '-o', label=f'at {share} % of the steps', **line)
      axes.set_ylim(-0.03, 1.03)
      axes.set_xticks(range(len(names)), short_names(names), rotation=90, fontsize=7)
      axes.set_title(label)
      if len(rates) > 1:
        axes.legend(loc='lower left', fontsize=7.5)
    panels[0].set_ylabel('keep rate')
  return figure
