"""The pictures that compare ways of training: scores, differences, distributions, and budgets."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from additive_jax.report.figures import marks, style
from additive_jax.report.wording import plain, score_name


def scores(
  frame: pd.DataFrame, measures: Mapping[str, str], colours: style.Colours | None = None
) -> Figure:
  """Draws points with intervals: a row for each variant, a panel for each measure.

  >>> frame = pd.DataFrame({'variant': ['none', 'per_sample'], 'loss': [0.41, 0.38]})
  >>> figure = scores(frame.assign(loss_ci95=0.01), {'loss': 'test loss'})
  >>> figure.axes[0].get_title('left')
  'test loss'
  >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
  ['none', 'per sample']

  Args:
    frame: columns `variant`, the measures', and their half widths `<measure>_ci95`.
    measures: titles of the panels by column.
    colours: of variants; by default those of the palette in the order of the rows.
  """
  return _points(frame, measures, colours, is_difference=False)


def differences(
  frame: pd.DataFrame, measures: Mapping[str, str], colours: style.Colours | None = None
) -> Figure:
  """Draws paired differences from a baseline at zero, otherwise as `scores`.

  The baseline itself is not among the rows.

  >>> frame = pd.DataFrame({'variant': ['per_sample'], 'loss': [-0.03], 'loss_ci95': [0.01]})
  >>> figure = differences(frame, {'loss': 'test loss minus that of none'})
  >>> figure.axes[0].get_title('left')
  'test loss minus that of none'
  """
  return _points(frame, measures, colours, is_difference=True)


def _points(frame, measures, colours, is_difference):
  baseline = ['baseline'] if is_difference else []  # has the first colour, and no row
  colours = style.palette([*baseline, *frame['variant']], colours)
  height = max(1.5, 0.8 + 0.3 * len(frame))
  with style.drawing(9.6, height, columns=len(measures), sharey=True) as (figure, [panels]):
    for axes, (measure, title) in zip(panels, measures.items()):
      values = zip(frame['variant'], *marks.with_interval(frame, measure))
      for row, (name, value, half_width) in enumerate(values):
        axes.errorbar(value, row, xerr=half_width, fmt='o', ms=5, lw=1.4, color=colours[name])
      if is_difference:
        axes.axvline(0, color=style.GREY, lw=0.9)
      marks.name_rows(axes, [plain(name) for name in frame['variant']])
      axes.set_title(title)
      axes.margins(x=0.12)
      axes.locator_params(axis='x', nbins=4)
  return figure


def comparison(
  frame: pd.DataFrame,
  measure: str = 'loss',
  colours: style.Colours | None = None,
  axis: str = '',
) -> Figure:
  """Draws variants side by side for each label, with intervals: co-trained against alone.

  >>> frame = pd.DataFrame({'label': ['110', '110'], 'variant': ['alone', 'co-trained']})
  >>> figure = comparison(frame.assign(loss=[0.31, 0.29]))
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  ['alone', 'co-trained']

  Args:
    frame: columns `label` (a structure, or `ensemble`), `variant`, the measure's, and its half
      width `<measure>_ci95` where there is one. Labels are drawn from top to bottom in order of
      first appearance.
    measure: the column to draw.
    colours: of variants; by default those of the palette in order of appearance.
    axis: what the values are; '' is the measure on the test split.
  """
  marks.require(frame, 'label', 'variant', measure)
  labels, variants = list(frame['label'].unique()), list(frame['variant'].unique())
  if not labels:
    return style.empty('nothing to compare')
  tints = style.palette(variants, colours)
  height = max(1.6, 0.9 + (0.2 + 0.14 * len(variants)) * len(labels))
  with style.drawing(6.8, height) as (figure, [[axes]]):
    for number, variant in enumerate(variants):
      rows = frame[frame['variant'] == variant]
      offset = 0.6 * ((number + 0.5) / len(variants) - 0.5)
      value, half_width = marks.with_interval(rows, measure)
      height = [labels.index(label) + offset for label in rows['label']]
      look = {'fmt': style.marker(number), 'ms': 5, 'lw': 1.2, 'color': tints[variant]}
      axes.errorbar(value, height, xerr=half_width, label=str(variant), **look)
    marks.name_rows(axes, [str(label) for label in labels], family=style.MONO)
    for row in range(1, len(labels)):
      axes.axhline(row - 0.5, color=style.PALE, lw=0.8)
    axes.set_xlabel(axis or f'test {measure}')
    marks.legend_beside(axes)
  return figure


def distributions(
  values: Mapping[str, ArrayLike],
  all_on: Mapping[str, float],
  colours: style.Colours | None = None,
  score: str = 'accuracy',
) -> Figure:
  """Draws how a score is spread over structures: violins with quartiles, and the full networks.

  >>> accuracy = {'none': [0.2, 0.4, 0.5], 'per_sample': [0.5, 0.6, 0.6]}
  >>> figure = distributions(accuracy, all_on={'none': 0.9, 'per_sample': 0.8})
  >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
  ['none', 'per_sample']

  Args:
    values: by variant the score of every structure `[S]`, means over the seeds.
    all_on: by variant that of the full network.
    colours: of variants.
    score: what it is called.
  """
  colours = style.palette(values, colours)
  if not values:
    return style.empty('nothing to compare')
  with style.drawing(7.2, max(1.8, 0.9 + 0.5 * len(values))) as (figure, [[axes]]):
    for row, (name, sample) in enumerate(values.items()):
      sample = np.asarray(sample, np.float64)
      sample = sample[np.isfinite(sample)]
      if len(sample) > 1 and np.ptp(sample) > 0:
        violin = {'orientation': 'horizontal', 'widths': 0.85, 'showextrema': False, 'points': 200}
        for body in axes.violinplot(sample, [row], **violin)['bodies']:
          body.set(facecolor=colours[name], edgecolor='none', alpha=0.35)
        low, middle, high = np.quantile(sample, [0.25, 0.5, 0.75])
        axes.plot([low, high], [row, row], color=colours[name], lw=3, solid_capstyle='butt')
        axes.plot(middle, row, '|', ms=11, mew=2, color=style.INK)
      ring = {'ms': 5.5, 'mfc': 'white', 'mew': 1.6, 'zorder': 3}
      axes.plot(all_on[name], row, 'o', color=colours[name], **ring)
    marks.name_rows(axes, list(values))
    axes.set_xlabel(
      f'{score_name(score)}  (○ full network, bar: middle half of the structures, | median)'
    )
  return figure


def budgets(frame: pd.DataFrame, colours: style.Colours | None = None) -> Figure:
  """Draws test loss against active FLOPs, and against parameters; the dense networks are joined.

  A model below the line does better than a dense one of its budget.

  >>> frame = pd.DataFrame({'variant': ['dense_4', 'moe'], 'family': ['dense', 'mixture']})
  >>> frame = frame.assign(loss=[1.5, 1.4], loss_ci95=0.01, flops=[2e6, 2e6], params=[4e5, 9e5])
  >>> [axes.get_xlabel() for axes in budgets(frame).axes]
  ['active FLOPs per example (×10⁶)', 'parameters (×10³)']

  Args:
    frame: columns `variant`, `family` (`dense` is the one that is joined), `loss`, `loss_ci95`
      (half width, may be NaN), `flops` and `params`.
    colours: of variants; by default a family has one, dark for the dense ones.
  """
  marks.require(frame, 'variant', 'family', 'loss', 'loss_ci95', 'flops', 'params')
  frame = frame[np.isfinite(frame[['loss', 'flops', 'params']].to_numpy(np.float64)).all(axis=1)]
  if frame.empty:
    return style.empty('no model has a finite loss')
  labels = {'flops': 'active FLOPs per example', 'params': 'parameters'}
  size = (9.6, max(3.4, 1.0 + 0.2 * len(frame)))
  with style.drawing(*size, columns=2, sharey=True) as (figure, [panels]):
    for axes, (cost, label) in zip(panels, labels.items()):
      costs, power = marks.scaled(frame[cost])
      _draw_budget(axes, frame.assign(cost=costs), family_colours(frame) | dict(colours or {}))
      axes.set_xlabel(label + power)
    panels[0].set_ylabel('test loss')
    marks.legend_beside(panels[1])
  return figure


def family_colours(frame: pd.DataFrame) -> dict[str, str]:
  """Returns the colours of networks: one for each family, dark for `dense`.

  Args:
    frame: columns `variant` and `family`.

  >>> rows = [('dense', 'dense'), ('moe_small', 'moe'), ('moe_large', 'moe')]
  >>> list(family_colours(pd.DataFrame(rows, columns=['variant', 'family'])).values())
  ['#22262b', '#0072b2', '#0072b2']
  """
  families = style.palette(name for name in frame['family'] if name != 'dense')
  families['dense'] = style.INK
  return {name: families[family] for name, family in zip(frame['variant'], frame['family'])}


def _draw_budget(axes, frame, colours):
  dense = frame[frame['family'] == 'dense'].sort_values('cost', kind='stable')
  axes.plot(dense['cost'], dense['loss'], color=style.GREY, lw=1.2, zorder=1)
  place = frame.groupby('family').cumcount()  # of a network within its family
  columns = (frame['variant'], frame['cost'], place)
  rows = zip(*columns, *marks.with_interval(frame, 'loss'))
  for variant, cost, number, loss, half_width in rows:
    look = {'marker': style.marker(number), 'ms': 6, 'lw': 1.2, 'capsize': 2.5}
    look |= {'color': colours[variant], 'label': plain(variant)}
    axes.errorbar(cost, loss, half_width, ls='none', **look)
  axes.margins(0.08, 0.1)
