"""Sets of examples, in memory or read from their source, and the splits that make a data set."""

from __future__ import annotations

import abc
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Integer, PyTree, Shaped
from numpy.typing import ArrayLike

from additive_jax.batches import described, example_shapes, named_leaves, num_examples
from additive_jax.data.coding import Coding
from additive_jax.data.values import NUMBERS, TOKENS, Expected, check_inputs
from additive_jax.data.weights import checked_weights
from additive_jax.errors import UserError
from additive_jax.files.quantities import bytes_text

log = logging.getLogger('additive_jax')

# x and y of some examples, in their order: an array each, or a pytree of arrays.
Examples = tuple[PyTree[Shaped[np.ndarray, 'N ...']], PyTree[Shaped[np.ndarray, 'N ...']]]
Gather = Callable[[Integer[np.ndarray, 'N']], Examples]


class Split(abc.ABC):
  """Numbered examples. `len(split)` is their number and `split[indices]` gathers some of them.

  `in_memory` is true for `ArraySplit`, whose `x` and `y` are whole arrays, or pytrees of arrays,
  fit to be put on a device once.

  >>> split = ArraySplit(np.arange(6.0), np.arange(6))
  >>> isinstance(split, Split), split.in_memory, len(split)
  (True, True, 6)
  """

  in_memory: bool

  @abc.abstractmethod
  def __len__(self) -> int:
    """Returns the number of examples."""

  @abc.abstractmethod
  def _gather(self, indices: Integer[np.ndarray, 'N']) -> Examples:
    """Returns x and y of the examples `indices`, already known to be in range."""

  def __getitem__(self, indices: ArrayLike) -> Examples:
    """Gathers examples.

    >>> split = ArraySplit(np.array([[0.0], [1.0], [2.0]]), np.array([5, 6, 7]))
    >>> split[np.array([2, 0])]
    (array([[2.], [0.]]), array([7, 5]))

    Args:
      indices: integers of any shape in [0, len(self)), for example [steps, batch].

    Returns:
      x of shape `indices.shape + (shape of one x)` and y of shape `indices.shape + (shape of one
      y)`; of pytrees each array.

    Raises:
      TypeError: `indices` are not integers.
      IndexError: an index is negative or not below `len(self)`.
    """
    indices = np.asarray(indices)
    if indices.dtype.kind not in 'iu':
      raise TypeError(f'indices of type {indices.dtype}; expected an array of integers')
    if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
      raise IndexError(
        f'indices from {indices.min()} to {indices.max()}; expected 0 to {len(self) - 1}'
      )
    shaped = lambda a: a.reshape(indices.shape + a.shape[1:])
    return jax.tree.map(shaped, self._gather(indices.ravel()))

  def checking(self, expected: Expected, name: str) -> Split:
    """Returns the same examples, of which each batch is checked when it is read.

    Args:
      expected: of them.
      name: what they are called when they are refused.
    """
    return SourceSplit(len(self), self.__getitem__, expected, name)


class ArraySplit(Split):
  """Examples in memory: `x` and `y`, arrays or pytrees of arrays with the example as leading axis.

  Raises `UserError` for arrays of different lengths, inputs that are no finite numbers, or weights
  that make no sense (see `Weighted`); messages call these `name`. The arrays are checked once, so
  they are not to be changed afterwards.

  >>> split = ArraySplit(np.zeros((6, 4)), np.arange(6))
  >>> x, y = split[np.array([4, 1])]
  >>> len(split), x.shape, y.tolist()
  (6, (2, 4), [4, 1])
  >>> ArraySplit({'source': np.zeros((6, 4)), 'target': np.zeros((6, 3))}, np.arange(6))
  ArraySplit(6 examples, x['source'] [4] float64, x['target'] [3] float64, y [] int64)
  """

  in_memory = True

  def __init__(self, x: PyTree, y: PyTree, name: str = ''):
    y = checked_weights(y, name or 'y')
    leaves = named_leaves(x, 'x'), named_leaves(y, 'y')
    shapes = [(name, np.shape(leaf)) for part in leaves for name, leaf in part]
    if not all(leaves) or not all(shape and shape[0] == shapes[0][1][0] for _, shape in shapes):
      told = [f'{name} of shape {list(shape)}' for name, shape in shapes]
      told = [*told[:3], '…', told[-1]] if len(told) > 5 else told
      raise UserError(
        f'{" and ".join(told) or "x and y without arrays"}: expected the examples along the first '
        f'axis, as many of {"both" if len(shapes) == 2 else "each"}'
      )
    check_inputs(jax.tree.map(np.asarray, x), 'x')
    self.x = x
    self.y = y

  def __len__(self) -> int:
    return num_examples(self.x)

  def __repr__(self) -> str:
    parts = described(self.x, 'x'), described(self.y, 'y')
    return f'ArraySplit({len(self)} examples, {", ".join(parts)})'

  def _gather(self, indices: Integer[np.ndarray, 'N']) -> Examples:
    return jax.tree.map(lambda a: a[indices], (self.x, self.y))


class SourceSplit(Split):
  """Examples that stay where they are, in files or a tfds source, and are read when asked for.

  >>> split = SourceSplit(1000, lambda indices: (indices / 10.0, indices % 2))
  >>> split
  SourceSplit(1000 examples, read as needed)
  >>> split[np.array([30, 5])]
  (array([3. , 0.5]), array([0, 1]))

  Args:
    num_examples: how many there are.
    gather: reads x and y for a flat, non-empty array of indices in range.
    expected: what examples are checked against whenever some are read; None is not at all.
    name: what they are called when they are refused.
  """

  in_memory = False

  def __init__(
    self, num_examples: int, gather: Gather, expected: Expected | None = None, name: str = 'data'
  ):
    self._num_examples = num_examples
    self._read = gather
    self.expected = expected
    self._name = name

  def __len__(self) -> int:
    return self._num_examples

  def __repr__(self) -> str:
    return f'SourceSplit({len(self)} examples, read as needed)'

  def _gather(self, indices: Integer[np.ndarray, 'N']) -> Examples:
    x, y = self._read(indices if len(indices) else np.zeros(1, np.int64))
    if self.expected is not None:
      x, y = jax.tree.map(np.asarray, (x, y))
      self.expected.check(x, y, self._name, whole=False)
    return (x, y) if len(indices) else jax.tree.map(lambda a: a[:0], (x, y))


def checked(split: Split, expected: Expected, name: str = 'data') -> Split:
  """Returns a split whose examples are what is expected of them.

  One in memory is checked now, once for all that is expected of it in the same words, and returned
  as it is. Of another each batch is checked when it is read.

  >>> split = ArraySplit(np.zeros((3, 2)), np.array([0, 1, 2]))
  >>> checked(split, Expected('classification', num_outputs=3)) is split
  True
  >>> checked(split, Expected('classification', num_outputs=2), 'rows, train')
  Traceback (most recent call last):
  additive_jax.errors.UserError: rows, train: label 2 in 1 of 3 examples, the first in example 2:
  expected 0 to 1, one of 2 classes

  Raises:
    UserError: the value, how many there are, the first place, and what was expected.
  """
  known = vars(split).setdefault('_known', set())
  if expected in known:
    return split
  if not split.in_memory:
    far = split.checking(expected, name)
    vars(far)['_known'] = known | {expected}
    return far
  x, y = (jax.tree.map(np.asarray, getattr(split, part)) for part in 'xy')
  if not isinstance(split, ArraySplit):
    check_inputs(x, name)
  expected.check_targets(x, y, name)
  known.add(expected)
  return split


def fit(spec: str, num_examples: int, num_bytes: int, gather: Gather, memory_limit: int) -> Split:
  """Returns an `ArraySplit` when `num_bytes`, those of x, fit the limit, else a `SourceSplit`."""
  if num_bytes <= memory_limit:
    return ArraySplit(*gather(np.arange(num_examples)))
  message = '%s: %s exceed the memory limit of %s: read as needed'
  log.info(message, spec, bytes_text(num_bytes), bytes_text(memory_limit))
  return SourceSplit(num_examples, gather)


def take(split: Split, count: int) -> Split:
  """Returns `count` examples of a split, spaced evenly over it; all of them for 0.

  >>> take(ArraySplit(np.arange(6.0), np.arange(6)), 3).y
  array([0, 2, 4])

  Raises:
    UserError: for more than there are.
  """
  if not 0 <= count <= len(split):
    raise UserError(f'{count} examples: expected 0, for all, to {len(split)}')
  if count in (0, len(split)):
    return split
  chosen = np.arange(count) * len(split) // count
  if split.in_memory:
    return ArraySplit(*split[chosen])
  return SourceSplit(count, lambda indices: split[chosen[indices]])


@dataclasses.dataclass(frozen=True)
class Data:
  """A data set.

  >>> aj.data.load('digits')
  Data('digits', classification, 10 outputs, train=ArraySplit(1150 examples, x [8, 8, 1] float32,
       y [] int32), valid=ArraySplit(287 examples, x [8, 8, 1] float32, y [] int32),
       test=ArraySplit(360 examples, x [8, 8, 1] float32, y [] int32))

  Attributes:
    name: the text it was loaded by, such as `digits` or `text:book.txt`.
    task: `classification` (y int32, one class per example), `language` (x and y uint8, y the next
      bytes; or tokens, int32), `regression` (y float32, one row of targets per example), `binary`
      (y 0 or 1) or `multi_label` (a row of 0 and 1 per example); or a `Task` or a loss. Any other
      text is a task of your own, whose targets may be anything.
    train: examples to learn from.
    test: examples to judge by; none of them is in `train`.
    num_outputs: classes, 256 for bytes, the size of a vocabulary, or the number of targets of a
      regression.
    class_names: the name of every class, where the source has them.
    valid: examples to choose by, none of them in `train` or `test`; None where nothing was held
      out, so that what is chosen is chosen on `test`.
    coding: how the columns of a table became x and y, to do the same with new rows, or how targets
      were standardised; None where neither was.
    ignore_label: one that labels may be, since the task that is made of the name leaves it out.
    num_tokens: of a language, how many different tokens inputs may be, where those are others than
      targets, as where each token is given a tag; 0 is `num_outputs`.
  """

  name: str
  task: Any
  train: Split
  test: Split
  num_outputs: int
  class_names: tuple[str, ...] | None = None
  valid: Split | None = None
  coding: Coding | None = None
  ignore_label: int | None = None
  num_tokens: int = 0

  def __post_init__(self):
    """Raises `UserError` for labels, tokens or targets that the task does not have, or inputs that
    are not finite; of a split that is read as needed they are checked when read."""
    task = self.task_name
    ignored = getattr(self.task, 'ignore_label', self.ignore_label)
    num_tokens = self.num_tokens or self.num_outputs if task == TOKENS else 0
    expected = Expected(task, self.num_outputs, num_tokens, ignore_label=ignored)
    for part, split in self.splits.items():
      object.__setattr__(self, part, checked(split, expected, f'{self.name}, {part}'))
      _check_alike(self, part)

  def __repr__(self) -> str:
    splits = ', '.join(f'{part}={split!r}' for part, split in self.splits.items())
    task = self.task_name or getattr(self.task, '__name__', 'a task of its own')
    return f'Data({self.name!r}, {task}, {self.num_outputs} outputs, {splits})'

  @property
  def task_name(self) -> str:
    """The name of the task; '' for a function, which is a loss of your own."""
    return self.task if isinstance(self.task, str) else getattr(self.task, 'name', '')

  @property
  def target_units(self) -> dict[str, float]:
    """What an error of 1 is in the units of each target, by its name, of a regression whose targets
    were standardised; else {}.

    >>> list(aj.data.load('tabular:linnerud').target_units)
    ['Weight', 'Waist', 'Pulse']
    """
    units = {} if self.coding is None or self.task_name != NUMBERS else self.coding.units
    return {} if set(units.values()) == {1.0} else units

  @property
  def splits(self) -> dict[str, Split]:
    """The splits by name: train, valid where there is one, test."""
    splits: dict[str, Split | None]
    splits = {'train': self.train, 'valid': self.valid, 'test': self.test}
    return {part: split for part, split in splits.items() if split is not None}

  @property
  def example_shape(self) -> PyTree:
    """The shape of one x, without a batch axis; of several inputs, a pytree of shapes."""
    return example_shapes(self.train[np.zeros(1, np.int64)][0])


def _check_alike(data: Data, part: str) -> None:
  """Raises `UserError` for a split in memory whose inputs are of another form than those to learn
  from; the lengths of texts and the sizes of images may differ."""
  split = data.splits[part]
  if not (split.in_memory and data.train.in_memory and len(split) and len(data.train)):
    return
  leaves = [named_leaves(of[np.zeros(1, np.int64)][0], 'x') for of in (data.train, split)]
  form = lambda leaf: (leaf.ndim, None if leaf.dtype.kind in 'iu' else leaf.shape[-1:])
  if len({tuple((name, *form(leaf)) for name, leaf in of) for of in leaves}) > 1:
    told = [', '.join(f'{name} {list(leaf.shape[1:])}' for name, leaf in of) for of in leaves]
    raise UserError(f'{data.name}, {part}: {told[1]}: expected {told[0]}, as in train')
