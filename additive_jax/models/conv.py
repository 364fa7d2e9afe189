"""Convolutions whose sums over channels are gates, and what models of images share.

Beside the letters of `gates.sums`: X and Y are the sides of an image in pixels, I and J those of a
kernel or a tile; D, H and E count channels. Images are [B, X, Y, D], kernels [I, J, D, E].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from additive_jax.batches import check_one_array
from additive_jax.errors import UserError
from additive_jax.gates.layers import LayerPair, LinearMap, sub_activation
from additive_jax.gates.sums import GateValue
from additive_jax.models.additive import Inputs
from additive_jax.models.convolution import conv_general_dilated
from additive_jax.models.kinds import check_sizes
from additive_jax.models.surrounding import input_dtype

# Up to this many input channels a matmul of patches is faster than a convolution on CPU; above it
# the patches, kh·kw times the image, cost more than they save.
FEW_CHANNELS = 7
LAYOUTS = ('NHWC', 'HWIO', 'NHWC')


class Conv(nn.Module):
  """The convolution `conv` with parameters of its own, named and shaped as those of `nn.Conv`.

  Attributes:
    features: output channels.
    side: of the kernel, odd.

  >>> pool = jax.eval_shape(Conv(8, side=3).init, jax.random.key(0), jnp.ones((1, 6, 6, 2)))
  >>> jax.tree.map(jnp.shape, pool['params'])
  {'bias': (8,), 'kernel': (3, 3, 2, 8)}
  """

  features: int
  side: int

  @nn.compact
  def __call__(self, x: Float[Array, 'B X Y D']) -> Float[Array, 'B X Y E']:
    shape = (self.side, self.side, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape, jnp.float32)
    return conv(x, kernel) + self.param('bias', nn.initializers.zeros, shape[-1:], jnp.float32)


def conv(x: Float[Array, 'B X Y D'], kernel: Float[Array, 'I J D E']) -> Float[Array, 'B X Y E']:
  """Returns the convolution of images with a kernel of odd sides, borders padded with zeros.

  >>> conv(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0].tolist()
  [[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]
  """
  return _conv_for(kernel.shape[2])(x, kernel)


def _conv_for(channels: int) -> LinearMap:
  """Returns what computes `conv` for that many input channels in all."""
  return _patches_conv if channels <= FEW_CHANNELS else _convolve


def _patches_conv(
  x: Float[Array, 'B X Y D'], kernel: Float[Array, 'I J D E']
) -> Float[Array, 'B X Y E']:
  (kh, kw, channels, _), (height, width) = kernel.shape, x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
  patches = jnp.concatenate(
    [padded[:, i : i + height, j : j + width] for i in range(kh) for j in range(kw)], axis=-1
  )
  return patches @ kernel.reshape(kh * kw * channels, -1)


def _convolve(
  x: Float[Array, 'B X Y D'], kernel: Float[Array, 'I J D E']
) -> Float[Array, 'B X Y E']:
  borders = [(side // 2, side // 2) for side in kernel.shape[:2]]
  return conv_general_dilated(x, kernel, (1, 1), borders, dimension_numbers=LAYOUTS)


def conv_tiles(
  x: Float[Array, 'B X Y D'], kernel: Float[Array, 'I J D E']
) -> Float[Array, 'B X//I Y//J E']:
  """Returns the convolution of images with a kernel at windows that do not overlap. A kernel of the
  image's size makes it a dense layer.

  >>> conv_tiles(jnp.ones((1, 2, 4, 1)), jnp.ones((2, 2, 1, 1)))[0, :, :, 0].tolist()
  [[4.0, 4.0]]
  """
  return jnp.einsum('bxiyjd,ijde->bxye', tiles(x, *kernel.shape[:2]), kernel)


def tiles(
  x: Float[Array, 'B X Y D'], i: int = 2, j: int = 2
) -> Float[Array, 'B X//{i} {i} Y//{j} {j} D']:
  """Returns images as windows of i × j pixels side by side; rows and columns that are over are left
  out.

  >>> tiles(jnp.arange(10.0).reshape(1, 2, 5, 1)).max((2, 4))[0, :, :, 0].tolist()
  [[6.0, 8.0]]
  """
  batch, height, width, channels = x.shape
  rows, columns = height // i, width // j
  return x[:, : rows * i, : columns * j].reshape(batch, rows, i, columns, j, channels)


def conv_sub_activation(
  x: Float[Array, 'B X Y D'],
  layers: LayerPair,
  gates: Sequence[GateValue],
  activation: Callable[[Array], Array],
  *,
  second_map: LinearMap = conv,
) -> Float[Array, 'B X2 Y2 E']:
  """Returns `conv → act → conv` of x whose sums over input channels are gates: `sub_activation`
  with convolutions `P_i = x_i * A_i` in place of matrices.

  A 1 × 1 kernel of ones adds up the channels of a pixel, before the relu or after it:

  >>> from additive_jax.gates.layers import Layer
  >>> x, layer = jnp.array([[[[3.0, -2.0]]]]), Layer(jnp.ones((1, 1, 2, 2)))
  >>> conv_sub_activation(x, LayerPair(layer, layer), (True,), jax.nn.relu).tolist()
  [[[[2.0, 2.0]]]]
  >>> conv_sub_activation(x, LayerPair(layer, layer), (False,), jax.nn.relu).tolist()
  [[[[6.0, 0.0]]]]

  Args:
    x: images.
    layers: kernels [I, J, D, H] and [I, J, H, E], of the same or another size.
    gates: the m − 1 gates, static or traced (bools [], or floats [] or [B]).
    activation: act, from [B, X, Y, H] to hidden channels; it may pool as well.
    second_map: how the second kernel is applied, `conv` or `conv_tiles`.

  Returns:
    y, of the sides that the convolutions and `activation` leave.

  Raises:
    UserError: as `sub_activation` does.

  The mask form runs one convolution for each chunk. A grouped convolution would compute the same at
  once, but its gradient is far slower on CPU.
  """
  # One map for all groups, whatever their channels, or their costs would not add up.
  first_map = _conv_for(layers.first.kernel.shape[2])
  return sub_activation(x, layers, gates, activation, maps=(first_map, second_map))


def as_images(x: Inputs, *, least: int = 1) -> Float[Array, 'B X Y D']:
  """Returns inputs [B, X, Y] or [B, X, Y, D] as images of floats with channels.

  >>> as_images(np.zeros((2, 8, 8), np.uint8)).shape
  (2, 8, 8, 1)

  Args:
    least: pixels that each side must have, so that something is left after all poolings.

  Raises:
    UserError: for inputs of another shape, or too small.
  """
  check_one_array(x)
  if x.ndim not in (3, 4):
    raise UserError(f'inputs of shape {x.shape}: expected images [B, height, width(, channels)]')
  height, width = x.shape[1:3]
  if min(height, width) < least:
    raise UserError(f'images of {height} × {width}: expected at least {least} × {least}')
  return jnp.asarray(x if x.ndim == 4 else x[..., None], input_dtype())


def check_channels(channels: int | Sequence[int]) -> tuple[int, ...]:
  """Returns the channels of each stage; one number is one stage.

  >>> check_channels(16), check_channels([16, 32])
  ((16,), (16, 32))

  Raises:
    UserError: for no stage, or a stage without channels.
  """
  channels = (channels,) if isinstance(channels, int) else tuple(channels)
  if not channels:
    raise UserError('channels (): expected a number for each stage, at least one')
  check_sizes(channels=min(channels))
  return channels
