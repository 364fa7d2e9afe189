"""Pictures of a pruning: what parts do over depth, and what searches found."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from additive_jax.report.figures import marks, style
from additive_jax.report.wording import plain


def contributions(gates: pd.DataFrame) -> Figure:
  """Draws by how much the loss grows without each part, over depth: a panel for each kind of part.

  >>> names = ['layer_00/attention', 'layer_00/mlp', 'layer_01/attention', 'layer_01/mlp']
  >>> frame = pd.DataFrame({'gate': names, 'alone': [0.5, 0.2, 0.1, 0.02]})
  >>> [axes.get_title('left') for axes in contributions(frame).axes]
  ['attention', 'mlp']

  Args:
    gates: columns `gate`, a name that begins with its layer and number, `alone`, and for error
      bars `alone_ci95`.
  """
  marks.require(gates, 'gate', 'alone')
  names = [re.sub('/residual$', '', name) for name in gates['gate']]
  kinds = [re.sub(r'^[a-z]*_?\d+/?', '', name) or 'parts' for name in names]
  different = list(dict.fromkeys(kinds))[:6]
  with style.drawing(9.6, 1.0 + 1.5 * len(different), len(different), sharey=True) as (
    figure,
    rows,
  ):
    for (axes,), kind in zip(rows, different):
      chosen = gates[[other == kind for other in kinds]]
      values = chosen['alone'].to_numpy(float)
      half = chosen['alone_ci95'].to_numpy(float) if 'alone_ci95' in chosen else np.array([np.nan])
      depth = np.arange(len(values))
      colours = np.where(values < 0, style.VERMILION, style.BLUE)
      axes.bar(
        depth,
        np.nan_to_num(values),
        yerr=np.nan_to_num(half) if np.isfinite(half).any() else None,
        width=0.7,
        color=colours,
        alpha=0.85,
        error_kw={'lw': 0.8, 'ecolor': style.GREY},
      )
      axes.axhline(0, color=style.GREY, lw=0.8)
      axes.set_title(kind, loc='left')
      axes.set_ylabel('loss without − with')
      if len(values) and values.max() > 30 * max(np.median(np.abs(values)), 1e-9):
        axes.set_yscale('symlog', linthresh=float(max(np.median(np.abs(values)), 1e-6)))
    rows[-1][0].set_xlabel('depth, first to last')
  return figure


def search_paths(methods: pd.DataFrame, kind: str) -> Figure:
  """Draws the loss of the best structure of each method against what is removed.

  >>> frame = pd.DataFrame({'method': ['greedy', 'random'], 'removed': [0.2, 0.2]})
  >>> frame = frame.assign(loss=[1.0, 1.5], loss_ci95=np.nan)
  >>> search_paths(frame, 'params').axes[0].get_xlabel()
  'share of params removed'

  Args:
    methods: columns `method`, `removed`, `loss`, `loss_ci95`.
    kind: the unit of costs.
  """
  marks.require(methods, 'method', 'removed', 'loss', 'loss_ci95')
  tints = style.palette(methods['method'])
  with style.drawing(6.4, 3.6) as (figure, [[axes]]):
    for number, (method, part) in enumerate(methods.groupby('method', sort=False)):
      part = part.sort_values('removed')
      half = np.nan_to_num(part['loss_ci95'].to_numpy(float))
      axes.errorbar(
        part['removed'],
        part['loss'],
        yerr=half if half.any() else None,
        label=plain(str(method)),
        color=tints[str(method)],
        marker=style.marker(number),
        ms=4.5,
        lw=1.4,
        capsize=2.5,
      )
    axes.set(xlabel=f'share of {kind} removed', ylabel='test loss')
    marks.leave_out_outliers(axes, methods['loss'])
    marks.legend_beside(axes)
  return figure
