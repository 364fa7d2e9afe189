"""Three ways to run one structure of any additive model; `prefix.py` holds the fourth, for many at
once.

`variables` is `{'params': pool}` and `x` a batch of inputs [B, ...]; all return logits [B, ..., C].
They agree to rounding: the static form compiles once per structure, the others once for all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from additive_jax import gates
from additive_jax.errors import UserError
from additive_jax.models.additive import branch, embed, gate_names, readout
from additive_jax.structure import parse


def static(model, variables, x: jax.Array, structure) -> jax.Array:
  """The structure is Python: gates that are off leave no trace in the program.

  Args:
    structure: anything `Space.parse` takes.
  """
  structure = parse(structure, len(gate_names(model)))
  return _run(model, variables, x, structure.bits)


def conditional(model, variables, x: jax.Array, structure) -> jax.Array:
  """The structure is traced; an off gate skips its branch at run time, forward and backward.

  Args:
    structure: bool [n], or an integer scalar whose bit i is gate i (n ≤ 31).

  Under `vmap` over structures every branch would run; map over them with `lax.map` or `lax.scan`.
  """
  return _run(model, variables, x, as_bits(structure, len(gate_names(model))))


def masked(model, variables, x: jax.Array, structure) -> jax.Array:
  """Every branch is computed and multiplied by its gate, so gates may be soft and differ per
  example.

  Args:
    structure: float [n] for the whole batch, [B, n] per example or [B, T, n] per token.
  """
  num_gates = len(gate_names(model))
  structure = jnp.asarray(structure)
  if structure.shape[-1:] != (num_gates,):
    raise UserError(f'gates of shape {structure.shape}: expected {num_gates} on the last axis')
  structure = structure.astype(jnp.promote_types(structure.dtype, jnp.float32))
  return _run(model, variables, x, [structure[..., i] for i in range(num_gates)])


def as_bits(structure, num_gates: int) -> jax.Array:
  """A traced structure as bool [n], from bool [n] or an integer scalar whose bit i is gate i."""
  structure = jnp.asarray(structure)
  if structure.dtype == bool and structure.shape == (num_gates,):
    return structure
  if jnp.issubdtype(structure.dtype, jnp.integer) and structure.ndim == 0 and num_gates <= 31:
    return (structure >> jnp.arange(num_gates) & 1).astype(bool)
  raise UserError(
    f'structure of dtype {structure.dtype} and shape {structure.shape}: '
    f'expected bool [{num_gates}], or an integer scalar for at most 31 gates'
  )


def _run(model, variables, x, structure):
  h = embed(model, variables, x)
  for i, gate in enumerate(structure):
    h = gates.residual(h, lambda h, i=i: branch(model, variables, i, h), gate)
  return readout(model, variables, h)
