"""One self-contained HTML page about a run: headline tiles, pictures, text and tables."""

import base64
import io
import math
import numbers
import re

import jinja2
import numpy as np

from additive_jax.report.plot_style import power_of_ten, style
from additive_jax.report.template import TEMPLATE

_MAX_VECTOR_MARKS = 1500  # above this many marks a picture is smaller and quicker as pixels
_LARGE = 8  # characters of a tile that fit in large type
_TOC_SECTIONS = 4  # a page with more sections gets a table of contents


class Report:
  """Builds the page piece by piece; each method adds at the end and returns the report itself.

  Pieces stand in the order in which they are added. The page needs no network, no script and no
  other file, and the same pieces give the same bytes. All text is escaped. A picture is inlined as
  SVG, or as PNG where it has over 1,500 marks.

  Args:
    title: heading of the page.
    subtitle: one line under it.

  Example:
    >>> from additive_jax.report.page import Report
    >>> page = Report('Exp 1').facts({'best loss': 0.1234567}).render()
    >>> '0.1235' in page
    True
  """

  def __init__(self, title, subtitle=''):
    self._title, self._subtitle = title, subtitle
    self._items = []
    self._sections = []

  def section(self, heading):
    """Starts a section. A page with more than four of them opens with a table of contents."""
    self._sections.append({'id': f'section-{len(self._sections) + 1}', 'heading': heading})
    return self._add('section', **self._sections[-1])

  def text(self, paragraph):
    """Adds a paragraph of plain text."""
    return self._add('text', text=paragraph)

  def facts(self, facts):
    """Adds a row of tiles from a dict of names to values: text, or numbers shown to four digits."""
    return self._add('facts', facts=[_tile(name, value) for name, value in facts.items()])

  def figure(self, figure, caption):
    """Adds a `matplotlib.figure.Figure` with a caption."""
    number = 1 + sum(item['kind'] == 'figure' for item in self._items)
    if count_marks(figure) > _MAX_VECTOR_MARKS:
      return self._add('figure', png=_png(figure), width=_width(figure), caption=caption)
    svg = _svg(figure, f'figure-{number}-')
    return self._add('figure', svg=svg, width=_width(figure), caption=caption)

  def table(self, frame, caption, max_rows=50):
    """Adds the first `max_rows` rows of a pandas frame, without its index; the caption says how
    many there are.
    """
    shown = frame.head(max_rows)
    columns = [
      {'name': str(name), 'align': _alignment(frame.iloc[:, place])}
      for place, name in enumerate(frame.columns)
    ]
    cells = [
      [format_value(shown.iat[i, j]) for j in range(shown.shape[1])] for i in range(len(shown))
    ]
    note = f'First {len(shown):,} of {len(frame):,} rows.' if len(shown) < len(frame) else ''
    return self._add('table', columns=columns, rows=cells, caption=caption, note=note)

  def details(self, summary, texts):
    """Adds a line that opens to `texts`, a dict of headings to lines that are shown as they are."""
    return self._add('details', summary=summary, parts=list(texts.items()))

  def render(self):
    """The page as a string."""
    contents = self._sections if len(self._sections) > _TOC_SECTIONS else []
    environment = jinja2.Environment(
      autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE).render(
      title=self._title, subtitle=self._subtitle, items=self._items, contents=contents
    )

  def _add(self, kind, **content):
    self._items.append({'kind': kind, **content})
    return self


def format_value(value):
  """A value as a person reads it: four significant digits, whole numbers in full, or `–`."""
  if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
    return '–'
  if isinstance(value, bool | np.bool_):
    return 'yes' if value else 'no'
  if isinstance(value, numbers.Integral):
    return f'{int(value):,}'.replace('-', '−')
  if not isinstance(value, numbers.Real):
    return str(value)
  if math.isinf(value):
    return '∞' if value > 0 else '−∞'
  text = f'{float(value) + 0.0:#.4g}'  # minus zero is zero
  if 'e' in text:
    digits, exponent = text.split('e')
    text = f'{digits}×{power_of_ten(int(exponent))}'
  return text.rstrip('.').replace('-', '−')


def counted(number, noun):
  """A number with its noun: `1 seed`, `5 seeds`."""
  return f'{number:,} {noun}' if number == 1 else f'{number:,} {noun}s'


def count_marks(figure):
  """Number of points and shapes that a figure draws: what makes an SVG large."""
  marks = 0
  for axes in figure.axes:
    marks += sum(len(line.get_xdata()) for line in axes.lines)
    marks += len(axes.patches) + len(axes.texts)
    for collection in axes.collections:
      paths = collection.get_paths()
      marks += max(len(collection.get_offsets()), sum(len(path.vertices) for path in paths) // 4)
  return marks


def _tile(name, value):
  """A fact as it is shown: long ones smaller, numbers on one line."""
  text = format_value(value)
  style = 'long' if len(text) > _LARGE else 'short'
  return {
    'name': name,
    'text': text,
    'style': f'{style} whole' if isinstance(value, numbers.Real) else style,
  }


def _alignment(column):
  numeric = column.dtype.kind in 'iuf'
  texts = [] if numeric else column.dropna()
  if len(texts) and all(isinstance(x, str) and x and not set(x) - set('01') for x in texts):
    return 'bits'
  return 'number' if numeric else 'words'


def _width(figure):
  return round(figure.get_figwidth() * 96)


def _png(figure):
  stream = io.BytesIO()
  with style():
    figure.savefig(stream, format='png', dpi=192, metadata={'Software': None})
  return base64.b64encode(stream.getvalue()).decode('ascii')


def _svg(figure, prefix):
  """The figure as an `<svg>` element; its ids start with `prefix`, to be unique in the page."""
  stream = io.StringIO()
  with style():
    figure.savefig(stream, format='svg', metadata={'Date': None})
  text = stream.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'\s*<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r'\1', text, count=1)
  text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r'\1', text, count=1)
  text = re.sub(r'\bid="', f'id="{prefix}', text)
  text = re.sub(r'href="#', f'href="#{prefix}', text)
  return re.sub(r'url\(#', f'url(#{prefix}', text)
