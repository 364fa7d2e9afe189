"""Notebooks run from top to bottom, were committed with their outputs and pictures, and open on
Colab by a click."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import badges
import nbformat
import pytest
import tiny
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / 'notebooks'
NAMES = sorted(path.stem for path in FOLDER.glob('*.ipynb'))


@pytest.mark.slow
@pytest.mark.parametrize('name', tiny.thorough_but(['compiled_structures'], NAMES))
def test_notebook(name, monkeypatch):
  path = FOLDER / f'{name}.ipynb'
  monkeypatch.delenv('XLA_FLAGS', raising=False)  # as a reader runs it, on one device
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
  pictures = [o for cell in code for o in cell.outputs if 'image/png' in o.get('data', {})]
  assert len(pictures) >= 2
  kinds = [[output.output_type for output in cell.outputs] for cell in code]
  NotebookClient(notebook, timeout=600, kernel_name='python3').execute()  # raises on any error
  again = [[output.output_type for output in cell.outputs] for cell in code]
  assert again == kinds


def test_notebooks_are_there():
  assert len(list(FOLDER.glob('*.ipynb'))) >= 2


def test_addresses_are_those_of_the_package():
  """Of badges, of the cells that install, and of links; `python tests/badges.py` writes them."""
  assert [path for path, text in badges.texts().items() if path.read_text() != text] == []


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_opens_by_a_click_and_installs_what_is_not_there(name, monkeypatch):
  notebook = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
  title, badge = notebook.cells[0].source.split('\n\n')[:2]
  assert title.startswith('# ')
  assert badge == badges.badge(name)
  assert badge in (badges.ROOT / 'README.md').read_text()
  cell = next(cell for cell in notebook.cells if cell.cell_type == 'code')
  assert cell.outputs == []
  code, asked = TransformerManager().transform_cell(cell.source), []
  shell = SimpleNamespace(run_line_magic=lambda *words: asked.append(words))
  exec(code, {'get_ipython': lambda: shell})
  assert asked == []
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  exec(code, {'get_ipython': lambda: shell})
  assert asked == [('pip', f'install --quiet "additive_jax @ git+{badges.address()}"')]


def test_links_to_notebooks_follow_the_address():
  old = 'https://colab.research.google.com/github/a/b/blob/x/notebooks/what_the_plus_do.ipynb'
  assert badges.with_links(f'[it]({old}).') == f'[it]({badges.link("what_the_plus_do")}).'
