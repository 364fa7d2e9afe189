"""Images with one class each: scikit-learn's digits, and folders in the MNIST (idx) file format."""

import gzip
import math
import pathlib
import struct
import zlib
from typing import BinaryIO

import numpy as np

from additive_jax.data.splits import Data, Split, fit
from additive_jax.errors import UserError
from additive_jax.files.progress import Progress

NUM_DIGITS_TRAIN = 1437
CHUNK_BYTES = 1 << 20


def load_digits(memory_limit: int) -> Data:
  """scikit-learn's 1,797 grey digits of 8×8 pixels: the first 1437 train, the last 360 test.

  x is float32 [N, 8, 8, 1] in [0, 1] (the stored 0 to 16, divided by 16); y is int32 [N].
  """
  # scikit-learn takes most of a second to import, which only those who use its data should pay.
  import sklearn.datasets

  bunch = sklearn.datasets.load_digits()
  pixels = bunch.images[..., None].astype(np.uint8)
  labels = bunch.target.astype(np.int32)
  cut = NUM_DIGITS_TRAIN
  return Data(
    name='digits',
    task='classification',
    train=_image_split(pixels[:cut], labels[:cut], 16, memory_limit),
    test=_image_split(pixels[cut:], labels[cut:], 16, memory_limit),
    num_outputs=10,
    class_names=tuple(str(name) for name in bunch.target_names),
  )


def load_idx(folder: str, memory_limit: int) -> Data:
  """A folder in the MNIST file format.

  Its four files are `train-` and `t10k-`, `images-idx3-ubyte` and `labels-idx1-ubyte`.
  Each file may be plain or gzipped (`.gz`), and its name may have a dot for the last dash but one
  (`train-images.idx3-ubyte`). x is float32 [N, height, width, 1] in [0, 1] (bytes divided by 255);
  y is int32 [N]. Images that exceed `memory_limit` bytes as float32 stay bytes, in the file itself
  when that is not gzipped.

  Raises:
    UserError: a file is missing, is not what its name says, or does not match the others.
  """
  root = pathlib.Path(folder).expanduser()
  spec = f'idx:{folder}'
  if not root.is_dir():
    reason = 'is not a folder' if root.exists() else 'does not exist'
    raise UserError(
      f'{spec}: {str(root)!r} {reason}; expected a folder of files in the MNIST format'
    )
  parts = {}
  for part in ('train', 't10k'):
    image_path = _find(spec, root, f'{part}-images', 3)
    label_path = _find(spec, root, f'{part}-labels', 1)
    images, labels = _read_idx(image_path, 3), _read_idx(label_path, 1)
    if len(images) != len(labels):
      raise UserError(
        f'{spec}: {len(images)} images in {image_path.name} and {len(labels)} labels in '
        f'{label_path.name}; expected as many of both'
      )
    parts[part] = images[..., None], np.asarray(labels).astype(np.int32)
  (train_images, train_labels), (test_images, test_labels) = parts['train'], parts['t10k']
  if train_images.shape[1:] != test_images.shape[1:]:
    sizes = [f'{shape[1]}×{shape[2]}' for shape in (train_images.shape, test_images.shape)]
    raise UserError(
      f'{spec}: train images are {sizes[0]} and test images {sizes[1]}; expected one size'
    )
  return Data(
    name=spec,
    task='classification',
    train=_image_split(train_images, train_labels, 255, memory_limit),
    test=_image_split(test_images, test_labels, 255, memory_limit),
    num_outputs=int(max(train_labels.max(), test_labels.max())) + 1,
  )


def _image_split(pixels: np.ndarray, labels: np.ndarray, scale: int, memory_limit: int) -> Split:
  def gather(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Dividing bytes by a float32 directly takes fifteen times as long.
    x = pixels[indices].astype(np.float32)
    x /= scale
    return x, labels[indices]

  num_bytes = pixels.size * np.dtype(np.float32).itemsize
  return fit(len(pixels), num_bytes, gather, memory_limit)


def _find(spec: str, root: pathlib.Path, stem: str, num_dims: int) -> pathlib.Path:
  names = [f'{stem}{mark}idx{num_dims}-ubyte' for mark in '-.']
  for path in [root / f'{name}{end}' for name in names for end in ('', '.gz')]:
    if path.is_file():
      return path
  raise UserError(f'{spec}: no {stem} file; expected {names[0]} or {names[1]}, plain or with .gz')


def _read_idx(path: pathlib.Path, num_dims: int) -> np.ndarray:
  """The uint8 array of `num_dims` dimensions in one idx file; a plain file is mapped, not read."""
  gzipped = path.suffix == '.gz'
  try:
    with gzip.open(path) if gzipped else path.open('rb') as file:
      shape, offset = _read_header(file, path, num_dims)
      num_bytes = math.prod(shape)
      if gzipped:
        body = _read_body(file, path, num_bytes + 1)
        size = len(body)
      else:
        size = path.stat().st_size - offset
  except (gzip.BadGzipFile, zlib.error) as error:
    raise UserError(
      f'{str(path)!r} is not a sound gzip file ({error}); expected one by its name'
    ) from error
  except EOFError as error:
    raise UserError(f'{str(path)!r} is truncated: the gzip stream stops before its end') from error
  if size != num_bytes:
    found = f'{size}' if size < num_bytes else f'over {num_bytes}'
    kind = 'is truncated' if size < num_bytes else 'is too long'
    raise UserError(
      f'{str(path)!r} {kind}: {found} bytes after the header; expected {num_bytes} for the '
      f'stated shape {shape}'
    )
  if gzipped:
    return np.frombuffer(body, np.uint8).reshape(shape)
  return np.memmap(path, np.uint8, mode='r', offset=offset, shape=shape)


def _read_header(file: BinaryIO, path: pathlib.Path, num_dims: int) -> tuple[tuple[int, ...], int]:
  """The shape that the header states, and the header's length in bytes."""
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


def _read_body(file: BinaryIO, path: pathlib.Path, at_most: int) -> bytearray:
  """Up to `at_most` bytes."""
  # Read in chunks, so that a header which promises too much allocates nothing.
  body = bytearray()
  with Progress(at_most, f'decoding {path.name}', unit='byte', brief=True) as progress:
    while len(body) < at_most:
      chunk = file.read(min(CHUNK_BYTES, at_most - len(body)))
      if not chunk:
        break
      body += chunk
      progress.advance(len(chunk))
  return body
