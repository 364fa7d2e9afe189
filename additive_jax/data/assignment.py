"""Examples shared out among clusters of equal sizes at the least total cost, exactly.

This is a transportation problem with many examples and few clusters. Its dual has one price per
cluster, and examples that each take what is cheapest with the prices are an optimal assignment for
the sizes that come out. So prices are sought that make the sizes nearly equal, and what is left is
repaired along shortest augmenting paths through the graph of clusters, which keep the assignment
optimal (Ahuja, Magnanti and Orlin, Network Flows, 1993, section 9.7). Work grows with examples ×
clusters, where an assignment of examples to repeated centres takes examples³.

N is a number of examples, J of clusters.
"""

import itertools
from typing import NamedTuple

import numpy as np

from additive_jax.errors import UserError

_STALLED = 4  # sweeps over all prices without a gain, after which paths do the rest
_PATHS = 1000  # so few are left to paths in any case; a sweep is slower
_FEW = 2048  # examples on which prices are sought before all are
# Costs are whole numbers inside, because with rounding errors a cycle of length zero may seem to
# gain, and a search for shortest paths would go round it for ever.
_RANGE = 2**48  # the largest
_TIE = 2**17  # noise below this tells equal costs apart
_FAR = 2**60  # no edge


class Assignment(NamedTuple):
  """Examples shared out.

  Attributes:
    labels: the cluster of every example, int64 [N].
    prices: of the clusters, float64 [J], in the unit of the costs: with them nearly every example
      is where it is cheapest.
  """

  labels: np.ndarray
  prices: np.ndarray


def assign_equally(costs, prices=None):
  """The assignment of least total cost among those whose sizes differ by at most one.

  Exact up to 1e-9 of the costs' range per example: equal costs are told apart by noise, the same in
  every call. Which clusters get one example more, where N is no multiple of J, is part of the
  optimum. Takes about three times the memory of `costs` in float64. Slow, up to some seconds for
  ten thousand examples, only where nearly all examples are copies of a few.

  Args:
    costs: float [N, J] of each example in each cluster, finite; J from 1 to N.
    prices: [J] to begin from, those of similar costs; or None. They change only the time it takes.

  Returns:
    `Assignment`.

  Raises:
    UserError: for costs of another shape, or that are not finite.
  """
  costs = np.array(np.asarray(costs).T, np.float64, order='C')
  if costs.ndim != 2 or not 1 <= len(costs) <= costs.shape[1]:
    raise UserError(f'costs of shape {costs.T.shape}: expected [N, J] with J from 1 to N')
  if not np.isfinite(costs).all():
    raise UserError('costs that are not finite: expected a finite cost of each example and cluster')
  costs -= costs.min(axis=0)  # what an example costs anywhere changes nothing
  unit = (costs.max() or 1.0) / _RANGE
  costs = (costs / unit).astype(np.int64)
  costs += np.random.default_rng(0).integers(_TIE, size=costs.shape)
  num_clusters, count = costs.shape
  few = max(_FEW, 16 * num_clusters)
  if prices is not None:
    prices = np.clip(np.asarray(prices) / unit, -_RANGE, _RANGE).astype(np.int64)
  else:
    prices = np.zeros(num_clusters, np.int64)
    if 2 * few < count:
      prices = _prices(costs[:, np.arange(few) * count // few], prices)
  prices = _prices(costs, prices)
  labels = _repaired(costs, (costs + prices[:, None]).argmin(axis=0), prices)
  return Assignment(labels, prices * unit)


def _prices(costs, prices):
  """Prices [J] with which nearly as many of the examples of `costs` [J, N] take each cluster.

  Ascends the concave dual one price at a time, each to where N / J examples take its cluster.
  """
  num_clusters, count = costs.shape
  if num_clusters == 1:
    return prices
  prices = prices.copy()
  quota = np.diff(np.arange(num_clusters + 1) * count // num_clusters)
  least, stalled = count, 0
  while stalled < _STALLED:
    priced = costs + prices[:, None]
    sizes = np.bincount(priced.argmin(axis=0), minlength=num_clusters)
    wrong = np.abs(sizes - quota).sum() // 2
    if wrong <= max(num_clusters, min(num_clusters**2, _PATHS)):
      break
    least, stalled = (wrong, 0) if wrong < 0.9 * least else (least, stalled + 1)
    for cluster in np.argsort(quota - sizes, kind='stable'):
      priced[cluster] = _FAR
      margin = costs[cluster] - priced.min(axis=0)
      margin.partition((quota[cluster] - 1, quota[cluster]))
      prices[cluster] = -(margin[quota[cluster] - 1 : quota[cluster] + 1].sum() // 2)
      priced[cluster] = costs[cluster] + prices[cluster]
  return prices


def _repaired(costs, labels, prices):
  """Moves examples along shortest paths until sizes are even; `labels` are optimal for theirs.

  The graph has a node for each cluster, with an edge from a to b as long as the least extra cost of
  any example of a in b, and one node more for the `N mod J` places over: a cluster that has one
  may hand it to a cluster that has none.
  """
  num_clusters, count = costs.shape
  floor, spare = divmod(count, num_clusters)
  over = np.zeros(num_clusters, bool)
  over[np.argsort(-prices, kind='stable')[:spare]] = True
  excess = np.zeros(num_clusters + 1, np.int64)
  excess[:-1] = np.bincount(labels, minlength=num_clusters) - floor - over
  lengths = np.full((num_clusters + 1, num_clusters + 1), _FAR)
  movers = np.zeros((num_clusters, num_clusters), np.int64)

  def measure(cluster):
    lengths[cluster, :-1] = _FAR
    lengths[cluster, -1], lengths[-1, cluster] = (_FAR, 0) if over[cluster] else (0, _FAR)
    members = np.flatnonzero(labels == cluster)
    if members.size:
      extra = costs[:, members] - costs[cluster, members]
      movers[cluster] = members[extra.argmin(axis=1)]
      lengths[cluster, :-1] = extra.min(axis=1)
      lengths[cluster, cluster] = _FAR

  for cluster in range(num_clusters):
    measure(cluster)
  while (excess > 0).any():
    path = _shortest_path(lengths, excess)
    for source, target in itertools.pairwise(path):
      if target == num_clusters:
        over[source] = True
      elif source == num_clusters:
        over[target] = False
      else:
        labels[movers[source, target]] = target
    excess[path[0]] -= 1
    excess[path[-1]] += 1
    for cluster in path:
      if cluster < num_clusters:
        measure(cluster)
  return labels


def _shortest_path(lengths, excess):
  """The nodes of the shortest path from any node with too much to any with too little.

  Bellman and Ford's; lengths may be negative, but no cycle is.
  """
  distance = np.where(excess > 0, 0, _FAR)
  before = np.full(len(excess), -1)
  for _ in range(len(excess)):
    through = distance[:, None] + lengths
    nearest = through.argmin(axis=0)
    found = through[nearest, np.arange(len(excess))]
    shorter = found < distance
    if not shorter.any():
      break
    distance = np.where(shorter, found, distance)
    before = np.where(shorter, nearest, before)
  path = [int(np.where(excess < 0, distance, _FAR).argmin())]
  while before[path[-1]] >= 0:
    path.append(int(before[path[-1]]))
  return path[::-1]
