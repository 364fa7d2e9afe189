"""The pictures of routers: how even their load is, which paths are taken, what it buys and costs.

Each function returns a `matplotlib.figure.Figure`, and copes with nothing to show and with values
that are not finite.
"""

import contextlib

import numpy as np
import pandas as pd

from additive_jax.errors import UserError
from additive_jax.report.figures import training_curves
from additive_jax.report.plot_style import (
  BLUE,
  GREY,
  INK,
  PALETTE,
  VERMILION,
  drawing,
  power_of_thousand,
  say_empty,
  style,
  times_power,
)

_MAX_COLUMNS = 3
_MAX_POINTS = 400  # points of one rank-frequency curve
_MARKERS = 'osD^vPX*<>'


@contextlib.contextmanager
def panels(width, height, rows, columns, **options):
  """As `plot_style.drawing`, for a grid: yields `(figure, axes [rows, columns])`.

  Args:
    width, height: inches.
    rows, columns: of the grid, at least 1.
    options: of `Figure.subplots`.
  """
  with drawing(width, height) as (figure, (axes,)):
    axes.remove()
    yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def utilisation(loads):
  """Load of every expert over the ideal even one, most used first: a panel for each router.

  A line for each site, early ones dark. Experts that were never chosen are crosses at zero, and
  the title says how many.

  Args:
    loads: by router `[L, S]` or `[S]`: for each of L sites the load of S experts (structures,
      modules), as `paths.utilisation` makes it. A site whose loads are not finite is left out.
  """
  loads = {label: np.atleast_2d(np.asarray(load, np.float64)) for label, load in loads.items()}
  loads = {label: load[np.isfinite(load).all(axis=1)] for label, load in loads.items()}
  columns = min(max(len(loads), 1), _MAX_COLUMNS)
  rows = -(-max(len(loads), 1) // columns)
  with panels(3.3 * columns, 2.3 * rows + 0.2, rows, columns, sharey=True) as (figure, grid):
    top = max((load.max() for load in loads.values() if load.size), default=1.0)
    for axes, (label, load) in zip(grid.flat, loads.items()):
      axes.set_title(str(label))
      if not load.size:
        say_empty(axes, 'nothing was chosen')
        continue
      _draw_loads(axes, load)
      axes.set_ylim(-0.04 * max(top, 1.5), 1.08 * max(top, 1.5))
    for axes in grid.flat[len(loads) :]:
      axes.set_axis_off()
    if loads:
      figure.supylabel('load over ideal', fontsize=9.5)
      figure.supxlabel('experts, most used first', fontsize=9.5)
    else:
      say_empty(grid[0, 0], 'nothing to compare')
  return figure


def _draw_loads(axes, load):
  sites, count = load.shape
  place = np.arange(1, count + 1)
  for number, site in enumerate(load):
    ordered = np.sort(site)[::-1]
    colour = _depth(number, sites)
    mark = {'marker': 'o', 'ms': 3.5} if count <= 24 else {}
    label = f'site {number}' if number in (0, sites - 1) and sites > 1 else None
    used = ordered > 0
    axes.plot(place[used], ordered[used], color=colour, lw=1.2, label=label, **mark)
    if not used.all():
      axes.plot(place[~used], ordered[~used], 'x', ms=4.5, mew=1.2, color=VERMILION, clip_on=False)
  axes.axhline(1, color=GREY, lw=0.9, ls='--', zorder=1)
  axes.set_xlim(0.5 - 0.02 * count, count + 0.5 + 0.02 * count)
  axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
  dead = int((load == 0).sum())
  if dead:
    note = f'{dead:,} of {load.size:,} dead'
    axes.set_title(note, loc='right', fontsize=8, fontweight='normal', color=VERMILION)
  if sites > 1:
    axes.legend(loc='upper right', fontsize=7.5)


def rank_frequency(curves, fits=None, what='path'):
  """How often the most frequent path is taken, the next, and so on, on logarithmic axes.

  Args:
    curves: by model the counts in descending order, as `paths.rank_frequency` makes them.
    fits: by model a `paths.PowerLaw`, drawn as a dashed line over the ranks that it was fitted to,
      or None.
    what: what is counted.
  """
  fits = fits or {}
  with drawing(7.6, 3.8) as (figure, (axes,)):
    drawn = {label: np.asarray(counts, np.float64) for label, counts in curves.items()}
    drawn = {label: counts[counts > 0] for label, counts in drawn.items()}
    if not any(counts.size for counts in drawn.values()):
      say_empty(axes, 'nothing was chosen')
      return figure
    for number, (label, counts) in enumerate(drawn.items()):
      if not counts.size:
        continue
      colour, law = PALETTE[number % len(PALETTE)], fits.get(label)
      share, rank = counts / counts.sum(), _some_ranks(counts.size)
      text = f'{label}: {counts.size:,} {what}{"s" if counts.size > 1 else ""}'
      if law is not None and np.isfinite(law.exponent):
        text += f'\ns = {_two(law.exponent)} [{_two(law.low)}, {_two(law.high)}]'
        fitted = np.arange(1, min(law.num_fitted, counts.size) + 1)
        line = fitted**-law.exponent
        line *= share[: fitted.size].sum() / line.sum()
        axes.plot(fitted[[0, -1]], line[[0, -1]], '--', color=colour, lw=1.3, zorder=3)
      elif law is not None:
        text += f'\ntoo few tokens on each {what} for a fit'
      mark = {'marker': _MARKERS[number % len(_MARKERS)], 'ms': 4, 'mew': 0, 'alpha': 0.65}
      axes.plot(rank, share[rank - 1], ls='none', color=colour, label=text, **mark)
    axes.set(xscale='log', yscale='log', xlabel=f'rank of the {what}', ylabel='share of tokens')
    for name in 'xy':  # at least a decade
      low, high = getattr(axes, f'get_{name}lim')()
      spare = max(np.sqrt(10 * low / high), 1)
      getattr(axes, f'set_{name}lim')(low / spare, high * spare)
    legend = {'loc': 'upper left', 'bbox_to_anchor': (1.0, 1.0), 'labelspacing': 0.9}
    if len(axes.lines) > sum(counts.size > 0 for counts in drawn.values()):
      legend |= {'title': 'dashed: share ∝ rank⁻ˢ', 'alignment': 'left', 'title_fontsize': 8.5}
    axes.legend(**legend)
  return figure


def budgets(frame):
  """Test loss against active FLOPs, and against parameters; the dense networks are joined.

  A model below the line does better than a dense one of its budget.

  Args:
    frame: columns `variant`, `family` (`dense` is the one that is joined), `loss`, `loss_ci95`
      (half width, may be NaN), `flops` and `params`.
  """
  wanted = ('variant', 'family', 'loss', 'loss_ci95', 'flops', 'params')
  _require(frame, wanted)
  frame = frame[np.isfinite(frame[['loss', 'flops', 'params']].to_numpy(np.float64)).all(axis=1)]
  with drawing(9.6, max(3.4, 1.0 + 0.2 * len(frame)), 2) as (figure, (left, right)):
    if frame.empty:
      say_empty(left, 'no model has a finite loss')
      right.set_axis_off()
      return figure
    families = list(pd.unique(frame['family']))
    for axes, column in ((left, 'flops'), (right, 'params')):
      cost = frame[column].to_numpy(np.float64)
      exponent = power_of_thousand(cost)
      _draw_budget(axes, frame, cost / 10.0**exponent, families)
      name = 'active FLOPs per example' if column == 'flops' else 'parameters'
      axes.set_xlabel(f'{name}{times_power(exponent)}')
    left.set_ylabel('test loss')
    right.set_ylim(left.get_ylim())
    right.tick_params(labelleft=False)
    right.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0))
  return figure


def _draw_budget(axes, frame, cost, families):
  loss = frame['loss'].to_numpy(np.float64)
  half_width = np.nan_to_num(frame['loss_ci95'].to_numpy(np.float64), posinf=0.0)
  family = frame['family'].to_numpy()
  dense = np.flatnonzero(family == 'dense')
  dense = dense[np.argsort(cost[dense], kind='stable')]
  axes.plot(cost[dense], loss[dense], color=GREY, lw=1.2, zorder=1)
  used = dict.fromkeys(families, 0)
  for row, variant in enumerate(frame['variant']):
    colour = INK if family[row] == 'dense' else _family_colour(family[row], families)
    marker = _MARKERS[used[family[row]] % len(_MARKERS)]
    used[family[row]] += 1
    place = {'x': cost[row], 'y': loss[row], 'yerr': half_width[row]}
    look = {'marker': marker, 'ms': 6, 'lw': 1.2, 'capsize': 2.5, 'color': colour}
    axes.errorbar(**place, ls='none', label=str(variant).replace('_', ' '), **look)
  axes.margins(0.08, 0.1)


def _family_colour(family, families):
  others = [name for name in families if name != 'dense']
  return PALETTE[others.index(family) % (len(PALETTE) - 1)]


def over_time(curves, label, ideal=None, title=''):
  """A measure of routing over training, a line for each tag, with what it should become.

  Args:
    curves: columns `step`, `tag` and `value`.
    label: what the value is, for the axis.
    ideal: where to draw a dashed line, or None.
    title: of the picture.
  """
  _require(curves, ('step', 'tag', 'value'))
  curves = curves[np.isfinite(curves['value'].to_numpy(np.float64))]
  figure = training_curves(curves.rename(columns={'value': label}), label)
  axes = figure.axes[0]
  with style():
    if axes.lines:
      if ideal is not None:
        axes.axhline(ideal, color=INK, lw=1.2, ls='--', zorder=3, label='target')
        if axes.get_legend():
          axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0))
      if title:
        axes.set_title(f'{title}: {axes.get_title("left")}'.removesuffix(': '))
    figure.draw_without_rendering()
  return figure


def compute(shares, target=None):
  """How much is computed: histograms over tokens and over examples, a row for each model.

  Args:
    shares: by model the share of choices that compute, `[N, T]` as `paths.compute_share` makes it,
      or `[N]` for means of examples alone.
    target: the share that was asked for, drawn dashed; a number, a dict by model, or None.
  """
  height = 0.5 + 1.45 * max(len(shares), 1)
  with panels(7.6, height, max(len(shares), 1), 2, sharex=True) as (figure, grid):
    if not shares:
      say_empty(grid[0, 0], 'nothing to compare')
      grid[0, 1].set_axis_off()
    for number, (label, share) in enumerate(shares.items()):
      share = np.asarray(share, np.float64)
      wanted = target.get(label) if isinstance(target, dict) else target
      colour = PALETTE[number % len(PALETTE)]
      by_token = share if share.ndim == 2 else np.zeros(0)
      by_example = share.mean(axis=1) if share.ndim == 2 and share.size else share
      _histogram(grid[number, 0], by_token, colour, wanted)
      _histogram(grid[number, 1], by_example, colour, wanted)
      grid[number, 0].set_ylabel(str(label), fontweight='bold')
    if shares:
      for axes, name in zip(grid[0], ('share of tokens', 'share of examples')):
        axes.set_title(name)
      for axes in grid[-1]:
        axes.set(xlim=(-0.07, 1.07), xlabel='share of choices that compute')
  return figure


def _histogram(axes, values, colour, target):
  values = values.ravel()[np.isfinite(values.ravel())]
  if not values.size:
    axes.text(0.5, 0.5, 'not measured', ha='center', color=GREY, transform=axes.transAxes)
    axes.set_yticks([])
    return
  levels, number = np.unique(values.round(6), return_counts=True)
  step = np.diff(levels).min(initial=0.1)
  if step > 0.02:  # multiples of one choice: a bar for each
    axes.bar(levels, number / values.size, width=0.8 * step, color=colour, alpha=0.55, lw=0)
  else:
    bins = int(np.clip(np.sqrt(values.size), 5, 25))
    weights = np.full(values.size, 1 / values.size)
    axes.hist(values, bins, weights=weights, color=colour, alpha=0.55, lw=0)
  mean = values.mean()
  axes.axvline(mean, color=INK, lw=1.3, label=f'mean {mean:.3f}')
  if target is not None:
    axes.axvline(target, color=VERMILION, lw=1.3, ls='--', label=f'target {target:.3f}')
  axes.legend(loc='upper left' if mean > 0.5 else 'upper right', fontsize=7.5)
  axes.locator_params(axis='y', nbins=4)


def _two(value):
  """A number with two decimals, and no minus before zero."""
  return f'{round(value, 2) + 0.0:.2f}'.replace('-', '−')


def _some_ranks(count):
  """At most about `_MAX_POINTS` ranks from 1 to `count`, evenly spread on a logarithmic axis."""
  if count <= _MAX_POINTS:
    return np.arange(1, count + 1)
  return np.unique(np.geomspace(1, count, _MAX_POINTS).round().astype(np.int64))


def _depth(number, count):
  """Colour of one of `count` sites, from dark blue to light."""
  dark, light = np.array([0.03, 0.19, 0.42]), np.array([0.45, 0.70, 0.90])
  return tuple(dark + (light - dark) * number / max(count - 1, 1)) if count > 1 else BLUE


def _require(frame, columns):
  missing = [name for name in columns if name not in frame]
  if missing:
    raise UserError(f'expected a column {missing[0]!r}, got the columns {list(frame.columns)}')
