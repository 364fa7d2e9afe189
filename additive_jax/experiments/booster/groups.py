"""The groups of training examples that narrow copies are trained on: clusters found, kept in the
run directory, and what finding them took.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from additive_jax.batches import rows
from additive_jax.data.cluster_features import embedding_features, input_features, input_flops
from additive_jax.data.clusters import Clusters, cluster
from additive_jax.experiments.booster.narrow import Narrow
from additive_jax.files.arrays import load_arrays, save_arrays
from additive_jax.files.seal import DamagedError
from additive_jax.models.additive import embed, sites_of, update
from additive_jax.models.side import stream_of
from additive_jax.parallel import processes

log = logging.getLogger('additive_jax')


class Grouping(NamedTuple):
  """Clusters of the training examples, and what finding them took; nothing, for a random split.

  Attributes:
    clusters: the clusters.
    flops: of k-means, of the features, and of the training of a model whose embedding they are.
    seconds: of the same, without compiling; that training's are in the run's clock.
  """

  clusters: Clusters
  flops: float
  seconds: float


def clusters_of(narrow: Narrow, method: str, seed: int) -> Grouping:
  """Returns the clusters of the training examples, found now or read from the run directory.

  Args:
    narrow: the copies, one for each cluster.
    method: of `clusters.cluster`.
    seed: names the clusters.
  """
  session = narrow.large
  path = session.rundir.journals / f'clusters-{method}-seed{seed}.npz'
  balanced = session.config.booster.balanced
  if path.exists() and (grouping := _read(path, method, balanced or method == 'random')):
    return grouping
  log.info('seed %d: clusters of %d examples, %s', seed, len(session.data.train), method)
  features, seconds = features_of(narrow, seed)
  started = time.perf_counter()
  clusters = cluster(features, narrow.num_models, method=method, balanced=balanced, seed=seed)
  seconds += time.perf_counter() - started
  grouping = Grouping(clusters, 0.0, 0.0)
  if method != 'random':
    grouping = Grouping(clusters, clusters.flops + feature_flops(narrow), seconds)
  if processes.is_primary():
    parts = {key: getattr(clusters, key) for key in ('labels', 'centers', 'inertia')}
    flops, seconds = grouping.flops, grouping.seconds
    costs = {'flops': flops, 'seconds': seconds, 'own_flops': clusters.flops}
    save_arrays(path, parts | costs)
  return grouping


def _read(path, method, even) -> Grouping | None:
  """The grouping in a file; None for one that is damaged or does not tell what it took."""
  try:
    stored = load_arrays(path)
  except DamagedError as error:
    log.warning('%s is damaged (%s); the clusters are found again', path, error)
    return None
  if not stored.keys() >= {'labels', 'centers', 'inertia', 'flops', 'seconds', 'own_flops'}:
    return None
  labels, inertia = stored['labels'], float(stored['inertia'])
  sizes, flops = np.bincount(labels), float(stored['own_flops'])
  clusters = Clusters(labels, sizes, stored['centers'], inertia, method, even, flops)
  return Grouping(clusters, float(stored['flops']), float(stored['seconds']))


def features_of(narrow: Narrow, seed: int) -> tuple[Float[np.ndarray, 'examples features'], float]:
  """Returns what clusters are found on, of every training example (`config.booster.features`), and
  the seconds that it took, without training and compiling."""
  session = narrow.large
  x, task = session.in_memory().x, session.data.task_name
  make = lambda x: input_features(x, task)
  if session.config.booster.features == 'embedding':
    variables = narrow.briefly_trained(seed)
    make = lambda x: embedding_features(lambda part: _stream(narrow.model, variables, part), x)
    make(rows(x, slice(1)))  # batches are of one size: it compiles what follows
  started = time.perf_counter()
  features = make(x)
  return features, time.perf_counter() - started


def feature_flops(narrow: Narrow) -> float:
  """Returns what the features of all examples cost: of inputs `clusters.input_flops`; of an
  embedding to train the model that embeds, and to embed every example."""
  options, data = narrow.large.config.booster, narrow.large.data
  if options.features == 'inputs':
    return input_flops(narrow.large.in_memory().x, data.task_name)
  space, steps = narrow.session.space, narrow.session.training.steps(options.embedding_epochs)
  return steps * narrow.flops_per_step + len(data.train) * space.flops(space.all_on())


@functools.partial(jax.jit, static_argnums=0)
def _stream(model, variables, x):
  """What the readout is given, all gates on, [B, ..., D]."""
  h = embed(model, variables, x)
  for i in range(len(sites_of(model))):
    h = update(model, variables, i, h)
  return stream_of(h)
