"""A residual convolutional network for images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array

from additive_jax.models.additive import Additive
from additive_jax.models.conv import (
  Conv,
  as_images,
  check_channels,
  conv_sub_activation,
  conv_tiles,
)
from additive_jax.models.feed_forward import Linear, linear_pair
from additive_jax.models.kinds import (
  RESIDUAL,
  SUB_ACTIVATION,
  check_chunks,
  check_kinds,
  check_sizes,
  gate_names,
)


class ConvBlock(nn.Module):
  """`h + f(h)` with `f(h) = W_2 * gelu(W_1 * LayerNorm(h) + b_1) + b_2`, 3 × 3 convolutions from
  [B, height, width, C] to the same shape through C hidden channels.

  Attributes:
    kinds: which gates it has: 'residual' and 'sub_activation', see `models.kinds`.
    num_chunks: m, of the sub-activation gates.
  """

  kinds: tuple[str, ...] = (RESIDUAL,)
  num_chunks: int = 1

  @property
  def gates(self) -> tuple[str, ...]:
    return gate_names(self.kinds, self.num_chunks)

  @nn.compact
  def __call__(self, h: Array, gates: Sequence = ()) -> Array:
    shape = (3, 3, h.shape[-1], h.shape[-1])
    x = nn.LayerNorm(name='norm')(h)
    return h + conv_sub_activation(x, linear_pair(shape, shape), gates, nn.gelu)


class Down(nn.Module):
  """Halves the sides of [B, height, width, C] and goes over to `channels`: LayerNorm and a 2 × 2
  convolution of stride 2. No gate switches it, as every later site needs its shape.

  The last row or column of an odd side is left out.
  """

  channels: int

  @property
  def gates(self) -> tuple[str, ...]:
    return ()

  @nn.compact
  def __call__(self, h: Array, gates: Sequence = ()) -> Array:
    shape = (2, 2, h.shape[-1], self.channels)
    x = nn.LayerNorm(name='norm')(h)
    kernel, bias = Linear(shape, (0, 1, 2), shape[-1:], name='conv')()
    return conv_tiles(x, kernel) + bias


class PooledHead(nn.Module):
  """`logits = W mean(LayerNorm(h))`, the mean over pixels, from [B, height, width, C] to
  [B, classes]."""

  num_classes: int

  @nn.compact
  def __call__(self, h: Array) -> Array:
    return nn.Dense(self.num_classes, name='out')(nn.LayerNorm(name='norm')(h).mean((1, 2)))


class ConvNet(Additive):
  """A 3 × 3 stem, stages of pre-norm residual blocks with a down-sampling between them, and a
  readout of the mean over pixels.

  Inputs: images float [B, height, width] or [B, height, width, channels], with sides of at least
  2^(stages − 1).

  Attributes:
    channels: of each stage.
    blocks_per_stage: residual blocks of each stage; their sites are `stage_00/block_00` and so on.
    num_classes: the number of logits.
    gates: the kinds of gates that each block has: 'residual', 'sub_activation'. Those not chosen
      stay on.
    num_chunks: m, chunks of a block's input and output channels that sub-activation gates join.
  """

  channels: Sequence[int] = (16, 32)
  blocks_per_stage: int = 2
  num_classes: int = dataclasses.field(kw_only=True)
  gates: Sequence[str] = (RESIDUAL,)
  num_chunks: int = 4

  def __post_init__(self):
    self.channels = check_channels(self.channels)
    self.gates = check_kinds('convnet', self.gates, (RESIDUAL, SUB_ACTIVATION))
    super().__post_init__()
    check_sizes(blocks_per_stage=self.blocks_per_stage, num_classes=self.num_classes)
    if SUB_ACTIVATION in self.gates:
      check_chunks(min(self.channels), self.num_chunks)

  def setup(self):
    self.stem = Conv(self.channels[0], 3, name='embed')
    sites = []
    for i, channels in enumerate(self.channels):
      stage = f'stage_{i:0{_digits(len(self.channels))}}'
      if i:
        sites.append(Down(channels, name=f'{stage}__down'))
      sites += [
        ConvBlock(
          self.gates, self.num_chunks, name=f'{stage}__block_{j:0{_digits(self.blocks_per_stage)}}'
        )
        for j in range(self.blocks_per_stage)
      ]
    self.sites = sites
    self.head = PooledHead(self.num_classes, name='readout')

  def embed(self, x: Array) -> Array:
    return self.stem(as_images(x, least=2 ** (len(self.channels) - 1)))

  def readout(self, h: Array) -> Array:
    return self.head(h)


def _digits(count: int) -> int:
  """Digits of the numbers below `count` in a name, at least two."""
  return max(2, len(str(count - 1)))
