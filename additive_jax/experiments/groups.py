"""The groups of training examples that the narrow copies of Exp 5 are trained on: clusters found,
kept in the run directory, and what finding them took.
"""

from __future__ import annotations

import functools
import io
import logging
import time
from typing import NamedTuple

import jax
import numpy as np

from additive_jax.data.cluster_features import embedding_features, input_features, input_flops
from additive_jax.data.clusters import Clusters, cluster
from additive_jax.experiments.fit import Curves, fit
from additive_jax.experiments.narrow import CLOCK, Narrow
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal, replace_file
from additive_jax.models.additive import embed, sites_of, update
from additive_jax.parallel import processes
from additive_jax.train.fleet import Fleet

log = logging.getLogger('additive_jax')


class Grouping(NamedTuple):
  """Clusters of the training examples, and what finding them took; nothing, for a random split.

  Attributes:
    clusters: the clusters.
    flops: of k-means, of the features, and of the training of a model whose embedding they are.
    seconds: of the same, without compiling; that training's are in the journal `CLOCK`.
  """

  clusters: Clusters
  flops: float
  seconds: float


def clusters_of(session: Session, narrow: Narrow, method: str, seed: int) -> Grouping:
  """The clusters of the training examples, found now or read from the run directory.

  Args:
    method: of `clusters.cluster`.
  """
  path = session.rundir.journals / f'clusters-{method}-seed{seed}.npz'
  balanced = session.config.booster.balanced
  if path.exists():
    with np.load(path) as stored:
      kept = {key: stored[key] for key in stored.files}
    # Clusters that do not tell what they took are found again.
    if kept.keys() >= {'flops', 'seconds', 'own_flops'}:
      labels, own = kept['labels'], float(kept['own_flops'])
      even = balanced or method == 'random'
      found = Clusters(
        labels, np.bincount(labels), kept['centers'], float(kept['inertia']), method, even, own
      )
      return Grouping(found, float(kept['flops']), float(kept['seconds']))
  log.info('seed %d: clusters of %d examples, %s', seed, len(session.data.train), method)
  features, spent = _features(session, narrow, seed)
  started = time.perf_counter()
  found = cluster(features, narrow.num_models, method=method, balanced=balanced, seed=seed)
  spent += time.perf_counter() - started
  grouping = Grouping(found, 0.0, 0.0)
  if method != 'random':
    grouping = Grouping(found, found.flops + feature_flops(session, narrow), spent)
  if processes.is_primary():
    stream = io.BytesIO()
    cost = {'flops': grouping.flops, 'seconds': grouping.seconds, 'own_flops': found.flops}
    np.savez(stream, labels=found.labels, centers=found.centers, inertia=found.inertia, **cost)
    replace_file(path, stream.getvalue())
  return grouping


def features_of(session: Session, narrow: Narrow, seed: int) -> np.ndarray:
  """What clusters are found on, of every training example, [N, F]: `config.booster.features`."""
  return _features(session, narrow, seed)[0]


def _features(session, narrow, seed):
  """The features, and the seconds that they took, without training and compiling."""
  x, task = session.data.train.x, session.data.task
  make = lambda x: input_features(x, task)
  if session.config.booster.features == 'embedding':
    variables = _briefly_trained(session, narrow, seed)
    make = lambda x: embedding_features(lambda rows: _stream(narrow.model, variables, rows), x)
    make(x[:1])  # batches are of one size: it compiles what follows
  started = time.perf_counter()
  found = make(x)
  return found, time.perf_counter() - started


def feature_flops(session: Session, narrow: Narrow) -> float:
  """What the features of all examples cost: of inputs `clusters.input_flops`; of an embedding to
  train the model that embeds, and to embed every example."""
  options = session.config.booster
  if options.features == 'inputs':
    return input_flops(session.data.train.x, session.data.task)
  space, steps = narrow.session.space, narrow.session.steps(options.embedding_epochs)
  return steps * narrow.flops_per_step + len(session.data.train) * space.flops(space.all_on())


def _briefly_trained(session, narrow, seed):
  """One narrow model after a short training on all examples, and its `{'params': pool}`."""
  steps = narrow.session.steps(session.config.booster.embedding_epochs)
  fleet = Fleet(
    narrow.session.recipe(steps),
    session.data.train,
    [np.arange(len(session.data.train))],
    batch_size=session.config.train.batch_size,
    seed=seed,
    devices=session.devices[:1],
    chunk_steps=session.config.train.log_every,
  )
  clock = Journal(session.rundir.journals / CLOCK)
  fit(narrow.session, fleet, steps, f'embedding-seed{seed}', Curves(clock=clock))
  return {'params': fleet.members()[0].params}


@functools.partial(jax.jit, static_argnums=0)
def _stream(model, variables, x):
  """What the readout is given, all gates on, [B, ..., D]."""
  h = embed(model, variables, x)
  for i in range(len(sites_of(model))):
    h = update(model, variables, i, h)
  return h
