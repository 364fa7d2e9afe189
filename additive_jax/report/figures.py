"""The pictures of a run. Each function takes a frame or arrays and returns a
`matplotlib.figure.Figure`.

Nothing here touches pyplot or global settings. A figure copes with what is not there: values that
are not finite are left out, and a missing interval is not drawn. Losses: lower is better.
Structures are text, gate 0 leftmost. The pictures made of cells live in `grids` and are reached
from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from additive_jax.errors import UserError
from additive_jax.report import rankings, statistics
from additive_jax.report.grids import cosines, interaction_heatmap, structures
from additive_jax.report.plot_style import (
  BLUE,
  FAINT,
  GREY,
  INK,
  MONO,
  PALETTE,
  VERMILION,
  drawing,
  leave_out_outliers,
  log_scale_if_wide,
  power_of_thousand,
  say_empty,
  times_power,
)
from additive_jax.report.wording import plain, short_names

__all__ = [
  'agreement',
  'comparison',
  'cosines',
  'gate_effects',
  'interaction_heatmap',
  'mean_curves',
  'pareto',
  'ranking',
  'structures',
  'training_curves',
]

_MAX_LEGEND = 12
_MAX_POINTS = 300  # points of one training curve
_OUTSIDE = {'bbox_to_anchor': (1.0, 1.0)}


def ranking(table, top=20):
  """Loss by rank: all structures as a curve with its interval, and the best `top` by name.

  Args:
    table: columns `structure`, `loss`, and where there are any `loss_ci95` (half width),
      `shared_loss`, `shared_loss_ci95`. With `shared_loss`, `loss` is the standalone one. Rows may
      come in any order; they are ranked by `loss`.
    top: number of structures shown by name.
  """
  _require(table, 'structure', 'loss')
  table = table[np.isfinite(_column(table, 'loss'))]
  table = table.iloc[np.argsort(_column(table, 'loss'), kind='stable')]
  best = table.iloc[:top]
  curve = len(table) > len(best)
  height = max(1.4, 0.8 + 0.22 * len(best))
  with drawing(9 if curve else 6.4, height, 2 if curve else 1) as (figure, axes):
    if table.empty:
      say_empty(axes[0], 'no structure has a finite loss')
      return figure
    series = [('loss', 'loss', BLUE)]
    if 'shared_loss' in table:
      series = [('loss', 'standalone', BLUE), ('shared_loss', 'shared', VERMILION)]
    for name, label, colour in series:
      if curve:
        _rank_curve(axes[0], table, name, label, colour)
      _rank_rows(axes[-1], best, name, label, colour)
    if curve:
      axes[0].set(xlabel='rank', ylabel='loss', title=f'all {len(table):,}')
      axes[0].margins(x=0.02)
      leave_out_outliers(axes[0], table[[name for name, _, _ in series]])
      axes[-1].set_title(f'best {len(best)}')
    axes[-1].set_yticks(range(len(best)), best['structure'], family=MONO)
    axes[-1].set_ylim(len(best) - 0.4, -0.6)
    axes[-1].set_xlabel('loss')
    axes[-1].xaxis.set_major_locator(MaxNLocator(6))
    axes[-1].grid(axis='y', visible=False)
    if len(series) > 1:
      axes[0].legend(loc='upper left', **({'markerscale': 3} if curve else _OUTSIDE))
  return figure


def _rank_curve(axes, table, name, label, colour):
  ranks, loss, half_width = np.arange(1, len(table) + 1), *_with_interval(table, name)
  if name == 'loss':
    axes.fill_between(ranks, loss - half_width, loss + half_width, color=colour, alpha=0.18, lw=0)
    axes.plot(ranks, loss, color=colour, label=label)
  else:
    axes.plot(ranks, loss, '.', ms=3, alpha=0.6, mew=0, color=colour, label=label, zorder=1.5)


def _rank_rows(axes, best, name, label, colour):
  loss, half_width = _with_interval(best, name)
  rows = np.arange(len(best))
  axes.errorbar(loss, rows, xerr=half_width, fmt='o', ms=4.5, lw=1.2, color=colour, label=label)


def pareto(table):
  """Loss against FLOPs, one point per structure, with the Pareto front joined and its ends named.

  Args:
    table: columns `structure`, `loss` and `flops`.
  """
  _require(table, 'structure', 'loss', 'flops')
  flops, loss = _column(table, 'flops'), _column(table, 'loss')
  front = statistics.pareto_front(flops, loss)
  exponent = power_of_thousand(flops)
  flops = flops / 10.0**exponent
  names = table['structure'].to_numpy()
  with drawing(6.4, 3.8) as (figure, (axes,)):
    if not front.any():
      say_empty(axes, 'no structure has a finite loss')
      return figure
    axes.plot(flops[~front], loss[~front], 'o', ms=_dot(len(loss)), mew=0, color=GREY, alpha=0.5)
    order = np.flatnonzero(front)[np.argsort(flops[front], kind='stable')]
    axes.plot(
      flops[order],
      loss[order],
      '-o',
      ms=5,
      color=BLUE,
      drawstyle='steps-post',
      label='Pareto front',
    )
    axes.margins(0.08, 0.12)
    leave_out_outliers(axes, loss)
    axes.set(xlabel=f'FLOPs per example{times_power(exponent)}', ylabel='loss')
    middle = sum(axes.get_xlim()) / 2
    for index in dict.fromkeys((order[-1], order[0])):
      right = flops[index] > middle
      axes.annotate(
        names[index],
        (flops[index], loss[index]),
        xytext=(-7 if right else 7, 7 if index == order[0] != order[-1] else -11),
        textcoords='offset points',
        ha='right' if right else 'left',
        family=MONO,
        fontsize=8.5,
        fontweight='bold' if index == order[-1] else 'normal',
        color=BLUE,
        path_effects=[withStroke(linewidth=3, foreground='white')],
      )
    axes.legend(loc='lower left')
  return figure


def gate_effects(effect_table):
  """Main effect of each gate on the loss, with its interval: blue lowers it, vermilion raises it.

  Args:
    effect_table: as `statistics.effect_table` makes it: columns `gate`, `effect`, and `ci95`
      if there are any.
  """
  _require(effect_table, 'gate', 'effect')
  effect, half_width = _with_interval(effect_table, 'effect', 'ci95')
  exponent = power_of_thousand(effect)
  effect, half_width = effect / 10.0**exponent, half_width / 10.0**exponent
  rows = np.arange(len(effect))
  with drawing(6.4, max(1.5, 0.8 + 0.27 * len(effect))) as (figure, (axes,)):
    colours = np.where(effect > 0, VERMILION, BLUE)
    axes.barh(rows, np.nan_to_num(effect), height=0.62, color=colours, alpha=0.85)
    axes.errorbar(
      effect, rows, xerr=half_width, fmt='none', ecolor=INK, elinewidth=1.1, capsize=2.5
    )
    axes.axvline(0, color=GREY, lw=0.8)
    axes.set_yticks(rows, short_names(effect_table['gate']))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis='y', visible=False)
    axes.set_xlabel(
      f'loss with the gate on minus off{times_power(exponent)}  (left: the gate helps)'
    )
  return figure


def training_curves(frame, measure='loss'):
  """A measure over training steps, one line per tag; long curves are averaged in bins of steps.

  Args:
    frame: columns `step`, `tag` and the measure's.
    measure: the column to draw.
  """
  _require(frame, 'step', 'tag', measure)
  groups = list(frame.groupby('tag', sort=False))
  with drawing(7.2, 3.6) as (figure, (axes,)):
    if not groups:
      say_empty(axes, 'nothing was logged')
      return figure
    many = len(groups) > len(PALETTE)
    for index, (tag, rows) in enumerate(groups):
      step, value = _binned(_column(rows, 'step'), _column(rows, measure))
      colour = _ramp(index, len(groups)) if many else PALETTE[index]
      mark = 'o' if len(step) == 1 else None
      axes.plot(step, value, color=colour, lw=0.9 if many else 1.6, marker=mark, label=str(tag))
    log_scale_if_wide(axes.set_yscale, _column(frame, measure))
    axes.margins(x=0.02)
    axes.set(xlabel='step', ylabel=measure)
    if len(groups) <= _MAX_LEGEND:
      axes.legend(loc='upper left', **_OUTSIDE)
    else:
      axes.set_title(f'{len(groups)} runs, from {groups[0][0]} (dark) to {groups[-1][0]} (light)')
  return figure


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
    label: what a name is called in the result's `tag`.
    columns: those whose mean is the measure; the measure's own by default.
  """
  columns = [measure] if columns is None else list(columns)
  if not len(curves) or not columns:
    return pd.DataFrame(columns=['step', 'tag', measure])
  frame = pd.DataFrame(
    {
      'step': curves['step'],
      'tag': curves['tag'].str.replace(r'-seed\d+$', '', regex=True),
      measure: curves[columns].mean(axis=1),
    }
  ).dropna()
  names = list(frame['tag'].unique()) if names is None else list(names)
  frame = frame[frame['tag'].isin(names)].groupby(['tag', 'step'], as_index=False).mean()
  frame = frame.sort_values('tag', key=lambda tag: tag.map(names.index), kind='stable')
  return frame.assign(tag=frame['tag'].map(label))


def agreement(predicted, truth, labels=('shared', 'standalone'), by='rank'):
  """One point per structure, its place by one way to rank against the other, with Kendall's τ.

  Args:
    predicted: losses `[S]`, on the horizontal axis.
    truth: losses `[S]`, on the vertical axis.
    labels: what the two are called.
    by: `'rank'` or `'loss'`: what is drawn.
  """
  if by not in ('rank', 'loss'):
    raise UserError(f"by={by!r} is neither 'rank' nor 'loss'")
  predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
  both = np.isfinite(predicted) & np.isfinite(truth)
  x, y = predicted[both], truth[both]
  if by == 'rank':
    x, y = statistics.rank(x), statistics.rank(y)
  with drawing(4.4, 4.2) as (figure, (axes,)):
    if not both.any():
      say_empty(axes, 'no structure has both losses')
      return figure
    if by == 'rank':
      axes.plot([1, len(x)], [1, len(x)], color=FAINT, lw=1.2)
      axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
      axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.plot(x, y, 'o', ms=_dot(len(x)), mew=0, alpha=0.6, color=BLUE)
    tau = rankings.kendall_tau(predicted, truth)
    axes.set_title(f'Kendall τ = {tau:.2f}' if np.isfinite(tau) else 'Kendall τ is not defined')
    axes.set(xlabel=f'{by}, {labels[0]}', ylabel=f'{by}, {labels[1]}')
    if by == 'loss':
      leave_out_outliers(axes, y)
  return figure


def comparison(frame, measure='loss'):
  """Variants side by side for each label, with intervals: for example co-trained against alone.

  Args:
    frame: columns `label` (a structure, or `ensemble`), `variant`, the measure's, and its half
      width `<measure>_ci95` where there is one. Labels are drawn from top to bottom in order of
      first appearance.
    measure: the column to draw.
  """
  _require(frame, 'label', 'variant', measure)
  labels, variants = list(pd.unique(frame['label'])), list(pd.unique(frame['variant']))
  with drawing(6.8, max(1.6, 0.9 + (0.2 + 0.14 * len(variants)) * len(labels))) as (
    figure,
    (axes,),
  ):
    if not labels:
      say_empty(axes, 'nothing to compare')
      return figure
    place = {label: row for row, label in enumerate(labels)}
    for index, variant in enumerate(variants):
      rows = frame[frame['variant'] == variant]
      offset = 0.6 * ((index + 0.5) / len(variants) - 0.5)
      height = [place[label] + offset for label in rows['label']]
      value, half_width = _with_interval(rows, measure)
      colour = PALETTE[index % len(PALETTE)]
      axes.errorbar(
        value,
        height,
        xerr=half_width,
        fmt='osD^v'[index % 5],
        ms=5,
        lw=1.2,
        color=colour,
        label=str(variant),
      )
    axes.set_yticks(range(len(labels)), [str(label) for label in labels], family=MONO)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    for row in range(1, len(labels)):
      axes.axhline(row - 0.5, color='#eceef1', lw=0.8)
    axes.grid(axis='y', visible=False)
    axes.set_xlabel(measure)
    axes.legend(loc='upper left', **_OUTSIDE)
  return figure


def _require(frame, *columns):
  missing = [name for name in columns if name not in frame]
  if missing:
    raise UserError(f'expected a column {missing[0]!r}, got the columns {list(frame.columns)}')


def _column(frame, name):
  return frame[name].to_numpy(np.float64, na_value=np.nan)


def _with_interval(frame, name, interval=None):
  """The column and its half width, zero where that is missing or not finite."""
  value, interval = _column(frame, name), interval or f'{name}_ci95'
  value = np.where(np.isfinite(value), value, np.nan)
  if interval not in frame:
    return value, np.zeros_like(value)
  half_width = _column(frame, interval)
  return value, np.where(np.isfinite(half_width), half_width, 0.0)


def _binned(step, value):
  """At most `_MAX_POINTS` points of a curve in order of steps, each the mean of neighbours."""
  order = np.argsort(step, kind='stable')
  bins = min(len(order), _MAX_POINTS)
  parts = np.array_split(order, bins)
  return np.array([step[p].mean() for p in parts]), np.array([value[p].mean() for p in parts])


def _dot(count):
  """Diameter in points of one of `count` points."""
  return 4.5 if count <= 300 else 2.5


def _ramp(index, count):
  """Colour of one of many ordered curves, from dark blue to light."""
  dark, light = np.array([0.03, 0.19, 0.42]), np.array([0.62, 0.80, 0.93])
  return tuple(dark + (light - dark) * index / max(count - 1, 1))
