"""Exp 2: trains the best K structures together in one pool, against the same K trained alone.

The structures come from `config.structures`, from the Exp 1 run directory
`config.structures_from`, or from a short shared sweep.
`run` gives a result with:

  table         structures.csv: a row for each structure, best first, co-trained and alone
  comparison    comparison.csv: the same in long form, with the ensembles
  cosines       cosines.csv: cosine between gradients of structures at the end, mean over seeds
"""

from additive_jax.experiments.cotrain.study import STUDY, run

__all__ = ['STUDY', 'run']
