"""Clusters of examples, their features and their pictures, against exact and hand-made answers."""

import sys

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.feature_extraction.text import CountVectorizer

from additive_jax import data
from additive_jax.data import cluster_features, clusters
from additive_jax.data.assignment import assign_equally
from additive_jax.data.cluster_features import embedding_features, input_features, input_flops
from additive_jax.data.ngrams import telling_ngrams
from additive_jax.data.splits import SourceSplit
from additive_jax.errors import UserError
from additive_jax.report import figures
from additive_jax.report.figures.clusters import cluster_colours


@pytest.fixture(scope='module')
def digits():
  return data.load('digits', valid=0.0).train


@pytest.fixture(scope='module')
def features(digits):
  return input_features(digits, max_features=12)


def texts(lines):
  return np.array([list(line.encode()) for line in lines], np.uint8)


def cost_of(costs, labels):
  return costs[np.arange(len(costs)), labels].sum()


def exact(costs):
  """The least cost by an assignment to places: as many of each cluster as all have, and one more
  of each that is free to stay empty."""
  count, num_clusters = costs.shape
  full = costs - 10 * np.abs(costs).max() - 10  # so that these places are filled first
  places = [full] * (count // num_clusters) + [costs] * bool(count % num_clusters)
  row, column = linear_sum_assignment(np.concatenate(places, axis=1))
  assert (row == np.arange(count)).all()
  return cost_of(costs, column % num_clusters)


@pytest.mark.parametrize('kind', ['uniform', 'distances', 'ties', 'copies'])
def test_assignment_is_optimal(kind):
  rng = np.random.default_rng(0)
  for _ in range(12):
    num_clusters = int(rng.integers(1, 9))
    count = int(rng.integers(num_clusters, 100))
    costs = rng.random((count, num_clusters)) * 100
    if kind == 'distances':
      points = rng.normal(size=(count, 2)) * [9, 1]
      costs = np.square(points[:, None] - points[:num_clusters] / 3).sum(axis=2)
    elif kind == 'ties':
      costs = rng.integers(-1, 2, costs.shape).astype(float)
    elif kind == 'copies':
      costs = costs[rng.integers(0, 3, count) % count]
    labels = assign_equally(costs)
    assert np.ptp(np.bincount(labels, minlength=num_clusters)) <= 1
    # Costs are rounded to 2^-51 of their range: 1e-11 for a hundred examples and costs below 100.
    assert cost_of(costs, labels) == pytest.approx(exact(costs), abs=1e-9)


def test_assignment_of_many_examples_has_no_better_neighbour():
  rng = np.random.default_rng(0)
  costs = rng.random((9001, 5)) + np.array([0, 0.1, 0.2, 0.3, 0.9])
  labels = assign_equally(costs)
  assert sorted(np.bincount(labels)) == [1800] * 4 + [1801]
  extra = np.array([(costs[labels == j] - costs[labels == j, j][:, None]).min(0) for j in range(5)])
  shortest = extra  # Floyd and Warshall: a cycle below zero would be a better assignment
  for middle in range(5):
    shortest = np.minimum(shortest, shortest[:, [middle]] + shortest[[middle]])
  assert np.diag(shortest).min() > -1e-8
  greedy = costs.argmin(axis=1)
  assert np.ptp(np.bincount(greedy)) > 1000


def test_kmeans_finds_what_is_apart():
  rng = np.random.default_rng(1)
  truth = np.repeat([0, 1, 2], [50, 30, 20])
  points = rng.normal(size=(100, 2)) + 1e4 + 40.0 * np.eye(3)[truth, :2]
  found = clusters.cluster(points, 3, seed=3)
  assert (found.labels == truth).all()  # numbered by size
  assert found.sizes.tolist() == [50, 30, 20]
  means = [points[truth == j].mean(axis=0) for j in range(3)]
  np.testing.assert_allclose(found.centers, means)
  assert found.inertia == pytest.approx(np.square(points - np.array(means)[truth]).sum())
  assert found.members(2).tolist() == list(range(80, 100))
  nearest = clusters.nearest_examples(points, found, 4)[1]
  distance = np.linalg.norm(points - means[1], axis=1)
  assert nearest.tolist() == np.argsort(distance)[:4].tolist()
  judged = clusters.quality(points, found.labels, truth)
  assert judged.silhouette > 0.9
  assert judged.agreement == pytest.approx(1)
  total = np.square(points - points.mean(axis=0)).sum()
  assert judged.explained == pytest.approx(1 - found.inertia / total)


def test_starts_on_a_sample(monkeypatch):
  """5,000 examples, of which the starts see 4,096; all are assigned."""
  rng = np.random.default_rng(4)
  truth = rng.permutation(np.repeat([0, 1, 2], [2500, 1500, 1000]))
  points = rng.normal(size=(5000, 2)) + 20.0 * np.array([[0, 0], [1, 0], [0, 1]])[truth]
  found = clusters.cluster(points, 3)
  assert (found.labels == truth).all()
  means = [points[truth == j].mean(axis=0) for j in range(3)]
  np.testing.assert_allclose(found.centers, means)
  copies = np.zeros((5000, 1))
  with pytest.raises(UserError, match='num_clusters 2: k-means fills only 1'):
    clusters.cluster(copies, 2)
  monkeypatch.setattr(clusters, '_SAMPLE', 4)  # fewer than clusters
  assert clusters.cluster(points[:200], 20).num_clusters == 20


@pytest.mark.parametrize('count', [300, 6000])
@pytest.mark.parametrize('balanced', [False, True])
def test_flops_by_hand(count, balanced, monkeypatch):
  """Two FLOPs for each number of a distance that was computed."""
  iterations, rounds = [], []
  fit, assign = clusters.KMeans.fit, clusters.assign_equally

  def watched(self, x):
    fit(self, x)
    assert len(x) == min(count, 4096)
    iterations.append(self.n_iter_)
    return self

  monkeypatch.setattr(clusters.KMeans, 'fit', watched)
  monkeypatch.setattr(clusters, 'assign_equally', lambda *a: rounds.append(1) or assign(*a))
  points = np.random.default_rng(0).normal(size=(count, 7))
  found = clusters.cluster(points, 3, balanced=balanced)
  assert len(iterations) == 4
  assert bool(rounds) == balanced
  # k-means++ tries one first centre, then 3 for each of the other two; then the iterations, and the
  # labels at their end.
  sampled = sum(1 + 2 * 3 + 3 * (own + 1) for own in iterations)
  whole = 3 * (len(rounds) + (count > 4096))
  assert found.flops == 2 * 7 * (min(count, 4096) * sampled + count * whole)
  assert clusters.cluster(points, 3, method='random').flops == 0


def test_flops_of_features(digits):
  """Components of 64 pixels, 1,437 images: 10 directions more are followed, 4 times to and fro."""
  found = input_flops(digits, max_features=5)
  products = 2 * 1437 * 64 * 15 * 10
  thin = 2 * 15**2 * (1437 + 64) * 5
  assert found == products + thin + 2 * 1437 * 64 * 5
  assert input_flops(digits, max_features=64) == 0
  assert input_flops(np.zeros((50, 3))) == 0
  tokens = np.zeros((3000, 8), np.uint8)  # 8 + 7 + 6 n-grams each
  text = 2 * 2048 * 21 * 14 * 10 + 2 * 14**2 * (2048 + 16384) * 5 + 2 * 3000 * 21 * 4
  assert input_flops(tokens, 'language', max_features=4) == text


def test_digits_balanced_and_random(features, digits):
  free, even, control = (
    clusters.cluster(features, 10, **options)
    for options in ({}, {'balanced': True}, {'method': 'random'})
  )
  assert [found.name for found in (free, even, control)] == [
    'k-means',
    'balanced k-means',
    'random',
  ]
  assert np.ptp(free.sizes) > 30
  for found in (even, control):
    assert sorted(found.sizes) == [143] * 3 + [144] * 7
  assert free.inertia < even.inertia < 1.1 * free.inertia < control.inertia
  agreement = [
    clusters.quality(features, found.labels, digits.y).agreement for found in (free, even, control)
  ]
  assert min(agreement[:2]) > 0.6
  assert abs(agreement[2]) < 0.02
  # A cluster keeps its number when it is balanced.
  assert (even.labels == free.labels).mean() > 0.6


@pytest.mark.parametrize('options', [{'balanced': True}, {'method': 'random'}])
def test_seed_decides(features, options):
  first, again, other = (
    clusters.cluster(features[:300], 10, seed=seed, **options).labels for seed in (1, 1, 2)
  )
  assert (first == again).all()
  assert (first != other).any()


def test_without_or_tools(monkeypatch):
  monkeypatch.setitem(sys.modules, 'ortools.graph.python.min_cost_flow', None)
  with pytest.raises(UserError, match='clusters of equal sizes without OR-Tools'):
    assign_equally(np.ones((4, 2)))


def test_balanced_copes_with_copies():
  points = np.repeat([[0.0], [1.0]], [9, 2], axis=0)
  found = clusters.cluster(points, 3, balanced=True)
  assert sorted(found.sizes) == [3, 4, 4]
  with pytest.raises(UserError, match='num_clusters 3: k-means fills only 2'):
    clusters.cluster(points, 3)


def test_features_of_images(digits, monkeypatch):
  flat = digits.x.reshape(len(digits), -1)
  found = input_features(digits, max_features=5)
  assert found.dtype == np.float32
  _, _, axes = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
  projected = (flat - flat.mean(axis=0)) @ axes[:5].T
  # Float32 pixels; the signs of components are free.
  np.testing.assert_allclose(np.abs(found), np.abs(projected), atol=2e-3)
  np.testing.assert_array_equal(input_features(digits, max_features=64), flat)
  as_bytes = (digits.x * 255).astype(np.uint8)
  np.testing.assert_allclose(input_features(as_bytes, max_features=64), flat, atol=1.01 / 255)
  monkeypatch.setattr(cluster_features, '_BATCH', 64 * 100)
  asked = []

  def gather(indices):
    asked.append(len(indices))
    return digits[indices]

  split = SourceSplit(len(digits), gather)
  np.testing.assert_allclose(input_features(split, max_features=5), found, atol=1e-5)
  assert max(asked[2:]) == 100  # after a look at the first example and the examples to fit


def test_features_of_tables_and_embeddings():
  rng = np.random.default_rng(0)
  table = rng.normal(5, [1, 100, 0], (50, 3))
  found = input_features(table)
  np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-6)
  np.testing.assert_allclose(found.std(axis=0), [1, 1, 0], atol=1e-6)
  hidden = rng.normal(size=(50, 7, 3)) * [1, 2, 3]
  found = embedding_features(hidden)
  mean = hidden.mean(axis=1)
  # Float32 means.
  np.testing.assert_allclose(found, (mean - mean.mean(0)) / mean.std(0), atol=1e-5)
  shapes = []

  def embed(rows):
    shapes.append(rows.shape)
    return rows

  np.testing.assert_array_equal(embedding_features(embed, hidden, batch_size=16), found)
  assert shapes == [(16, 7, 3)] * 4


def test_ngrams_are_counted():
  rows = texts(['abcabc', 'aaaaaa', 'xyz xy'])
  counts = cluster_features._hashed(rows)
  vectorizer = CountVectorizer(analyzer='char', ngram_range=(1, 3), lowercase=False)
  expected = vectorizer.fit_transform(['abcabc', 'aaaaaa', 'xyz xy'])
  # The few n-grams here fall into columns of their own.
  for ours, theirs in zip(counts.toarray(), expected.toarray()):
    assert sorted(ours[ours > 0]) == sorted(theirs[theirs > 0])
  np.testing.assert_allclose((counts @ counts.T).toarray(), (expected @ expected.T).toarray())


def test_text_clusters_and_what_tells_them():
  rng = np.random.default_rng(0)
  words = [['self.', 'return '], ['0x1f, ', '0x2a, ']]
  kinds = rng.integers(0, 2, 120)
  lines = [''.join(rng.choice(words[kind], 8))[:30] for kind in kinds]
  tokens = texts(lines)
  features = input_features(tokens, 'language', max_features=6)
  assert features.shape == (120, 6)
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
  found = clusters.cluster(features, 2)
  assert clusters.quality(features, found.labels, kinds).agreement == pytest.approx(1)
  told = telling_ngrams(tokens, kinds, top=3)
  assert told['documents'].tolist() == np.bincount(kinds).tolist()
  first, second = told['telling n-grams']
  assert 'self' in first or 'return' in first
  assert '0x' in second
  assert ',␣' in second
  shuffled = telling_ngrams(tokens, rng.permutation(kinds))
  assert shuffled['telling n-grams'].tolist() == ['', '']
  large = telling_ngrams(tokens.astype(int) + 300 * kinds[:, None], kinds, top=1)
  assert large['telling n-grams'][1].startswith('<')


def test_pictures():
  counts = {'k-means': [5, 3, 2], 'random': [4, 3, 3]}
  figure = figures.cluster_sizes(counts)
  assert [axes.get_title('left') for axes in figure.axes] == list(counts)
  assert [bar.get_height() for bar in figure.axes[0].patches] == [5, 3, 2]
  assert figure.axes[1].lines[0].get_ydata()[0] == pytest.approx(10 / 3)
  rng = np.random.default_rng(0)
  truth = np.arange(2500) % 3
  points = rng.normal(size=(2500, 4)) + 20 * np.eye(4)[truth]
  figure = figures.cluster_maps(points, {'k-means': truth, 'random': rng.permutation(truth)})
  apart, mixed = figure.axes
  assert len(apart.collections[0].get_offsets()) == 2000
  np.testing.assert_array_equal(
    apart.collections[0].get_offsets(), mixed.collections[0].get_offsets()
  )
  assert [text.get_text() for text in apart.texts] == ['0', '1', '2']
  assert not mixed.texts  # they would cover one another
  images = [rng.random((count, 4, 4, 1)) for count in (3, 1)]
  figure = figures.cluster_examples(images, [1234, 7])
  assert sum(len(axes.images) for axes in figure.axes) == 4
  assert [text.get_text() for text in figure.axes[0].texts] == ['0', '1,234']
  many = figures.cluster_examples([np.zeros((1, 2, 2, 3))] * 15, [1] * 15)
  assert many.get_suptitle() == 'the first 12 of 15 clusters'
  for count in (3, 15, 50):
    assert len(np.unique(cluster_colours(count), axis=0)) == count


def test_pictures_of_little():
  figures.cluster_sizes({})
  figures.cluster_maps(np.zeros((4, 1)), {'k-means': [0, 0, 1, 1]})
  figures.cluster_examples([np.zeros((0, 4, 4))], [3])


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda x: clusters.cluster(x, 500), 'num_clusters 500 of 100 examples: expected at most'),
    (lambda x: clusters.cluster(x, 0), 'num_clusters 0 of 100 examples: expected at least 1'),
    (lambda x: clusters.cluster(x, 2.5), r'num_clusters 2\.5: expected a whole number'),
    (lambda x: clusters.cluster(x, '2'), "num_clusters '2': expected a whole number"),
    (lambda x: clusters.cluster(x.astype(str), 2), 'features of type <U32: expected numbers'),
    (lambda x: clusters.cluster(x, 2, method='dbscan'), "method 'dbscan': expected one of kmeans"),
    (lambda x: clusters.cluster(x[0], 2), r'features of shape \(3,\): expected \[N, F\]'),
    (
      lambda x: clusters.cluster(np.where(x == x[7, 2], np.nan, x), 2),
      'feature 2 of example 7 is nan: expected finite',
    ),
    (lambda x: input_features(x / 0.0), 'feature 0 of example 0 is -?inf'),
    (
      lambda x: input_features(x, 'vision'),
      "task 'vision': expected one of class",
    ),
    (
      lambda x: input_features(x, 'language'),
      r'language of shape \(3,\) and type float',
    ),
    (lambda x: input_features(x[:0]), 'expected at least one'),
    (lambda x: embedding_features(x[0]), r'an embedding of shape \(3,\)'),
    (lambda x: clusters.quality(x, np.zeros(3, int)), r'expected \[N, F\], \[N\] and \[N\]'),
    (lambda x: telling_ngrams(x, [0, 1]), r'labels of shape \(2,\): expected \[100\]'),
    (lambda x: figures.cluster_maps(x, {'a': [0]}), r"labels 'a' of \(1,\): expected \[100\]"),
    (lambda x: figures.cluster_examples([x], [1]), r'images of shape \(100, 3\)'),
    (lambda x: figures.cluster_examples([x], []), 'images of 1 clusters: expected 0'),
    (lambda x: assign_equally(x[:2]), r'costs of shape \(2, 3\): expected \[N, J\]'),
  ],
)
def test_bad_input(call, message):
  x = np.random.default_rng(0).normal(size=(100, 3))
  with np.errstate(divide='ignore'), pytest.raises(UserError, match=message) as caught:
    call(x)
  assert '\n' not in str(caught.value)
