"""A causal language model of the Llama family: Llama, SmolLM, Mistral, Qwen2 and Qwen3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from additive_jax.gates.layers import Layer
from additive_jax.gates.sums import lane_copies, lane_mean
from additive_jax.models.additive import Additive, Inputs, Logits, Stream
from additive_jax.models.attention import Attention, Grouped
from additive_jax.models.feed_forward import FeedForward, Linear
from additive_jax.models.kinds import (
  KINDS,
  LANE,
  RESIDUAL,
  block_sizes,
  check_divides,
  check_kinds,
  check_sizes,
)
from additive_jax.models.last_layer import LastLayer
from additive_jax.models.layer_sites import SUBLAYER, check_layer_sites, layer_sites
from additive_jax.models.norms import Norm
from additive_jax.models.rotary import BASE, Rotary
from additive_jax.models.token_inputs import check_length, token_inputs, with_side


class TokenHead(nn.Module):
  """`logits = W norm(h)` for each token, float32, from [B, ..., D] to [B, ..., C].

  Attributes:
    num_tokens: C.
    norm: its kind.
    bias: whether there is one beside W.
  """

  num_tokens: int
  norm: Norm = Norm()
  bias: bool = False

  def __call__(
    self, h: Float[Array, 'B *axes D'], embedding: Float[Array, 'C D'] | None = None
  ) -> Float[Array, 'B *axes C']:
    """Returns the logits.

    Args:
      h: the stream.
      embedding: of the tokens, where W is tied to it; None makes a W.
    """
    last = self.last_layer(h, embedding)
    layer = Layer(last.kernel.T if last.tied else last.kernel, last.bias)
    return layer.add_bias(jnp.matmul(last.x, layer.kernel, preferred_element_type=jnp.float32))

  @nn.compact
  def last_layer(
    self, h: Float[Array, 'B *axes D'], embedding: Float[Array, 'C D'] | None = None
  ) -> LastLayer:
    """Returns the logits that are not multiplied out."""
    h = self.norm.module('norm')(h)
    if embedding is not None:
      return LastLayer(h, embedding, tied=True)
    bias = (self.num_tokens,) if self.bias else None
    layer = Linear((h.shape[-1], self.num_tokens), 0, bias, name='out')()
    return LastLayer(h, layer.kernel, layer.bias)


class Decoder(Additive):
  """`num_layers` layers of an attention site and a feed-forward site each: RMSNorms before them,
  rotary positions, heads in groups, gated units.

  Inputs: tokens int [B, T], or a dict of `tokens` with `mask` (0 for padding) or `segments` (the
  document of each token, see `models.token_inputs`). Outputs: logits float32 [B, T, C] of the next
  tokens.

  Attributes:
    num_layers: layers; their sites are `layer_00/attention`, `layer_00/mlp` and so on.
    width: D.
    num_heads: N, heads of queries.
    hidden: H of the feed-forward branches.
    num_tokens: C, how many different tokens there are.
    num_kv_heads: K, heads of keys and values, each for N/K heads; 0 is N.
    head_size: U; 0 is D/N.
    theta, scaling: of the rotary positions, see `models.rotary.Rotary`.
    epsilon: of the norms.
    tied: whether the readout's matrix is that of the embedding.
    qkv_bias, out_bias, mlp_bias: whether these layers have biases (Qwen2: the first).
    qk_norm: whether queries and keys are normalised (Qwen3).
    window: how many tokens a token sees at most, itself included; one number, or one for each
      layer; 0 for no limit.
    max_tokens: the longest T, for which the network was trained; 0 for no limit. `clone(max_tokens=
      …)` gives another to one that was loaded.
    sites_by: 'sublayer', or 'layer' for one gate for each whole layer (`layer_00/residual`).
    gates: the kinds of gates: 'residual', 'sub_activation' (feed-forward sites only), 'lane'. Those
      not chosen stay on.
    num_chunks: m, chunks of D that sub-activation gates join.
    num_lanes: P, lanes that lane gates join; K and H are split over them.

  Source: Touvron et al. 2023 (arXiv:2302.13971).

  >>> model = Decoder(1, 8, 4, 16, num_tokens=50, num_kv_heads=2)
  >>> model.space.names
  ('layer_00/attention/residual', 'layer_00/mlp/residual')
  >>> x = jnp.zeros((2, 5), int)
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
  (2, 5, 50)
  """

  num_layers: int
  width: int
  num_heads: int
  hidden: int
  num_tokens: int
  num_kv_heads: int = 0
  head_size: int = 0
  theta: float = BASE
  scaling: Sequence[tuple[str, Any]] = ()
  epsilon: float = 1e-6
  tied: bool = True
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  window: int | Sequence[int] = 0
  max_tokens: int = 0
  sites_by: str = SUBLAYER
  gates: Sequence[str] = (RESIDUAL,)
  num_chunks: int = 4
  num_lanes: int = 2

  causal = True
  limits = ('max_tokens',)  # fields that are no part of what the network is

  def __post_init__(self):
    if not isinstance(self.window, int):
      self.window = tuple(self.window)  # a module's fields must be hashable
    self.scaling = tuple((str(name), value) for name, value in self.scaling)
    self.gates = check_kinds('decoder', self.gates, KINDS)
    super().__post_init__()
    check_sizes(
      num_layers=self.num_layers,
      width=self.width,
      num_heads=self.num_heads,
      hidden=self.hidden,
      num_tokens=self.num_tokens,
      num_kv_heads=self.groups,
    )
    check_divides('heads', self.num_heads, 'heads of keys and values', self.groups)
    if not self.head_size:
      check_divides('units of width', self.width, 'heads', self.num_heads)
    check_divides('units', self.units, 'halves of a head', 2)
    check_layer_sites(self, self.groups, self.hidden)
    self.rotary.rates(self.units)
    block_sizes(self.window, self.num_layers)

  @property
  def groups(self) -> int:
    """K."""
    return self.num_kv_heads or self.num_heads

  @property
  def units(self) -> int:
    """U."""
    return self.head_size or self.width // self.num_heads

  @property
  def rotary(self) -> Rotary:
    """How queries and keys are turned."""
    return Rotary(self.theta, tuple(self.scaling))

  @property
  def norm(self) -> Norm:
    """The kind of all norms."""
    return Norm('rms', self.epsilon)

  def setup(self) -> None:
    windows = block_sizes(self.window, self.num_layers)
    grouped = Grouped(self.groups, self.units, self.qkv_bias, self.out_bias, self.qk_norm)

    def attention(i: int, kinds: tuple[str, ...], **flax: Any) -> nn.Module:
      return Attention(
        self.num_heads,
        kinds,
        self.num_lanes,
        causal=True,
        rope=self.rotary,
        norm=self.norm,
        grouped=grouped,
        window=windows[i],
        **flax,
      )

    def mlp(i: int, kinds: tuple[str, ...], **flax: Any) -> nn.Module:
      sizes = (self.hidden, kinds, self.num_chunks, self.num_lanes)
      return FeedForward(
        *sizes, activation=nn.silu, gated=True, norm=self.norm, bias=self.mlp_bias, **flax
      )

    self.stem = nn.Embed(self.num_tokens, self.width, name='embed')
    self.sites = layer_sites(self.num_layers, self.sites_by, attention, mlp, self.gates)
    self.head = TokenHead(self.num_tokens, self.norm, name='readout')

  def embed(self, x: Inputs) -> Stream:
    """Returns the stream [B, T, D] of tokens, with lanes [B, P, T, D]."""
    tokens, side, _ = token_inputs(x)
    if self.max_tokens:
      check_length(tokens, self.max_tokens)
    h = self.stem(tokens).astype(jnp.float32)
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
