"""Arithmetic of networks whose tokens choose: what the chosen parts cost, by which networks are
compared.

Counts are XLA's own for the parts that are chosen (`costs.measure`), which leave out
transcendental functions. What a program computes beyond that, to keep shapes static, is not active:
see `dispatch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import numpy as np

from additive_jax.errors import UserError
from additive_jax.models.additive import parts
from additive_jax.models.attention import Attention
from additive_jax.models.costs import measure, module_flops
from additive_jax.models.dna import DNA
from additive_jax.models.experts import StructureExperts
from additive_jax.models.feed_forward import FeedForward
from additive_jax.models.moe import Experts
from additive_jax.models.routing import Routing
from additive_jax.models.transformer import UNITS, Transformer


def active_flops(
  model: nn.Module, x, facts: dict | None = None, chosen: np.ndarray | None = None
) -> float:
  """FLOPs of one example's forward pass with all gates on, counting only what tokens chose.

  Args:
    model: any additive model.
    x: inputs [1, ...].
    facts: what each site's router did, by the name of its module, averaged over examples (see
      `run.routed`); None takes the shares that routers are steered to, and an even load of the
      modules of a DNA.
    chosen: for a DNA the choice of every token of N examples, int [N, T, S, k]. Attention among c
      tokens costs c², so its cost depends on how choices are spread over the examples; without
      them all count as alike.
  """
  if isinstance(model, DNA):
    return _of_dna(model, x, facts, chosen)
  routing = getattr(model, 'routing', None)
  if isinstance(routing, Experts):
    wide = tuple(size * routing.top_k for size in model.sizes)
    dense = measure(model.clone(routing=None, hidden=wide), x)
    tokens, width = parts(model, x).streams[0].shape[1:]
    routers = 2 * tokens * width * routing.num_experts * model.num_layers
    return dense.flops(dense.all_on()) + routers
  if isinstance(routing, Routing):
    return _of_structures(model, x, facts)
  space = measure(model, x)
  return space.flops(space.all_on())


def _of_structures(model: Transformer, x, facts):
  """Of a transformer with a `Routing`; its feed-forward sites treat every token alike."""
  how = model.routing
  dense = measure(model.clone(routing=None), x)
  total = dense.flops([i % 2 == 0 for i in range(2 * model.num_layers)])  # attention sites alone
  tokens, width = parts(model, x).streams[0].shape[1:]
  router = 2 * width * how.num_logits(model.num_chunks - 1) * (how.router != 'random')
  activation, gated = UNITS[model.unit]
  everywhere = dataclasses.replace(how, keep=1.0)
  for i, size in enumerate(model.sizes):
    site = StructureExperts(size, model.num_chunks, everywhere, activation, gated)
    of_token = module_flops(site, 1, width)
    kept = how.keep
    if facts is not None:
      kept = float(facts[_named(facts, i)].kept)
    score = 2 * width * (how.keep < 1)
    total += tokens * (router + score + kept * (of_token - router))
  return total


def _named(facts, layer):
  """The name of a layer's feed-forward site."""
  return sorted(facts)[layer]


def _of_dna(model: DNA, x, facts, every):
  how = model.modules
  streams = parts(model, x).streams
  tokens, width = streams[0].shape[1:]
  activation, gated = UNITS[model.unit]
  rope = model.positions == 'rope'
  mixer = Attention(model.num_heads, causal=model.causal, rope=rope)
  whole = module_flops(mixer, tokens, width)
  # Of c tokens, attention costs a·c + b·c².
  half = max(1, tokens // 2)
  part = module_flops(mixer, half, width)
  b = (whole / tokens - part / half) / (tokens - half) if tokens > half else 0.0
  a = whole / tokens - b * tokens
  mlp = module_flops(FeedForward(model.hidden, activation=activation, gated=gated), 1, width)
  ends = Transformer(
    1,
    width,
    model.num_heads,
    model.hidden,
    model.num_classes,
    model.num_tokens,
    model.patch_size,
    model.causal,
    model.positions,
    model.max_tokens,
    model.unit,
  )
  total = measure(ends, x).fixed_flops
  total += whole * -(-model.num_backbone // 2) + mlp * tokens * (model.num_backbone // 2)
  for i in range(model.num_steps):
    load = np.full(how.count, 1 / how.count)
    if facts is not None:
      load = np.asarray(facts[f'step_{i:02}'].load, float)
    chosen = load[: how.count - how.identity] * how.top_k * tokens  # tokens of each module
    squared = chosen**2
    number = np.arange(len(chosen))
    if every is not None:
      counts = (every[:, :, i, :, None] == number).sum((1, 2))
      chosen, squared = counts.mean(0), (counts.astype(float) ** 2).mean(0)
    mixes = (number < how.attention) | (number >= how.attention + how.mlp)
    feeds = number >= how.attention
    total += (mixes * (a * chosen + b * squared) + feeds * mlp * chosen).sum()
    total += 2 * tokens * width * how.count  # the router
  return float(total)


def fitted(make: Callable[[int], nn.Module], cost: Callable, target: float, what: str) -> nn.Module:
  """The model whose cost is closest to a target.

  Args:
    make: from a number of hidden units to a model.
    cost: of a model; affine in the hidden units.
    target: of that cost.
    what: said of the cost and the model in an error.

  Raises:
    UserError: when even one hidden unit costs more than the target by over half a unit.
  """
  few, many = 16, 32
  low, high = cost(make(few)), cost(make(many))
  slope = (high - low) / (many - few)
  hidden = round(few + (target - low) / slope)
  if hidden < 1:
    raise UserError(
      f'{what}: {target:.4g}, and {low - few * slope:.4g} without hidden units: expected a smaller '
      'rest or a larger reference (config.model.hidden)'
    )
  return make(hidden)
