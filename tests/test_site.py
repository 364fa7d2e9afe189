"""The documentation: code on its pages runs as it stands, and prints what they show; commands name
options that are there; drawings are those of their script."""

import re
import runpy
import shlex

import docs_pages
import pytest
import tiny

from additive_jax import __main__
from additive_jax.cli import arguments
from additive_jax.cli.manual import COMMANDS
from additive_jax.experiments.options import read_options

PAGES = docs_pages.pages()
NAMES = [str(page.relative_to(docs_pages.DOCS).with_suffix('')) for page in PAGES]
WITH_CODE = [page for page in PAGES if docs_pages.blocks(page)]
LINES = sorted(
  {line for page in docs_pages.DOCS.rglob('*.md') for line in docs_pages.commands(page)}
)
# In place of words that stand for a reader's own.
OWN = {'PATH': '/models/own', 'DOCUMENTS': 'own.txt'}


@pytest.mark.slow
@pytest.mark.parametrize('page', WITH_CODE, ids=[page.stem for page in WITH_CODE])
def test_page_runs(page, tmp_path, tmp_path_factory, monkeypatch):
  """Numbers are those of another machine and its programs; the words around them are not."""
  monkeypatch.chdir(tmp_path)
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    printed = docs_pages.run(page)
  for block, said in zip(docs_pages.blocks(page), printed):
    if block.shown is None:
      continue
    shown, said = (text.strip().splitlines() for text in (block.shown, said))
    assert len(shown) == len(said)
    assert re.sub(r'[\W\d]+', ' ', shown[0]).split() == re.sub(r'[\W\d]+', ' ', said[0]).split()


@pytest.mark.parametrize('page', PAGES, ids=NAMES)
def test_output_stands_on_the_page(page):
  """`python tests/docs_pages.py PAGE` writes it."""
  for block in docs_pages.blocks(page):
    assert block.shown is None or block.shown.strip()
    assert block.shown is not None or 'print(' not in block.code


@pytest.mark.parametrize('line', LINES)
def test_commands_are_understood(line):
  words = shlex.split(re.sub(r'\b(PATH|DOCUMENTS)\b', lambda word: OWN[word[0]], line))
  name = words[1] if len(words) > 1 and not words[1].startswith('-') else 'launch'
  assert name in COMMANDS
  if name in ('launch', 'plan') and '--help' not in words:
    _, config, _ = arguments.parse([word for word in words if word != 'plan'])
    read_options(config)


def test_the_other_commands_have_help(capsys):
  for name in ('runs', 'watch', 'compare', 'configs'):
    assert __main__.main(['additive-jax', name, '--help']) == 0
    assert f'additive-jax {name} ' in capsys.readouterr().out


def test_drawings_are_those_of_their_script():
  drawings = runpy.run_path(str(docs_pages.DOCS / 'site' / 'drawings.py'))
  files = {path.stem: path.read_text() for path in drawings['FOLDER'].glob('*.svg')}
  assert files == {draw.__name__: draw().svg() for draw in drawings['DRAWINGS']}


def test_every_page_is_in_the_contents():
  """And every page of the contents is there, but for those that are made of the code."""
  named = set(re.findall(r'(?:: |- )([\w/]+\.md)$', (tiny.ROOT / 'mkdocs.yml').read_text(), re.M))
  there = {str(path.relative_to(docs_pages.DOCS)) for path in docs_pages.DOCS.rglob('*.md')}
  assert there <= named
  assert all(name.startswith('api/') or name == 'options.md' for name in named - there)
