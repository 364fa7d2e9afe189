"""Scripts and styles of pages. They stand inside of the page, which so needs no other file.

Scripts are plain ES modules, which browsers, editors and Node read as they are. A page has several
of them as one: their imports of each other and the word `export` go, and they follow each other in
an order in which each comes after those that it needs. So names at the top of a module are unique.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterable
from importlib import resources

PLACES = ('additive_jax.report', 'additive_jax.report.explorer')
TABLES = ('elements', 'format', 'tables')
EXPLORER = (
  'elements',
  'format',
  'sorting',
  'structures',
  'costs',
  'judged',
  'known',
  'network',
  'card',
  'points',
  'chart',
  'filters',
  'rows',
  'tables',
  'view',
  'main',
)
_IMPORT = re.compile(r"^import\s[^;]*?from '\./[a-z]+\.js';\n", re.MULTILINE)
_EXPORT = re.compile(r'^export (?=(async )?(class|function|const) )', re.MULTILINE)


@functools.cache
def script(names: tuple[str, ...]) -> str:
  """Returns modules joined to one.

  >>> any(line.startswith(('import', 'export')) for line in script(EXPLORER).splitlines())
  False
  """
  modules = [_EXPORT.sub('', _IMPORT.sub('', text(f'{name}.js'))) for name in names]
  return '\n'.join(modules)


@functools.cache
def text(name: str) -> str:
  """Returns a script or a style of the page or the explorer, by the name of its file."""
  files = [resources.files(place) / name for place in PLACES]
  return next(file for file in files if file.is_file()).read_text('utf-8')


def policy(scripts: Iterable[str]) -> str:
  """Returns the content security policy of a page: it runs these scripts and no others, and loads
  nothing from elsewhere.

  >>> policy(['1'])[:51]
  "default-src 'none'; img-src data:; style-src 'unsaf"
  """
  digests = [hashlib.sha256(one.encode()).digest() for one in scripts]
  allowed = ' '.join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
  return (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src {allowed}; base-uri 'none'; form-action 'none'"
  )
