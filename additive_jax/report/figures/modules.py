"""The pictures of DNA's modules: how tokens pass between them, what for, and how often.

S is a number of steps, M of modules, C of classes. `names` are those of the M modules: a kind and a
number (`attention 0`, `identity 1`). A kind has one hue in all pictures and a number one shade.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike

from additive_jax.errors import UserError
from additive_jax.report.figures import marks, style

_HUES = {'attention': 'Blues', 'mlp': 'Oranges', 'block': 'Greens', 'identity': 'Greys'}
_OTHER_HUE = 'Purples'


def module_colours(names: Sequence[str]) -> Float[np.ndarray, 'modules 4']:
  """Returns a colour `(r, g, b, a)` for each module by its name.

  Kinds have hues: attention blue, mlp orange, block green, identity grey, any other purple. The
  modules of a kind go from light to dark in the order of the names.

  >>> module_colours(['mlp 0', 'mlp 1', 'identity 0']).shape
  (3, 4)
  """
  kinds = np.array([str(name).rpartition(' ')[0] or str(name) for name in names])
  colours = np.zeros((len(kinds), 4))
  for kind in set(kinds):
    members = np.flatnonzero(kinds == kind)
    ends = (0.16, 0.36) if kind == 'identity' else (0.32, 0.92)
    tones = np.linspace(*ends, len(members)) if len(members) > 1 else [np.mean(ends)]
    colours[members] = matplotlib.colormaps[_HUES.get(kind, _OTHER_HUE)](tones)
  return colours


def flow(flows: ArrayLike, names: Sequence[str]) -> Figure:
  """Draws where tokens go: modules as discs in a column for each step, lines to the next step's.

  A disc's area is the share of choices of its module at the step, a line's width the share that
  goes from one module to the next, in the colour of where it comes from. `flows` are `[S−1, M, M]`,
  as `paths.flows` makes them.

  >>> flows = [[[0.5, 0.25], [0.0, 0.25]]]  # a quarter goes from mlp 0 to mlp 1
  >>> figure = flow(flows, ['mlp 0', 'mlp 1'])
  >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
  ['step 1', 'step 2']
  """
  flows = np.nan_to_num(np.asarray(flows, np.float64))
  if flows.shape[1:] != (len(names), len(names)):
    raise UserError(f'expected flows [S−1, {len(names)}, {len(names)}], got {flows.shape}')
  if not flows.any():
    return style.empty('nothing flows: fewer than two steps, or no tokens')
  load = np.concatenate([flows.sum(axis=2), flows[-1:].sum(axis=1)])
  colours, scale = module_colours(names), min(60, 14 / flows.max())  # points
  with style.drawing(2.2 + 1.7 * len(flows), 0.6 + 0.4 * max(len(names), 3)) as (figure, [[axes]]):
    for step, source, target in np.argwhere(flows > 0):
      bend = [(step, source), (step + 0.5, source), (step + 0.5, target), (step + 1, target)]
      curve = Path(bend, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
      darker = (*(0.85 * colours[source, :3]), 1.0)
      look = {'facecolor': 'none', 'edgecolor': darker, 'alpha': 0.55, 'capstyle': 'butt'}
      axes.add_patch(PathPatch(curve, lw=scale * flows[step, source, target], **look))
    for (step, module), share in np.ndenumerate(load):
      if share > 0:
        look = {'color': colours[module], 'edgecolor': style.INK, 'lw': 0.6, 'zorder': 3}
        axes.scatter(step, module, s=1600 * share, **look)
      else:
        axes.plot(step, module, 'x', ms=4, color=style.GREY, zorder=3)
    axes.set(xlim=(-0.3, len(flows) + 0.3), ylim=(len(names) - 0.5, -0.5))
    axes.set_xticks(range(len(load)), [f'step {step + 1}' for step in range(len(load))])
    axes.set_yticks(range(len(names)), names)
    marks.bare(axes)
  return figure


def specialisation(lift: ArrayLike, names: Sequence[str], classes: Sequence[str]) -> Figure:
  """Draws what modules are chosen for: the lift of each for every class, on a logarithmic scale.

  Red is more often than the class occurs, blue less often; the numbers are the lift `[M, C]` of
  `paths.specialisation`. Modules that were never chosen are grey, and classes without tokens.

  >>> lift = [[2.0, 0.5], [np.nan, np.nan]]
  >>> figure = specialisation(lift, ['mlp 0', 'mlp 1'], ['digit', 'letter'])
  >>> [text.get_text() for text in figure.axes[0].texts]
  ['2.00', '0.50', 'never chosen']
  """
  lift = np.asarray(lift, np.float64)
  if lift.shape != (len(names), len(classes)):
    raise UserError(f'expected a lift [{len(names)}, {len(classes)}], got {lift.shape}')
  if not lift.size:
    return style.empty('nothing to compare')
  with np.errstate(divide='ignore'):
    bits = np.log2(lift)
  limit = np.clip(np.abs(bits[np.isfinite(bits)]).max(initial=1.0), 1.0, 4.0)
  visible = np.ma.masked_invalid(np.where(np.isneginf(bits), -limit, bits))
  number = lambda row, place: f'{lift[row, place]:{".2f" if lift[row, place] < 10 else ".0f"}}'
  width = 1.9 + 0.09 * max(map(len, names)) + 0.52 * max(len(classes), 3)
  height = 0.5 + 0.075 * max(map(len, classes)) + 0.3 * max(len(names), 6)
  with style.drawing(width, height) as (figure, [[axes]]):
    axes.set_facecolor('#e3e5e8')
    label = 'lift: share over base rate'
    bar = marks.heat_map(figure, axes, visible, limit, number, label=label)
    ticks = np.arange(-int(limit), int(limit) + 1)
    bar.set_ticks(ticks, labels=[f'{2.0**tick:g}' for tick in ticks])
    _name_modules(axes, names)
    marks.name_columns(axes, classes)
    middle = {'ha': 'center', 'va': 'center', 'color': style.GREY}
    for row in np.flatnonzero(np.isnan(lift).all(axis=1)):
      axes.text(len(classes) / 2, row + 0.5, 'never chosen', **middle)
    for place in np.flatnonzero(np.isnan(lift).all(axis=0)):
      axes.text(place + 0.5, len(names) / 2, 'no tokens', rotation=90, **middle)
  return figure


def reuse(counts: ArrayLike, names: Sequence[str]) -> Figure:
  """Draws the shares of tokens that use each module 0, 1, … S times, by `paths.reuse [M, S+1]`.

  >>> figure = reuse([[6, 3, 1], [0, 10, 0]], ['mlp 0', 'mlp 1'])  # of ten tokens, in two steps
  >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
  ['not used', 'once', '2 times']
  """
  counts = np.asarray(counts, np.float64)
  if counts.ndim != 2 or len(counts) != len(names):
    raise UserError(f'expected counts [{len(names)}, S + 1], got {counts.shape}')
  if not counts.sum():
    return style.empty('no tokens')
  share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
  left, rows = np.cumsum(share, axis=1) - share, np.arange(len(share)) + 0.5
  shades = matplotlib.colormaps['GnBu'](np.linspace(0.35, 1.0, max(share.shape[1] - 1, 1)))
  with style.drawing(7.2, 0.8 + 0.28 * max(len(names), 2)) as (figure, [[axes]]):
    for uses in range(share.shape[1]):
      label = {0: 'not used', 1: 'once'}.get(uses, f'{uses} times')
      look = {'color': shades[uses - 1] if uses else style.PALE, 'label': label}
      axes.barh(rows, share[:, uses], 0.72, left=left[:, uses], **look)
    _name_modules(axes, names)
    axes.grid(visible=False)
    axes.set(xlim=(0, 1), xlabel='share of tokens')
    marks.legend_beside(axes)
  return figure


def information(bits: ArrayLike, shuffled: ArrayLike) -> Figure:
  """Draws what modules and classes tell of each other at each step, and for shuffled classes.

  Both are `[S]`, as `paths.information` makes them.

  >>> figure = information(bits=[0.4, 0.9], shuffled=[0.02, 0.03])
  >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
  [0.4, 0.9]
  """
  bits, shuffled = np.asarray(bits, np.float64), np.asarray(shuffled, np.float64)
  if not np.isfinite(bits).any():
    return style.empty('nothing was chosen')
  steps = np.arange(1, bits.size + 1)
  with style.drawing(2.4 + 0.5 * max(bits.size, 3), 2.6) as (figure, [[axes]]):
    axes.bar(steps, np.nan_to_num(bits), 0.6, color=style.BLUE, alpha=0.85, label='as it is')
    axes.plot(steps, shuffled, '_', ms=22, mew=2, color=style.INK, label='classes shuffled')
    axes.set_xticks(steps)
    axes.grid(axis='x', visible=False)
    axes.set(xlabel='step', ylabel='mutual information (bits)', xlim=(0.4, bits.size + 0.6))
    axes.set_ylim(0, max(1.08 * np.nanmax([*bits, *shuffled]), 0.01))
    marks.legend_beside(axes, markerscale=0.5, reverse=True)
  return figure


def _name_modules(axes, names):
  """Rows from 0 to M with the names of modules, and a square of each one's colour beside it."""
  rows = np.arange(len(names)) + 0.5
  axes.set_yticks(rows, names)
  axes.set_ylim(len(names), 0)
  axes.tick_params(axis='y', length=0, pad=13)
  offset = ScaledTranslation(-8 / 72, 0, axes.figure.dpi_scale_trans)
  axes.scatter(
    np.zeros(len(names)),
    rows,
    s=46,
    marker='s',
    c=module_colours(names),
    transform=axes.get_yaxis_transform() + offset,
    clip_on=False,
  )
