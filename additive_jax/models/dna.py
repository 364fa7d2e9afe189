"""Distributed neural architectures: at every step each token chooses its modules from one shared
pool.

Source: Cowsik, He & Gromov 2025 (arXiv:2506.22389). With M modules, one linear router without bias
for each step and `ρ = softmax(R(h))`, a step is

  h ← h + Σ_{i ∈ top-k(ρ)} ρ_i (M_i(h) − h).

Modules are attention, feed-forward, whole transformer blocks, and identities, which compute
nothing. Attention goes among the tokens of a sequence that chose that module at that step, with
their positions kept. No token is dropped, see `dispatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from additive_jax.errors import UserError
from additive_jax.gates import routers
from additive_jax.gates.dispatch import in_blocks, packed
from additive_jax.gates.layers import LayerPair, sub_activation
from additive_jax.gates.shares import sum_of_experts
from additive_jax.gates.sums import GateValue
from additive_jax.models.attention import Attention, AttentionLayers, attention, attention_layers
from additive_jax.models.axes import AxisNames
from additive_jax.models.feed_forward import FeedForward, feed_forward_layers
from additive_jax.models.kinds import RESIDUAL, check_sizes
from additive_jax.models.modules import Modules
from additive_jax.models.routing import SELECTION_BIAS, Chosen, leave, linear_router
from additive_jax.models.surrounding import in_branch_dtype
from additive_jax.models.transformer import UNITS, TokenNetwork

# For each part of a module ('attention', 'mlp'): its norm and its layers.
Parameters = dict[str, tuple[dict[str, Array], Any]]
# The stream of some tokens, and the weight of a module for each.
Tokens = tuple[Float[Array, '*tokens D'], Float[Array, '*tokens']]


class Pool(nn.Module):
  """The modules: for tokens and their chosen modules, `Σ_i ρ_i (M_i(h) − h)`.

  Parameters of the modules of a kind have a leading axis. Modules of a kind run one after the
  other, each on its own tokens.

  Attributes:
    modules: how many of each kind.
    num_heads, hidden: of attention, and H of the feed-forward modules.
    causal, rope: as in `Attention`.
    unit: 'gelu' or 'swiglu'.
  """

  modules: Modules
  num_heads: int
  hidden: int
  causal: bool = False
  rope: bool = False
  unit: str = 'gelu'

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B T D'], index: Int[Array, 'B T k'], weights: Float[Array, 'B T k']
  ) -> Float[Array, 'B T D']:
    how = self.modules
    total, first = jnp.zeros_like(h), 0
    kinds = (
      ('attention', how.attention, self._attention, packed),
      ('mlp', how.mlp, self._mlp, in_blocks),
      ('block', how.block, self._block, packed),
    )
    for name, count, apply, on_chosen in kinds:
      if not count:
        continue
      parameters = self._parameters(name, count, h.shape[-1])
      view = (lambda a: a) if on_chosen is packed else (lambda a: a.reshape(-1, *a.shape[2:]))

      def run_module(
        module: Parameters,
        number: Int[Array, ''],
        streams: Float[Array, '*tokens D'],
        chosen: Int[Array, '*tokens k'],
        share: Float[Array, '*tokens k'],
        *,
        apply: Callable[..., Array] = apply,
        on_chosen: Callable[..., Array] = on_chosen,
      ) -> Float[Array, '*tokens D']:
        of_module = chosen == number
        weight = jnp.where(of_module, share, 0).sum(-1)
        return on_chosen(apply, module, (streams, weight), of_module.any(-1))

      tokens = view(h), view(index), view(weights)
      added = sum_of_experts(run_module, parameters, *tokens, first=first)
      total, first = total + added.reshape(h.shape), first + count
    return total

  def axis_names(self) -> dict[str, AxisNames]:
    """Returns the names of the axes of the norms, one for each module."""
    parts = ('attention_attention', 'mlp_mlp', 'block_attention', 'block_mlp')
    names = [f'{part}_norm_{end}' for part in parts for end in ('scale', 'bias')]
    return dict.fromkeys(names, ('expert', 'embed'))

  def _parameters(self, kind: str, count: int, width: int) -> Parameters:
    """Makes the parameters of `count` modules of a kind: of attention, feed-forward or both, a norm
    and the layers."""
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    parameters: Parameters = {}
    for part in ('attention', 'mlp') if kind == 'block' else (kind,):
      name = f'{kind}_{part}_'
      norm = {
        'scale': self.param(f'{name}norm_scale', ones, (count, width), jnp.float32),
        'bias': self.param(f'{name}norm_bias', zeros, (count, width), jnp.float32),
      }
      layers: AttentionLayers | LayerPair
      if part == 'attention':
        size, heads = width // self.num_heads, self.num_heads
        layers = attention_layers(width, heads, size, copies=(count,), prefix=name)
      else:
        gated = UNITS[self.unit][1]
        layers = feed_forward_layers(width, self.hidden, gated, copies=(count,), prefix=name)
      parameters[part] = norm, layers
    return parameters

  def _attention(
    self,
    module: Parameters,
    tokens: Tokens,
    positions: Int[Array, 'B c'],
    valid: Bool[Array, 'B c'],
  ) -> Float[Array, 'B c D']:
    """Returns what attention gives among the valid tokens of each sequence, at their positions,
    times the weight of each."""
    h, weight = tokens
    return weight[..., None] * self._mixed(module, h, positions, valid)

  def _mixed(self, module, h, positions, valid):
    norm, layers = module['attention']
    x, layers = in_branch_dtype((_norm(h, norm), layers))
    mask = jnp.broadcast_to(valid[:, None, :], (*valid.shape, valid.shape[1]))
    if self.causal:
      mask &= positions[:, :, None] >= positions[:, None, :]
    y = attention(x, layers, mask=mask, positions=positions, rope=self.rope)
    return y.astype(h.dtype)

  def _mlp(self, module: Parameters, tokens: Tokens, *_: Array) -> Float[Array, '*c D']:
    """Returns what the feed-forward module gives for each token, times its weight."""
    h, weight = tokens
    return weight[..., None] * self._fed_forward(module, h)

  def _fed_forward(self, module, h):
    norm, layers = module['mlp']
    x, layers = in_branch_dtype((_norm(h, norm), layers))
    return sub_activation(x, layers, (), UNITS[self.unit][0]).astype(h.dtype)

  def _block(
    self,
    module: Parameters,
    tokens: Tokens,
    positions: Int[Array, 'B c'],
    valid: Bool[Array, 'B c'],
  ) -> Float[Array, 'B c D']:
    """Returns what a transformer layer adds to its input, times the weight of each token."""
    h, weight = tokens
    outside, inside = weight[..., None], 1.0
    if self.modules.rescale_inside:
      outside, inside = inside, outside
    after = inside * self._mixed(module, h, positions, valid)
    return outside * (after + inside * self._fed_forward(module, h + after))


def _norm(x: Float[Array, '*axes D'], parameters: dict[str, Array]) -> Float[Array, '*axes D']:
  """Returns the LayerNorm of x with the parameters of one module."""
  return cast(Array, nn.LayerNorm(parent=None).apply({'params': parameters}, x))


class Step(nn.Module):
  """One step: a router, and the shared pool.

  Attributes:
    pool: the modules, shared by all steps.
    modules: how many, and how tokens choose.
  """

  pool: Pool
  modules: Modules

  gates: ClassVar[tuple[str, ...]] = (RESIDUAL,)
  casts: ClassVar[bool] = True

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B T D'], gates: Sequence[GateValue] = ()
  ) -> Float[Array, 'B T D']:
    how = self.modules
    logits = linear_router(how.count)(h)
    bias = self.param(SELECTION_BIAS, nn.initializers.zeros, (how.count,), jnp.float32)
    bias = jax.lax.stop_gradient(bias)
    choice = routers.top_k(logits, how.top_k, renormalise=how.renormalise, bias=bias)
    facts = routers.facts_of_list(logits, choice.indices, how.count)
    identity = jnp.arange(how.count) >= how.count - how.identity
    facts = facts._replace(
      share=jnp.where(identity & (how.skip > 0), how.skip / max(how.identity, 1), -1.0),
      kept=1 - jnp.where(identity, facts.load, 0).sum(),
      keep=jnp.float32(1 - how.skip),
    )
    leave(self, facts, Chosen(choice.indices))
    return h + self.pool(h, choice.indices, choice.weights)


class DNA(TokenNetwork):
  """Dense sublayers first, then `num_steps` steps over one pool of modules; a residual gate each.

  Inputs are those of `Transformer`: images, or tokens int [B, T] with one logit vector per token.

  Attributes:
    num_steps: S.
    width: D.
    num_heads: attention heads.
    hidden: H of every feed-forward module.
    num_classes: C, the number of logits.
    modules: the pool, and how tokens choose.
    num_backbone: dense sublayers before the steps, attention and feed-forward in turn.
    num_tokens, patch_size, causal, positions, max_tokens, unit: as in `Transformer`.

  >>> sizes = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_classes': 3}
  >>> model = DNA(num_steps=2, **sizes, modules=Modules(attention=1, mlp=2, identity=1))
  >>> model.space.names
  ('step_00/residual', 'step_01/residual')

  Both steps have one pool, with the modules of a kind along the first axis, and a router each:

  >>> pool = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4, 4)))['params']
  >>> pool['pool']['mlp_mlp_in']['kernel'].shape, pool['step_00']['router']['kernel'].shape
  ((2, 8, 16), (8, 4))
  """

  num_steps: int
  width: int
  num_heads: int
  hidden: int
  num_classes: int
  modules: Modules = Modules()
  num_backbone: int = 0
  num_tokens: int = 0
  patch_size: int = 2
  causal: bool = False
  positions: str = 'learned'
  max_tokens: int = 256
  unit: str = 'gelu'

  def __post_init__(self):
    super().__post_init__()
    check_sizes(num_steps=self.num_steps, hidden=self.hidden)
    self.check_stream()
    if self.num_backbone < 0:
      raise UserError(f'num_backbone {self.num_backbone}: expected 0 or more')
    self.modules.check()

  def setup(self) -> None:
    self.set_up_ends()
    rope = self.positions == 'rope'
    activation, gated = UNITS[self.unit]
    backbone: list[nn.Module] = []
    for i in range(self.num_backbone):
      if i % 2 == 0:
        site = Attention(self.num_heads, causal=self.causal, rope=rope, name=f'dense_{i:02}')
        backbone.append(site)
      else:
        site = FeedForward(self.hidden, activation=activation, gated=gated, name=f'dense_{i:02}')
        backbone.append(site)
    options = (self.causal, rope, self.unit)
    self.pool = Pool(self.modules, self.num_heads, self.hidden, *options)
    steps = [Step(self.pool, self.modules, name=f'step_{i:02}') for i in range(self.num_steps)]
    self.sites = [*backbone, *steps]

  @property
  def alike(self) -> range:
    """The sites that are steps, see `models.alike`."""
    return range(self.num_backbone, self.num_backbone + self.num_steps)
