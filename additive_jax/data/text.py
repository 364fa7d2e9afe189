"""Text as bytes: the standard library's source, files and folders, cut into windows."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from additive_jax.data.splits import ArraySplit, Data, Examples, SourceSplit, Split
from additive_jax.errors import UserError, user_path
from additive_jax.files.progress import Progress

log = logging.getLogger('additive_jax')

TEST_SHARE = 0.1
NUM_BYTE_VALUES = 256
# Packages of the installation are not the standard library, and its tests would be more than half
# of the bytes.
SKIPPED_STDLIB_FOLDERS = {'site-packages', 'dist-packages', 'test', 'tests', 'idle_test'}


class ByteStream:
  """Pieces of bytes, one after the other, as one sequence that is read in part.

  >>> pieces = [np.array([1, 2, 3], np.uint8), np.array([4, 5], np.uint8)]
  >>> ByteStream([3, 2], pieces.__getitem__).bytes_between(1, 4)
  array([2, 3, 4], dtype=uint8)

  Args:
    sizes: the number of bytes of each piece.
    read: the bytes of piece i, uint8 [sizes[i]].
  """

  def __init__(self, sizes: Sequence[int], read: Callable[[int], UInt8[np.ndarray, 'bytes']]):
    self._ends = np.cumsum(np.asarray(sizes, np.int64))
    self._read = read

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def bytes_between(
    self, start: int, stop: int, advance: Callable[[int], object] = lambda count: None
  ) -> UInt8[np.ndarray, 'bytes']:
    """Returns bytes `start` to `stop`; `advance` is told of each piece's bytes."""
    parts = []
    piece = int(np.searchsorted(self._ends, start, side='right'))
    while start < stop:
      begin = int(self._ends[piece - 1]) if piece else 0
      parts.append(self._read(piece)[start - begin : stop - begin])
      advance(len(parts[-1]))
      start += len(parts[-1])
      piece += 1
    return np.concatenate([np.empty(0, np.uint8), *parts])


class Files(NamedTuple):
  """Files of text.

  Attributes:
    spec: the text they were asked for by.
    root: a folder that all are below.
    paths: regular files, in the order of their paths from there.
  """

  spec: str
  root: Path
  paths: list[Path]

  @classmethod
  def of(cls, spec: str, root: Path, paths: list[Path]) -> Files:
    """Returns those of some paths that are regular files, in order.

    Raises:
      UserError: where none is.
    """
    paths = [path for path in paths if path.is_file()]
    if not paths:
      raise UserError(
        f'{spec}: the folder holds no readable file; expected at least one file of text, not '
        'hidden, in it or below it'
      )
    return cls(spec, root, sorted(paths, key=lambda path: path.relative_to(root).parts))


def load_stdlib(sequence_length: int, memory_limit: int) -> Data:
  """Loads the source text of the running Python's standard library without its tests, as bytes.

  About a tenth of the files, chosen by a hash of their path, is the test split.
  """
  return _from_files(stdlib_files(), sequence_length, memory_limit)


def stdlib_files() -> Files:
  """Returns the source files of the running Python's standard library, without its tests."""
  root = Path(sysconfig.get_paths()['stdlib'])
  paths = []
  for folder, folders, names in os.walk(root):
    folders[:] = [name for name in folders if name not in SKIPPED_STDLIB_FOLDERS]
    paths += [Path(folder, name) for name in names if name.endswith('.py')]
  return Files.of('stdlib', root, paths)


def load_text(path: str, sequence_length: int, memory_limit: int) -> Data:
  """Loads a file, or all regular files of a folder and those below it, as bytes.

  A file holds out its last tenth for the test split; a folder holds out whole files, about a tenth,
  chosen by a hash of their path.

  Raises:
    UserError: nothing there, or not enough bytes for one train and one test window.
  """
  return _from_files(text_files(path), sequence_length, memory_limit)


def text_files(path: str) -> Files:
  """Returns a file, or all regular files of a folder and those below it.

  Hidden files and folders (a leading dot) are skipped, and links to folders are not followed.

  Raises:
    UserError: where there is none.
  """
  root, spec = user_path(path, 'text:'), f'text:{path}'
  if not root.exists():
    raise UserError(f'{spec}: {str(root)!r} does not exist; expected a file or a folder')
  if root.is_file():
    return Files.of(spec, root.parent, [root])
  if not root.is_dir():
    raise UserError(f'{spec}: {str(root)!r} is neither a file nor a folder')
  paths, num_hidden = [], 0

  def stop(error: OSError) -> None:
    raise error

  for folder, folders, names in os.walk(root, onerror=stop):
    files = [name for name in names if not name.startswith('.')]
    visible = [name for name in folders if not name.startswith('.')]
    num_hidden += len(names) - len(files) + len(folders) - len(visible)
    folders[:] = visible
    paths += [Path(folder, name) for name in files]
  if num_hidden:
    log.info('%s: skipped %d hidden files and folders', spec, num_hidden)
  return Files.of(spec, root, paths)


def language_data(
  spec: str, streams: Mapping[str, ByteStream], sequence_length: int, memory_limit: int
) -> Data:
  """Cuts byte streams into windows of T = `sequence_length` bytes, each with its next bytes as y.

    bytes     d e f ␣ f ( x ) : …          T = 3
    x, y 0    d e f                        e f ␣
    x, y 1          ␣ f (                  f ( x

  Args:
    spec: the name of the data, for messages.
    streams: `train`, bytes to learn from; `test`, those to judge by, without which the last tenth
      of `train` is held out, and at least one window; and maybe `valid`, those to choose by.
    sequence_length: T. Example i is bytes `i*T` to `i*T + T + 1`: x the first T, y the last T.
    memory_limit: bytes that x and y of a split may take to be kept in memory.

  Raises:
    UserError: a split would have no window.
  """
  window = sequence_length + 1
  total = sum(map(len, streams.values()))
  if not total:
    raise UserError(f'{spec}: the text is empty; expected at least {2 * window} bytes')
  if total < 2 * window:
    raise UserError(
      f'{spec}: {total} bytes; expected at least {2 * window}, two windows of sequence_length='
      f'{sequence_length} bytes and the next'
    )
  parts = {name: (stream, 0, len(stream)) for name, stream in streams.items()}
  if 'test' not in parts:
    train, cut = streams['train'], min(total - int(TEST_SHARE * total), total - window)
    parts = {'train': (train, 0, cut), 'test': (train, cut, total)}
  splits = {}
  for name, (stream, start, stop) in parts.items():
    if stop - start < window:
      raise UserError(
        f'{spec}: {stop - start} bytes in the {name} split; expected at least {window} for '
        f'sequence_length={sequence_length}'
      )
    splits[name] = _window_split(spec, stream, start, stop, sequence_length, memory_limit)
  train, test, valid = splits['train'], splits['test'], splits.get('valid')
  return Data(spec, 'language', train, test, NUM_BYTE_VALUES, valid=valid)


def _window_split(
  spec: str, stream: ByteStream, start: int, stop: int, sequence_length: int, memory_limit: int
) -> Split:
  count = (stop - start - 1) // sequence_length
  size = count * sequence_length
  if 2 * size <= memory_limit:
    with Progress(size + 1, f'reading {spec}', unit='byte', brief=True) as progress:
      data = stream.bytes_between(start, start + size + 1, progress.advance)
    shape = count, sequence_length
    return ArraySplit(data[:-1].reshape(shape), data[1:].reshape(shape))

  def gather(indices: np.ndarray) -> Examples:
    firsts = start + indices.astype(np.int64) * sequence_length
    rows = np.stack([stream.bytes_between(i, i + sequence_length + 1) for i in firsts])
    return rows[:, :-1], rows[:, 1:]

  log.info('%s: %d bytes exceed the memory limit of %d: read as needed', spec, size, memory_limit)
  return SourceSplit(count, gather)


def _from_files(files: Files, sequence_length: int, memory_limit: int) -> Data:
  """Files in their order, split by whole files if possible."""
  spec, root, paths = files
  sizes = {path: size for path in paths if (size := path.stat().st_size)}
  train, test = [], []
  for path in sizes:
    held_out = hash_of(path.relative_to(root).as_posix()) < TEST_SHARE * 2**64
    (test if held_out else train).append(path)
  if min(sum(sizes[path] for path in part) for part in (train, test)) > sequence_length:
    streams = {'train': _file_stream(train, sizes), 'test': _file_stream(test, sizes)}
    return language_data(spec, streams, sequence_length, memory_limit)
  if len(sizes) > 1:
    log.info('%s: too few files to hold out whole ones; the last tenth of the bytes is', spec)
  streams = {'train': _file_stream(list(sizes), sizes)}
  return language_data(spec, streams, sequence_length, memory_limit)


def hash_of(name: str) -> int:
  """Returns the hash of the name of a file or document, below 2^64, by which some are held out."""
  digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
  return int.from_bytes(digest, 'big')


def _file_stream(paths: list[Path], sizes: dict[Path, int]) -> ByteStream:
  # Neighbouring windows are of the same file; a bounded cache keeps few files open however many
  # there are.
  mapped = functools.lru_cache(maxsize=64)(lambda i: np.memmap(paths[i], np.uint8, mode='r'))
  return ByteStream([sizes[path] for path in paths], mapped)
