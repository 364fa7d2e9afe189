"""The standard mixture of experts: separate weights for every expert, top k of a softmax, and no
token dropped. The baseline of mixtures of structures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from additive_jax.gates import routers
from additive_jax.gates.grouped import grouped, rows_of
from additive_jax.gates.layers import LayerPair, sub_activation
from additive_jax.gates.shares import sum_of_expert_groups
from additive_jax.gates.sums import GateValue
from additive_jax.models.feed_forward import feed_forward_layers
from additive_jax.models.kinds import RESIDUAL, check_sizes
from additive_jax.models.routing import SELECTION_BIAS, Chosen, leave, linear_router
from additive_jax.models.surrounding import in_branch_dtype


@dataclasses.dataclass(frozen=True)
class Experts:
  """How many experts of their own weights there are, and how tokens choose.

  Attributes:
    num_experts: M.
    top_k: k, experts of each token.
    renormalise: the weights of a token's k experts sum to 1; otherwise they are the softmax over
      all M.

  >>> Experts(num_experts=8, top_k=2).check()
  >>> Experts(num_experts=4, top_k=8).check()
  Traceback (most recent call last):
  additive_jax.errors.UserError: top 8 of 4 experts: expected 1 to 4
  """

  num_experts: int = 8
  top_k: int = 2
  renormalise: bool = False

  def check(self) -> None:
    """Raises `UserError` for fewer than one expert, or k over their number."""
    check_sizes(num_experts=self.num_experts)
    routers.check_k(self.top_k, self.num_experts, 'experts')


class MixtureOfExperts(nn.Module):
  """`h + Σ_e w_e(x) f_e(x)` with `x = LayerNorm(h)`, [B, ..., D], over the k experts that a linear
  router chose for each token; f_e is a feed-forward layer as in `FeedForward`.

  Experts run together, each on its own tokens, see `gates.grouped`. Source: Shazeer et al. 2017
  (arXiv:1701.06538). Parameters have a leading axis of experts; facts are left as by
  `experts.StructureExperts`.

  Attributes:
    hidden: H of each expert.
    experts: how many, and how tokens choose.
    activation, gated: as in `FeedForward`.

  >>> site, h = MixtureOfExperts(hidden=8, experts=Experts(num_experts=3)), jnp.ones((1, 5, 4))
  >>> pool = jax.eval_shape(site.init, jax.random.key(0), h)['params']
  >>> pool['in']['kernel'].shape, pool['out']['kernel'].shape, pool['router']['kernel'].shape
  ((3, 4, 8), (3, 8, 4), (4, 3))
  """

  hidden: int
  experts: Experts = Experts()
  activation: Callable[[Array], Array] = nn.gelu
  gated: bool = False

  gates: ClassVar[tuple[str, ...]] = (RESIDUAL,)
  casts: ClassVar[bool] = True

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B *axes D'], gates: Sequence[GateValue] = ()
  ) -> Float[Array, 'B *axes D']:
    self.experts.check()
    width, count, top_k = h.shape[-1], self.experts.num_experts, self.experts.top_k
    x = nn.LayerNorm(name='norm')(h)
    layers = feed_forward_layers(width, self.hidden, self.gated, copies=(count,))
    logits = linear_router(count)(x)
    bias = self.param(SELECTION_BIAS, nn.initializers.zeros, (count,), jnp.float32)
    bias = jax.lax.stop_gradient(bias)
    choice = routers.top_k(logits, top_k, renormalise=self.experts.renormalise, bias=bias)
    leave(self, routers.facts_of_list(logits, choice.indices, count), Chosen(choice.indices))

    x, layers, weights = in_branch_dtype((x, layers, choice.weights))
    tokens = x.reshape(-1, width)
    index, weights = (part.reshape(-1, top_k) for part in (choice.indices, weights))
    rows = rows_of(len(tokens), top_k, count)

    def run_experts(
      layers: LayerPair,
      numbers: Int[Array, 'M'],
      tokens: Float[Array, 'T D'],
      index: Int[Array, 'T k'],
      weights: Float[Array, 'T k'],
    ) -> Float[Array, 'T D']:
      branch = lambda layers, tokens: sub_activation(tokens, layers, (), self.activation)
      return grouped(branch, rows, layers, numbers, tokens, index, weights)

    y = sum_of_expert_groups(run_experts, layers, tokens, index, weights)
    return h + y.reshape(h.shape)
