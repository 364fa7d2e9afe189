"""Parts of several pictures: named rows, intervals, cells, legends, and limits of axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike

from additive_jax.errors import UserError
from additive_jax.report.figures import style
from additive_jax.report.wording import power_of_ten

Column = Float[np.ndarray, ' rows']


def require(frame: pd.DataFrame, *columns: str) -> None:
  """Raises `UserError` for the first column that a frame lacks."""
  missing = [name for name in columns if name not in frame]
  if missing:
    raise UserError(f'expected a column {missing[0]!r}, got the columns {list(frame.columns)}')


def column(frame: pd.DataFrame, name: str) -> Column:
  """Returns a column as floats, NaN where a value is missing or not finite."""
  values = frame[name].to_numpy(np.float64, na_value=np.nan)
  return np.where(np.isfinite(values), values, np.nan)


def with_interval(frame: pd.DataFrame, name: str, interval: str = '') -> tuple[Column, Column]:
  """Returns a column and its half width, NaN where there is none: no bar is drawn then.

  Args:
    interval: the column of half widths; `<name>_ci95` by default.
  """
  interval = interval or f'{name}_ci95'
  values = column(frame, name)
  widths = column(frame, interval) if interval in frame else np.full(len(frame), np.nan)
  return values, widths


def name_rows(axes: Any, names: Sequence[str], **font: Any) -> None:
  """Labels the rows 0, 1, … from top to bottom, with no lines between them."""
  axes.set_yticks(range(len(names)), names, **font)
  axes.set_ylim(len(names) - 0.4, -0.6)
  axes.grid(axis='y', visible=False)


def bare(axes: Any) -> None:
  """Takes away grid, frame and tick marks."""
  axes.grid(visible=False)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)


def legend_beside(axes: Any, **options: Any) -> None:
  """Draws the legend to the right of the axes."""
  axes.legend(loc='upper left', bbox_to_anchor=(1.0, 1.0), **options)


def note(axes: Any, text: str) -> None:
  """Writes a warning at the upper right, beside the title."""
  axes.set_title(text, loc='right', fontsize=8, fontweight='normal', color=style.VERMILION)


def heat_map(
  figure: Figure,
  axes: Any,
  matrix: np.ma.MaskedArray,
  limit: float,
  text: Callable[[int, int], str] | None,
  **bar: Any,
) -> Any:
  """Draws a matrix as cells, blue below zero and red above, and returns its colour bar.

  Args:
    matrix: masked where a cell is left blank.
    limit: colours go from −limit to limit.
    text: gives the text of a cell by row and column; None writes nothing.
    bar: options of the colour bar.
  """
  edges = {'edgecolors': 'white', 'linewidth': 1.0}
  mesh = axes.pcolormesh(matrix, cmap='RdBu_r', vmin=-limit, vmax=limit, **edges)
  axes.set_ylim(len(matrix), 0)
  bare(axes)
  if text is not None:
    middle = {'ha': 'center', 'va': 'center', 'fontsize': 7.5}
    for row, place in np.argwhere(~np.ma.getmaskarray(matrix)):
      ink = 'white' if abs(matrix[row, place]) > 0.62 * limit else style.INK
      axes.text(place + 0.5, row + 0.5, text(row, place), color=ink, **middle)
  colour_bar = figure.colorbar(mesh, ax=axes, **bar)
  colour_bar.outline.set_visible(False)
  return colour_bar


def name_columns(axes: Any, names: Sequence[str], **font: Any) -> None:
  """Labels the columns of cells; names of more than four letters stand upright."""
  upright = max(map(len, names), default=0) > 4
  axes.set_xticks(np.arange(len(names)) + 0.5, names, rotation=90 if upright else 0, **font)


def scaled(values: ArrayLike, *others: ArrayLike) -> tuple[Any, ...]:
  """Returns arrays in a power of 1000, and what that adds to an axis label.

  The largest finite |value| of the first array is in [1, 1000) then.

  >>> scaled([1200.0, 3000.0])
  (array([1.2, 3. ]), ' (×10³)')
  """
  arrays = [np.asarray(array, np.float64) for array in (values, *others)]
  largest = np.abs(arrays[0][np.isfinite(arrays[0])]).max(initial=0.0)
  exponent = 3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0
  power = f' (×{power_of_ten(exponent)})' if exponent else ''
  return *(array / 10.0**exponent for array in arrays), power


def count_on_log_scale(axis: Any) -> None:
  """Labels a logarithmic axis of whole numbers with 1, 2, 5, 10, …; long ones with powers of ten
  alone."""
  low, high = axis.get_view_interval()
  axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
  axis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
  axis.set_minor_formatter(NullFormatter())


def log_scale_if_wide(axes: Any, values: ArrayLike) -> None:
  """Sets a vertical log scale where values are positive, the largest over ten times the median."""
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  if values.size and values.min() > 0 and values.max() > 10 * np.median(values):
    axes.set_yscale('log')


def leave_out_outliers(axes: Any, values: ArrayLike) -> None:
  """Limits the vertical axis to what is not far above the rest, and says what that hides.

  Far is over eight times the spread of the middle four fifths of `values` above their median: a
  structure that diverged would otherwise flatten all others into a line.
  """
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
  limit = median + 8 * (high - low)
  hidden = int((values > limit).sum())
  if hidden and high > low:
    visible = values[values <= limit]
    pad = 0.12 * (visible.max() - visible.min())
    axes.set_ylim(visible.min() - pad, visible.max() + pad)
    note(axes, f'{hidden:,} not shown: above {visible.max():.3g}, up to {values.max():.3g}')
