"""A folder of images of one's own: a folder for each class.

DIR/cat/1.png            or    DIR/train/cat/1.png
DIR/dog/2.jpg                  DIR/test/dog/2.jpg
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from additive_jax.data.splits import ArraySplit, Data, Examples, SourceSplit, Split
from additive_jax.data.table_files import nearest
from additive_jax.data.tabular import SHUFFLE_SEED, TEST_SHARE
from additive_jax.errors import UserError, one_line, user_path
from additive_jax.files.progress import Progress
from additive_jax.files.quantities import bytes_text

log = logging.getLogger('additive_jax')

ENDS = ('.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
PARTS = {'train': ('train',), 'valid': ('valid', 'validation', 'val'), 'test': ('test',)}
CHANNELS = {1: 'L', 3: 'RGB', 4: 'RGBA'}
PER_READ = 256  # images between two ticks of the progress bar
THREADS = min(8, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True)
class Pictures:
  """How images become arrays.

  Attributes:
    image_size: height and width; 0 is that of the images, which must then be of one size. Others
      are scaled until they cover a square of it, and what stands out on two sides is cut off.
    channels: 1, 3 or 4; 0 is 1 where the first image is grey, and else 3.
  """

  image_size: int = 0
  channels: int = 0

  def __post_init__(self):
    if self.image_size < 0:
      raise UserError(f'image_size {self.image_size}: expected 0, or the pixels of a side')
    if self.channels not in (0, *CHANNELS):
      raise UserError(f'channels {self.channels}: expected 0, 1, 3 or 4')


def load_folder(folder: str, pictures: Pictures, memory_limit: int) -> Data:
  """Loads a folder with a folder of images for each class, or with `train`, `test` and maybe
  `valid`, each of which has one for each class.

  Classes are the names of the folders, sorted. Images are shuffled by a fixed seed; without `test`
  a fifth of them is the test split. x is float32 [N, height, width, channels] in [0, 1]; y is int32
  [N]. A split whose x exceeds `memory_limit` bytes is decoded as it is needed, on several threads.

  Raises:
    UserError: for a folder that is not there, no classes, a class without images, a class that
      `train` has not, an image that cannot be read (with its name), or images of several sizes
      without `image_size`.
  """
  root, spec = user_path(folder, 'images:'), f'images:{folder}'
  if not root.is_dir():
    reason = 'is not a folder' if root.exists() else 'does not exist'
    raise UserError(f'{spec}: {str(root)!r} {reason}; expected a folder of folders of images')
  parts = {
    part: next((root / name for name in names if (root / name).is_dir()), None)
    for part, names in PARTS.items()
  }
  classes = _classes(spec, parts['train'] or root)
  if len(classes) < 2:
    raise UserError(f'{spec}: only the class {classes[0]!r}: expected a folder for each of several')
  files = _files(spec, root, {p: f for p, f in parts.items() if f is not None}, classes)
  reader = _reader(spec, files['train'][0][0], pictures)
  splits: dict[str, Any] = {
    part: _split(reader, *listed, memory_limit) for part, listed in files.items()
  }
  names = tuple(classes)
  return Data(spec, 'classification', num_outputs=len(names), class_names=names, **splits)


def _visible(folder: Path) -> list[Path]:
  return sorted(path for path in folder.iterdir() if not path.name.startswith('.'))


def _classes(spec: str, folder: Path) -> list[str]:
  """Returns the names of the folders in a folder, sorted."""
  classes = [path.name for path in _visible(folder) if path.is_dir()]
  if not classes:
    raise UserError(f'{spec}: no folder in {str(folder)!r}: expected one of images for each class')
  return classes


def _files(
  spec: str, root: Path, parts: dict[str, Path], classes: list[str]
) -> dict[str, tuple[list[Path], np.ndarray]]:
  """Returns the files and labels of each split, in an order that a fixed seed shuffles."""
  listed = {}
  for part, folder in (parts if 'train' in parts else {'train': root}).items():
    paths, labels = _listed(spec, folder, classes)
    rng = np.random.Generator(np.random.PCG64(SHUFFLE_SEED))
    order = rng.permutation(len(paths))
    listed[part] = [paths[i] for i in order], labels[order]
  if 'test' not in listed:
    paths, labels = listed['train']
    cut = min(len(paths) - round(TEST_SHARE * len(paths)), len(paths) - 1)
    listed['train'], listed['test'] = (paths[:cut], labels[:cut]), (paths[cut:], labels[cut:])
  return listed


def _listed(spec: str, folder: Path, classes: list[str]) -> tuple[list[Path], np.ndarray]:
  """Returns the images of a folder, class by class, and their labels."""
  for name in _classes(spec, folder):
    if name not in classes:
      expected = f'one of train, {nearest(name, classes)}'
      raise UserError(f'{spec}: class {name!r} in {str(folder)!r}: expected {expected}')
  paths, labels, ignored = [], [], 0
  for label, name in enumerate(classes):
    inside = _visible(folder / name) if (folder / name).is_dir() else []
    images = [path for path in inside if path.suffix.lower() in ENDS]
    ignored += len(inside) - len(images)
    if not images:
      kinds = ', '.join(ENDS[:3])
      raise UserError(f'{spec}: no image in {str(folder / name)!r}: expected some, {kinds}, …')
    paths += images
    labels += [label] * len(images)
  if ignored:
    log.info('%s: passed over %d files in %s that are no images', spec, ignored, folder)
  return paths, np.array(labels, np.int32)


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Decodes images to [height, width, channels]."""

  spec: str
  shape: tuple[int, int, int]
  size: int

  def one(self, path: Path) -> Float32[np.ndarray, 'height width channels']:
    """Returns one image."""
    image = _opened(self.spec, path)
    if self.size:
      from PIL import Image, ImageOps

      image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image.convert(CHANNELS[self.shape[2]]), np.float32) / np.float32(255)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape != self.shape:
      sizes = ['×'.join(map(str, shape[:2])) for shape in (pixels.shape, self.shape)]
      raise UserError(
        f'{self.spec}: {str(path)!r} is {sizes[0]} and others {sizes[1]}: expected one size, or '
        'config.data.image_size'
      )
    return pixels

  def many(
    self, paths: list[Path], advance: Callable[[int], object] = lambda count: None
  ) -> Float32[np.ndarray, 'N height width channels']:
    """Returns some images, decoded on several threads."""
    x = np.empty((len(paths), *self.shape), np.float32)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as threads:
      for row, pixels in enumerate(threads.map(self.one, paths)):
        x[row] = pixels
        if row % PER_READ == PER_READ - 1:
          advance(PER_READ)
    return x


def _opened(spec: str, path: Path) -> Any:
  """Returns a decoded image, turned as its camera says, of 8 bits a channel."""
  from PIL import Image, ImageOps, UnidentifiedImageError

  try:
    with Image.open(path) as image:
      image.load()
      turned = ImageOps.exif_transpose(image)
  except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
    reason = getattr(error, 'strerror', None) or one_line(error)
    raise UserError(f'{spec}: cannot read {str(path)!r} ({reason}): expected an image') from error
  if turned.mode.startswith('I'):  # 16 bits, which PIL would cut off at 255
    return Image.fromarray((np.asarray(turned, np.float32) / 257).clip(0, 255).astype(np.uint8))
  return turned


def _reader(spec: str, first: Path, pictures: Pictures) -> _Reader:
  """Returns what decodes all images like the first one."""
  image = _opened(spec, first)
  grey = image.mode in ('1', 'L', 'LA')
  channels = pictures.channels or (1 if grey else 3)
  size = pictures.image_size
  height, width = (size, size) if size else (image.height, image.width)
  return _Reader(spec, (height, width, channels), size)


def _split(reader: _Reader, paths: list[Path], labels: np.ndarray, memory_limit: int) -> Split:
  """Returns one split, in memory where its x fits."""
  size = len(paths) * int(np.prod(reader.shape)) * np.dtype(np.float32).itemsize
  if size <= memory_limit:
    with Progress(len(paths), f'reading {reader.spec}', unit='image', brief=True) as progress:
      return ArraySplit(reader.many(paths, progress.advance), labels)

  def gather(indices: np.ndarray) -> Examples:
    return reader.many([paths[i] for i in indices.tolist()]), labels[indices]

  message = '%s: %d images exceed the memory limit of %s: decoded as needed'
  log.info(message, reader.spec, len(paths), bytes_text(memory_limit))
  return SourceSplit(len(paths), gather)
