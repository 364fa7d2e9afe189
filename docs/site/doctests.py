"""Shows examples and drawings of docstrings as code: Markdown takes `>>>` for a quotation."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

SECTION = re.compile(
  r'(Args|Attributes|Returns|Raises|Yields|Examples?|References?|Source|Sources?):', re.IGNORECASE
)


class Doctests(griffe.Extension):
  """Puts fences around the paragraphs of a docstring that are examples, or are indented."""

  def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
    """Changes the docstring of an object."""
    if obj.docstring:
      obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
  """Returns a docstring with its examples and drawings as code.

  >>> print(fenced('Adds.\\n\\n>>> 1 + 1\\n2'))
  Adds.
  <BLANKLINE>
  ```pycon
  >>> 1 + 1
  2
  ```
  """
  paragraphs = re.split(r'\n\s*\n', textwrap.dedent(text).rstrip())
  return '\n\n'.join(_paragraph(paragraph) for paragraph in paragraphs)


def _paragraph(text):
  if SECTION.match(text):
    head, _, rest = text.partition('\n>>> ')  # an example may follow without a blank line
    return f'{head}\n\n{_fence(">>> " + rest, "pycon")}' if rest else text
  if text.startswith('>>>'):
    return _fence(text, 'pycon')
  if all(line.startswith('  ') for line in text.splitlines() if line.strip()):
    return _fence(textwrap.dedent(text), 'text')
  return text


def _fence(text, language):
  return f'```{language}\n{text}\n```'
