"""One self-contained HTML page about a run, declared as a tree of pieces.

    page = Page(
      'Exp 1: which + matter',
      tiles({'best loss': 0.1234567, 'structures': 4096}),
      section(
        'The best structures',
        picture(figures.ranking(structures), 'Loss by rank.'),
        text('Only a part was evaluated.') if searched else None,
      ),
      section('Tables', table(structures, 'Best first.', max_rows=30)),
    )
    path.write_text(page.html())

Pieces stand in the order in which they are given. A piece that is None is left out, and so is a
section without pieces, so that a page with parts that may be missing is one expression. The page
needs no network and no other file, and says all but what an explorer shows without scripts; the
same pieces give the same bytes; all text is escaped, and a content security policy lets no script
run but the page's own.
"""

from __future__ import annotations

import base64
import io
import numbers
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from additive_jax.report import assets
from additive_jax.report.figures.style import look
from additive_jax.report.wording import format_margin, format_value, heading, plain

_MAX_VECTOR_BYTES = 150_000  # a picture with a larger SVG is smaller and quicker as pixels
_IN_FULL = 1e9  # whole numbers below are written in full
_LARGE = 8  # characters of a tile that fit in large type
_TOC_SECTIONS = 4  # a page with more sections opens with a table of contents
_EXPLORERS = ('explorer', 'explorers')  # pieces that have a heading and need its scripts
_TEMPLATES = jinja2.Environment(
  loader=jinja2.PackageLoader('additive_jax', 'report'),
  autoescape=True,
  trim_blocks=True,
  lstrip_blocks=True,
  undefined=jinja2.StrictUndefined,
)

NAMED = ('variant', 'family')  # columns of names of the code


@dataclass(frozen=True)
class Piece:
  """A part of a page: the name of the function below that made it, and what the template shows."""

  kind: str
  content: dict[str, Any]


class Page:
  """A page: a title, a line under it, and pieces.

  Args:
    title: the heading.
    pieces: what `section`, `text`, `tiles`, `picture`, `table` and `details` return, or None.
    subtitle: one line under the title.
    asks_of_gates: whether gates are what the page is about, so that an explorer comes first.

  >>> page = Page('Exp 1', tiles({'best loss': 0.1234567}), None, subtitle='3 gates')
  >>> '0.1235' in page.html()
  True
  """

  def __init__(
    self, title: str, *pieces: Piece | None, subtitle: str = '', asks_of_gates: bool = False
  ):
    self.title, self.pieces, self.subtitle = title, _present(pieces), subtitle
    self.asks_of_gates = asks_of_gates

  def html(self) -> str:
    """Returns the page; one with more than four sections opens with a table of contents."""
    contents = [
      (number, piece.content['heading'])
      for number, piece in enumerate(self.pieces, start=1)
      if piece.kind in ('section', *_EXPLORERS)
    ]
    has_explorer = any(piece.kind in _EXPLORERS for piece in self.pieces)
    script = assets.script(assets.EXPLORER if has_explorer else assets.TABLES)
    styles = ('page.css', 'explorer.css') if has_explorer else ('page.css',)
    return _TEMPLATES.get_template('page.html.j2').render(
      title=self.title,
      subtitle=self.subtitle,
      pieces=self.pieces,
      contents=contents if len(contents) > _TOC_SECTIONS else [],
      style=Markup(''.join(map(assets.text, styles))),
      policy=Markup(assets.policy([script])),
      scripts=[Markup(script)],
    )


def section(heading: str, *pieces: Piece | None) -> Piece | None:
  """Returns the pieces under a heading, or None where there are none.

  >>> section('Training', None) is None
  True
  """
  present = _present(pieces)
  return Piece('section', {'heading': heading, 'pieces': present}) if present else None


def text(paragraph: str) -> Piece:
  """Returns a paragraph."""
  return Piece('text', {'text': paragraph})


def tiles(facts: dict[str, Any]) -> Piece:
  """Returns a row of tiles: names with texts, or with numbers shown to four digits."""
  return Piece('tiles', {'tiles': [_tile(name, value) for name, value in facts.items()]})


def picture(figure: Figure, caption: str) -> Piece:
  """Returns a figure with its caption, as an image inside the page.

  The image is an SVG, or a PNG where that would be large. The caption's first sentence is what a
  screen reader says of it.
  """
  return Piece(
    'picture',
    {
      'source': _data_uri(figure),
      'width': round(96 * figure.get_figwidth()),
      'caption': caption,
      'alt': caption.partition('. ')[0],
    },
  )


def table(frame: pd.DataFrame, caption: str, max_rows: int = 50) -> Piece:
  """Returns the first rows of a frame, without its index; a note says how many there are.

  An interval `x_ci95` stands behind its number `x`, as `0.12 ± 0.03`, and columns without any, as
  of one seed, are left out. Names of columns and of variants are words; numbers that are whole in
  all of a column are written in full.

  >>> frame = pd.DataFrame({'alone_loss': [0.5, 0.25], 'alone_loss_ci95': [0.13, 0.01]})
  >>> content = table(frame, 'Two networks.').content
  >>> content['columns'][0]['name'], [row[0].split() for row in content['rows']]
  ('alone loss', [['0.5000', '±', '0.13'], ['0.2500', '±', '0.010']])
  """
  frame = frame.rename(columns=str)
  margins = {f'{name}_ci95' for name in frame}
  is_empty = lambda name: name.endswith('ci95') and len(frame) and frame[name].isna().all()
  names = [name for name in map(str, frame) if name not in margins and not is_empty(name)]
  columns = [{'name': heading(name), 'align': _alignment(frame[name])} for name in names]
  visible = frame.head(max_rows)
  cells = [_cells(visible[name], visible.get(f'{name}_ci95')) for name in names]
  note = f'First {len(visible):,} of {len(frame):,} rows.' if len(visible) < len(frame) else ''
  rows = [list(row) for row in zip(*cells)]
  return Piece('table', {'columns': columns, 'rows': rows, 'caption': caption, 'note': note})


def details(summary: str, texts: dict[str, str]) -> Piece:
  """Returns a line that opens to texts under headings; their lines are shown as they are."""
  return Piece('details', {'summary': summary, 'texts': texts})


def varying(piece: Piece | None) -> Piece:
  """Returns a piece that differs between runs of one config, or nothing, between marks."""
  return Piece('varying', {'pieces': _present([piece])})


def _present(pieces):
  return [piece for piece in pieces if piece is not None]


def _tile(name, value):
  """Returns a fact as it is shown: a long text smaller, a number on one line."""
  text = format_value(value)
  size = 'long' if len(text) > _LARGE else 'short'
  whole = ' whole' if isinstance(value, numbers.Real) else ''
  return {'name': name, 'text': text, 'style': size + whole}


def _cells(column, half_widths):
  """Returns the texts of a column, with the half widths of its intervals where it has some."""
  if column.name in NAMED:
    return [plain(value) for value in column]
  if column.dtype.kind == 'f' and (column.dropna() % 1 == 0).all() and column.max() < _IN_FULL:
    column = column.astype('Int64') if np.isfinite(column.dropna()).all() else column
  values = [format_value(None if value is pd.NA else value) for value in column]
  if half_widths is None:
    return values
  margins = map(format_margin, half_widths)
  return [f'{value} ± {half}' if half else value for value, half in zip(values, margins)]


def _alignment(column):
  """Returns the class of a column's cells: numbers stand to the right, structures in one width."""
  if column.dtype.kind in 'iuf':
    return 'number'
  words = column.dropna()
  bits = len(words) and all(isinstance(x, str) and x and not set(x) - set('01') for x in words)
  return 'bits' if bits else 'words'


def _data_uri(figure):
  """Returns the figure as the address of an image that holds all of it."""
  nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
  image = _saved(figure, format='svg', metadata=nothing)
  kind = 'svg+xml'
  if len(image) > _MAX_VECTOR_BYTES:
    image, kind = _saved(figure, format='png', dpi=192, metadata={'Software': None}), 'png'
  return f'data:image/{kind};base64,{base64.b64encode(image).decode("ascii")}'


def _saved(figure, **options):
  stream = io.BytesIO()
  with look():
    figure.savefig(stream, **options)
  return stream.getvalue()
