"""Images with one class each: scikit-learn's digits, and folders in the MNIST (idx) file format."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int32, UInt8

from additive_jax.data.splits import Data, Examples, Split, fit
from additive_jax.data.values import check_used
from additive_jax.errors import UserError, user_path
from additive_jax.files.progress import Progress

NUM_DIGITS_TRAIN = 1437
CHUNK_BYTES = 1 << 20
File = IO[bytes] | gzip.GzipFile


def load_digits(memory_limit: int) -> Data:
  """Loads scikit-learn's 1,797 grey digits of 8×8 pixels: the first 1437 train, the last 360 test.

  x is float32 [N, 8, 8, 1] in [0, 1] (the stored 0 to 16, divided by 16); y is int32 [N].
  """
  # scikit-learn takes most of a second to import, which only those who use its data should pay.
  import sklearn.datasets

  bunch = sklearn.datasets.load_digits()
  pixels = bunch.images[..., None].astype(np.uint8)
  labels = bunch.target.astype(np.int32)
  train, test = (
    _image_split('digits', pixels[part], labels[part], 16, memory_limit)
    for part in (slice(NUM_DIGITS_TRAIN), slice(NUM_DIGITS_TRAIN, None))
  )
  return Data('digits', 'classification', train, test, 10, tuple(map(str, bunch.target_names)))


def load_idx(folder: str, memory_limit: int) -> Data:
  """Loads a folder in the MNIST file format.

  Its four files are `train-` and `t10k-`, `images-idx3-ubyte` and `labels-idx1-ubyte`.
  Each file may be plain or gzipped (`.gz`), and its name may have a dot for the last dash but one
  (`train-images.idx3-ubyte`). x is float32 [N, height, width, 1] in [0, 1] (bytes divided by 255);
  y is int32 [N]. Images that exceed `memory_limit` bytes as float32 stay bytes, in the file itself
  when that is not gzipped.

  Raises:
    UserError: a file is missing, is not what its name says, or does not match the others.
  """
  root, spec = user_path(folder, 'idx:'), f'idx:{folder}'
  if not root.is_dir():
    reason = 'is not a folder' if root.exists() else 'does not exist'
    raise UserError(
      f'{spec}: {str(root)!r} {reason}; expected a folder of files in the MNIST format'
    )
  splits, labels, sizes = [], [], []
  for part in ('train', 't10k'):
    image_path = _find(spec, root, f'{part}-images', 3)
    label_path = _find(spec, root, f'{part}-labels', 1)
    images, y = _read_idx(image_path, 3), _read_idx(label_path, 1).astype(np.int32)
    if len(images) != len(y):
      raise UserError(
        f'{spec}: {len(images)} images in {image_path.name} and {len(y)} labels in '
        f'{label_path.name}; expected as many of both'
      )
    labels.append(y)
    sizes.append('×'.join(map(str, images.shape[1:])))
    splits.append(_image_split(spec, images[..., None], y, 255, memory_limit))
  if sizes[0] != sizes[1]:
    raise UserError(
      f'{spec}: train images are {sizes[0]} and test images {sizes[1]}; expected one size'
    )
  num_classes = check_used(labels[0], f'{spec}, train')
  return Data(spec, 'classification', splits[0], splits[1], num_classes)


def _image_split(
  spec: str,
  pixels: UInt8[np.ndarray, 'N height width 1'],
  labels: Int32[np.ndarray, 'N'],
  scale: int,
  memory_limit: int,
) -> Split:
  def gather(indices: np.ndarray) -> Examples:
    # Dividing bytes by a float32 directly takes fifteen times as long.
    x = pixels[indices].astype(np.float32)
    x /= scale
    return x, labels[indices]

  num_bytes = pixels.size * np.dtype(np.float32).itemsize
  return fit(spec, len(pixels), num_bytes, gather, memory_limit)


def _find(spec: str, root: Path, stem: str, num_dims: int) -> Path:
  names = [f'{stem}{mark}idx{num_dims}-ubyte' for mark in '-.']
  for path in [root / f'{name}{end}' for name in names for end in ('', '.gz')]:
    if path.is_file():
      return path
  raise UserError(f'{spec}: no {stem} file; expected {names[0]} or {names[1]}, plain or with .gz')


def _read_idx(path: Path, num_dims: int) -> UInt8[np.ndarray, '...']:
  """Returns the array of `num_dims` dimensions in one idx file; a plain file is mapped, not
  read."""
  gzipped = path.suffix == '.gz'
  body = bytearray()
  try:
    with gzip.open(path) if gzipped else path.open('rb') as file:
      shape, offset = _read_header(file, path, num_dims)
      num_bytes = math.prod(shape)
      if gzipped:
        body = _read_body(file, path, num_bytes + 1)
  except (gzip.BadGzipFile, zlib.error) as error:
    raise UserError(
      f'{str(path)!r} is not a sound gzip file ({error}); expected one by its name'
    ) from error
  except EOFError as error:
    raise UserError(f'{str(path)!r} is truncated: the gzip stream stops before its end') from error
  size = len(body) if gzipped else path.stat().st_size - offset
  if size != num_bytes:
    size_text = f'{size}' if size < num_bytes else f'over {num_bytes}'
    problem = 'is truncated' if size < num_bytes else 'is too long'
    raise UserError(
      f'{str(path)!r} {problem}: {size_text} bytes after the header; expected {num_bytes} for the '
      f'stated shape {shape}'
    )
  if gzipped:
    return np.frombuffer(body, np.uint8).reshape(shape)
  return np.memmap(path, np.uint8, mode='r', offset=offset, shape=shape)


def _read_header(file: File, path: Path, num_dims: int) -> tuple[tuple[int, ...], int]:
  """Returns the shape that the header states, and the header's length in bytes."""
  length = 4 + 4 * num_dims
  header = file.read(length)
  magic = bytes([0, 0, 8, num_dims])
  if header[:4] != magic:
    raise UserError(
      f'{str(path)!r} starts with 0x{header[:4].hex()}; expected the idx magic number '
      f'0x{magic.hex()} (bytes in {num_dims} dimension{"s" if num_dims > 1 else ""})'
    )
  if len(header) < length:
    raise UserError(
      f'{str(path)!r} is truncated: {len(header)} bytes; expected a header of {length}'
    )
  shape = struct.unpack(f'>{num_dims}I', header[4:])
  if 0 in shape:
    raise UserError(f'{str(path)!r} is empty: its header states shape {shape}')
  return shape, length


def _read_body(file: File, path: Path, at_most: int) -> bytearray:
  """Returns up to `at_most` bytes."""
  # Read in chunks, so that a header which promises too much allocates nothing.
  body = bytearray()
  with Progress(at_most, f'decoding {path.name}', unit='byte', brief=True) as progress:
    while chunk := file.read(min(CHUNK_BYTES, at_most - len(body))):
      body += chunk
      progress.advance(len(chunk))
  return body
