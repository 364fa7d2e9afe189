"""The pictures of structures: how they rank, what they cost, and what each gate does.

Structures are text, gate 0 leftmost. Losses: lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from additive_jax.errors import UserError
from additive_jax.report import statistics
from additive_jax.report.figures import marks, style
from additive_jax.report.rankings import kendall_tau
from additive_jax.report.wording import short_names

_MAX_ANNOTATED = 16  # rows of a heat map in which numbers can still be read


def ranking(table: pd.DataFrame, top: int = 20, split: str = 'test') -> Figure:
  """Draws loss by rank: all structures as a curve with its interval, and the best ones by name.

  >>> table = pd.DataFrame({'structure': ['00', '10', '11'], 'loss': [0.9, 0.5, 0.4]})
  >>> figure = ranking(table, top=2)
  >>> [label.get_text() for label in figure.axes[-1].get_yticklabels()]
  ['11', '10']

  Args:
    table: columns `structure`, `loss`, and where there are any `loss_ci95` (half width),
      `shared_loss`, `shared_loss_ci95`. With `shared_loss`, `loss` is the standalone one. Rows may
      come in any order; they are ranked by `loss`.
    top: number of structures shown by name.
    split: what losses are of, a word before `loss`.
  """
  marks.require(table, 'structure', 'loss')
  loss = marks.column(table, 'loss')
  table = table.iloc[statistics.best_first(loss)[: np.isfinite(loss).sum()]]
  if table.empty:
    return style.empty('no structure has a finite loss')
  best, series = table.iloc[:top], [('loss', 'loss', style.BLUE)]
  if 'shared_loss' in table:
    series = [('loss', 'standalone', style.BLUE), ('shared_loss', 'shared', style.VERMILION)]
  curve = len(table) > len(best)
  size = (9 if curve else 6.4, max(1.4, 0.8 + 0.22 * len(best)))
  with style.drawing(*size, columns=2 if curve else 1) as (figure, [panels]):
    left, right = panels[0], panels[-1]
    for number, (name, label, colour) in enumerate(series):
      if curve:
        _rank_curve(left, table, name, label, colour)
      loss, half_width = marks.with_interval(best, name)
      dots = {'fmt': 'o', 'ms': 4.5, 'lw': 1.2, 'color': colour}
      # One above the other, so that neither interval hides the other.
      rows = np.arange(len(best)) + 0.36 * (number - (len(series) - 1) / 2)
      right.errorbar(loss, rows, xerr=half_width, label=label, **dots)
    if curve:
      left.set(xlabel='rank', ylabel=f'{split} loss', title=f'all {len(table):,}')
      left.margins(x=0.02)
      marks.leave_out_outliers(left, table[[name for name, _, _ in series]])
      right.set_title(f'best {len(best)}')
    marks.name_rows(right, list(best['structure']), family=style.MONO)
    right.set_xlabel(f'{split} loss')
    right.xaxis.set_major_locator(MaxNLocator(6))
    if len(series) > 1 and curve:
      left.legend(loc='upper left', markerscale=3)
    elif len(series) > 1:
      marks.legend_beside(right)
  return figure


def _rank_curve(axes, table, name, label, colour):
  ranks, loss, half_width = np.arange(1, len(table) + 1), *marks.with_interval(table, name)
  if name == 'loss':
    axes.fill_between(ranks, loss - half_width, loss + half_width, color=colour, alpha=0.18, lw=0)
    axes.plot(ranks, loss, color=colour, label=label)
  else:
    bars = {'color': colour, 'alpha': 0.25, 'lw': 0.8, 'zorder': 1.4}
    axes.vlines(ranks, loss - half_width, loss + half_width, **bars)
    axes.plot(ranks, loss, '.', ms=3, alpha=0.6, mew=0, color=colour, label=label, zorder=1.5)


def pareto(table: pd.DataFrame, split: str = 'test') -> Figure:
  """Draws loss against FLOPs, with the Pareto front joined and its ends named.

  >>> table = pd.DataFrame({'structure': ['00', '10', '11'], 'loss': [0.9, 0.5, 0.6]})
  >>> figure = pareto(table.assign(flops=[100, 200, 300]))
  >>> [text.get_text() for text in figure.axes[0].texts]  # '11' costs more and does worse
  ['10', '00']

  Args:
    table: columns `structure`, `loss` and `flops`.
    split: what losses are of, a word before `loss`.
  """
  marks.require(table, 'structure', 'loss', 'flops')
  flops, loss = marks.column(table, 'flops'), marks.column(table, 'loss')
  front = statistics.pareto_front(flops, loss)
  if not front.any():
    return style.empty('no structure has a finite loss')
  flops, power = marks.scaled(flops)
  order = np.flatnonzero(front)[np.argsort(flops[front], kind='stable')]
  with style.drawing(6.4, 3.8) as (figure, [[axes]]):
    dots = {'ms': _dot(len(loss)), 'mew': 0, 'color': style.GREY, 'alpha': 0.5}
    axes.plot(flops[~front], loss[~front], 'o', **dots)
    line = {'ms': 5, 'color': style.BLUE, 'drawstyle': 'steps-post', 'label': 'Pareto front'}
    axes.plot(flops[order], loss[order], '-o', **line)
    axes.margins(0.08, 0.12)
    marks.leave_out_outliers(axes, loss)
    axes.set(xlabel=f'FLOPs per example{power}', ylabel=f'{split} loss')
    middle = sum(axes.get_xlim()) / 2
    for end in dict.fromkeys((order[-1], order[0])):
      is_right = flops[end] > middle
      axes.annotate(
        table['structure'].iloc[end],
        (flops[end], loss[end]),
        xytext=(-7 if is_right else 7, 7 if end == order[0] != order[-1] else -11),
        textcoords='offset points',
        ha='right' if is_right else 'left',
        family=style.MONO,
        fontsize=8.5,
        fontweight='bold' if end == order[-1] else 'normal',
        color=style.BLUE,
        path_effects=[withStroke(linewidth=3, foreground='white')],
      )
    axes.legend(loc='lower left')
  return figure


def agreement(
  predicted: ArrayLike, truth: ArrayLike, labels: tuple[str, str] = ('shared', 'standalone')
) -> Figure:
  """Draws structures' ranks by one kind of training against the other, with Kendall's τ.

  >>> figure = agreement(predicted=[0.9, 0.6, 0.5], truth=[0.8, 0.4, 0.3])
  >>> figure.axes[0].get_title('left')
  'Kendall τ = 1.00'

  Args:
    predicted, truth: losses `[S]`, on the horizontal axis and on the vertical one.
    labels: what the two are called.
  """
  predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
  is_finite = np.isfinite(predicted) & np.isfinite(truth)
  if not is_finite.any():
    return style.empty('no structure has both losses')
  x, y = statistics.rank(predicted[is_finite]), statistics.rank(truth[is_finite])
  with style.drawing(4.4, 4.2) as (figure, [[axes]]):
    axes.plot([1, len(x)], [1, len(x)], color=style.FAINT, lw=1.2)
    axes.plot(x, y, 'o', ms=_dot(len(x)), mew=0, alpha=0.6, color=style.BLUE)
    for axis in (axes.xaxis, axes.yaxis):
      axis.set_major_locator(MaxNLocator(6, integer=True))
    tau = kendall_tau(predicted, truth)
    axes.set_title(f'Kendall τ = {tau:.2f}' if np.isfinite(tau) else 'Kendall τ is not defined')
    axes.set(xlabel=f'rank, {labels[0]}', ylabel=f'rank, {labels[1]}')
  return figure


def _dot(count):
  """Returns the diameter in points of one of `count` points."""
  return 4.5 if count <= 300 else 2.5


def gate_effects(effects: pd.DataFrame, split: str = 'test') -> Figure:
  """Draws each gate's effect on the loss with its interval: blue lowers it, vermilion raises it.

  >>> effects = pd.DataFrame({'gate': ['block_0/mlp', 'block_1/mlp'], 'effect': [-0.04, 0.02]})
  >>> figure = gate_effects(effects)
  >>> figure.axes[0].get_xlabel()
  'test loss with the gate on minus off (×10⁻³)  (left: the gate helps)'

  Args:
    effects: as `statistics.effect_table` makes it: columns `gate`, `effect`, and `ci95` if there
      are any.
    split: what losses are of, a word before `loss`.
  """
  marks.require(effects, 'gate', 'effect')
  effect, half_width, power = marks.scaled(*marks.with_interval(effects, 'effect', 'ci95'))
  rows = np.arange(len(effect))
  with style.drawing(6.4, max(1.5, 0.8 + 0.27 * len(effect))) as (figure, [[axes]]):
    colours = np.where(effect > 0, style.VERMILION, style.BLUE)
    axes.barh(rows, np.nan_to_num(effect), height=0.62, color=colours, alpha=0.85)
    bars = {'fmt': 'none', 'ecolor': style.INK, 'elinewidth': 1.1, 'capsize': 2.5}
    axes.errorbar(effect, rows, xerr=half_width, **bars)
    axes.axvline(0, color=style.GREY, lw=0.8)
    marks.name_rows(axes, short_names(effects['gate']))
    axes.set_xlabel(f'{split} loss with the gate on minus off{power}  (left: the gate helps)')
  return figure


def structures(
  structures: Sequence[str] | pd.Series, names: Sequence[str], labels: Sequence[str]
) -> Figure:
  """Draws structures as rows of `+`: a filled disc where the gate is on, a faint ring where off.

  >>> figure = structures(['10', '11'], ['block_0/mlp', 'block_1/mlp'], ['0.52', '0.48'])
  >>> [text.get_text() for text in figure.axes[0].texts]
  ['0.52', '0.48']

  Args:
    structures: K structures as text, gate 0 leftmost; each of n characters.
    names: the n gate names.
    labels: K short texts written to the right, for example the losses.
  """
  names = short_names(names)
  for structure in structures:
    if len(structure) != len(names) or set(structure) - set('01'):
      raise UserError(f'expected a structure of {len(names)} characters 0 or 1, got {structure!r}')
  if len(labels) != len(structures):
    raise UserError(f'{len(labels)} labels given for {len(structures)} structures')
  on = np.array([[bit == '1' for bit in structure] for structure in structures], bool)
  on = on.reshape(len(structures), len(names))
  # The size of a cell is the same whatever the numbers of gates and structures, in inches.
  cell, left, bottom = 0.38, 0.45, 0.12
  wide, high = cell * len(names), cell * max(len(on), 1)
  width = left + wide + 0.3 + 0.085 * max(map(len, labels), default=0)
  height = 0.2 + 0.068 * max(map(len, names), default=0) + high + bottom
  with style.drawing(width, height, layout=None) as (figure, [[axes]]):
    axes.set_position((left / width, bottom / height, wide / width, high / height))
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(max(len(on), 1) - 0.5, -0.5))
    marks.bare(axes)
    _plus(axes, on, 360, {'color': style.BLUE, 'lw': 0}, 130, {'color': 'white', 'lw': 2.4})
    ring = {'facecolor': 'none', 'edgecolor': style.FAINT, 'lw': 1.0}
    _plus(axes, ~on, 330, ring, 110, {'color': style.FAINT, 'lw': 1.2})
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(on)), [str(rank) for rank in range(1, len(on) + 1)], color=style.GREY)
    for row, label in enumerate(labels):
      axes.text(len(names) - 0.35, row, label, va='center', fontsize=9)
  return figure


def _plus(axes, cells, disc_size, disc, plus_size, plus):
  """Draws a disc with a `+` in it at every cell that is True."""
  rows, columns = np.nonzero(cells)
  axes.scatter(columns, rows, s=disc_size, clip_on=False, **disc)
  axes.scatter(columns, rows, s=plus_size, marker='+', clip_on=False, **plus)


def interaction_heatmap(matrix: ArrayLike, names: Sequence[str]) -> Figure:
  """Draws pairwise interactions as colours centred on zero, with numbers up to 16 gates.

  >>> figure = interaction_heatmap([[0, 0.012], [0.012, 0]], ['block_0/mlp', 'block_1/mlp'])
  >>> [text.get_text() for text in figure.axes[0].texts]
  ['+12.0', '+12.0']
  >>> figure.axes[1].get_ylabel()
  'interaction (×10⁻³)'

  Args:
    matrix: `[n, n]`, as `statistics.interactions` makes it. The diagonal is left blank.
    names: the n gate names.
  """
  matrix = np.array(matrix, np.float64)
  np.fill_diagonal(matrix, np.nan)
  matrix, power = marks.scaled(matrix)
  limit = np.abs(matrix[np.isfinite(matrix)]).max(initial=0.0) or 1.0
  spec = '+z.1f' if limit < 100 else '+z.0f'
  return _square(matrix, short_names(names), limit, f'interaction{power}', spec)


def cosines(matrix: ArrayLike, labels: Sequence[str]) -> Figure:
  """Draws cosines between gradients of K structures `[K, K]`, on a scale from −1 to 1.

  >>> figure = cosines([[1.0, 0.25], [0.25, 1.0]], ['10', '11'])
  >>> [text.get_text() for text in figure.axes[0].texts]
  ['1.00', '0.25', '0.25', '1.00']
  """
  matrix = np.array(matrix, np.float64)
  return _square(matrix, [str(x) for x in labels], 1.0, 'cosine', 'z.2f', family=style.MONO)


def _square(matrix, labels, limit, label, spec, **font):
  size, longest = len(labels), max(map(len, labels), default=0)
  if matrix.shape != (size, size):
    raise UserError(f'expected a matrix [{size}, {size}] for {size} labels, got {matrix.shape}')
  if not size:
    return style.empty('nothing to compare')
  side = (0.46 if size <= _MAX_ANNOTATED else 0.26) * size + 0.3 + 0.085 * longest
  number = lambda row, place: f'{matrix[row, place]:{spec}}'.replace('-', '−')
  with style.drawing(max(2.6, side + 1.0), max(1.6, side)) as (figure, [[axes]]):
    axes.set_facecolor('#f1f2f4')
    axes.set_aspect('equal')
    bar = {'label': label, 'shrink': 0.9, 'aspect': 18, 'pad': 0.03}
    text = number if size <= _MAX_ANNOTATED else None
    marks.heat_map(figure, axes, np.ma.masked_invalid(matrix), limit, text, **bar)
    marks.name_columns(axes, labels, **font)
    axes.set_yticks(np.arange(size) + 0.5, labels, **font)
  return figure
