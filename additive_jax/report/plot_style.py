"""One look for every figure: fonts, colours, labels, and figures made without pyplot's global
state.
"""

import contextlib
import math

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from additive_jax.report.wording import power_of_ten

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow: too pale.
PALETTE = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#4d4d4d')
BLUE, VERMILION, GREEN = PALETTE[:3]
INK, GREY, FAINT = '#22262b', '#8a9099', '#d5d9de'
DIVERGING = 'RdBu_r'
MONO = 'DejaVu Sans Mono'

_RC = {
  'font.family': 'DejaVu Sans',
  'font.size': 9.5,
  'axes.labelsize': 9.5,
  'axes.titlesize': 10.5,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.edgecolor': GREY,
  'axes.labelcolor': INK,
  'axes.linewidth': 0.8,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'axes.formatter.limits': (-3, 5),
  'axes.formatter.use_mathtext': True,
  'axes.unicode_minus': True,
  'grid.color': '#eceef1',
  'grid.linewidth': 0.8,
  'text.color': INK,
  'xtick.color': GREY,
  'ytick.color': GREY,
  'xtick.labelcolor': INK,
  'ytick.labelcolor': INK,
  'xtick.labelsize': 8.5,
  'ytick.labelsize': 8.5,
  'legend.fontsize': 8.5,
  'legend.frameon': False,
  'lines.linewidth': 1.6,
  'figure.facecolor': 'white',
  'axes.facecolor': 'white',
  'figure.constrained_layout.use': False,
  'svg.fonttype': 'path',
  'svg.hashsalt': 'additive_jax',
  'savefig.dpi': 160,
}


@contextlib.contextmanager
def style():
  """The settings of every figure, on Matplotlib's defaults, whatever the user's own are."""
  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(_RC)
    yield


@contextlib.contextmanager
def drawing(width, height, columns=1, width_ratios=None, layout='constrained'):
  """Yields `(figure, list of axes)` of a size in inches, in the style, and lays it out at the end.

  Laid out inside, because tick labels are made when first drawn and would otherwise take the
  reader's own settings.
  """
  with style():
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False, width_ratios=width_ratios)
    yield figure, list(axes[0])
    figure.draw_without_rendering()


def power_of_thousand(values):
  """The multiple of 3, e, with the largest finite |value| in [1, 1000) × 10^e; 0 if none."""
  largest = np.abs(np.asarray(values, np.float64)[np.isfinite(values)]).max(initial=0.0)
  return 3 * math.floor(math.log10(largest) / 3) if largest > 0 else 0


def times_power(exponent):
  """` (×10⁶)` for 6, to follow an axis label; nothing for 0."""
  return f' (×{power_of_ten(exponent)})' if exponent else ''


def log_scale_if_wide(axis_setter, values):
  """Sets a log scale when `values` are positive and the largest is over ten times the median."""
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  if values.size and values.min() > 0 and values.max() > 10 * np.median(values):
    axis_setter('log')


def leave_out_outliers(axes, values):
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
    shown = values[values <= limit]
    pad = 0.06 * (shown.max() - shown.min())
    axes.set_ylim(shown.min() - 2 * pad, shown.max() + 2 * pad)
    note = f'{hidden:,} not shown: above {shown.max():.3g}, up to {values.max():.3g}'
    axes.set_title(note, loc='right', fontsize=8, fontweight='normal', color=VERMILION)


def say_empty(axes, message):
  """Writes `message` in the middle of axes that have nothing to show."""
  axes.set_axis_off()
  axes.text(0.5, 0.5, message, ha='center', va='center', color=GREY, transform=axes.transAxes)
