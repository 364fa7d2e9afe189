"""What the page of Exp 5 shows of the clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from additive_jax.data.clusters import Clusters, nearest_examples, quality, telling_ngrams
from additive_jax.report import cluster_figures


def cluster_pictures(data, features: np.ndarray, found: Sequence[Clusters]) -> list:
  """Figures and tables with their captions.

  Args:
    data: a `data.Data`.
    features: [N, F], what was clustered.
    found: ways to cluster the same examples, the one that is shown in full first.
  """
  named = {clusters.name: clusters for clusters in found}
  first = found[0]
  pictures = [
    (
      cluster_figures.sizes({name: clusters.sizes for name, clusters in named.items()}),
      'Training examples in each cluster, first seed; dashed: even.',
    ),
    (
      cluster_figures.maps(features, {name: clusters.labels for name, clusters in named.items()}),
      'Training examples on the first two principal components of what was clustered, first seed.',
    ),
    (
      _qualities(data, features, named),
      'Silhouette: how much nearer an example is to its own cluster than to the next, −1 to 1; '
      'explained: share of the variance that lies between the centres; agreement with the labels: '
      'adjusted mutual information, 0 by chance. First seed.',
    ),
  ]
  if data.task == 'language':
    table = telling_ngrams(data.train.x, first.labels)
    pictures.append((table, f'What tells the clusters ({first.name}) apart, first seed.'))
  elif len(data.example_shape) in (2, 3):
    nearest = nearest_examples(features, first)
    images = [np.asarray(data.train.x[own]) for own in nearest]
    said = f'The images nearest the centre of each cluster ({first.name}), first seed.'
    pictures.append((cluster_figures.examples(images, first.sizes), said))
  return pictures


def _qualities(data, features, named):
  """A row for each way to cluster."""
  classes = np.asarray(data.train.y) if data.task == 'classification' else None
  rows = []
  for name, clusters in named.items():
    found = quality(features, clusters.labels, classes)
    rows.append({'clusters': name, **found._asdict()})
  frame = pd.DataFrame(rows)
  return frame if classes is not None else frame.drop(columns='agreement')
