"""The three `+` as gates: pure functions, no Flax, no I/O.

Axis legend, used in every docstring, shape suffix and einsum of the library:

  B  batch            T  tokens           D  model width        H  hidden width
  C  classes          S  structures       n  gates              K  structures trained together
  m  chunks           P  lanes            W  structures that one matmul serves (a tile)

The form of a gate decides how the `+` is run, so that a network is written once:

  a Python bool        static: the branch is traced or it is not
  a traced bool []     conditional: `lax.cond`, one program for both values
  a float array        masked: the branch is computed and multiplied, one value per leading axis

An inner gate (sub-activation, lane) does not skip a branch but changes how it is computed. It has
the same forms; the traced ones are arithmetic, but for a lane's on a mesh.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure

SAVED = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def is_static(gate) -> bool:
  """Whether a gate's value is Python, not an array."""
  return isinstance(gate, bool | np.bool_)


def residual(x: jax.Array, branch: Callable[[jax.Array], jax.Array], gate, scale=None) -> jax.Array:
  """The gated residual `y = x + g·s·f(x)`; with g = 0 the branch is skipped: no parameters read, no
  FLOPs.

  Args:
    x: the stream, [B, ..., D].
    branch: f, from [B, ..., D] to the same shape. What it closes over (parameters) may be traced.
    gate: g. A Python bool (static), a traced bool scalar (conditional), or a float array whose axes
      are leading axes of `x` (masked): [] for all, [B] per example, [B, T] per token.
    scale: s, a scalar; None is 1. With s = 1/p for a gate that is on with probability p, the
      expectation of y over the gate is x + f(x).

  Returns:
    y, with the shape and dtype of `x`.

  Raises:
    TypeError: for a gate of another type, such as a traced integer.

  The conditional branch is rematerialised but for its matmuls: under reverse mode `lax.cond` fills
  the residuals of a skipped branch with zeros, which for all intermediates costs about as much as
  running it, while matmuls are dear to repeat.
  """
  scaled = branch if scale is None else lambda x: _like(scale, x) * branch(x)
  if _is_soft(gate):
    return x + _aligned(gate, x) * scaled(x)
  return choose(x, lambda x: x + scaled(x), gate)


def choose(x: jax.Array, update: Callable[[jax.Array], jax.Array], gate, scale=None) -> jax.Array:
  """`u(x)` where the gate is on and x where it is off: the residual gate of a site that does its
  own adding, as one with lanes does.

  Args, forms and errors are those of `residual`; a soft gate or a scale gives x + g·s·(u(x) − x).
  """
  scaled = update if scale is None else lambda x: x + _like(scale, x) * (update(x) - x)
  if is_static(gate):
    return scaled(x) if gate else x
  if _is_soft(gate):
    return x + _aligned(gate, x) * (scaled(x) - x)
  on = jax.checkpoint(scaled, prevent_cse=False, policy=SAVED)
  return jax.lax.cond(_switch(gate), on, lambda x: x, x)


def chunks(width: int, num_chunks: int) -> tuple[slice, ...]:
  """`num_chunks` contiguous slices of `width` units, sizes differing by at most one, larger first.

  Raises:
    UserError: for more chunks than units, or none.
  """
  if not 1 <= num_chunks <= width:
    raise UserError(f'{num_chunks} chunks of a width of {width}: expected 1 to {width}')
  size, larger = divmod(width, num_chunks)
  ends = np.cumsum([0] + [size + (i < larger) for i in range(num_chunks)]).tolist()
  return tuple(slice(*pair) for pair in itertools.pairwise(ends))


def groups(joined: Sequence[bool]) -> tuple[range, ...]:
  """The maximal runs of chunks that static gates join; gate k joins chunks k and k + 1."""
  starts = [0] + [k + 1 for k, on in enumerate(joined) if not on]
  return tuple(range(*pair) for pair in itertools.pairwise([*starts, len(joined) + 1]))


def joins(gates: Sequence, num_chunks: int) -> list[list]:
  """`M[j][i]`: whether chunks i and j are joined, as the product of the gates between them.

  Args:
    gates: m − 1 traced gates, each of any shape; bools or floats.

  Returns:
    m rows of m values, floats of the gates' shape; the diagonal is 1.
  """
  gates = [jnp.asarray(gate) for gate in gates]
  gates = [gate if _is_soft(gate) else gate.astype(jnp.float32) for gate in gates]
  table = [[None] * num_chunks for _ in range(num_chunks)]
  for j in range(num_chunks):
    table[j][j] = jnp.float32(1)
    for i in range(j + 1, num_chunks):
      table[i][j] = table[j][i] = table[j][i - 1] * gates[i - 1]
  return table


def compose(gates: Sequence, first: Callable, activate: Callable, second: Callable) -> jax.Array:
  """A sub-activation layer of any two linear maps with a nonlinear one between: `sub_activation` is
  the case of matrices.

  With chunks 0 … m−1 of its input, gate k joins chunks k and k+1; a maximal run of joined chunks is
  a group G. `h_G = act(Σ_{i∈G} P_i)`, and output chunk j is `h_{G(j)} B_j`.

  Args:
    gates: m − 1 gates, all Python bools (each group is computed once, at the width of its chunks)
      or all traced (each chunk's partial product is computed once, and mixed as M says), bools []
      or floats whose axes are leading axes of the input.
    first: from chunks (lo, hi) to their partial product Σ_{lo≤i<hi} P_i, bias shares included; an
      array or a tuple of arrays [B, ..., H].
    activate: from such a value to the hidden value.
    second: from a hidden value and chunks (lo, hi) to those chunks of the output, side by side on
      the last axis.

  Returns:
    The output [B, ..., D].
  """
  num_chunks = len(gates) + 1
  if all(is_static(gate) for gate in gates):
    # With several groups there are several times the hidden values; computing the activation again
    # costs less than keeping what its gradient needs.
    again = jax.checkpoint(activate) if not all(gates) else activate
    parts = [
      second(again(first(group.start, group.stop)), group.start, group.stop)
      for group in groups(gates)
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)
  partial = [first(i, i + 1) for i in range(num_chunks)]
  table = joins(gates, num_chunks)

  def mix(row, *values):
    return sum(_aligned(weight, value) * value for weight, value in zip(row, values))

  @jax.checkpoint
  def mixed(row, partial):
    return activate(jax.tree.map(lambda *values: mix(row, *values), *partial))

  hidden = [mixed(row, partial) for row in table]
  return jnp.concatenate([second(h, j, j + 1) for j, h in enumerate(hidden)], axis=-1)


def sub_activation(
  x: jax.Array,
  in_kernel: jax.Array,
  out_kernel: jax.Array,
  structure,
  activation: Callable,
  *,
  gate_kernel: jax.Array | None = None,
  in_bias: jax.Array | None = None,
  out_bias: jax.Array | None = None,
) -> jax.Array:
  """`linear → act → linear` whose sums of partial products are gates: the 2^(m−1) compositions of m
  chunks, from m narrow layers side by side (all-off) to the dense layer (all-on).

  The input is split into m contiguous chunks, sizes differing by at most one, larger first, with
  partial products `P_i = x_i A_i`; the output likewise. Gate k joins chunks k and k+1; for a
  maximal run G of joined chunks `h_G = act(Σ_{i∈G} P_i)`, and output chunk j is `h_{G(j)} B_j`.

  Args:
    x: [..., D].
    in_kernel: A, [D, H].
    out_kernel: B, [H, E].
    structure: the m − 1 gates. Static (a `Structure`, its text, or a row of Python or NumPy bools
      or of integers 0 and 1): merged groups, no work twice, the FLOPs of the dense matmuls whatever
      the structure. Traced (a JAX array [..., m − 1], or NumPy with more axes, of bools or floats
      whose leading axes are leading axes of x, such as [B, m − 1] per example; or m − 1 arrays):
      the mask form, the same matmuls and m activations, with `h_j = act(Σ_i M[j,i] P_i)`, M[j,i]
      the product of the gates between chunks i and j.
    activation: act, elementwise.
    gate_kernel: [D, H]; with it, as in SwiGLU, `h_G = act(Σ x_i C_i) · (Σ x_i A_i)`, both sums over
      the group.
    in_bias: [H], of x·A; each chunk has the share b/m.
    out_bias: [E].

  Returns:
    y [..., E].

  Raises:
    UserError: when the arrays or the gates do not fit each other, or there are more chunks than
      units of the input or the output.
  """
  gates = _inner(structure)
  check_layer(x, in_kernel, out_kernel, gate_kernel, in_bias, out_bias)
  for gate in gates:
    axes = np.shape(gate)
    if axes != x.shape[: len(axes)] or len(axes) >= x.ndim:
      raise UserError(
        f'gates of shape {axes} for x of shape {x.shape}: expected leading axes of x, or none'
      )
  m = len(gates) + 1
  inputs = chunks(in_kernel.shape[0], m)
  outputs = chunks(out_kernel.shape[1], m)

  def first(lo, hi):
    part = slice(inputs[lo].start, inputs[hi - 1].stop)
    value = x[..., part] @ in_kernel[part]
    if in_bias is not None:
      value = value + in_bias * ((hi - lo) / m)
    return value if gate_kernel is None else (x[..., part] @ gate_kernel[part], value)

  def activate(value):
    return activation(value) if gate_kernel is None else activation(value[0]) * value[1]

  def second(h, lo, hi):
    return h @ out_kernel[:, outputs[lo].start : outputs[hi - 1].stop]

  y = compose(gates, first, activate, second)
  return y if out_bias is None else y + out_bias


def check_layer(x, in_kernel, out_kernel, gate_kernel=None, in_bias=None, out_bias=None) -> None:
  """Raises `UserError` where the arrays of `linear → act → linear` do not fit each other."""
  if x.shape[-1] != in_kernel.shape[0]:
    raise UserError(f'x of width {x.shape[-1]}: expected {in_kernel.shape[0]}, as in_kernel has')
  hidden, out = in_kernel.shape[1], out_kernel.shape[1]
  for name, value, want in (
    ('out_kernel', out_kernel, (hidden, out)),
    ('gate_kernel', gate_kernel, in_kernel.shape),
    ('in_bias', in_bias, (hidden,)),
    ('out_bias', out_bias, (out,)),
  ):
    if value is not None and value.shape != want:
      raise UserError(f'{name} of shape {value.shape}: expected {want}, to fit the other arrays')


def lane(x: jax.Array, z: jax.Array, gate, *, axis: int = 0, mesh_axis: str | None = None):
  """The reduce that joins P parallel lanes: on, every `x_p ← mean_q x_q + Σ_q z_q`; off,
  `x_p ← x_p + z_p`.

  Args:
    x: the stream of the lanes, [P, B, T, D] or with the lanes on another axis.
    z: what each lane's shard of the branch gives, of the same shape.
    gate: a Python bool, a traced bool scalar, or floats whose axes are the leading axes of `x`
      other than its lanes.
    axis: the axis of the lanes.
    mesh_axis: inside `shard_map`, the mesh axis that the lanes are spread over; each device holds
      an equal number on `axis`. The sum is then one all-reduce of `x_q/P + z_q`, taken only when
      the gate is on (all devices along the axis share the gate).

  Returns:
    The stream, of the shape of `x`.
  """
  axis %= x.ndim
  size = x.shape[axis] * (1 if mesh_axis is None else jax.lax.axis_size(mesh_axis))

  def reduced(x, z):
    total = (x / size + z).sum(axis, keepdims=True)
    if mesh_axis is not None:
      # The stream stays marked as varying over the mesh, whatever the gates.
      total = jax.lax.pcast(jax.lax.psum(total, mesh_axis), mesh_axis, to='varying')
    return jnp.broadcast_to(total, x.shape)

  if is_static(gate):
    return reduced(x, z) if gate else x + z
  if _is_soft(gate):
    gate = jnp.asarray(gate)
    if gate.ndim > axis:
      gate = jnp.expand_dims(gate, axis)
    apart = x + z
    return apart + _aligned(gate, x) * (reduced(x, z) - apart)
  return jax.lax.cond(_switch(gate), reduced, jnp.add, x, z)


def lane_mean(x: jax.Array, *, axis: int = 0, mesh_axis: str | None = None) -> jax.Array:
  """The mean over the lanes, which the readout takes; `axis` is gone from the result."""
  mean = x.mean(axis)
  return mean if mesh_axis is None else jax.lax.pmean(mean, mesh_axis)


def _inner(structure) -> tuple:
  """Inner gates as a tuple: of Python bools, or of arrays."""
  if isinstance(structure, str):
    structure = Structure.from_string(structure) if structure else ()
  if isinstance(structure, list | tuple | np.ndarray) and _is_plain(structure):
    return tuple(bool(bit) for bit in structure)
  if isinstance(structure, jax.Array | np.ndarray):
    structure = jnp.asarray(structure)
    if not structure.ndim:
      raise UserError(f'structure {structure}: expected m − 1 gates, not a number')
    return tuple(structure[..., k] for k in range(structure.shape[-1]))
  if isinstance(structure, Structure):
    return structure.bits
  try:
    return tuple(structure)
  except TypeError:
    raise UserError(
      f'structure {structure!r}: expected a Structure, its text, or m − 1 gates'
    ) from None


def _is_plain(structure) -> bool:
  """Whether it is a row of Python or NumPy bools, or of integers 0 and 1."""
  if isinstance(structure, np.ndarray) and (
    structure.ndim != 1 or structure.dtype.kind not in 'biu'
  ):
    return False
  whole = bool | np.bool_ | int | np.integer
  return all(isinstance(bit, whole) and bit in (0, 1) for bit in structure)


def _is_soft(gate) -> bool:
  return not is_static(gate) and jnp.issubdtype(jnp.asarray(gate).dtype, jnp.floating)


def _switch(gate) -> jax.Array:
  """A gate that `lax.cond` can decide on."""
  gate = jnp.asarray(gate)
  if gate.dtype != bool or gate.ndim:
    raise TypeError(
      f'gate of dtype {gate.dtype} and shape {gate.shape}: '
      'expected a Python bool, a bool scalar, or floats'
    )
  return gate


def _like(scale, x: jax.Array) -> jax.Array:
  return jnp.asarray(scale).astype(x.dtype)


def _aligned(gate, x: jax.Array) -> jax.Array:
  """A gate whose axes are leading axes of `x`, in a shape that multiplies `x`."""
  gate = jnp.asarray(gate)
  return gate.reshape(gate.shape + (1,) * (x.ndim - gate.ndim)).astype(x.dtype)
