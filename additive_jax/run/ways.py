"""Ways to run structures of any additive model; `prefix` has the one for many structures at once.

`variables` is `{'params': pool}` and `x` a batch of inputs [B, ...], an array or a pytree of
arrays; all return logits [B, ..., C].
`static`, `conditional` and `masked` agree to rounding: the static way compiles once per structure,
the others once for all.

>>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
>>> x = np.ones((5, 6), np.float32)
>>> variables = model.init(jax.random.key(0), x)
>>> outputs = [run(model, variables, x, '10') for run in (static, conditional)]
>>> outputs.append(masked(model, variables, x, [1.0, 0.0]))
>>> [bool(jnp.allclose(outputs[0], other)) for other in outputs]
[True, True, True]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from additive_jax.batches import num_examples
from additive_jax.batches import rows as rows_
from additive_jax.errors import UserError
from additive_jax.gates import subsets as subsets_
from additive_jax.gates.routers import Facts
from additive_jax.gates.structure import Structure, StructureLike, parse
from additive_jax.gates.sums import is_static
from additive_jax.gates.traced import traced_structure
from additive_jax.models.additive import (
  Inputs,
  Logits,
  embed,
  gate_names,
  readout,
  sites_of,
  step,
)
from additive_jax.models.alike import steps_leaving, stretches
from additive_jax.models.contract import check_pool
from additive_jax.models.routing import CHOICES, ROUTING, Chosen
from additive_jax.models.side import stream_of, with_stream
from additive_jax.models.surrounding import examples

Scales = Float[Array | np.ndarray, 'n'] | Sequence[float]


def static(
  model: nn.Module,
  variables: PyTree,
  x: Inputs,
  structure: StructureLike,
  *,
  scales: Scales | None = None,
) -> Logits:
  """Returns the logits of one structure that is Python: gates that are off leave no trace in the
  program.

  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((2, 6))
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> static(model, variables, x, '1').shape
  (2, 3)

  Args:
    structure: anything `Space.parse` takes.
    scales: what a site with residual gate i adds is multiplied by `scales[i]`; None is 1.
  """
  structure = parse(structure, len(gate_names(model)))
  check_pool(model, variables, x, structure)
  return _run(model, variables, x, structure, scales)


def conditional(
  model: nn.Module,
  variables: PyTree,
  x: Inputs,
  structure: StructureLike | ArrayLike,
  *,
  scales: Scales | None = None,
) -> Logits:
  """Returns the logits of one structure that is traced: an off residual gate skips its site at run
  time, forward and backward.

  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((2, 6))
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> logits = jax.jit(conditional, static_argnums=0)  # compiled once, for every structure
  >>> [logits(model, variables, x, jnp.array([on])).shape for on in (False, True)]
  [(2, 3), (2, 3)]

  Args:
    structure: bool [n], or an integer scalar whose bit i is gate i (n ≤ 31).
    scales: as for `static`.

  Under `vmap` over structures every branch would run; map over them with `lax.map` or `lax.scan`.
  """
  structure = traced_structure(structure, len(gate_names(model)))
  check_pool(model, variables, x)
  return _run(model, variables, x, structure, scales)


def masked(
  model: nn.Module,
  variables: PyTree,
  x: Inputs,
  structure: StructureLike | ArrayLike | Sequence[float],
  *,
  scales: Scales | None = None,
) -> Logits:
  """Returns the logits with every branch computed and multiplied by its gate, so that gates may be
  soft and differ per example.

  Args:
    structure: numbers [n] for the whole batch, [B, n] per example or [B, T, n] per token; or
      anything `Space.parse` takes.
    scales: as for `static`.

  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((2, 6))
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> by_example = masked(model, variables, x, [[0.0], [1.0]])
  >>> bool(jnp.allclose(by_example[1], static(model, variables, x, '1')[1]))
  True
  """
  num_gates = len(gate_names(model))
  if isinstance(structure, str | Structure | int | np.integer):
    structure = parse(structure, num_gates).bits  # type: ignore[arg-type]  # an integer of NumPy
  structure = jnp.asarray(structure)
  if structure.shape[-1:] != (num_gates,):
    raise UserError(f'gates of shape {structure.shape}: expected {num_gates} on the last axis')
  if structure.ndim > 1 and structure.shape[0] != num_examples(x):
    raise UserError(
      f'gates of shape {structure.shape}: expected {num_examples(x)} rows, one per example'
    )
  structure = structure.astype(jnp.promote_types(structure.dtype, jnp.float32))
  check_pool(model, variables, x)
  return _run(model, variables, x, [structure[..., i] for i in range(num_gates)], scales)


def sampled(
  model: nn.Module,
  variables: PyTree,
  x: Inputs,
  key: PRNGKeyArray,
  keep_rates: Sequence[float],
  *,
  scales: Scales | None = None,
  parts: int = 1,
) -> Logits:
  """Returns the logits with a random structure per example, at the cost of what is on: each gate
  runs on a random subset of fixed size of the batch.

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

  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((8, 6))
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> draw = jax.jit(lambda key: sampled(model, variables, x, key, keep_rates=(0.5,)))
  >>> draw(jax.random.key(1)).shape
  (8, 3)
  """
  num_gates = len(gate_names(model))
  if len(keep_rates) != num_gates:
    raise UserError(f'{len(keep_rates)} keep rates: expected {num_gates}, one per gate')
  plan = subsets_.Subsets((tuple(keep_rates),), parts=parts)
  chosen = subsets_.draw(key, keep_rates, plan.rows(num_examples(x)), parts=parts)
  return gathered(model, variables, x, chosen, scales=scales)


def gathered(
  model: nn.Module,
  variables: PyTree,
  x: Inputs,
  subsets: Sequence[Int[Array, '_']],
  *,
  scales: Scales | None = None,
) -> Logits:
  """Returns the logits with each residual gate on for its own examples, which are gathered, and off
  for the others.

  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((4, 6))
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> logits = jax.jit(gathered, static_argnums=0)(model, variables, x, [jnp.array([3, 0])])
  >>> (logits == logits[0]).all(axis=1).tolist()  # all examples are the same
  [True, False, False, True]

  Args:
    subsets: for each gate the numbers of the examples it is on for, each once; all of them where
      there are B.
    scales: as for `static`.
  """
  check_pool(model, variables, x)
  h = embed(model, variables, x)
  batch = num_examples(x)
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
      part = rows_(h, rows)
      inner = [gate if is_static(gate) else gate[rows] for gate in inner]
      with examples(rows):
        new = step(model, variables, i, part, (True, *inner), scale)
      h = with_stream(h, stream_of(h).at[rows].set(stream_of(new), unique_indices=True))
  return readout(model, variables, h)


def _inner_gates(subsets, batch):
  """Returns the gates of one site as Python bools where all are on or off for the whole batch, else
  as masks [B]: one site takes them in one form."""
  if all(len(rows) in (0, batch) for rows in subsets):
    return tuple(len(rows) == batch for rows in subsets)
  return tuple(jnp.moveaxis(subsets_.as_gates(subsets, batch), -1, 0))


def routed(
  model: nn.Module, variables: PyTree, x: Inputs, key: PRNGKeyArray | None = None
) -> tuple[Logits, dict[str, Facts]]:
  """Returns the logits with all gates on, and the facts of each site with a router by its name.

  Args:
    key: for routers that draw at random; None gives them the draw that evaluation has.

  >>> from additive_jax.models import Experts, Transformer
  >>> model = Transformer(1, 8, 2, 16, 3, num_tokens=5, causal=True, routing=Experts(4, top_k=1))
  >>> x = np.zeros((2, 4), np.uint8)
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> outputs, facts = jax.jit(routed, static_argnums=0)(model, variables, x)
  >>> {site: router.load.shape for site, router in facts.items()}
  {'block_00__mlp': (4,)}
  """
  check_pool(model, variables, x)
  outputs, left = _leaving(model, variables, x, key, (ROUTING,))
  return outputs, left[ROUTING]


def chosen(
  model: nn.Module, variables: PyTree, x: Inputs, key: PRNGKeyArray | None = None
) -> tuple[Logits, dict[str, Facts], dict[str, Chosen]]:
  """Returns logits and facts as `routed` does, and what every token chose at each site.

  >>> from additive_jax.models import Experts, Transformer
  >>> model = Transformer(1, 8, 2, 16, 3, num_tokens=5, causal=True, routing=Experts(4, top_k=1))
  >>> x = np.zeros((2, 4), np.uint8)
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> _, _, choices = jax.jit(chosen, static_argnums=0)(model, variables, x)
  >>> {site: choice.indices.shape for site, choice in choices.items()}
  {'block_00__mlp': (2, 4, 1)}
  """
  check_pool(model, variables, x)
  outputs, left = _leaving(model, variables, x, key, (ROUTING, CHOICES))
  return outputs, left[ROUTING], left[CHOICES]


def _leaving(model, variables, x, key, names):
  """Returns the logits with all gates on, and by name of a collection what sites left in it."""
  rngs = {} if key is None else {ROUTING: key}
  left: dict[str, dict[str, Any]] = {name: {} for name in names}
  h = embed(model, variables, x)
  for sites in stretches(model):
    h, collections = steps_leaving(model, variables, sites, h, names, rngs)
    for name, of_sites in collections.items():
      left[name] |= of_sites
  return readout(model, variables, h), left


def _run(model, variables, x, structure, scales=None):
  """Returns the logits of a structure in any form whose slices are gates."""
  h = embed(model, variables, x)
  for i, site in enumerate(sites_of(model)):
    scale = scales[site.start] if scales is not None and site.has_residual else None
    h = step(model, variables, i, h, structure[site.gates], scale)
  return readout(model, variables, h)
