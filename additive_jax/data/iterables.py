"""An iterable of examples that is made anew for each pass, and what it has to give."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from additive_jax.batches import named_leaves, num_examples
from additive_jax.data.splits import Examples
from additive_jax.data.values import Expected
from additive_jax.data.weights import Weighted, checked_weights
from additive_jax.errors import UserError, one_line

log = logging.getLogger('additive_jax')

Make = Callable[..., Iterable[Any]]


class Source:
  """An iterable that is made anew for each pass, and what is expected of its batches.

  >>> source = Source(lambda epoch: [(np.full(2, epoch), np.arange(2))], True, 'rows')
  >>> list(source.iterable(epoch=3, seed=0))
  [(array([3, 3]), array([0, 1]))]

  Args:
    make: gives an iterable; arguments named `epoch` and `seed` are given if it has them.
    batched: whether this has batches, or single examples.
    name: what they are called in messages.

  Attributes:
    promised: examples that a pass has at least; 0 is not known.
  """

  def __init__(self, make: Make, batched: bool, name: str):
    self.make, self.batched, self.name = make, batched, name
    self.promised, self._tells_end = 0, False
    self._checks: tuple[tuple[Expected, str], ...] = ()
    self._form: Any = None
    self._names = _arguments(make, name)

  def iterable(self, epoch: int, seed: int) -> Any:
    """Returns what a pass iterates over."""
    values = {'epoch': epoch, 'seed': seed}
    with self.telling(f'pass {epoch}', 'an iterable'):
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

  def promise(self, count: int, *, is_said: bool) -> None:
    """Notes how many examples a pass has: as the user said, or by the iterable's length, which
    takes the last batch for as large as the first."""
    self.promised, self._tells_end = count, is_said

  def checking(self, expected: Expected, name: str) -> Source:
    """Returns the source with one more check."""
    other = Source(self.make, self.batched, self.name)
    other._form, other._checks = self._form, (*self._checks, (expected, name))
    other.promised, other._tells_end = self.promised, self._tells_end
    return other

  @contextlib.contextmanager
  def telling(self, place: str, expected: str) -> Iterator[None]:
    """Turns what the user's code raises into one line that says where."""
    try:
      yield
    except UserError:
      raise
    except Exception as error:
      raise UserError(
        f'{self.name}, {place}: the iterator raises {type(error).__name__}: {one_line(error)}; '
        f'expected {expected}'
      ) from error

  def check_end(self, epoch: int, number: int, given: int, largest: int) -> None:
    """Raises `UserError` for a pass of fewer examples than were promised; warns once where less
    than a batch is missing, as of a loader that drops the last one.

    Args:
      epoch: the pass.
      number: of its batches.
      given: its examples.
      largest: examples of its largest batch.
    """
    missing = self.promised - given
    if missing <= 0:
      return
    told = (
      f'{self.name}: pass {epoch} ends before batch {number}, after {given} examples: expected '
      f'num_examples {self.promised}'
    )
    if missing >= (largest if self.batched else 1):
      raise UserError(f'{told}; the iterator ends early, or num_examples is too large')
    if self._tells_end:
      log.warning('%s; an epoch has as many, and goes on in the next pass', told)
      self._tells_end = False

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
