"""What a training will take, before anything of it is made: the step of the trainer, compiled for
shapes alone.

Of a pool too large for this machine, the step is compiled for as many devices as a mesh has; on CPU
these are forced host devices, of which nothing is asked but that they are there. XLA lays out every
array of the compiled step, and says how many bytes each device holds. `forecast` says the same by a
formula, and both stand side by side.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import PyTree

from additive_jax.batches import num_examples
from additive_jax.files.quantities import bytes_text, flops_text
from additive_jax.models import flops as flops_
from additive_jax.models.additive import shape_of
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import traffic
from additive_jax.parallel.placement import Placement
from additive_jax.train.augmented_steps import of_augmented
from additive_jax.train.forecast import Forecast, forecast
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import Sampler
from additive_jax.train.state import StateLayout, layout_of
from additive_jax.train.trainer import (
  EVERYWHERE,
  check_division,
  check_networks,
  chunk_program,
  gradient_on_mesh,
  row_spec,
)

OPERATIONS = 'a step, all devices'
# The code that XLA writes for the host is never run; how arrays are laid out does not depend on it.
QUICKLY = {'xla_backend_optimization_level': 0}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a step of training takes. `print` shows it as a table.

  Attributes:
    mesh: devices along each axis.
    num_params: of the pool.
    num_structures, batch_size: K, and the examples of each slot.
    held: bytes on each device, as XLA lays them out.
    moved: bytes that each device receives in a step, by the kind of collective, in the compiled
      program.
    flops: of a step, on all devices together, as `models.flops` counts the gradient; with all gates
      on.
    forecast: the same by a formula; None where it does not know the loss or the mesh.
    seconds: that tracing and compiling took.
  """

  mesh: dict[str, int]
  num_params: int
  num_structures: int
  batch_size: int
  held: traffic.Held
  moved: dict[str, float]
  flops: float
  forecast: Forecast | None
  seconds: float

  def rows(self) -> list[tuple[str, float | None, float | None]]:
    """Returns the rows of the table: what it is, by the formula, by XLA; bytes, and last FLOPs."""
    found, held = self.forecast, self.held
    of = lambda name: None if found is None else getattr(found, name)
    state = None if found is None else found.parameters + found.optimizer
    rows: list[tuple[str, Any, Any]] = [
      ('parameters', of('parameters'), None),
      ('optimizer', of('optimizer'), None),
      ('arguments: state and examples', state, held.arguments),
      ('sums of gradients', of('sums'), None),
      ('embed and readout, gathered', of('ends'), None),
      ('backward pass', of('backward'), None),
      ('activations among it', of('activations'), None),
      ('or update', of('update'), None),
      ('temporaries', of('temporaries'), held.temporaries),
      ('in all', of('total'), held.total),
    ]
    if found is not None and found.host:
      rows.append(("optimizer, in the host's memory", found.host, None))
    guesses = {} if found is None else found.moved
    for kind in sorted({*guesses, *self.moved}):
      guess, count = guesses.get(kind), self.moved.get(kind, 0.0)
      if max(guess or 0, count) >= 1e-3 * max(self.moved.values()):
        rows.append((f'received by {kind} in a step', guess, count))
    rows.append((OPERATIONS, of('flops'), self.flops))
    return rows

  def __str__(self) -> str:
    mesh = ' × '.join(f'{name} {size}' for name, size in self.mesh.items())
    head = (
      f'{self.num_params:,} parameters on {mesh}: {self.num_structures} structures a step, each on '
      f'{self.batch_size} examples, all gates on; compiled in {self.seconds:.0f} s'
    )
    lines = [
      head,
      '',
      '| on each device | formula | XLA | formula / XLA |',
      '| --- | --- | --- | --- |',
    ]
    for name, guess, count in self.rows():
      ratio = f'{guess / count:.2f}' if guess is not None and count else ''
      text = flops_text if name == OPERATIONS else bytes_text
      cells = ['' if value is None else text(value) for value in (guess, count)]
      lines.append(f'| {name} | {cells[0]} | {cells[1]} | {ratio} |')
    return '\n'.join(lines)


def plan(
  recipe: Recipe,
  sampler: Sampler,
  x: PyTree,
  y: PyTree,
  mesh: Mapping[str, int] | jax.sharding.Mesh,
  *,
  shared_batch: bool = False,
  zero: bool = False,
  offload: bool = False,
) -> Plan:
  """Returns what a step of a `Trainer` takes, which is compiled and not run; no array is made.

  >>> import optax
  >>> from additive_jax.train.recipe import Recipe
  >>> model = aj.models.MLP(num_blocks=2, width=16, hidden=64, num_classes=4)
  >>> recipe = Recipe(model, 'classification', optax.adam(0.01))
  >>> x, y = jax.ShapeDtypeStruct((8, 12), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
  >>> found = plan(recipe, aj.samplers.make_sampler('uniform', 2, 2), x, y, {'fsdp': 4})
  >>> found.num_params, found.mesh
  (4628, {'structure': 1, 'data': 1, 'fsdp': 4})

  Args:
    recipe, sampler: how to train, and what draws K structures a step.
    x, y: the shapes of the examples of one slot, [B, ...]; arrays will do.
    mesh: devices along `structure`, `data`, `fsdp` and so on, or a mesh, say of devices that are
      described (`jax.experimental.topologies`).
    shared_batch: whether all slots train on the same examples.
    zero, offload: see `placement.Placement`.

  Raises:
    UserError: for fewer devices than the mesh has; where slots and batches do not divide over it.
  """
  start = time.perf_counter()
  if not isinstance(mesh, jax.sharding.Mesh):
    mesh = mesh_.exact_mesh(mesh)
  x, y = jax.tree.map(shape_of, (x, y))
  placement = Placement(mesh, zero, offload, chunk_steps=1)
  example = _checked(recipe, sampler, x, mesh)
  layout = layout_of(recipe, placement, example)
  given = _arguments(layout, sampler, (x, y), shared_batch)
  state, drawn, key, count, inputs, _ = given
  program: Any = chunk_program(recipe, layout, example, shared_batch)
  quickly = QUICKLY if mesh.devices.flat[0].platform == 'cpu' else None
  compiled = program.lower(*given).compile(compiler_options=quickly)
  gradient = gradient_on_mesh(recipe, layout, example, shared_batch)
  gradient = of_augmented(gradient, recipe.augment, mesh, row_spec(mesh, shared_batch))
  traced = jax.jit(gradient).trace(state.params, count, count, drawn, key, inputs, ())
  found = forecast(recipe, layout, x, y, sampler.num_structures)
  return Plan(
    mesh=dict(mesh.shape),
    num_params=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    num_structures=sampler.num_structures,
    batch_size=num_examples(x),
    held=_held(traffic.held(compiled), found),
    moved=traffic.moved(compiled.as_text()),
    flops=flops_.count_traced(traced, 'a step'),
    forecast=found,
    seconds=time.perf_counter() - start,
  )


def _checked(recipe: Recipe, sampler: Sampler, x: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
  """Returns the shape of an example, once all has been looked at that a trainer looks at."""
  recipe.check_network(x)
  check_division(mesh, sampler, num_examples(x), recipe.accumulate)
  check_networks(recipe.model, sampler)
  recipe.loss.check_training(recipe, sampler, num_examples(x), mesh)
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)


def _held(held: traffic.Held, found: Forecast | None) -> traffic.Held:
  """Returns XLA's bytes, without what lies in the host's memory where it is counted as the
  device's, as on CPU, which has one memory."""
  host = 0 if found is None or held.host else found.host
  return held._replace(arguments=held.arguments - host, host=held.host + host)


def _arguments(
  layout: StateLayout, sampler: Sampler, batch: tuple[PyTree, PyTree], shared_batch: bool
) -> tuple[Any, ...]:
  """Returns what the program of a chunk of one step takes, as placed shapes."""
  everywhere = NamedSharding(layout.mesh, EVERYWHERE)
  rows = NamedSharding(layout.mesh, row_spec(layout.mesh, shared_batch))
  slots = 1 if shared_batch else sampler.num_structures

  def placed(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=everywhere)

  def chunk(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, slots, *leaf.shape), leaf.dtype, sharding=rows)

  key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
  drawn, key, count = jax.tree.map(placed, (sampler, key, np.int32(0)))
  return layout.abstract(), drawn, key, count, jax.tree.map(chunk, batch), ()
