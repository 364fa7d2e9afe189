"""The pictures of Exp 3: variants side by side, what they differ by, and all their structures."""

import numpy as np

from additive_jax.report.plot_style import GREY, INK, PALETTE, drawing, say_empty
from additive_jax.report.wording import short_names


def variants(frame, measures, titles):
  """Points with intervals, a panel for each measure, a row for each variant.

  Args:
    frame: columns `variant`, the measures', and their half widths `<measure>_ci95`.
    measures: columns to draw.
    titles: of the panels, one per measure.
  """
  return _rows(frame, measures, titles, zero=False)


def differences(frame, measures, titles):
  """Paired differences from a base line at zero, otherwise as `variants`."""
  return _rows(frame, measures, titles, zero=True)


def _rows(frame, measures, titles, zero):
  height = max(1.5, 0.8 + 0.3 * len(frame))
  with drawing(9.6, height, len(measures)) as (figure, panels):
    rows = np.arange(len(frame))
    for place, (axes, measure, title) in enumerate(zip(panels, measures, titles)):
      value = frame[measure].to_numpy(float)
      half_width = np.nan_to_num(frame[f'{measure}_ci95'].to_numpy(float))
      for row in rows:
        colour = _colour(row + zero)
        axes.errorbar(value[row], row, xerr=half_width[row], fmt='o', ms=5, lw=1.4, color=colour)
      if zero:
        axes.axvline(0, color=GREY, lw=0.9)
      axes.set_yticks(rows, list(frame['variant']) if place == 0 else [''] * len(rows))
      axes.set_ylim(len(rows) - 0.4, -0.6)
      axes.grid(axis='y', visible=False)
      axes.set_title(title)
      axes.margins(x=0.12)
      axes.locator_params(axis='x', nbins=4)
  return figure


def distributions(values, names, all_on, label='accuracy'):
  """How a score is spread over structures: for each variant a violin, with its quartiles and the
  full network.

  Args:
    values: for each variant the score of every structure [S], means over the seeds.
    names: of the variants.
    all_on: score of the full network of each variant.
    label: of the score.
  """
  with drawing(7.2, max(1.8, 0.9 + 0.5 * len(names))) as (figure, (axes,)):
    for row, found in enumerate(values):
      found = np.asarray(found, float)
      found = found[np.isfinite(found)]
      if len(found) > 1 and np.ptp(found) > 0:
        parts = axes.violinplot(
          found, [row], orientation='horizontal', widths=0.85, showextrema=False, points=200
        )
        for body in parts['bodies']:
          body.set(facecolor=_colour(row), edgecolor='none', alpha=0.35)
        low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
        axes.plot([low, high], [row, row], color=_colour(row), lw=3, solid_capstyle='butt')
        axes.plot(middle, row, '|', ms=11, mew=2, color=INK)
      axes.plot(all_on[row], row, 'o', ms=5.5, mfc='white', mew=1.6, color=_colour(row), zorder=3)
    if not names:
      say_empty(axes, 'nothing to compare')
      return figure
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis='y', visible=False)
    axes.set_xlabel(f'{label}  (○ full network, bar: middle half of the structures, | median)')
  return figure


def keep_rates(tables, labels, names):
  """Keep rates over depth: one line for each moment of a training, one panel for each variant.

  Args:
    tables: for each variant rates [num_steps, n].
    labels: of the variants.
    names: of the gates.
  """
  with drawing(9.6 if len(tables) > 1 else 5.6, 2.6, len(tables)) as (figure, panels):
    for place, (axes, table, label) in enumerate(zip(panels, tables, labels)):
      moments = np.linspace(0, len(table) - 1, 5).round().astype(int)
      drawn = {}
      for share, moment in zip((0, 25, 50, 75, 100), moments):
        if not any(np.array_equal(table[moment], table[other]) for other in drawn.values()):
          drawn[share] = moment
      for number, (share, moment) in enumerate(drawn.items(), start=1):
        line = {'color': PALETTE[0], 'alpha': number / len(drawn)}
        axes.plot(table[moment], '-o', ms=3.5, label=f'at {share} % of the steps', **line)
      axes.set_ylim(-0.03, 1.03)
      axes.set_xticks(range(len(names)), short_names(names), rotation=90, fontsize=7)
      axes.set_title(label)
      if place == 0:
        axes.set_ylabel('keep rate')
      if len(drawn) > 1:
        axes.legend(loc='lower left', fontsize=7.5)
  return figure


def _colour(row):
  return PALETTE[row % len(PALETTE)]
