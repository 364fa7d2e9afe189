"""The `+` as a gate: pure functions, no Flax, no I/O.

Axis legend, used in every docstring, shape suffix and einsum of the library:

  B  batch            T  tokens           D  model width        H  hidden width
  C  classes          S  structures       n  gates              K  structures trained together
  W  structures that one matmul serves (a tile)

The form of a gate decides how the `+` is run, so that a network is written once:

  a Python bool        static: the branch is traced or it is not
  a traced bool []     conditional: `lax.cond`, one program for both values
  a float array        masked: the branch is computed and multiplied, one value per leading axis
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_SAVED = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def residual(x: jax.Array, branch: Callable[[jax.Array], jax.Array], gate) -> jax.Array:
  """The gated residual `y = x + g·f(x)`; with g = 0 the branch is skipped: no parameters read, no
  FLOPs.

  Args:
    x: the stream, [B, ..., D].
    branch: f, from [B, ..., D] to the same shape. What it closes over (parameters) may be traced.
    gate: g. A Python bool (static), a traced bool scalar (conditional), or a float array whose axes
      are leading axes of `x` (masked): [] for all, [B] per example, [B, T] per token.

  Returns:
    y, with the shape and dtype of `x`.

  Raises:
    TypeError: for a gate of another type, such as a traced integer.

  The conditional branch is rematerialised but for its matmuls: under reverse mode `lax.cond` fills
  the residuals of a skipped branch with zeros, which for all intermediates costs about as much as
  running it, while matmuls are dear to repeat.
  """
  if isinstance(gate, bool | np.bool_):
    return x + branch(x) if gate else x
  gate = jnp.asarray(gate)
  if gate.dtype == bool and gate.ndim == 0:
    on = jax.checkpoint(lambda x: x + branch(x), prevent_cse=False, policy=_SAVED)
    return jax.lax.cond(gate, on, lambda x: x, x)
  if jnp.issubdtype(gate.dtype, jnp.floating):
    gate = gate.reshape(gate.shape + (1,) * (x.ndim - gate.ndim))
    return x + gate.astype(x.dtype) * branch(x)
  raise TypeError(
    f'gate of dtype {gate.dtype} and shape {gate.shape}: '
    'expected a Python bool, a bool scalar, or floats'
  )
