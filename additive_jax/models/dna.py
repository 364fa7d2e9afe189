"""Distributed neural architectures: at every step each token chooses its modules from one shared
pool.

Source: Cowsik, He & Gromov 2025 (arXiv:2506.22389). With M modules, one linear router without bias
for each step and `ρ = softmax(R(h))`, a step is

  h ← h + Σ_{i ∈ top-k(ρ)} ρ_i (M_i(h) − h).

Modules are attention, feed-forward, whole transformer blocks, and identities, which compute
nothing. Attention goes among the tokens of a sequence that chose that module at that step, with
their positions kept; or, with shared keys, from these to all tokens of the sequence, whose keys and
values one layer makes for all modules, as in mixtures of attention heads (Zhang et al. 2022,
arXiv:2210.05144). No token is dropped, see `dispatch`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from additive_jax.errors import UserError
from additive_jax.gates import routers
from additive_jax.gates.dispatch import Tokens, in_blocks, packed
from additive_jax.gates.layers import LayerPair, sub_activation
from additive_jax.gates.shares import KEPT, sum_of_experts, sum_of_units
from additive_jax.gates.sums import GateValue
from additive_jax.models.attention import Attention, AttentionLayers, attend, attention_layers
from additive_jax.models.axes import AxisNames
from additive_jax.models.feed_forward import FeedForward, feed_forward_layers
from additive_jax.models.kinds import RESIDUAL, check_sizes
from additive_jax.models.modules import Modules
from additive_jax.models.rotary import rotate
from additive_jax.models.routing import SELECTION_BIAS, Chosen, leave, linear_router
from additive_jax.models.shared_keys import Keys
from additive_jax.models.surrounding import in_branch_dtype
from additive_jax.models.transformer import UNITS, TokenNetwork

# For each part of a module ('attention', 'mlp'): its norm and its layers.
Parameters = dict[str, tuple[dict[str, Array], Any]]


class Pool(nn.Module):
  """The modules: for tokens and their chosen modules, `Σ_i ρ_i (M_i(h) − h)`.

  Parameters of the modules of a kind have a leading axis. Modules of a kind run one after the
  other, each on its own tokens.

  Attributes:
    modules: how many of each kind.
    num_heads, hidden: of attention, and H of the feed-forward modules.
    causal, rope: as in `Attention`.
    unit: 'gelu', 'relu' or 'swiglu'.
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
    keys = (Keys(self.num_heads, self.rope, name='keys')(h),) if how.shared_keys else ()
    kinds = (
      ('attention', how.attention, self._attention),
      ('mlp', how.mlp, self._mlp),
      ('block', how.block, self._block),
    )
    for name, count, apply in kinds:
      if not count:
        continue
      modules = self._parameters(name, count, h.shape[-1])
      of_module = index == first + jnp.arange(count)[:, None, None, None]
      weight = jnp.where(of_module, weights, 0).sum(-1)
      # For all modules at once: what is in their loop is compiled for each kind, and runs twice.
      tokens = Tokens.chosen(of_module.any(-1), by_row=name != 'mlp')

      def run_module(
        module: tuple[Parameters, Float[Array, 'B T'], Tokens],
        number: Int[Array, ''],
        h: Float[Array, 'B T D'],
        *keys: Float[Array, 'B T 2 N U'],
        apply: Callable[..., Array] = apply,
      ) -> Float[Array, 'B T D']:
        parameters, weight, tokens = module
        return apply(parameters, h, weight, tokens, *keys)

      total += sum_of_experts(run_module, (modules, weight, tokens), h, *keys)
      first += count
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
        parts = 1 if self.modules.shared_keys else 3
        layers = attention_layers(width, heads, size, copies=(count,), prefix=name, parts=parts)
      else:
        gated = UNITS[self.unit][1]
        layers = feed_forward_layers(width, self.hidden, gated, copies=(count,), prefix=name)
      parameters[part] = norm, layers
    return parameters

  def _attention(
    self,
    module: Parameters,
    h: Float[Array, 'B T D'],
    weight: Float[Array, 'B T'],
    tokens: Tokens,
    *keys: Float[Array, 'B T 2 N U'],
  ) -> Float[Array, 'B T D']:
    """Returns what attention gives the chosen tokens of each sequence, at their positions, times
    the weight of each."""
    norm, layers = module['attention']
    layers = in_branch_dtype(layers)
    heads, axes = (*layers.qkv, layers.out.kernel, *keys), (-2, -2, -3, *[-2] * len(keys))
    y = sum_of_units(self._of_heads, heads, axes, norm, h, weight, tokens)
    bias = layers.out.bias
    return (y if bias is None else y + weight[..., None] * bias).astype(h.dtype)

  def _of_heads(self, heads, norm, h, weight, tokens):
    """Returns what some heads add up to. Only attention itself, of the steps that it takes, mixes
    tokens."""
    kernel, bias, out, *keys = heads
    project = functools.partial(self._projected, h.shape[1])
    qkv = checkpoint_name(in_blocks(project, (norm, kernel, bias), *_flat(h), tokens.order), KEPT)
    qkv = qkv.reshape(*h.shape[:2], *kernel.shape[1:])
    z = packed(self._attended, tuple(keys), qkv, tokens.by_row)
    z = checkpoint_name(z, KEPT)
    kernel, values = out.reshape(-1, h.shape[-1]), tuple(_flat(z, weight.astype(z.dtype)))
    return in_blocks(_weighted, kernel, values, tokens.order).reshape(h.shape)

  def _projected(self, length, parameters, h, positions, valid):
    """Returns queries, keys and values of some tokens, [c, 3·N·U], or queries alone; tokens of all
    sequences are numbered one after the other."""
    norm, kernel, bias = parameters
    x = in_branch_dtype(_norm(h, norm))
    qkv = x @ kernel.reshape(x.shape[-1], -1) + bias.reshape(-1)
    if not self.rope:
      return qkv
    heads = qkv[None].reshape(1, len(x), -1, kernel.shape[-1])
    turned, values = jnp.split(heads, [min(len(bias), 2) * kernel.shape[-2]], axis=2)
    turned = rotate(turned, positions[None] % length)
    return jnp.concatenate([turned, values], axis=2).reshape(len(x), -1)

  def _attended(
    self,
    keys: tuple[Float[Array, 'B T 2 N U'], ...],
    qkv: Float[Array, 'B c parts N U'],
    positions: Int[Array, 'B c'],
    valid: Bool[Array, 'B c'],
  ) -> Float[Array, 'B c NU']:
    """Returns what the heads give for the valid tokens of each sequence, side by side: among them,
    or from all tokens where their keys are given."""
    if keys:
      q, (k, v) = qkv[:, :, 0], jnp.moveaxis(keys[0], 2, 0)
      seen = jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2])
      mask = jnp.ones((len(q), q.shape[1], k.shape[1]), bool)
    else:
      q, k, v = jnp.moveaxis(qkv, 2, 0)
      seen, mask = positions, jnp.broadcast_to(valid[:, None, :], (*valid.shape, valid.shape[1]))
    if self.causal:
      mask &= positions[:, :, None] >= seen[:, None, :]
    z = attend(q, k, v, mask)
    return z.reshape(*z.shape[:-2], -1)

  def _mlp(
    self,
    module: Parameters,
    h: Float[Array, 'B T D'],
    weight: Float[Array, 'B T'],
    tokens: Tokens,
    *keys: Float[Array, 'B T 2 N U'],
  ) -> Float[Array, 'B T D']:
    """Returns what the feed-forward module gives for each chosen token, times its weight."""
    values = tuple(_flat(h, weight))
    return in_blocks(self._fed_forward, module['mlp'], values, tokens.order).reshape(h.shape)

  def _fed_forward(self, parameters, tokens, *_):
    (norm, layers), (h, weight) = parameters, tokens
    x, layers = in_branch_dtype((_norm(h, norm), layers))
    y = sub_activation(x, layers, (), UNITS[self.unit][0]).astype(h.dtype)
    return weight[..., None] * y

  def _block(
    self,
    module: Parameters,
    h: Float[Array, 'B T D'],
    weight: Float[Array, 'B T'],
    tokens: Tokens,
    *keys: Float[Array, 'B T 2 N U'],
  ) -> Float[Array, 'B T D']:
    """Returns what a transformer layer adds to its input, times the weight of each token."""
    rescaled = self.modules.rescale_inside
    after = self._attention(module, h, weight if rescaled else jnp.ones_like(weight), tokens, *keys)
    y = self._mlp(module, h + after, weight, tokens)
    return y + (after if rescaled else weight[..., None] * after)


def _flat(*arrays):
  """Returns arrays [B, T, ...] as [BT, ...]."""
  return [array.reshape(-1, *array.shape[2:]) for array in arrays]


def _weighted(kernel, tokens, *_):
  z, weight = tokens
  return weight[..., None] * (z @ kernel)


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
