"""Text as bytes: the standard library's source, files and folders, cut into windows."""

import functools
import hashlib
import logging
import os
import pathlib
import sysconfig
from collections.abc import Callable, Sequence

import numpy as np

from additive_jax.data.splits import ArraySplit, Data, SourceSplit, Split
from additive_jax.errors import UserError
from additive_jax.files.progress import Progress

log = logging.getLogger('additive_jax')

TEST_SHARE = 0.1
NUM_BYTE_VALUES = 256
# Packages of the installation are not the standard library, and its tests would be more than half
# of the bytes.
SKIPPED_STDLIB_FOLDERS = {'site-packages', 'dist-packages', 'test', 'tests', 'idle_test'}


class ByteStream:
  """Pieces of bytes, one after the other, as one sequence that is read in part.

  Args:
    sizes: the number of bytes of each piece.
    read: the bytes of piece i, uint8 [sizes[i]].
  """

  def __init__(self, sizes: Sequence[int], read: Callable[[int], np.ndarray]):
    self._ends = np.cumsum(np.asarray(sizes, np.int64))
    self._read = read

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def bytes_between(
    self, begin: int, end: int, advance: Callable[[float], None] | None = None
  ) -> np.ndarray:
    """Bytes `begin` to `end`, uint8 [end - begin]; `advance` is told of each piece's bytes."""
    out = np.empty(end - begin, np.uint8)
    position = begin
    piece = int(np.searchsorted(self._ends, begin, side='right'))
    while position < end:
      start = int(self._ends[piece - 1]) if piece else 0
      stop = min(end, int(self._ends[piece]))
      if stop > position:
        part = self._read(piece)[position - start : stop - start]
        out[position - begin : stop - begin] = part
        if advance is not None:
          advance(stop - position)
        position = stop
      piece += 1
    return out


def load_stdlib(sequence_length: int, memory_limit: int) -> Data:
  """The source text of the running Python's standard library without its tests, as bytes.

  About a tenth of the files, chosen by a hash of their path, is the test split.
  """
  root = pathlib.Path(sysconfig.get_paths()['stdlib'])
  paths = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in SKIPPED_STDLIB_FOLDERS]
    paths += [pathlib.Path(folder, name) for name in names if name.endswith('.py')]
  return _from_files('stdlib', root, paths, sequence_length, memory_limit)


def load_text(path: str, sequence_length: int, memory_limit: int) -> Data:
  """A file, or all regular files of a folder and those below it, as bytes.

  Hidden files and folders (a leading dot) are skipped, and links to folders are not followed. A
  file holds out its last tenth for the test split; a folder holds out whole files, about a tenth,
  chosen by a hash of their path.

  Raises:
    UserError: nothing there, or not enough bytes for one train and one test window.
  """
  root = pathlib.Path(path).expanduser()
  spec = f'text:{path}'
  if not root.exists():
    raise UserError(f'{spec}: {str(root)!r} does not exist; expected a file or a folder')
  if root.is_file():
    return _from_files(spec, root.parent, [root], sequence_length, memory_limit)
  if not root.is_dir():
    raise UserError(f'{spec}: {str(root)!r} is neither a file nor a folder')
  paths, num_hidden = [], 0

  def stop(error: OSError) -> None:
    raise error

  for folder, folders, names in os.walk(root, onerror=stop):
    shown = [name for name in names if not name.startswith('.')]
    kept = [name for name in folders if not name.startswith('.')]
    num_hidden += len(names) - len(shown) + len(folders) - len(kept)
    folders[:] = kept
    paths += [pathlib.Path(folder, name) for name in shown]
  if num_hidden:
    log.info('%s: skipped %d hidden files and folders', spec, num_hidden)
  return _from_files(spec, root, paths, sequence_length, memory_limit)


def language_data(
  spec: str, train: ByteStream, test: ByteStream | None, sequence_length: int, memory_limit: int
) -> Data:
  """Cuts byte streams into windows of `sequence_length` bytes, each with its next bytes as y.

  Args:
    spec: the name of the data, for messages.
    train: bytes to learn from.
    test: bytes to judge by; None holds out the last tenth of `train`, and at least one window.
    sequence_length: T, bytes per example. Example i is bytes `i*T` to `i*T + T + 1`: x the first T,
      y the last T.
    memory_limit: bytes that x and y of a split may take to be kept in memory.

  Raises:
    UserError: a split would have no window.
  """
  window = sequence_length + 1
  total = len(train) + (0 if test is None else len(test))
  if not total:
    raise UserError(f'{spec}: the text is empty; expected at least {2 * window} bytes')
  if total < 2 * window:
    raise UserError(
      f'{spec}: {total} bytes; expected at least {2 * window}, two windows of sequence_length='
      f'{sequence_length} bytes and the next'
    )
  if test is None:
    cut = min(total - int(TEST_SHARE * total), total - window)
    ranges = (train, 0, cut), (train, cut, total)
  else:
    ranges = (train, 0, len(train)), (test, 0, len(test))
  for part, (_, begin, end) in zip(('train', 'test'), ranges):
    if end - begin < window:
      raise UserError(
        f'{spec}: {end - begin} bytes in the {part} split; expected at least {window} for '
        f'sequence_length={sequence_length}'
      )
  splits = [_window_split(spec, *part, sequence_length, memory_limit) for part in ranges]
  return Data(spec, 'language', *splits, NUM_BYTE_VALUES)


def _window_split(
  spec: str, stream: ByteStream, begin: int, end: int, sequence_length: int, memory_limit: int
) -> Split:
  count = (end - begin - 1) // sequence_length
  used = count * sequence_length
  if 2 * used <= memory_limit:
    with Progress(used + 1, f'reading {spec}', unit='byte', brief=True) as progress:
      data = stream.bytes_between(begin, begin + used + 1, progress.advance)
    shape = count, sequence_length
    return ArraySplit(data[:-1].reshape(shape), data[1:].reshape(shape))

  def gather(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    firsts = begin + indices.astype(np.int64) * sequence_length
    rows = np.stack([stream.bytes_between(i, i + sequence_length + 1) for i in firsts])
    return rows[:, :-1], rows[:, 1:]

  log.info('%s: %d bytes exceed the memory limit of %d: read as needed', spec, used, memory_limit)
  return SourceSplit(count, gather)


def _from_files(
  spec: str,
  root: pathlib.Path,
  paths: list[pathlib.Path],
  sequence_length: int,
  memory_limit: int,
) -> Data:
  """Files below `root` in the order of their relative paths, split by whole files if possible."""
  paths = [path for path in paths if path.is_file()]
  if not paths:
    raise UserError(
      f'{spec}: the folder holds no readable file; expected at least one file of text, not hidden, '
      'in it or below it'
    )
  sizes = {}
  for path in sorted(paths, key=lambda path: path.relative_to(root).parts):
    if size := path.stat().st_size:
      sizes[path] = size
  train, test = [], []
  for path in sizes:
    (test if _is_held_out(path.relative_to(root)) else train).append(path)
  if min(sum(sizes[path] for path in part) for part in (train, test)) > sequence_length:
    streams = [_file_stream(part, sizes) for part in (train, test)]
    return language_data(spec, *streams, sequence_length, memory_limit)
  if len(sizes) > 1:
    log.info('%s: too few files to hold out whole ones; the last tenth of the bytes is', spec)
  return language_data(spec, _file_stream(list(sizes), sizes), None, sequence_length, memory_limit)


def _is_held_out(relative: pathlib.PurePath) -> bool:
  digest = hashlib.blake2b(os.fsencode(relative.as_posix()), digest_size=8).digest()
  return int.from_bytes(digest, 'big') < TEST_SHARE * 2**64


def _file_stream(paths: list[pathlib.Path], sizes: dict[pathlib.Path, int]) -> ByteStream:
  # Neighbouring windows lie in the same file; a bounded cache keeps few files open however many
  # there are.
  mapped = functools.lru_cache(maxsize=64)(lambda i: np.memmap(paths[i], np.uint8, mode='r'))
  return ByteStream([sizes[path] for path in paths], mapped)
