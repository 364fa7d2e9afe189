"""The pre-norm self-attention branch, with residual and lane gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from additive_jax.gates.layers import Layer
from additive_jax.gates.shares import sum_of_units
from additive_jax.gates.sums import GateValue, lane
from additive_jax.models.feed_forward import Linear, add_share, in_lanes
from additive_jax.models.kinds import LANE, RESIDUAL, gate_names
from additive_jax.models.surrounding import in_branch_dtype

ROPE_BASE = 10_000.0


class Attention(nn.Module):
  """`h + attention(LayerNorm(h))`, from [B, T, D] to the same shape.

  Attributes:
    num_heads: N heads of D/N units each.
    kinds: which gates it has: 'residual' and 'lane', see `models.kinds`.
    num_lanes: P, of the lane gate; the stream is then [B, P, T, D], and lane p owns N/P heads.
    causal: whether token t attends to the tokens up to t alone.
    rope: whether queries and keys are rotated by their positions.

  >>> site, h = Attention(num_heads=2), jnp.ones((1, 5, 4))
  >>> pool = jax.eval_shape(site.init, jax.random.key(0), h)['params']
  >>> pool['qkv']['kernel'].shape, pool['out']['kernel'].shape
  ((4, 3, 2, 2), (2, 2, 4))
  """

  num_heads: int
  kinds: tuple[str, ...] = (RESIDUAL,)
  num_lanes: int = 1
  causal: bool = False
  rope: bool = False

  casts: ClassVar[bool] = True

  @property
  def gates(self) -> tuple[str, ...]:
    return gate_names(self.kinds, 1)

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B *lanes T D'], gates: Sequence[GateValue] = ()
  ) -> Float[Array, 'B *lanes T D']:
    width = h.shape[-1]
    x = nn.LayerNorm(name='norm')(h)
    layers = attention_layers(width, self.num_heads, width // self.num_heads)
    x, layers = in_branch_dtype((x, layers))
    mask = causal_mask(h.shape[-2]) if self.causal else None
    if LANE not in self.kinds:
      return h + attention(x, layers, mask=mask, rope=self.rope)
    branch = lambda x, layers: attention(x, layers, mask=mask, rope=self.rope)
    z = jax.vmap(branch, in_axes=(1, 0), out_axes=1)(x, layers_of_lanes(layers, self.num_lanes))
    reduce = gates[0] if gates else True
    return lane(h, add_share(z, layers.out.bias, self.num_lanes), reduce, axis=1)


class AttentionLayers(NamedTuple):
  """The parameters of attention with N heads of U units.

  Attributes:
    qkv: to queries, keys and values, kernel [D, 3, N, U] and bias [3, N, U].
    out: from the heads, kernel [N, U, D] and bias [D] or None.
  """

  qkv: Layer
  out: Layer


def attention_layers(
  width: int, heads: int, size: int, *, copies: tuple[int, ...] = (), prefix: str = ''
) -> AttentionLayers:
  """Makes the layers of attention, as submodules `qkv` and `out` of a compact module.

  Args:
    width, heads, size: D, N and U.
    copies: () or the number of modules, a leading axis of all arrays.
    prefix: of the submodules' names.
  """
  lead, shape, experts = len(copies), (*copies, 3, heads, size), ('expert',) * len(copies)
  axes = (*experts, 'embed', None, 'heads', None)
  qkv = Linear((*copies, width, *shape[lead:]), lead, shape, axes, name=f'{prefix}qkv')
  shape, axes = (*copies, heads, size, width), (*experts, 'heads', None, 'embed')
  out = Linear(shape, (lead, lead + 1), (*copies, width), axes, name=f'{prefix}out')
  return AttentionLayers(qkv(), out())


def layers_of_lanes(layers: AttentionLayers, lanes: int) -> AttentionLayers:
  """Splits the heads over lanes: arrays with a leading axis of lanes, without the output bias,
  which lanes share."""
  (kernel, bias), out = layers.qkv, layers.out.kernel
  bias = None if bias is None else in_lanes(bias, 1, lanes)
  qkv = Layer(in_lanes(kernel, 2, lanes), bias)
  return AttentionLayers(qkv, Layer(in_lanes(out, 0, lanes)))


def attention(
  x: Float[Array, 'B T D'],
  layers: AttentionLayers,
  *,
  mask: Bool[Array, '#B T T'] | None = None,
  positions: Int[Array, 'B T'] | None = None,
  rope: bool = False,
) -> Float[Array, 'B T D']:
  """Returns `W_o softmax(q kᵀ/√U) v` with q, k, v linear in x.

  Args:
    x: the normalised stream.
    layers: the parameters.
    mask: which keys each query sees; None is all.
    positions: of the tokens, for rotations; None is 0 to T − 1.
    rope: whether queries and keys are rotated by their positions, see `rotate`.
  """

  def run(heads, x, mask, positions):
    kernel, bias, out = heads
    # Kernels enter as factors of `@` alone, so that `compress.noise` can put others in their place.
    qkv = (x @ kernel.reshape(x.shape[-1], -1)).reshape(*x.shape[:-1], *kernel.shape[1:]) + bias
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    if rope:
      q, k = rotate(q, positions), rotate(k, positions)
    z = attend(q, k, v, mask)
    return z.reshape(*z.shape[:-2], -1) @ out.reshape(-1, x.shape[-1])

  heads, axis_of_heads = (*layers.qkv, layers.out.kernel), (-2, -2, -3)
  return layers.out.add_bias(sum_of_units(run, heads, axis_of_heads, x, mask, positions))


def attend(
  q: Float[Array, 'B T N U'],
  k: Float[Array, 'B T N U'],
  v: Float[Array, 'B T N U'],
  mask: Bool[Array, '#B T T'] | None = None,
) -> Float[Array, 'B T N U']:
  """Returns the values' mean for each query, weighted by the softmax of its products with the keys
  that the mask lets it see.

  >>> q, v = jnp.zeros((1, 2, 1, 1)), jnp.array([0.0, 4.0]).reshape(1, 2, 1, 1)
  >>> attend(q, q, v).ravel().tolist(), attend(q, q, v, causal_mask(2)).ravel().tolist()
  ([2.0, 2.0], [0.0, 2.0])
  """
  scores = jnp.einsum('bqnu,bknu->bnqk', q * q.shape[-1] ** -0.5, k)
  if mask is not None:
    scores = jnp.where(mask[:, None], scores, jnp.finfo(scores.dtype).min)
  weights = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))
  return jnp.einsum('bnqk,bknu->bqnu', weights.astype(v.dtype), v)


def causal_mask(tokens: int) -> Bool[Array, '1 T T']:
  """Returns the mask by which token t sees the tokens up to t alone.

  >>> causal_mask(2).astype(int).tolist()
  [[[1, 0], [1, 1]]]
  """
  return jnp.tril(jnp.ones((1, tokens, tokens), bool))


def rotate(
  x: Float[Array, 'B T N U'], positions: Int[Array, 'B T'] | None = None
) -> Float[Array, 'B T N U']:
  """Returns queries or keys turned by their positions: the pair (i, i + U/2) of a token at position
  t by t·base^(−2i/U). Positions of None are 0 to T − 1. Source: Su et al. 2021 (arXiv:2104.09864).
  """
  size = x.shape[-1]
  positions = jnp.arange(x.shape[1]) if positions is None else positions
  rate = ROPE_BASE ** (-jnp.arange(size // 2) / (size // 2))
  angle = (positions[..., None] * rate)[..., None, :]  # [..., T, 1, U/2]
  cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
