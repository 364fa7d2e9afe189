"""Tables that scikit-learn bundles, standardised, with a fixed shuffled split."""

import difflib

import numpy as np

from additive_jax.data.splits import Data, Split, fit
from additive_jax.errors import UserError

CLASSIFICATION = ('iris', 'wine', 'breast_cancer', 'digits')
REGRESSION = ('diabetes', 'linnerud')
TABLES = CLASSIFICATION + REGRESSION
TEST_SHARE = 0.2
# The rows are sorted by class, so they must be shuffled before they are cut; always the same way.
SHUFFLE_SEED = 0


def load_tabular(name: str, memory_limit: int) -> Data:
  """One of scikit-learn's bundled tables, listed in `TABLES`; digits too is one here.

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
  order = np.random.Generator(np.random.PCG64(SHUFFLE_SEED)).permutation(len(bunch.data))
  cut = len(order) - round(TEST_SHARE * len(order))
  rows = order[:cut], order[cut:]
  x = _standardised(bunch.data, rows[0])
  if name in REGRESSION:
    y = _standardised(bunch.target.reshape(len(x), -1), rows[0])
    task, num_outputs, class_names = 'regression', y.shape[1], None
  else:
    y = bunch.target.astype(np.int32)
    class_names = tuple(str(label) for label in bunch.target_names)
    task, num_outputs = 'classification', len(class_names)
  train, test = (_split(x[part], y[part], memory_limit) for part in rows)
  return Data(f'tabular:{name}', task, train, test, num_outputs, class_names)


def _standardised(values: np.ndarray, train_rows: np.ndarray) -> np.ndarray:
  train = values[train_rows]
  deviation = train.std(axis=0)
  return ((values - train.mean(axis=0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def _split(x: np.ndarray, y: np.ndarray, memory_limit: int) -> Split:
  return fit(len(x), x.nbytes, lambda indices: (x[indices], y[indices]), memory_limit)
