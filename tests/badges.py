"""Notebooks that open on Colab by a click: writes their badges, the cell that installs the package
there, and the links of README and documentation, by the address in `setup.cfg`.

python tests/badges.py

Whoever publishes the repository sets `url` there, and runs this once.
"""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent
BRANCH = 'main'
COLAB = 'https://colab.research.google.com'
BADGE = f'{COLAB}/assets/colab-badge.svg'
LINK = re.compile(rf'{re.escape(COLAB)}/github/\S+?/notebooks/(\w+)\.ipynb')
INSTALL = """\
# Where the package is not there yet, as on Colab.
import importlib.util

if importlib.util.find_spec('additive_jax') is None:
  %pip install --quiet "additive_jax @ git+{address}"
"""


def address() -> str:
  """Returns where the repository is published, as `setup.cfg` says."""
  config = configparser.ConfigParser()
  config.read(ROOT / 'setup.cfg')
  return config['metadata']['url']


def notebooks() -> list[Path]:
  """Returns the notebooks, by name."""
  return sorted((ROOT / 'notebooks').glob('*.ipynb'))


def link(name: str) -> str:
  """Returns the address that opens a notebook on Colab."""
  return f'{COLAB}/github{urlsplit(address()).path}/blob/{BRANCH}/notebooks/{name}.ipynb'


def badge(name: str) -> str:
  """Returns the badge of a notebook, in Markdown."""
  return f'[![Open in Colab]({BADGE})]({link(name)})'


def with_badge(notebook: dict, name: str) -> dict:
  """Returns a notebook whose first cell has its badge below the title, and whose first code cell
  installs the package; others keep their outputs."""
  cells = [dict(cell) for cell in notebook['cells']]
  title, *rest = [line for line in _lines(cells[0]) if not line.startswith('[![')]
  text = '\n'.join(rest).strip('\n')
  cells[0]['source'] = _source(f'{title}\n\n{badge(name)}\n\n{text}')
  place = next(i for i, cell in enumerate(cells) if cell['cell_type'] == 'code')
  if 'find_spec' not in ''.join(cells[place]['source']):
    made = {'cell_type': 'code', 'execution_count': 1, 'id': 'install', 'metadata': {}}
    cells.insert(place, made | {'outputs': [], 'source': []})
  cells[place]['source'] = _source(INSTALL.format(address=address()).rstrip('\n'))
  for number, cell in enumerate((c for c in cells if c['cell_type'] == 'code'), start=1):
    cell['execution_count'] = number
    for output in cell['outputs']:
      if 'execution_count' in output:
        output['execution_count'] = number
  return notebook | {'cells': cells}


def with_links(text: str) -> str:
  """Returns a page whose links to Colab lead to the notebooks of this repository."""
  return LINK.sub(lambda match: link(match[1]), text)


def _lines(cell: dict) -> list[str]:
  return ''.join(cell['source']).split('\n')


def _source(text: str) -> list[str]:
  return text.splitlines(keepends=True)


def texts() -> dict[Path, str]:
  """Returns all files that have an address in them, as they should be."""
  found = {}
  for path in notebooks():
    notebook = with_badge(json.loads(path.read_text()), path.stem)
    found[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'
  pages = [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]
  return found | {path: with_links(path.read_text()) for path in pages}


if __name__ == '__main__':
  for path, text in texts().items():
    if path.read_text() != text:
      path.write_text(text)
      print(path.relative_to(ROOT))
