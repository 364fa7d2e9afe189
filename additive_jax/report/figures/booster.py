"""The pictures of Exp 5: loss against what was spent, and what is saved at equal loss."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from additive_jax.report.figures import marks, style
from additive_jax.report.wording import score_name

SCRATCH = 'scratch'
FLOPS = 'FLOPs of training, narrow models included'
NAMES = {
  'scratch': 'from scratch',
  'clusters': 'narrow models on clusters',
  'random_split': 'narrow models on a random split',
  'one_narrow': 'one narrow model',
  'untrained': 'untrained transplant',
}


def savings(curves: pd.DataFrame, variants: pd.DataFrame) -> Figure:
  """Draws test loss against the FLOPs of the whole training, and what is saved at equal loss.

  >>> curves = pd.DataFrame({'variant': ['scratch', 'clusters'], 'flops': [2e6, 2e6]})
  >>> curves = curves.assign(seed=0, phase='large', step=1, loss=[1.6, 1.5])
  >>> ways = pd.DataFrame({'variant': ['scratch', 'clusters'], 'saving': [0.0, 0.25]})
  >>> figure = savings(curves, ways.assign(saving_ci95=0.05, reached=1))
  >>> [float(bar.get_width()) for bar in figure.axes[1].patches]
  [25.0]

  Args:
    curves: columns variant, seed, phase, step, flops, loss.
    variants: columns variant, saving, saving_ci95, reached, one row per way of training.
  """
  with style.drawing(10.4, 3.6, columns=2, width_ratios=[1.55, 1]) as (figure, [[left, right]]):
    if len(curves):
      _draw_curves(left, curves, 'flops', 'loss', FLOPS, True)
    else:
      style.say_empty(left, 'nothing was trained')
    order = list(curves['variant'].unique())
    others = variants[variants['variant'] != SCRATCH]
    if len(others):
      _draw_savings(right, others, [style.colour(order.index(name)) for name in others['variant']])
    else:
      style.say_empty(right, 'nothing to compare')
  return figure


def spent(
  curves: pd.DataFrame,
  cost: str,
  label: str,
  scores: Sequence[str] = ('loss', 'accuracy'),
  lower: Collection[str] = ('loss',),
) -> Figure:
  """Draws test scores, side by side, against what was spent.

  >>> curves = pd.DataFrame({'variant': 'scratch', 'flops': [1e6, 2e6], 'loss': [2.0, 1.5]})
  >>> curves = curves.assign(seed=0, phase='large', step=[1, 2])
  >>> figure = spent(curves, 'flops', 'FLOPs of training', scores=['loss'])
  >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
  ('FLOPs of training', 'test loss')

  Args:
    curves: columns variant, seed, phase, step, the cost's and the scores'.
    cost: the column of what was spent.
    label: of that column.
    scores: columns to draw, one a panel.
    lower: those of which lower is better.
  """
  if not len(curves):
    return style.empty('nothing was trained')
  size = (0.4 + 5 * len(scores), 3.2)
  with style.drawing(*size, columns=len(scores)) as (figure, [panels]):
    for axes, score in zip(panels, scores):
      _draw_curves(axes, curves, cost, score, label, score in lower)
    for axes in panels[1:]:
      axes.get_legend().remove()
  return figure


def _draw_curves(axes, curves, cost, score, label, lower):
  """Draws a line for each way, mean over the seeds; the best of training from scratch as a
  level."""
  for number, (variant, rows) in enumerate(curves.groupby('variant', sort=False)):
    mean = rows.groupby(['phase', 'step'], sort=False)[[cost, score]].mean()
    look = {'color': style.colour(number), 'label': NAMES.get(variant, variant)}
    axes.plot(mean[cost], mean[score], '-', lw=1.9 if variant == SCRATCH else 1.5, **look)
    if variant != SCRATCH:
      start = mean.loc['large'].iloc[0]
      axes.plot(
        start[cost], start[score], 'o', ms=5, mfc='white', mew=1.5, color=style.colour(number)
      )
  scratch = curves[curves['variant'] == SCRATCH].groupby('seed')[score]
  best = (scratch.min() if lower else scratch.max()).mean()
  if np.isfinite(best):
    axes.axhline(best, color=style.GREY, lw=0.9, ls='--')
  values = curves[score].to_numpy(float)
  values = values[np.isfinite(values)]
  if len(values):
    # The first points, of networks that know nothing yet, would press the rest together.
    low, high = np.quantile(values, [0, 0.9] if lower else [0.1, 1])
    margin = 0.05 * (high - low) or 0.05
    axes.set_ylim(low - margin, high + margin)
  axes.set_xlim(left=0)
  axes.set(xlabel=label, ylabel=f'test {score_name(score)}')
  axes.legend(loc='best', fontsize=7.5)


def _draw_savings(axes, variants, colours):
  """Bars in percent with intervals; in words where the loss was not reached."""
  for row, (saving, half_width) in enumerate(zip(*marks.with_interval(variants, 'saving'))):
    if np.isfinite(saving):
      axes.barh(row, 100 * saving, height=0.55, color=colours[row], alpha=0.85)
      axes.errorbar(100 * saving, row, xerr=100 * half_width, color=style.INK, lw=1.2, capsize=2)
    else:
      seeds = variants['reached'].iloc[row]
      text = f'reached in {seeds:.0f} of the seeds only' if seeds else 'not reached'
      axes.text(1, row, text, va='center', fontsize=8, color=style.GREY)
  axes.axvline(0, color=style.GREY, lw=0.9)
  low, high = axes.get_xlim()
  axes.set_xlim(min(low, 0), max(high, 60))
  marks.name_rows(axes, [NAMES.get(name, name) for name in variants['variant']])
  axes.set_xlabel('FLOPs saved at equal loss, %')
