"""A feed-forward site whose experts are the structures of its own layer: a router chooses, for each
token, among the 2^(m−1) ways to cut m chunks into groups.

All experts share one set of weights and one dense first and second layer (`mixtures`), so nothing
is dispatched and no token is dropped, whatever the router chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from additive_jax import mixtures, routers
from additive_jax.dispatch import packed
from additive_jax.errors import UserError
from additive_jax.gates import chunks
from additive_jax.models.feed_forward import Linear
from additive_jax.models.kinds import RESIDUAL
from additive_jax.structure import parse

ROUTERS = ('softmax', 'factorised', 'marginal', 'random')

# The collection in which sites leave what their routers did, and the leaf of the pool that steers a
# choice without entering its weights.
ROUTING = 'routing'
SELECTION_BIAS = 'selection_bias'
KEEP_BIAS = 'keep_bias'  # likewise, of the gates that tokens have of their own


@dataclasses.dataclass(frozen=True)
class Routing:
  """How tokens choose structures.

  Attributes:
    router: 'softmax' over a list of structures, of which each token takes `top_k`; 'factorised',
      one logit a gate and the exact `top_k` best of all structures; 'marginal', the exact mixture
      of all structures under independent gates; 'random', `top_k` of the list at random by position
      and step, the control.
    top_k: k.
    renormalise: the weights of a token's k structures sum to 1; otherwise they are probabilities
      under the router.
    structures: the list, as texts of m − 1 gates; () is all 2^(m−1). For 'softmax' and 'random'.
    keep: the target share of tokens that the branch computes. Below 1 a second router gives each
      token a residual gate of its own: on where its score, moved by a bias that steers the share
      (`balance`), is positive; what the branch adds is then weighted by the sigmoid of the score,
      and tokens that are off are not computed.
  """

  router: str = 'softmax'
  top_k: int = 2
  renormalise: bool = False
  structures: tuple[str, ...] = ()
  keep: float = 1.0

  def check(self, num_gates: int) -> None:
    """Raises `UserError` where router, k and list do not suit m − 1 gates."""
    if self.router not in ROUTERS:
      raise UserError(f'router {self.router!r}: expected one of {", ".join(ROUTERS)}')
    if not 0 < self.keep <= 1:
      raise UserError(f'keep {self.keep}: expected a share of tokens in (0, 1]')
    if self.router in ('factorised', 'marginal') and self.structures:
      raise UserError(
        f'{len(self.structures)} listed structures for the router {self.router!r}: expected none, '
        'since it takes all'
      )
    if self.router == 'factorised':
      routers.check_k(self.top_k, 2**num_gates)
    elif self.router != 'marginal':
      routers.check_k(self.top_k, len(self.listed(num_gates)))

  def listed(self, num_gates: int) -> np.ndarray:
    """The list of structures, bool [S, m − 1]."""
    if not self.structures:
      return routers.enumerated(num_gates)
    return routers.check_list([parse(s, num_gates).bits for s in self.structures], num_gates)


class StructureExperts(nn.Module):
  """`h + Σ_s w_s(x) f_s(x)` with `x = LayerNorm(h)`, [B, ..., D], over the structures s of one
  feed-forward layer that the router chose for each token.

  Parameters are named as in `FeedForward`, and the router's `router`. Under `mutable=['routing']`
  the site leaves its facts, a `routers.ListFacts` or `GateFacts`.

  Attributes:
    hidden: H.
    num_chunks: m.
    routing: how tokens choose.
    activation, gated: as in `FeedForward`.
  """

  hidden: int
  num_chunks: int
  routing: Routing = Routing()
  activation: Callable = nn.gelu
  gated: bool = False

  gates = (RESIDUAL,)

  @nn.compact
  def __call__(self, h: jax.Array, values=()) -> jax.Array:
    width, num_gates = h.shape[-1], self.num_chunks - 1
    chunks(width, self.num_chunks)
    self.routing.check(num_gates)
    x = nn.LayerNorm(name='norm')(h)
    bias = None if self.gated else (self.hidden,)
    first, first_bias = Linear((width, self.hidden), bias=bias, name='in')()
    bias = None if self.gated else (width,)
    second, second_bias = Linear((self.hidden, width), bias=bias, name='out')()
    gate = Linear((width, self.hidden), name='gate')()[0] if self.gated else None
    layer = (first, second)
    options = {'gate_kernel': gate, 'in_bias': first_bias, 'out_bias': second_bias}

    routed, facts = self._route(x, num_gates)

    def experts(x, routed):
      if isinstance(routed, routers.Choice):
        chosen = routed.bits, routed.weights
        return mixtures.structure_mixture(x, *layer, *chosen, self.activation, **options)
      return mixtures.span_mixture(x, *layer, routed, self.activation, **options)

    if self.routing.keep < 1:
      score = nn.Dense(1, use_bias=False, name='keep')(x)
      bias = jax.lax.stop_gradient(self.param(KEEP_BIAS, nn.initializers.zeros, ()))
      on = score[..., 0] + bias > 0
      facts = facts._replace(kept=on.mean(), keep=jnp.float32(self.routing.keep))
      y = jax.nn.sigmoid(score) * _of_tokens(experts, x, routed, on)
    else:
      y = experts(x, routed)
    if not self.is_initializing():  # the pool is parameters alone
      self.sow(ROUTING, 'facts', facts, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    return h + y

  def _route(self, x, num_gates):
    """A choice of structures, or the weights of spans; and the facts about it."""
    how = self.routing
    if how.router == 'random':
      listed = how.listed(num_gates)
      key = self.make_rng(ROUTING) if self.has_rng(ROUTING) else jax.random.key(0)
      choice = routers.random(key, x.shape[1:-1], listed, how.top_k)
      choice = jax.tree.map(
        lambda a: jnp.broadcast_to(a, (x.shape[0], *a.shape)), choice
      )  # the same for every example, so that devices which split a batch draw alike
      return choice, routers.facts_of_list(None, choice, len(listed))
    count = len(how.listed(num_gates)) if how.router == 'softmax' else num_gates
    logits = nn.Dense(count, use_bias=False, name='router')(x)
    if how.router == 'marginal':
      return mixtures.span_weights(nn.sigmoid(logits)), routers.facts_of_gates(logits, None)
    bias = self.param(SELECTION_BIAS, nn.initializers.zeros, (count,))
    bias = jax.lax.stop_gradient(bias)
    if how.router == 'factorised':
      choice = routers.k_best(logits, how.top_k, renormalise=how.renormalise, bias=bias)
      return choice, routers.facts_of_gates(logits, choice)
    listed = how.listed(num_gates)
    choice = routers.top_k(logits, listed, how.top_k, renormalise=how.renormalise, bias=bias)
    return choice, routers.facts_of_list(logits, choice, len(listed))


def _of_tokens(function, x, routed, on):
  """`function(x, routed)` of the tokens [B, ..., D] that are on alone, zero for the others."""
  flat = lambda a: a.reshape(-1, *a.shape[on.ndim :])
  routed = jax.tree.map(flat, routed)

  def of_part(part, positions, valid):
    here = jax.tree.map(lambda a: a[positions[0]], routed)
    return function(part[0], here)[None]

  y = packed(of_part, flat(x)[None], on.reshape(1, -1))
  return y.reshape(x.shape)
