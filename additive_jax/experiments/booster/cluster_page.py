"""What the page of Exp 5 shows of the clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from additive_jax.data import Data
from additive_jax.data.clusters import Clusters, nearest_examples, quality
from additive_jax.data.ngrams import telling_ngrams
from additive_jax.report import figures
from additive_jax.report.page import Piece, picture, table


def cluster_pieces(
  data: Data, features: Float[np.ndarray, 'N F'], clusterings: Sequence[Clusters]
) -> list[Piece]:
  """Returns pictures and tables of the clusters.

  Args:
    data: the data.
    features: what was clustered.
    clusterings: ways to cluster the same examples, the one that is shown in full first.
  """
  named = {clusters.name: clusters for clusters in clusterings}
  return [
    picture(
      figures.cluster_sizes({name: clusters.sizes for name, clusters in named.items()}),
      'Training examples in each cluster, first seed; dashed: even.',
    ),
    picture(
      figures.cluster_maps(features, {name: clusters.labels for name, clusters in named.items()}),
      'Training examples on the first two principal components of what was clustered, first seed.',
    ),
    table(
      _qualities(data, features, named),
      'Silhouette: how much nearer an example is to its own cluster than to the next, −1 to 1; '
      'explained: share of the variance that lies between the centres; agreement with the labels: '
      'adjusted mutual information, 0 by chance. First seed.',
    ),
    *_examples(data, features, clusterings[0]),
  ]


def _examples(data, features, clusters):
  if data.task == 'language':
    ngrams = telling_ngrams(data.train.x, clusters.labels)
    return [table(ngrams, f'What tells the clusters ({clusters.name}) apart, first seed.')]
  if len(data.example_shape) not in (2, 3):
    return []
  images = [np.asarray(data.train.x[rows]) for rows in nearest_examples(features, clusters)]
  return [
    picture(
      figures.cluster_examples(images, clusters.sizes),
      f'The images nearest the centre of each cluster ({clusters.name}), first seed.',
    )
  ]


def _qualities(data, features, named: Mapping[str, Clusters]) -> pd.DataFrame:
  """A row for each way to cluster."""
  classes = np.asarray(data.train.y) if data.task == 'classification' else None
  rows = [
    {'clusters': name, **quality(features, clusters.labels, classes)._asdict()}
    for name, clusters in named.items()
  ]
  frame = pd.DataFrame(rows)
  return frame if classes is not None else frame.drop(columns='agreement')
