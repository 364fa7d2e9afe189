"""Branches without gates, each with its residual add: steps of a plain network, see `steps`.

Each does in fixed arithmetic what the site of the same name does in one structure, with any number
of units, which may differ from lane to lane.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from additive_jax import gates as gates_
from additive_jax.models.attention import attend, rotate
from additive_jax.models.conv import conv_kernel, conv_sub_activation
from additive_jax.models.feed_forward import Linear
from additive_jax.models.transformer import UNITS


class Attention(nn.Module):
  """The attention branch and its residual add; see `models.attention`.

  Attributes:
    heads: the heads of each lane; a single number where there are no lanes.
    size: units of a head.
    causal, rope: as in `models.attention`.
    meet: whether lanes get the mean of their streams and the sum of what was added.
  """

  heads: tuple[int, ...]
  size: int
  causal: bool = False
  rope: bool = False
  meet: bool = True

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    width, heads = h.shape[-1], sum(self.heads)
    x = nn.LayerNorm(name='norm')(h)
    shape = (width, 3, heads, self.size)
    qkv, qkv_bias = Linear(shape, bias=shape[1:], name='qkv')()
    shape = (heads, self.size, width)
    out, out_bias = Linear(shape, in_axis=(0, 1), bias=(width,), name='out')()

    def branch(x, part):
      kernel, bias = qkv[:, :, part], qkv_bias[:, part]
      q, k, v = jnp.moveaxis(jnp.einsum('btd,dshk->btshk', x, kernel) + bias, 2, 0)
      if self.rope:
        q, k = rotate(q), rotate(k)
      return jnp.einsum('bthk,hkd->btd', attend(q, k, v, self.causal), out[part])

    return _add(h, x, self.heads, self.meet, branch, out_bias)


class FeedForward(nn.Module):
  """The feed-forward branch and its residual add; see `models.feed_forward`.

  Attributes:
    hidden: hidden units of each lane; a single number where there are no lanes.
    unit: 'gelu' or 'swiglu'.
    joins: of the chunks of the stream, bools [m − 1]; () for a dense layer.
    meet: as in `Attention`.
  """

  hidden: tuple[int, ...]
  unit: str = 'gelu'
  joins: tuple[bool, ...] = ()
  meet: bool = True

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    width, hidden = h.shape[-1], sum(self.hidden)
    activation, gated = UNITS[self.unit]
    x = nn.LayerNorm(name='norm')(h)
    bias = lambda size: None if gated else (size,)
    first, first_bias = Linear((width, hidden), bias=bias(hidden), name='in')()
    second, second_bias = Linear((hidden, width), bias=bias(width), name='out')()
    gate = Linear((width, hidden), name='gate')()[0] if gated else None

    def branch(x, part):
      return gates_.sub_activation(
        x,
        first[:, part],
        second[part],
        self.joins,
        activation,
        gate_kernel=None if gate is None else gate[:, part],
        in_bias=None if first_bias is None else first_bias[part],
      )

    return _add(h, x, self.hidden, self.meet, branch, second_bias)


class ConvBlock(nn.Module):
  """The convolutional branch and its residual add; see `models.convnet`.

  Attributes:
    hidden: hidden channels.
    joins: of the chunks of channels, bools [m − 1]; () for whole convolutions.
  """

  hidden: int
  joins: tuple[bool, ...] = ()

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    channels = h.shape[-1]
    x = nn.LayerNorm(name='norm')(h)
    first, first_bias = conv_kernel((3, 3, channels, self.hidden), 'in')
    second, second_bias = conv_kernel((3, 3, self.hidden, channels), 'out')
    return h + conv_sub_activation(
      x, first, second, self.joins, nn.gelu, in_bias=first_bias, out_bias=second_bias
    )


class Shift(nn.Module):
  """What a branch without units still does: it adds its output bias, and lanes may meet.

  Attributes:
    lanes: how many, 1 for none.
    meet: as in `Attention`.
    biased: whether the branch has an output bias.
  """

  lanes: int = 1
  meet: bool = True
  biased: bool = True

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    bias = self.param('bias', nn.initializers.zeros, h.shape[-1:]) if self.biased else None
    return _add(h, h, (0,) * self.lanes, self.meet, None, bias)


def _add(h, x, sizes, meet: bool, branch: Callable, bias):
  """`h + branch(x) + bias`, where each lane computes its own part of the units."""
  bounds = ends(sizes)
  bias = 0 if bias is None else bias
  if len(sizes) == 1:
    return h + (branch(x, slice(None)) if sizes[0] else 0) + bias
  parts = []
  for lane, size in enumerate(sizes):
    z = branch(x[:, lane], slice(*bounds[lane : lane + 2])) if size else 0
    parts.append(jnp.broadcast_to(z + bias / len(sizes), h[:, lane].shape))
  return gates_.lane(h, jnp.stack(parts, 1), meet, axis=1)


def ends(sizes: Sequence[int]) -> tuple[int, ...]:
  """Where parts of these sizes begin and end, from 0."""
  return (0, *itertools.accumulate(sizes))
