"""The pictures of DNA: the modules that tokens choose, in what order, and for what.

Each function returns a `matplotlib.figure.Figure`, and copes with nothing to show and with values
that are not finite. S is a number of steps, M of modules, C of classes. Names and colours of
modules, and the pictures of single texts and images, live in `path_cells` and are reached from here
too.
"""

import matplotlib
import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import ScaledTranslation

from additive_jax.errors import UserError
from additive_jax.report.path_cells import image_paths, module_colours, text_paths
from additive_jax.report.plot_style import BLUE, DIVERGING, GREY, INK, drawing, say_empty

__all__ = [
  'flow',
  'image_paths',
  'information',
  'module_colours',
  'reuse',
  'specialisation',
  'text_paths',
]

_OUTSIDE = {'loc': 'upper left', 'bbox_to_anchor': (1.0, 1.0)}


def flow(flows, names):
  """Where tokens go: modules as discs in a column for each step, lines to those of the next.

  A disc's area is the share of choices of its module at the step, a line's width the share that
  goes from one module to the next, in the colour of where it comes from.

  Args:
    flows: `[S−1, M, M]`, as `paths.flows` makes them.
    names: of the M modules.
  """
  flows = np.nan_to_num(np.asarray(flows, np.float64))
  if flows.shape[1:] != (len(names), len(names)):
    raise UserError(f'expected flows [S−1, {len(names)}, {len(names)}], got {flows.shape}')
  with drawing(2.2 + 1.7 * max(len(flows), 1), 0.6 + 0.4 * max(len(names), 3)) as (figure, (axes,)):
    if not flows.any():
      say_empty(axes, 'nothing flows: fewer than two steps, or no tokens')
      return figure
    colours = module_colours(names)
    scale = min(60, 14 / flows.max())  # points
    for step, source, target in np.argwhere(flows > 0):
      bend = [(step, source), (step + 0.5, source), (step + 0.5, target), (step + 1, target)]
      curve = Path(bend, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
      width = scale * flows[step, source, target]
      look = {'edgecolor': _darker(colours[source]), 'alpha': 0.55, 'capstyle': 'butt'}
      axes.add_patch(PathPatch(curve, facecolor='none', lw=width, **look))
    load = np.concatenate([flows.sum(axis=2), flows[-1:].sum(axis=1)])
    for step, module in np.argwhere(load > 0):
      look = {'color': colours[module], 'edgecolor': INK, 'lw': 0.6, 'zorder': 3}
      axes.scatter(step, module, s=1600 * load[step, module], **look)
    for step, module in np.argwhere(load == 0):
      axes.plot(step, module, 'x', ms=4, color=GREY, zorder=3)
    axes.set(xlim=(-0.3, len(flows) + 0.3), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks(range(len(load)), [f'step {step + 1}' for step in range(len(load))])
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
  return figure


def specialisation(lift, names, classes):
  """What modules are chosen for: lift of every module and class on a logarithmic colour scale.

  Red is more often than the class occurs, blue less often; the numbers are the lift. Modules that
  were never chosen are grey, and so are classes without tokens.

  Args:
    lift: `[M, C]`, as `paths.specialisation` makes it.
    names, classes: of the M modules and C classes.
  """
  lift = np.asarray(lift, np.float64)
  if lift.shape != (len(names), len(classes)):
    raise UserError(f'expected a lift [{len(names)}, {len(classes)}], got {lift.shape}')
  width = 1.9 + 0.09 * max(map(len, names), default=0) + 0.52 * max(len(classes), 3)
  height = 0.5 + 0.075 * max(map(len, classes), default=0) + 0.3 * max(len(names), 6)
  with drawing(width, height) as (figure, (axes,)):
    if not lift.size:
      say_empty(axes, 'nothing to compare')
      return figure
    with np.errstate(divide='ignore'):
      bits = np.log2(lift)
    limit = np.clip(np.abs(bits[np.isfinite(bits)]).max(initial=1.0), 1.0, 4.0)
    shown = np.ma.masked_invalid(np.where(np.isneginf(bits), -limit, bits))
    axes.set_facecolor('#e3e5e8')
    look = {'cmap': DIVERGING, 'vmin': -limit, 'vmax': limit, 'edgecolors': 'white'}
    mesh = axes.pcolormesh(shown, **look, linewidth=1.0)
    for row, column in np.argwhere(np.isfinite(lift)):
      strong = abs(shown[row, column]) > 0.62 * limit
      text = f'{lift[row, column]:{".2f" if lift[row, column] < 10 else ".0f"}}'
      place = {'ha': 'center', 'va': 'center', 'fontsize': 7.5}
      axes.text(column + 0.5, row + 0.5, text, color='white' if strong else INK, **place)
    _module_rows(axes, names)
    for row in np.flatnonzero(np.isnan(lift).all(axis=1)):
      axes.text(len(classes) / 2, row + 0.5, 'never chosen', ha='center', va='center', color=GREY)
    for column in np.flatnonzero(np.isnan(lift).all(axis=0)):
      place = {'ha': 'center', 'va': 'center', 'color': GREY, 'rotation': 90}
      axes.text(column + 0.5, len(names) / 2, 'no tokens', **place)
    axes.grid(visible=False)
    upright = max(map(len, classes), default=0) > 4
    axes.set_xticks(np.arange(len(classes)) + 0.5, classes, rotation=90 if upright else 0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(mesh, ax=axes, label='lift: share over base rate')
    ticks = np.arange(-int(limit), int(limit) + 1)
    bar.set_ticks(ticks, labels=[f'{2.0**tick:g}' for tick in ticks])
    bar.outline.set_visible(False)
  return figure


def reuse(counts, names):
  """How often tokens use each module, as stacked bars of the share that uses it 0, 1, … S times.

  Args:
    counts: `[M, S+1]`, as `paths.reuse` makes them.
    names: of the M modules.
  """
  counts = np.asarray(counts, np.float64)
  if counts.ndim != 2 or len(counts) != len(names):
    raise UserError(f'expected counts [{len(names)}, S + 1], got {counts.shape}')
  with drawing(7.2, 0.8 + 0.28 * max(len(names), 2)) as (figure, (axes,)):
    if not counts.sum():
      say_empty(axes, 'no tokens')
      return figure
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    left, rows = np.zeros(len(share)), np.arange(len(share)) + 0.5
    uses = counts.shape[1] - 1
    shades = matplotlib.colormaps['GnBu'](np.linspace(0.35, 1.0, max(uses, 1)))
    for number in range(uses + 1):
      label = 'not used' if number == 0 else 'once' if number == 1 else f'{number} times'
      colour = '#eceef1' if number == 0 else shades[number - 1]
      axes.barh(rows, share[:, number], 0.72, left=left, color=colour, label=label)
      left += share[:, number]
    _module_rows(axes, names)
    axes.grid(visible=False)
    axes.set(xlim=(0, 1), xlabel='share of tokens')
    axes.legend(**_OUTSIDE)
  return figure


def information(bits, shuffled):
  """What modules and classes tell of each other at each step, with the same for shuffled classes.

  Args:
    bits, shuffled: `[S]`, as `paths.information` makes them.
  """
  bits, shuffled = np.asarray(bits, np.float64), np.asarray(shuffled, np.float64)
  with drawing(2.4 + 0.5 * max(bits.size, 3), 2.6) as (figure, (axes,)):
    if not np.isfinite(bits).any():
      say_empty(axes, 'nothing was chosen')
      return figure
    steps = np.arange(1, bits.size + 1)
    axes.bar(steps, np.nan_to_num(bits), 0.6, color=BLUE, alpha=0.85, label='as it is')
    axes.plot(steps, shuffled, '_', ms=22, mew=2, color=INK, label='classes shuffled')
    axes.set_xticks(steps)
    axes.grid(axis='x', visible=False)
    axes.set(xlabel='step', ylabel='mutual information (bits)', xlim=(0.4, bits.size + 0.6))
    axes.set_ylim(0, max(1.08 * np.nanmax([*bits, *shuffled]), 0.01))
    axes.legend(**_OUTSIDE, markerscale=0.5, reverse=True)
  return figure


def _module_rows(axes, names):
  """Rows from 0 to M with the names of modules, and a square of each one's colour beside it."""
  axes.set_yticks(np.arange(len(names)) + 0.5, names)
  axes.set_ylim(len(names), 0)
  axes.tick_params(axis='y', length=0, pad=13)
  aside = ScaledTranslation(-8 / 72, 0, axes.figure.dpi_scale_trans)
  axes.scatter(
    np.zeros(len(names)),
    np.arange(len(names)) + 0.5,
    s=46,
    marker='s',
    c=module_colours(names),
    transform=axes.get_yaxis_transform() + aside,
    clip_on=False,
  )


def _darker(colour):
  return (*(0.85 * np.asarray(colour[:3])), 1.0)
