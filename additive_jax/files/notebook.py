"""A live picture of text in a notebook: one output of a cell, which is drawn again and again."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import rich.console

INTERVAL = 0.2  # seconds between two pictures
WIDTH = 100  # characters
PRE = '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace">'


def in_notebook() -> bool:
  """Returns whether this program is a notebook's, which can show more than text."""
  ipython = sys.modules.get('IPython')  # a notebook has imported it
  shell = ipython.get_ipython() if ipython is not None else None
  return shell is not None and hasattr(shell, 'kernel')


class Output:
  """One output of the cell that runs, without any widgets."""

  def __init__(self) -> None:
    self._handle: Any = None
    self._drawn = 0.0

  def draw(self, renderable: rich.console.RenderableType, *, at_once: bool = False) -> None:
    """Shows what `rich` can draw in place of what was shown before, a few times a second.

    Args:
      renderable: what is drawn.
      at_once: draws however short the last picture was ago.
    """
    now = time.monotonic()
    if not at_once and now - self._drawn < INTERVAL:
      return
    self._drawn = now
    html, text = as_html(renderable)
    bundle = {'text/html': html, 'text/plain': text}
    if self._handle is None:
      from IPython.display import display

      self._handle = display(bundle, raw=True, display_id=True)
    else:
      self._handle.update(bundle, raw=True)


def as_html(renderable: rich.console.RenderableType) -> tuple[str, str]:
  """Returns what `rich` can draw as HTML and as plain text.

  >>> as_html('half done')[0]
  '<pre style="...">half done\\n</pre>'
  """
  console = rich.console.Console(
    file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False, force_terminal=True
  )
  console.print(renderable)
  html = console.export_html(inline_styles=True, code_format=f'{PRE}{{code}}</pre>', clear=False)
  return html, console.export_text()
