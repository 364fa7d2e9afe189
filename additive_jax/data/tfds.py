"""TensorFlow Datasets sets, read as ArrayRecord without TensorFlow."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from additive_jax.data.splits import ArraySplit, Data, Examples, SourceSplit, Split
from additive_jax.data.text import ByteStream, language_data
from additive_jax.data.tfds_prepare import check_name, command, find, prepare, undamaged
from additive_jax.errors import UserError, user_path
from additive_jax.files.progress import Progress

log = logging.getLogger('additive_jax')

EXAMPLES_PER_READ = 256


def load_tfds(
  name: str,
  sequence_length: int,
  data_dir: str | None,
  download: bool,
  memory_limit: int,
  own_valid: bool = True,
) -> Data:
  """Loads a TensorFlow Datasets set that is prepared as ArrayRecord.

  An image (or a numeric tensor) with a class label becomes classification: x float32, integer
  images divided by the largest value of their type, tensors as they are; y int32. A text becomes
  language, its documents joined by newlines. The split `train` trains; `test`, else `validation`,
  else the last tenth of `train` tests. A `validation` that does not is there to choose by.

  Args:
    name: `NAME[/CONFIG][:VERSION]`.
    sequence_length: bytes per example, for text.
    data_dir: where prepared sets are; None is the environment variable TFDS_DATA_DIR or
      `~/tensorflow_datasets`.
    download: prepare the set when it isn't.
    memory_limit: bytes that a split may take to be kept in memory.
    own_valid: whether its `validation` is read.

  Raises:
    UserError: the name is unknown, the set isn't prepared (the message has the command), or its
      features fit neither.
  """
  # tensorflow_datasets takes about half a second to import, which only those who use it should pay.
  import tensorflow_datasets as tfds

  spec = f'tfds:{name}'
  folder = str(user_path(data_dir or tfds.core.constants.DATA_DIR, 'data_dir'))
  builder = find(tfds, name, folder)
  if builder is None:
    check_name(tfds, name, folder)
    if not download:
      raise UserError(
        f'{spec} is not prepared in {folder!r}; to prepare it, with a network (some sets need '
        f'TensorFlow for this step only), run: {command(name, folder)}'
      )
    prepare(tfds, name, folder)
    builder = find(tfds, name, folder)
  with undamaged(name, folder):
    formats = builder.info.available_file_formats()
    if tfds.core.FileFormat.ARRAY_RECORD not in formats:
      names = ', '.join(sorted(str(format_.value) for format_ in formats))
      other = os.path.join(folder, 'array_record')
      raise UserError(
        f'{spec} is prepared in {folder!r} as {names}; expected array_record. To prepare it in '
        f'another folder, run: {command(name, other)} and read it with '
        f'data_dir={shlex.quote(other)}'
      )
    x_name, y_name = _supervised(tfds, spec, builder.info)
    reader = _Reader(tfds, spec, builder, memory_limit, x_name, own_valid)
    return reader.language(sequence_length) if y_name is None else reader.classification(y_name)


def _supervised(tfds: ModuleType, spec: str, info: Any) -> tuple[str, str | None]:
  """Returns the names of the input and the label feature; no label for text."""
  features = info.features
  pair = info.supervised_keys
  if not (isinstance(pair, tuple) and all(key in features for key in pair if isinstance(key, str))):
    pair = ()
  named = [key for key in pair if isinstance(key, str)]
  kinds = tfds.features

  def of_kind(kind: type) -> list[str]:
    chosen = [key for key in named if isinstance(features[key], kind)]
    return chosen or [key for key in features if isinstance(features[key], kind)]

  labels = of_kind(kinds.ClassLabel)
  if named and len(labels) == 1 and _is_numeric(kinds, features[named[0]]):
    return named[0], labels[0]
  images, texts = of_kind(kinds.Image), of_kind(kinds.Text)
  if len(images) == 1 and len(labels) == 1:
    return images[0], labels[0]
  if len(texts) == 1 and not images:
    return texts[0], None
  listed = ', '.join(f'{key} ({type(features[key]).__name__})' for key in sorted(features))
  raise UserError(
    f'{spec} has the features {listed}; expected an image or tensor with one ClassLabel, '
    f'or one Text'
  )


def _is_numeric(kinds: Any, feature: Any) -> bool:
  if isinstance(feature, kinds.Image):
    return True
  is_tensor = isinstance(feature, kinds.Tensor) and not isinstance(feature, kinds.ClassLabel)
  return is_tensor and np.dtype(feature.np_dtype).kind in 'iuf' and None not in feature.shape


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Reads the splits of one prepared set, whose input is the feature `x_name`."""

  tfds: ModuleType
  spec: str
  builder: Any
  memory_limit: int
  x_name: str
  own_valid: bool

  def classification(self, y_name: str) -> Data:
    """Returns the set as inputs with one class each."""
    label = self.builder.info.features[y_name]
    # Some sets ship a test split whose labels are withheld as -1.
    train, test, *valid = (
      self._labelled(source, y_name)
      for source in self._sources(lambda example: example[y_name] >= 0)
    )
    names, held_out = tuple(label.names), valid[0] if valid else None
    return Data(self.spec, 'classification', train, test, label.num_classes, names, held_out)

  def language(self, sequence_length: int) -> Data:
    """Returns the set's documents as one stream of bytes a split."""
    train, test, *valid = map(self._stream, self._sources(lambda example: True))
    streams = {'train': train, 'test': test} | ({'valid': valid[0]} if valid else {})
    return language_data(self.spec, streams, sequence_length, self.memory_limit)

  def _sources(self, usable: Callable[[Any], bool]) -> list[Any]:
    """Returns the data sources to train on, to test by and, if there is one, to choose by; `usable`
    judges an example of them."""
    counts = {name: split.num_examples for name, split in self.builder.info.splits.items()}
    if not counts.get('train'):
      raise UserError(f'{self.spec} has the splits {", ".join(counts) or "none"}; expected train')
    for name in ('test', 'validation'):
      if counts.get(name):
        source = self._source(name)
        if usable(source[0]):
          found = [self._source('train'), source]
          if name == 'test' and self.own_valid and counts.get('validation'):
            valid = self._source('validation')
            found += [valid] if usable(valid[0]) else []
          return found
    if counts['train'] < 2:
      raise UserError(f'{self.spec} has one example; expected at least 2')
    cut = counts['train'] - max(1, counts['train'] // 10)
    message = '%s has no labelled test split: the last %d of train are'
    log.info(message, self.spec, counts['train'] - cut)
    return [self._source(f'train[:{cut}]'), self._source(f'train[{cut}:]')]

  def _source(self, split: str) -> Any:
    """Returns tfds's random-access source of one split."""
    return self.builder.as_data_source(split, file_format='array_record')

  def _labelled(self, source: Any, y_name: str) -> Split:
    """Returns one split, in memory when its x as float32 fits."""
    first = np.asarray(source[0][self.x_name])
    is_image = isinstance(self.builder.info.features[self.x_name], self.tfds.features.Image)
    scale = np.iinfo(first.dtype).max if is_image and first.dtype.kind in 'iu' else 1

    def gather(
      indices: np.ndarray, advance: Callable[[int], object] = lambda count: None
    ) -> Examples:
      x = np.empty((len(indices), *first.shape), np.float32)
      y = np.empty(len(indices), np.int32)
      for begin in range(0, len(indices), EXAMPLES_PER_READ):
        examples = source.__getitems__(indices[begin : begin + EXAMPLES_PER_READ].tolist())
        for row, example in enumerate(examples, begin):
          value = np.asarray(example[self.x_name])
          if value.shape != first.shape:
            raise UserError(
              f'{self.spec}: {self.x_name} of shape {first.shape} and {value.shape}; expected one '
              'shape'
            )
          x[row] = value
          y[row] = example[y_name]
        advance(len(examples))
      x /= np.float32(scale)
      return x, y

    count = len(source)
    if count * first.size * np.dtype(np.float32).itemsize > self.memory_limit:
      log.info('%s: %d examples exceed the memory limit: read as needed', self.spec, count)
      return SourceSplit(count, gather)
    with Progress(count, f'reading {self.spec}', unit='example', brief=True) as progress:
      return ArraySplit(*gather(np.arange(count), progress.advance))

  def _stream(self, source: Any) -> ByteStream:
    """Documents, a newline after each; read once for their sizes, and kept if they fit."""

    def document(example: Any) -> np.ndarray:
      return np.frombuffer(example[self.x_name] + b'\n', np.uint8)

    sizes, documents, num_bytes = [], [], 0
    with Progress(len(source), f'reading {self.spec}', unit='example', brief=True) as progress:
      for begin in range(0, len(source), EXAMPLES_PER_READ):
        keys = list(range(begin, min(begin + EXAMPLES_PER_READ, len(source))))
        batch = [document(example) for example in source.__getitems__(keys)]
        sizes += map(len, batch)
        num_bytes += sum(map(len, batch))
        documents += batch
        if 2 * num_bytes > self.memory_limit:
          documents.clear()
        progress.advance(len(keys))
    if 2 * num_bytes <= self.memory_limit:
      return ByteStream(sizes, documents.__getitem__)
    return ByteStream(sizes, lambda i: document(source[i]))
