"""What examples are clustered by: pixels, columns of a table, n-grams of a text, or what a network
makes of them; and what the n-grams of a cluster tell.

N is a number of examples, F of features, T of tokens in an example, J of clusters. Whatever has to
be fitted, such as principal components, is fitted on at most 2,048 examples drawn from the seed and
applied in batches, so memory grows with the features alone, N × F, and not with the examples' own
size.
"""

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits

from additive_jax.data.splits import Split
from additive_jax.errors import UserError

TASKS = ('classification', 'language', 'regression')
_FITTED = 2048  # examples that components are fitted on, at most
_DOCUMENTS = 8192  # that telling n-grams are looked for in, at most
_POWERS = 4  # passes to and fro of a randomised decomposition (Halko, Martinsson, Tropp, 2011)
_EXTRA = 10  # directions that it follows beside those asked for
_BATCH = 2**22  # numbers of a batch of examples
_LENGTHS = (1, 2, 3)  # of n-grams
_COLUMNS = 2**14  # that n-grams are hashed into
_MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: Knuth's multiplicative hash
_MIN_DOCUMENTS = 5  # that an n-gram must occur in to tell anything
_PRIOR = 10  # documents that the prior of all is worth
_CLEAR = 5.0  # z-score; among a hundred thousand n-grams that tell nothing the largest is 4.3
_VISIBLE = {10: '↵', 13: '↵', 9: '⇥', 32: '␣'}


def input_features(x, task='classification', *, max_features=50, seed=0):
  """Features of examples by which they can be clustered.

  - Images (floats or bytes, three axes or more): pixels, flattened, and their first principal
    components where there are more than `max_features`.
  - Tables (two axes): columns with mean 0 and standard deviation 1.
  - Language (whole numbers [N, T], one document a row): how often each n-gram of 1 to 3 tokens
    occurs, hashed into 16,384 columns, weighed by tf-idf, reduced by a truncated singular value
    decomposition, each row of length 1 (latent semantic analysis).

  Args:
    x: examples [N, ...], or a split of a data set, which is read in batches.
    task: of the data set; `language` or another.
    max_features: components of images and texts, at most.
    seed: draws the examples that components are fitted on.

  Returns:
    float32 [N, F].

  Raises:
    UserError: for an unknown task, examples of another shape, or values that are not finite.
  """
  if task not in TASKS:
    raise UserError(f'task {task!r}: expected one of {", ".join(TASKS)}')
  if max_features < 1:
    raise UserError(f'max_features {max_features}: expected at least 1')
  first = _rows(x, np.zeros(min(len(x), 1), np.int64))
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
  fitted = _flat(_rows(x, _sample(len(x), _FITTED, seed)))
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


def input_flops(x, task='classification', *, max_features=50):
  """FLOPs of `input_features`: fitting components, and giving every example its own.

  A product counts 2 FLOPs for each multiply-add, and the decomposition of a matrix [M, q], M > q,
  2·M·q²; of texts every place is taken for an n-gram of its own, so theirs are at most as many.
  Columns of tables, and images of few pixels, take no components and no FLOPs.

  Args: those of `input_features`.
  """
  first, count = _rows(x, np.zeros(1, np.int64)), len(x)
  size = filled = first[0].size  # numbers of an example, and those that are not zero
  if task == 'language':
    size, filled = _COLUMNS, sum(max(size + 1 - length, 0) for length in _LENGTHS)
  elif first.ndim == 2 or size <= max_features:
    return 0.0
  fitted = min(count, _FITTED)
  components = min(max_features, fitted, size)
  followed = components + _EXTRA
  products = 2.0 * fitted * filled * followed * (2 * _POWERS + 2)
  thin = 2.0 * followed**2 * (fitted + size) * (_POWERS + 1)
  return products + thin + 2.0 * count * filled * components


def embedding_features(hidden, x=None, *, batch_size=256):
  """What a network makes of examples: the mean over tokens, each unit with mean 0 and deviation 1.

  Args:
    hidden: [N, ..., D], D units at the end; axes between are averaged over. Or a function that
      gives such an array for a batch of `x`, always called with as many examples.
    x: examples [N, ...] or a split, for a function.
    batch_size: examples that the function is given at once.

  Returns:
    float32 [N, D].

  Raises:
    UserError: for values that are not finite, or fewer than two axes.
  """
  if not callable(hidden):
    return _standardised(_pooled(hidden))
  means = []
  for start in range(0, len(x), batch_size):
    rows = np.arange(start, start + batch_size)
    given = _pooled(hidden(_rows(x, np.minimum(rows, len(x) - 1))))
    means.append(given[: len(x) - start])
  return _standardised(np.concatenate(means))


def telling_ngrams(tokens, labels, *, top=8, longest=6, max_documents=_DOCUMENTS, seed=0):
  """The n-grams that tell each cluster from the others, as text that can be read.

  The measure is the z-score of the log odds of a document of the cluster to contain the n-gram,
  against a document of another, with a prior of what all have (Monroe, Colaresi and Quinn,
  Fightin' Words, 2008); those below 5, which chance gives too, are left out. Long ones, which are
  easier to read, come before short ones of the same score, and one that shares two neighbours with
  an earlier is left out. N-grams start at two tokens, where there are as many.
  Space, newline and tab are shown as `␣ ↵ ⇥`, other bytes that do not print as `\\x07`, tokens from
  256 on as `<300>`.

  Args:
    tokens: whole numbers [N, T], or a split of them.
    labels: the cluster of each, [N].
    top: n-grams of each cluster, at most.
    longest: tokens of an n-gram, at most.
    max_documents: rows that are looked at, drawn from the seed.
    seed: draws them.

  Returns:
    A frame with columns `cluster`, `documents` (looked at) and `telling n-grams`, the best first.
  """
  labels = np.asarray(labels)
  if labels.shape != (len(tokens),):
    raise UserError(f'labels of shape {labels.shape}: expected [{len(tokens)}], one a document')
  chosen = _sample(len(tokens), max_documents, seed)
  num_clusters = int(labels.max(initial=-1)) + 1
  labels = labels[chosen]
  documents = np.bincount(labels, minlength=num_clusters)
  rows = _rows(tokens, chosen).astype(np.int64)
  longest = min(longest, rows.shape[1])
  spelt, counts = [], []
  for length, codes in _codes(rows, longest):
    if length == 1 < longest:
      continue
    width = codes.shape[1]
    _, where, codes = np.unique(codes, return_index=True, return_inverse=True)
    codes = codes.reshape(len(rows), width)
    pairs = np.unique(codes + np.arange(len(rows))[:, None] * len(where))
    cells = labels[pairs // len(where)] * len(where) + pairs % len(where)
    table = np.bincount(cells, minlength=num_clusters * len(where)).reshape(num_clusters, -1)
    common = np.flatnonzero(table.sum(axis=0) >= _MIN_DOCUMENTS)
    counts.append(table[:, common])
    places = where[common]
    spelt += [tuple(rows[p // width, p % width : p % width + length]) for p in places]
  counts = np.concatenate(counts, axis=1) if counts else np.zeros((num_clusters, 0))
  score = _log_odds(counts, documents)
  rank = score * np.sqrt([len(ngram) for ngram in spelt])
  found = []
  for cluster in range(num_clusters):
    order = np.argsort(-rank[cluster], kind='stable')
    order = order[score[cluster, order] > _CLEAR]
    best = _distinct([spelt[place] for place in order], top)
    found.append('  '.join(''.join(_readable(token) for token in ngram) for ngram in best))
  return pd.DataFrame(
    {'cluster': range(num_clusters), 'documents': documents, 'telling n-grams': found}
  )


def _log_odds(counts, documents):
  """z-scores [J, V] of the log odds of a cluster's documents to have an n-gram, against others'."""
  total, count = counts.sum(axis=0), documents.sum()
  prior = _PRIOR * total / max(count, 1)
  with_own, with_other = counts + prior, total - counts + prior
  without_own = (documents + _PRIOR)[:, None] - with_own + 0.5
  without_other = (count - documents + _PRIOR)[:, None] - with_other + 0.5
  odds = np.log(with_own * without_other / (without_own * with_other))
  return odds / np.sqrt(1 / with_own + 1 / without_own + 1 / with_other + 1 / without_other)


def _distinct(ngrams, top):
  """The first `top` n-grams that share no pair of neighbours with an earlier."""
  chosen, seen = [], set()
  for ngram in ngrams:
    parts = {ngram[i : i + 2] for i in range(max(len(ngram) - 1, 1))}
    if not parts & seen:
      chosen.append(ngram)
      seen |= parts
    if len(chosen) == top:
      break
  return chosen


def _readable(token):
  if token > 255:
    return f'<{token}>'
  return _VISIBLE.get(int(token)) or (chr(token) if 32 < token < 127 else f'\\x{token:02x}')


def _codes(rows, longest):
  """For each length up to `longest`, a number for every n-gram: (length, [N, T + 1 − length])."""
  codes = rows
  for length in range(1, longest + 1):
    if length > 1:
      # Numbered anew at each length, so no number grows beyond what N, T and the tokens allow.
      _, codes = np.unique(codes[:, :-1], return_inverse=True)
      codes = codes.reshape(len(rows), -1) * (int(rows.max()) + 1) + rows[:, length - 1 :]
    yield length, codes


def _text_features(x, max_features, seed):
  fitted = _hashed(_rows(x, _sample(len(x), _FITTED, seed)))
  tfidf = TfidfTransformer(sublinear_tf=True).fit(fitted)
  components = min(max_features, fitted.shape[0])
  svd = TruncatedSVD(components, n_iter=_POWERS, n_oversamples=_EXTRA, random_state=seed)
  with threadpool_limits(1):
    svd.fit(tfidf.transform(fitted))
  parts = [svd.transform(tfidf.transform(_hashed(rows))) for rows in _batches(x, 16)]
  return normalize(np.concatenate(parts)).astype(np.float32)


def _hashed(tokens):
  """How often each n-gram occurs in each row, hashed into columns: sparse [N, 16,384]."""
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


def _pooled(hidden):
  hidden = np.asarray(hidden)
  if hidden.ndim < 2:
    raise UserError(f'an embedding of shape {hidden.shape}: expected [N, ..., D]')
  return hidden.astype(np.float32).reshape(len(hidden), -1, hidden.shape[-1]).mean(axis=1)


def _standardised(features):
  check_finite(features)
  mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
  # What varies by rounding errors alone is constant.
  constant = deviation <= 1e-6 * np.abs(mean)
  return ((features - mean) / np.where(constant, np.inf, deviation)).astype(np.float32)


def check_finite(features):
  """Raises a `UserError` that names the first of `features` [N, F] that is not finite."""
  bad = np.argwhere(~np.isfinite(features))
  if bad.size:
    row, column = bad[0]
    raise UserError(
      f'feature {column} of example {row} is {features[row, column]}: expected finite numbers'
    )


def _flat(rows):
  scale = np.iinfo(rows.dtype).max if rows.dtype.kind in 'iu' and rows.ndim > 2 else 1
  rows = rows.reshape(len(rows), -1).astype(np.float32) / np.float32(scale)
  check_finite(rows)
  return rows


def _batches(x, values_each=1):
  """The examples of `x` in order, in parts of a few million numbers at most."""
  size = _rows(x, np.zeros(1, np.int64)).size * values_each
  step = max(_BATCH // max(size, 1), 1)
  for start in range(0, len(x), step):
    yield _rows(x, np.arange(start, min(start + step, len(x))))


def _rows(x, indices):
  return np.asarray(x[indices][0] if isinstance(x, Split) else x[indices])


def _sample(count, at_most, seed):
  """Places of `at_most` of `count` examples, in order; all where there are no more."""
  if count <= at_most:
    return np.arange(count)
  return np.sort(np.random.default_rng(seed).choice(count, at_most, replace=False))
