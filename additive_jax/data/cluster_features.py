"""The features that examples are clustered by: pixels, columns of a table, n-grams of a text, or
what a network makes of them.

N is a number of examples, F of features, T of tokens in an example. Whatever has to be fitted, such
as principal components, is fitted on at most 2,048 examples drawn from the seed and applied in
batches, so memory grows with the features alone, N × F, and not with the examples' own size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Array, Float, Float32, Int, Integer, Num
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from additive_jax.batches import described, is_array
from additive_jax.data.splits import Split
from additive_jax.errors import UserError, checked_seed

TASKS = ('classification', 'language', 'regression')
_FITTED = 2048  # examples that components are fitted on, at most
_POWERS = 4  # passes to and fro of a randomised decomposition (Halko, Martinsson, Tropp, 2011)
_EXTRA = 10  # directions that it follows beside those asked for
_BATCH = 2**22  # numbers of a batch of examples
_LENGTHS = (1, 2, 3)  # of n-grams
_COLUMNS = 2**14  # that n-grams are hashed into
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: Knuth's multiplicative hash


def input_features(
  x: Num[np.ndarray, 'N ...'] | Split,
  task: str = 'classification',
  *,
  max_features: int = 50,
  seed: int = 0,
) -> Float32[np.ndarray, 'N F']:
  """Returns features of examples by which they can be clustered.

  - Images (floats or bytes, three axes or more): pixels, flattened, and their first principal
    components where there are more than `max_features`.
  - Tables (two axes): columns with mean 0 and standard deviation 1.
  - Language (whole numbers [N, T], one document a row): how often each n-gram of 1 to 3 tokens
    occurs, hashed into 16,384 columns, weighed by tf-idf, reduced by a truncated singular value
    decomposition, each row of length 1 (latent semantic analysis).

  >>> input_features(np.array([[1.0, 5.0], [3.0, 5.0]]))
  array([[-1.,  0.],
         [ 1.,  0.]], dtype=float32)

  Args:
    x: the examples, or a split of a data set, which is read in batches.
    task: of the data set; `language` or another.
    max_features: components of images and texts, at most.
    seed: draws the examples that components are fitted on.

  Raises:
    UserError: for an unknown task, examples of another shape, or values that are not finite.
  """
  if task not in TASKS:
    raise UserError(f'task {task!r}: expected one of {", ".join(TASKS)}')
  if max_features < 1:
    raise UserError(f'max_features {max_features}: expected at least 1')
  first = rows_of(x, np.zeros(min(len(x), 1), np.int64))
  if not first.size:
    raise UserError(f'no examples, of shape {first.shape}: expected at least one')
  if task == 'language':
    if first.ndim != 2 or first.dtype.kind not in 'iu':
      raise UserError(
        f'language of shape {first.shape[1:]} and type {first.dtype}: expected one row of whole '
        'numbers for each example'
      )
    return _text_features(x, max_features, seed)
  if first.ndim == 2:
    return _standardised(np.concatenate([_flat(rows) for rows in _batches(x)]))
  if first[0].size <= max_features:
    return np.concatenate([_flat(rows) for rows in _batches(x)])
  fitted = _flat(rows_of(x, sample(len(x), _FITTED, seed)))
  pca = PCA(
    min(max_features, *fitted.shape),
    svd_solver='randomized',
    iterated_power=_POWERS,
    n_oversamples=_EXTRA,
    random_state=seed,
  )
  with threadpool_limits(1):  # threads take longer to meet than such thin products take
    pca.fit(fitted)
  return np.concatenate([pca.transform(_flat(rows)) for rows in _batches(x)]).astype(np.float32)


def input_flops(
  x: Num[np.ndarray, 'N ...'] | Split, task: str = 'classification', *, max_features: int = 50
) -> float:
  """Returns the FLOPs of `input_features`: fitting components, and giving every example its own.

  A product counts 2 FLOPs for each multiply-add, and the decomposition of a matrix [M, q], M > q,
  2·M·q²; of texts every place is taken for an n-gram of its own, so theirs are at most as many.
  Columns of tables, and images of few pixels, take no components and no FLOPs.

  Args: those of `input_features`.
  """
  first, count = rows_of(x, np.zeros(1, np.int64)), len(x)
  size = nonzero = first[0].size  # numbers of an example
  if task == 'language':
    size, nonzero = _COLUMNS, sum(max(size + 1 - length, 0) for length in _LENGTHS)
  elif first.ndim == 2 or size <= max_features:
    return 0.0
  fitted = min(count, _FITTED)
  components = min(max_features, fitted, size)
  directions = components + _EXTRA
  products = 2.0 * fitted * nonzero * directions * (2 * _POWERS + 2)
  factorisations = 2.0 * directions**2 * (fitted + size) * (_POWERS + 1)
  return products + factorisations + 2.0 * count * nonzero * components


def embedding_features(
  hidden: Num[np.ndarray, '...'] | Callable[[np.ndarray], Num[np.ndarray, 'B ... D']],
  x: Num[np.ndarray, 'N ...'] | Split | None = None,
  *,
  batch_size: int = 256,
) -> Float32[np.ndarray, 'N D']:
  """Returns what a network makes of examples, each unit with mean 0 and deviation 1.

  >>> embedding_features(np.array([[[1.0], [3.0]], [[4.0], [6.0]]]))  # means over tokens: 2 and 5
  array([[-1.],
         [ 1.]], dtype=float32)

  Args:
    hidden: [N, ..., D], D units at the end; axes between are averaged over. Or a function that
      gives such an array for a batch of `x`, always called with as many examples.
    x: examples or a split, for a function.
    batch_size: B, examples that the function is given at once.

  Raises:
    UserError: for values that are not finite, or fewer than two axes.
  """
  if not callable(hidden):
    return _standardised(_pooled(hidden))
  assert x is not None, 'expected examples for the function'
  means = []
  for start in range(0, len(x), batch_size):
    rows = np.minimum(np.arange(start, start + batch_size), len(x) - 1)
    means.append(_pooled(hidden(rows_of(x, rows)))[: len(x) - start])
  return _standardised(np.concatenate(means))


def check_finite(features: Num[np.ndarray, 'N F']) -> None:
  """Raises a `UserError` that names the first number that is not finite."""
  bad = np.argwhere(~np.isfinite(features))
  if bad.size:
    row, column = bad[0]
    raise UserError(
      f'feature {column} of example {row} is {features[row, column]}: expected finite numbers'
    )


def rows_of(
  x: Num[np.ndarray, 'N ...'] | Split, indices: Int[np.ndarray, 'B']
) -> Num[np.ndarray, 'B ...']:
  """Returns some of the examples, of an array or a split; raises `UserError` for those of a network
  of several inputs."""
  if not isinstance(x, Split):
    return np.asarray(x[indices])
  some = x[indices][0]
  if not is_array(some):
    raise UserError(f'clusters of inputs {described(some, "x")}: expected one array')
  return np.asarray(some)


def sample(count: int, at_most: int, seed: int) -> Int[np.ndarray, 'B']:
  """Returns places of `at_most` of `count` examples, in order; all where there are no more.

  >>> len(sample(1000, at_most=10, seed=0))
  10
  """
  rng = np.random.default_rng(checked_seed(seed))
  if count <= at_most:
    return np.arange(count)
  return np.sort(rng.choice(count, at_most, replace=False))


def _batches(x: np.ndarray | Split, values_each: int = 1) -> Iterator[np.ndarray]:
  """Yields the examples of `x` in order, in parts of a few million numbers at most."""
  size = rows_of(x, np.zeros(1, np.int64)).size * values_each
  step = max(_BATCH // max(size, 1), 1)
  for start in range(0, len(x), step):
    yield rows_of(x, np.arange(start, min(start + step, len(x))))


def _text_features(
  x: np.ndarray | Split, max_features: int, seed: int
) -> Float32[np.ndarray, 'N F']:
  fitted = _hashed(rows_of(x, sample(len(x), _FITTED, seed)))
  tfidf = TfidfTransformer(sublinear_tf=True).fit(fitted)
  components = min(max_features, fitted.shape[0])
  svd = TruncatedSVD(components, n_iter=_POWERS, n_oversamples=_EXTRA, random_state=seed)
  with threadpool_limits(1):
    svd.fit(tfidf.transform(fitted))
  parts = [svd.transform(tfidf.transform(_hashed(rows))) for rows in _batches(x, 16)]
  return normalize(np.concatenate(parts)).astype(np.float32)


def _hashed(tokens: Integer[np.ndarray, 'N T']) -> sparse.csr_matrix:
  """Returns how often each n-gram occurs in each row, hashed into columns: [N, 16,384]."""
  tokens = tokens.astype(np.uint64)
  codes = np.zeros((len(tokens), 0), np.int64)
  for length in _LENGTHS:
    width = max(tokens.shape[1] + 1 - length, 0)
    code = np.full((len(tokens), width), length, np.uint64)
    for place in range(length):
      code = (code ^ tokens[:, place : place + width]) * np.uint64(_MULTIPLIER)
      code ^= code >> np.uint64(32)
    codes = np.concatenate([codes, (code % _COLUMNS).astype(np.int64)], axis=1)
  starts = np.arange(len(codes) + 1) * codes.shape[1]
  counts = sparse.csr_matrix(
    (np.ones(codes.size, np.float32), codes.ravel(), starts), (len(codes), _COLUMNS)
  )
  counts.sum_duplicates()
  return counts


def _pooled(hidden: Num[Array | np.ndarray, '...']) -> Float32[np.ndarray, 'N D']:
  hidden = np.asarray(hidden)
  if hidden.ndim < 2:
    raise UserError(f'an embedding of shape {hidden.shape}: expected [N, ..., D]')
  return hidden.astype(np.float32).reshape(len(hidden), -1, hidden.shape[-1]).mean(axis=1)


def _standardised(features: Float[np.ndarray, 'N F']) -> Float32[np.ndarray, 'N F']:
  check_finite(features)
  mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
  # A feature that varies by rounding errors alone is constant.
  constant = deviation <= 1e-6 * np.abs(mean)
  return ((features - mean) / np.where(constant, np.inf, deviation)).astype(np.float32)


def _flat(rows: Num[np.ndarray, 'N ...']) -> Float32[np.ndarray, 'N F']:
  scale = np.iinfo(rows.dtype).max if rows.dtype.kind in 'iu' and rows.ndim > 2 else 1
  rows = rows.reshape(len(rows), -1).astype(np.float32) / np.float32(scale)
  check_finite(rows)
  return rows
