"""The options of networks whose tokens choose: balance of routers, Exp 4, and DNA."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from additive_jax.experiments.options.rules import (
  Count,
  Few,
  FewOrNone,
  Later,
  NotNegative,
  PositiveShare,
  RateOrNone,
  ShareBelowOne,
  Structures,
  some_of,
)
from additive_jax.models.routing import ROUTERS

NETWORKS = (*ROUTERS, 'single', 'moe')


@dataclasses.dataclass(frozen=True)
class BalanceOptions:
  """How routers are kept balanced, in Exp 4 and DNA."""

  auxiliary: NotNegative = 0.01
  """Weight of the load-balance loss; 0 is none."""
  z: NotNegative = 0.001
  """Weight of the z-loss; 0 is none."""
  bias_rate: NotNegative = 0.0
  """By how much a step moves the biases of choices, in DNA those of the identities, towards
  `dna.skip`; 0 is not at all."""
  keep_rate: NotNegative = 0.05
  """By how much a step moves the biases of tokens' own gates, towards `experts.keep`."""
  router_rate: Later[RateOrNone] = 1.0
  """What multiplies the learning rate of routers, beside `train.learning_rates`."""


@dataclasses.dataclass(frozen=True)
class ExpertsOptions:
  """Exp 4. The dense network is `model`, a transformer, and the others are made from it."""

  variants: Annotated[tuple[str, ...], some_of(*NETWORKS)] = NETWORKS
  """Networks beside the dense one: four routers over the structures of the feed-forward layers, of
  `model.num_chunks` chunks; 'single', the best static structure in a pool trained with `sampler`;
  and 'moe', experts of their own weights."""
  budgets: Annotated[tuple[str, ...], some_of('flops', 'params')] = ('flops', 'params')
  """What each has as much of as the dense network, one network each; FLOPs are the active ones."""
  top_k: Count = 2
  """Structures of each token."""
  renormalise: bool = False
  """Whether the weights of a token's structures sum to 1, or are the router's probabilities."""
  structures: Structures = ()
  """For softmax and random: structures to choose from, of num_chunks − 1 gates; none is all."""
  keep: PositiveShare = 1.0
  """Share of tokens that each feed-forward layer computes; below 1 tokens get gates of
  their own."""
  shared_router: bool = False
  """One router for all layers instead of one for each."""
  num_experts: Few = 8
  """Of moe: experts in each layer."""
  expert_top_k: Count = 2
  """Of moe: experts of each token."""
  num_structures: Count = 1024
  """Static structures among which the best single one is found: all, or that many at random."""


@dataclasses.dataclass(frozen=True)
class DnaOptions:
  """DNA. Width, heads, hidden units, positions and units are those of `model`, a transformer, whose
  num_blocks are the layers of the dense network it is compared with."""

  num_backbone: FewOrNone = 2
  """Dense sublayers that come first, attention and feed-forward in turn."""
  num_steps: Few = 4
  """Steps over one pool of modules, after them."""
  attention: FewOrNone = 4
  """Attention modules in the pool."""
  mlp: FewOrNone = 4
  """Feed-forward modules in the pool."""
  block: FewOrNone = 0
  """Modules in the pool that are whole transformer layers."""
  identity: FewOrNone = 2
  """Modules in the pool that compute nothing."""
  top_k: Count = 2
  """Modules of each token and step."""
  renormalise: bool = False
  """Whether the weights of a token's modules sum to 1, or are the router's probabilities."""
  rescale_inside: bool = False
  """Whether the weight of a block scales each of its two branches instead of their sum."""
  shared_keys: Later[bool] = False
  """Whether one layer makes keys and values of all tokens for all modules, which tokens choose for
  queries and outputs; else a module attends among those that chose it."""
  skip: ShareBelowOne = 0.3
  """Target share of choices that fall on identities, for a second DNA and a shallow dense network;
  0 trains neither. `balance.bias_rate` must be above 0 for it."""
  examples: Count = 256
  """Test examples whose tokens' paths are analysed."""
