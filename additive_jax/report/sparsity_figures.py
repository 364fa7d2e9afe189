"""The pictures of a compression: what it costs in accuracy, what noise tells, and what is left.

Each function returns a `matplotlib.figure.Figure`.
"""

import numpy as np

from additive_jax.report.plot_style import BLUE, GREY, INK, PALETTE, VERMILION, drawing, say_empty

_HALF_POINT = 0.005


def accuracy(frame, labels):
  """Accuracy against how many times smaller a network is, by weights and by FLOPs.

  Args:
    frame: columns `variant`, `method` ('dense', 'variational' or 'magnitude'), `accuracy` and, by
      the keys of `labels`, how many times smaller; each may have a half width `<name>_ci95`.
    labels: of the panels, by column.
  """
  with drawing(4.6 * len(labels) + 1.2, 3.8, len(labels)) as (figure, panels):
    dense = frame[frame['method'] == 'dense']
    for axes, (column, label) in zip(panels, labels.items()):
      for method, colour, look in (('magnitude', BLUE, '-o'), ('variational', VERMILION, 'D')):
        own = frame[frame['method'] == method].sort_values(column, kind='stable')
        x, y = own[column].to_numpy(float), own['accuracy'].to_numpy(float)
        bars = {'xerr': _half_width(own, column), 'yerr': _half_width(own, 'accuracy')}
        axes.errorbar(x, y, **bars, fmt=look, ms=5, lw=1.4, capsize=2.5, color=colour, label=method)
      for level in dense['accuracy']:
        axes.axhline(level, color=INK, lw=1.2, label='dense')
        axes.axhline(level - _HALF_POINT, color=GREY, lw=1, ls='--', label='0.5 points below')
      values = frame[column].to_numpy(float)
      if values.size and np.nanmax(values) > 5:
        axes.set_xscale('log')
        axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}×')
        axes.xaxis.set_minor_formatter(lambda value, _: '')
      axes.set_xlabel(label)
    panels[0].set_ylabel('test accuracy')
    panels[-1].legend(loc='upper left', bbox_to_anchor=(1.0, 1.0))
  return figure


def log_alpha(edges, counts, threshold):
  """How log α is spread at the end of training, on a logarithmic scale; what is right of the
  threshold is removed.

  Args:
    edges: of the bins, [K + 1].
    counts: by label, numbers in the bins [K].
    threshold: of log α.
  """
  with drawing(7.2, 3.2) as (figure, (axes,)):
    if not counts:
      say_empty(axes, 'nothing was learnt')
      return figure
    for number, (label, own) in enumerate(counts.items()):
      colour = PALETTE[number % len(PALETTE)]
      axes.stairs(own, edges, color=colour, lw=1.3, label=label)
    axes.set_yscale('symlog', linthresh=1)
    axes.set_ylim(0, None)
    axes.axvline(threshold, color=INK, lw=1.2, ls='--', label=f'threshold {threshold:g}')
    axes.axvspan(threshold, edges[-1], color=GREY, alpha=0.12, lw=0)
    axes.set(xlabel='log α', ylabel='number', xlim=(edges[0], edges[-1]))
    axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0))
  return figure


def remains(frame):
  """What is left of each layer, a bar for each network.

  Args:
    frame: columns `variant`, `layer`, `left`, `of` and `share`.
  """
  names, layers = list(dict.fromkeys(frame['variant'])), list(dict.fromkeys(frame['layer']))
  height = 0.9 + (0.24 * len(names) + 0.16) * max(len(layers), 1)
  with drawing(7.6, height) as (figure, (axes,)):
    if frame.empty:
      say_empty(axes, 'nothing is left')
      return figure
    thick = 0.84 / len(names)
    for number, name in enumerate(names):
      own = frame[frame['variant'] == name].set_index('layer').loc[layers]
      rows = np.arange(len(layers)) + thick * (number - (len(names) - 1) / 2)
      colour = PALETTE[number % len(PALETTE)]
      axes.barh(rows, own['share'], thick, color=colour, lw=0, label=name.replace('_', ' '))
      for row, share, left, size in zip(rows, own['share'], own['left'], own['of']):
        text = f' {left:,.0f} of {size:,.0f}'
        axes.text(share, row, text, va='center', fontsize=7.5, color=INK)
    axes.set_yticks(range(len(layers)), layers)
    axes.set(ylim=(len(layers) - 0.4, -0.6), xlabel='share that is left')
    axes.set_xlim(0, 1.3 * max(float(frame['share'].max()), 1e-6))
    axes.grid(axis='y', visible=False)
    axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0))
  return figure


def _half_width(frame, column):
  name = f'{column}_ci95'
  return np.nan_to_num(frame[name].to_numpy(float)) if name in frame else np.zeros(len(frame))
