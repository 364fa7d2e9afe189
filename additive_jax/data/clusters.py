"""Examples in clusters: k-means, k-means of equal sizes, and the random split as the control.

N is a number of examples, F of features, J of clusters. Features come from `cluster_features`,
whose functions are reached from here too.
"""

import dataclasses
import logging
import numbers
import warnings
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_mutual_info_score, silhouette_score
from threadpoolctl import threadpool_limits

from additive_jax.data.assignment import assign_equally
from additive_jax.data.cluster_features import (
  check_finite,
  embedding_features,
  input_features,
  input_flops,
  telling_ngrams,
)
from additive_jax.errors import UserError

__all__ = [
  'METHODS',
  'Clusters',
  'Quality',
  'cluster',
  'embedding_features',
  'input_features',
  'input_flops',
  'nearest_examples',
  'quality',
  'telling_ngrams',
]

log = logging.getLogger('additive_jax')

METHODS = ('kmeans', 'random')
_STARTS = 4  # of k-means; the best is kept
_SAMPLE = 4096  # examples that they see
_FEWEST = 8  # of these for each cluster
_MAX_ITERATIONS = 100  # of a start
_MAX_ROUNDS = 30  # of balanced k-means
_SETTLED = 1e-3  # share of examples that still move when it stops
_SILHOUETTE_SAMPLE = 2000


@dataclasses.dataclass(frozen=True)
class Clusters:
  """Examples in clusters. Those of k-means are numbered from the largest to the smallest, balanced
  ones as those that they come from.

  Attributes:
    labels: the cluster of each example, int64 [N].
    sizes: examples of each cluster, int64 [J]; none is empty.
    centers: the mean of the features of each, float64 [J, F].
    inertia: the sum of squared distances of the examples from the centre of their cluster.
    method: `kmeans` or `random`.
    balanced: whether sizes were made to differ by at most one.
    flops: what finding them took, see `cluster`.
  """

  labels: np.ndarray
  sizes: np.ndarray
  centers: np.ndarray
  inertia: float
  method: str
  balanced: bool
  flops: float = 0.0

  @property
  def num_clusters(self) -> int:
    """J."""
    return len(self.sizes)

  @property
  def name(self) -> str:
    """What the clusters are called in a report."""
    if self.method == 'random':
      return 'random'
    return 'balanced k-means' if self.balanced else 'k-means'

  def members(self, number: int) -> np.ndarray:
    """The examples of a cluster, in order."""
    return np.flatnonzero(self.labels == number)


class Quality(NamedTuple):
  """How good clusters are.

  Attributes:
    silhouette: mean over up to 2,000 examples, from −1 to 1 (Rousseeuw, 1987); NaN for one cluster.
    explained: share of the features' variance that lies between the centres, 0 to 1.
    agreement: with the classes, as adjusted mutual information, 0 for chance, 1 for the same
      (Vinh, Epps and Bailey, 2010); NaN without classes.
  """

  silhouette: float
  explained: float
  agreement: float


def cluster(features, num_clusters, *, method='kmeans', balanced=False, seed=0):
  """Puts examples in clusters.

  `kmeans` is scikit-learn's, the best of 4 starts by k-means++ of up to 100 iterations on 4,096
  examples that the seed draws (8 for each cluster where these are more; all where there are fewer);
  then every example goes to its nearest centre. Balanced, it goes on from there, with all examples:
  it alternates the assignment of least total squared distance whose sizes differ by at most one
  (`assignment.assign_equally`, exact at every size) and the means, until at most one example in a
  thousand moves, or 30 times (Malinen and Fränti, 2014).
  `random` splits the examples at random into equal sizes, up to one. The same seed gives the same
  clusters: it runs in one thread, because the sums of several come in any order.

  Its FLOPs are those of distances, 2·F for an example and a centre: in every start the candidates
  of k-means++ and each iteration, one of which labels the examples at its end; the assignment of
  all; and each round of balancing. Means, and what an assignment of equal sizes sorts and compares,
  multiply nothing and are not counted. `random` takes none.

  Args:
    features: float [N, F].
    num_clusters: J, from 1 to N.
    method: `kmeans` or `random`.
    balanced: sizes differ by at most one; `random` is always balanced.
    seed: of the starts, or of the random split.

  Returns:
    `Clusters`.

  Raises:
    UserError: for too many or too few clusters, features that are not finite numbers, an unknown
      method, or fewer distinct examples than clusters that are not balanced.
  """
  if method not in METHODS:
    raise UserError(f'cluster method {method!r}: expected one of {", ".join(METHODS)}')
  features = np.asarray(features)
  if features.ndim != 2:
    raise UserError(f'features of shape {features.shape}: expected [N, F]')
  if features.dtype.kind not in 'biuf':
    raise UserError(f'features of type {features.dtype}: expected numbers')
  if not isinstance(num_clusters, numbers.Integral):
    raise UserError(f'num_clusters {num_clusters!r}: expected a whole number')
  if not 1 <= num_clusters <= len(features):
    bound = 'at least 1' if num_clusters < 1 else 'at most as many'
    raise UserError(f'num_clusters {num_clusters} of {len(features)} examples: expected {bound}')
  check_finite(features)
  features = features.astype(np.float64)
  mean = features.mean(axis=0)
  features -= mean  # distances are differences of squares, which large means would drown
  flops = 0.0
  if method == 'random':
    labels = np.random.default_rng(seed).permutation(len(features)) % num_clusters
  else:
    with threadpool_limits(1):
      labels, flops = _kmeans(features, num_clusters, seed)
      if balanced:
        labels, more = _balanced(features, labels, num_clusters)
        flops += more
  sizes = np.bincount(labels, minlength=num_clusters)
  if not sizes.all():
    raise UserError(
      f'num_clusters {num_clusters}: k-means fills only {np.count_nonzero(sizes)}; expected at '
      'most as many as there are distinct examples among those it starts from, or balanced clusters'
    )
  centers = _means(features, labels, num_clusters)
  inertia = sum(
    float(np.square(features[labels == j] - centers[j]).sum()) for j in range(num_clusters)
  )
  even = balanced or method == 'random'
  found = Clusters(labels, sizes, centers + mean, inertia, method, even, flops)
  log.info(
    '%s: %d clusters of %d to %d examples', found.name, num_clusters, sizes.min(), sizes.max()
  )
  return found


def quality(features, labels, classes=None, *, seed=0):
  """How well clusters fit the features, and whether they are the classes: a `Quality`.

  Args:
    features: [N, F].
    labels: the cluster of each example, [N].
    classes: the class of each example, [N], or None.
    seed: draws the examples of the silhouette.
  """
  features, labels = np.asarray(features, np.float64), np.asarray(labels)
  others = labels if classes is None else np.asarray(classes)
  if not labels.shape == others.shape == features.shape[:1]:
    shapes = f'{features.shape}, {labels.shape}, {others.shape}'
    raise UserError(f'features, labels and classes of {shapes}: expected [N, F], [N] and [N]')
  chosen = np.random.default_rng(seed).permutation(len(labels))[:_SILHOUETTE_SAMPLE]
  silhouette = agreement = np.nan
  with threadpool_limits(1):
    if 1 < len(np.unique(labels[chosen])) < len(chosen):
      silhouette = float(silhouette_score(features[chosen], labels[chosen]))
  features = features - features.mean(axis=0)
  sizes = np.bincount(labels)
  between = sizes @ np.square(_means(features, labels, len(sizes))).sum(axis=1)
  total = np.square(features).sum()
  if classes is not None:
    agreement = float(adjusted_mutual_info_score(others, labels))
  return Quality(silhouette, float(between / total) if total else np.nan, agreement)


def nearest_examples(features, clusters, count=8):
  """For each cluster the members nearest its centre, nearest first: a list of J arrays.

  Args:
    features: [N, F], those that were clustered.
    clusters: `Clusters` of them.
    count: members of each, at most.
  """
  features, found = np.asarray(features), []
  for number, center in enumerate(clusters.centers):
    members = clusters.members(number)
    distance = np.square(features[members] - center).sum(axis=1)
    found.append(members[np.argsort(distance, kind='stable')[:count]])
  return found


def _kmeans(features, num_clusters, seed):
  """Labels [N], the largest cluster first, and FLOPs."""
  rng, count = np.random.default_rng(seed), len(features)
  limit = min(count, max(_SAMPLE, _FEWEST * num_clusters))
  sample = features if limit == count else features[np.sort(rng.permutation(count)[:limit])]
  best, seen = None, 0  # distances of the sample
  with warnings.catch_warnings():
    # That there are fewer distinct examples than clusters is said by the caller.
    warnings.simplefilter('ignore', ConvergenceWarning)
    for _ in range(_STARTS):
      start = int(rng.integers(2**31))
      means = KMeans(num_clusters, n_init=1, max_iter=_MAX_ITERATIONS, random_state=start)
      means.fit(sample)
      seen += _candidates(num_clusters) + (means.n_iter_ + 1) * num_clusters
      if best is None or means.inertia_ < best.inertia_:
        best = means
  flops = 2.0 * sample.size * seen
  labels = best.labels_
  if limit < count:
    labels = _costs(features, best.cluster_centers_).argmin(axis=1)
    flops += 2.0 * features.size * num_clusters
  order = np.argsort(-np.bincount(labels, minlength=num_clusters), kind='stable')
  return np.argsort(order)[labels], flops


def _candidates(num_clusters):
  """Centres that scikit-learn's k-means++ measures distances to: it takes the best of several."""
  return 1 + (num_clusters - 1) * (2 + int(np.log(num_clusters)))


def _balanced(features, labels, num_clusters):
  """Labels [N] of equal sizes, and the FLOPs that these took."""
  centers, flops = _means(features, labels, num_clusters), 0.0
  for _ in range(_MAX_ROUNDS):
    before = labels
    labels = assign_equally(_costs(features, centers))
    flops += 2.0 * features.size * num_clusters
    if (labels != before).sum() <= _SETTLED * len(labels):
      break
    centers = _means(features, labels, num_clusters)
  return labels, flops


def _costs(features, centers):
  """Squared distances [N, J], up to a number for each example."""
  return np.square(centers).sum(axis=1) - 2 * features @ centers.T


def _means(features, labels, num_clusters):
  """The mean of each cluster's features [J, F]; zero for an empty one."""
  sums = np.zeros((num_clusters, features.shape[1]))
  for number in range(num_clusters):
    members = features[labels == number]
    sums[number] = members.mean(axis=0) if len(members) else 0
  return sums
