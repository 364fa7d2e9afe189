"""The pictures of Exp 5: loss against what was spent, and what is saved at equal loss."""

import numpy as np

from additive_jax.report.plot_style import GREY, INK, PALETTE, drawing, say_empty

SCRATCH = 'scratch'
FLOPS = 'FLOPs of training, narrow models included'
NAMES = {
  'scratch': 'from scratch',
  'clusters': 'narrow models on clusters',
  'random_split': 'narrow models on a random split',
  'one_narrow': 'one narrow model',
  'untrained': 'untrained transplant',
}


def booster(curves, variants):
  """Test loss against the FLOPs of the whole training, beside what each way saves at equal loss.

  Args:
    curves: columns variant, seed, phase, flops, loss.
    variants: columns variant, saving, saving_ci95, reached, one row per way.
  """
  with drawing(10.4, 3.6, 2, width_ratios=[1.55, 1]) as (figure, (left, right)):
    _spent(left, curves, 'flops', 'loss', FLOPS, 'test loss')
    others = variants[variants['variant'] != SCRATCH]
    _saved(right, others, list(dict.fromkeys(curves['variant'])))
  return figure


def spent(curves, measure, label, scores=('loss', 'accuracy')):
  """Test scores, side by side, against what was spent, a column of `curves`."""
  with drawing(0.4 + 5 * len(scores), 3.2, len(scores)) as (figure, panels):
    for axes, score in zip(panels, scores):
      _spent(axes, curves, measure, score, label, f'test {score}')
    for axes in panels[1:]:
      axes.get_legend().remove()
  return figure


def _spent(axes, curves, measure, score, label, title):
  """A line for each way, mean over the seeds; the best of training from scratch as a level."""
  if not len(curves):
    say_empty(axes, 'nothing was trained')
    return
  for number, (variant, own) in enumerate(curves.groupby('variant', sort=False)):
    order = own.groupby(['phase', 'step'], sort=False)[[measure, score]].mean()
    style = {'color': _colour(number), 'label': NAMES.get(variant, variant)}
    axes.plot(order[measure], order[score], '-', lw=1.9 if variant == SCRATCH else 1.5, **style)
    starts = order[(order.index.get_level_values('phase') == 'large')]
    if variant != SCRATCH:
      first = starts.iloc[0]
      axes.plot(first[measure], first[score], 'o', ms=5, mfc='white', mew=1.5, color=style['color'])
  own = curves[curves['variant'] == SCRATCH]
  if len(own):
    each = own.groupby('seed')[score]
    level = (each.min() if score == 'loss' else each.max()).mean()
    axes.axhline(level, color=GREY, lw=0.9, ls='--')
  values = curves[score].to_numpy(float)
  values = values[np.isfinite(values)]
  if len(values):
    # The first points, of networks that know nothing yet, would press the rest together.
    ends = (values.min(), np.quantile(values, 0.9))
    if score != 'loss':
      ends = (np.quantile(values, 0.1), values.max())
    margin = 0.05 * (ends[1] - ends[0]) or 0.05
    axes.set_ylim(ends[0] - margin, ends[1] + margin)
  axes.set_xlim(left=0)
  axes.set_xlabel(label)
  axes.set_ylabel(title)
  axes.legend(loc='best', fontsize=7.5)


def _saved(axes, variants, order):
  if not len(variants):
    say_empty(axes, 'nothing to compare')
    return
  rows = np.arange(len(variants))
  for row, one in zip(rows, variants.to_dict('records')):
    colour = _colour(order.index(one['variant']))
    if np.isfinite(one['saving']):
      half_width = np.nan_to_num(one['saving_ci95'])
      axes.barh(row, 100 * one['saving'], height=0.55, color=colour, alpha=0.85)
      axes.errorbar(100 * one['saving'], row, xerr=100 * half_width, color=INK, lw=1.2, capsize=2)
    else:
      some = f'reached in {one["reached"]:.0f} of the seeds only'
      said = some if one['reached'] else 'not reached'
      axes.text(1, row, said, va='center', fontsize=8, color=GREY)
  axes.axvline(0, color=GREY, lw=0.9)
  low, high = axes.get_xlim()
  axes.set_xlim(min(low, 0), max(high, 60))
  axes.set_yticks(rows, [NAMES.get(name, name) for name in variants['variant']])
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.grid(axis='y', visible=False)
  axes.set_xlabel('FLOPs saved at equal loss, %')


def _colour(number):
  return PALETTE[number % len(PALETTE)]
