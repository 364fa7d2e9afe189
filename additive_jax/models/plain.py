"""Plain stacks of convolutions, whose channels carry sub-activation gates: LeNet-5 and VGG style.

Without residual adds, each site owns sub-activation gates alone and gives a stream of a new shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
  tiles,
)
from additive_jax.models.dense_stack import KINDS, DensePair, Pair
from additive_jax.models.feed_forward import linear_pair
from additive_jax.models.kinds import check_chunks, check_kinds, check_sizes

C1_CHANNELS, C3_CHANNELS, C5_UNITS, F6_UNITS = 6, 16, 120, 84


def _squash(x: Float[Array, 'B X Y D']) -> Float[Array, 'B X//2 Y//2 D']:
  """Returns LeNet's nonlinear step after a convolution: tanh, and the mean of 2 × 2 windows."""
  return tiles(nn.tanh(x)).mean((2, 4))


class C3C5(Pair):
  """From 6 channels to 120 units: a 5 × 5 convolution to 16 channels, tanh, 2 × 2 means, the dense
  layer C5 as a convolution with a kernel of the whole map, and tanh. Its gates join chunks of the 6
  channels and of the 120 units.
  """

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B X Y D'], gates: Sequence[GateValue] = ()
  ) -> Float[Array, 'B E']:
    _, height, width, channels = h.shape
    shape = (5, 5, channels, C3_CHANNELS)
    whole = (height // 2, width // 2, C3_CHANNELS, C5_UNITS)
    layers = linear_pair(shape, whole, names=('c3', 'c5'))
    y = conv_sub_activation(h, layers, gates, _squash, second_map=conv_tiles)
    return nn.tanh(y[:, 0, 0])


class LeNet(Additive):
  """LeNet-5: C1, then the sites `c3_c5` and `f6_out`, whose stream is the logits; the readout does
  nothing. Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition".

  As usual today, C3 sees all channels, windows are averaged without parameters, and the logits
  are linear. All convolutions but C5 pad their borders, so that 8 × 8 images pass.

  Inputs: images float [B, X, Y] or [B, X, Y, D], with sides of at least 4.

  Attributes:
    num_classes: the number of logits.
    gates: ('sub_activation',), the one kind that a plain stack has.
    num_chunks: m, chunks that sub-activation gates join: in `c3_c5` of the 6 channels and the 120
      units, in `f6_out` of the 120 units and the logits.

  >>> LeNet(num_classes=10, num_chunks=2).space.names
  ('c3_c5/join_1', 'f6_out/join_1')
  """

  num_classes: int
  gates: Sequence[str] = KINDS
  num_chunks: int = 4

  def __post_init__(self):
    self.gates = check_kinds('lenet', self.gates, KINDS)
    super().__post_init__()
    check_sizes(num_classes=self.num_classes)
    for width in (C1_CHANNELS, self.num_classes):
      check_chunks(width, self.num_chunks)

  def setup(self) -> None:
    self.stem = Conv(C1_CHANNELS, 5, name='embed')
    sizes = (F6_UNITS, self.num_classes)
    out = DensePair(self.num_chunks, sizes, ('f6', 'out'), True, nn.tanh, name='f6_out')
    self.sites = [C3C5(self.num_chunks, name='c3_c5'), out]

  def embed(self, x: Inputs) -> Float[Array, 'B X Y D']:
    """Returns the output of C1, of half the sides."""
    return _squash(self.stem(as_images(x, least=4)))

  def readout(self, h: Float[Array, 'B C']) -> Float[Array, 'B C']:
    """Returns the logits as `f6_out` gave them."""
    return h


class ConvPair(Pair):
  """Two 3 × 3 convolutions, relu after each, and the largest of 2 × 2 windows.

  Attributes:
    channels: of both convolutions.

  >>> pair, h = ConvPair(num_chunks=2, channels=8), jnp.ones((1, 6, 6, 4))
  >>> jax.eval_shape(pair.init_with_output, jax.random.key(0), h)[0].shape
  (1, 3, 3, 8)
  """

  channels: int

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B X Y D'], gates: Sequence[GateValue] = ()
  ) -> Float[Array, 'B X//2 Y//2 E']:
    shapes = (3, 3, h.shape[-1], self.channels), (3, 3, self.channels, self.channels)
    y = conv_sub_activation(h, linear_pair(*shapes), gates, nn.relu)
    return tiles(nn.relu(y)).max((2, 4))


class VGG(Additive):
  """A 3 × 3 stem, one pair of convolutions per stage, each halving the image, and a readout of the
  mean over pixels. Source: Simonyan and Zisserman 2014 (arXiv:1409.1556).

  Inputs: images float [B, X, Y] or [B, X, Y, D], with sides of at least 2^stages.

  Attributes:
    channels: of each stage; the stem has those of the first. The sites are `stage_00` and so on.
    num_classes: the number of logits.
    gates: ('sub_activation',), the one kind that a plain stack has.
    num_chunks: m, chunks of a stage's input and output channels that sub-activation gates join.

  >>> VGG((8, 16), num_classes=10, num_chunks=2).space.names
  ('stage_00/join_1', 'stage_01/join_1')
  """

  channels: Sequence[int] = (16, 32)
  num_classes: int = dataclasses.field(kw_only=True)
  gates: Sequence[str] = KINDS
  num_chunks: int = 4

  def __post_init__(self):
    self.channels = check_channels(self.channels)
    self.gates = check_kinds('vgg', self.gates, KINDS)
    super().__post_init__()
    check_sizes(num_classes=self.num_classes)
    check_chunks(min(self.channels), self.num_chunks)

  def setup(self) -> None:
    self.stem = Conv(self.channels[0], 3, name='embed')
    self.sites = [
      ConvPair(self.num_chunks, channels, name=name)
      for name, channels in zip(numbered('stage', len(self.channels)), self.channels)
    ]
    self.head = nn.Dense(self.num_classes, name='readout')

  def embed(self, x: Inputs) -> Float[Array, 'B X Y D']:
    """Returns the stem's output for images."""
    return nn.relu(self.stem(as_images(x, least=2 ** len(self.channels))))

  def readout(self, h: Float[Array, 'B X Y D']) -> Float[Array, 'B C']:
    """Returns the logits of the mean over pixels."""
    return self.head(h.mean((1, 2)))
