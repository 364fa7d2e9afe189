"""docs/evidence.md: each row has a command that is understood, every shipped config is in one, and
the cheap rows come out again as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from additive_jax.cli import arguments
from additive_jax.cli.configs import config_names
from additive_jax.experiments.options import read_options

ROOT = Path(__file__).parent.parent
PAGE = ROOT / 'docs' / 'evidence.md'
NUMBER = re.compile(r'[−+]?\d+(?:\.\d+)?')
# What is no experiment of its own, and what needs a file that is not here.
NO_ROWS = {'default', 'prune'}
OWN = {'PATH': '/models/own'}


class Row(NamedTuple):
  """A row of the table of claims."""

  claim: str
  figure: str
  seeds: str
  cost: str
  command: str
  date: str
  verdict: str


def rows() -> list[Row]:
  """The rows of the table of claims."""
  lines = [line for line in PAGE.read_text().splitlines() if line.startswith('| ')]
  cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
  head = cells.index(list(Row._fields))
  return [
    Row(*row) for row in cells[head + 1 :] if len(row) == len(Row._fields) and '---' not in row[0]
  ]


ROWS = rows()


def test_there_are_rows():
  assert len(ROWS) >= 15


@pytest.mark.parametrize('row', ROWS, ids=[re.sub(r'\W+', '_', row.claim)[:40] for row in ROWS])
def test_a_row_says_all_of_it(row):
  assert NUMBER.search(row.figure)
  assert '±' in row.figure or ' to ' in row.figure or 'no interval' in row.figure
  assert re.fullmatch(r'\d{4}-\d{2}-\d{2}', row.date)
  assert re.match(r'(met|missed|level)\b', row.verdict)
  command = re.fullmatch(r'`(.+)`', row.command)
  assert command
  words = shlex.split(re.sub(r'\bPATH\b', lambda word: OWN[word[0]], command[1]))
  if words[0] == 'python':
    assert (ROOT / words[1]).exists()
  else:
    assert words[0] == 'additive-jax'
    read_options(arguments.parse(words)[1])


def test_every_config_has_a_row():
  commands = ' '.join(row.command for row in ROWS)
  missing = [
    n
    for n in config_names()
    if f'--config={n}`' not in commands and f'--config={n} ' not in commands
  ]
  assert set(missing) <= NO_ROWS


# The cheap rows: what of the summary the row's first figure is.
CHEAP: dict[str, Callable[[dict[str, Any]], float]] = {
  'exp2': lambda summary: summary['cotrained_minus_alone_loss'],
  'exp1': lambda summary: summary['shared_against_standalone']['tau'],
}


def figure_of(row: Row) -> tuple[float, float]:
  """The first figure of a row, and how far from it its interval goes."""
  found = re.search(rf'({NUMBER.pattern})(?: ± ([\d.]+)|, ([\d.]+) to ([\d.]+))', row.figure)
  assert found
  value, half_width, *ends = (part and float(part.replace('−', '-')) for part in found.groups())
  return value, half_width or max(abs(end - value) for end in ends)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize('name', CHEAP)
def test_a_cheap_row_comes_out_again(name, tmp_path):
  """On another machine within its interval: rounding differs, seeds do not."""
  row = next(row for row in ROWS if row.command == f'`additive-jax --config={name}`')
  command = [sys.executable, '-m', 'additive_jax.launch', f'--config={name}', '--workdir=run']
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {
    'PYTHONPATH': str(ROOT)
  }
  done = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
  )
  assert done.returncode == 0, done.stderr[-2000:]
  value, reach = figure_of(row)
  again = CHEAP[name](json.loads((tmp_path / 'run' / 'summary.json').read_text()))
  assert abs(again - value) <= reach
