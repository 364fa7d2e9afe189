"""Structures inside a traced function."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool

from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, StructureLike, parse


def traced_structure(structure: StructureLike | ArrayLike, num_gates: int) -> Bool[Array, 'n']:
  """Returns a structure as an array: from a traced bool [n], a traced integer scalar whose bit i is
  gate i, or any form that `parse` takes.

  >>> traced_structure(jnp.int32(5), 3).tolist()
  [True, False, True]

  Of a traced integer the bits from n on are not seen; another one has to be below 2^n.
  """
  if not isinstance(structure, jax.core.Tracer):
    if _is_integer(structure):
      return jnp.asarray(parse(int(structure), num_gates).bits)  # type: ignore[arg-type]
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


def _is_integer(structure: Any) -> bool:
  """Returns whether a structure is one integer, Python's or an array's."""
  if isinstance(structure, bool):
    return False
  dtype = getattr(structure, 'dtype', None)
  return isinstance(structure, int) or (
    dtype is not None and not structure.ndim and jnp.issubdtype(dtype, np.integer)
  )
