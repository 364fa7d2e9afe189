"""The n-grams that tell the clusters of a text apart.

N is a number of documents, T of tokens in one, J of clusters, V of n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num, Shaped
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from additive_jax.data.cluster_features import rows_of, sample
from additive_jax.data.splits import Split
from additive_jax.errors import UserError

_DOCUMENTS = 8192  # that n-grams are looked for in, at most
_MIN_DOCUMENTS = 5  # that an n-gram must occur in to tell anything
_PRIOR = 10  # documents that the prior of all is worth
_CLEAR = 5.0  # z-score; among a hundred thousand n-grams that tell nothing the largest is 4.3
_VISIBLE = {'\n': '↵', '\r': '↵', '\t': '⇥', ' ': '␣'}


def telling_ngrams(
  tokens: Num[np.ndarray, 'N T'] | Split,
  labels: ArrayLike,
  *,
  top: int = 8,
  longest: int = 6,
  max_documents: int = _DOCUMENTS,
  seed: int = 0,
) -> pd.DataFrame:
  """Returns the n-grams that tell each cluster from the others, as text that can be read.

  The measure is the z-score of the log odds of a document of the cluster to contain the n-gram,
  against a document of another, with a prior of what all have (Monroe, Colaresi and Quinn,
  Fightin' Words, 2008); those below 5, which chance gives too, are left out. Long ones, which are
  easier to read, come before short ones of the same score, and one that shares two neighbours with
  an earlier is left out. N-grams start at two tokens, where there are as many.
  Space, newline and tab are shown as `␣ ↵ ⇥`, other bytes that do not print as `\\x07`, tokens from
  256 on as `<300>`.

  >>> rows = np.array([list(b'if x:'), list(b'1 + 2')] * 40)
  >>> telling_ngrams(rows, np.arange(80) % 2, top=1)['telling n-grams'].tolist()
  ['if␣x:', '1␣+␣2']

  Args:
    tokens: whole numbers, one document a row, or a split of them.
    labels: the cluster of each, [N].
    top: n-grams of each cluster, at most.
    longest: tokens of an n-gram, at most.
    max_documents: rows that are looked at, drawn from the seed.
    seed: draws them.

  Returns:
    A frame with columns `cluster`, `documents` (looked at) and `telling n-grams`, the best first.

  Raises:
    UserError: for another number of labels.
  """
  labels = np.asarray(labels)
  if labels.shape != (len(tokens),):
    raise UserError(f'labels of shape {labels.shape}: expected [{len(tokens)}], one a document')
  chosen = sample(len(tokens), max_documents, seed)
  num_clusters = int(labels.max(initial=-1)) + 1
  labels = labels[chosen]
  documents = np.bincount(labels, minlength=num_clusters)
  texts = [''.join(map(chr, row)) for row in rows_of(tokens, chosen).tolist()]
  vocabulary, occurs = _common_ngrams(texts, longest)
  counts = np.stack([occurs[labels == j].sum(axis=0).A1 for j in range(num_clusters)])
  score = _log_odds(counts, documents)
  rank = score * np.sqrt([len(ngram) for ngram in vocabulary])
  best_ngrams = []
  for cluster in range(num_clusters):
    order = np.argsort(-rank[cluster], kind='stable')
    best = _distinct(vocabulary[order[score[cluster, order] > _CLEAR]], top)
    best_ngrams.append('  '.join(''.join(map(_readable, ngram)) for ngram in best))
  return pd.DataFrame(
    {'cluster': range(num_clusters), 'documents': documents, 'telling n-grams': best_ngrams}
  )


def _common_ngrams(
  texts: Sequence[str], longest: int
) -> tuple[Shaped[np.ndarray, 'V'], sparse.csr_matrix]:
  """Returns the n-grams of at least 5 texts, and whether each text has them, [N, V]."""
  longest = min(longest, len(texts[0]))
  lengths = range(min(2, longest), longest + 1)
  vectorizer = CountVectorizer(
    analyzer=lambda text: {text[i : i + n] for n in lengths for i in range(len(text) + 1 - n)},
    binary=True,
  )
  occurs = vectorizer.fit_transform(texts)
  common = occurs.getnnz(axis=0) >= _MIN_DOCUMENTS
  return vectorizer.get_feature_names_out()[common], occurs[:, common]


def _log_odds(
  counts: Num[np.ndarray, 'J V'], documents: Int[np.ndarray, 'J']
) -> Float[np.ndarray, 'J V']:
  """Returns z-scores of the log odds of a cluster's documents to have an n-gram, against
  others'."""
  total, count = counts.sum(axis=0), documents.sum()
  prior = _PRIOR * total / max(count, 1)
  with_ngram, others_with = counts + prior, total - counts + prior
  without_ngram = (documents + _PRIOR)[:, None] - with_ngram + 0.5
  others_without = (count - documents + _PRIOR)[:, None] - others_with + 0.5
  odds = np.log(with_ngram * others_without / (without_ngram * others_with))
  return odds / np.sqrt(1 / with_ngram + 1 / without_ngram + 1 / others_with + 1 / others_without)


def _distinct(ngrams: Sequence[str], top: int) -> list[str]:
  """Returns the first `top` n-grams that share no pair of neighbours with an earlier one."""
  chosen: list[str] = []
  used_pairs: set[str] = set()
  for ngram in ngrams:
    pairs = {ngram[i : i + 2] for i in range(max(len(ngram) - 1, 1))}
    if len(chosen) < top and not pairs & used_pairs:
      chosen.append(ngram)
      used_pairs |= pairs
  return chosen


def _readable(token: str) -> str:
  if ord(token) > 255:
    return f'<{ord(token)}>'
  return _VISIBLE.get(token) or (token if ' ' < token < '\x7f' else f'\\x{ord(token):02x}')
