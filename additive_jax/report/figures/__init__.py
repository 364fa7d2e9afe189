"""The pictures of a run. Each function takes a frame or arrays and gives a
`matplotlib.figure.Figure`, for `report.page.picture` or for a notebook.

Nothing here touches pyplot or global settings. A figure copes with what is not there: values that
are not finite are left out, a missing interval is not drawn, and where there is nothing to see, the
figure says so. A new picture belongs in the file of its subject, is drawn with `style.drawing` and
the parts of `marks`, and is named here.
"""

from additive_jax.report.figures.arms import (
  budgets,
  comparison,
  differences,
  distributions,
  scores,
)
from additive_jax.report.figures.booster import savings, spent
from additive_jax.report.figures.cells import image_paths, text_paths
from additive_jax.report.figures.clusters import cluster_examples, cluster_maps, cluster_sizes
from additive_jax.report.figures.modules import (
  flow,
  information,
  module_colours,
  reuse,
  specialisation,
)
from additive_jax.report.figures.pipeline import pipeline_timeline
from additive_jax.report.figures.pruning import contributions, search_paths
from additive_jax.report.figures.routing import compute_shares, rank_frequency, utilisation
from additive_jax.report.figures.several import fronts
from additive_jax.report.figures.sparsity import compression, layers_left, log_alpha
from additive_jax.report.figures.sweep import (
  agreement,
  cosines,
  gate_effects,
  interaction_heatmap,
  pareto,
  ranking,
  structures,
)
from additive_jax.report.figures.training import keep_rates, mean_curves, training_curves
