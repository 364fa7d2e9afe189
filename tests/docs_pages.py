"""The code on the pages of the documentation: runs it, and writes what it prints into the page.

  python tests/docs_pages.py docs/tutorials/rank.md ...

A block of Python is followed by a block `text` where the page shows what it prints.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
BLOCK = re.compile(r'^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r'^```sh\n(.*?)^```', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
  """A block of Python on a page, and what the page says that it prints; None for nothing."""

  code: str
  shown: str | None


def pages() -> list[Path]:
  """The pages whose code runs as it stands, in order, as one session."""
  folders = ('tutorials', 'guides', 'concepts')
  return [
    DOCS / 'start.md',
    *(page for name in folders for page in sorted((DOCS / name).glob('*'))),
  ]


def blocks(page: Path) -> list[Block]:
  """The blocks of a page, in order."""
  return [Block(*match.groups()) for match in BLOCK.finditer(page.read_text())]


def commands(page: Path) -> list[str]:
  """The lines of a page's shell blocks that start the program, with what continues them."""
  lines = '\n'.join(COMMAND.findall(page.read_text())).replace('\\\n', ' ').splitlines()
  return [line.partition('  #')[0].strip() for line in lines if line.startswith('additive-jax')]


def run(page: Path) -> list[str]:
  """Runs a page in the current directory, and returns what each block printed."""
  names: dict[str, Any] = {'__name__': '__main__'}
  printed = []
  for block in blocks(page):
    with contextlib.redirect_stdout(io.StringIO()) as out:
      exec(compile(block.code, page.name, 'exec'), names)
    printed.append(out.getvalue().replace(f'{os.getcwd()}/', ''))
  return printed


def written(page: Path, printed: list[str]) -> str:
  """Returns the page with what its blocks printed in place of what it shows."""
  texts = iter(printed)

  def replaced(match: re.Match[str]) -> str:
    said = next(texts)
    code = f'```python\n{match[1]}```\n'
    return code if match[2] is None else f'{code}\n```text\n{said.rstrip()}\n```\n'

  return BLOCK.sub(replaced, page.read_text())


if __name__ == '__main__':
  for argument in sys.argv[1:]:
    path = Path(argument).resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
      os.environ.setdefault('COLUMNS', '100')
      result = run(path)
    path.write_text(written(path, result))
