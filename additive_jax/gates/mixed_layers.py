"""A pair of layers whose hidden values are mixed before the second one, in blocks of tokens.

The input is cut into m chunks with partial products `P_i = x_i A_i`; `mix` turns the partial
products of a token into m hidden values, one for each chunk of the output, and may go through many
more on the way. A block is as many tokens as keep those in a core's cache. From one block to the
next only the hidden values are kept for the backward pass, which computes the rest again.

Chunks differ by one unit at most. They are windows of one width, so that m products are one batch:
of 5 units in 3 chunks

  units      0 1 2 3 4
  windows    0 1 | 2 3 | 3 4      the 3 of the last window counts as zero
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from additive_jax.gates.layers import Layer, LayerPair, chunks

# Values of a block on the way: about what a core's cache holds.
BLOCK_BYTES = {'cpu': 2**21}
DEFAULT_BLOCK_BYTES = 2**28

Sums = tuple[Float[Array, 'm rows H'], ...]  # partial products: one array, two of a gated unit
Mix = Callable[[Sums, Any], Float[Array, 'm rows H']]


def mixed_layers(
  mix: Mix,
  x: Float[Array, '*batch D'],
  layers: LayerPair,
  values: PyTree,
  num_chunks: int,
  num_hidden: int,
) -> Float[Array, '*batch E']:
  """Returns `(H_j B_j)_j` with hidden values H of the partial products of each token, without the
  second bias. The first bias is shared out over the chunks.

  >>> layers = LayerPair(Layer(jnp.eye(2)), Layer(jnp.eye(2)))
  >>> double = lambda sums, values: 2 * sums[0]
  >>> mixed_layers(double, jnp.array([[1.0, 2.0]]), layers, (), num_chunks=2, num_hidden=2).tolist()
  [[2.0, 4.0]]

  Args:
    mix: from the partial products of a block of tokens, and the values of these tokens, to the
      hidden values; each token by itself. Closes over no arrays.
    x: [..., D].
    layers: A and B and what goes with them.
    values: what else `mix` reads of each token, leaves with the leading axes of x. In a block the
      tokens are the last axis.
    num_chunks: m.
    num_hidden: hidden values of a token and unit on the way, by which blocks are sized.
  """
  shape = x.shape[:-1]
  tokens, (hidden, width) = int(np.prod(shape)), layers.second.kernel.shape
  rows = _rows(tokens, num_hidden * hidden * x.dtype.itemsize)
  blocks = -(-tokens // rows)

  def cut(value):
    """Returns [*batch, ...] as [blocks, ..., rows]."""
    value = value.reshape(tokens, *value.shape[len(shape) :])
    value = jnp.pad(value, [(0, blocks * rows - tokens)] + [(0, 0)] * (value.ndim - 1))
    return jnp.moveaxis(value.reshape(blocks, rows, *value.shape[1:]), 1, -1)

  inputs, firsts = _first_windows(x.reshape(tokens, -1), layers, num_chunks)
  inputs = jnp.moveaxis(jax.vmap(_cut_rows(blocks, rows))(inputs), 1, 0)
  starts, size = _windows(width, num_chunks)
  turned = layers.second.kernel.T
  second = jnp.concatenate([turned[start : start + size] for start in starts])
  second = second.reshape(num_chunks, size, hidden)
  y = _in_blocks(mix, inputs, firsts, second, jax.tree.map(cut, values))
  y = jnp.moveaxis(y, 1, 0).reshape(num_chunks, blocks * rows, size)[:, :tokens]
  parts = [
    y[j, :, part.start - start : part.stop - start]
    for j, (part, start) in enumerate(zip(chunks(width, num_chunks), starts, strict=True))
  ]
  return jnp.concatenate(parts, axis=-1).reshape(*shape, width)


def _cut_rows(blocks, rows):
  """Returns the function from [tokens, F] to [blocks, rows, F], filled up with zeros."""
  fill = lambda a: jnp.pad(a, ((0, blocks * rows - len(a)), (0, 0)))
  return lambda a: fill(a).reshape(blocks, rows, -1)


def _rows(tokens, bytes_of_token):
  """Returns the tokens of a block."""
  budget = BLOCK_BYTES.get(jax.default_backend(), DEFAULT_BLOCK_BYTES)
  rows = max(budget // bytes_of_token, 1)
  return min(max(8, 1 << rows.bit_length() - 1), tokens)


def _windows(width, num_chunks):
  """Returns where the window of each chunk starts, and their width."""
  parts = chunks(width, num_chunks)
  size = max(part.stop - part.start for part in parts)
  return [min(part.start, width - size) for part in parts], size


def _first_windows(x, layers, num_chunks):
  """Returns the inputs in windows [m, tokens, inputs], and the first kernels as [m, inputs, H]; a
  bias is the kernel of an input that is 1."""
  starts, size = _windows(x.shape[-1], num_chunks)
  parts = chunks(x.shape[-1], num_chunks)
  own = np.zeros((num_chunks, 1, size), bool)
  for row, part, start in zip(own, parts, starts, strict=True):
    row[:, part.start - start : part.stop - start] = True
  inputs = jnp.where(own, jnp.stack([x[:, start : start + size] for start in starts]), 0)
  used = [layer for layer in (layers.gating, layers.first) if layer is not None]
  biased = any(layer.bias is not None for layer in used)
  if biased:
    inputs = jnp.concatenate([inputs, jnp.ones((*inputs.shape[:-1], 1), x.dtype)], axis=-1)

  def windows(layer: Layer) -> Array:
    kernel = layer.kernel
    bias = jnp.zeros_like(kernel[0]) if layer.bias is None else layer.bias / num_chunks
    last = [bias[None].astype(kernel.dtype)] if biased else []
    pieces = [piece for start in starts for piece in (kernel[start : start + size], *last)]
    return jnp.concatenate(pieces).reshape(num_chunks, -1, kernel.shape[-1])

  return inputs, tuple(map(windows, used))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(mix, inputs, firsts, second, values):
  """Returns the windows of the output, [blocks, m, rows, outputs].

  Args:
    inputs: [blocks, m, rows, inputs].
    firsts: [m, inputs, H] each.
    second: [m, outputs, H].
    values: leaves [blocks, ..., rows].
  """
  return _forward(mix, inputs, firsts, second, values)[0]


_times_hidden = functools.partial(jnp.einsum, 'jrh,jwh->jrw')
_over_rows = functools.partial(jnp.einsum, 'jrw,jrh->jwh')


def _forward(mix, inputs, firsts, second, values):
  def step(carry, block):
    x, values = block
    hidden = mix(tuple(x @ first for first in firsts), values)
    return carry, (_times_hidden(hidden, second), hidden)

  _, (y, hidden) = jax.lax.scan(step, None, (inputs, values))
  return y, (inputs, firsts, second, values, hidden)


def _backward(mix, kept, slope):
  inputs, firsts, second, values, hidden = kept

  def step(slopes, block):
    of_firsts, of_second = slopes
    x, values, hidden, slope = block
    _, pull = jax.vjp(mix, tuple(x @ first for first in firsts), values)
    of_sums, of_values = pull((slope @ second).astype(hidden.dtype))
    of_firsts = tuple(
      total + _over_rows(x, of).astype(total.dtype)
      for total, of in zip(of_firsts, of_sums, strict=True)
    )
    of_second += _over_rows(slope, hidden).astype(of_second.dtype)
    of_x = functools.reduce(jnp.add, map(_times_hidden, of_sums, firsts))
    return (of_firsts, of_second), (of_x.astype(x.dtype), of_values)

  zeros = jax.tree.map(jnp.zeros_like, (firsts, second))
  blocks = inputs, values, hidden, slope
  (of_firsts, of_second), (of_inputs, of_values) = jax.lax.scan(step, zeros, blocks)
  return of_inputs, of_firsts, of_second, of_values


_in_blocks.defvjp(_forward, _backward)
