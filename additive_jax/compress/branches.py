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
from jaxtyping import Array, Float, PyTree

from additive_jax.gates.layers import Layer, LayerPair, sub_activation
from additive_jax.gates.sums import lane as lane_gate
from additive_jax.models.attention import AttentionLayers, attention, attention_layers, visible
from additive_jax.models.conv import conv_sub_activation
from additive_jax.models.feed_forward import feed_forward_layers, linear_pair
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
  def __call__(
    self, h: Float[Array, 'B *lanes T D'], side: PyTree | None = None
  ) -> Float[Array, 'B *lanes T D']:
    side = side or {}
    x = nn.LayerNorm(name='norm')(h)
    qkv, out = attention_layers(h.shape[-1], sum(self.heads), self.size)
    mask = visible(h.shape[-2], self.causal, 0, side.get('segments'))

    def branch(x, part):
      heads = jax.tree.map(lambda a: a[..., part, :], qkv)
      layers = AttentionLayers(heads, Layer(out.kernel[part]))
      positions = side.get('positions')
      return attention(x, layers, mask=mask, positions=positions, rope=self.rope)

    return _add(h, x, self.heads, self.meet, branch, out.bias)


class FeedForward(nn.Module):
  """The feed-forward branch and its residual add; see `models.feed_forward`.

  Attributes:
    hidden: hidden units of each lane; a single number where there are no lanes.
    unit: 'gelu', 'relu' or 'swiglu'.
    joins: of the chunks of the stream, bools [m − 1]; () for a dense layer.
    meet: as in `Attention`.
  """

  hidden: tuple[int, ...]
  unit: str = 'gelu'
  joins: tuple[bool, ...] = ()
  meet: bool = True

  @nn.compact
  def __call__(self, h: Float[Array, 'B *lanes D']) -> Float[Array, 'B *lanes D']:
    activation, gated = UNITS[self.unit]
    x = nn.LayerNorm(name='norm')(h)
    layers = feed_forward_layers(h.shape[-1], sum(self.hidden), gated)

    def branch(x, part):
      first, gating = jax.tree.map(lambda a: a[..., part], (layers.first, layers.gating))
      lane = LayerPair(first, Layer(layers.second.kernel[part]), gating)
      return sub_activation(x, lane, self.joins, activation)

    return _add(h, x, self.hidden, self.meet, branch, layers.second.bias)


class ConvBlock(nn.Module):
  """The convolutional branch and its residual add; see `models.convnet`.

  Attributes:
    hidden: hidden channels.
    joins: of the chunks of channels, bools [m − 1]; () for whole convolutions.
  """

  hidden: int
  joins: tuple[bool, ...] = ()

  @nn.compact
  def __call__(self, h: Float[Array, 'B height width C']) -> Float[Array, 'B height width C']:
    x = nn.LayerNorm(name='norm')(h)
    layers = linear_pair((3, 3, h.shape[-1], self.hidden), (3, 3, self.hidden, h.shape[-1]))
    return h + conv_sub_activation(x, layers, self.joins, nn.gelu)


class Shift(nn.Module):
  """A branch without units: it still adds its output bias, and lanes may meet.

  Attributes:
    lanes: how many, 1 for none.
    meet: as in `Attention`.
    biased: whether the branch has an output bias.
  """

  lanes: int = 1
  meet: bool = True
  biased: bool = True

  @nn.compact
  def __call__(self, h: Float[Array, 'B ...']) -> Float[Array, 'B ...']:
    bias = None
    if self.biased:
      bias = self.param('bias', nn.initializers.zeros, h.shape[-1:], jnp.float32)
    return _add(h, h, (0,) * self.lanes, self.meet, None, bias)


def _add(h, x, sizes: tuple[int, ...], meet: bool, branch: Callable[..., Array] | None, bias):
  """Returns `h + branch(x) + bias`, where each lane computes its own part of the units.

  sizes (3, 2):   lane 0 has units 0 1 2,  lane 1 has units 3 4
  """
  bounds = ends(sizes)
  bias = 0 if bias is None else bias
  if len(sizes) == 1:
    return h + (branch(x, slice(None)) if branch and sizes[0] else 0) + bias
  parts = []
  for lane, size in enumerate(sizes):
    z = branch(x[:, lane], slice(*bounds[lane : lane + 2])) if branch and size else 0
    parts.append(jnp.broadcast_to(z + bias / len(sizes), h[:, lane].shape))
  return lane_gate(h, jnp.stack(parts, 1), meet, axis=1)


def ends(sizes: Sequence[int]) -> tuple[int, ...]:
  """Returns where parts of these sizes begin and end.

  >>> ends((3, 2))
  (0, 3, 5)
  """
  return (0, *itertools.accumulate(sizes))
