"""What the journals of a run say of its arms."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from additive_jax.errors import UserError
from additive_jax.files.journal import Journal, Record, to_plain
from additive_jax.files.rundir import RunDir
from additive_jax.report.comparison import SCORES
from additive_jax.search.generations import of_earlier

log = logging.getLogger('additive_jax')

# Journals that earlier versions wrote beside `<study>.jsonl`.
EARLIER = {'sweep': ('shared', 'standalone'), 'cotrain': ('alone',), 'experts': ('pool',)}

NOT_FINITE = 'not_finite'  # of a line: where it has null for NaN or an infinity


class Incomplete(Exception):
  """A record is needed that another shard of the run has to make."""


class Records:
  """The records of a run, by arm and seed: what is in its journals, and what is appended.

  A damaged line is named in a warning and left out, so that its arm is trained again. Of two lines
  for one arm and seed the first one counts.

  A record is a line such as `{"seed": 0, "variant": "dense", "loss": 0.5}`, where the variant is
  the name of an arm. The whole run writes `journals/<study>.jsonl`; one shard, or one of several
  processes that share arms out, `<study>-<part>-of-<parts>.jsonl`.

  Attributes:
    arms: the arms of all stages so far, by name.
    seeds: the seeds of the run, in order.

  Args:
    scores: the names of what its networks are judged by; see `generations.of_earlier`.
  """

  def __init__(
    self, rundir: RunDir, study: str, seeds: Sequence[int], scores: Sequence[str] = SCORES
  ):
    self.arms: dict[str, Any] = {}
    self.seeds = list(seeds)
    self._rundir, self._study, self._scores = rundir, study, scores
    self._lines: dict[tuple[str, int], Record] = {}
    self._warned: set[tuple[str, int]] = set()
    self.read()

  def read(self) -> None:
    """Reads what all processes and shards have written by now."""
    self._lines = {}
    for name in (*EARLIER.get(self._study, ()), self._study):
      paths = self._rundir.journals.glob(f'{name}*.jsonl')
      for path in sorted(path for path in paths if _is_journal(path, name)):
        for line in map(_from_json, Journal(path).sound()):
          self._add(path, _arm(line, name), of_earlier(line, self._scores))

  def _add(self, path: Path, arm: str, line: Record) -> None:
    if 'seed' not in line:
      raise UserError(f'{path}: a line without seed, {str(line)[:60]}; expected those of a run')
    key = arm, line['seed']
    first = self._lines.setdefault(key, line)
    if _as_json(first) != _as_json(line) and key not in self._warned:
      self._warned.add(key)
      log.warning('%s: a second line for %s, seed %d; the first one counts', path, *key)

  def forget(self, arm: str, seed: int) -> None:
    """Drops a record, so that its arm is trained again, and its new line counts in this process."""
    self._lines.pop((arm, seed), None)

  def __len__(self) -> int:
    """Returns how many records there are, of all arms and seeds."""
    return len(self._lines)

  def get(self, arm: str, seed: int) -> Record | None:
    """Returns the record of an arm in one seed; None where there is none."""
    return self._lines.get((arm, seed))

  def __getitem__(self, arm: str) -> list[Record]:
    """Returns the records of an arm in all seeds, in their order.

    Raises:
      Incomplete: when one is missing.
    """
    lines = [self._lines[arm, seed] for seed in self.seeds if (arm, seed) in self._lines]
    if len(lines) < len(self.seeds):
      raise Incomplete(arm)
    return lines

  def append(
    self, arm: str, seed: int, values: Record, *, part: tuple[int, int] = (0, 1), write: bool = True
  ) -> None:
    """Adds a record.

    Args:
      part: number of this process's part of the run, and how many parts there are.
      write: whether this process writes the line.
    """
    line = to_plain({'seed': seed, 'variant': arm, **values})
    self._lines[arm, seed] = line
    if write:
      ending = '' if part[1] == 1 else f'-{part[0]}-of-{part[1]}'
      Journal(self._rundir.journals / f'{self._study}{ending}.jsonl').append(_as_json(line))


def _as_json(line: Record) -> Record:
  """Returns a record without the numbers that JSON has no word for: they are null, and listed.

  >>> line = {'seed': 0, 'loss': float('nan'), 'ema': {'loss': [0.5, float('-inf')]}}
  >>> _as_json(line)['not_finite']
  [[['loss'], 'nan'], [['ema', 'loss', 1], '-inf']]
  >>> _from_json(_as_json(line))['ema']
  {'loss': [0.5, -inf]}
  """
  found: list[list[Any]] = []

  def plain(value: Any, path: list[Any]) -> Any:
    if isinstance(value, dict):
      return {key: plain(item, [*path, key]) for key, item in value.items()}
    if isinstance(value, list):
      return [plain(item, [*path, i]) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
      found.append([path, str(value)])
      return None
    return value

  record = plain(to_plain(line), [])
  return record | {NOT_FINITE: found} if found else record


def _from_json(line: Record) -> Record:
  """Returns a record that `_as_json` gave as it was."""
  for path, word in line.pop(NOT_FINITE, []):
    place: Any = line
    for key in path[:-1]:
      place = place[key]
    place[path[-1]] = float(word)
  return line


def _is_journal(path: Path, name: str) -> bool:
  return path.stem == name or path.stem.startswith(f'{name}-')


def _arm(line: Record, journal: str) -> str:
  """The arm of a line; earlier versions named the arm by the journal, or by its structure."""
  if 'variant' in line:
    return line['variant']
  if 'structure' in line:
    return lone_name(line['structure'], line.get('rung', 0))
  return 'pool' if journal == 'cotrain' else journal


def lone_name(structure: str, rung: int = 0) -> str:
  """Returns the name of the arm that trains a structure alone, to the end of a rung.

  >>> lone_name('011'), lone_name('011', 2)
  ('011', '011/2')
  """
  return f'{structure}/{rung}' if rung else structure
