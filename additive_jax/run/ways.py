"""Three ways to run one structure of any additive model; `prefix.py` holds the fourth, for many at
once.

`variables` is `{'params': pool}` and `x` a batch of inputs [B, ...]; all return logits [B, ..., C].
They agree to rounding: the static form compiles once per structure, the others once for all.

`sampled` runs a random structure per example, by running each site on the examples that have it on.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from additive_jax.errors import UserError
from additive_jax.gates import subsets as subsets_
from additive_jax.gates.structure import parse
from additive_jax.gates.sums import is_static
from additive_jax.gates.traced import traced_structure
from additive_jax.models.additive import embed, gate_names, readout, sites_of, step
from additive_jax.models.routing import CHOICES, ROUTING


def static(model, variables, x: jax.Array, structure, *, scales=None) -> jax.Array:
  """The structure is Python: gates that are off leave no trace in the program.

  Args:
    structure: anything `Space.parse` takes.
    scales: float [n]; what a site with residual gate i adds is multiplied by `scales[i]`; None: 1.
  """
  structure = parse(structure, len(gate_names(model)))
  return _run(model, variables, x, structure, scales)


def conditional(model, variables, x: jax.Array, structure, *, scales=None) -> jax.Array:
  """The structure is traced; an off residual gate skips its site at run time, forward and backward.

  Args:
    structure: bool [n], or an integer scalar whose bit i is gate i (n ≤ 31).
    scales: as for `static`.

  Under `vmap` over structures every branch would run; map over them with `lax.map` or `lax.scan`.
  """
  return _run(model, variables, x, traced_structure(structure, len(gate_names(model))), scales)


def masked(model, variables, x: jax.Array, structure, *, scales=None) -> jax.Array:
  """Every branch is computed and multiplied by its gate, so gates may be soft and differ per
  example.

  Args:
    structure: float [n] for the whole batch, [B, n] per example or [B, T, n] per token.
    scales: as for `static`.
  """
  num_gates = len(gate_names(model))
  structure = jnp.asarray(structure)
  if structure.shape[-1:] != (num_gates,):
    raise UserError(f'gates of shape {structure.shape}: expected {num_gates} on the last axis')
  if structure.ndim > 1 and structure.shape[0] != len(x):
    raise UserError(f'gates of shape {structure.shape}: expected {len(x)} rows, one per example')
  structure = structure.astype(jnp.promote_types(structure.dtype, jnp.float32))
  return _run(model, variables, x, [structure[..., i] for i in range(num_gates)], scales)


def sampled(
  model,
  variables,
  x: jax.Array,
  key: jax.Array,
  keep_rates: Sequence[float],
  *,
  scales=None,
  parts: int = 1,
) -> jax.Array:
  """A random structure per example, at the cost of what is on: each gate runs on a random subset of
  fixed size of the batch.

  Gate i is on for exactly `subsets.size(keep_rates[i], B/parts)·parts` of the B examples, chosen
  independently of other gates; that number over B is its exact keep probability. The examples of a
  residual gate are gathered, the site runs on them alone, and the result is scattered back: nothing
  runs for a size of 0, and nothing is gathered for B. Inner gates (sub-activation, lane) have
  subsets of their own, as masks within their site; they save no work.

  Args:
    keep_rates: one for each gate, Python numbers in [0, 1].
    scales: as for `static`; 1 over the keep probability makes the mean over draws of what a site
      adds that of all examples.
    parts: equal parts of the batch that have a subset each; see `subsets`.

  Raises:
    UserError: for rates that are not n numbers in [0, 1], or parts that do not divide the batch.
  """
  num_gates = len(gate_names(model))
  if len(keep_rates) != num_gates:
    raise UserError(f'{len(keep_rates)} keep rates: expected {num_gates}, one per gate')
  plan = subsets_.Subsets((tuple(keep_rates),), parts=parts)
  chosen = subsets_.draw(key, keep_rates, plan.rows(len(x)), parts=parts)
  return gathered(model, variables, x, chosen, scales=scales)


def gathered(
  model, variables, x: jax.Array, subsets: Sequence[jax.Array], *, scales=None
) -> jax.Array:
  """Each residual gate on for its own examples, which are gathered, and off for the others.

  Args:
    subsets: for each gate the numbers of the examples it is on for, int [k_i], each once; all of
      them when k_i is B.
    scales: as for `static`.
  """
  h = embed(model, variables, x)
  batch = len(x)
  for i, site in enumerate(sites_of(model)):
    inner = _inner_gates(subsets[site.inner], batch)
    if not site.has_residual:
      h = step(model, variables, i, h, inner)
      continue
    scale = None if scales is None else scales[site.start]
    rows = subsets[site.start]
    if len(rows) == batch:
      h = step(model, variables, i, h, (True, *inner), scale)
    elif len(rows):
      part = h[rows]
      inner = [gate if is_static(gate) else gate[rows] for gate in inner]
      new = step(model, variables, i, part, (True, *inner), scale)
      h = h.at[rows].set(new, unique_indices=True)
  return readout(model, variables, h)


def _inner_gates(subsets, batch) -> tuple:
  """Gates of one site as Python bools where all are on or off for the whole batch, else as masks
  [B]: one site takes them in one form."""
  if all(len(rows) in (0, batch) for rows in subsets):
    return tuple(len(rows) == batch for rows in subsets)
  return tuple(jnp.moveaxis(subsets_.as_gates(subsets, batch), -1, 0))


def routed(model, variables, x: jax.Array, key: jax.Array | None = None) -> tuple[jax.Array, dict]:
  """All gates on, with what the model's routers did.

  Args:
    key: for routers that draw at random; None gives them the draw that evaluation has.

  Returns:
    logits [B, ..., C], and the facts of each site with a router by the name of its module; see
    `models.routing`.
  """
  rngs = {} if key is None else {ROUTING: key}
  outputs, left = model.apply(variables, x, mutable=[ROUTING], rngs=rngs)
  return outputs, _left(left, ROUTING)


def chosen(
  model, variables, x: jax.Array, key: jax.Array | None = None
) -> tuple[jax.Array, dict, dict]:
  """All gates on, with what the model's routers did and what every token chose.

  Args:
    key: as for `routed`.

  Returns:
    logits and facts as `routed` gives them, and the `models.routing.Chosen` of each site.
  """
  rngs = {} if key is None else {ROUTING: key}
  outputs, left = model.apply(variables, x, mutable=[ROUTING, CHOICES], rngs=rngs)
  return outputs, _left(left, ROUTING), _left(left, CHOICES)


def _left(collections, name) -> dict:
  return {site: value['left'] for site, value in collections.get(name, {}).items()}


def _run(model, variables, x, structure, scales=None):
  """The logits of a structure in any form whose slices are gates."""
  h = embed(model, variables, x)
  for i, site in enumerate(sites_of(model)):
    scale = scales[site.start] if scales is not None and site.has_residual else None
    h = step(model, variables, i, h, structure[site.gates], scale)
  return readout(model, variables, h)
