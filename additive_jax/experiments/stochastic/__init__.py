"""Exp 3: random structures as a regulariser, against the same training with all gates on.

For each seed, pools are trained from the same init on the same data in the same order: with all
gates on, and for each of `config.stochastic.modes` with random structures, for as many epochs and
again for as many FLOPs.
`run` gives a result with:

  table         structures.csv: a row for each structure, with its scores in the pool of each
                variant; columns without a name are of the first one with random structures
  variants      variants.csv: scores of the full network, the train–test gap, means over structures
"""

from additive_jax.experiments.stochastic.study import STUDY, run

__all__ = ['STUDY', 'run']
