"""Compression: what a trained network can do without, found by sparse variational dropout and by
magnitude, and cut out.

For each seed: a network is trained for `train.epochs`; all others start from it and take as many
epochs more. One stays dense; one learns its noise for `compress.epochs`, loses what has too much of
it, and is tuned for `compress.tune_epochs`; the others lose what is small, at once, and are tuned
all the time. With `compress.distill` these learn from a teacher as well, which took
`compress.teacher_epochs` more. What variational dropout leaves is cut out and written to
`exported/`, see `exported.export`.
`run` gives a result with:

  variants      variants.csv: a row for each network, means over the seeds
  structures    structures.csv: a row for each network and seed: its gates, what is left of it
  layers        layers.csv: a row for each network and layer, means over the seeds
"""

from additive_jax.experiments.compress.study import STUDY, run

__all__ = ['STUDY', 'run']
