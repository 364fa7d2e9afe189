"""A multilayer perceptron of pre-norm residual blocks."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from additive_jax.gates.sums import lane_copies, lane_mean
from additive_jax.models.additive import Additive, Inputs, Stream, flat
from additive_jax.models.dropout import check_dropout, dropping
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
from additive_jax.models.last_layer import LastLayer, of_dense


class Head(nn.Module):
  """`logits = W LayerNorm(h)`, from [B, ..., D] to [B, ..., C]."""

  num_classes: int

  def setup(self) -> None:
    self.norm, self.out = nn.LayerNorm(), nn.Dense(self.num_classes)

  def __call__(self, h: Float[Array, 'B *axes D']) -> Float[Array, 'B *axes C']:
    return self.out(self.norm(h))

  def last_layer(self, h: Float[Array, 'B *axes D']) -> LastLayer:
    """Returns the logits that are not multiplied out."""
    return of_dense(self.norm(h), self.out)


class MLP(Additive):
  """Residual MLP: flatten, embed to D, `num_blocks` gated blocks, LayerNorm and readout.

  Attributes:
    num_blocks: number of residual blocks, named `block_00` and so on.
    width: D, the width of the stream.
    hidden: H, the hidden units of each block; one number for all, or one per block.
    num_classes: C, the number of logits.
    gates: the kinds of gates that each block has: 'residual', 'sub_activation', 'lane'. Those not
      chosen stay on.
    num_chunks: m, chunks of D that sub-activation gates join.
    num_lanes: P, lanes that lane gates join; each block's H is split over them.
    dropout: probability that training drops a number after each dense layer but the readout; 0 with
      lane gates.

  Inputs are float [B, ...]: images are flattened, rows of a table pass through.

  >>> model = MLP(num_blocks=1, width=4, hidden=8, num_classes=3, gates=('residual', 'lane'))
  >>> model.space.names
  ('block_00/residual', 'block_00/lane')
  """

  num_blocks: int
  width: int
  hidden: int | Sequence[int]
  num_classes: int
  gates: Sequence[str] = (RESIDUAL,)
  num_chunks: int = 4
  num_lanes: int = 2
  dropout: float = 0.0

  def __post_init__(self):
    if not isinstance(self.hidden, int):
      self.hidden = tuple(self.hidden)  # a module's fields must be hashable
    self.gates = check_kinds('mlp', self.gates, KINDS)
    super().__post_init__()
    check_sizes(num_blocks=self.num_blocks)
    check_dropout(self.dropout, self.gates)
    sizes = self.sizes
    check_sizes(width=self.width, num_classes=self.num_classes, hidden=min(sizes))
    if SUB_ACTIVATION in self.gates:
      check_chunks(self.width, self.num_chunks)
    if LANE in self.gates:
      check_sizes(num_lanes=self.num_lanes)
      for size in sizes:
        check_divides('hidden units', size, 'lanes', self.num_lanes)

  @property
  def sizes(self) -> tuple[int, ...]:
    """H of each block."""
    return block_sizes(self.hidden, self.num_blocks)

  def setup(self) -> None:
    digits = max(2, len(str(self.num_blocks - 1)))
    self.stem = nn.Dense(self.width, name='embed')
    kinds, lanes = tuple(self.gates), self.num_lanes
    self.drop = dropping(self.dropout)
    self.sites = [
      FeedForward(
        size, kinds, self.num_chunks, lanes, name=f'block_{i:0{digits}}', dropout=self.dropout
      )
      for i, size in enumerate(self.sizes)
    ]
    self.head = Head(self.num_classes, name='readout')

  def embed(self, x: Inputs) -> Stream:
    """Returns the stream [B, D] of inputs, with lanes [B, P, D]."""
    h = self.stem(flat(x))
    h = h if self.drop is None else self.drop(h)
    return lane_copies(h, self.num_lanes, axis=1) if LANE in self.gates else h

  def readout(self, h: Stream) -> Float[Array, 'B C']:
    """Returns the logits of a stream, of the mean over its lanes if it has some."""
    if LANE in self.gates:
      h = lane_mean(h, axis=1)
    return self.head(h)
