"""Structures inside a traced function."""

from __future__ import annotations

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, StructureLike, parse


def traced_structure(structure: StructureLike | ArrayLike, num_gates: int) -> Bool[Array, 'n']:
  """Returns a structure as an array: from a traced bool [n], a traced integer scalar whose bit i is
  gate i, or any form that `parse` takes.

  >>> traced_structure(jnp.int32(5), 3).tolist()
  [True, False, True]
  """
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
