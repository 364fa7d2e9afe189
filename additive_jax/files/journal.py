"""Append-only journals: one JSON object a line, whole or absent after a kill at any moment, with a
checksum that tells when it changes later."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from additive_jax.errors import UserError, user_errors
from additive_jax.files import seal, temporaries

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
  import jax  # not by who reads a journal alone

  if isinstance(value, jax.Array | np.ndarray | np.generic):
    array = np.asarray(value)
    # bfloat16 and its like are no NumPy kind of their own, and `tolist` would keep their scalars.
    if array.dtype.kind == 'V' and jax.dtypes.issubdtype(array.dtype, np.floating):
      array = array.astype(np.float64)
    if array.dtype.kind in 'biufU':
      return array.tolist()
  raise TypeError(f'{value!r} of type {type(value).__name__} has no form in JSON')


@functools.cache
def _warn(text: str) -> None:
  """Says once what every reader of a journal comes upon."""
  log.warning('%s', text)


class Line(NamedTuple):
  """A line of a journal that ends in a newline.

  Attributes:
    number: from 1.
    content: its bytes, without the newline.
    record: what it says; None where it is damaged.
    problem: what is wrong with it; '' for nothing.
  """

  number: int
  content: bytes
  record: Record | None
  problem: str = ''


class Journal:
  """A file of JSON lines that survives a kill at any moment.

  Each record is written with its newline last and synchronised to disk, so a line that ends
  in a newline was written whole; its checksum tells whether it is still what was written:

    {"seed": 0, "loss": 0.31, "crc": "66a22f46"}⏎
    {"seed": 1, "loss": 0.2          killed here: `records` ignores it, `append` cuts it off

  One process writes a journal; several processes write different files, which `read_all` merges.
  Floats come back exactly, NaN and the infinities included. Lines of earlier versions, which have
  no checksum, are read as they are, before the first line that has one.

      journal = Journal(folder / 'sweep.jsonl')
      journal.append({'seed': 0, 'loss': loss})
      losses = [record['loss'] for record in journal.records()]

  Args:
    path: the file; it and its folder are created by the first `append`.
  """

  def __init__(self, path: str | Path):
    self.path = Path(path)

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes a record, of values that `to_plain` takes, as one line, and waits until it is on disk.

    Raises:
      UserError: the file cannot be written.
      ValueError: for a value of the checksum's name.
    """
    if seal.KEY in record:
      raise ValueError(f'{seal.KEY} is no name for a value, as it names the checksum: {record}')
    line = json.dumps(seal.sealed(to_plain(record))).encode() + b'\n'
    with user_errors('write the journal', self.path, 'a writable file'):
      self.path.parent.mkdir(exist_ok=True)
      with open(self.path, 'a+b', buffering=0) as file:
        self._cut_torn_line(file)
        end, rest = file.seek(0, os.SEEK_END), memoryview(line)
        try:
          while rest:
            rest = rest[file.write(rest) :]
          os.fsync(file.fileno())
        except OSError:
          # A full disk may take a part of the line.
          with contextlib.suppress(OSError):
            file.truncate(end)
          raise

  def records(self) -> list[Record]:
    """Returns all whole records, in the order written; none when there is no file.

    Raises:
      UserError: the file cannot be read, or a line is not what was written.
    """
    lines = self._lines()
    for line in lines:
      if line.problem:
        raise UserError(f'{self._described(line)}; expected a line that the run has written')
    return [line.record for line in lines if line.record is not None]

  def sound(self) -> list[Record]:
    """Returns the records of the lines that are what was written; a warning names the others.

    For what is made again when it is not there.

    Raises:
      UserError: the file cannot be read.
    """
    lines = self._lines()
    for line in lines:
      if line.problem:
        _warn(f'{self._described(line)}; it is left out')
    return [line.record for line in lines if line.record is not None]

  def keep(self, wanted: Callable[[Record], bool]) -> bool:
    """Drops, in one step, the records that `wanted` denies; returns whether there were any. All
    else stays byte for byte, damaged lines too."""
    lines = self._lines()
    remaining = [line for line in lines if line.record is None or wanted(line.record)]
    return self._replace(lines, remaining)

  def keep_whole(self) -> bool:
    """Drops, in one step, the first damaged line and all that follow it, which may rest on it; a
    warning tells of it. Returns whether there was one."""
    lines = self._lines()
    place = next((i for i, line in enumerate(lines) if line.problem), len(lines))
    if place < len(lines):
      after = len(lines) - place - 1
      log.warning('%s; it and %d lines after it are dropped', self._described(lines[place]), after)
    return self._replace(lines, lines[:place])

  def _replace(self, lines: Sequence[Line], remaining: Sequence[Line]) -> bool:
    if len(remaining) < len(lines):
      with user_errors('write the journal', self.path, 'a writable file'):
        replace_file(self.path, b''.join(line.content + b'\n' for line in remaining))
    return len(remaining) < len(lines)

  def _lines(self) -> list[Line]:
    with user_errors('read the journal', self.path, 'a readable file'):
      content = self.path.read_bytes() if self.path.exists() else b''
    lines, with_crc = [], False
    for number, text in enumerate(content.split(b'\n')[:-1], start=1):
      try:
        record, is_sealed = seal.parsed(text)
        if with_crc and not is_sealed:
          raise seal.DamagedError('without a checksum, after lines that have one')
        with_crc |= is_sealed
        lines.append(Line(number, text, record))
      except seal.DamagedError as error:
        lines.append(Line(number, text, None, str(error)))
    return lines

  def _described(self, line: Line) -> str:
    found = line.content[:60].decode(errors='replace')
    return f'{self.path}, line {line.number}: damaged, {line.problem}; found {found!r}'

  def _cut_torn_line(self, file: FileIO) -> None:
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
  temporary = temporaries.beside(path)
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
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
  try:
    os.link(temporary, path)
  except FileExistsError:
    return
  except OSError:
    # A file system without hard links.
    os.replace(temporary, path)
