"""A multilayer perceptron of pre-norm residual blocks, one gate each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from additive_jax.errors import UserError
from additive_jax.models.additive import Additive


class MLPBranch(nn.Module):
  """`f(h) = W_2 act(W_1 LayerNorm(h))`, from [B, D] to [B, D] through H hidden units."""

  hidden: int
  activation: Callable = nn.gelu

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    width = h.shape[-1]
    h = nn.LayerNorm(name='norm')(h)
    h = self.activation(nn.Dense(self.hidden, name='in')(h))
    return nn.Dense(width, name='out')(h)


class Head(nn.Module):
  """`logits = W LayerNorm(h)`, from [B, D] to [B, C]."""

  num_classes: int

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    return nn.Dense(self.num_classes, name='out')(nn.LayerNorm(name='norm')(h))


class MLP(Additive):
  """Residual MLP: flatten, embed to D, `num_blocks` gated blocks, LayerNorm and readout.

  Attributes:
    num_blocks: number of residual blocks, and of gates; named `block_00/residual` and so on.
    width: D, the width of the stream.
    hidden: H, the hidden units of each block; one number for all, or one per block.
    num_classes: C, the number of logits.

  Inputs are float [B, ...]: images are flattened, rows of a table pass through.
  """

  num_blocks: int
  width: int
  hidden: int | Sequence[int]
  num_classes: int

  def __post_init__(self):
    if not isinstance(self.hidden, int):
      self.hidden = tuple(self.hidden)  # a module's fields must be hashable
    super().__post_init__()
    hidden = self.hidden
    sizes = (hidden,) * max(self.num_blocks, 0) if isinstance(hidden, int) else hidden
    if self.num_blocks < 1:
      raise UserError(f'num_blocks {self.num_blocks}: expected at least 1')
    if len(sizes) != self.num_blocks:
      raise UserError(f'hidden {sizes} has {len(sizes)} sizes: expected 1 or {self.num_blocks}')
    for name, value in [('width', self.width), ('num_classes', self.num_classes)] + [
      ('hidden', size) for size in sizes
    ]:
      if value < 1:
        raise UserError(f'{name} {value}: expected at least 1')

  @property
  def stream_shape(self) -> tuple[int, ...]:
    return (self.width,)

  def setup(self):
    sizes = (self.hidden,) * self.num_blocks if isinstance(self.hidden, int) else self.hidden
    digits = max(2, len(str(self.num_blocks - 1)))
    self.stem = nn.Dense(self.width, name='embed')
    self.sites = [MLPBranch(size, name=f'block_{i:0{digits}}') for i, size in enumerate(sizes)]
    self.readout = Head(self.num_classes, name='readout')

  def embed(self, x: jax.Array) -> jax.Array:
    return self.stem(x.reshape(x.shape[0], -1).astype(jnp.float32))
