"""Examples in clusters: k-means, k-means of equal sizes, and the random split as the control.

N is a number of examples, F of features, J of clusters. Features come from `cluster_features`.
"""

from __future__ import annotations

import dataclasses
import logging
import numbers
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num, Shaped
from numpy.typing import ArrayLike
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_mutual_info_score, silhouette_score
from threadpoolctl import threadpool_limits

from additive_jax.data.assignment import assign_equally
from additive_jax.data.cluster_features import check_finite
from additive_jax.errors import UserError, checked_seed

log = logging.getLogger('additive_jax')

METHODS = ('kmeans', 'random')
_STARTS = 4  # of k-means; the best is kept
_SAMPLE = 4096  # examples that they see
_FEWEST = 8  # of these for each cluster
_MAX_ITERATIONS = 100  # of a start
_MAX_ROUNDS = 30  # of balanced k-means
_SETTLED = 1e-3  # share of examples that still move when it stops
_SILHOUETTE_SAMPLE = 2000

Labels = Int[np.ndarray, 'N']
Features = Float[np.ndarray, 'N F']


@dataclasses.dataclass(frozen=True)
class Clusters:
  """Examples in clusters.

  Those of k-means are numbered from the largest to the smallest, balanced ones as those that they
  come from.

  >>> clusters = cluster(np.array([[0.0], [0.1], [5.0], [5.1]]), 2, seed=0)
  >>> clusters.num_clusters, sorted(len(clusters.members(i)) for i in range(2))
  (2, [2, 2])

  Attributes:
    labels: the cluster of each example.
    sizes: examples of each cluster; none is empty.
    centers: the mean of the features of each.
    inertia: the sum of squared distances of the examples from the centre of their cluster.
    method: `kmeans` or `random`.
    balanced: whether sizes were made to differ by at most one.
    flops: what finding them took, see `cluster`.
  """

  labels: Int[np.ndarray, 'N']
  sizes: Int[np.ndarray, 'J']
  centers: Float[np.ndarray, 'J F']
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
    """The name of the clusters in a report."""
    if self.method == 'random':
      return 'random'
    return 'balanced k-means' if self.balanced else 'k-means'

  def members(self, number: int) -> Int[np.ndarray, 'members']:
    """Returns the examples of a cluster, in order."""
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


def cluster(
  features: Shaped[np.ndarray, '...'],
  num_clusters: int,
  *,
  method: str = 'kmeans',
  balanced: bool = False,
  seed: int = 0,
) -> Clusters:
  """Puts examples in clusters.

  `kmeans` is scikit-learn's, the best of 4 starts by k-means++ on 4,096 examples that the seed
  draws (8 for each cluster where these are more); then every example goes to its nearest centre.
  Balanced, it alternates the assignment of least total squared distance whose sizes differ by at
  most one and the means, until at most one example in a thousand moves, or 30 times (Malinen and
  Fränti, 2014). `random` splits the examples at random into equal sizes. The same seed gives the
  same clusters: it runs in one thread, because the sums of several come in any order.

  FLOPs are those of distances, 2·F for an example and a centre.

  >>> cluster(np.array([[0.0], [0.1], [0.2], [9.0]]), 2).labels
  array([0, 0, 0, 1])
  >>> cluster(np.array([[0.0], [0.1], [0.2], [9.0]]), 2, balanced=True).labels
  array([0, 0, 1, 1])

  Args:
    features: numbers [N, F].
    num_clusters: J, from 1 to N.
    method: `kmeans` or `random`.
    balanced: sizes differ by at most one; `random` is always balanced.
    seed: of the starts, or of the random split.

  Raises:
    UserError: for too many or too few clusters, features that are not finite numbers, an unknown
      method, or fewer distinct examples than clusters that are not balanced.
  """
  if method not in METHODS:
    raise UserError(f'cluster method {method!r}: expected one of {", ".join(METHODS)}')
  _check(features, num_clusters)
  mean, seed = features.mean(axis=0, dtype=np.float64), checked_seed(seed)
  features = features - mean  # distances are differences of squares, which large means would drown
  if method == 'random':
    labels, flops = np.random.default_rng(seed).permutation(len(features)) % num_clusters, 0.0
  else:
    with threadpool_limits(1):
      labels, flops = _kmeans(features, num_clusters, seed)
      if balanced:
        labels, balancing = _balanced(features, labels, num_clusters)
        flops += balancing
  sizes = np.bincount(labels, minlength=num_clusters)
  if not sizes.all():
    raise UserError(
      f'num_clusters {num_clusters}: k-means fills only {np.count_nonzero(sizes)}; expected at '
      'most as many as there are distinct examples among those it starts from, or balanced clusters'
    )
  centers = _means(features, labels, num_clusters)
  inertia = float(np.square(features - centers[labels]).sum())
  even = balanced or method == 'random'
  clusters = Clusters(labels, sizes, centers + mean, inertia, method, even, flops)
  log.info('%s: %d to %d examples', clusters.name, sizes.min(), sizes.max())
  return clusters


def _check(features: Shaped[np.ndarray, '...'], num_clusters: int) -> None:
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


def quality(
  features: ArrayLike, labels: ArrayLike, classes: ArrayLike | None = None, *, seed: int = 0
) -> Quality:
  """Returns how well clusters fit the features, and whether they are the classes.

  >>> quality([[0.0], [0.1], [9.0], [9.1]], [0, 0, 1, 1], ['a', 'a', 'b', 'b']).agreement
  1.0

  Args:
    features: [N, F].
    labels: the cluster of each example, [N].
    classes: the class of each example, [N], or None.
    seed: draws the examples of the silhouette.

  Raises:
    UserError: for other shapes.
  """
  features, labels = np.asarray(features, np.float64), np.asarray(labels)
  others = labels if classes is None else np.asarray(classes)
  if not labels.shape == others.shape == features.shape[:1]:
    shapes = f'{features.shape}, {labels.shape}, {others.shape}'
    raise UserError(f'features, labels and classes of {shapes}: expected [N, F], [N] and [N]')
  chosen = np.random.default_rng(checked_seed(seed)).permutation(len(labels))[:_SILHOUETTE_SAMPLE]
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


def nearest_examples(
  features: Num[np.ndarray, 'N F'], clusters: Clusters, count: int = 8
) -> list[Int[np.ndarray, 'members']]:
  """Returns for each cluster the members nearest its centre, nearest first.

  Args:
    features: those that were clustered.
    clusters: of these features.
    count: members of each, at most.
  """
  nearest = []
  for number, center in enumerate(clusters.centers):
    members = clusters.members(number)
    distance = np.square(features[members] - center).sum(axis=1)
    nearest.append(members[np.argsort(distance, kind='stable')[:count]])
  return nearest


def _kmeans(features: Features, num_clusters: int, seed: int) -> tuple[Labels, float]:
  """Labels, the largest cluster first, and FLOPs."""
  rng, count = np.random.default_rng(seed), len(features)
  limit = min(count, max(_SAMPLE, _FEWEST * num_clusters))
  sample = features if limit == count else features[np.sort(rng.permutation(count)[:limit])]
  starts = [
    KMeans(num_clusters, n_init=1, max_iter=_MAX_ITERATIONS, random_state=int(rng.integers(2**31)))
    for _ in range(_STARTS)
  ]
  with warnings.catch_warnings():
    # That there are fewer distinct examples than clusters is said by the caller.
    warnings.simplefilter('ignore', ConvergenceWarning)
    for start in starts:
      start.fit(sample)
  best = min(starts, key=lambda start: start.inertia_)
  # Distances of each example. k-means++ takes the best of several candidates for each next centre.
  candidates = 1 + (num_clusters - 1) * (2 + int(np.log(num_clusters)))
  distances = sum(candidates + (start.n_iter_ + 1) * num_clusters for start in starts)
  flops = 2.0 * sample.size * distances
  labels = best.labels_
  if limit < count:
    labels = _costs(features, best.cluster_centers_).argmin(axis=1)
    flops += 2.0 * features.size * num_clusters
  order = np.argsort(-np.bincount(labels, minlength=num_clusters), kind='stable')
  return np.argsort(order)[labels], flops


def _balanced(features: Features, labels: Labels, num_clusters: int) -> tuple[Labels, float]:
  """Labels of equal sizes, and the FLOPs that these took."""
  centers, flops = _means(features, labels, num_clusters), 0.0
  for _ in range(_MAX_ROUNDS):
    before = labels
    labels = assign_equally(_costs(features, centers))
    flops += 2.0 * features.size * num_clusters
    if (labels != before).sum() <= _SETTLED * len(labels):
      break
    centers = _means(features, labels, num_clusters)
  return labels, flops


def _costs(features: Features, centers: Float[np.ndarray, 'J F']) -> Float[np.ndarray, 'N J']:
  """Returns squared distances, up to a number for each example."""
  return np.square(centers).sum(axis=1) - 2 * features @ centers.T


def _means(features: Features, labels: Labels, num_clusters: int) -> Float[np.ndarray, 'J F']:
  """Returns the mean of each cluster's features; zero for an empty one."""
  sums = np.zeros((num_clusters, features.shape[1]))
  for number in range(num_clusters):
    members = features[labels == number]
    sums[number] = members.mean(axis=0) if len(members) else 0
  return sums
