"""GPT-2: a causal language model with learned positions and LayerNorms before its branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

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
from additive_jax.models.last_layer import LastLayer
from additive_jax.models.layer_sites import (
  SUBLAYER,
  activation_of,
  check_layer_sites,
  layer_sites,
)
from additive_jax.models.norms import Norm
from additive_jax.models.token_inputs import positions_of, token_inputs, with_side


class GPT2(Additive):
  """`num_layers` layers of an attention site and a feed-forward site each.

  Inputs: tokens int [B, T], or a dict of `tokens` with `mask` or `segments`, as of `Decoder`.
  Outputs: logits float32 [B, T, C] of the next tokens; the readout's matrix is that of the
  embedding.

  Attributes:
    num_layers: layers; their sites are `layer_00/attention`, `layer_00/mlp` and so on.
    width: D.
    num_heads: N.
    hidden: H of the feed-forward branches.
    num_tokens: C, how many different tokens there are.
    max_tokens: how many positions are learned, the longest T.
    epsilon: of the norms.
    activation: of the feed-forward branches, see `layer_sites.ACTIVATIONS`.
    tied: whether the readout's matrix is that of the embedding.
    sites_by, gates, num_chunks, num_lanes: as of `Decoder`.

  Source: Radford et al. 2019.

  >>> model = GPT2(1, 8, 2, 16, num_tokens=50, max_tokens=5)
  >>> x = jnp.zeros((2, 5), int)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
  (2, 5, 50)
  """

  num_layers: int
  width: int
  num_heads: int
  hidden: int
  num_tokens: int
  max_tokens: int = 1024
  epsilon: float = 1e-5
  activation: str = 'gelu_new'
  tied: bool = True
  sites_by: str = SUBLAYER
  gates: Sequence[str] = (RESIDUAL,)
  num_chunks: int = 4
  num_lanes: int = 2

  causal = True

  def __post_init__(self):
    self.gates = check_kinds('gpt2', self.gates, KINDS)
    super().__post_init__()
    sizes = ('num_layers', 'width', 'num_heads', 'hidden', 'num_tokens', 'max_tokens')
    check_sizes(**{name: getattr(self, name) for name in sizes})
    check_divides('units of width', self.width, 'heads', self.num_heads)
    activation_of(self.activation)
    check_layer_sites(self, self.num_heads, self.hidden)

  def setup(self) -> None:
    norm, lanes = Norm('layer', self.epsilon), self.num_lanes

    def attention(i: int, kinds: tuple[str, ...], **flax: Any) -> nn.Module:
      return Attention(self.num_heads, kinds, lanes, causal=True, norm=norm, **flax)

    def mlp(i: int, kinds: tuple[str, ...], **flax: Any) -> nn.Module:
      act = activation_of(self.activation)
      return FeedForward(self.hidden, kinds, self.num_chunks, lanes, act, norm=norm, **flax)

    self.stem = nn.Embed(self.num_tokens, self.width, name='embed')
    self.position = nn.Embed(self.max_tokens, self.width, name='position')
    self.sites = layer_sites(self.num_layers, self.sites_by, attention, mlp, self.gates)
    self.head = TokenHead(self.num_tokens, norm, name='readout')

  def embed(self, x: Inputs) -> Stream:
    """Returns the stream [B, T, D] of tokens, with lanes [B, P, T, D]."""
    tokens, side, _ = token_inputs(x)
    positions = positions_of(tokens, side, self.max_tokens)
    h = (self.stem(tokens) + self.position(positions)).astype(jnp.float32)
    h = lane_copies(h, self.num_lanes, axis=1) if LANE in self.gates else h
    return with_side(h, side)

  def readout(self, h: Stream) -> Logits:
    """Returns the logits of a stream, of the mean over its lanes if it has some."""
    h = lane_mean(h, axis=1) if LANE in self.gates else h
    return self.head(h, self.stem.embedding if self.tied else None)

  def last_layer(self, h: Stream) -> LastLayer:
    """Returns the logits that are not multiplied out."""
    h = lane_mean(h, axis=1) if LANE in self.gates else h
    return self.head.last_layer(h, self.stem.embedding if self.tied else None)
