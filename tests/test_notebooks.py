"""Notebooks run from top to bottom, and were committed with their outputs and pictures."""

from pathlib import Path

import nbformat
import pytest
import tiny
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
