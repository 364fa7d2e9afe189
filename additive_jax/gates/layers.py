"""Gates inside a layer: the sums of partial products of `linear → act → linear`.

The input of the first map is cut into m contiguous chunks with partial products `P_i = x_i A_i`,
and the output of the second into m chunks as well. Gate k joins chunks k and k+1; a maximal run of
joined chunks is a group. With m = 4 and gates 1, 0, 1:

  input chunks     0 ─1─ 1   ·0·   2 ─1─ 3
  hidden values    act(P_0 + P_1)  act(P_2 + P_3)      one for each group
  output chunks    0     1         2     3             each reads the hidden value of its group
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from additive_jax.errors import UserError
from additive_jax.gates.shares import sum_of_units
from additive_jax.gates.structure import Structure
from additive_jax.gates.sums import GateValue, aligned, is_soft, is_static

LinearMap = Callable[[Any, Any], Any]  # from an input and a kernel to the output
MATMULS: tuple[LinearMap, LinearMap] = (operator.matmul, operator.matmul)


class Layer(NamedTuple):
  """The parameters of a linear map `x @ kernel + bias`.

  >>> Layer(jnp.ones((2, 3)), jnp.ones(3)).add_bias(jnp.zeros(3), share=0.5).tolist()
  [0.5, 0.5, 0.5]

  Attributes:
    kernel: [inputs, outputs], of a convolution [kh, kw, inputs, outputs].
    bias: [outputs], or None.
  """

  kernel: Float[Array, '*sides inputs outputs']
  bias: Float[Array, 'outputs'] | None = None

  def add_bias(self, y: Float[Array, '...'], share: ArrayLike | None = None) -> Float[Array, '...']:
    """Returns y plus a share of the bias, by default all of it."""
    if self.bias is None:
      return y
    return y + (self.bias if share is None else share * self.bias)


class LayerPair(NamedTuple):
  """The parameters of `linear → act → linear`, or of a gated unit.

  >>> layers = LayerPair(Layer(jnp.ones((4, 8)), jnp.zeros(8)), Layer(jnp.ones((8, 3))))
  >>> layers.first.kernel.shape, layers.second.bias, layers.gating
  ((4, 8), None, None)

  Attributes:
    first: A [D, H] and its bias.
    second: B [H, E] and its bias.
    gating: C [D, H] of a gated unit such as SwiGLU, `act(x C) · (x A)`; None for any other.
  """

  first: Layer
  second: Layer
  gating: Layer | None = None


def chunks(width: int, num_chunks: int) -> tuple[slice, ...]:
  """Returns `num_chunks` contiguous slices of `width` units, sizes differing by at most one, larger
  first.

  >>> chunks(5, 2)
  (slice(0, 3, None), slice(3, 5, None))

  Raises:
    UserError: for more chunks than units, or none.
  """
  if not 1 <= num_chunks <= width:
    raise UserError(f'{num_chunks} chunks of a width of {width}: expected 1 to {width}')
  size, larger = divmod(width, num_chunks)
  ends = np.cumsum([0] + [size + (i < larger) for i in range(num_chunks)]).tolist()
  return tuple(slice(*pair) for pair in itertools.pairwise(ends))


def groups(gates: Sequence[GateValue]) -> tuple[range, ...]:
  """Returns the maximal runs of chunks that static gates join; gate k joins chunks k and k + 1.

  >>> groups((True, False, True))
  (range(0, 2), range(2, 4))
  """
  starts = [0] + [k + 1 for k, on in enumerate(gates) if not on]
  return tuple(range(*pair) for pair in itertools.pairwise([*starts, len(gates) + 1]))


def joins(gates: Sequence[GateValue]) -> list[list[Float[Array, '...']]]:
  """Returns the table `M[j][i]`: whether chunks i and j are joined, the product of the gates
  between them.

  >>> [[float(value) for value in row] for row in joins([jnp.array(True), jnp.array(False)])]
  [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

  Args:
    gates: m − 1 traced gates, each of any shape; bools or floats.

  Returns:
    m rows of m values, floats of the gates' shape; the diagonal is 1.
  """
  values = [gate if is_soft(gate) else jnp.asarray(gate, jnp.float32) for gate in gates]
  num_chunks = len(values) + 1
  table = [[jnp.float32(1)] * num_chunks for _ in range(num_chunks)]
  for j in range(num_chunks):
    for i in range(j + 1, num_chunks):
      table[i][j] = table[j][i] = table[j][i - 1] * jnp.asarray(values[i - 1])
  return table


def compose(
  gates: Sequence[GateValue],
  first: Callable[[int, int], Any],
  activate: Callable[[Any], Array],
  second: Callable[[Array, int, int], Array],
) -> Float[Array, '... E']:
  """Returns the output of a sub-activation layer of any two linear maps with a nonlinear one
  between; `sub_activation` is the case of matrices.

  >>> x = jnp.arange(4.0)
  >>> sums = lambda lo, hi: x[2 * lo : 2 * hi].sum(keepdims=True)  # one hidden unit, chunks of two
  >>> spread = lambda h, lo, hi: jnp.broadcast_to(h, (2 * (hi - lo),))
  >>> compose([True], sums, jax.nn.relu, spread).tolist()
  [6.0, 6.0, 6.0, 6.0]
  >>> compose([False], sums, jax.nn.relu, spread).tolist()
  [1.0, 1.0, 5.0, 5.0]

  Args:
    gates: m − 1 gates, all Python bools (each group is computed once, at the width of its chunks)
      or all traced (each chunk's partial product is computed once, and mixed as `joins` says):
      bools [], or floats whose axes are leading axes of the input.
    first: from chunks (lo, hi) to their partial product Σ_{lo≤i<hi} P_i, bias shares included; an
      array or a tuple of arrays [B, ..., H].
    activate: from such a value to the hidden value.
    second: from a hidden value and chunks (lo, hi) to those chunks of the output, side by side on
      the last axis.

  Returns:
    The output [B, ..., E].
  """
  if all(is_static(gate) for gate in gates):
    # With several groups there are several times the hidden values; computing the activation again
    # costs less than keeping what its gradient needs.
    activation = activate if all(gates) else jax.checkpoint(activate)
    parts = [
      second(activation(first(group.start, group.stop)), group.start, group.stop)
      for group in groups(gates)
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
  partial = [first(i, i + 1) for i in range(len(gates) + 1)]
  hidden = jax.checkpoint(functools.partial(mixed_hidden, activate))
  parts = [second(hidden(row, partial), j, j + 1) for j, row in enumerate(joins(gates))]
  return jnp.concatenate(parts, axis=-1)


def mixed_hidden(
  activate: Callable[[Any], Array], row: Sequence[GateValue], partial: Sequence[Any]
) -> Float[Array, '... H']:
  """Returns the hidden value `act(Σ_i M_i P_i)`, M a row of `joins` and P the partial products."""
  mix = lambda *values: sum(aligned(weight, value) * value for weight, value in zip(row, values))
  return activate(jax.tree.map(mix, *partial))


def sub_activation(
  x: Float[Array, '*batch D'],
  layers: LayerPair,
  gates: Any,
  activation: Callable[[Array], Array],
  *,
  maps: tuple[LinearMap, LinearMap] = MATMULS,
) -> Float[Array, '*batch2 E']:
  """Returns `linear → act → linear` of x, whose sums of partial products are gates: one of the
  2^(m−1) compositions of m chunks, from m narrow layers side by side (all-off) to the dense layer
  (all-on).

  A group G of chunks (see the head of this file) has the hidden value `h_G = act(Σ_{i∈G} P_i)`, or
  `act(Σ x_i C_i) · Σ x_i A_i` in a gated unit, and output chunk j is `h_{G(j)} B_j`. The first bias
  is shared out evenly over the chunks; the second belongs to the output.

  >>> x, ones = jnp.arange(4.0), jnp.ones((4, 4))
  >>> layers = LayerPair(Layer(ones), Layer(ones))
  >>> sub_activation(x, layers, '111', jax.nn.relu).tolist()
  [24.0, 24.0, 24.0, 24.0]
  >>> sub_activation(x, layers, '101', jax.nn.relu).tolist()
  [4.0, 4.0, 20.0, 20.0]

  Args:
    x: [..., D].
    layers: A [D, H], B [H, E] and what goes with them.
    gates: the m − 1 gates. Static (a `Structure`, its text, or a row of Python or NumPy bools or of
      integers 0 and 1): merged groups, no work twice, the FLOPs of the dense matmuls whatever the
      gates. Traced (a JAX array [..., m − 1], or NumPy with more axes, of bools or floats whose
      leading axes are leading axes of x, such as [B, m − 1] per example; or m − 1 arrays): the mask
      form, the same matmuls and m activations, with `h_j = act(Σ_i M[j,i] P_i)`, M as in `joins`.
    activation: act, elementwise.
    maps: how each kernel is applied to its input, matrices by default; others take their units on
      the last axis and have kernels [..., inputs, outputs], as convolutions do.

  Returns:
    y [..., E].

  Raises:
    UserError: when the arrays or the gates do not fit each other, or there are more chunks than
      units of the input or the output.
  """
  gates = _inner(gates)
  check_layers(x, layers)
  for gate in gates:
    axes = np.shape(gate)
    if axes != x.shape[: len(axes)] or len(axes) >= x.ndim:
      raise UserError(
        f'gates of shape {axes} for x of shape {x.shape}: expected leading axes of x, or none'
      )
  run = lambda units, x, gates: compose(gates, *chunked(x, units, len(gates) + 1, activation, maps))
  units, axes = units_of(layers)
  if all(is_static(gate) for gate in gates):
    y = sum_of_units(lambda units, x: run(units, x, gates), units, axes, x)
  else:
    y = sum_of_units(run, units, axes, x, gates)
  return layers.second.add_bias(y)


def units_of(layers: LayerPair) -> tuple[LayerPair, PyTree]:
  """Returns the parameters of the hidden units, which are all but the second bias, and of each the
  axis of the units; see `shares.sum_of_units`.

  >>> first, second = Layer(jnp.ones((2, 3)), jnp.ones(3)), Layer(jnp.ones((3, 4)))
  >>> units, axes = units_of(LayerPair(first, second))
  >>> axes.first, axes.second
  (Layer(kernel=-1, bias=-1), Layer(kernel=-2, bias=None))
  """
  units = layers._replace(second=Layer(layers.second.kernel))
  first = jax.tree.map(lambda _: -1, (layers.first, layers.gating))
  return units, LayerPair(first[0], jax.tree.map(lambda _: -2, units.second), first[1])


def chunked(
  x: Float[Array, '... D'],
  layers: LayerPair,
  num_chunks: int,
  activation: Callable[[Array], Array],
  maps: tuple[LinearMap, LinearMap] = MATMULS,
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
  """Returns the functions (first, activate, second) of a pair of layers that `compose` takes. The
  partial products are a tuple of arrays, for a gated unit its two; the second bias is left out."""
  inputs = chunks(layers.first.kernel.shape[-2], num_chunks)
  outputs = chunks(layers.second.kernel.shape[-1], num_chunks)
  sides = (slice(None),) * (len(layers.first.kernel.shape) - 2)

  def product(layer, lo, hi):
    part = slice(inputs[lo].start, inputs[hi - 1].stop)
    return layer.add_bias(
      maps[0](x[..., part], layer.kernel[(*sides, part)]), (hi - lo) / num_chunks
    )

  def first(lo, hi):
    return tuple(
      product(layer, lo, hi) for layer in (layers.gating, layers.first) if layer is not None
    )

  def activate(values):
    return activation(values[0]) if len(values) == 1 else activation(values[0]) * values[1]

  def second(h, lo, hi):
    part = slice(outputs[lo].start, outputs[hi - 1].stop)
    return maps[1](h, layers.second.kernel[(*sides, slice(None), part)])

  return first, activate, second


def check_layers(x: Float[Array, '... D'], layers: LayerPair) -> None:
  """Raises `UserError` where an input and the arrays of a pair of layers do not fit each other."""
  (inputs, hidden), outputs = layers.first.kernel.shape[-2:], layers.second.kernel.shape[-1]
  if x.shape[-1] != inputs:
    raise UserError(f'x of width {x.shape[-1]}: expected {inputs}, as first.kernel has')
  gating_kernel, gating_bias = layers.gating or (None, None)
  for name, value, shape in (
    ('second.kernel', layers.second.kernel, (hidden, outputs)),
    ('gating.kernel', gating_kernel, (inputs, hidden)),
    ('gating.bias', gating_bias, (hidden,)),
    ('first.bias', layers.first.bias, (hidden,)),
    ('second.bias', layers.second.bias, (outputs,)),
  ):
    if value is not None and value.shape[-len(shape) :] != shape:
      raise UserError(f'{name} of shape {value.shape}: expected {shape}, to fit the other arrays')


def _inner(gates: Any) -> tuple[GateValue, ...]:
  """Returns inner gates as a tuple: of Python bools, or of arrays."""
  if isinstance(gates, str):
    return Structure.from_string(gates).bits if gates else ()
  if isinstance(gates, jax.Array | np.ndarray) and not gates.ndim:
    raise UserError(f'gates {gates}: expected m − 1 gates, not a number')
  traced = isinstance(gates, jax.Array)
  if traced or (isinstance(gates, np.ndarray) and (gates.ndim > 1 or gates.dtype.kind == 'f')):
    return tuple(jnp.asarray(gates[..., k]) for k in range(gates.shape[-1]))
  try:
    gates = tuple(gates)
  except TypeError:
    raise UserError(f'gates {gates!r}: expected a Structure, its text, or m − 1 gates') from None
  integers = bool | np.bool_ | int | np.integer
  plain = all(isinstance(gate, integers) and gate in (0, 1) for gate in gates)
  return tuple(map(bool, gates)) if plain else gates
