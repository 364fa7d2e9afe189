"""Keys and values of all tokens, which several modules with attention share.

Source: mixtures of attention heads (Zhang et al. 2022, arXiv:2210.05144).
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from additive_jax.models.feed_forward import Linear
from additive_jax.models.rotary import rotate
from additive_jax.models.surrounding import in_branch_dtype


class Keys(nn.Module):
  """The keys and values of all tokens, `[B, T, 2, N, U]`, that all modules of a pool share.

  Attributes:
    num_heads, rope: as in `Attention`.
  """

  num_heads: int
  rope: bool = False

  @nn.compact
  def __call__(self, h: Float[Array, 'B T D']) -> Float[Array, 'B T 2 N U']:
    width = h.shape[-1]
    shape = (2, self.num_heads, width // self.num_heads)
    layer = Linear((width, *shape), 0, shape, ('embed', None, 'heads', None), name='kv')()
    x, layer = in_branch_dtype((nn.LayerNorm(name='norm')(h), layer))
    keys, values = jnp.moveaxis(jnp.einsum('btd,dpnu->btpnu', x, layer.kernel) + layer.bias, 2, 0)
    return jnp.stack([rotate(keys) if self.rope else keys, values], axis=2)
