"""Curves of a run: lines of JSON and TensorBoard events, through any number of interruptions."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from additive_jax.errors import UserError, user_errors
from additive_jax.files.events import Events
from additive_jax.files.journal import Journal, Record, to_plain
from additive_jax.files.rundir import WRITABLE, RunDir

log = logging.getLogger('additive_jax')


class Metrics:
  """Writes the curves of a run as lines of `metrics.jsonl` and as TensorBoard events.

  The events are in `tensorboard/<tag>`. A line is `{"step": 10, "tag": "train", "loss": 0.5}`. A
  shard has a file of its own, `metrics-I-of-N.jsonl`; `read` merges all. At any time one process
  writes a tag, the first of several that train together. Also a context manager.

      with Metrics(rundir) as metrics:
        metrics.truncate('seed0', 100)       # goes on from step 100
        metrics.write(110, {'loss': 0.5}, 'seed0')

  Args:
    rundir: the run's directory.
    shard, num_shards: whose file to write; shard 0 of 1 is the whole run.
  """

  def __init__(self, rundir: RunDir, *, shard: int = 0, num_shards: int = 1):
    self._primary = rundir.primary
    name = 'metrics.jsonl' if num_shards == 1 else f'metrics-{shard}-of-{num_shards}.jsonl'
    self._journal = Journal(rundir.path / name)
    self._events = Events(rundir.path / 'tensorboard')

  def write(self, step: int, values: Mapping[str, Any], tag: str = 'train') -> None:
    """Records `values` (name: number, or any other JSON value) at `step` under `tag`."""
    if not self._primary:
      return
    if values.keys() & {'step', 'tag'}:
      raise ValueError(f'step and tag are no names for values; found {sorted(values)}')
    values = to_plain(values)
    with user_errors('write', self._journal.path, WRITABLE):
      if not self._journal.path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, 'the run directory was removed')
    self._journal.append({'step': step, 'tag': tag, **values})
    self._events.write(tag, int(step), values)

  def truncate(self, tag: str, step: int) -> None:
    """Drops what `tag` recorded after `step`, by whichever shard; TensorBoard purges it."""
    if not self._primary:
      return
    dropped = []
    for journal in _journals(self._journal.path.parent):
      with user_errors('write', journal.path, WRITABLE):
        dropped.append(journal.keep(lambda r: r.get('tag') != tag or r.get('step', 0) <= step))
    if any(dropped):
      self._events.purge(tag, step + 1)

  @staticmethod
  def read(path: str | Path) -> pd.DataFrame:
    """Returns the curves: columns step, tag, and every name; NaN where a line lacks it.

    Lines of several files are put in the order of their tags and steps, whichever shard was first.
    Of two lines for one point the first one counts, and damaged lines are left out; warnings name
    both.

    Args:
      path: the run's directory or one file. A missing file gives an empty frame.
    """
    path = Path(path)
    return pd.DataFrame(_records(path) if path.is_dir() else _points(Journal(path)))

  def close(self) -> None:
    """Closes the TensorBoard files."""
    self._events.close()

  def __enter__(self) -> Metrics:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _journals(folder: Path) -> list[Journal]:
  """Returns the whole run's journals and the shards', in order of names."""
  return [Journal(path) for path in sorted(folder.glob('metrics*.jsonl'))]


def _records(folder: Path) -> list[Record]:
  parts = [_points(journal) for journal in _journals(folder)]
  records = [record for part in parts for record in part]
  if len(parts) < 2:
    return records
  return sorted(records, key=lambda record: (_natural(record['tag']), record['step']))


def _points(journal: Journal) -> list[Record]:
  """Returns the sound lines, one for each point."""
  points: dict[tuple[str, int], Record] = {}
  for record in journal.sound():
    if not record.keys() >= {'tag', 'step'}:
      raise UserError(f'{journal.path}: {str(record)[:60]}; expected lines with tag and step')
    key = record['tag'], record['step']
    if key in points:
      log.warning('%s: a second line for step %d of %s; the first one counts', journal.path,
                  record['step'], record['tag'])  # fmt: skip
    points.setdefault(key, record)
  return list(points.values())


def _natural(name: str) -> list[int | str]:
  """Returns a key that sorts `seed2` before `seed10`."""
  return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]
