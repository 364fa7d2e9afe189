"""Three ways to run one structure of any additive model; `prefix.py` holds the fourth, for many at
once.

`variables` is `{'params': pool}` and `x` a batch of inputs [B, ...]; all return logits [B, ..., C].
They agree to rounding: the static form compiles once per structure, the others once for all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from additive_jax.errors import UserError
from additive_jax.models.additive import embed, gate_names, readout, sites_of, step
from additive_jax.structure import Structure, parse


def static(model, variables, x: jax.Array, structure) -> jax.Array:
  """The structure is Python: gates that are off leave no trace in the program.

  Args:
    structure: anything `Space.parse` takes.
  """
  structure = parse(structure, len(gate_names(model)))
  return _run(model, variables, x, structure.bits)


def conditional(model, variables, x: jax.Array, structure, *, scales=None) -> jax.Array:
  """The structure is traced; an off residual gate skips its site at run time, forward and backward.

  Args:
    structure: bool [n], or an integer scalar whose bit i is gate i (n ≤ 31).
    scales: float [n]; what a site with residual gate i adds is multiplied by `scales[i]`; None: 1.

  Under `vmap` over structures every branch would run; map over them with `lax.map` or `lax.scan`.
  """
  return _run(model, variables, x, as_bits(structure, len(gate_names(model))), scales)


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


def _run(model, variables, x, structure, scales=None):
  h = embed(model, variables, x)
  for i, site in enumerate(sites_of(model)):
    scale = scales[site.start] if scales is not None and site.has_residual else None
    h = step(
      model, variables, i, h, [structure[k] for k in range(site.own.start, site.own.stop)], scale
    )
  return readout(model, variables, h)
