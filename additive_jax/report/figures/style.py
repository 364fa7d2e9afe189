"""One look for every figure: fonts, colours, and figures made without pyplot's global state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import matplotlib.style
import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

# Okabe and Ito's colours, which colour-blind readers tell apart, without the yellow: too pale.
PALETTE = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#4d4d4d')
BLUE, VERMILION, GREEN = PALETTE[:3]
INK, GREY, FAINT, PALE = '#22262b', '#8a9099', '#d5d9de', '#eceef1'
BLUES = ('#08306b', '#9eccec')  # from dark to light
MONO = 'DejaVu Sans Mono'


def look() -> contextlib.AbstractContextManager[None]:
  """Returns a context with the settings of `look.mplstyle`, whatever the reader's own are."""
  return matplotlib.style.context('additive_jax.report.figures.look', after_reset=True)


@contextlib.contextmanager
def drawing(
  width: float,
  height: float,
  rows: int = 1,
  columns: int = 1,
  *,
  layout: Literal['constrained'] | None = 'constrained',
  **options: Any,
) -> Iterator[tuple[Figure, Shaped[np.ndarray, 'rows columns']]]:
  """Yields a figure with this look and its axes `[rows, columns]`, and lays it out at the end.

  It is laid out inside, because tick labels are made when first drawn and would otherwise take the
  reader's own settings. Text with $ in it, such as the name of a gate, is no formula.

  Args:
    width, height: in inches.
    rows, columns: of axes.
    layout: of `matplotlib.figure.Figure`.
    options: of `Figure.subplots`, such as `sharey`.

  >>> with drawing(4, 3, columns=2) as (figure, [[left, right]]):
  ...   _ = left.plot([1, 2, 3])
  >>> figure.get_size_inches().tolist()
  [4.0, 3.0]
  """
  with look():
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    yield figure, figure.subplots(rows, columns, squeeze=False, **options)
    for text in figure.findobj(Text):
      if '$' in text.get_text():  # a name of the user's; those of ticks are made when drawn
        text.set_parse_math(False)
    figure.draw_without_rendering()


def empty(message: str) -> Figure:
  """Returns a small figure that says why there is nothing to see."""
  with drawing(4, 1.2) as (figure, [[axes]]):
    say_empty(axes, message)
  return figure


def say_empty(axes: Any, message: str) -> None:
  """Writes a message in the middle of axes that have nothing to show."""
  axes.set_axis_off()
  axes.text(0.5, 0.5, message, ha='center', va='center', color=GREY, transform=axes.transAxes)


def colour(number: int) -> str:
  """Returns the palette's colour of a number; they come again after the last."""
  return PALETTE[number % len(PALETTE)]


Colours = Mapping[str, str]  # of arms, by any name that a picture has for them


def palette(names: Iterable[str], known: Colours | None = None) -> dict[str, str]:
  """Returns a colour for each name: the known one, else the palette's in order of appearance.

  >>> palette(['a', 'b'], known={'b': 'black'})
  {'a': '#0072b2', 'b': 'black'}
  """
  known, names = known or {}, list(dict.fromkeys(names))
  return {name: known.get(name, colour(number)) for number, name in enumerate(names)}


Dashes = str | tuple[float, tuple[float, ...]]


def dashes(number: int) -> Dashes:
  """Returns the line style of a number, which tells lines of one colour apart."""
  long = (0, (8, 2)), (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (10, 2, 2, 2))
  return ('-', '--', ':', '-.', *long)[number % 8]


def marker(number: int) -> str:
  """Returns the shape of a number's points."""
  return 'osD^vPX*<>'[number % 10]


def shades(count: int, ends: Sequence[str] = BLUES) -> Float[np.ndarray, 'count 4']:
  """Returns `count` colours from one to another, evenly spaced; the first alone for one."""
  return LinearSegmentedColormap.from_list('shades', list(ends))(np.linspace(0, 1, count))


def depths(tint: str) -> tuple[str, str]:
  """Returns a dark and a light shade of a colour.

  >>> depths('#0072b2')
  ('#003f62', '#80b8d8')
  """
  red, green, blue = to_rgb(tint)
  dark = 0.55 * red, 0.55 * green, 0.55 * blue
  return to_hex(dark), to_hex((0.5 + 0.5 * red, 0.5 + 0.5 * green, 0.5 + 0.5 * blue))


def ink_on(background: Sequence[float]) -> str:
  """Returns the colour of a text on a background `(r, g, b, …)`: white on dark, dark on light."""
  return 'white' if np.dot(background[:3], (0.299, 0.587, 0.114)) < 0.55 else INK
