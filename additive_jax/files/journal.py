"""Append-only journals: one JSON object a line, whole or absent after a kill at any moment."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from additive_jax.errors import UserError, user_errors

log = logging.getLogger('additive_jax')

Record = dict[str, Any]


def to_plain(value: Any) -> Any:
  """Returns `value` in the types of JSON: dict, list, str, int, float, bool, None.

  Numbers of NumPy and JAX become Python's without loss, their arrays nested lists, tuples lists,
  and keys text.

  >>> to_plain({'loss': np.float32(0.5), 'hidden': (8, 8), 1: np.arange(2)})
  {'loss': 0.5, 'hidden': [8, 8], '1': [0, 1]}

  Raises:
    TypeError: for anything else.
  """
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, Mapping):
    return {str(key): to_plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [to_plain(item) for item in value]
  if isinstance(value, int | float):
    return float(value) if isinstance(value, float) else int(value)
  if isinstance(value, jax.Array | np.ndarray | np.generic):
    array = np.asarray(value)
    # bfloat16 and its like are no NumPy kind of their own, and `tolist` would keep their scalars.
    if array.dtype.kind == 'V' and jax.dtypes.issubdtype(array.dtype, np.floating):
      array = array.astype(np.float64)
    if array.dtype.kind in 'biufU':
      return array.tolist()
  raise TypeError(f'{value!r} of type {type(value).__name__} has no form in JSON')


class Journal:
  """A file of JSON lines that survives a kill at any moment.

  Each record is written with its newline last and synchronised to disk, so a line that ends
  in a newline was written whole:

    {"seed": 0, "loss": 0.31}⏎
    {"seed": 1, "loss": 0.2          killed here: `records` ignores it, `append` cuts it off

  One process writes a journal; several processes write different files, which `read_all` merges.
  Floats come back exactly, NaN and the infinities included.

      journal = Journal(folder / 'sweep.jsonl')
      journal.append({'seed': 0, 'loss': loss})
      losses = [record['loss'] for record in journal.records()]

  Args:
    path: the file; it and its directory are created by the first `append`.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path)

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes a record, of values that `to_plain` takes, as one line, and waits until it is on disk.

    Raises:
      UserError: the file cannot be written.
    """
    line = _line(record)
    with user_errors('write the journal', self.path, 'a writable file'):
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with open(self.path, 'a+b') as file:
        self._cut_torn_line(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())

  def records(self) -> list[Record]:
    """Returns all whole records, in the order written; none when there is no file.

    Raises:
      UserError: the file cannot be read, or a line that was written whole is no JSON object.
    """
    with user_errors('read the journal', self.path, 'a readable file'):
      content = self.path.read_bytes() if self.path.exists() else b''
    records = []
    for number, line in enumerate(content.split(b'\n')[:-1], start=1):
      try:
        record = json.loads(line)
      except ValueError:
        record = None
      if not isinstance(record, dict):
        raise UserError(
          f'{self.path}, line {number}: damaged, expected a JSON object; found {line[:60]!r}'
        )
      records.append(record)
    return records

  def keep(self, wanted: Callable[[Record], bool]) -> bool:
    """Drops, in one step, the records that `wanted` denies; returns whether there were any."""
    records = self.records()
    remaining = [record for record in records if wanted(record)]
    if len(remaining) < len(records):
      replace_file(self.path, b''.join(_line(record) for record in remaining))
    return len(remaining) < len(records)

  def _cut_torn_line(self, file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
      return
    file.seek(end - 1)
    if file.read(1) == b'\n':
      return
    file.seek(0)
    whole_size = file.read().rfind(b'\n') + 1
    file.truncate(whole_size)
    log.info('%s: cut off a line of %d bytes that was never finished', self.path, end - whole_size)


def read_all(directory: str | Path, pattern: str = '*.jsonl') -> list[Record]:
  """Returns the records of the journals in `directory` that match `pattern`, in order of names."""
  return [r for path in sorted(Path(directory).glob(pattern)) for r in Journal(path).records()]


def replace_file(path: Path, content: bytes, *, keep_existing: bool = False) -> None:
  """Puts `content` at `path` in one step, synchronised to disk.

  With `keep_existing` a file that is there first stays, even when two processes come at the same
  moment.

  Raises:
    OSError: it cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    if keep_existing:
      _link(temporary, path)
    else:
      os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
  try:
    os.link(temporary, path)
  except FileExistsError:
    return
  except OSError:
    # A file system without hard links.
    os.replace(temporary, path)


def _line(record: Mapping[str, Any]) -> bytes:
  return json.dumps(to_plain(record)).encode() + b'\n'
