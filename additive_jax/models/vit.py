"""ViT as it was published: patches and a class token, norms before the branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from additive_jax.batches import check_one_array
from additive_jax.errors import UserError
from additive_jax.gates.sums import lane_copies, lane_mean
from additive_jax.models.additive import Additive, Inputs, Logits, Stream
from additive_jax.models.attention import Attention
from additive_jax.models.decoder import TokenHead
from additive_jax.models.feed_forward import FeedForward
from additive_jax.models.kinds import (
  KINDS,
  LANE,
  RESIDUAL,
  check_divides,
  check_kinds,
  check_sizes,
)
from additive_jax.models.layer_sites import (
  SUBLAYER,
  activation_of,
  check_layer_sites,
  layer_sites,
)
from additive_jax.models.norms import Norm
from additive_jax.models.surrounding import input_dtype
from additive_jax.models.transformer import patches


class ViT(Additive):
  """`num_layers` layers of an attention site and a feed-forward site each, over the patches of an
  image and a class token, whose stream the logits are read from.

  Inputs: images float [B, height, width, channels], of sides `image_size`, normalised as the
  network was trained. Outputs: logits float32 [B, C].

  `Transformer` is the library's own network of images, which takes any size and the mean over its
  tokens.

  Attributes:
    num_layers: layers; their sites are `layer_00/attention`, `layer_00/mlp` and so on.
    width: D.
    num_heads: N.
    hidden: H of the feed-forward branches.
    num_classes: C.
    image_size: height and width.
    patch_size: pixels of a patch's side.
    num_channels: of an image.
    epsilon: of the norms.
    activation: of the feed-forward branches, see `layer_sites.ACTIVATIONS`.
    sites_by, gates, num_chunks, num_lanes: as of `Decoder`.

  Source: Dosovitskiy et al. 2020 (arXiv:2010.11929).

  >>> model = ViT(1, 8, 2, 16, num_classes=3, image_size=4, patch_size=2)
  >>> x = jnp.zeros((2, 4, 4, 3))
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
  (2, 3)
  """

  num_layers: int
  width: int
  num_heads: int
  hidden: int
  num_classes: int
  image_size: int = 224
  patch_size: int = 16
  num_channels: int = 3
  epsilon: float = 1e-12
  activation: str = 'gelu'
  sites_by: str = SUBLAYER
  gates: Sequence[str] = (RESIDUAL,)
  num_chunks: int = 4
  num_lanes: int = 2

  def __post_init__(self):
    self.gates = check_kinds('vit', self.gates, KINDS)
    super().__post_init__()
    sizes = ('num_layers', 'width', 'num_heads', 'hidden', 'num_classes', 'image_size')
    sizes += ('patch_size', 'num_channels')
    check_sizes(**{name: getattr(self, name) for name in sizes})
    check_divides('units of width', self.width, 'heads', self.num_heads)
    check_divides('pixels', self.image_size, 'patches of a side', self.patch_size)
    activation_of(self.activation)
    check_layer_sites(self, self.num_heads, self.hidden)

  @property
  def num_positions(self) -> int:
    """Patches and the class token."""
    return (self.image_size // self.patch_size) ** 2 + 1

  def setup(self) -> None:
    norm, lanes = Norm('layer', self.epsilon), self.num_lanes

    def attention(i: int, kinds: tuple[str, ...], **flax: Any) -> nn.Module:
      return Attention(self.num_heads, kinds, lanes, norm=norm, **flax)

    def mlp(i: int, kinds: tuple[str, ...], **flax: Any) -> nn.Module:
      act = activation_of(self.activation)
      return FeedForward(self.hidden, kinds, self.num_chunks, lanes, act, norm=norm, **flax)

    init = nn.initializers.normal(0.02)
    self.stem = nn.Dense(self.width, name='embed')
    self.class_token = self.param('class_token', init, (self.width,), jnp.float32)
    shape = (self.num_positions, self.width)
    self.position = self.param('position', init, shape, jnp.float32)
    self.sites = layer_sites(self.num_layers, self.sites_by, attention, mlp, self.gates)
    self.head = TokenHead(self.num_classes, norm, bias=True, name='readout')

  def embed(self, x: Inputs) -> Stream:
    """Returns the stream [B, T, D] of images, with lanes [B, P, T, D]."""
    check_one_array(x)
    sides = (self.image_size, self.image_size, self.num_channels)
    if x.shape[1:] != sides:
      raise UserError(f'inputs of shape {x.shape}: expected images {[x.shape[0], *sides]}')
    h = self.stem(patches(jnp.asarray(x, input_dtype()), self.patch_size))
    first = jnp.broadcast_to(self.class_token.astype(h.dtype), (len(h), 1, self.width))
    h = (jnp.concatenate([first, h], axis=1) + self.position).astype(jnp.float32)
    return lane_copies(h, self.num_lanes, axis=1) if LANE in self.gates else h

  def readout(self, h: Stream) -> Logits:
    """Returns the logits of a stream, of the mean over its lanes if it has some."""
    if LANE in self.gates:
      h = lane_mean(h, axis=1)
    return self.head(h[:, 0])
