"""Curves of a run: lines of JSON and TensorBoard events, through any number of interruptions."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pandas as pd
import tensorboardX

from additive_jax.files.journal import Journal, to_plain
from additive_jax.files.rundir import WRITABLE, user_errors


class Metrics:
  """Writes the curves of a run as lines of `metrics.jsonl` and as TensorBoard events.

  The events are in `tensorboard/<tag>`. A line is `{"step": 10, "tag": "train", "loss": 0.5}`. A
  shard has a file of its own, `metrics-I-of-N.jsonl`; `read` merges all. At any time one process
  writes a tag, the first of several that train together. Also a context manager.

  Args:
    rundir: the `RunDir`.
    start_step: the step a resumed run goes on from; what any tag recorded after it is dropped,
      since it will be recorded again. None drops nothing.
    shard, num_shards: whose file to write; shard 0 of 1 is the whole run.
  """

  def __init__(self, rundir, start_step=None, *, shard=0, num_shards=1):
    self._primary = rundir.primary
    name = 'metrics.jsonl' if num_shards == 1 else f'metrics-{shard}-of-{num_shards}.jsonl'
    self._journal = Journal(rundir.path / name)
    self._folder = rundir.path / 'tensorboard'
    self._writers = {}
    self._purge_steps = {}
    if start_step is not None and self._primary:
      for tag in {record['tag'] for record in _records(rundir.path)}:
        self.truncate(tag, start_step)

  def write(self, step, values, tag='train'):
    """Records the dict `values` (name: number, or any other JSON value) at `step` under `tag`."""
    if not self._primary:
      return
    if values.keys() & {'step', 'tag'}:
      raise ValueError(f'step and tag are no names for values; found {sorted(values)}')
    values = to_plain(values)
    self._journal.append({'step': step, 'tag': tag, **values})
    writer = self._writer(tag)
    for name, value in values.items():
      # TensorBoard draws finite numbers only.
      if isinstance(value, int | float) and math.isfinite(value):
        writer.add_scalar(name, value, int(step))

  def truncate(self, tag, step):
    """Drops what `tag` recorded after `step`, by whichever shard: from the files at once, in
    TensorBoard by purging.
    """
    if not self._primary:
      return
    dropped = []
    for journal in _journals(self._journal.path.parent):
      with user_errors('write', journal.path, WRITABLE):
        dropped.append(journal.keep(lambda r: r['tag'] != tag or r['step'] <= step))
    if any(dropped):
      self._purge_steps[tag] = step + 1
      if tag in self._writers:
        self._writers.pop(tag).close()

  @staticmethod
  def read(path):
    """The pandas frame of the curves: step, tag, and every name; NaN where a line lacks it.

    Lines of several files are put in the order of their tags and steps, whichever shard was first.

    Args:
      path: the run's directory or one file. A missing file gives an empty frame.
    """
    path = Path(path)
    return pd.DataFrame(_records(path) if path.is_dir() else Journal(path).records())

  def close(self):
    """Closes the TensorBoard files."""
    for writer in self._writers.values():
      writer.close()
    self._writers.clear()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _writer(self, tag):
    if tag not in self._writers:
      self._writers[tag] = tensorboardX.SummaryWriter(
        str(self._folder / tag),
        flush_secs=1,
        purge_step=self._purge_steps.pop(tag, None),
        # The name has the time in seconds: a run resumed within one would overwrite the file.
        filename_suffix=f'.{time.time_ns()}',
      )
    return self._writers[tag]


def _journals(folder):
  """The whole run's and the shards', in order of names."""
  return [Journal(path) for path in sorted(folder.glob('metrics*.jsonl'))]


def _records(folder):
  parts = [journal.records() for journal in _journals(folder)]
  if len(parts) < 2:
    return [record for part in parts for record in part]
  return sorted((r for part in parts for r in part), key=lambda r: (_natural(r['tag']), r['step']))


def _natural(name):
  """A key that sorts `seed2` before `seed10`."""
  return [int(part) if part.isdigit() else part for part in re.split(r'(\d+)', name)]
