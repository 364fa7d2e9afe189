"""Prune: the smaller network within a network, under a budget.

    pool (trained, given, or pretrained) ─▶ structures within the budget, found on calibration sets
      ─▶ the best K healed together, with a frozen teacher ─▶ ranked again ─▶ the best one exported

`run` gives a result with:

  networks      networks.csv: test scores, FLOPs, parameters and seconds: before, unhealed, after
  candidates    candidates.csv: structures within the budget, and what healing made of some
  methods       methods.csv: the best of each method at each budget (a share of the full cost),
                over the calibration sets; one row where it is the same at several
  paths         paths.csv: the best structure at every cost, of each search
  gates         gates.csv: what each part does alone and on average, and costs
  samples       samples.csv: how the networks go on with test texts, of causal language models

and `exported/` in the run directory: the chosen structure as a network of its own, of a pretrained
one as a directory that transformers opens.
"""

from additive_jax.experiments.prune.front import Pruned, prune
from additive_jax.experiments.prune.study import STUDY, run

__all__ = ['STUDY', 'Pruned', 'prune', 'run']
