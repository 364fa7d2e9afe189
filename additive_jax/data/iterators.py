"""Training examples from an iterator of one's own, in the order in which it gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer

from additive_jax.batches import described, num_examples
from additive_jax.data.iterables import Make, Source, pair
from additive_jax.data.splits import ArraySplit, Data, Examples, Split
from additive_jax.data.stream import Stream
from additive_jax.data.values import Expected
from additive_jax.errors import UserError, checked_size


def from_iterator(
  make_train: Make | Iterable[Any],
  *,
  test: Any,
  valid: Any = None,
  task: str,
  num_outputs: int,
  num_examples: int | None = None,
  batched: bool = True,
  name: str = 'iterator',
  class_names: tuple[str, ...] | None = None,
) -> Data:
  """Returns a data set whose training examples come from an iterator.

  They are used in the order in which they come, in steps of any batch size. Where training stands
  is saved with its checkpoints. An iterator (of grain, say), or what it iterates over, may have
  `get_state` and `set_state`, or `state_dict` and `load_state_dict`; otherwise training goes on by
  skipping what was read, which is exact if `make_train` gives the same each time. Whether the
  batch where it goes on is the same as before is checked.

  >>> def make_train(epoch):
  ...   rng = np.random.default_rng(epoch)
  ...   for _ in range(10):
  ...     x = rng.normal(size=(8, 4)).astype(np.float32)
  ...     yield x, (x.sum(1) > 0).astype(np.int32)
  >>> test = np.eye(4, dtype=np.float32), np.ones(4, np.int32)
  >>> aj.data.from_iterator(
  ...   make_train, test=test, task='classification', num_outputs=2, num_examples=80
  ... ).train
  IteratorSplit(80 examples a pass, x [4] float32, y [] int32)

  Args:
    make_train: gives a new iterable each time it is called. Each pass over the data is a call;
      arguments named `epoch` (from 0) and `seed` (of the training) are given if it has them. Or an
      iterable that can be iterated over again.
    test, valid: a pair (x, y) of arrays, a `Split`, or what `make_train` may be, read to its end.
    task, num_outputs, class_names: see `Data`.
    num_examples: of an epoch, at most those of a pass over the data; None is those of a pass, by
      the iterable's length.
    batched: whether it gives pairs (x, y) of batches, or of single examples.
    name: of the data.

  Raises:
    UserError: for an iterator that cannot be begun anew, is empty, or gives no such pairs; while
      it is read, with pass and batch, for one that raises, or ends before `num_examples`.
  """
  source = Source(_made_by(make_train, 'make_train'), batched, f'{name}, make_train')
  train = IteratorSplit(source, num_examples)
  held = {'test': test, 'valid': valid}
  splits: dict[str, Any] = {
    part: _whole(given, batched, f'{name}, {part}') for part, given in held.items()
  }
  return Data(name, task, train, num_outputs=num_outputs, class_names=class_names, **splits)


def _made_by(given: Any, name: str) -> Make:
  """Returns a function that makes an iterable anew."""
  if isinstance(given, Iterator):
    raise UserError(
      f'{name} {type(given).__name__}, which can be read once: expected a function that makes one, '
      'or an iterable that can be iterated over again'
    )
  if callable(given) and not isinstance(given, Iterable):
    return given
  if isinstance(given, Iterable):
    return lambda: given
  raise UserError(f'{name} of type {type(given).__name__}: expected a function or an iterable')


def _whole(given: Any, batched: bool, name: str) -> Split | None:
  """Returns a split to judge by, in memory."""
  if given is None or isinstance(given, Split):
    return given
  if isinstance(given, tuple):
    return ArraySplit(*pair(given, name))
  stream = Stream(Source(_made_by(given, name), batched, name))
  return ArraySplit(*stream.whole())


class IteratorSplit(Split):
  """Training examples from an iterator; made by `from_iterator`.

  Trainers read them in order, see `stream`. Example i is the i-th of the first pass: asking for it
  by number reads from the beginning.
  """

  in_memory = False

  def __init__(self, source: Source, size: int | None, expected: tuple[Expected, ...] = ()):
    self.source = source
    self._first = Stream(source).take_batch()
    self._size = checked_size(source.length(self._first) if size is None else size, 'num_examples')
    source.promise(self._size, is_said=size is not None)

  def __len__(self) -> int:
    return self._size

  def __repr__(self) -> str:
    parts = described(self._first[0], 'x'), described(self._first[1], 'y')
    return f'IteratorSplit({len(self)} examples a pass, {", ".join(parts)})'

  def _gather(self, indices: Integer[np.ndarray, 'N']) -> Examples:
    count = int(indices.max(initial=-1)) + 1
    some = self._first
    if count > num_examples(some[0]):
      some = Stream(self.source).take(count)
    return jax.tree.map(lambda a: a[indices], some)

  def checking(self, expected: Expected, name: str) -> Split:
    """Returns the split, of which each batch is checked when it is read."""
    other = IteratorSplit.__new__(IteratorSplit)
    vars(other).update(vars(self), source=self.source.checking(expected, name))
    other.source.check(self._first, 'its first batch')
    return other

  def stream(self, seed: int = 0) -> Stream:
    """Returns a reader of the examples from the beginning.

    >>> split = aj.data.iterators.from_iterator(
    ...   [(np.arange(4.0), np.arange(4))], test=(np.ones(1), np.ones(1)), task='', num_outputs=1,
    ...   num_examples=4
    ... ).train
    >>> split.stream().take(6)[1].tolist()
    [0, 1, 2, 3, 0, 1]
    """
    return Stream(self.source, seed)
