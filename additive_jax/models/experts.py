"""A feed-forward site whose experts are the structures of its own layer: a router chooses, for each
token, among the 2^(m−1) ways to cut m chunks into groups.

All experts share one set of weights and one dense first and second layer (`mixtures`), so nothing
is dispatched and no token is dropped, whatever the router chooses.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from additive_jax.gates import mixtures, routers
from additive_jax.gates.dispatch import in_blocks
from additive_jax.gates.layers import LayerPair, chunks
from additive_jax.gates.sums import GateValue
from additive_jax.models.feed_forward import feed_forward_layers
from additive_jax.models.kinds import RESIDUAL
from additive_jax.models.routing import (
  KEEP_BIAS,
  ROUTING,
  SELECTION_BIAS,
  Chosen,
  Routing,
  leave,
  linear_router,
)
from additive_jax.models.surrounding import in_branch_dtype

# The weights of a token's structures and the structures, or the weights of spans and None.
Routed = tuple[Float[Array, '...'], Bool[Array, '...'] | None]


class StructureExperts(nn.Module):
  """`h + Σ_s w_s(x) f_s(x)` with `x = LayerNorm(h)`, [B, ..., D], over the structures s of one
  feed-forward layer that the router chose for each token.

  Parameters are named as in `FeedForward`, and the router's `router`. The site leaves its facts, a
  `routers.ListFacts` or `GateFacts`, and the choice of every token; see `routing`.

  Attributes:
    hidden: H.
    num_chunks: m.
    routing: how tokens choose.
    activation, gated: as in `FeedForward`.
    router: the linear map to logits; None for one of its own.

  With two chunks there is one gate, so a router chooses between two structures:

  >>> site, h = StructureExperts(hidden=8, num_chunks=2), jnp.ones((1, 5, 4))
  >>> pool = jax.eval_shape(site.init, jax.random.key(0), h)['params']
  >>> pool['in']['kernel'].shape, pool['out']['kernel'].shape, pool['router']['kernel'].shape
  ((4, 8), (8, 4), (4, 2))
  """

  hidden: int
  num_chunks: int
  routing: Routing = Routing()
  activation: Callable[[Array], Array] = nn.gelu
  gated: bool = False
  router: nn.Module | None = None

  gates: ClassVar[tuple[str, ...]] = (RESIDUAL,)
  casts: ClassVar[bool] = True

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B *axes D'], gates: Sequence[GateValue] = ()
  ) -> Float[Array, 'B *axes D']:
    width = h.shape[-1]
    chunks(width, self.num_chunks)
    self.routing.check(self.num_chunks - 1)
    x = nn.LayerNorm(name='norm')(h)
    layers = feed_forward_layers(width, self.hidden, self.gated)
    routed, facts, indices = self._route(x)
    branch, layers, routed = in_branch_dtype((x, layers, routed))

    def experts(
      layers: LayerPair, tokens: tuple[Array, Routed], *_: Array
    ) -> Float[Array, '*tokens D']:
      x, (weights, structures) = tokens
      if structures is None:
        return mixtures.span_mixture(x, layers, weights, self.activation)
      return mixtures.structure_mixture(x, layers, structures, weights, self.activation)

    if self.routing.keep == 1:
      leave(self, facts, Chosen(indices))
      return h + experts(layers, (branch, routed))
    score = nn.Dense(1, use_bias=False, name='keep')(x)
    bias = self.param(KEEP_BIAS, nn.initializers.zeros, (), jnp.float32)
    on = score[..., 0] + jax.lax.stop_gradient(bias) > 0
    facts = facts._replace(kept=on.mean(), keep=jnp.float32(self.routing.keep))
    leave(self, facts, Chosen(indices, on))
    flat = lambda a: a.reshape(-1, *a.shape[on.ndim :])
    y = in_blocks(experts, layers, jax.tree.map(flat, (branch, routed)), on.reshape(-1))
    return h + jax.nn.sigmoid(score) * y.reshape(h.shape)

  def _route(
    self, x: Float[Array, 'B *axes D']
  ) -> tuple[Routed, routers.Facts, Int[Array, 'B *axes k'] | None]:
    """Returns what the router chose for each token; the facts about it; and the numbers of the
    structures, see `Chosen`."""
    routing, num_gates = self.routing, self.num_chunks - 1
    if routing.router == 'random':
      listed = routing.listed(num_gates)
      if self.has_rng(ROUTING):
        key = self.make_rng(ROUTING)
      else:  # one draw for each site, the same at any time
        key = jax.random.key(zlib.crc32('/'.join(self.path).encode()))
      choice = routers.random(key, x.shape[1:-1], len(listed), routing.top_k)
      # The same for every example, so that devices which split a batch draw alike.
      choice = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(x), *a.shape)), choice)
      return self._of_list(None, choice, listed)
    count = routing.num_logits(num_gates)
    logits = (linear_router(count) if self.router is None else self.router)(x)
    if routing.router == 'marginal':
      weights = mixtures.span_weights(nn.sigmoid(logits))
      return (weights, None), routers.facts_of_gates(logits, None), None
    bias = self.param(SELECTION_BIAS, nn.initializers.zeros, (count,), jnp.float32)
    bias = jax.lax.stop_gradient(bias)
    k, renormalise = routing.top_k, routing.renormalise
    if routing.router == 'softmax':
      choice = routers.top_k(logits, k, renormalise=renormalise, bias=bias)
      return self._of_list(logits, choice, routing.listed(num_gates))
    weights, structures = routers.k_best(logits, k, renormalise=renormalise, bias=bias)
    facts = routers.facts_of_gates(logits, structures)
    return (weights, structures), facts, routers.codes(structures)

  def _of_list(
    self,
    logits: Float[Array, 'B *axes S'] | None,
    choice: routers.Choice,
    listed: Bool[np.ndarray, 'S n'],
  ) -> tuple[Routed, routers.Facts, Int[Array, 'B *axes k']]:
    facts = routers.facts_of_list(logits, choice.indices, len(listed))
    return (choice.weights, jnp.asarray(listed)[choice.indices]), facts, choice.indices
