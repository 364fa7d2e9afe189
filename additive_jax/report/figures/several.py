"""The pictures of several runs on one page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from additive_jax.report import statistics
from additive_jax.report.figures import marks, style


def fronts(
  tables: Mapping[str, pd.DataFrame], colours: style.Colours | None = None, axis: str = 'test loss'
) -> Figure:
  """Draws loss against FLOPs: the structures of each run as points, its Pareto front as a line.

  >>> table = pd.DataFrame({'loss': [0.9, 0.5, 0.6], 'flops': [100, 200, 300]})
  >>> figure = fronts({'short': table, 'long': table.assign(loss=[0.8, 0.4, 0.5])})
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  ['short', 'long']

  Args:
    tables: by run, with columns `loss` and `flops`.
    colours: of runs; by default those of the palette in their order.
    axis: what losses are.
  """
  tints = style.palette(tables, colours)
  losses = [marks.column(table, 'loss') for table in tables.values()]
  if not any(np.isfinite(loss).any() for loss in losses):
    return style.empty('no structure has a finite loss')
  costs = [marks.column(table, 'flops') for table in tables.values()]
  *costs, power = marks.scaled(*costs)
  with style.drawing(6.8, 4.0) as (figure, [[axes]]):
    for number, (name, loss, flops) in enumerate(zip(tables, losses, costs)):
      front = statistics.pareto_front(flops, loss)
      order = np.flatnonzero(front)[np.argsort(flops[front], kind='stable')]
      look = {'color': tints[name], 'marker': style.marker(number)}
      axes.plot(flops[~front], loss[~front], ls='', ms=3, mew=0, alpha=0.35, **look)
      axes.plot(flops[order], loss[order], ms=5, drawstyle='steps-post', label=name, **look)
    axes.margins(0.08, 0.12)
    marks.leave_out_outliers(axes, np.concatenate(losses))
    axes.set(xlabel=f'FLOPs per example{power}', ylabel=axis)
    marks.legend_beside(axes)
  return figure
