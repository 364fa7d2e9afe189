"""The pre-norm self-attention branch, with residual and lane gates."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from additive_jax import gates as gates_
from additive_jax.models.feed_forward import Linear, in_lanes
from additive_jax.models.kinds import LANE, RESIDUAL, Lanes, gate_names

ROPE_BASE = 10_000.0


class Attention(nn.Module):
  """`h + W_o softmax(q kᵀ/√d) v` with q, k, v of LayerNorm(h), from [B, T, D] to the same shape.

  Attributes:
    num_heads: heads, of D/num_heads units each.
    kinds: which gates it has: 'residual' and 'lane', see `models.kinds`.
    lanes: P lanes; the stream is then [B, P, T, D], and lane p owns num_heads/P heads.
    causal: whether token t attends to the tokens up to t alone.
    rope: whether queries and keys are rotated by their positions. Source: Su et al. 2021
      (arXiv:2104.09864).
  """

  num_heads: int
  kinds: tuple[str, ...] = (RESIDUAL,)
  lanes: Lanes = Lanes()
  causal: bool = False
  rope: bool = False

  @property
  def gates(self) -> tuple[str, ...]:
    return gate_names(self.kinds, 1)

  @nn.compact
  def __call__(self, h: jax.Array, values=()) -> jax.Array:
    width = h.shape[-1]
    heads, size = self.num_heads // self.lanes.devices, width // self.num_heads
    x = nn.LayerNorm(name='norm')(h)
    shape = (width, 3, heads, size)
    qkv, qkv_bias = Linear(shape, bias=shape[1:], name='qkv')()
    out, out_bias = Linear((heads, size, width), in_axis=(0, 1), bias=(width,), name='out')()

    # Kernels enter as factors of `@` alone, so that `sparse.noise` can put others in their place.
    def branch(x, qkv, qkv_bias, out):
      each = (x @ qkv.reshape(width, -1)).reshape(*x.shape[:-1], *qkv.shape[1:])
      q, k, v = jnp.moveaxis(each + qkv_bias, 2, 0)
      if self.rope:
        q, k = rotate(q), rotate(k)
      z = attend(q, k, v, self.causal)
      return z.reshape(*z.shape[:-2], -1) @ out.reshape(-1, width)

    if LANE not in self.kinds:
      return h + branch(x, qkv, qkv_bias, out) + out_bias
    lanes = self.lanes.local
    shards = in_lanes(qkv, 2, lanes), in_lanes(qkv_bias, 1, lanes), in_lanes(out, 0, lanes)
    z = jax.vmap(branch, in_axes=(1, 0, 0, 0), out_axes=1)(x, *shards)
    z = z + out_bias / self.lanes.count
    reduce = values[0] if values else True
    return gates_.lane(h, z, reduce, axis=1, mesh_axis=self.lanes.mesh_axis)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool, allowed=None) -> jax.Array:
  """Softmax attention of queries, keys and values [B, T, heads, d]; the same shape.

  Args:
    allowed: in place of `causal`, which keys each query sees, bool [B, T, T].
  """
  scores = jnp.einsum('bqhd,bkhd->bhqk', q * q.shape[-1] ** -0.5, k)
  if allowed is None and causal:
    tokens = q.shape[1]
    allowed = jnp.tril(jnp.ones((1, tokens, tokens), bool))
  if allowed is not None:
    scores = jnp.where(allowed[:, None], scores, jnp.finfo(scores.dtype).min)
  return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), v)


def rotate(x: jax.Array, positions: jax.Array | None = None) -> jax.Array:
  """Rotary positions: the pair (i, i + d/2) of a token [B, T, heads, d] at position t is turned by
  t·base^(−2i/d). Positions are int [B, T]; None is 0 to T − 1.
  """
  size = x.shape[-1]
  positions = jnp.arange(x.shape[1]) if positions is None else positions
  rate = ROPE_BASE ** (-jnp.arange(size // 2) / (size // 2))
  angle = (positions[..., None] * rate)[..., None, :]  # [..., T, 1, d/2]
  cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
