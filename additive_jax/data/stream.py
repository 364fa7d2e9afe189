"""Reads examples from an iterator in order, and says from where to go on.

    pass    0             0             0     1             1
    batch   0 ─┬─┬─┬─┬─   1 ─┬─┬─┬─┬─   2 ─   0 ─┬─┬─┬─┬─   1 …     as the iterator gives them
    step    0     1     2     3     4      5      6      7    …     3 examples each

A place is a pass, a batch of it, and how many examples of that batch are used.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from additive_jax.batches import num_examples
from additive_jax.data.iterables import Source
from additive_jax.data.iterator_state import Reading, decoded, digest, encoded
from additive_jax.data.splits import Examples
from additive_jax.errors import UserError, one_line
from additive_jax.files.quantities import bytes_text

TOGETHER = 32  # single examples that make a batch
MOST_BYTES = 2 * 1024**3  # of a split that is read to its end


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
    self._given, self._largest = 0, 0  # examples of the pass, and of its largest batch
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
        iterable = self._source.iterable(self._epoch, self._seed)
        with self._source.telling(f'pass {self._epoch}', 'an iterable'):
          self._reading = Reading(iterable)
      state = self._reading.state()
      if items := self._items(self._number):
        break
      if not self._number:
        raise UserError(
          f'{self._source.name}: pass {self._epoch} over the iterator gives nothing: expected some '
          'examples, from a new iterable each time'
        )
      self._source.check_end(self._epoch, self._number, self._given, self._largest)
      self._reading, self._epoch, self._number = None, self._epoch + 1, 0
      self._given, self._largest = 0, 0
    place = f'batch {self._number} of pass {self._epoch}'
    self._begin += 0 if self._batch is None else num_examples(self._batch[0])
    self._batch, self._used = self._source.examples(items, place), 0
    mark = {'epoch': self._epoch, 'number': self._number, 'digest': digest(self._batch)}
    mark |= {'given': self._given, 'largest': self._largest}
    size = num_examples(self._batch[0])
    self._given, self._largest = self._given + size, max(self._largest, size)
    if state is not None:
      mark['state'] = encoded(state, self._source.name)
    self._marks.append((self._begin, mark))
    self._number += 1
    return self._batch

  def _items(self, number):
    """Returns what makes a batch: one item, or some single examples; none at the end."""
    assert self._reading is not None
    items = []
    with self._source.telling(f'batch {number} of pass {self._epoch}', 'a pair (x, y)'):
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
        most = f'over {bytes_text(MOST_BYTES)} of examples'
        raise UserError(f'{self._source.name}: {most}: expected fewer, to judge by')
      if not (items := self._items(len(parts))):
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
    # Places of before do not say what their pass gave: then it is taken for enough.
    self._given = place.get('given', self._source.promised)
    self._largest = place.get('largest', 0)
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
    for i in range(number):
      if not self._items(i):
        break

  def _changed(self, place):
    return UserError(
      f'{self._source.name}: batch {place["number"]} of pass {place["epoch"]} is another than when '
      'it was left: expected an iterator that gives the same each time, or that has get_state and '
      'set_state; begin anew with another --workdir'
    )
