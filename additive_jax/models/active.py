"""Arithmetic of networks whose tokens choose: FLOPs of what they chose, by which networks compare.

Counts are those of `flops` for the parts that are chosen, which leave out transcendental functions.
What a program computes beyond that, to keep shapes static, is not active: see `gates.dispatch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import numpy as np
from jaxtyping import Int

from additive_jax.batches import Shapes
from additive_jax.errors import UserError
from additive_jax.files.kept import kept
from additive_jax.gates.routers import Facts
from additive_jax.models.additive import Inputs, shape_of
from additive_jax.models.attention import Attention
from additive_jax.models.costs import ends_flops, measure, module_flops
from additive_jax.models.dna import DNA
from additive_jax.models.experts import StructureExperts
from additive_jax.models.feed_forward import FeedForward
from additive_jax.models.moe import Experts
from additive_jax.models.reads import parts
from additive_jax.models.routing import Routing
from additive_jax.models.shared_keys import Keys
from additive_jax.models.side import stream_of
from additive_jax.models.transformer import UNITS


def active_flops(
  model: nn.Module,
  x: Inputs,
  facts: Mapping[str, Facts] | None = None,
  chosen: Int[np.ndarray, 'examples T steps k'] | None = None,
) -> float:
  """Returns the FLOPs of one example's forward pass with all gates on, counting only what tokens
  chose.

  With one of eight experts for each token, a mixture costs a dense network and its router:

  >>> dense = aj.models.Transformer(1, 8, 2, 16, num_classes=3, num_tokens=5)
  >>> mixture, x = dense.clone(routing=Experts(8, top_k=1)), np.zeros((1, 4), np.uint8)
  >>> active_flops(mixture, x) - active_flops(dense, x) == 2 * 4 * 8 * 8
  True

  Args:
    model: any additive model.
    x: inputs [1, ...].
    facts: what each site's router did, by the name of its module, averaged over examples (see
      `run.ways.routed`); None takes the shares that routers are steered to, and an even load of the
      modules of a DNA.
    chosen: for a DNA the choice of every token of many examples at every step. Attention among c
      tokens costs c², so its cost depends on how choices are spread over the examples; without them
      all count as alike.
  """
  if facts is None and chosen is None:
    return _expected(model, shape_of(x))
  return _counted(model, x, facts, chosen)


@kept(float, float)
def _expected(model: nn.Module, x: Shapes) -> float:
  """Returns `active_flops` of the shares that routers are steered to."""
  return _counted(model, x, None, None)


def _counted(
  model: nn.Module,
  x: Inputs | Shapes,
  facts: Mapping[str, Facts] | None,
  chosen: Int[np.ndarray, 'examples T steps k'] | None,
) -> float:
  if isinstance(model, DNA):
    return _of_dna(model, x, facts, chosen)
  routing = getattr(model, 'routing', None)
  if isinstance(routing, Experts):
    wide = tuple(size * routing.top_k for size in model.sizes)
    dense = measure(model.clone(routing=None, hidden=wide), x)
    tokens, width = stream_of(parts(model, x).streams[0]).shape[1:]
    routers = 2 * tokens * width * routing.num_experts * model.num_layers
    return dense.flops(dense.all_on()) + routers
  if isinstance(routing, Routing):
    return _of_structures(model, routing, x, facts)
  space = measure(model, x)
  return space.flops(space.all_on())


def _of_structures(
  model: nn.Module, routing: Routing, x: Inputs | Shapes, facts: Mapping[str, Facts] | None
) -> float:
  """Returns the FLOPs of a transformer with routers; its feed-forward sites treat every token
  alike."""
  num_gates = model.num_chunks - 1
  dense = measure(model.clone(routing=None), x)
  total = dense.flops([i % 2 == 0 for i in range(2 * model.num_layers)])  # attention sites alone
  tokens, width = stream_of(parts(model, x).streams[0]).shape[1:]
  router = 2 * width * routing.num_logits(num_gates) * (routing.router != 'random')
  keep = 2 * width * (routing.keep < 1)
  activation, gated = UNITS[model.unit]
  of_all = dataclasses.replace(routing, keep=1.0)
  for i, size in enumerate(model.sizes):
    site = StructureExperts(size, model.num_chunks, of_all, activation, gated)
    branch = module_flops(site, 1, width) - router
    share = routing.keep if facts is None else float(facts[sorted(facts)[i]].kept)
    total += tokens * (router + keep + share * branch)
  return total


def _of_dna(
  model: DNA,
  x: Inputs | Shapes,
  facts: Mapping[str, Facts] | None,
  chosen: Int[np.ndarray, 'examples T steps k'] | None,
) -> float:
  """Returns the FLOPs of a DNA, whose attention costs more the more tokens choose it together."""
  modules, shapes = model.modules, parts(model, x)
  tokens, width = shapes.streams[0].shape[1:]
  attention = Attention(model.num_heads, causal=model.causal, rope=model.positions == 'rope')
  whole = module_flops(attention, tokens, width)
  # Attention among c tokens costs a·c + b·c².
  half = max(1, tokens // 2)
  part = module_flops(attention, half, width)
  b = (whole / tokens - part / half) / (tokens - half) if tokens > half else 0.0
  a = whole / tokens - b * tokens
  activation, gated = UNITS[model.unit]
  mlp = module_flops(FeedForward(model.hidden, activation=activation, gated=gated), 1, width)
  total = ends_flops(model, shapes, x)
  total += whole * -(-model.num_backbone // 2) + mlp * tokens * (model.num_backbone // 2)
  number = np.arange(modules.count - modules.identity)
  has_attention = (number < modules.attention) | (number >= modules.attention + modules.mlp)
  keys = 0.0
  if modules.shared_keys:  # all tokens are attended to, whoever chose the module
    keys = module_flops(Keys(model.num_heads, bool(attention.rope)), tokens, width)
    a += b * tokens - keys / tokens + module_flops(nn.LayerNorm(), 1, width)
    b = 0.0
  for i in range(model.num_steps):
    load = np.full(modules.count, 1 / modules.count)
    if facts is not None:
      load = np.asarray(facts[f'step_{i:02}'].load, float)
    counts = load[None, number] * modules.top_k * tokens  # tokens of each module, by example
    if chosen is not None:
      counts = (chosen[:, :, i, :, None] == number).sum((1, 2)).astype(float)
    mixing = has_attention * (a * counts.mean(0) + b * (counts**2).mean(0))
    total += (mixing + (number >= modules.attention) * mlp * counts.mean(0)).sum()
    total += 2 * tokens * width * modules.count + keys  # the router, and what modules share
  return float(total)


def fitted(
  make: Callable[[int], nn.Module],
  cost: Callable[[nn.Module], float],
  target: float,
  cost_name: str,
) -> nn.Module:
  """Returns the model whose cost is closest to a target.

  >>> make = lambda hidden: aj.models.MLP(2, width=4, hidden=hidden, num_classes=3)
  >>> params = lambda model: aj.models.costs.num_params(model, np.zeros((1, 5)))
  >>> [fitted(make, params, target, 'parameters').hidden for target in (215, 400)]
  [8, 18]

  Args:
    make: from a number of hidden units to a model.
    cost: of a model; affine in the hidden units.
    target: of that cost.
    cost_name: names the cost and the model in an error.

  Raises:
    UserError: when even one hidden unit costs more than the target by over half a unit.
  """
  few, many = 16, 32
  low, high = cost(make(few)), cost(make(many))
  slope = (high - low) / (many - few)
  hidden = round(few + (target - low) / slope)
  if hidden < 1:
    raise UserError(
      f'{cost_name}: {target:.4g}, and {low - few * slope:.4g} without hidden units: expected a '
      'smaller rest or a larger reference (config.model.hidden)'
    )
  return make(hidden)
