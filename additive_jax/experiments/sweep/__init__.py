"""Exp 1: ranks the structures of a model, each trained alone and all in one shared pool.

See the sections `sweep`, `sampler` and `search` of the options.
`run` gives a result with:

  table         structures.csv: a row for each structure, best first
  effects       effects.csv: main effect of each gate on the loss, with its interval
  interactions  interactions.csv: interactions of gates in pairs
  agreement     how well the shared pool ranks the standalone losses, and the noise ceiling
"""

from additive_jax.experiments.sweep.study import STUDY, run

__all__ = ['STUDY', 'run']
