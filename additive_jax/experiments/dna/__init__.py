"""Distributed neural architectures, with and without steered skips, against dense networks of the
same compute.

Width, heads, hidden units, positions and units are those of `config.model`, a transformer. The
dense network has its `num_blocks` layers, and hidden units such that its FLOPs are what the free
DNA was measured to use; the shallow one has fewer layers, and the FLOPs of the DNA that skips.
`run` gives a result with:

  table         structures.csv: the networks as one structure each, all gates on
  variants      variants.csv: a row for each network: scores, active FLOPs, parameters
  routers       routers.csv: a row for each network and step
  modules       modules.csv: a row for each module of the last DNA, in the first seed
  paths         paths.csv: a row for each token of some test examples: its path and compute
"""

from additive_jax.experiments.dna.study import STUDY, make_baselines, make_dnas, run

__all__ = ['STUDY', 'make_baselines', 'make_dnas', 'run']
