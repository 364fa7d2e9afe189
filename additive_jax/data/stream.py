"""Reads examples from an iterator in order, and says from where to go on.

    pass    0             0             0     1             1
    batch   0 ─┬─┬─┬─┬─   1 ─┬─┬─┬─┬─   2 ─   0 ─┬─┬─┬─┬─   1 …     as the iterator gives them
    step    0     1     2     3     4      5      6      7    …     3 examples each

A place is a pass, a batch of it, and how many examples of that batch are used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from additive_jax.batches import named_leaves, num_examples
from additive_jax.data.iterator_state import Reading, decoded, digest, encoded
from additive_jax.data.splits import Examples
from additive_jax.data.values import Expected
from additive_jax.data.weights import Weighted, checked_weights
from additive_jax.errors import UserError, one_line

Make = Callable[..., Iterable[Any]]
TOGETHER = 32  # single examples that make a batch
MOST_BYTES = 2 * 1024**3  # of a split that is read to its end


class Source:
  """An iterable that is made anew for each pass, and what is expected of its batches.

  >>> source = Source(lambda epoch: [(np.full(2, epoch), np.arange(2))], True, 'rows')
  >>> list(source.iterable(epoch=3, seed=0))
  [(array([3, 3]), array([0, 1]))]

  Args:
    make: gives an iterable; arguments named `epoch` and `seed` are given if it has them.
    batched: whether this has batches, or single examples.
    name: what they are called in messages.
  """

  def __init__(self, make: Make, batched: bool, name: str):
    self.make, self.batched, self.name = make, batched, name
    self._checks: tuple[tuple[Expected, str], ...] = ()
    self._form: Any = None
    self._names = _arguments(make, name)

  def iterable(self, epoch: int, seed: int) -> Any:
    """Returns what a pass iterates over."""
    values = {'epoch': epoch, 'seed': seed}
    made = self.make(**{name: values[name] for name in self._names})
    if not isinstance(made, Iterable):
      raise UserError(f'{self.name}: {type(made).__name__}: expected an iterable of pairs (x, y)')
    return made

  def length(self, first: Examples) -> int:
    """Returns the examples of a pass, as the iterable's length says."""
    try:
      length = len(self.iterable(0, 0))
    except TypeError:
      raise UserError(
        f'{self.name}: num_examples None of an iterable without a length: expected the number of '
        'examples of one pass'
      ) from None
    return length * (num_examples(first[0]) if self.batched else 1)

  def checking(self, expected: Expected, name: str) -> Source:
    """Returns the source with one more check."""
    other = Source(self.make, self.batched, self.name)
    other._form, other._checks = self._form, (*self._checks, (expected, name))
    return other

  def examples(self, items: list[Any], place: str) -> Examples:
    """Returns a batch, of one item or of several single examples, after a look at it."""
    pairs = [pair(item, f'{self.name}, {place}') for item in items]
    if self.batched:
      batch = pairs[0]
      sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
      if len(sizes) != 1 or () in sizes or (0,) in sizes:
        shapes = [f'{n} {list(np.shape(a))}' for part in 'xy' for n, a in _leaves(batch, part)]
        raise UserError(
          f'{self.name}, {place}: {", ".join(shapes)}: expected the examples along the first axis, '
          'as many of each; batched=False is for single ones'
        )
    else:
      forms = [_form(pair, 0) for pair in pairs]
      self._check_same(forms[0], forms, place)
      batch = jax.tree.map(lambda *leaves: np.stack(leaves), *pairs)
    batch = batch[0], checked_weights(batch[1], f'{self.name}, {place}', whole=False)
    self._form = self._form or _form(batch, 1)
    self._check_same(self._form, [_form(batch, 1)], place)
    self.check(batch, place)
    return batch

  def _check_same(self, first: Any, forms: list[Any], place: str) -> None:
    """Raises `UserError` for examples of another form than the first ones."""
    for form in forms:
      if form != first:
        raise UserError(
          f'{self.name}, {place}: an example of {_told(form)}: expected {_told(first)}, as before'
        )

  def check(self, batch: Examples, place: str) -> None:
    """Raises `UserError` for values that are not what is expected."""
    for expected, name in self._checks:
      expected.check(*batch, f'{name}, {place}', whole=False)


def _leaves(batch, part):
  return named_leaves(batch['xy'.index(part)], part)


def _form(batch: Examples, axes: int) -> Any:
  """Returns structure, shapes and types of one example."""
  leaves = [*_leaves(batch, 'x'), *_leaves(batch, 'y')]
  shapes = tuple((name, np.shape(leaf)[axes:], str(leaf.dtype)) for name, leaf in leaves)
  return jax.tree.structure(batch), shapes


def _told(form: Any) -> str:
  return ', '.join(f'{name} {list(shape)} {dtype}' for name, shape, dtype in form[1])


def pair(item: Any, name: str) -> Examples:
  """Returns x and y of what an iterator gave, as NumPy arrays.

  >>> pair(([1.0, 2.0], 3), 'rows')
  (array([1., 2.]), array(3))

  Raises:
    UserError: for anything but a pair.
  """
  if not isinstance(item, tuple | list) or isinstance(item, Weighted) or len(item) != 2:
    many = isinstance(item, tuple | list)
    given = f'{len(item)} values' if many else type(item).__name__
    raise UserError(f'{name}: {given}: expected pairs (x, y); weights go into y, see Weighted')
  is_list = lambda part: isinstance(part, list)
  x, y = (jax.tree.map(np.asarray, part, is_leaf=is_list) for part in item)
  return x, y


def _arguments(make: Make, name: str) -> list[str]:
  """Returns which of `epoch` and `seed` a function takes."""
  try:
    parameters = inspect.signature(make).parameters
  except (TypeError, ValueError):  # of some builtins
    return []
  other = [
    key
    for key, one in parameters.items()
    if one.default is one.empty
    and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    and key not in ('epoch', 'seed')
  ]
  if other:
    raise UserError(
      f'{name}: a function of {", ".join(other)}: expected one of nothing, or of epoch and seed'
    )
  return [key for key in ('epoch', 'seed') if key in parameters]


class Stream:
  """Reads the examples of a source in order, pass after pass.

  >>> source = Source(lambda epoch: [(np.full(4, epoch), np.arange(4))], True, 'rows')
  >>> stream = Stream(source)
  >>> stream.take(3)[1].tolist(), stream.take(3)[1].tolist()
  ([0, 1, 2], [3, 0, 1])
  >>> place = stream.place(3)
  >>> again = Stream(source)
  >>> again.restore(place)
  >>> again.take(3)[1].tolist()
  [3, 0, 1]

  Attributes:
    position: examples taken.
  """

  def __init__(self, source: Source, seed: int = 0):
    self._source, self._seed = source, seed
    self._rewind()

  def _rewind(self):
    self._reading: Reading | None = None
    self._epoch, self._number = 0, 0  # of the batch that is read next
    self._batch: Examples | None = None
    self._begin, self._used = 0, 0  # where the batch begins, and what is taken of it
    self._marks: list[tuple[int, dict[str, Any]]] = []
    self.position = 0

  def take(self, count: int) -> Examples:
    """Returns the next `count` examples, at least one.

    Raises:
      UserError: for an iterator that ends without an example, or gives other examples than before.
    """
    parts, missing = [], count
    while missing:
      if self._batch is None or self._used == num_examples(self._batch[0]):
        self.take_batch()
      batch, used = self._batch, self._used
      assert batch is not None
      end = min(used + missing, num_examples(batch[0]))
      parts.append(jax.tree.map(lambda a, i=used, j=end: a[i:j], batch))
      missing -= end - used
      self._used = end
      self.position += end - used
    if len(parts) == 1:
      return parts[0]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

  def take_batch(self) -> Examples:
    """Returns the next batch as it comes; `take` goes on within it."""
    while True:
      if self._reading is None:
        self._reading = Reading(self._source.iterable(self._epoch, self._seed))
      state = self._reading.state()
      if items := self._items():
        break
      if not self._number:
        raise UserError(
          f'{self._source.name}: pass {self._epoch} over the iterator gives nothing: expected some '
          'examples, from a new iterable each time'
        )
      self._reading, self._epoch, self._number = None, self._epoch + 1, 0
    place = f'batch {self._number} of pass {self._epoch}'
    self._begin += 0 if self._batch is None else num_examples(self._batch[0])
    self._batch, self._used = self._source.examples(items, place), 0
    mark = {'epoch': self._epoch, 'number': self._number, 'digest': digest(self._batch)}
    if state is not None:
      mark['state'] = encoded(state, self._source.name)
    self._marks.append((self._begin, mark))
    self._number += 1
    return self._batch

  def _items(self):
    """Returns what makes the next batch: one item, or some single examples; none at the end."""
    assert self._reading is not None
    items = []
    for item in self._reading.iterator:
      items.append(item)
      if self._source.batched or len(items) == TOGETHER:
        break
    return items

  def whole(self) -> Examples:
    """Returns all examples of one pass.

    Raises:
      UserError: for more than 2 GiB.
    """
    parts, size = [self.take_batch()], 0
    while True:
      size += sum(leaf.nbytes for leaf in jax.tree.leaves(parts[-1]))
      if size > MOST_BYTES:
        raise UserError(f'{self._source.name}: over 2 GiB of examples: expected fewer, to judge by')
      if not (items := self._items()):
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
      parts.append(self._source.examples(items, f'batch {len(parts)}'))

  def place(self, position: int) -> dict[str, Any]:
    """Returns a place to go on from, as JSON values: {} is the beginning.

    Args:
      position: examples that were taken there; not before what `forget` was told.
    """
    marks = [(begin, mark) for begin, mark in self._marks if begin < position]
    if not marks:
      return {}
    begin, mark = marks[-1]
    return {'position': position, 'used': position - begin, **mark}

  def forget(self, position: int) -> None:
    """Drops what only places before a position need."""
    later = [i for i, (begin, _) in enumerate(self._marks) if begin < position]
    self._marks = self._marks[later[-1] if later else 0 :]

  def restore(self, place: dict[str, Any]) -> None:
    """Goes on from a place that `place` gave.

    Raises:
      UserError: for a place of another kind, or an iterator that gives another batch there.
    """
    self._rewind()
    if not place:
      return
    self._epoch = place['epoch']
    iterable = self._source.iterable(self._epoch, self._seed)
    state = decoded(place['state']) if 'state' in place else None
    try:
      self._reading = Reading(iterable, state)
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
      if isinstance(error, UserError):
        raise
      raise UserError(
        f'{self._source.name}: the iterator refuses the state that it gave ({one_line(error)}): '
        'expected it to be made as before'
      ) from error
    if state is None or not self._reading.says_state:
      self._reading = Reading(self._source.iterable(self._epoch, self._seed))
      self._skip(place['number'])
    self._number = place['number']
    self._begin = place['position'] - place['used']
    ended = self._epoch
    batch = self.take_batch()
    if self._epoch != ended or digest(batch) != place['digest']:
      raise self._changed(place)
    self._used, self.position = place['used'], place['position']

  def seek(self, position: int) -> None:
    """Goes to a position without a place, by reading on, or from the beginning."""
    if position < self.position:
      self._rewind()
    while self.position < position:
      self.take(min(position - self.position, 4096))
      self.forget(self.position)

  def _skip(self, number):
    """Passes over the first batches of a pass."""
    for _ in range(number):
      if not self._items():
        break

  def _changed(self, place):
    return UserError(
      f'{self._source.name}: batch {place["number"]} of pass {place["epoch"]} is another than when '
      'it was left: expected an iterator that gives the same each time, or that has get_state and '
      'set_state; begin anew with another --workdir'
    )
