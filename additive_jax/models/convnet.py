"""A residual convolutional network for images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from additive_jax.gates.sums import GateValue
from additive_jax.models.additive import Additive, Inputs, numbered
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
from additive_jax.models.surrounding import in_branch_dtype

Images = Float[Array, 'B X Y D']


class ConvBlock(nn.Module):
  """`h + f(h)` with `f(h) = W_2 * gelu(W_1 * LayerNorm(h) + b_1) + b_2`, 3 × 3 convolutions through
  D hidden channels.

  Attributes:
    kinds: which gates it has: 'residual' and 'sub_activation', see `models.kinds`.
    num_chunks: m, of the sub-activation gates.

  >>> ConvBlock(('residual', 'sub_activation'), num_chunks=3).gates
  ('residual', 'join_1', 'join_2')
  """

  kinds: tuple[str, ...] = (RESIDUAL,)
  num_chunks: int = 1

  casts: ClassVar[bool] = True

  @property
  def gates(self) -> tuple[str, ...]:
    """The names of its gates, in order."""
    return gate_names(self.kinds, self.num_chunks)

  @nn.compact
  def __call__(self, h: Images, gates: Sequence[GateValue] = ()) -> Images:
    shape = (3, 3, h.shape[-1], h.shape[-1])
    x = nn.LayerNorm(name='norm')(h)
    x, layers = in_branch_dtype((x, linear_pair(shape, shape)))
    return h + conv_sub_activation(x, layers, gates, nn.gelu)


class Down(nn.Module):
  """Halves the sides of images and goes over to `channels`: LayerNorm and a 2 × 2 convolution of
  stride 2. No gate switches it, as every later site needs its shape.

  The last row or column of an odd side is left out.

  >>> Down(8).init_with_output(jax.random.key(0), jnp.ones((1, 6, 5, 4)))[0].shape
  (1, 3, 2, 8)
  """

  channels: int

  gates: ClassVar[tuple[str, ...]] = ()

  @nn.compact
  def __call__(self, h: Images, gates: Sequence[GateValue] = ()) -> Float[Array, 'B X//2 Y//2 E']:
    shape = (2, 2, h.shape[-1], self.channels)
    x = nn.LayerNorm(name='norm')(h)
    layer = Linear(shape, (0, 1, 2), shape[-1:], name='conv')()
    return layer.add_bias(conv_tiles(x, layer.kernel))


class PooledHead(nn.Module):
  """`logits = W mean(LayerNorm(h))`, the mean over pixels."""

  num_classes: int

  @nn.compact
  def __call__(self, h: Images) -> Float[Array, 'B C']:
    return nn.Dense(self.num_classes, name='out')(nn.LayerNorm(name='norm')(h).mean((1, 2)))


class ConvNet(Additive):
  """A 3 × 3 stem, stages of pre-norm residual blocks with a down-sampling between them, and a
  readout of the mean over pixels.

  Inputs: images float [B, X, Y] or [B, X, Y, D], with sides of at least 2^(stages − 1).

  Attributes:
    channels: of each stage.
    blocks_per_stage: residual blocks of each stage; their sites are `stage_00/block_00` and so on.
    num_classes: the number of logits.
    gates: the kinds of gates that each block has: 'residual', 'sub_activation'. Those not chosen
      stay on.
    num_chunks: m, chunks of a block's input and output channels that sub-activation gates join.

  >>> ConvNet((8, 16), blocks_per_stage=1, num_classes=3).space.names
  ('stage_00/block_00/residual', 'stage_01/block_00/residual')
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

  def setup(self) -> None:
    self.stem = Conv(self.channels[0], 3, name='embed')
    sites: list[nn.Module] = []
    for stage, channels in zip(numbered('stage', len(self.channels)), self.channels):
      if sites:
        sites.append(Down(channels, name=f'{stage}__down'))
      for block in numbered('block', self.blocks_per_stage):
        name = f'{stage}__{block}'
        sites.append(ConvBlock(tuple(self.gates), self.num_chunks, name=name))
    self.sites = sites
    self.head = PooledHead(self.num_classes, name='readout')

  def embed(self, x: Inputs) -> Images:
    """Returns the stem's output for images."""
    return self.stem(as_images(x, least=2 ** (len(self.channels) - 1)))

  def readout(self, h: Images) -> Float[Array, 'B C']:
    """Returns the logits of the last stage's stream."""
    return self.head(h)
