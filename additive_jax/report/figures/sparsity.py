"""The pictures of a compression: what it costs in quality, what noise tells, and what is left."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from additive_jax.report.figures import marks, style
from additive_jax.report.wording import plain, score_name

_HALF_POINT = 0.005
METHODS = {
  'dense': style.INK,
  'variational': style.VERMILION,
  'magnitude': style.BLUE,
  'gradual': style.GREEN,
}
_SEEDS = ('#8a3700', '#f2a878')  # shades of what variational dropout has


def method_colour(name: str) -> str:
  """Returns the colour of a network by the method that its name begins with.

  >>> method_colour('magnitude_0.9'), method_colour('start')
  ('#0072b2', '#8a9099')
  """
  return METHODS.get(re.split('[_ -]', name)[0], style.GREY)


def compression(frame: pd.DataFrame, factors: Mapping[str, str], score: str = 'accuracy') -> Figure:
  """Draws a score against how many times smaller a network is, a panel for each count.

  >>> frame = pd.DataFrame({'variant': ['dense', 'half'], 'method': ['dense', 'magnitude']})
  >>> frame = frame.assign(accuracy=[0.98, 0.97], smaller=[1, 2])
  >>> figure = compression(frame, {'smaller': 'parameters, times fewer'})
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  ['dense', '0.5 points below', 'magnitude', 'variational']

  Args:
    frame: columns `variant`, `method` ('dense', 'variational', 'magnitude' or 'gradual'), the
      score's and the factors'; each may have a half width `<name>_ci95`.
    factors: labels of the panels by column.
    score: the column of the metric; below the dense network's accuracy there is a line.
  """
  looks = {'magnitude': '-o', 'variational': 'D'}
  if 'gradual' in set(frame['method']):
    looks['gradual'] = '-s'
  size = (4.6 * len(factors) + 1.2, 3.8)
  with style.drawing(*size, columns=len(factors)) as (figure, [panels]):
    for axes, (factor, label) in zip(panels, factors.items()):
      for method, mark in looks.items():
        rows = frame[frame['method'] == method].sort_values(factor, kind='stable')
        (x, xerr), (y, yerr) = (
          marks.with_interval(rows, factor),
          marks.with_interval(rows, score),
        )
        bars = {'fmt': mark, 'ms': 5, 'lw': 1.4, 'capsize': 2.5, 'label': method}
        axes.errorbar(x, y, yerr, xerr, color=METHODS[method], **bars)
      for level in frame.loc[frame['method'] == 'dense', score]:
        axes.axhline(level, color=style.INK, lw=1.2, label='dense')
        if score == 'accuracy':
          below = {'ls': '--', 'label': '0.5 points below'}
          axes.axhline(level - _HALF_POINT, color=style.GREY, lw=1, **below)
      if frame[factor].max() > 5:
        axes.set_xscale('log')
        axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}×')
        axes.xaxis.set_minor_formatter(lambda value, _: '')
      axes.set_xlabel(label)
    panels[0].set_ylabel(f'test {score_name(score)}')
    marks.legend_beside(panels[-1])
  return figure


def log_alpha(
  edges: Float[np.ndarray, ' edges'], counts: Mapping[str, ArrayLike], threshold: float
) -> Figure:
  """Draws how log α is spread at the end of training; what is right of the threshold is removed.

  >>> figure = log_alpha(np.array([-4.0, 0.0, 4.0]), {'mlp': [90, 10]}, threshold=3.0)
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  ['mlp', 'threshold 3']

  Args:
    edges: of the K bins.
    counts: by label, numbers in the bins `[K]`.
    threshold: of log α.
  """
  if not counts:
    return style.empty('nothing was learnt')
  with style.drawing(7.2, 3.2) as (figure, [[axes]]):
    for tint, (label, values) in zip(style.shades(len(counts), _SEEDS), counts.items()):
      axes.stairs(values, edges, color=tint, lw=1.3, label=label)
    axes.set_yscale('symlog', linthresh=1)
    axes.set_ylim(0, None)
    axes.axvline(threshold, color=style.INK, lw=1.2, ls='--', label=f'threshold {threshold:g}')
    axes.axvspan(threshold, edges[-1], color=style.GREY, alpha=0.12, lw=0)
    axes.set(xlabel='log α', ylabel='number', xlim=(edges[0], edges[-1]))
    marks.legend_beside(axes)
  return figure


def layers_left(frame: pd.DataFrame) -> Figure:
  """Draws what is left of each layer, a bar for each network.

  >>> frame = pd.DataFrame({'layer': ['hidden', 'readout'], 'left': [3, 20], 'of': [12, 20]})
  >>> frame = frame.assign(variant='units', share=frame['left'] / frame['of'])
  >>> figure = layers_left(frame)
  >>> [text.get_text() for text in figure.axes[0].texts]
  [' 3 of 12', ' 20 of 20']

  Args:
    frame: columns `variant`, `layer`, `left`, `of` and `share`.
  """
  if frame.empty:
    return style.empty('nothing is left')
  names, layers = frame['variant'].unique(), list(frame['layer'].unique())
  thickness = 0.84 / len(names)
  with style.drawing(7.6, 0.9 + (0.24 * len(names) + 0.16) * len(layers)) as (figure, [[axes]]):
    for number, name in enumerate(names):
      network = frame[frame['variant'] == name].set_index('layer').loc[layers]
      rows = np.arange(len(layers)) + thickness * (number - (len(names) - 1) / 2)
      axes.barh(
        rows, network['share'], thickness, color=method_colour(name), lw=0, label=plain(name)
      )
      for row, share, left, size in zip(rows, network['share'], network['left'], network['of']):
        text = f' {left:,.0f} of {size:,.0f}'
        axes.text(share, row, text, va='center', fontsize=7.5, color=style.INK)
    marks.name_rows(axes, layers)
    axes.set_xlabel('share that is left')
    axes.set_xlim(0, 1.3 * max(float(frame['share'].max()), 1e-6))
    marks.legend_beside(axes)
  return figure
