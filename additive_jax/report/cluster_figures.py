"""The pictures of clusters: how large they are, where they lie, and what is in them.

Each function returns a `matplotlib.figure.Figure`. N is a number of examples, F of features, J of
clusters. A cluster has one number and one colour in all pictures; the number's colour depends on J.
"""

import matplotlib
import numpy as np
from matplotlib.patheffects import withStroke
from sklearn.decomposition import PCA

from additive_jax.errors import UserError
from additive_jax.report.plot_style import GREY, INK, PALETTE, drawing, say_empty
from additive_jax.report.routing_figures import panels

_MAX_POINTS = 2000  # of a map
_MAX_NUMBERED = 40  # clusters that have their number in a map
_APART = 0.03  # of the map's width or height, between two numbers
_MAX_ROWS = 12  # clusters of a picture of examples
_MAX_ACROSS = 10  # examples of a cluster


def cluster_colours(num_clusters):
  """A colour `(r, g, b, a)` for each cluster, [J, 4]: distinct ones up to 20, then a rainbow."""
  if num_clusters <= len(PALETTE):
    return np.array([matplotlib.colors.to_rgba(colour) for colour in PALETTE[:num_clusters]])
  if num_clusters <= 20:
    # Strong colours first, their light forms after them.
    shades = matplotlib.colormaps['tab20'](np.arange(20))
    return np.concatenate([shades[::2], shades[1::2]])[:num_clusters]
  return matplotlib.colormaps['turbo'](np.linspace(0.03, 0.97, num_clusters))


def sizes(counts):
  """Examples in each cluster as bars, a panel for each way to cluster; the dashed line is even.

  Args:
    counts: by name the sizes of clusters [J].
  """
  counts = {name: np.asarray(values) for name, values in counts.items()}
  widest = max((len(values) for values in counts.values()), default=1)
  width = min(1.0 + max(2.0, 0.22 * widest) * max(len(counts), 1), 13)
  with panels(width, 2.5, 1, max(len(counts), 1), sharey=True) as (figure, (row,)):
    if not counts:
      say_empty(row[0], 'nothing to compare')
      return figure
    for axes, (name, values) in zip(row, counts.items()):
      axes.bar(np.arange(len(values)), values, 0.75, color=cluster_colours(len(values)))
      axes.axhline(values.mean(), color=INK, lw=1.0, ls='--')
      axes.set_title(str(name))
      axes.grid(axis='x', visible=False)
      axes.set_xlim(-0.7, len(values) - 0.3)
      axes.xaxis.get_major_locator().set_params(integer=True, nbins=10)
    row[0].set_ylabel('examples')
    figure.supxlabel('cluster', fontsize=9.5)
  return figure


def maps(features, labels, seed=0):
  """Examples on the first two principal components of their features, coloured by cluster.

  At most 2,000 examples are drawn, the same in each panel. Numbers stand at the clusters' means,
  where these are apart.

  Args:
    features: [N, F].
    labels: by name the cluster of each example, [N]: for example k-means beside random.
    seed: draws the examples.
  """
  features = np.asarray(features, np.float64)
  labels = {name: np.asarray(values) for name, values in labels.items()}
  for name, values in labels.items():
    if values.shape != features.shape[:1]:
      raise UserError(f'labels {name!r} of {values.shape}: expected [{len(features)}]')
  with panels(0.6 + 4.2 * max(len(labels), 1), 3.9, 1, max(len(labels), 1), sharey=True) as (
    figure,
    (row,),
  ):
    if not labels or not features.size:
      say_empty(row[0], 'nothing to compare')
      return figure
    chosen = np.random.default_rng(seed).permutation(len(features))[:_MAX_POINTS]
    places, shares = _projected(features, chosen)
    for axes, (name, values) in zip(row, labels.items()):
      colours = cluster_colours(int(values.max()) + 1)
      size = 9 if len(chosen) > 300 else 18
      points = places[chosen]
      axes.scatter(*points.T, s=size, c=colours[values[chosen]], alpha=0.65, lw=0, rasterized=True)
      if len(colours) <= _MAX_NUMBERED:
        _number(axes, places, values)
      axes.set_title(str(name))
      axes.set_xlabel(f'first component ({shares[0]:.0%} of the variance)')
      axes.set(xticks=[], yticks=[])
    row[0].set_ylabel(f'second component ({shares[1]:.0%})')
  return figure


def _projected(features, chosen):
  """All of `features` on the first two components of the chosen ones, and each one's share."""
  places, shares = np.zeros((len(features), 2)), np.zeros(2)
  count = min(2, features.shape[1], len(chosen))
  if np.ptp(features[chosen], axis=0).any():
    pca = PCA(count, random_state=0).fit(features[chosen])
    places[:, :count] = pca.transform(features)
    shares[:count] = pca.explained_variance_ratio_
  return places, shares


def _number(axes, places, labels):
  """Numbers at the means of clusters, but for those that would cover one another."""
  halo = [withStroke(linewidth=3, foreground='white')]
  look = {'ha': 'center', 'va': 'center', 'fontsize': 10, 'fontweight': 'bold'}
  span = np.ptp(places, axis=0)
  numbers = np.unique(labels)
  means = np.array([places[labels == number].mean(axis=0) for number in numbers])
  for number, mean in zip(numbers, means):
    near = (np.abs(means - mean) < _APART * span).all(axis=1)
    if near.sum() == 1:
      axes.text(*mean, str(number), color=INK, path_effects=halo, zorder=4, **look)


def examples(images, sizes):
  """Images of each cluster in a row, such as those nearest its centre.

  At most 12 clusters and 10 images of each are drawn; a title says what is left out.

  Args:
    images: for each of J clusters an array [k, H, W] or [k, H, W, C], C 1 or 3; k may differ.
    sizes: examples of each cluster, [J].
  """
  images = [np.asarray(row) for row in images]
  if len(images) != len(sizes):
    raise UserError(f'images of {len(images)} clusters: expected {len(sizes)}, as many as sizes')
  for row in images:
    if row.ndim not in (3, 4) or (row.ndim == 4 and row.shape[3] not in (1, 3)):
      raise UserError(f'images of shape {row.shape}: expected [k, H, W], or with 1 or 3 channels')
  shown = images[:_MAX_ROWS]
  across = min(max((len(row) for row in shown), default=0), _MAX_ACROSS)
  if not across:
    with drawing(4, 1.5) as (figure, (axes,)):
      say_empty(axes, 'no images')
    return figure
  low = min(float(row.min()) for row in shown if row.size)
  high = max(float(row.max()) for row in shown if row.size)
  colours = cluster_colours(len(images))
  grid = {'gridspec_kw': {'wspace': 0.04, 'hspace': 0.06}}
  height = 0.35 + 0.62 * len(shown)
  with panels(1.6 + 0.6 * across, height, len(shown), across, **grid) as (figure, cells):
    for number, (row, line) in enumerate(zip(shown, cells)):
      for axes in line:
        axes.set_axis_off()
      for axes, image in zip(line, row):
        _picture(axes, image, low, high)
      beside = {'transform': line[0].transAxes, 'ha': 'right', 'va': 'center'}
      line[0].text(-0.15, 0.64, str(number), color=colours[number], fontweight='bold', **beside)
      line[0].text(-0.15, 0.28, f'{sizes[number]:,}', color=GREY, fontsize=8, **beside)
    if len(shown) < len(images):
      figure.suptitle(f'the first {len(shown)} of {len(images)} clusters', fontsize=9, color=GREY)
  return figure


def _picture(axes, image, low, high):
  image = image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image
  if image.ndim == 3:
    axes.imshow((image - low) / (high - low or 1))
  else:
    axes.imshow(image, cmap='gray_r', vmin=low, vmax=high)
