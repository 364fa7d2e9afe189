"""Files that hold tables: columns of CSV and Parquet, arrays of NPZ."""

from __future__ import annotations

import dataclasses
import difflib
import gzip
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped

from additive_jax.data.coding import first_row, is_missing, plain
from additive_jax.errors import UserError, one_line, user_path

ENDS = ('.csv', '.csv.gz', '.tsv', '.tsv.gz', '.parquet', '.npz')
SEPARATORS = ',;\t|'
SUFFIXES = {'_train': 'train', '_valid': 'valid', '_val': 'valid', '_test': 'test'}


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
  """A column as it is in its file.

  Attributes:
    name: of the column.
    values: numbers, or texts as objects.
    missing: in which rows nothing stands, so far as the file says it; None for nowhere.
    parts: 'train', 'valid' or 'test' for each row, where the file has them apart.
  """

  name: str
  values: Shaped[np.ndarray, 'N ...']
  missing: Shaped[np.ndarray, 'N'] | None = None
  parts: Shaped[np.ndarray, 'N'] | None = None

  def gaps(self) -> Bool[np.ndarray, 'N']:
    """Returns in which rows a value is missing; NaN in an array of floats is one, too."""
    gaps = is_missing(self.values).reshape(len(self.values), -1)
    gaps = np.asarray(gaps.any(axis=1))
    return gaps if self.missing is None else gaps | self.missing

  def of_rows(self, rows: Bool[np.ndarray, 'N']) -> Values:
    """Returns the values of some rows."""
    cut = lambda array: None if array is None else array[rows]
    return Values(self.name, plain(self.values[rows]), cut(self.missing), cut(self.parts))

  def checked(self, spec: str, *, gaps: bool = False) -> Shaped[np.ndarray, 'N ...']:
    """Returns the values: numbers, all of them finite, or texts.

    >>> Values('age', np.array([1.0, np.inf])).checked('file:a.csv')
    Traceback (most recent call last):
    additive_jax.errors.UserError: file:a.csv: 'age' is inf in row 2: expected finite numbers

    Args:
      spec: what the file is called in messages.
      gaps: whether values may be missing: NaN, or of texts None.

    Raises:
      UserError: with the number of the first row that is neither, from 1.
    """
    values, told = self.values, f'{spec}: {self.name!r}'
    if values.dtype.kind in 'US':
      return values.astype(str).astype(object)
    if values.dtype.kind == 'O':
      return _texts(told, values, gaps)
    if values.dtype.kind not in 'iufb':
      raise UserError(f'{told} is of type {values.dtype}: expected numbers or texts')
    sound = np.isfinite(values) | (is_missing(values) if gaps else False)
    if not sound.all():
      place = np.argwhere(~sound)[0]
      told = f'{told} is {values[tuple(place)]} in row {place[0] + 1}'
      raise UserError(f'{told}: expected finite numbers')
    return values


def _texts(told: str, values: Shaped[np.ndarray, 'N'], gaps: bool) -> Shaped[np.ndarray, 'N']:
  """Returns a column of texts, unless most of them are numbers; None for those that are missing."""
  missing = is_missing(values)
  if gaps and missing.any():
    texts = np.full(values.shape, None, object)
    texts[~missing] = _texts(told, values[~missing], False)
    return texts
  wrong = np.array([not isinstance(value, str) for value in values.tolist()])
  if wrong.any():
    row = first_row(wrong)
    raise UserError(f'{told} is {values[row - 1]!r} in row {row}: expected numbers or texts')
  odd = np.array([not _is_number(value) for value in values.tolist()])
  if 0 < odd.sum() < len(values) / 2:
    row = first_row(odd)
    raise UserError(
      f'{told} is {values[row - 1]!r} in row {row}: expected a number, as in {(~odd).sum()} others'
    )
  return values


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def nearest(name: str, names: Sequence[str]) -> str:
  """Returns names in words: those nearest to one that is misspelt, or if none is near the first.

  >>> nearest('prise', ['age', 'price', 'size'])
  "age, price, size; did you mean 'price'?"
  """
  close = difflib.get_close_matches(name, names, n=1)
  shown = list(names) if len(names) <= 12 else difflib.get_close_matches(name, names, 5, 0.4)
  shown = shown or list(names[:8])
  more = f', … ({len(names)} in all)' if len(shown) < len(names) else ''
  return ', '.join(map(str, shown)) + more + (f'; did you mean {close[0]!r}?' if close else '')


def read_table(text: str) -> dict[str, Values]:
  """Returns the columns of a file by name, in their order, as many rows of each.

  Raises:
    UserError: for a file that is not there, cannot be read, is empty, or is of no kind that is
      known by its end.
  """
  path, spec = user_path(text, 'file:'), f'file:{text}'
  if not path.is_file():
    reason = 'is no file' if path.exists() else 'does not exist'
    raise UserError(f'{spec}: {str(path)!r} {reason}; expected a table, {", ".join(ENDS)}')
  name = path.name.lower()
  if not name.endswith(ENDS):
    raise UserError(f'{spec}: {path.name!r}: expected a name that ends in {", ".join(ENDS)}')
  if not path.stat().st_size:
    raise UserError(f'{spec}: the file is empty; expected a table')
  table = _arrays(spec, path) if name.endswith('.npz') else _frame(spec, path)
  if not table or not len(next(iter(table.values())).values):
    raise UserError(f'{spec}: the table has no rows; expected at least 2')
  return table


def _frame(spec: str, path: Path) -> dict[str, Values]:
  """Returns the columns of a CSV or Parquet file."""
  import pandas as pd

  try:
    if path.name.lower().endswith('.parquet'):
      frame = _parquet(spec, path)
    else:
      separator = _separator(path)
      with warnings.catch_warnings():
        warnings.simplefilter('error', pd.errors.ParserWarning)
        frame = pd.read_csv(path, sep=separator, low_memory=False, index_col=False)
  except (ValueError, EOFError, pd.errors.ParserWarning, gzip.BadGzipFile) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f'{spec}: no sound table ({one_line(error)})') from error
  names = [str(name) for name in frame.columns]
  if names and all(map(_is_number, names)):
    shown = ', '.join(names[:4])
    raise UserError(f'{spec}: the first line is {shown}, …: expected the names of the columns')
  if len(set(names)) < len(names):
    double = next(name for name in names if names.count(name) > 1)
    raise UserError(f'{spec}: two columns are called {double!r}: expected a name for each')
  return {name: _column(name, frame.iloc[:, i]) for i, name in enumerate(names)}


def _column(name: str, series: Any) -> Values:
  """Returns a column of a data frame, texts as objects whatever pandas keeps them in."""
  missing = series.isna().to_numpy()
  if isinstance(series.dtype, np.dtype) and series.dtype.kind != 'O':
    return Values(name, series.to_numpy(), missing)
  return Values(name, plain(series.to_numpy(object)), missing)


def _parquet(spec: str, path: Path) -> Any:
  import pandas as pd

  try:
    import pyarrow
  except ImportError:
    raise UserError(
      f'{spec} without pyarrow (no module pyarrow): expected it to be installed, '
      "pip install 'additive_jax[parquet]'"
    ) from None
  try:
    return pd.read_parquet(path)
  except pyarrow.ArrowException as error:
    raise UserError(f'{spec}: no sound Parquet file ({one_line(error)})') from error


def _separator(path: Path) -> str:
  """Returns what stands between the columns of a CSV file: what its first line has most of."""
  is_zipped = path.name.lower().endswith('.gz')
  with gzip.open(path, 'rt') if is_zipped else path.open() as file:
    line = file.readline()
  return max(SEPARATORS, key=line.count)


def _arrays(spec: str, path: Path) -> dict[str, Values]:
  """Returns the arrays of an NPZ file, those of its splits one after the other."""
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
    raise UserError(f'{spec}: no sound NPZ file of plain arrays ({one_line(error)})') from error
  parts = None
  ends = {name: next((s for s in SUFFIXES if name.endswith(s)), '') for name in arrays}
  if arrays and all(ends.values()):
    arrays, parts = _joined(spec, arrays, ends)
  sizes = {name: f'{name} {list(array.shape)}' for name, array in arrays.items()}
  if len({array.shape[:1] for array in arrays.values()} | {()}) > 2 or not all(
    array.ndim for array in arrays.values()
  ):
    raise UserError(f'{spec}: {", ".join(sizes.values())}: expected arrays of as many rows')
  return {name: Values(name, array, parts=parts) for name, array in arrays.items()}


def _joined(spec, arrays, ends):
  """Returns arrays x_train, x_test, y_train, … as x and y, and the split of each row."""
  names = dict.fromkeys(name.removesuffix(end) for name, end in ends.items())
  order = [end for end in SUFFIXES if end in ends.values()]
  lengths, joined = {}, {}
  for name in names:
    pieces = [arrays.get(f'{name}{end}') for end in order]
    shapes = [None if piece is None else piece.shape for piece in pieces]
    if None in shapes or () in shapes or len({shape and shape[1:] for shape in shapes}) > 1:
      told = ', '.join(f'{n} {list(a.shape)}' for n, a in arrays.items())
      raise UserError(f'{spec}: {told}: expected each array in every split, of one shape')
    lengths[name] = [len(piece) for piece in pieces if piece is not None]
    joined[name] = np.concatenate(pieces)
  counts = next(iter(lengths.values()))
  if any(other != counts for other in lengths.values()):
    told = ', '.join(f'{n} {list(a.shape)}' for n, a in arrays.items())
    raise UserError(f'{spec}: {told}: expected as many rows of each in a split')
  return joined, np.repeat(np.array([SUFFIXES[end] for end in order], object), counts)
