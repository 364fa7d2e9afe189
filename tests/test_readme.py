"""The README is short, its code runs as a new user runs it, and what it links to is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parent.parent


def python_blocks():
  return re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)


@pytest.mark.slow
def test_front_door_outside_the_clone(tmp_path):
  """The section as a new user runs it: a fresh process in another directory, on one device."""
  text = (ROOT / 'README.md').read_text()
  section = text[text.index('## From pip install') :]
  code = re.search(r'```python\n(.*?)```', section, re.DOTALL)[1]
  (tmp_path / 'mine.py').write_text(code)
  # Programs are kept where the package keeps them, not where this run of the tests does.
  ours = ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')
  environment = {name: value for name, value in os.environ.items() if name not in ours}
  environment |= {'PYTHONPATH': str(ROOT), 'ADDITIVE_JAX_CACHE': str(tmp_path / 'cache')}
  environment['XLA_FLAGS'] = tiny.FAST
  command = [sys.executable, 'mine.py']
  done = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'structure' in done.stdout
  assert 'max |Δoutput|' in done.stdout
  assert '100%' in done.stderr  # a run shows how far it is
  assert len(list((tmp_path / 'runs').glob('*/report.html'))) == 2
  assert (tmp_path / 'small' / 'model.json').exists()
  assert list((tmp_path / 'cache').glob('xla/*/*-cache'))


def test_it_is_short():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 120
  assert len(python_blocks()) == 1
  assert len(python_blocks()[0].splitlines()) <= 25


def test_pictures_and_pages_exist():
  text = (ROOT / 'README.md').read_text()
  links = re.findall(r'\]\(([\w./-]+)\)', text)
  assert len(links) >= 5
  assert not [link for link in links if not (ROOT / link).exists()]
