"""Pictures of choices cell by cell: a text or images with what every token chose at every step.

T is a number of tokens, S of steps, k of modules chosen at a step, M of modules. Modules are named
`kind number` (`attention 0`, `mlp 3`, `identity 1`); a kind has one hue in all pictures and a
number one shade of it.
"""

import matplotlib
import numpy as np
from matplotlib.patches import Patch

from additive_jax.errors import UserError
from additive_jax.report.plot_style import GREY, INK, MONO, say_empty
from additive_jax.report.routing_figures import panels

_HUES = {'attention': 'Blues', 'mlp': 'Oranges', 'block': 'Greens', 'identity': 'Greys'}
_OTHER_HUE = 'Purples'
_VISIBLE = {' ': '␣', '\n': '↵', '\r': '↵', '\t': '⇥'}
_COMPUTE = 'viridis_r'  # dark is much
_ACROSS = 48  # characters of one line of text
_MAX_LINES = 3
_MAX_IMAGES = 8


def module_colours(names):
  """A colour `(r, g, b, a)` for each module by its name: `[M, 4]`.

  Kinds have hues: attention blue, mlp orange, block green, identity grey, any other purple. The
  modules of a kind go from light to dark in the order of the names.
  """
  kinds = [_kind(name) for name in names]
  colours = np.zeros((len(kinds), 4))
  for kind in set(kinds):
    own = np.flatnonzero([other == kind for other in kinds])
    ends = (0.16, 0.36) if kind == 'identity' else (0.32, 0.92)
    shades = np.linspace(*ends, len(own)) if len(own) > 1 else [np.mean(ends)]
    colours[own] = matplotlib.colormaps[_HUES.get(kind, _OTHER_HUE)](shades)
  return colours


def text_paths(tokens, chosen, names, identity):
  """What every character of a text chose: characters from left to right, steps from top to bottom.

  The cell of a character and step holds its k modules on top of each other, the first choice on
  top, each in the colour of the module and with its number within its kind. The last row counts the
  choices that compute, darker for more. Lines of 48 characters, at most three; the title says what
  is cut. Spaces, newlines and tabs are drawn as `␣ ↵ ⇥`, other bytes that do not print as `·`.

  Args:
    tokens: bytes `[T]`.
    chosen: `[T, S, k]`, modules in order of weight.
    names: of the M modules.
    identity: bools `[M]`, which modules compute nothing.
  """
  tokens, chosen = np.asarray(tokens), np.asarray(chosen)
  if chosen.ndim != 3 or tokens.shape != chosen.shape[:1]:
    raise UserError(
      f'expected tokens [T] and choices [T, S, k], got {tokens.shape}, {chosen.shape}'
    )
  shown = tokens[: _ACROSS * _MAX_LINES]
  across = min(max(len(shown), 1), _ACROSS)
  lines = max(-(-len(shown) // across), 1)
  steps, k = chosen.shape[1:]
  deep = steps * k
  width = 0.185 * max(across, 12) + 2.1
  height = max(lines * (0.16 * deep + 0.6) + 0.35, _legend_height(names))
  with panels(width, height, lines, 1) as (figure, grid):
    for axes, start in zip(grid[:, 0], range(0, max(len(shown), 1), across)):
      if not shown.size or not deep:
        say_empty(axes, 'no text')
        continue
      part = slice(start, min(start + across, len(shown)))
      _draw_cells(axes, chosen[part].reshape(-1, deep).T, k, names, 6)
      _draw_compute(axes, (~np.asarray(identity, bool)[chosen[part]]).sum(axis=(1, 2)), deep)
      axes.set(xlim=(0, across), ylim=(deep + 1.2, 0))
      labels = [*(f'step {step + 1}' for step in range(steps)), f'compute, of {deep}']
      axes.set_yticks([*((np.arange(steps) + 0.5) * k), deep + 0.7], labels)
      axes.xaxis.tick_top()
      places = np.arange(part.stop - part.start) + 0.5
      axes.set_xticks(places, [_visible(byte) for byte in shown[part]], family=MONO, fontsize=9.5)
      for label in axes.get_xticklabels():
        label.set_parse_math(False)
    if len(shown) < len(tokens):
      figure.suptitle(f'the first {len(shown):,} of {len(tokens):,} bytes', fontsize=9, color=GREY)
    if shown.size and deep:
      figure.legend(handles=_handles(names), loc='outside right upper', labelspacing=0.35)
  return figure


def image_paths(images, chosen, grid, names, identity):
  """What every patch of an image chose: a row for each image, a map for each step, the compute.

  A cell holds the k modules of a patch on top of each other, as in `text_paths`. On the right the
  share of its choices that compute is laid over the image: dark is much. At most eight images.

  Args:
    images: `[n, H, W]` or `[n, H, W, 1 or 3]`; each is shown from its lowest to its highest value.
    chosen: `[n, T, S, k]`, patches row by row.
    grid: rows and columns of patches, T in all.
    names: of the M modules.
    identity: bools `[M]`, which modules compute nothing.
  """
  images, chosen = np.asarray(images, np.float64), np.asarray(chosen)
  rows, columns = grid
  if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
    raise UserError(f'expected images [n, H, W] with 1 or 3 channels, got {images.shape}')
  if chosen.ndim != 4 or chosen.shape[:2] != (len(images), rows * columns):
    raise UserError(
      f'expected choices [{len(images)}, {rows} × {columns}, S, k], got {chosen.shape}'
    )
  images, chosen = images[:_MAX_IMAGES], chosen[:_MAX_IMAGES]
  steps, k = chosen.shape[2:]
  high, wide = max(len(images), 1), steps + 2
  height = max(1.25 * high + 0.35, _legend_height(names))
  with panels(1.25 * wide + 1.9, height, high, wide) as (figure, places):
    if not len(images):
      for axes in places.flat:
        axes.set_axis_off()
      say_empty(places[0, wide // 2], 'no images')
      return figure
    computing = 1 - np.asarray(identity, bool)[chosen].mean(axis=(2, 3))
    for image, choice, share, line in zip(images, chosen, computing, places):
      _draw_image(line[0], image)
      for step, axes in enumerate(line[1:-1]):
        stacked = choice[:, step].reshape(rows, columns, k).transpose(0, 2, 1)
        fits = max(rows * k, columns) <= 10
        _draw_cells(axes, stacked.reshape(rows * k, columns), k, names, 5.5 if fits else 0)
        axes.set(xticks=[], yticks=[])
        axes.set_box_aspect(image.shape[0] / image.shape[1])
      _draw_image(line[-1], image, darkest=0.5)
      overlay = line[-1].imshow(
        share.reshape(rows, columns),
        cmap=_COMPUTE,
        vmin=0,
        vmax=1,
        alpha=0.7,
        extent=(0, 1, 1, 0),
        aspect='auto',
      )
    titles = ['image', *(f'step {step + 1}' for step in range(steps)), 'compute']
    for axes, title in zip(places[0], titles):
      axes.set_title(title, fontsize=9)
    bar = figure.colorbar(overlay, ax=list(places[:, -1]), label='share computed', aspect=14)
    bar.outline.set_visible(False)
    figure.legend(handles=_handles(names), loc='outside right upper', labelspacing=0.35)
  return figure


def _draw_cells(axes, modules, k, names, font_size):
  """A picture of `modules [rows · k, columns]`, each a colour with its number within its kind.

  White lines part columns, and every k rows. Size 0 leaves the numbers out.
  """
  colours = module_colours(names)
  axes.pcolormesh(colours[modules], edgecolors='face', linewidth=0.2)
  axes.set_ylim(len(modules), 0)
  for column in range(1, modules.shape[1]):
    axes.axvline(column, color='white', lw=1.0)
  for row in range(k, len(modules), k):
    axes.axhline(row, color='white', lw=1.0 if font_size == 0 else 1.8)
  axes.grid(visible=False)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  numbers = [str(name).rpartition(' ')[2] if ' ' in str(name) else '' for name in names]
  for (row, column), module in np.ndenumerate(modules if font_size else np.zeros((0, 0), int)):
    ink = _ink(colours[module])
    place = {'ha': 'center', 'va': 'center_baseline', 'fontsize': font_size, 'color': ink}
    axes.text(column + 0.5, row + 0.5, numbers[module], **place)


def _draw_compute(axes, number, deep):
  """A row under `deep` others with how many of a character's `deep` choices compute."""
  colours = matplotlib.colormaps[_COMPUTE](number / deep)
  edges = np.arange(len(number) + 1)
  axes.pcolormesh(edges, [deep + 0.2, deep + 1.2], colours[None], edgecolors='face', linewidth=0.2)
  for place, (count, colour) in enumerate(zip(number, colours)):
    look = {'ha': 'center', 'va': 'center_baseline', 'fontsize': 6, 'color': _ink(colour)}
    axes.text(place + 0.5, deep + 0.7, str(count), **look)


def _draw_image(axes, image, darkest=0.0):
  image = np.nan_to_num(image.squeeze(2) if image.shape[2:] == (1,) else image)
  scaled = darkest + (1 - darkest) * (image - image.min()) / (np.ptp(image) or 1.0)
  axes.imshow(scaled, cmap='gray', vmin=0, vmax=1, extent=(0, 1, 1, 0), aspect='auto')
  axes.set_box_aspect(image.shape[0] / image.shape[1])
  axes.set_axis_off()


def _handles(names):
  return [Patch(color=colour, label=name) for colour, name in zip(module_colours(names), names)]


def _legend_height(names):
  return 0.3 + 0.185 * len(names)  # inches


def _kind(name):
  return str(name).rpartition(' ')[0] or str(name)


def _ink(colour):
  """White on dark colours, dark on light ones."""
  return 'white' if np.dot(colour[:3], (0.299, 0.587, 0.114)) < 0.55 else INK


def _visible(byte):
  char = chr(byte)
  return _VISIBLE.get(char, char if 32 < byte < 127 else '·')
