"""Columns of a table as numbers: standardised, one-hot, or classes; the same way for new rows.

N is a number of rows, F of the features that a column gives, C of targets.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped

from additive_jax.errors import UserError

Table = Mapping[str, Shaped[np.ndarray, 'N ...']]
MOST_CATEGORIES = 100  # of a column of texts
CHOOSE = 'config.data.columns names the columns to use'


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
  """How one column becomes features.

  Numbers are shifted and scaled: to mean 0 and deviation 1 over the training rows, or for bytes of
  images (three axes or more) to [0, 1]. Texts become one column of 0 and 1 for each category.

  Of a column that fills, a number that is missing becomes the mean, 0, and one feature more says of
  each row whether it was; a text that is missing, or none of the categories, is 0 in all.

  Attributes:
    name: of the column.
    mean, deviation: what is subtracted, and what is divided by.
    categories: the texts, sorted; () for numbers.
    fills: whether values may be missing.

  >>> colour = Column('colour', categories=('blue', 'red'))
  >>> colour(np.array(['red', 'blue'])).tolist()
  [[0.0, 1.0], [1.0, 0.0]]
  """

  name: str
  mean: Any = 0.0
  deviation: Any = 1.0
  categories: tuple[str, ...] = ()
  fills: bool = False

  @classmethod
  def of(
    cls, name: str, values: Shaped[np.ndarray, 'N ...'], train: Int[np.ndarray, 'rows']
  ) -> Column:
    """Returns how a column is coded, from all its values and the places of the training rows.

    It fills where values are missing among these.

    >>> Column.of('age', np.array([1.0, 3.0, 50.0]), np.array([0, 1])).mean.tolist()
    2.0

    Raises:
      UserError: for more than 100 categories, or values of no type that is known.
    """
    missing = is_missing(values)
    fills = bool(missing.any())
    if values.dtype.kind == 'O':
      categories = tuple(sorted(set(values[~missing].tolist())))
      if len(categories) > MOST_CATEGORIES:
        raise UserError(
          f'column {name!r} has {len(categories)} different texts, such as {categories[0]!r}: '
          f'expected numbers, or at most {MOST_CATEGORIES} categories; {CHOOSE}'
        )
      return cls(name, categories=categories, fills=fills)
    if values.ndim > 2:
      return cls(name, deviation=255.0 if values.dtype == np.uint8 else 1.0)
    seen, there = values[train].astype(np.float64), ~missing[train]
    if not there.any(axis=0).all():
      raise UserError(
        f'column {name!r} has no value in any of the {len(train)} training rows: expected some; '
        f'{CHOOSE}'
      )
    mean, deviation = seen.mean(axis=0, where=there), seen.std(axis=0, where=there)
    # What is constant up to rounding has a deviation of about 1e-17, which would blow noise up.
    constant = deviation <= 1e-12 * np.abs(seen).max(axis=0, initial=0.0, where=there)
    return cls(name, mean, np.where(constant, 1.0, deviation), fills=fills)

  def described(self) -> dict[str, Any]:
    """Returns the column as JSON values, of which `of_description` makes it again."""
    numbers = {name: np.asarray(getattr(self, name)).tolist() for name in ('mean', 'deviation')}
    return {'name': self.name, **numbers, 'categories': self.categories, 'fills': self.fills}

  @classmethod
  def of_description(cls, values: Mapping[str, Any]) -> Column:
    """Returns the column that `described` gave.

    >>> Column.of_description(Column('age', 40.0, 10.0).described())(np.array([50])).tolist()
    [[1.0]]
    """
    mean, deviation = (np.array(values[name], np.float64) for name in ('mean', 'deviation'))
    categories = tuple(map(str, values['categories']))
    return cls(str(values['name']), mean, deviation, categories, bool(values['fills']))

  @property
  def features(self) -> tuple[str, ...]:
    """The names of what the column becomes.

    >>> Column('colour', categories=('blue', 'red')).features
    ('colour=blue', 'colour=red')
    """
    if self.categories:
      return tuple(f'{self.name}={category}' for category in self.categories)
    size = np.size(self.mean)
    names = (
      (self.name,) if not np.ndim(self.mean) else tuple(f'{self.name}[{i}]' for i in range(size))
    )
    return names + tuple(f'{name} missing' for name in names if self.fills)

  def __call__(self, values: Shaped[np.ndarray, 'N ...']) -> Float32[np.ndarray, 'N ...']:
    """Returns the features [N, F] of some rows, or [N, ...] of a column of images.

    Raises:
      UserError: for a value that is missing, or a text that is none of the categories, unless the
        column fills; or a number that is not finite.
    """
    missing = is_missing(values)
    if missing.any() and not self.fills:
      raise UserError(
        f'column {self.name!r} has no value in row {first_row(missing)}: expected one in every row'
      )
    if self.categories:
      return self._one_hot(values)
    if values.dtype.kind not in 'iufb':
      raise UserError(f'column {self.name!r} of texts, such as {values[0]!r}: expected numbers')
    with np.errstate(over='ignore'):
      scaled = ((values - self.mean) / self.deviation).astype(np.float32)
    wrong = ~np.isfinite(scaled) & ~missing
    if wrong.any():
      told = f'column {self.name!r} is {values[wrong][0]} in row {first_row(wrong)}'
      raise UserError(f'{told}: expected finite numbers')
    scaled = np.where(missing, np.float32(0), scaled) if self.fills else scaled
    scaled = scaled if scaled.ndim > 1 else scaled[:, None]
    marks = missing.reshape(scaled.shape).astype(np.float32)
    return np.concatenate([scaled, marks], axis=1) if self.fills else scaled

  def _one_hot(self, values: Shaped[np.ndarray, 'N']) -> Float32[np.ndarray, 'N C']:
    index = {category: i for i, category in enumerate(self.categories)}
    rows = np.array([index.get(value, len(index)) for value in values.tolist()], np.int64)
    if not self.fills and (unknown := rows == len(index)).any():
      value = values[first_row(unknown) - 1]
      raise UserError(f'{value!r} in column {self.name!r}: expected one of {self.categories}')
    return np.eye(len(index) + 1, dtype=np.float32)[rows, :-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Coding:
  """How a table became the x and y of a data set.

  >>> columns = Column('age', 40.0, 10.0), Column('colour', categories=('blue', 'red'))
  >>> coding = Coding(columns, (Column('price', 100.0, 50.0),))
  >>> coding.features
  ('age', 'colour=blue', 'colour=red')
  >>> coding({'age': [50], 'colour': ['red']}).tolist()
  [[1.0, 0.0, 1.0]]
  >>> coding.decoded(np.array([[-1.0]])).tolist()
  [[50.0]]

  Attributes:
    columns: of the input, in order.
    targets: of a regression, in order.
    classes: the labels of a classification, in order; () for others.
  """

  columns: tuple[Column, ...]
  targets: tuple[Column, ...] = ()
  classes: tuple[Any, ...] = ()

  def described(self) -> dict[str, Any]:
    """Returns the coding as JSON values, of which `of_description` makes it again."""
    parts = {name: [c.described() for c in getattr(self, name)] for name in ('columns', 'targets')}
    return {**parts, 'classes': self.classes}

  @classmethod
  def of_description(cls, values: Mapping[str, Any]) -> Coding:
    """Returns the coding that `described` gave.

    >>> Coding.of_description(Coding((Column('age'),), classes=('no', 'yes')).described()).classes
    ('no', 'yes')
    """
    of = lambda name: tuple(map(Column.of_description, values[name]))
    return cls(of('columns'), of('targets'), tuple(values['classes']))

  @property
  def features(self) -> tuple[str, ...]:
    """What each place of x is called."""
    return tuple(name for column in self.columns for name in column.features)

  @property
  def units(self) -> dict[str, float]:
    """What an error of 1 is in the units of each target of a regression, by its name.

    >>> Coding((), (Column('price', 100.0, 50.0),)).units
    {'price': 50.0}
    """
    return {
      name: float(deviation)
      for target in self.targets
      for name, deviation in zip(target.features, np.ravel(target.deviation))
    }

  def __call__(self, table: Any) -> Float32[np.ndarray, 'N ...']:
    """Returns x of new rows, coded as the training rows were.

    Args:
      table: the input's columns by name, a data frame or a dict.

    Raises:
      UserError: for a missing column, or a value that is missing or a category that was not there
        in a column that fills none.
    """
    missing = [column.name for column in self.columns if column.name not in table]
    if missing:
      raise UserError(f'a table without {missing[0]!r}: expected a column of that name')
    parts = [column(plain(np.asarray(table[column.name]))) for column in self.columns]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

  def decoded(self, outputs: Shaped[np.ndarray, 'N C']) -> Shaped[np.ndarray, 'N ...']:
    """Returns what outputs of a network mean: predictions [N, C] of a regression in the units of
    the table, or of a classification the likeliest label [N].

    >>> Coding((), classes=('no', 'yes')).decoded(np.array([[0.1, 2.0]])).tolist()
    ['yes']
    """
    outputs = np.asarray(outputs)
    if self.classes:
      return np.array(self.classes)[outputs.argmax(-1)]
    scale = np.concatenate([np.ravel(target.deviation) for target in self.targets])
    shift = np.concatenate([np.ravel(target.mean) for target in self.targets])
    return outputs * scale + shift


def coded_labels(values: Shaped[np.ndarray, 'N']) -> tuple[Int[np.ndarray, 'N'], tuple[Any, ...]]:
  """Returns the class of each label, and the labels in order.

  >>> coded_labels(np.array([30, 10, 30]))
  (array([1, 0, 1], dtype=int32), (10, 30))
  """
  labels, classes = np.unique(values, return_inverse=True)
  return classes.reshape(-1).astype(np.int32), tuple(labels.tolist())


def plain(values: Shaped[np.ndarray, 'N ...']) -> Shaped[np.ndarray, 'N ...']:
  """Returns objects that are all numbers, or missing, as an array of numbers; others as they are.

  >>> plain(np.array([3, None, True], object)).tolist()
  [3.0, nan, 1.0]
  """
  if values.dtype.kind != 'O' or values.ndim > 1:
    return values
  kept = [value for value in values.tolist() if not _is_none(value)]
  if not kept or not all(isinstance(value, numbers.Real) for value in kept):
    return values
  if len(kept) == len(values):
    return np.array(kept)
  return np.array([np.nan if _is_none(value) else value for value in values.tolist()], float)


def is_missing(values: Shaped[np.ndarray, 'N ...']) -> Bool[np.ndarray, 'N ...']:
  """Returns where there is no value: None, NaN, or pandas' NA and NaT.

  >>> is_missing(np.array(['red', None], object)).tolist()
  [False, True]
  """
  if values.dtype.kind == 'O':
    return np.array([_is_none(value) for value in values.tolist()], bool).reshape(values.shape)
  return np.isnan(values) if values.dtype.kind == 'f' else np.zeros(values.shape, bool)


def _is_none(value: Any) -> bool:
  try:
    return value is None or bool(value != value)
  except TypeError:  # of NA, which has no truth
    return True
  except ValueError:  # of an array
    return False


def first_row(wrong: Bool[np.ndarray, 'N ...']) -> int:
  """Returns the number of the first row in which something is wrong, from 1.

  >>> first_row(np.array([[False, False], [False, True]]))
  2
  """
  return int(np.argwhere(wrong)[0][0]) + 1
