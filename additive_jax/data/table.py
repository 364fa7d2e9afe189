"""A table of one's own, of which some columns are learnt from others: CSV, Parquet or NPZ.

Rows are numbered from 1, the heading of a CSV file not counted. N is their number.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped

from additive_jax.data.coding import CHOOSE, Coding, Column, coded_labels, first_row
from additive_jax.data.splits import ArraySplit, Data, Split, fit
from additive_jax.data.table_files import Values, nearest, read_table
from additive_jax.data.tabular import SHUFFLE_SEED, TEST_SHARE
from additive_jax.data.values import CLASSES, NUMBERS, TOKENS
from additive_jax.data.weights import Weighted
from additive_jax.errors import UserError

log = logging.getLogger('additive_jax')

TASKS = (CLASSES, NUMBERS, TOKENS)
# Whole numbers with no more different values than this are taken for classes.
MOST_CLASSES = 20
MISSING = ('refuse', 'drop', 'fill')
PARTS = {'train': 'train', 'valid': 'valid', 'validation': 'valid', 'val': 'valid', 'test': 'test'}
Rows = Int[np.ndarray, 'rows']


@dataclasses.dataclass(frozen=True)
class Columns:
  """Which columns of a table are what.

  Attributes:
    target: what is learnt: a name, or several of a regression, as a sequence or with commas.
    columns: what it is learnt from, likewise; none is all other columns.
    weight: of the rows' weights, see `Weighted`; '' is none.
    split: whose texts say of each row whether it is of 'train', 'valid' or 'test'; '' is none.
    task: 'classification', 'regression' or 'language'; '' goes by the target.
    ignore_label: of a language, the token of the target that does not count; None: all count.
    missing: what becomes of values that are missing: they are refused ('refuse'), their rows are
      left out ('drop'), or those of the input are filled ('fill'; see `coding.Column`).
  """

  target: str | Sequence[str] = ''
  columns: str | Sequence[str] = ''
  weight: str = ''
  split: str = ''
  task: str = ''
  ignore_label: int | None = None
  missing: str = 'refuse'


def load_table(path: str, columns: Columns, memory_limit: int) -> Data:
  """Loads a table.

  Rows are shuffled by a fixed seed; a fifth of them is the test split unless a column says which
  are. Numbers are standardised by the training rows (before a `valid` split is cut from them),
  texts of at most 100 different values are one-hot; see `coding`. Of an NPZ file arrays [N] and
  [N, F] are columns, and one array of more axes (images; bytes are divided by 255), or of tokens
  for a language, is the input as it is. Names that end in `_train` and `_test`, and maybe
  `_valid`, are one column each and say the split.

  A target of whole numbers [N, T] beside one input of such is a language. A target of texts, or of
  whole numbers with at most 20 different values, is a classification; the
  classes are what is found in all rows, sorted. Other numbers are a regression, standardised too.
  `Data.coding` turns new rows into x, and outputs back into the table's units.

  Raises:
    UserError: for a file that cannot be read, columns that are not there, values that are missing
      (unless `columns` says what becomes of them) or not finite, a target that is constant, or
      splits without rows.
  """
  spec, table = f'file:{path}', read_table(path)
  targets, inputs = _targets(spec, table, columns), _inputs(spec, table, columns)
  table = _with_all(spec, table, targets, inputs, columns)
  fills = columns.missing == 'fill'
  values = {name: table[name].checked(spec) for name in targets}
  values |= {name: table[name].checked(spec, gaps=fills) for name in inputs}
  rows = _rows(spec, table, columns.split)
  task = columns.task or _task(spec, values, targets, inputs)
  if task not in TASKS:
    raise UserError(f'task {task!r} of {spec}: expected one of {", ".join(TASKS)}')
  y, coding = _coded_targets(spec, values, targets, task, rows['train'])
  if task == TOKENS:
    x = _tokens(spec, values, inputs, 'input')
    counting = y if columns.ignore_label is None else y[y != columns.ignore_label]
    num_outputs = int(max(x.max(initial=0), counting.max(initial=0))) + 1
  else:
    x, coding = _coded_inputs(spec, values, inputs, coding, rows['train'])
    num_outputs = len(coding.classes) if task == CLASSES else y.shape[1]
  if columns.weight:
    y = Weighted(y, _weights(spec, table, columns.weight))
  splits: dict[str, Any] = {
    part: _split(f'{spec}, {part}', x, y, some, memory_limit) for part, some in rows.items()
  }
  names = tuple(map(str, coding.classes)) or None
  more: dict[str, Any] = (
    {'ignore_label': columns.ignore_label} if task == TOKENS else {'coding': coding}
  )
  return Data(spec, task, num_outputs=num_outputs, class_names=names, **more, **splits)


def _split(name: str, x: Any, y: Any, rows: Rows, memory_limit: int) -> Split:
  some = ArraySplit(x[rows], _of_rows(y, rows), name)
  return fit(name, len(rows), some.x.nbytes, some.__getitem__, memory_limit)


def _of_rows(y, rows):
  return Weighted(y.y[rows], y.weight[rows]) if isinstance(y, Weighted) else y[rows]


def _names(table: Mapping[str, Any], names: str | Sequence[str]) -> list[str]:
  """Returns the names of a list that may be one text with commas."""
  if not isinstance(names, str):
    return list(names)
  if names in table:
    return [names]
  return [name.strip() for name in names.split(',') if name.strip()]


def _check_there(
  spec: str, table: Mapping[str, Values], option: str, given: Any, name: str
) -> None:
  if name not in table:
    given = given if isinstance(given, str) else ','.join(given)
    of = f'{spec} has no {name!r}: ' if given != name else f'not in {spec}; '
    raise UserError(f'{option} {given!r}: {of}expected one of {nearest(name, list(table))}')


def _targets(spec: str, table: Mapping[str, Values], columns: Columns) -> list[str]:
  targets = _names(table, columns.target)
  if not targets:
    expected = f'the name of what is learnt, one of {nearest("", list(table))}'
    raise UserError(f"target '' of {spec}: expected {expected}")
  for name in targets:
    _check_there(spec, table, 'target', columns.target, name)
  return targets


def _inputs(spec: str, table: Mapping[str, Values], columns: Columns) -> list[str]:
  others = {*_names(table, columns.target), columns.weight, columns.split}
  for option in ('weight', 'split'):
    if name := getattr(columns, option):
      _check_there(spec, table, option, name, name)
  inputs = _names(table, columns.columns)
  for name in inputs:
    _check_there(spec, table, 'columns', columns.columns, name)
    if name in others:
      raise UserError(f'columns {name!r} of {spec}: expected none that is target, weight or split')
  inputs = inputs or [name for name in table if name not in others]
  if not inputs:
    raise UserError(f'{spec} has no column but the target: expected some to learn from')
  return inputs


def _with_all(
  spec: str,
  table: Mapping[str, Values],
  targets: list[str],
  inputs: list[str],
  columns: Columns,
) -> dict[str, Values]:
  """Returns the columns that are used, with a value in every row but where they are filled."""
  if columns.missing not in MISSING:
    raise UserError(f'missing {columns.missing!r} of {spec}: expected one of {", ".join(MISSING)}')
  others = [name for name in (columns.weight, columns.split) if name]
  used = {name: table[name] for name in (*inputs, *targets, *others)}
  filled = inputs if columns.missing == 'fill' else []
  gaps = {name: column.gaps() for name, column in used.items() if name not in filled}
  lacking = {name: some for name, some in gaps.items() if some.any()}
  if not lacking:
    return used
  if columns.missing != 'drop':
    raise UserError(_lacking(spec, lacking, inputs))
  rows = ~np.any(list(lacking.values()), axis=0)
  told = f'{spec}: {(~rows).sum():,} of {len(rows):,} rows'
  if not rows.any():
    raise UserError(f'{told} lack a value: expected some that have all; {CHOOSE}')
  log.info('%s lack a value and are left out', told)
  return {name: column.of_rows(rows) for name, column in used.items()}


def _lacking(spec: str, lacking: Mapping[str, Bool[np.ndarray, 'N']], inputs: list[str]) -> str:
  """Returns what is said of values that are missing."""
  (name, gaps), *others = lacking.items()
  rest = f', as in {gaps.sum() - 1} other rows' if gaps.sum() > 1 else ''
  also = ', '.join(f'{other!r} in {some.sum()}' for other, some in others[:4])
  more = f' and {len(others) - 4} more columns' if len(others) > 4 else ''
  fill = ", 'fill' fills them" if name in inputs else ''
  return (
    f'{spec}: {name!r} has no value (it is empty, NA, nan or the like) in row {first_row(gaps)}'
    f'{rest}{f"; nor has {also}{more}" if also else ""}: expected one in every row; '
    f"config.data.missing='drop' leaves out such rows{fill}"
  )


def _task(
  spec: str, values: Mapping[str, np.ndarray], targets: list[str], inputs: list[str]
) -> str:
  """Returns the task that the targets are of."""
  first = values[targets[0]]
  used = [values[name] for name in (*targets, *inputs)]
  task = NUMBERS
  if len(used) == 2 and all(a.ndim == 2 and a.shape[1] > 1 and a.dtype.kind in 'iu' for a in used):
    task = TOKENS
  if len(targets) == 1 and first.ndim == 1:
    whole = first.dtype.kind in 'Oiub' or np.array_equal(first, np.rint(first))
    few = first.dtype.kind in 'Ob' or len(np.unique(first)) <= MOST_CLASSES
    task = CLASSES if whole and few else NUMBERS
    if first.dtype.kind == 'O':
      _check_classes(spec, targets[0], first)
  message = '%s: target %s is taken for a %s; config.data.task says otherwise'
  log.info(message, spec, ', '.join(map(repr, targets)), task)
  return task


def _check_classes(spec: str, name: str, texts: np.ndarray) -> None:
  """Raises `UserError` for texts that are rather numbers, or too many to be classes."""
  used = np.unique(texts.astype(str))
  plain = [re.sub(r'[,_\s$€£%]', '', text) for text in used]
  if all(re.fullmatch(r'[-+]?\d+(\.\d*)?', text) for text in plain):
    raise UserError(
      f'{spec}: target {name!r} has texts such as {str(used[0])!r}: expected numbers without '
      "separators and units, or config.data.task 'classification'"
    )
  if 2 * len(used) > len(texts) and len(used) > MOST_CLASSES:
    raise UserError(
      f'{spec}: target {name!r} has {len(used):,} different texts in {len(texts):,} rows: expected '
      "some classes, or config.data.task 'classification'"
    )


def _rows(spec: str, table: Mapping[str, Values], split: str) -> dict[str, Rows]:
  """Returns the places of the rows of each split, in an order that a fixed seed shuffles."""
  count = len(next(iter(table.values())).values)
  order = np.random.Generator(np.random.PCG64(SHUFFLE_SEED)).permutation(count)
  parts = next((values.parts for values in table.values() if values.parts is not None), None)
  if split:
    parts = _parts(spec, table[split])
  if parts is None:
    if count < 2:
      raise UserError(
        f'{spec} has {count} rows: expected at least 2, to learn from and to judge by'
      )
    cut = min(count - round(TEST_SHARE * count), count - 1)
    return {'train': order[:cut], 'test': order[cut:]}
  rows = {part: order[parts[order] == part] for part in ('train', 'valid', 'test')}
  for part in ('train', 'test'):
    if not len(rows[part]):
      where = f'split {split!r} of {spec}' if split else spec
      raise UserError(f'{where}: expected some rows of {part!r}, for there are none')
  return {part: some for part, some in rows.items() if len(some)}


def _parts(spec: str, column: Values) -> Shaped[np.ndarray, 'N']:
  words = np.array([str(value).strip().lower() for value in column.checked(spec)], object)
  wrong = np.array([word not in PARTS for word in words])
  if wrong.any():
    row = first_row(wrong)
    raise UserError(
      f'{spec}: {column.values[row - 1]!r} in row {row} of split {column.name!r}: expected one of '
      'train, valid, test'
    )
  return np.array([PARTS[word] for word in words], object)


def _coded_targets(
  spec: str, values: Mapping[str, np.ndarray], targets: list[str], task: str, train: Rows
) -> tuple[np.ndarray, Coding]:
  """Returns y of all rows, and how it is coded."""
  if task == TOKENS:
    return _tokens(spec, values, targets, 'target'), Coding(())
  if task == CLASSES:
    if len(targets) > 1 or values[targets[0]].ndim > 1:
      raise UserError(f'target {",".join(targets)!r} of {spec}: expected one column of labels')
    y, classes = coded_labels(values[targets[0]])
    if len(classes) < 2:
      told = f'is {classes[0]!r} in all {len(y)} rows'
      raise UserError(f'{spec}: target {targets[0]!r} {told}: expected two classes at least')
    return y, Coding((), classes=classes)
  parts = []
  for name in targets:
    if values[name].dtype.kind == 'O' or values[name].ndim > 2:
      kind = 'texts' if values[name].dtype.kind == 'O' else f'shape {list(values[name].shape)}'
      raise UserError(f'{spec}: target {name!r} of {kind} in a regression: expected numbers')
    parts.append(Column.of(name, values[name], train))
    seen = values[name][train].reshape(len(train), -1)
    if constant := [value for value in seen[0] if (seen == value).all(0).any()]:
      told = f'is {constant[0]} in all {len(train)} training rows'
      raise UserError(f'{spec}: target {name!r} {told}: expected one that varies')
  y = np.concatenate([part(values[part.name]) for part in parts], axis=1)
  return y, Coding((), targets=tuple(parts))


def _coded_inputs(
  spec: str, values: Mapping[str, np.ndarray], inputs: list[str], coding: Coding, train: Rows
) -> tuple[Float32[np.ndarray, 'N ...'], Coding]:
  """Returns x of all rows, and how the whole table is coded."""
  images = [name for name in inputs if values[name].ndim > 2]
  if images and len(inputs) > 1:
    name, shape = images[0], list(values[images[0]].shape)
    raise UserError(
      f'{spec}: {name!r} of shape {shape} beside other inputs: expected it alone, '
      f'config.data.columns={name!r}, or arrays of one or two axes'
    )
  try:
    columns = tuple(Column.of(name, values[name], train) for name in inputs)
  except UserError as error:
    raise UserError(f'{spec}: {error}') from None
  coding = dataclasses.replace(coding, columns=columns)
  return coding(values), coding


def _tokens(
  spec: str, values: Mapping[str, np.ndarray], names: list[str], what: str
) -> Int[np.ndarray, 'N T']:
  array = values[names[0]]
  if len(names) > 1 or array.ndim != 2 or array.dtype.kind not in 'iu':
    told = f'{array.dtype} {list(array.shape)}' if len(names) == 1 else f'{len(names)} columns'
    raise UserError(
      f'{spec}: {what} {names[0]!r} of {told} of a language: expected whole numbers [N, T]'
    )
  return array


def _weights(spec: str, table: Mapping[str, Values], name: str) -> Float32[np.ndarray, 'N ...']:
  weights = table[name].checked(spec)
  if weights.dtype.kind == 'O':
    raise UserError(f'{spec}: weight {name!r} of texts: expected numbers, 0 or more')
  if (negative := weights < 0).any():
    row = first_row(negative)
    raise UserError(
      f'{spec}: weight {name!r} is {weights[row - 1]} in row {row}: expected 0 or more'
    )
  return weights.astype(np.float32)
