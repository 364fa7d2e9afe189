"""A pre-norm transformer: a classifier of images, or a causal language model of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from additive_jax.batches import check_one_array, is_array
from additive_jax.errors import UserError
from additive_jax.gates.sums import lane_copies, lane_mean
from additive_jax.models.additive import Additive, Inputs, Logits, Stream
from additive_jax.models.attention import Attention
from additive_jax.models.dropout import check_dropout, dropping
from additive_jax.models.experts import StructureExperts
from additive_jax.models.feed_forward import FeedForward
from additive_jax.models.kinds import (
  KINDS,
  LANE,
  RESIDUAL,
  SUB_ACTIVATION,
  block_sizes,
  check_chunks,
  check_divides,
  check_kinds,
  check_sizes,
)
from additive_jax.models.last_layer import LastLayer
from additive_jax.models.mlp import Head
from additive_jax.models.moe import Experts, MixtureOfExperts
from additive_jax.models.routing import Routing, linear_router
from additive_jax.models.surrounding import input_dtype
from additive_jax.models.token_inputs import token_inputs, with_side

POSITIONS = ('learned', 'rope')
# The activation of a unit, and whether it is gated.
UNITS: dict[str, tuple[Callable[[Array], Array], bool]] = {
  'gelu': (nn.gelu, False),
  'relu': (nn.relu, False),
  'swiglu': (nn.silu, True),
}


class TokenNetwork(Additive):
  """What networks over a stream of tokens [B, T, D] share: how images or tokens enter, and how
  logits leave. A subclass has the fields of `Transformer` that are named here.
  """

  def check_stream(self) -> None:
    """Raises `UserError` for sizes or choices that no such network has."""
    check_sizes(
      width=self.width,
      num_heads=self.num_heads,
      num_classes=self.num_classes,
      patch_size=self.patch_size,
      max_tokens=self.max_tokens,
    )
    if self.num_tokens < 0:
      raise UserError(f'num_tokens {self.num_tokens}: expected 0, for images, or more')
    check_choices(self.positions, self.unit)
    check_divides('units of width', self.width, 'heads', self.num_heads)
    if self.positions == 'rope':
      check_divides('units', self.width // self.num_heads, 'halves of a head', 2)

  def set_up_ends(self) -> None:
    """Makes the modules of both ends, in `setup`."""
    self.stem: nn.Embed | nn.Dense
    if self.num_tokens:
      self.stem = nn.Embed(self.num_tokens, self.width, name='embed')
    else:
      self.stem = nn.Dense(self.width, name='embed')
    if self.positions == 'learned':
      init = nn.initializers.normal(0.02)
      shape = (self.max_tokens, self.width)
      self.position = self.param('position', init, shape, jnp.float32)
    self.head = Head(self.num_classes, name='readout')

  def embed(self, x: Inputs) -> Stream:
    """Returns the stream [B, T, D] of images or tokens."""
    return self.embedded(x)

  def embedded(self, x: Inputs, places: Int[Array, 'B T'] | None = None) -> Float[Array, 'B T D']:
    """Returns images or tokens with their positions, those of tokens at `places`."""
    position = self.position if self.positions == 'learned' else None
    return embed_inputs(self.stem, position, x, self.num_tokens, self.patch_size, places)

  def readout(self, h: Float[Array, 'B T D']) -> Logits:
    """Returns the logits: of each token, [B, T, C], or of an image, [B, C]."""
    return self.head(h if self.num_tokens else h.mean(1))

  def last_layer(self, h: Float[Array, 'B T D']) -> LastLayer:
    """Returns the logits that are not multiplied out."""
    return self.head.last_layer(h if self.num_tokens else h.mean(1))


class Transformer(TokenNetwork):
  """`num_layers` layers of an attention site and a feed-forward site each.

  Inputs: images float [B, height, width] or [B, height, width, channels], cut into square patches
  (ViT, Dosovitskiy et al. 2020, arXiv:2010.11929, with the mean over tokens in place of a class
  token); or tokens int [B, T], or a dict of `tokens` with `mask` or `segments` (see
  `models.token_inputs`), one logit vector per token.

  Attributes:
    num_layers: layers; their sites are `block_00/attention`, `block_00/mlp` and so on.
    width: D.
    num_heads: attention heads.
    hidden: H of the feed-forward branches; one number for all layers, or one per layer.
    num_classes: C, the number of logits.
    num_tokens: how many different tokens there are; 0 for images.
    patch_size: pixels of a patch's side, for images.
    causal: whether token t sees the tokens up to t alone.
    positions: 'learned' (for at most `max_tokens` tokens) or 'rope'.
    max_tokens: the longest input of learned positions.
    unit: 'gelu', 'relu' or 'swiglu'.
    gates: the kinds of gates: 'residual', 'sub_activation' (feed-forward sites only), 'lane'. Those
      not chosen stay on.
    num_chunks: m, chunks of D that sub-activation gates join.
    num_lanes: P, lanes that lane gates join; heads and H are split over them.
    routing: None, or how each token chooses among the 2^(m−1) structures of a feed-forward branch
      (`routing.Routing`) or among experts of their own weights (`moe.Experts`); the only gates are
      then residual.
    dropout: probability that training drops a number after each dense layer but those of queries,
      keys, values and logits, and after the embedding; 0 with lane gates or routers. Source:
      Dosovitskiy et al. 2020, appendix B.1.

  A language model of bytes:

  >>> sizes = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_classes': 256}
  >>> model, x = Transformer(1, **sizes, num_tokens=256, causal=True), jnp.zeros((2, 5), int)
  >>> model.space.names
  ('block_00/attention/residual', 'block_00/mlp/residual')
  >>> jax.eval_shape(model.init_with_output, jax.random.key(0), x)[0].shape
  (2, 5, 256)
  """

  num_layers: int
  width: int
  num_heads: int
  hidden: int | Sequence[int]
  num_classes: int
  num_tokens: int = 0
  patch_size: int = 2
  causal: bool = False
  positions: str = 'learned'
  max_tokens: int = 256
  unit: str = 'gelu'
  gates: Sequence[str] = (RESIDUAL,)
  num_chunks: int = 4
  num_lanes: int = 2
  routing: Routing | Experts | None = None
  dropout: float = 0.0

  def __post_init__(self):
    if not isinstance(self.hidden, int):
      self.hidden = tuple(self.hidden)  # a module's fields must be hashable
    self.gates = check_kinds('transformer', self.gates, KINDS)
    super().__post_init__()
    check_sizes(num_layers=self.num_layers)
    self.check_stream()
    check_sizes(hidden=min(self.sizes))
    check_dropout(self.dropout, self.gates, self.routing)
    if SUB_ACTIVATION in self.gates or isinstance(self.routing, Routing):
      check_chunks(self.width, self.num_chunks)
    if self.routing is not None and self.gates != (RESIDUAL,):
      raise UserError(f'gate kinds {self.gates} with routers: expected residual alone')
    if isinstance(self.routing, Routing):
      self.routing.check(self.num_chunks - 1)
    elif self.routing is not None:
      self.routing.check()
    if LANE in self.gates:
      check_sizes(num_lanes=self.num_lanes)
      check_divides('heads', self.num_heads, 'lanes', self.num_lanes)
      for size in self.sizes:
        check_divides('hidden units', size, 'lanes', self.num_lanes)

  @property
  def sizes(self) -> tuple[int, ...]:
    """H of each layer's feed-forward branch."""
    return block_sizes(self.hidden, self.num_layers)

  def setup(self) -> None:
    self.set_up_ends()
    self.drop = dropping(self.dropout)
    if isinstance(self.routing, Routing) and self.routing.shared:
      self.router = linear_router(self.routing.num_logits(self.num_chunks - 1), None)
    lanes = self.num_lanes
    whole = tuple(kind for kind in self.gates if kind != SUB_ACTIVATION)
    sites, digits = [], max(2, len(str(self.num_layers - 1)))
    for i, size in enumerate(self.sizes):
      name = f'block_{i:0{digits}}'
      rope = self.positions == 'rope'
      sites += [
        Attention(
          self.num_heads,
          whole,
          lanes,
          self.causal,
          rope,
          name=f'{name}__attention',
          dropout=self.dropout,
        ),
        self._feed_forward(size, f'{name}__mlp'),
      ]
    self.sites = sites

  def _feed_forward(self, size: int, name: str) -> nn.Module:
    activation, gated = UNITS[self.unit]
    if isinstance(self.routing, Experts):
      return MixtureOfExperts(size, self.routing, activation, gated, name=name)
    if self.routing is not None:
      how, router = self.routing, self.router if self.routing.shared else None
      return StructureExperts(size, self.num_chunks, how, activation, gated, router, name=name)
    kinds, chunks, lanes = tuple(self.gates), self.num_chunks, self.num_lanes
    return FeedForward(
      size, kinds, chunks, lanes, activation, gated, name=name, dropout=self.dropout
    )

  def embed(self, x: Inputs) -> Stream:
    """Returns the stream [B, T, D] of images or tokens, with lanes [B, P, T, D]."""
    side = None
    if self.num_tokens and not is_array(x):
      x, side, _ = token_inputs(x)
    h = self.embedded(x, None if side is None else side['positions'])
    h = h if self.drop is None else self.drop(h)
    h = lane_copies(h, self.num_lanes, axis=1) if LANE in self.gates else h
    return with_side(h, side)

  def readout(self, h: Stream) -> Logits:
    """Returns the logits of a stream, of the mean over its lanes if it has some."""
    return super().readout(self._joined(h))

  def last_layer(self, h: Stream) -> LastLayer:
    """Returns the logits that are not multiplied out."""
    return super().last_layer(self._joined(h))

  def _joined(self, h: Stream) -> Float[Array, 'B T D']:
    return lane_mean(h, axis=1) if LANE in self.gates else h


def check_choices(positions: str, unit: str) -> None:
  """Raises `UserError` for unknown positions or units."""
  for name, value, known in (
    ('positions', positions, POSITIONS),
    ('unit', unit, tuple(UNITS)),
  ):
    if value not in known:
      raise UserError(f'{name} {value!r}: expected one of {", ".join(known)}')


def embed_inputs(
  stem: Callable[[Array], Array],
  position: Float[Array | np.ndarray, 'tokens D'] | None,
  x: Inputs,
  num_tokens: int,
  patch_size: int,
  places: Int[Array, 'B T'] | None = None,
) -> Float[Array, 'B T D']:
  """Returns images, or tokens if `num_tokens` is not 0, as a stream.

  Args:
    stem: the module that embeds tokens or patches.
    position: learned positions, at least as many as tokens; None adds none.
    x: images, as `patches` takes them, or tokens int [B, T].
    num_tokens: how many different tokens there are; 0 for images.
    patch_size: pixels of a patch's side, for images.
    places: the position of each token; None is 0 to T − 1.

  Raises:
    UserError: for anything else, or more tokens than positions.
  """
  check_one_array(x)
  if num_tokens and (x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer)):
    raise UserError(
      f'inputs of dtype {x.dtype} and shape {x.shape}: expected tokens, integers [B, T]'
    )
  h = stem(jnp.asarray(x) if num_tokens else patches(jnp.asarray(x, input_dtype()), patch_size))
  if position is None:
    return h
  tokens, most = h.shape[1], len(position)
  if tokens > most:
    raise UserError(f'{tokens} tokens: expected at most {most}, max_tokens')
  return h + (position[:tokens] if places is None else jnp.asarray(position)[places])


def patches(x: Float[Array, 'B ...'], size: int) -> Float[Array, 'B T inputs']:
  """Returns images as their square patches, row by row.

  >>> patches(jnp.arange(8.0).reshape(1, 2, 4), size=2).tolist()
  [[[0.0, 1.0, 4.0, 5.0], [2.0, 3.0, 6.0, 7.0]]]

  Args:
    x: images [B, height, width] or [B, height, width, channels].
    size: pixels of a patch's side.

  Returns:
    The patches' pixels, [B, T, size²·channels].

  Raises:
    UserError: for anything else, or sides that the patch does not divide.
  """
  if x.ndim == 3:
    x = x[..., None]
  if x.ndim != 4:
    raise UserError(f'inputs of shape {x.shape}: expected images [B, height, width, channels]')
  batch, height, width, channels = x.shape
  if height % size or width % size:
    raise UserError(
      f'patch_size {size} of images of {height} × {width}: expected a size that divides both'
    )
  x = x.reshape(batch, height // size, size, width // size, size, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)
