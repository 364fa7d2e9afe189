"""The three `+` as gates: pure functions, no Flax, no I/O. The residual and the lane gate are here,
the sub-activation gate in `layers`.

Axis legend, used in every docstring, shape suffix and einsum of the library:

  B  batch            T  tokens            D  model width       H  hidden width
  E  output width     C  classes           N  attention heads   U  units of a head
  S  structures       n  gates             k  choices of a token
  m  chunks           P  lanes             M  modules or experts
  K  structures trained together           W  structures that one matmul serves (a tile)

A **structure** is the value of all n gates of a network, in any form; **gates** are those of one
site, in order; a **gate** is one of them. The form of a gate decides how the `+` is run, so that a
network is written once:

  a Python bool        static: the branch is traced or it is not
  a traced bool []     conditional: `lax.cond`, one program for both values
  a float array        masked: the branch is computed and multiplied, one value per leading axis

An inner gate (sub-activation, lane) does not skip a branch but changes how it is computed. It has
the same forms; the traced ones are arithmetic, but for a lane's on a mesh.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

GateValue = ArrayLike  # in one of the forms above

SAVED = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  lambda primitive, *_, **__: primitive is jax.lax.conv_general_dilated_p,
)


def is_static(gate: GateValue) -> bool:
  """Returns whether a gate's value is Python, not an array.

  >>> is_static(True), is_static(jnp.array(True))
  (True, False)
  """
  return isinstance(gate, bool | np.bool_)


def is_soft(gate: GateValue) -> bool:
  """Returns whether a gate's value is an array of floats.

  >>> is_soft(0.5), is_soft(jnp.array(True))
  (True, False)
  """
  return not is_static(gate) and jnp.issubdtype(jnp.asarray(gate).dtype, jnp.floating)


def aligned(gate: GateValue, x: Float[Array, '...']) -> Float[Array, '...']:
  """Returns a gate whose axes are leading axes of `x`, in a shape that multiplies `x`.

  >>> aligned(jnp.array([0.0, 1.0]), jnp.ones((2, 3, 4))).shape
  (2, 1, 1)
  """
  gate = jnp.asarray(gate)
  return gate.reshape(gate.shape + (1,) * (x.ndim - gate.ndim)).astype(x.dtype)


def residual(
  x: Float[Array, '*axes D'],
  branch: Callable[[Array], Array],
  gate: GateValue,
  scale: ArrayLike | None = None,
) -> Float[Array, '*axes D']:
  """Returns the gated residual `y = x + g·s·f(x)`; with g = 0 the branch is skipped: no parameters
  read, no FLOPs.

  >>> residual(jnp.ones(2), jnp.sin, False).tolist()
  [1.0, 1.0]

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
  """
  scaled = branch if scale is None else lambda x: _like(scale, x) * branch(x)
  if is_soft(gate):
    return x + aligned(gate, x) * scaled(x)
  return choose(x, lambda x: x + scaled(x), gate)


def choose(
  x: Float[Array, '*axes D'],
  update: Callable[[Array], Array],
  gate: GateValue,
  scale: ArrayLike | None = None,
) -> Float[Array, '*axes D']:
  """Returns `u(x)` where the gate is on and x where it is off: the residual gate of a site that
  does its own adding, as one with lanes does.

  Args, forms and errors are those of `residual`; a soft gate or a scale gives x + g·s·(u(x) − x).

  >>> choose(jnp.ones(2), lambda x: 3 * x, jnp.array(True)).tolist()
  [3.0, 3.0]
  """
  scaled = update if scale is None else lambda x: x + _like(scale, x) * (update(x) - x)
  if is_static(gate):
    return scaled(x) if gate else x
  if is_soft(gate):
    return x + aligned(gate, x) * (scaled(x) - x)
  # The branch is rematerialised but for its matmuls and convolutions. Under reverse mode `lax.cond`
  # hands the residuals of its branch on to the backward pass, and fills them with zeros where it
  # was skipped: for all intermediates that costs about as much as running it, while matmuls are
  # dear to repeat.
  #
  #   forward    cond(g): f(x) → matmuls of f,  or zeros of their shapes
  #   backward   cond(g): activations again from those matmuls, then their gradients
  on = jax.checkpoint(scaled, prevent_cse=False, policy=SAVED)
  return jax.lax.cond(_switch(gate), on, lambda x: x, x)


def lane(
  x: Float[Array, '*axes D'],
  z: Float[Array, '*axes D'],
  gate: GateValue,
  *,
  axis: int = 0,
) -> Float[Array, '*axes D']:
  """Returns the stream after the reduce that joins P parallel lanes: on, every
  `x_p ← mean_q x_q + Σ_q z_q`; off, `x_p ← x_p + z_p`.

  >>> lane(jnp.ones((2, 1)), jnp.array([[1.0], [2.0]]), True).tolist()
  [[4.0], [4.0]]
  >>> lane(jnp.ones((2, 1)), jnp.array([[1.0], [2.0]]), False).tolist()
  [[2.0], [3.0]]

  Args:
    x: the stream of the lanes, [P, B, T, D] or with the lanes on another axis.
    z: what each lane's shard of the branch gives, of the same shape.
    gate: a Python bool, a traced bool scalar, or floats whose axes are the leading axes of `x`
      other than its lanes.
    axis: the axis of the lanes. Where it is split over devices, the sum of `x_q/P + z_q` is one
      all-reduce, which a gate that is off leaves out.
  """
  axis %= x.ndim

  def reduced(x, z):
    total = (x / x.shape[axis] + z).sum(axis, keepdims=True)
    return jnp.broadcast_to(total, x.shape)

  if is_static(gate):
    return reduced(x, z) if gate else x + z
  if is_soft(gate):
    gate = jnp.asarray(gate)
    if gate.ndim > axis:
      gate = jnp.expand_dims(gate, axis)
    apart = x + z
    return apart + aligned(gate, x) * (reduced(x, z) - apart)
  return jax.lax.cond(_switch(gate), reduced, jnp.add, x, z)


def lane_copies(
  x: Float[Array, '*axes D'], lanes: int, *, axis: int = 0
) -> Float[Array, '*axes_of_lanes D']:
  """Returns the stream as each of `lanes` lanes has it before the first gate, on a new axis.

  >>> lane_copies(jnp.zeros((5, 8)), 2, axis=1).shape
  (5, 2, 8)
  """
  shape = (*x.shape[:axis], lanes, *x.shape[axis:])
  return jnp.broadcast_to(jnp.expand_dims(x, axis), shape)


def lane_mean(x: Float[Array, '*axes D'], *, axis: int = 0) -> Float[Array, '...']:
  """Returns the mean over the lanes, which the readout takes; `axis` is gone from the result.

  >>> lane_mean(jnp.array([[1.0], [3.0]])).tolist()
  [2.0]
  """
  return x.mean(axis)


def _switch(gate) -> Array:
  """Returns a gate that `lax.cond` can decide on."""
  gate = jnp.asarray(gate)
  if gate.dtype != bool or gate.ndim:
    raise TypeError(
      f'gate of dtype {gate.dtype} and shape {gate.shape}: '
      'expected a Python bool, a bool scalar, or floats'
    )
  return gate


def _like(scale, x: Array) -> Array:
  return jnp.asarray(scale).astype(x.dtype)
