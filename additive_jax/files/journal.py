"""Append-only journals: one JSON object a line, whole or absent after a kill at any moment."""

import json
import logging
import os
from pathlib import Path

import jax
import numpy as np

from additive_jax.errors import UserError

log = logging.getLogger('additive_jax')


def to_plain(value):
  """`value` in the types of JSON: dict, list, str, int, float, bool, None.

  NumPy and JAX scalars become Python numbers without loss (a float32 is exactly representable as a
  Python float), arrays become nested lists, tuples become lists, and keys become strings. Raises
  TypeError for anything else.
  """
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, dict):
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
  in a newline was written whole. What a killed process left after the last newline is ignored by
  `records` and cut off by the next `append`. One process writes a journal; several processes write
  different files, which `read_all` merges.

  Floats come back exactly (`repr`), NaN and the infinities included.

  Args:
    path: the file; it and its directory are created by the first `append`.
  """

  def __init__(self, path):
    self.path = Path(path)

  def append(self, record):
    """Writes the dict `record` as one line and waits until it is on disk.

    Values may be anything `to_plain` accepts. Raises UserError when the file cannot be written.
    """
    line = _line(record)
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with open(self.path, 'a+b') as file:
        self._cut_torn_line(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
      raise UserError(
        f'cannot write the journal {self.path} ({error.strerror}); expected a writable file'
      ) from error

  def records(self):
    """The list of all whole records, in the order written; empty when there is no file.

    Raises UserError, naming file and line, when a line that was written whole is no longer a JSON
    object.
    """
    try:
      content = self.path.read_bytes()
    except FileNotFoundError:
      return []
    except OSError as error:
      raise UserError(
        f'cannot read the journal {self.path} ({error.strerror}); expected a readable file'
      ) from error
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

  def keep(self, wanted):
    """Drops, in one step, the records that the function `wanted` denies; tells whether any was."""
    records = self.records()
    kept = [record for record in records if wanted(record)]
    if len(kept) < len(records):
      replace_file(self.path, b''.join(_line(record) for record in kept))
    return len(kept) < len(records)

  def _cut_torn_line(self, file):
    end = file.seek(0, os.SEEK_END)
    if end == 0:
      return
    file.seek(end - 1)
    if file.read(1) == b'\n':
      return
    file.seek(0)
    whole = file.read().rfind(b'\n') + 1
    file.truncate(whole)
    log.info('%s: cut off a line of %d bytes that was never finished', self.path, end - whole)


def read_all(directory, pattern='*.jsonl'):
  """The records of the journals in `directory` whose names match `pattern`, in order of names."""
  return [r for path in sorted(Path(directory).glob(pattern)) for r in Journal(path).records()]


def replace_file(path, content, *, keep_existing=False):
  """Puts the bytes `content` at `path` in one step, synchronised to disk; raises OSError.

  With `keep_existing` a file that is there first stays, even when two processes come at the same
  moment.
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


def _link(temporary, path):
  try:
    os.link(temporary, path)
  except FileExistsError:
    return
  except OSError:
    # A file system without hard links.
    os.replace(temporary, path)


def _line(record):
  return json.dumps(to_plain(record)).encode() + b'\n'
