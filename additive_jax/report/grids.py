"""Pictures made of cells: structures as rows of on and off `+`, and matrices of gates or
structures.

Each function returns a `matplotlib.figure.Figure`.
"""

import numpy as np

from additive_jax.errors import UserError
from additive_jax.report.plot_style import (
  BLUE,
  DIVERGING,
  FAINT,
  GREY,
  INK,
  MONO,
  drawing,
  power_of_thousand,
  say_empty,
  times_power,
)
from additive_jax.report.wording import short_names

_MAX_ANNOTATED = 16  # rows of a heat map in which numbers can still be read


def interaction_heatmap(matrix, names):
  """Pairwise interactions of gates as colours centred on zero, with numbers up to 16 gates.

  Args:
    matrix: `[n, n]`, as `statistics.interactions` makes it. The diagonal is left blank.
    names: the n gate names.
  """
  matrix = np.array(matrix, np.float64)
  np.fill_diagonal(matrix, np.nan)
  exponent = power_of_thousand(matrix)
  matrix = matrix / 10.0**exponent
  limit = np.abs(matrix[np.isfinite(matrix)]).max(initial=0.0) or 1.0
  label = f'interaction{times_power(exponent)}'
  return _heat_map(
    matrix, short_names(names), limit, label, '{:+z.1f}' if limit < 100 else '{:+z.0f}', {}
  )


def cosines(matrix, labels):
  """Cosines between the gradients of K structures, `matrix [K, K]`, on a scale from −1 to 1."""
  matrix = np.array(matrix, np.float64)
  return _heat_map(matrix, [str(x) for x in labels], 1.0, 'cosine', '{:z.2f}', {'family': MONO})


def _heat_map(matrix, labels, limit, label, number, font):
  size = len(labels)
  if matrix.shape != (size, size):
    raise UserError(f'expected a matrix [{size}, {size}] for {size} labels, got {matrix.shape}')
  cell = 0.46 if size <= _MAX_ANNOTATED else 0.26
  margin = 0.3 + 0.085 * max(map(len, labels), default=0)
  with drawing(max(2.6, cell * size + margin + 1.0), max(1.6, cell * size + margin)) as (
    figure,
    (axes,),
  ):
    if not size:
      say_empty(axes, 'nothing to compare')
      return figure
    axes.set_facecolor('#f1f2f4')
    mesh = axes.pcolormesh(
      np.ma.masked_invalid(matrix),
      cmap=DIVERGING,
      vmin=-limit,
      vmax=limit,
      edgecolors='white',
      linewidth=1.0,
    )
    axes.set(aspect='equal', ylim=(size, 0))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    centres = np.arange(size) + 0.5
    axes.set_xticks(
      centres, labels, rotation=90 if max(map(len, labels), default=0) > 4 else 0, **font
    )
    axes.set_yticks(centres, labels, **font)
    if size <= _MAX_ANNOTATED:
      for row, column in np.argwhere(np.isfinite(matrix)):
        value = matrix[row, column]
        axes.text(
          column + 0.5,
          row + 0.5,
          number.format(value).replace('-', '−'),
          ha='center',
          va='center',
          fontsize=7.5,
          color='white' if abs(value) > 0.62 * limit else INK,
        )
    colour_bar = figure.colorbar(mesh, ax=axes, label=label, shrink=0.9, aspect=18, pad=0.03)
    colour_bar.outline.set_visible(False)
  return figure


def structures(structures, names, labels):
  """Structures as rows of `+`: a filled disc where the gate is on, a faint ring where it is off.

  Args:
    structures: K structures as text, gate 0 leftmost; each of n characters.
    names: the n gate names.
    labels: K short texts written to the right, for example the losses.
  """
  names, labels = short_names(names), [str(label) for label in labels]
  for text in structures:
    if len(text) != len(names) or set(text) - set('01'):
      raise UserError(f'expected a structure of {len(names)} characters 0 or 1, got {text!r}')
  if len(labels) != len(structures):
    raise UserError(f'{len(labels)} labels given for {len(structures)} structures')
  bits = np.array([[char == '1' for char in text] for text in structures], bool)
  bits = bits.reshape(len(structures), len(names))
  cell = 0.38
  left, right = 0.45, 0.3 + 0.085 * max(map(len, labels), default=0)
  top, bottom = 0.2 + 0.068 * max(map(len, names), default=0), 0.12
  width, height = left + cell * len(names) + right, top + cell * max(len(bits), 1) + bottom
  with drawing(width, height, layout='none') as (figure, (axes,)):
    axes.set_position(
      (left / width, bottom / height, cell * len(names) / width, cell * max(len(bits), 1) / height)
    )
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(max(len(bits), 1) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    rows, columns = np.nonzero(bits)
    axes.scatter(columns, rows, s=360, color=BLUE, lw=0, clip_on=False)
    axes.scatter(columns, rows, s=130, marker='+', color='white', lw=2.4, clip_on=False)
    rows, columns = np.nonzero(~bits)
    axes.scatter(columns, rows, s=330, facecolor='none', edgecolor=FAINT, lw=1.0, clip_on=False)
    axes.scatter(columns, rows, s=110, marker='+', color=FAINT, lw=1.2, clip_on=False)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(bits)), [f'{i}' for i in range(1, len(bits) + 1)], color=GREY)
    for row, label in enumerate(labels):
      axes.text(len(names) - 0.35, row, label, va='center', fontsize=9)
  return figure
