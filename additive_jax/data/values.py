"""What the values of examples have to be: checked where data enters, once, and told in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, PyTree, Shaped

from additive_jax.batches import is_array, named_leaves
from additive_jax.data.weights import LARGEST, Weighted, checked_weights
from additive_jax.errors import UserError

Values = Shaped[np.ndarray, 'N ...']
CLASSES, TOKENS, NUMBERS = 'classification', 'language', 'regression'
YES_NO, LABELS = 'binary', 'multi_label'


@dataclasses.dataclass(frozen=True)
class Expected:
  """What is known of the examples that a task and a network take.

  Attributes:
    task: 'classification', 'language', 'regression', 'binary' or 'multi_label'; '' is a task of
      one's own, whose targets may be anything.
    num_outputs: classes, labels, or targets of a regression; 0 is not known.
    num_tokens: the size of the vocabulary that x is of; 0 where x is no tokens, or not known.
    target_shape: of one y; None is not known.
    ignore_label: the label that does not count, and may be any; None: all count.
    tokens: of several inputs, the one that is of that vocabulary; '' where that is not known.

  >>> Expected('classification', num_outputs=10).check(np.zeros((3, 4)), np.array([0, -1, 9]))
  Traceback (most recent call last):
  additive_jax.errors.UserError: data: label -1 in 1 of 3 examples, the first in example 1: expected
  0 to 9, one of 10 classes; where -1 means no label: ignore_label of the task,
  config.task.ignore_label
  """

  task: str = ''
  num_outputs: int = 0
  num_tokens: int = 0
  target_shape: tuple[int, ...] | None = None
  ignore_label: int | None = None
  tokens: str = ''

  def check(
    self, x: PyTree[Values], y: PyTree[Values], name: str = 'data', *, whole: bool = True
  ) -> None:
    """Raises `UserError` for inputs or targets that are not what is expected.

    Args:
      x, y: some examples.
      name: what they are called in the message.
      whole: whether they are all there are, see `checked_weights`.
    """
    check_inputs(x, name)
    self.check_targets(x, y, name, whole=whole)

  def check_targets(
    self, x: PyTree[Values], y: PyTree[Values], name: str = 'data', *, whole: bool = True
  ) -> None:
    """Raises `UserError` as `check` does, but for inputs that are not finite.

    Of several inputs the one called `tokens` is looked at.
    """
    if self.num_tokens and self.tokens and isinstance(x, Mapping):
      where = f'{name}: x[{self.tokens!r}]'
      _check_numbers(x[self.tokens], self.num_tokens, 'token', 'in the vocabulary', where)
    if is_array(x) and (self.num_tokens or (self.task == TOKENS and _is_integer(x))):
      _check_numbers(x, self.num_tokens, 'token', 'in the vocabulary', f'{name}: x')
    y = checked_weights(y, name, whole=whole)
    weight, y = (y.weight, y.y) if isinstance(y, Weighted) else (None, y)
    if self.task not in (CLASSES, TOKENS, NUMBERS, YES_NO, LABELS):
      return
    if not is_array(y):
      parts = ', '.join(part for part, _ in named_leaves(y, 'y')) or 'no array'
      raise UserError(f'{name}: targets {parts} of a {self.task}: expected one array, or Weighted')
    shape = self._shape(y)
    if shape is not None and y.shape[1:] != shape:
      sizes = lambda shape: f'[{", ".join(["examples", *map(str, shape)])}]'
      more = '; y[:, 0] has them' if shape == () and y.shape[1:] == (1,) else ''
      raise UserError(f'{name}: targets of shape {list(y.shape)}: expected {sizes(shape)}{more}')
    if whole and self.ignore_label is not None and len(y) and (y == self.ignore_label).all():
      raise UserError(
        f'{name}: every label is {self.ignore_label}, which is ignored: expected some'
      )
    y = self._counting(y, weight)
    if self.task == NUMBERS:
      _check_finite(y, 'target', name)
    elif self.task in (YES_NO, LABELS) or self._is_soft(y):
      _check_shares(y, 'label' if self.task in (YES_NO, LABELS) else 'share of a class', name)
    else:
      word = 'label' if self.task == CLASSES else 'token'
      _check_numbers(y, self.num_outputs, word, 'classes', name)

  def _is_soft(self, y: Values) -> bool:
    """Whether labels are shares of each class, as of mixed examples."""
    return self.task == CLASSES and y.ndim == 2 and y.dtype.kind == 'f'

  def _shape(self, y: Values) -> tuple[int, ...] | None:
    """The shape of one target; None is any."""
    several = (self.num_outputs,) if self.num_outputs else None
    if self._is_soft(y):
      return several
    if self.target_shape is not None or self.task == TOKENS:
      return self.target_shape
    return () if self.task in (CLASSES, YES_NO) else several

  def _counting(self, y: Values, weight: Values | None) -> Values:
    """Returns targets with 0 in place of those that do not count."""
    if weight is not None:
      y = np.where(
        weight.reshape(*weight.shape, *[1] * (y.ndim - weight.ndim)) > 0, y, y.dtype.type(0)
      )
    return y if self.ignore_label is None else np.where(y == self.ignore_label, y.dtype.type(0), y)


def check_inputs(x: PyTree[Values], name: str = 'data') -> None:
  """Raises `UserError` for inputs that are no numbers, or not finite as float32; of several inputs,
  with the name of the one.

  >>> check_inputs(np.array([[1.0, 2.0], [np.nan, 0.0]]))
  Traceback (most recent call last):
  additive_jax.errors.UserError: data: input nan in 1 of 2 examples, the first at [1, 0]: expected
  finite numbers
  """
  for part, leaf in named_leaves(x):
    _check_finite(leaf, 'input', f'{name}: x{part}' if part else name)


def _check_finite(values, word, name):
  kind = values.dtype.kind
  if kind in 'biu':
    return
  if kind == 'f':
    # NaN is what a minimum gives where there is one.
    sound = not values.size or (values.min() >= -LARGEST and values.max() <= LARGEST)
    wrong = lambda a: ~(np.abs(a) <= LARGEST)
  elif kind == 'V' and 'float' in values.dtype.name:  # of ml_dtypes, such as bfloat16
    wrong = lambda a: ~np.isfinite(a.astype(np.float32))
    sound = not wrong(values).any()
  else:
    of = 'real numbers' if kind == 'c' else 'numbers'
    raise UserError(f'{name}: {word}s of type {values.dtype}: expected {of}')
  if not sound:
    raise _refused(values, wrong, word, 'finite numbers', name)


def _check_shares(values, word, name):
  """Raises `UserError` for what is not from 0 to 1."""
  if values.dtype.kind not in 'biuf':
    raise UserError(f'{name}: {word}s of type {values.dtype}: expected numbers from 0 to 1')
  wrong = lambda a: ~((a >= 0) & (a <= 1))
  if values.dtype.kind != 'b' and wrong(values).any():
    raise _refused(values, wrong, word, '0 to 1', name)


def _check_numbers(values, count, word, of, name):
  """Raises `UserError` for labels or tokens that are not integers from 0, below `count`."""
  if not _is_integer(values):
    raise UserError(f'{name}: {word}s of type {values.dtype}: expected integers')
  kind = values.dtype.kind
  end = count or 2**31
  if not values.size or kind == 'b' or (kind == 'u' and end > np.iinfo(values.dtype).max):
    return
  if values.min() < 0 or values.max() >= end:
    expected = f'0 to {count - 1}, one of {count} {of}' if count else '0 or more'
    wrong = lambda a: (a < 0) | (a >= end)
    raise _refused(values, wrong, word, expected + _to_ignore(values[wrong(values)], of), name)


def _to_ignore(wrong, of):
  """Returns what helps where all labels that are wrong are one that may be a mark."""
  first = wrong.flat[0]
  if of == 'in the vocabulary' or (first != -1 and first > -10) or (wrong != first).any():
    return ''
  return f'; where {first} means no label: ignore_label of the task, config.task.ignore_label'


def _is_integer(values):
  return values.dtype.kind in 'iub'


def _refused(
  values: Values,
  wrong: Callable[[Any], Bool[np.ndarray, '...']],
  word: str,
  expected: str,
  name: str,
) -> UserError:
  """Returns the error of values of which some are wrong: the first, where, and how many."""
  where = np.argwhere(wrong(values))
  first = where[0].tolist()
  count = len(np.unique(where[:, 0]))
  place = f'in example {first[0]}' if len(first) == 1 else f'at {first}'
  return UserError(
    f'{name}: {word} {values[tuple(first)]} in {count} of {len(values)} examples, the first '
    f'{place}: expected {expected}'
  )


def check_used(
  labels: Shaped[np.ndarray, 'N'],
  name: str = 'data',
  advice: str = 'leave out examples where {which} no class, or number the classes without gaps',
) -> int:
  """Returns the number of classes of labels that no one has counted: one more than the largest.

  Classes may begin with 1. One that no example has, between others, is taken for a mark such as
  255 that means no class.

  >>> check_used(np.array([0, 1, 1, 2]))
  3
  >>> check_used(np.array([0, 1, 255, 255]))
  Traceback (most recent call last):
  additive_jax.errors.UserError: data: label 255 in 2 of 4 examples, the first in example 2:
  expected 0 to 1, for no example has the label 2; leave out examples where 255 means no class, or
  number the classes without gaps

  Args:
    labels: of all examples.
    name: what they are called in the message.
    advice: what helps, with `{which}` for "255 means" and the like.
  """
  used = np.unique(labels)
  if len(used) == 1:
    raise UserError(f'{name}: every label is {used[0]}: expected at least two classes')
  gap = np.flatnonzero(np.diff(used) > 1)
  if len(gap):
    last = int(used[gap[0]])
    mark, more = used[gap[0] + 1], len(used) - gap[0] - 1
    which = f'{mark} means' if more == 1 else f'labels above {last} mean'
    expected = (
      f'{used[0]} to {last}, for no example has the label {last + 1}; {advice.format(which=which)}'
    )
    raise _refused(labels, lambda a: a > last, 'label', expected, name)
  return int(used[-1]) + 1


def constant_target(y: PyTree[Values]) -> tuple[int, float] | None:
  """Returns the number and the value of the first target of a regression that is the same in all
  examples that count, if there is more than one; None where each varies.

  >>> constant_target(np.array([[1.0, 5.0], [2.0, 5.0]]))
  (1, 5.0)
  """
  if isinstance(y, Weighted):
    counts = y.weight.reshape(len(y.weight), -1).any(1)
    y = jax.tree.map(lambda leaf: leaf[counts], y.y)
  if not is_array(y) or len(y) < 2:
    return None
  y = y.reshape(len(y), -1)
  same = np.flatnonzero((y == y[:1]).all(0))
  return (int(same[0]), float(y[0, same[0]])) if len(same) else None
