"""Structures inside a traced function."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, parse


def as_bits(structure, num_gates: int) -> jax.Array:
  """A structure as bool [n]: a traced bool [n], a traced integer scalar whose bit i is gate i, or
  any Python form that `Space.parse` takes."""
  if isinstance(structure, str | Structure | tuple | list):
    return jnp.asarray(parse(structure, num_gates).bits)
  structure = jnp.asarray(structure)
  if structure.dtype == bool and structure.shape == (num_gates,):
    return structure
  if jnp.issubdtype(structure.dtype, jnp.integer) and structure.ndim == 0 and num_gates <= 31:
    return (structure >> jnp.arange(num_gates) & 1).astype(bool)
  raise UserError(
    f'structure of dtype {structure.dtype} and shape {structure.shape}: '
    f'expected bool [{num_gates}], or an integer scalar for at most 31 gates'
  )
