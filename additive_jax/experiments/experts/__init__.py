"""Exp 4: tokens choose among the structures of a layer, against a dense network, its best single
structure, experts of their own weights, and a choice at random.

The dense network is `config.model`, a transformer. Every other one of `config.experts.variants`
takes its place twice: with hidden units such that its active FLOPs are those of the dense network,
and such that its parameters are.
`run` gives a result with:

  table         structures.csv: a row for each static structure of the feed-forward layers,
                ranked in one pool; the dense network alone where none were ranked
  variants      variants.csv: a row for each network: scores, active FLOPs, parameters
  routers       routers.csv: a row for each network and layer with a router
"""

from additive_jax.experiments.experts.study import STUDY, make_contenders, run

__all__ = ['STUDY', 'make_contenders', 'run']
