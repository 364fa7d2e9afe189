"""BERT: an encoder of text whose norms come after its sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from additive_jax.errors import UserError
from additive_jax.models.additive import Additive, Inputs, Logits, Stream
from additive_jax.models.attention import Attention
from additive_jax.models.feed_forward import FeedForward, Linear
from additive_jax.models.kinds import BRANCH, RESIDUAL, check_divides, check_kinds, check_sizes
from additive_jax.models.layer_sites import (
  SUBLAYER,
  activation_of,
  check_layer_sites,
  layer_sites,
)
from additive_jax.models.norms import Norm
from additive_jax.models.token_inputs import TYPES, positions_of, token_inputs, with_side

HIDDEN, MASKED, CLASSES = HEADS = ('hidden', 'masked', 'classes')


class MaskedHead(nn.Module):
  """The logits of each token from the embedding's matrix and a bias: [B, T, D] to [B, T, C]."""

  num_tokens: int
  norm: Norm
  activation: str

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B T D'], embedding: Float[Array, 'C D']
  ) -> Float[Array, 'B T C']:
    h = activation_of(self.activation)(nn.Dense(h.shape[-1], name='transform')(h))
    h = self.norm.module('norm')(h)
    bias = self.param('bias', nn.initializers.zeros, (self.num_tokens,), jnp.float32)
    return jnp.matmul(h, embedding.T, preferred_element_type=jnp.float32) + bias


class ClassHead(nn.Module):
  """The logits of a text from its first token: [B, T, D] to [B, C]."""

  num_classes: int

  @nn.compact
  def __call__(self, h: Float[Array, 'B T D']) -> Float[Array, 'B C']:
    pooled = jnp.tanh(nn.Dense(h.shape[-1], name='pooler')(h[:, 0]))
    layer = Linear((h.shape[-1], self.num_classes), 0, (self.num_classes,), name='out')()
    return layer.add_bias(jnp.matmul(pooled, layer.kernel, preferred_element_type=jnp.float32))


class BERT(Additive):
  """`num_layers` layers of an attention site and a feed-forward site each, `h ← norm(h + f(h))`.

  A gate that is off has one of two meanings: kind 'residual' skips `norm(h + f(h))` whole, and
  'branch' skips f alone and leaves `norm(h)`.

  Inputs: tokens int [B, T], or a dict of `tokens` with `mask` (0 for padding) or `segments` (packed
  texts), and `types` (0 or 1, by default 0). Outputs by `head`.

  Attributes:
    num_layers: layers; their sites are `layer_00/attention`, `layer_00/mlp` and so on.
    width: D.
    num_heads: N.
    hidden: H of the feed-forward branches.
    num_tokens: C, how many different tokens there are.
    max_tokens: how many positions are learned, the longest T.
    num_types: how many types of tokens there are.
    epsilon: of the norms.
    activation: of the feed-forward branches, see `layer_sites.ACTIVATIONS`.
    head: 'hidden' for the stream [B, T, D], 'masked' for logits of tokens [B, T, C], or 'classes'
      for logits of the text, from its first token, [B, num_classes].
    num_classes: of the head 'classes'.
    sites_by: 'sublayer', or 'layer' for one gate of each whole layer.
    gates: 'residual' or 'branch'.

  Source: Devlin et al. 2018 (arXiv:1810.04805).

  >>> model = BERT(1, 8, 2, 16, num_tokens=50, max_tokens=5, gates='branch')
  >>> model.space.names
  ('layer_00/attention/branch', 'layer_00/mlp/branch')
  >>> x = {'tokens': jnp.zeros((2, 5), int), 'mask': jnp.ones((2, 5), int)}
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
  (2, 5, 8)
  """

  num_layers: int
  width: int
  num_heads: int
  hidden: int
  num_tokens: int
  max_tokens: int = 512
  num_types: int = 2
  epsilon: float = 1e-12
  activation: str = 'gelu'
  head: str = HIDDEN
  num_classes: int = 2
  sites_by: str = SUBLAYER
  gates: Sequence[str] = (RESIDUAL,)

  post_norm = True
  causal = False

  def __post_init__(self):
    self.gates = check_kinds('bert', self.gates, (RESIDUAL, BRANCH))
    super().__post_init__()
    sizes = ('num_layers', 'width', 'num_heads', 'hidden', 'num_tokens', 'max_tokens')
    sizes += ('num_types', 'num_classes')
    check_sizes(**{name: getattr(self, name) for name in sizes})
    check_divides('units of width', self.width, 'heads', self.num_heads)
    activation_of(self.activation)
    if len(self.gates) > 1:
      raise UserError(f'gate kinds {self.gates}: expected one of residual, branch')
    if self.head not in HEADS:
      raise UserError(f'head {self.head!r}: expected one of {", ".join(HEADS)}')
    check_layer_sites(self, self.num_heads, self.hidden)

  @property
  def norm(self) -> Norm:
    """The kind of all norms."""
    return Norm('layer', self.epsilon)

  def setup(self) -> None:
    after = Norm('layer', self.epsilon, after=True)

    def attention(i: int, kinds: tuple[str, ...], **flax: Any) -> nn.Module:
      return Attention(self.num_heads, kinds, norm=after, **flax)

    def mlp(i: int, kinds: tuple[str, ...], **flax: Any) -> nn.Module:
      act = activation_of(self.activation)
      return FeedForward(self.hidden, kinds, activation=act, norm=after, **flax)

    self.stem = nn.Embed(self.num_tokens, self.width, name='embed')
    self.position = nn.Embed(self.max_tokens, self.width, name='position')
    self.types = nn.Embed(self.num_types, self.width, name='types')
    self.first_norm = self.norm.module('norm')
    self.sites = layer_sites(self.num_layers, self.sites_by, attention, mlp, self.gates)
    if self.head == MASKED:
      self.masked = MaskedHead(self.num_tokens, self.norm, self.activation, name='readout')
    elif self.head == CLASSES:
      self.classes = ClassHead(self.num_classes, name='readout')

  def embed(self, x: Inputs) -> Stream:
    """Returns the stream [B, T, D] of tokens."""
    tokens, side, others = token_inputs(x, (TYPES,))
    types: Integer[Array, 'B T'] = jnp.asarray(others.get(TYPES, jnp.zeros_like(tokens)))
    positions = positions_of(tokens, side, self.max_tokens)
    h = self.stem(tokens) + self.position(positions) + self.types(types)
    return with_side(self.first_norm(h.astype(jnp.float32)), side)

  def readout(self, h: Stream) -> Logits:
    """Returns what the head makes of a stream."""
    if self.head == MASKED:
      return self.masked(h, self.stem.embedding)
    return self.classes(h) if self.head == CLASSES else h
