"""The examples of a training's steps: read on the host, and put on the devices while others run.

    host      read 0 │ read 1    │ read 2    │ …        each a chunk of steps, in a thread
    devices          │ steps of 0 │ steps of 1 │ …

A set in memory lies on the devices already, and a chunk is numbers in it, which takes no thread.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import PyTree

from additive_jax.batches import num_examples
from additive_jax.data import IteratorSplit, Order, Split

# Bytes that the examples of a chunk may take on the host, if it has more than one step; there are
# two such chunks at a time.
CHUNK_BYTES = 2**28
WAIT_SECONDS = 5.0  # for a reader, when Python ends
Chunk = Any  # a pytree of arrays [steps, rows, batch, ...]


class Reader(Protocol):
  """Gives the examples of any steps."""

  def read(self, start: int, count: int) -> Chunk:
    """Returns the examples of `count` steps from `start`, or their numbers."""

  def place(self, step: int) -> dict[str, Any]:
    """Returns what is saved with a checkpoint of a step, as JSON values."""

  def restore(self, place: dict[str, Any]) -> None:
    """Goes on from a place that was saved."""

  def forget(self, step: int) -> None:
    """Drops what only places before a step need."""


@dataclasses.dataclass
class Numbered:
  """Reads examples by their numbers, which are a function of the step.

  >>> from additive_jax.data import SourceSplit
  >>> far = SourceSplit(4, lambda numbers: (numbers * 1.0, numbers))
  >>> Numbered(far, Order(4, batch_size=2, seed=0), rows=1).read(0, 3)[1].shape
  (3, 1, 2)
  """

  train: Split
  order: Order
  rows: int

  def read(self, start: int, count: int) -> Chunk:
    """Returns the examples of some steps; of a set in memory their numbers."""
    shape = count, self.rows, self.order.batch_size // self.rows
    indices = self.order.indices(start, count).reshape(shape)
    return indices if self.train.in_memory else self.train[indices]

  def place(self, step: int) -> dict[str, Any]:
    """Returns nothing: the step says it all."""
    del step
    return {}

  def restore(self, place: dict[str, Any]) -> None:
    """Does nothing."""

  def forget(self, step: int) -> None:
    """Does nothing."""


class Streamed:
  """Reads examples from an iterator, in its order.

  >>> batches = [(np.arange(4.0), np.arange(4))]
  >>> split = aj.data.from_iterator(
  ...   batches, test=batches, task='', num_outputs=1, num_examples=4
  ... ).train
  >>> reader = Streamed(split, rows=1, batch_size=3, seed=0)
  >>> reader.read(0, 1)[1].tolist(), reader.read(1, 2)[1].tolist()
  ([[[0, 1, 2]]], [[[3, 0, 1]], [[2, 3, 0]]])
  """

  def __init__(self, train: IteratorSplit, rows: int, batch_size: int, seed: int):
    self._train, self._stream = train, train.stream(seed)
    self._shape = rows, batch_size

  def read(self, start: int, count: int) -> Chunk:
    """Returns the examples of some steps; those that follow the last ones cost no search."""
    size = math.prod(self._shape)
    if self._stream.position != start * size:
      self._stream.seek(start * size)
    none = np.zeros(0, np.int64)
    examples = self._stream.take(count * size) if count else self._train[none]
    by_step = lambda leaf: leaf.reshape(count, *self._shape, *leaf.shape[1:])
    return jax.tree.map(by_step, examples)

  def place(self, step: int) -> dict[str, Any]:
    """Returns the place in the iterator before a step."""
    return self._stream.place(step * math.prod(self._shape))

  def restore(self, place: dict[str, Any]) -> None:
    """Goes to a place in the iterator."""
    self._stream.restore(place)

  def forget(self, step: int) -> None:
    """Drops what only places before a step need."""
    self._stream.forget(step * math.prod(self._shape))


class Feed:
  """Gives chunks of steps on the devices, and reads the next one while a chunk runs.

  >>> reader = Numbered(aj.data.load('digits').train, Order(1437, batch_size=4, seed=0), rows=2)
  >>> Feed(reader, chunk_steps=3, put=lambda chunk: chunk, ahead=False).chunk(0, 2).shape
  (3, 2, 2)

  Attributes:
    chunk_steps: of each chunk.

  Args:
    reader: of the examples.
    chunk_steps: of each chunk; shorter ones are padded.
    put: puts a chunk on the devices.
    ahead: whether chunks are read ahead.
  """

  def __init__(
    self, reader: Reader, chunk_steps: int, put: Callable[[Chunk], PyTree], ahead: bool = True
  ):
    self._reader, self.chunk_steps, self._put = reader, chunk_steps, put
    self._ahead = ahead
    self._task: _Task | None = None
    self._place: tuple[int, dict[str, Any]] = (-1, {})
    self._window: tuple[int, Chunk] | None = None
    self._longest = 0

  def chunk(self, start: int, count: int) -> PyTree:
    """Returns the examples of steps from `start` on the devices: `count`, then any others.

    Raises:
      What reading has raised, also in the thread.
    """
    self._longest = max(self._longest, count)
    task, self._task = self._task, None
    if task is not None:
      chunk = task.result()
      if task.start == start and task.count >= count:
        return chunk
    return self._read(start, count)

  def _read(self, start: int, count: int) -> PyTree:
    chunk = self._on_host(start, count)
    padding = self.chunk_steps - count
    pad = lambda leaf: np.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))
    return self._put(jax.tree.map(pad, chunk) if padding else chunk)

  def _on_host(self, start: int, count: int) -> Chunk:
    """Returns the examples of some steps; those that the last chunk had are not read again."""
    begin, last = self._window or (start, None)
    end = begin + (0 if last is None else num_examples(last))
    self._reader.forget(begin)
    if last is None or not begin <= start < end:
      chunk = self._reader.read(start, count)
    else:
      chunk = jax.tree.map(lambda leaf: leaf[start - begin :][:count], last)
      if start + count <= end:
        return chunk
      more = self._reader.read(end, start + count - end)
      chunk = jax.tree.map(lambda *leaves: np.concatenate(leaves), chunk, more)
    if count:
      self._window = start, chunk
    return chunk

  def read_ahead(self, start: int, end: int | None = None) -> None:
    """Begins to read the steps from `start` in a thread of their own: as many as the longest chunk
    had up to now, and none from `end` on."""
    count = self._longest if end is None else min(self._longest, end - start)
    if self._ahead and count > 0:
      self._place = start, self._reader.place(start)  # before the thread moves on
      self._task = _Task(lambda: self._read(start, count), start, count)

  def place(self, step: int) -> dict[str, Any]:
    """Returns what is saved with a checkpoint of a step: {} where the step says it all."""
    if self._place[0] == step:
      return self._place[1]
    if self._task is not None:
      self._task.join()
    return self._reader.place(step)

  def restore(self, place: dict[str, Any]) -> None:
    """Goes on from what was saved with a checkpoint."""
    if self._task is not None:
      self._task.join()
    self._task, self._place, self._window = None, (-1, {}), None
    self._reader.restore(place)


class _Task:
  """A chunk that a thread reads. The thread ends with it, and keeps no process from ending."""

  def __init__(self, work: Callable[[], PyTree], start: int, count: int):
    self.start, self.count = start, count
    self._result: list[Any] = []
    self._thread = threading.Thread(
      target=_run, args=(work, self._result), name='additive_jax reads ahead', daemon=True
    )
    # A thread within JAX while Python is taken apart would end in a crash.
    weakref.finalize(self._thread, _wait, weakref.ref(self._thread))
    self._thread.start()

  def join(self) -> None:
    """Waits for the end of the thread."""
    self._thread.join()

  def result(self) -> PyTree:
    """Returns the chunk, or raises what reading raised."""
    self.join()
    chunk, error = self._result
    if error is not None:
      raise error
    return chunk


def _run(work, result):
  try:
    result.extend((work(), None))
  except BaseException as error:
    result.extend((None, error))


def _wait(thread):
  """Waits for a thread that still runs when Python ends."""
  if (running := thread()) is not None:
    running.join(WAIT_SECONDS)


def bounded_steps(train: Split, chunk_steps: int, size: int) -> int:
  """Returns the steps of a chunk, so that its examples take no more bytes than `CHUNK_BYTES`.

  >>> from additive_jax.data import SourceSplit
  >>> far = SourceSplit(4, lambda numbers: (np.zeros((len(numbers), 2**20)), numbers))
  >>> bounded_steps(far, chunk_steps=100, size=4)
  7

  Args:
    train: the training split; one in memory is not read.
    chunk_steps: at most.
    size: examples of a step.
  """
  if train.in_memory:
    return chunk_steps
  example = train[np.zeros(1, np.int64)]
  each = sum(leaf.nbytes for leaf in jax.tree.leaves(example))
  return min(chunk_steps, max(1, CHUNK_BYTES // max(each * size, 1)))


def feed_of(
  train: Split, order: Order, rows: int, chunk_steps: int, put: Callable[[Chunk], PyTree]
) -> Feed:
  """Returns what gives the examples of a training.

  >>> train = aj.data.load('digits').train
  >>> feed_of(train, Order(1437, 4, seed=0), 1, chunk_steps=3, put=lambda chunk: chunk).chunk_steps
  3

  Args:
    train: the training split.
    order: of all examples of a step.
    rows: batches of a step.
    chunk_steps: the most steps of a chunk.
    put: puts a chunk on the devices.
  """
  reader: Reader = Numbered(train, order, rows)
  if isinstance(train, IteratorSplit):
    reader = Streamed(train, rows, order.batch_size // rows, order.seed)
  chunk_steps = bounded_steps(train, chunk_steps, order.batch_size)
  return Feed(reader, chunk_steps, put, ahead=not train.in_memory)
