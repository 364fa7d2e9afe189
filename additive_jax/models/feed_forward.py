"""The pre-norm feed-forward branch, with any mix of the three gates."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from additive_jax import gates as gates_
from additive_jax.models.kinds import LANE, RESIDUAL, SUB_ACTIVATION, Lanes, gate_names


class Linear(nn.Module):
  """The kernel and bias of a linear map, for code that takes them apart; named as in `Dense`."""

  shape: tuple[int, ...]
  in_axis: int | tuple[int, ...] = 0
  bias: tuple[int, ...] | None = None

  @nn.compact
  def __call__(self):
    axes = (self.in_axis,) if isinstance(self.in_axis, int) else self.in_axis
    out_axis = tuple(axis for axis in range(len(self.shape)) if axis not in axes)
    init = nn.initializers.lecun_normal(in_axis=self.in_axis, out_axis=out_axis)
    kernel = self.param('kernel', init, self.shape)
    if self.bias is None:
      return kernel, None
    return kernel, self.param('bias', nn.initializers.zeros, self.bias)


class FeedForward(nn.Module):
  """`h + f(h)` with `f(h) = W_2 act(W_1 LayerNorm(h) + b_1) + b_2`, from [B, ..., D] through H
  hidden units.

  Attributes:
    hidden: H.
    kinds: which gates it has, see `models.kinds`.
    num_chunks: m, of the sub-activation gates.
    lanes: P lanes; the stream is then [B, P, ..., D], and lane p owns H/P hidden units.
    activation: act.
    gated: SwiGLU and its kin: `W_2 (act(W_g x) · W_1 x)`, without biases. Source: Shazeer 2020
      (arXiv:2002.05202).
  """

  hidden: int
  kinds: tuple[str, ...] = (RESIDUAL,)
  num_chunks: int = 1
  lanes: Lanes = Lanes()
  activation: Callable = nn.gelu
  gated: bool = False

  @property
  def gates(self) -> tuple[str, ...]:
    return gate_names(self.kinds, self.num_chunks)

  @nn.compact
  def __call__(self, h: jax.Array, values=()) -> jax.Array:
    width, hidden = h.shape[-1], self.hidden // self.lanes.devices
    joins, reduce = split_values(self.kinds, values)
    x = nn.LayerNorm(name='norm')(h)
    first, first_bias = Linear((width, hidden), bias=None if self.gated else (hidden,), name='in')()
    second, second_bias = Linear(
      (hidden, width), bias=None if self.gated else (width,), name='out'
    )()
    gate = Linear((width, hidden), name='gate')()[0] if self.gated else None

    def branch(x, first, second, gate, first_bias):
      return gates_.sub_activation(
        x, first, second, joins, self.activation, gate_kernel=gate, in_bias=first_bias
      )

    if LANE not in self.kinds:
      z = branch(x, first, second, gate, first_bias)
      return h + (z if second_bias is None else z + second_bias)
    columns = lambda a: None if a is None else in_lanes(a, a.ndim - 1, self.lanes.local)
    shards = (
      columns(first),
      in_lanes(second, 0, self.lanes.local),
      columns(gate),
      columns(first_bias),
    )
    axes = (1, *(None if shard is None else 0 for shard in shards))
    z = jax.vmap(branch, in_axes=axes, out_axes=1)(x, *shards)
    z = z if second_bias is None else z + second_bias / self.lanes.count
    return gates_.lane(h, z, reduce, axis=1, mesh_axis=self.lanes.mesh_axis)


def dense_layer(x: jax.Array, first, second, gate, activation: Callable) -> jax.Array:
  """`linear → act → linear` of pairs (kernel, bias or None), as `Linear` gives; `gate` may be None,
  and has no bias."""
  return gates_.sub_activation(
    x,
    first[0],
    second[0],
    (),
    activation,
    gate_kernel=None if gate is None else gate[0],
    in_bias=first[1],
    out_bias=second[1],
  )


def in_lanes(kernel: jax.Array, axis: int, lanes: int) -> jax.Array:
  """Splits an axis of a kernel into equal contiguous shards, [lanes, ...]."""
  shape = (*kernel.shape[:axis], lanes, -1, *kernel.shape[axis + 1 :])
  return jnp.moveaxis(kernel.reshape(shape), axis, 0)


def split_values(kinds: tuple[str, ...], values) -> tuple[tuple, object]:
  """A branch's inner gates as those of its chunks and that of its lanes; () is all-on."""
  if LANE in kinds:
    return tuple(values[:-1]), values[-1] if values else True
  return tuple(values) if SUB_ACTIVATION in kinds else (), True
