"""The feed-forward branch, with any mix of the three gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from additive_jax.gates import shares
from additive_jax.gates.layers import Layer, LayerPair, sub_activation
from additive_jax.gates.sums import GateValue, lane
from additive_jax.models.axes import AxisNames
from additive_jax.models.dropout import dropping
from additive_jax.models.kinds import BRANCH, LANE, RESIDUAL, SUB_ACTIVATION, gate_names
from additive_jax.models.norms import Norm, post_norm
from additive_jax.models.surrounding import in_branch_dtype


class Linear(nn.Module):
  """The parameters of a linear map, for code that takes them apart; named as in `nn.Dense`.

  Attributes:
    shape: of the kernel.
    in_axis: the axes of the kernel that are summed over.
    bias: the shape of the bias; None for a map without.
    kernel_axes: the logical names of the kernel's axes, see `models.axes`; () names none.
  """

  shape: tuple[int, ...]
  in_axis: int | tuple[int, ...] = 0
  bias: tuple[int, ...] | None = None
  kernel_axes: AxisNames = ()

  @property
  def _inputs(self) -> tuple[int, ...]:
    return (self.in_axis,) if isinstance(self.in_axis, int) else self.in_axis

  def axis_names(self) -> dict[str, AxisNames]:
    """Returns the names of the axes of both parameters."""
    outputs = [name for i, name in enumerate(self.kernel_axes) if i not in self._inputs]
    return {'kernel': self.kernel_axes, 'bias': tuple(outputs)}

  @nn.compact
  def __call__(self) -> Layer:
    out_axis = tuple(axis for axis in range(len(self.shape)) if axis not in self._inputs)
    init = nn.initializers.lecun_normal(in_axis=self.in_axis, out_axis=out_axis)
    kernel = self.param('kernel', init, self.shape, jnp.float32)
    if self.bias is None:
      return Layer(kernel)
    bias = self.param('bias', nn.initializers.zeros, self.bias, jnp.float32)
    return Layer(kernel, bias)


def linear_pair(*shapes: tuple[int, ...], names: Sequence[str] = ('in', 'out')) -> LayerPair:
  """Makes two linear maps with biases, as submodules of these names of a compact module. Kernels
  have the given shapes, [..., inputs, outputs]."""
  axes = ('embed', 'hidden'), ('hidden', 'embed')
  layers = [
    Linear(
      shape,
      tuple(range(len(shape) - 1)),
      shape[-1:],
      (*[None] * (len(shape) - 2), *ends),
      name=name,
    )()
    for shape, ends, name in zip(shapes, axes, names)
  ]
  return LayerPair(*layers)


def feed_forward_layers(
  width: int,
  hidden: int,
  gated: bool,
  *,
  bias: bool | None = None,
  copies: tuple[int, ...] = (),
  prefix: str = '',
) -> LayerPair:
  """Makes the layers of a feed-forward branch, as submodules `in`, `out` and, for a gated unit,
  `gate` of a compact module.

  Args:
    width, hidden: D and H.
    gated: whether it is a gated unit.
    bias: whether the layers have biases; None is all but those of a gated unit.
    copies: () or the number of experts, a leading axis of all arrays.
    prefix: of the submodules' names.
  """
  experts = ('expert',) * len(copies)
  has_bias = not gated if bias is None else bias
  wider, back = (*experts, 'embed', 'hidden'), (*experts, 'hidden', 'embed')

  def layer(name: str, inputs: int, outputs: int, axes: AxisNames) -> Layer:
    bias = (*copies, outputs) if has_bias else None
    shape = (*copies, inputs, outputs)
    return Linear(shape, len(copies), bias, axes, name=f'{prefix}{name}')()

  pair = LayerPair(layer('in', width, hidden, wider), layer('out', hidden, width, back))
  return pair._replace(gating=layer('gate', width, hidden, wider)) if gated else pair


class FeedForward(nn.Module):
  """`h + f(norm(h))` with `f(x) = W_2 act(W_1 x + b_1) + b_2`, or `norm(h + f(h))`, from
  [B, ..., D] through H hidden units.

  Attributes:
    hidden: H.
    kinds: which gates it has, see `models.kinds`; of a norm that comes after, residual or branch.
    num_chunks: m, of the sub-activation gates.
    num_lanes: P, of the lane gate; the stream is then [B, P, ..., D], and lane p owns H/P hidden
      units.
    activation: act.
    gated: SwiGLU and its kin: `W_2 (act(W_g x) · W_1 x)`. Source: Shazeer 2020 (arXiv:2002.05202).
    norm: its kind and place.
    bias: whether the layers have biases; None is all but those of a gated unit.
    dropout: probability that training drops a hidden unit, and a number of the branch; 0 with a
      lane gate.

  >>> site, h = FeedForward(hidden=8), jnp.ones((1, 5, 4))
  >>> pool = jax.eval_shape(site.init, jax.random.key(0), h)['params']
  >>> pool['norm']['scale'].shape, pool['in']['kernel'].shape, pool['out']['kernel'].shape
  ((4,), (4, 8), (8, 4))
  """

  hidden: int
  kinds: tuple[str, ...] = (RESIDUAL,)
  num_chunks: int = 1
  num_lanes: int = 1
  activation: Callable[[Array], Array] = nn.gelu
  gated: bool = False
  norm: Norm = Norm()
  bias: bool | None = None
  dropout: float = 0.0

  casts: ClassVar[bool] = True

  @property
  def gates(self) -> tuple[str, ...]:
    return gate_names(self.kinds, self.num_chunks)

  @nn.compact
  def __call__(
    self, h: Float[Array, 'B *axes D'], gates: Sequence[GateValue] = ()
  ) -> Float[Array, 'B *axes D']:
    joins, reduce = split_gates(self.kinds, gates)
    norm = self.norm.module('norm')
    x = h if self.norm.after else norm(h)
    layers = feed_forward_layers(h.shape[-1], self.hidden, self.gated, bias=self.bias)
    x, layers = in_branch_dtype((x, layers))
    drop = dropping(self.dropout)
    activation = self.activation if drop is None else lambda z: drop(self.activation(z))

    def branch(x: Array, layers: LayerPair) -> Array:
      if drop is None:
        return sub_activation(x, layers, joins, activation)
      # Of all hidden units on every device: those of each would drop alike.
      with shares.summing(shares.ON_ONE_DEVICE):
        return drop(sub_activation(x, layers, joins, activation))

    if self.norm.after:
      gate = gates[0] if BRANCH in self.kinds and gates else True
      return post_norm(h, lambda h: branch(in_branch_dtype(h), layers), norm, gate)
    if LANE not in self.kinds:
      return h + branch(x, layers)
    z = jax.vmap(branch, in_axes=(1, 0), out_axes=1)(x, layers_of_lanes(layers, self.num_lanes))
    return lane(h, add_share(z, layers.second.bias, self.num_lanes), reduce, axis=1)


def layers_of_lanes(layers: LayerPair, lanes: int) -> LayerPair:
  """Splits the hidden units of a branch over lanes: arrays with a leading axis of lanes, without
  the second bias, which lanes share."""
  columns = lambda a: in_lanes(a, a.ndim - 1, lanes)
  first, gating = jax.tree.map(columns, (layers.first, layers.gating))
  return LayerPair(first, Layer(in_lanes(layers.second.kernel, 0, lanes)), gating)


def in_lanes(
  array: Float[Array | np.ndarray, '*axes'], axis: int, lanes: int
) -> Float[Array, 'lanes *axes_of_shard']:
  """Splits an axis of an array into equal contiguous shards, [lanes, ...].

  >>> in_lanes(jnp.arange(4.0), axis=0, lanes=2).tolist()
  [[0.0, 1.0], [2.0, 3.0]]
  """
  shape = (*array.shape[:axis], lanes, -1, *array.shape[axis + 1 :])
  return jnp.moveaxis(array.reshape(shape), axis, 0)


def add_share(
  z: Float[Array, '*axes D'], bias: Float[Array | np.ndarray, 'D'] | None, lanes: int
) -> Float[Array, '*axes D']:
  """Returns what a lane gives with its share of a bias that lanes share; None is no bias."""
  return z if bias is None else z + bias / lanes


def split_gates(
  kinds: tuple[str, ...], gates: Sequence[GateValue]
) -> tuple[tuple[GateValue, ...], GateValue]:
  """Returns a branch's inner gates as those of its chunks and that of its lanes; () is all-on.

  >>> split_gates(('sub_activation', 'lane'), (True, False, True))
  ((True, False), True)
  """
  if LANE in kinds:
    return tuple(gates[:-1]), gates[-1] if gates else True
  return tuple(gates) if SUB_ACTIVATION in kinds else (), True
