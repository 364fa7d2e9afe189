"""Pictures of choices cell by cell: a text or images with what every token chose at every step.

T is a number of tokens, S of steps, k of modules that a token chooses at a step, in order of
weight, M of modules. `names` are those of the modules, with the colours of `modules`; `identity`,
bools `[M]`, says which compute nothing. The choices of a token stand on top of each other:

    step 1   attention 0   ─┐
             mlp 3         ─┘ k = 2 modules, the first choice on top
    step 2   mlp 1
             identity 0
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from additive_jax.errors import UserError
from additive_jax.report.figures import marks, style
from additive_jax.report.figures.modules import module_colours

_VISIBLE = {' ': '␣', '\n': '↵', '\r': '↵', '\t': '⇥'}
_COMPUTE = 'viridis_r'  # dark is much
_ACROSS = 48  # characters of one line of text
_MAX_LINES = 3
_MAX_IMAGES = 8


def text_paths(
  tokens: ArrayLike, chosen: ArrayLike, names: Sequence[str], identity: ArrayLike
) -> Figure:
  """Draws what every character of a text chose: characters from left to right, steps downwards.

  A cell has the colour of a module, and its number within its kind. The last row counts the choices
  that compute, darker for more. Lines of 48 characters, at most three; the title says what is cut.
  Spaces, newlines and tabs are drawn as `␣ ↵ ⇥`, other bytes that do not print as `·`.

  >>> names = ['attention 0', 'mlp 0', 'identity 0']
  >>> chosen = [[[0], [1]], [[0], [2]], [[1], [1]]]  # three bytes, two steps, one module each
  >>> figure = text_paths(np.frombuffer(b'a b', np.uint8), chosen, names, [False, False, True])
  >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
  ['a', '␣', 'b']

  Args:
    tokens: bytes `[T]`.
    chosen: `[T, S, k]`.
  """
  tokens, chosen = np.asarray(tokens), np.asarray(chosen)
  if chosen.ndim != 3 or tokens.shape != chosen.shape[:1]:
    raise UserError(
      f'expected tokens [T] and choices [T, S, k], got {tokens.shape}, {chosen.shape}'
    )
  if not chosen.size:
    return style.empty('no text')
  visible = tokens[: _ACROSS * _MAX_LINES]
  across, depth = min(len(visible), _ACROSS), chosen[0].size
  starts = range(0, len(visible), across)
  width = 0.185 * max(across, 12) + 2.1
  height = max(len(starts) * (0.16 * depth + 0.6) + 0.35, _legend_height(names))
  with style.drawing(width, height, len(starts)) as (figure, grid):
    for axes, start in zip(grid[:, 0], starts):
      line = slice(start, min(start + across, len(visible)))
      _draw_text(axes, visible[line], chosen[line], names, np.asarray(identity, bool))
      axes.set_xlim(0, across)
    if len(visible) < len(tokens):
      figure.suptitle(
        f'the first {len(visible):,} of {len(tokens):,} bytes', fontsize=9, color=style.GREY
      )
    _module_legend(figure, names)
  return figure


def _draw_text(axes, tokens, chosen, names, identity):
  """Draws one line of a text: its characters above, their modules below, and how much computes."""
  _, steps, k = chosen.shape
  depth = steps * k
  _draw_cells(axes, chosen.reshape(-1, depth).T, k, names, font_size=6)
  computing = (~identity[chosen]).sum(axis=(1, 2))
  colours = matplotlib.colormaps[_COMPUTE](computing / depth)
  edges = np.arange(len(tokens) + 1), [depth + 0.2, depth + 1.2]
  axes.pcolormesh(*edges, colours[None], edgecolors='face', linewidth=0.2)
  for place, (number, colour) in enumerate(zip(computing, colours)):
    _write(axes, place + 0.5, depth + 0.7, str(number), 6, colour)
  axes.set_ylim(depth + 1.2, 0)
  labels = [*(f'step {step + 1}' for step in range(steps)), f'compute, of {depth}']
  axes.set_yticks([*((np.arange(steps) + 0.5) * k), depth + 0.7], labels)
  axes.xaxis.tick_top()
  characters = [_visible(byte) for byte in tokens]
  axes.set_xticks(np.arange(len(tokens)) + 0.5, characters, family=style.MONO, fontsize=9.5)


def image_paths(
  images: ArrayLike,
  chosen: ArrayLike,
  grid: tuple[int, int],
  names: Sequence[str],
  identity: ArrayLike,
) -> Figure:
  """Draws what every patch of an image chose: a row for each image, a map for each step.

  On the right the share of a patch's choices that compute is laid over the image: dark is much. At
  most eight images.

  >>> chosen = np.array([0, 1, 1, 0]).reshape(1, 4, 1, 1)  # one image of 2 × 2 patches, one step
  >>> figure = image_paths(np.eye(8)[None], chosen, (2, 2), ['mlp 0', 'identity 0'], [False, True])
  >>> [axes.get_title('left') for axes in figure.axes[:3]]
  ['image', 'step 1', 'compute']

  Args:
    images: `[n, H, W]` or `[n, H, W, 1 or 3]`; each is shown from its lowest to its highest value.
    chosen: `[n, T, S, k]`, patches row by row.
    grid: rows and columns of patches, T in all.
  """
  images, chosen = np.asarray(images, np.float64), np.asarray(chosen)
  rows, columns = grid
  if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
    raise UserError(f'expected images [n, H, W] with 1 or 3 channels, got {images.shape}')
  if chosen.ndim != 4 or chosen.shape[:2] != (len(images), rows * columns):
    raise UserError(
      f'expected choices [{len(images)}, {rows} × {columns}, S, k], got {chosen.shape}'
    )
  if not len(images):
    return style.empty('no images')
  images, chosen = images[:_MAX_IMAGES], chosen[:_MAX_IMAGES]
  steps, k = chosen.shape[2:]
  font_size = 5.5 if max(rows * k, columns) <= 10 else 0
  computing = 1 - np.asarray(identity, bool)[chosen].mean(axis=(2, 3))
  size = (1.25 * (steps + 2) + 1.9, max(1.25 * len(images) + 0.35, _legend_height(names)))
  with style.drawing(*size, len(images), steps + 2) as (figure, places):
    for image, choices, share, line in zip(images, chosen, computing, places):
      _draw_image(line[0], image)
      for axes, modules in zip(line[1:-1], choices.transpose(1, 0, 2)):
        cells = modules.reshape(rows, columns, k).transpose(0, 2, 1).reshape(rows * k, columns)
        _draw_cells(axes, cells, k, names, font_size)
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(image.shape[0] / image.shape[1])
      _draw_image(line[-1], image, darkest=0.5)
      look = {'cmap': _COMPUTE, 'vmin': 0, 'vmax': 1, 'alpha': 0.7}
      extent = {'extent': (0, 1, 1, 0), 'aspect': 'auto'}
      overlay = line[-1].imshow(share.reshape(rows, columns), **look, **extent)
    titles = ['image', *(f'step {step + 1}' for step in range(steps)), 'compute']
    for axes, title in zip(places[0], titles):
      axes.set_title(title, fontsize=9)
    bar = figure.colorbar(overlay, ax=list(places[:, -1]), label='share computed', aspect=14)
    bar.outline.set_visible(False)
    _module_legend(figure, names)
  return figure


def _draw_cells(axes, modules, k, names, font_size):
  """Draws a picture of `modules [rows · k, columns]`, each a colour with its number within its
  kind.

  White lines part columns, and every k rows. Size 0 leaves the numbers out.
  """
  colours = module_colours(names)
  axes.pcolormesh(colours[modules], edgecolors='face', linewidth=0.2)
  axes.set_ylim(len(modules), 0)
  for column in range(1, modules.shape[1]):
    axes.axvline(column, color='white', lw=1.0)
  for row in range(k, len(modules), k):
    axes.axhline(row, color='white', lw=1.8 if font_size else 1.0)
  marks.bare(axes)
  numbers = [str(name).rpartition(' ')[2] if ' ' in str(name) else '' for name in names]
  for (row, column), module in np.ndenumerate(modules) if font_size else ():
    _write(axes, column + 0.5, row + 0.5, numbers[module], font_size, colours[module])


def _write(axes, x, y, text, font_size, background):
  look = {'ha': 'center', 'va': 'center_baseline', 'fontsize': font_size}
  axes.text(x, y, text, color=style.ink_on(background), **look)


def _draw_image(axes, image, darkest=0.0):
  image = np.nan_to_num(image.squeeze(2) if image.shape[2:] == (1,) else image)
  scaled = darkest + (1 - darkest) * (image - image.min()) / (np.ptp(image) or 1.0)
  axes.imshow(scaled, cmap='gray', vmin=0, vmax=1, extent=(0, 1, 1, 0), aspect='auto')
  axes.set_box_aspect(image.shape[0] / image.shape[1])
  axes.set_axis_off()


def _module_legend(figure, names):
  handles = [Patch(color=colour, label=name) for colour, name in zip(module_colours(names), names)]
  figure.legend(handles=handles, loc='outside right upper', labelspacing=0.35)


def _legend_height(names):
  return 0.3 + 0.185 * len(names)  # inches


def _visible(byte):
  char = chr(byte)
  return _VISIBLE.get(char, char if 32 < byte < 127 else '·')
