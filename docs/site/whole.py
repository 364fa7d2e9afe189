"""Checks that a built site loads nothing from elsewhere: `python docs/site/whole.py SITE`.

A link that a reader follows may lead anywhere; a script, a style, a picture or a font may not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

LOADS = re.compile(
  r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=["\']?(?P<src>[^"\'\s>]+)'
  r'|<link\b(?![^>]*\brel=["\']?(?:canonical|next|prev))[^>]*?\bhref=["\']?(?P<href>[^"\'\s>]+)'
  r'|url\(["\']?(?P<url>[^"\')]+)'
  r'|@import\s+["\'](?P<rule>[^"\']+)',
  re.IGNORECASE,
)


def loaded(folder: Path) -> Iterator[tuple[Path, str]]:
  """Yields each file of the site with what it loads from another place."""
  for path in sorted(folder.rglob('*')):
    if path.suffix in ('.html', '.css', '.svg'):
      for match in LOADS.finditer(path.read_text(errors='replace')):
        address = next(filter(None, match.groups()))
        if re.match(r'(https?:)?//', address):
          yield path, address


if __name__ == '__main__':
  site = Path(sys.argv[1])
  pages = list(site.rglob('*.html'))
  found = [f'{path.relative_to(site)}: {address}' for path, address in loaded(site)]
  print('\n'.join(found) or f'{len(pages)} pages, nothing is loaded from elsewhere')
  sys.exit(bool(found) or not pages)
