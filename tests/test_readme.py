"""The README's code runs as it stands, in order, as one session."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python_blocks():
  return re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)


@pytest.mark.slow
def test_code_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(ROOT))
  names = {}
  for block in python_blocks():
    exec(compile(block, 'README.md', 'exec'), names)
  assert 'keeps the contract' in capsys.readouterr().out
  assert len(names['scores'].loss) == 64
  assert (tmp_path / 'runs/quick/report.html').exists()


def test_own_network_is_short():
  block = next(block for block in python_blocks() if 'check_model' in block)
  assert len(block.splitlines()) <= 25


def test_pictures_and_pages_exist():
  text = (ROOT / 'README.md').read_text()
  links = re.findall(r'\]\(([\w./-]+)\)', text)
  assert len(links) >= 5
  assert not [link for link in links if not (ROOT / link).exists()]
