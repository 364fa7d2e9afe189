"""The pictures of clusters: how large they are, where they lie, and what is in them.

N is a number of examples, F of features, J of clusters. A cluster has one number and one colour in
all pictures; the number's colour depends on J.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike

from additive_jax.errors import UserError
from additive_jax.report.figures import style

_MAX_POINTS = 2000  # of a map
_MAX_NUMBERED = 40  # clusters that have their number in a map
_APART = 0.03  # of the map's width or height, between two numbers
_MAX_ROWS = 12  # clusters of a picture of examples
_MAX_ACROSS = 10  # examples of a cluster


def cluster_colours(num_clusters: int) -> Float[np.ndarray, 'clusters 4']:
  """Returns a colour `(r, g, b, a)` for each cluster: distinct ones up to 20, then a rainbow.

  >>> cluster_colours(3).shape
  (3, 4)
  """
  if num_clusters <= len(style.PALETTE):
    return to_rgba_array(style.PALETTE[:num_clusters])
  if num_clusters <= 20:
    # Strong colours first, their light forms after them.
    tones = matplotlib.colormaps['tab20'](np.arange(20))
    return np.concatenate([tones[::2], tones[1::2]])[:num_clusters]
  return matplotlib.colormaps['turbo'](np.linspace(0.03, 0.97, num_clusters))


def cluster_sizes(counts: Mapping[str, ArrayLike]) -> Figure:
  """Draws examples in each cluster as bars, a panel for each clustering; the dashed line is even.

  >>> figure = cluster_sizes({'k-means': [30, 70], 'random': [50, 50]})
  >>> [axes.get_title('left') for axes in figure.axes]
  ['k-means', 'random']

  Args:
    counts: by clustering the sizes of its clusters `[J]`.
  """
  if not counts:
    return style.empty('nothing to compare')
  widest = max(np.size(sizes) for sizes in counts.values())
  size = (min(1.0 + max(2.0, 0.22 * widest) * len(counts), 13), 2.5)
  with style.drawing(*size, columns=len(counts), sharey=True) as (figure, [panels]):
    for axes, (name, sizes) in zip(panels, counts.items()):
      count = np.size(sizes)
      axes.bar(range(count), sizes, 0.75, color=cluster_colours(count))
      axes.axhline(np.asarray(sizes).mean(), color=style.INK, lw=1.0, ls='--')
      axes.set_title(str(name))
      axes.grid(axis='x', visible=False)
      axes.set_xlim(-0.7, count - 0.3)
      axes.xaxis.get_major_locator().set_params(integer=True, nbins=10)
    panels[0].set_ylabel('examples')
    figure.supxlabel('cluster', fontsize=9.5)
  return figure


def cluster_maps(features: ArrayLike, labels: Mapping[str, ArrayLike], seed: int = 0) -> Figure:
  """Draws examples on the first two principal components of their features, coloured by cluster.

  At most 2,000 examples are drawn, the same in each panel. Numbers stand at the clusters' means,
  where these are apart.

  >>> features = [[0.0, 0.0], [0.0, 0.1], [1.0, 0.0], [1.0, 0.1]]
  >>> figure = cluster_maps(features, {'k-means': [0, 0, 1, 1]})
  >>> figure.axes[0].get_xlabel()
  'first component (99% of the variance)'

  Args:
    features: `[N, F]`.
    labels: by clustering the cluster of each example, `[N]`: for example k-means beside random.
    seed: draws the examples.
  """
  features = np.asarray(features, np.float64)
  clusterings = {name: np.asarray(values) for name, values in labels.items()}
  for name, values in clusterings.items():
    if values.shape != features.shape[:1]:
      raise UserError(f'labels {name!r} of {values.shape}: expected [{len(features)}]')
  if not clusterings or not features.size:
    return style.empty('nothing to compare')
  sample = np.random.default_rng(seed).permutation(len(features))[:_MAX_POINTS]
  points, shares = _projected(features, sample)
  size = (0.6 + 4.2 * len(clusterings), 3.9)
  with style.drawing(*size, columns=len(clusterings), sharey=True) as (figure, [panels]):
    for axes, (name, values) in zip(panels, clusterings.items()):
      colours = cluster_colours(int(values.max()) + 1)
      dots = {'s': 9 if len(sample) > 300 else 18, 'alpha': 0.65, 'lw': 0, 'rasterized': True}
      axes.scatter(*points[sample].T, c=colours[values[sample]], **dots)
      if len(colours) <= _MAX_NUMBERED:
        _number(axes, points, values)
      axes.set_title(str(name))
      axes.set_xlabel(f'first component ({shares[0]:.0%} of the variance)')
      axes.set(xticks=[], yticks=[])
    panels[0].set_ylabel(f'second component ({shares[1]:.0%})')
  return figure


def _projected(features, sample):
  """Returns all of `features` on the first two components of the sample, and each one's share."""
  points, shares = np.zeros((len(features), 2)), np.zeros(2)
  count = min(2, features.shape[1], len(sample))
  if np.ptp(features[sample], axis=0).any():
    from sklearn.decomposition import PCA  # takes long to load, and starts wait for nothing of it

    pca = PCA(count, random_state=0).fit(features[sample])
    points[:, :count] = pca.transform(features)
    shares[:count] = pca.explained_variance_ratio_
  return points, shares


def _number(axes, points, labels):
  """Draws numbers at the means of clusters, but for those that would cover one another."""
  halo = [withStroke(linewidth=3, foreground='white')]
  look = {'ha': 'center', 'va': 'center', 'fontsize': 10, 'fontweight': 'bold', 'color': style.INK}
  span = np.ptp(points, axis=0)
  numbers = np.unique(labels)
  means = np.array([points[labels == number].mean(axis=0) for number in numbers])
  for number, mean in zip(numbers, means):
    near = (np.abs(means - mean) < _APART * span).all(axis=1)
    if near.sum() == 1:
      axes.text(*mean, str(number), path_effects=halo, zorder=4, **look)


def cluster_examples(images: Sequence[ArrayLike], sizes: Sequence[int]) -> Figure:
  """Draws images of each cluster in a row, such as those nearest its centre.

  At most 12 clusters and 10 images of each are drawn; a title says what is left out.

  >>> images = [np.zeros((2, 8, 8)), np.ones((1, 8, 8))]  # two of cluster 0, one of cluster 1
  >>> figure = cluster_examples(images, sizes=[1200, 800])
  >>> [text.get_text() for axes in figure.axes for text in axes.texts]
  ['0', '1,200', '1', '800']

  Args:
    images: for each of J clusters an array `[k, H, W]` or `[k, H, W, C]`, C 1 or 3; k may differ.
    sizes: examples of each cluster, `[J]`.
  """
  rows = [np.asarray(row) for row in images]
  if len(rows) != len(sizes):
    raise UserError(f'images of {len(rows)} clusters: expected {len(sizes)}, as many as sizes')
  for row in rows:
    if row.ndim not in (3, 4) or (row.ndim == 4 and row.shape[3] not in (1, 3)):
      raise UserError(f'images of shape {row.shape}: expected [k, H, W], or with 1 or 3 channels')
  visible = rows[:_MAX_ROWS]
  across = min(max(map(len, visible), default=0), _MAX_ACROSS)
  if not across:
    return style.empty('no images')
  low = min(float(row.min()) for row in visible if row.size)
  high = max(float(row.max()) for row in visible if row.size)
  colours = cluster_colours(len(rows))
  size, gaps = (1.6 + 0.6 * across, 0.35 + 0.62 * len(visible)), {'wspace': 0.04, 'hspace': 0.06}
  with style.drawing(*size, len(visible), across, gridspec_kw=gaps) as (figure, grid):
    for number, (row, line) in enumerate(zip(visible, grid)):
      for axes in line:
        axes.set_axis_off()
      for axes, image in zip(line, (row - low) / (high - low or 1)):
        axes.imshow(image, cmap='gray_r', vmin=0, vmax=1)
      placement = {'transform': line[0].transAxes, 'ha': 'right', 'va': 'center'}
      line[0].text(-0.15, 0.64, str(number), color=colours[number], fontweight='bold', **placement)
      line[0].text(-0.15, 0.28, f'{sizes[number]:,}', color=style.GREY, fontsize=8, **placement)
    if len(visible) < len(rows):
      figure.suptitle(
        f'the first {len(visible)} of {len(rows)} clusters', fontsize=9, color=style.GREY
      )
  return figure
