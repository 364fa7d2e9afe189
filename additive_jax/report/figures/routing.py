"""The pictures of routers: how even their load is, which paths are taken, how much is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from additive_jax.report.figures import marks, style
from additive_jax.report.wording import counted

if TYPE_CHECKING:
  from additive_jax.report.power_law import PowerLaw

_MAX_COLUMNS = 3


def utilisation(
  loads: Mapping[str, ArrayLike],
  colours: style.Colours | None = None,
  noun: str = 'experts',
  site: str = 'site',
) -> Figure:
  """Draws the load of every expert over the ideal even one: a panel for each router.

  Experts stand in order, most used first; a line for each site, early ones dark. Experts that were
  never chosen are crosses at zero, and the title says how many.

  >>> figure = utilisation({'softmax': [0.0, 1.0, 2.0], 'random': [1.0, 1.0, 1.0]})
  >>> [axes.get_title('left') for axes in figure.axes]
  ['softmax', 'random']
  >>> figure.axes[0].get_title('right')
  '1 of 3 dead'

  Args:
    loads: by router `[L, S]` or `[S]`: for each of L sites the load of S experts (structures,
      modules), as `paths.utilisation` makes it. A site whose loads are not finite is left out.
    colours: of routers; by default all have one.
    noun: what the experts are called.
    site: what a site is called.
  """
  if not loads:
    return style.empty('nothing to compare')
  tables = {name: np.atleast_2d(np.asarray(load, np.float64)) for name, load in loads.items()}
  tables = {name: load[np.isfinite(load).all(axis=1)] for name, load in tables.items()}
  columns = min(len(tables), _MAX_COLUMNS)
  rows = -(-len(tables) // columns)
  size = (3.3 * columns, 2.3 * rows + 0.2)
  with style.drawing(*size, rows, columns, sharey=True) as (figure, grid):
    top = max([1.5, *(load.max() for load in tables.values() if load.size)])
    for axes, (name, load) in zip(grid.flat, tables.items()):
      axes.set_title(str(name))
      axes.set_ylim(-0.04 * top, 1.08 * top)
      if load.size:
        _draw_loads(axes, load, (colours or {}).get(name, style.BLUE), site)
      else:
        style.say_empty(axes, 'nothing was chosen')
    for axes in grid.flat[len(tables) :]:
      axes.set_axis_off()
    figure.supylabel('load over ideal', fontsize=9.5)
    figure.supxlabel(f'{noun}, most used first', fontsize=9.5)
  return figure


def _draw_loads(axes, load, tint, noun):
  sites, count = load.shape
  place = np.arange(1, count + 1)
  mark = {'marker': 'o', 'ms': 3.5} if count <= 24 else {}
  tints = style.shades(sites, style.depths(tint)) if sites > 1 else [tint]
  for number, (site, tint) in enumerate(zip(np.sort(load)[:, ::-1], tints)):
    label = f'{noun} {number}' if number in (0, sites - 1) and sites > 1 else None
    is_used = site > 0
    axes.plot(place[is_used], site[is_used], color=tint, lw=1.2, label=label, **mark)
    if not is_used.all():
      axes.plot(
        place[~is_used], site[~is_used], 'x', ms=4.5, mew=1.2, color=style.VERMILION, clip_on=False
      )
  axes.axhline(1, color=style.GREY, lw=0.9, ls='--', zorder=1)
  axes.set_xlim(0.5 - 0.02 * count, count + 0.5 + 0.02 * count)
  axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
  dead = int((load == 0).sum())
  if dead:
    marks.note(axes, f'{dead:,} of {load.size:,} dead')
  if sites > 1:
    axes.legend(loc='upper right', fontsize=7.5)


def rank_frequency(
  curves: Mapping[str, ArrayLike],
  fits: Mapping[str, PowerLaw] | None = None,
  colours: style.Colours | None = None,
) -> Figure:
  """Draws how often the most frequent path is taken, the next, and so on, on logarithmic axes.

  >>> figure = rank_frequency({'dna': [50, 30, 20]})
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  ['dna: 3 paths']

  Args:
    curves: by model the counts in descending order, as `paths.rank_frequency` makes them.
    fits: by model a `power_law.PowerLaw`. Where it fits, it is a dashed line over the ranks that it
      was fitted to; where not, the legend says so.
    colours: of models.
  """
  fits, colours = fits or {}, style.palette(curves, colours)
  tables = {name: np.asarray(counts, np.float64) for name, counts in curves.items()}
  tables = {name: counts[counts > 0] for name, counts in tables.items() if (counts > 0).any()}
  if not tables:
    return style.empty('nothing was chosen')
  with style.drawing(7.6, 3.8) as (figure, [[axes]]):
    for number, (name, counts) in enumerate(tables.items()):
      share, ranks = counts / counts.sum(), np.arange(1, counts.size + 1)
      text = f'{name}: {counted(counts.size, "path")}' + _law_words(fits.get(name))
      if name in fits and fits[name].fits:
        _draw_law(axes, fits[name], share, colours[name])
      mark = {'marker': style.marker(number), 'ms': 4, 'mew': 0, 'alpha': 0.65}
      axes.plot(ranks, share, ls='none', color=colours[name], label=text, **mark)
    axes.set(xscale='log', yscale='log', xlabel='rank of the path', ylabel='share of tokens')
    for limits, set_limits in ((axes.get_xlim(), axes.set_xlim), (axes.get_ylim(), axes.set_ylim)):
      margin = max(np.sqrt(10 * limits[0] / limits[1]), 1)  # at least a decade
      set_limits(limits[0] / margin, limits[1] * margin)
    marks.count_on_log_scale(axes.xaxis)
    title = {'title': 'dashed: share ∝ rank⁻ˢ', 'alignment': 'left', 'title_fontsize': 8.5}
    marks.legend_beside(axes, labelspacing=0.9, **(title if len(axes.lines) > len(tables) else {}))
  return figure


def _law_words(law):
  if law is None:
    return ''
  if not np.isfinite(law.exponent):
    return '\ntoo few tokens on each path for a fit'
  if not law.fits:
    return f'\nno power law fits (p = {law.p_value:.2f})'
  exponent, low, high = (f'{value:z.2f}'.replace('-', '−') for value in law[:3])
  return f'\ns = {exponent} [{low}, {high}]'


def _draw_law(axes, law, share, tint):
  """Draws the law from the first rank to the last that was fitted, with the tokens' share of
  these."""
  ranks = np.arange(1, min(law.num_fitted, share.size) + 1)
  line = ranks**-law.exponent
  line *= share[: ranks.size].sum() / line.sum()
  axes.plot(ranks[[0, -1]], line[[0, -1]], '--', color=tint, lw=1.3, zorder=3)


def compute_shares(
  shares: Mapping[str, ArrayLike],
  targets: Mapping[str, float] | None = None,
  colours: style.Colours | None = None,
) -> Figure:
  """Draws how much is computed: histograms over tokens and over examples, a row for each model.

  >>> figure = compute_shares({'dna': [[0.5, 1.0], [0.5, 0.5]]}, targets={'dna': 0.6})
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  ['mean 0.625', 'target 0.600']

  Args:
    shares: by model the share of choices that compute, `[N, T]` as `paths.compute_share` makes it.
    targets: by model the share that was asked for, drawn dashed.
    colours: of models.
  """
  colours = style.palette(shares, colours)
  if not shares:
    return style.empty('nothing to compare')
  size = (7.6, 0.5 + 1.45 * len(shares))
  with style.drawing(*size, len(shares), 2, sharex=True) as (figure, grid):
    for number, (name, share) in enumerate(shares.items()):
      share, target = np.asarray(share, np.float64), (targets or {}).get(name)
      means = share.mean(axis=1) if share.size else share
      for axes, values in zip(grid[number], (share, means)):
        _histogram(axes, values, colours[name], target)
      grid[number, 0].set_ylabel(str(name), fontweight='bold')
    for axes, title in zip(grid[0], ('share of tokens', 'share of examples')):
      axes.set_title(title)
    for axes in grid[-1]:
      axes.set(xlim=(-0.07, 1.07), xlabel='share of choices that compute')
  return figure


def _histogram(axes, values, tint, target):
  values = values[np.isfinite(values)]
  if not values.size:
    style.say_empty(axes, 'not measured')
    return
  levels, number = np.unique(values.round(6), return_counts=True)
  step = np.diff(levels).min(initial=0.1)
  look = {'color': tint, 'alpha': 0.55, 'lw': 0}
  if step > 0.02:  # multiples of one choice: a bar for each
    axes.bar(levels, number / values.size, width=0.8 * step, **look)
  else:
    bins = int(np.clip(np.sqrt(values.size), 5, 25))
    axes.hist(values, bins, weights=np.full(values.size, 1 / values.size), **look)
  mean = values.mean()
  axes.axvline(mean, color=style.INK, lw=1.3, label=f'mean {mean:.3f}')
  if target is not None:
    axes.axvline(target, color=style.VERMILION, lw=1.3, ls='--', label=f'target {target:.3f}')
  axes.legend(loc='upper left' if mean > 0.5 else 'upper right', fontsize=7.5)
  axes.locator_params(axis='y', nbins=4)
