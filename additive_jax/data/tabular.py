"""Tables that scikit-learn bundles, standardised, with a fixed shuffled split."""

from __future__ import annotations

import difflib

import numpy as np
from jaxtyping import Float32, Int, Num

from additive_jax.data.coding import Coding, Column
from additive_jax.data.splits import ArraySplit, Data, fit
from additive_jax.errors import UserError

CLASSIFICATION = ('iris', 'wine', 'breast_cancer', 'digits')
REGRESSION = ('diabetes', 'linnerud')
TABLES = CLASSIFICATION + REGRESSION
TEST_SHARE = 0.2
# The rows are sorted by class, so they must be shuffled before they are cut; always the same way.
SHUFFLE_SEED = 0


def load_tabular(name: str, memory_limit: int) -> Data:
  """Loads one of scikit-learn's bundled tables, listed in `TABLES`; digits too is one here.

  A fifth of the rows, shuffled by a fixed seed, is held out. x is float32 [N, features], each
  feature shifted and scaled to mean 0 and deviation 1 over the train rows (a constant feature
  becomes 0). y is int32 [N] for classes and float32 [N, targets] for regression, targets
  standardised by the train rows too.

  Raises:
    UserError: no such table.
  """
  if name not in TABLES:
    close = difflib.get_close_matches(name, TABLES, n=1)
    hint = f' (did you mean {close[0]!r}?)' if close else ''
    raise UserError(f'tabular:{name}: unknown table; expected one of {", ".join(TABLES)}{hint}')
  # scikit-learn takes most of a second to import, which only those who use its data should pay.
  import sklearn.datasets

  bunch = getattr(sklearn.datasets, f'load_{name}')()
  spec = f'tabular:{name}'
  order = np.random.Generator(np.random.PCG64(SHUFFLE_SEED)).permutation(len(bunch.data))
  cut = len(order) - round(TEST_SHARE * len(order))
  x, coding = _standardised(bunch.data, order[:cut]), None
  if name in REGRESSION:
    targets = bunch.target.reshape(len(x), -1)
    names = getattr(bunch, 'target_names', None) or ['target']
    columns = (Column.of(str(n), v, order[:cut]) for n, v in zip(names, targets.T, strict=True))
    coding = Coding((), targets=tuple(columns))
    y = _standardised(targets, order[:cut])
    task, num_outputs, class_names = 'regression', y.shape[1], None
  else:
    y = bunch.target.astype(np.int32)
    class_names = tuple(str(label) for label in bunch.target_names)
    task, num_outputs = 'classification', len(class_names)
  train, test = (
    fit(spec, len(rows), x[rows].nbytes, ArraySplit(x[rows], y[rows]).__getitem__, memory_limit)
    for rows in (order[:cut], order[cut:])
  )
  return Data(spec, task, train, test, num_outputs, class_names, coding=coding)


def _standardised(
  values: Num[np.ndarray, 'N F'], train_rows: Int[np.ndarray, 'rows']
) -> Float32[np.ndarray, 'N F']:
  train = values[train_rows]
  deviation = train.std(axis=0)
  return ((values - train.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)
