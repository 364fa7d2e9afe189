"""The trainer: steps on device in compiled chunks, on one device or a mesh.

A step has K slots. Slot k draws its structure from the sampler and its examples from the order of
the data; both depend on the seed and the step alone. Devices share the slots out (mesh axis
`structure`) and may split each slot's batch (axis `data`), so one device gives the same numbers as
many, to rounding. So does what is drawn per example: each slot has a key of its own, and devices
that split a batch hold whole parts of it, see `subsets`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from additive_jax.batches import Shapes, cached, shapes_of
from additive_jax.data import Order, checked
from additive_jax.errors import UserError, checked_size
from additive_jax.gates import shares
from additive_jax.gates.networks import different
from additive_jax.models.additive import initial, space_of
from additive_jax.models.surrounding import surrounding
from additive_jax.parallel import layout as layout_
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.run.expected import expected_of
from additive_jax.train.augmented_steps import of_augmented
from additive_jax.train.device_slots import device_slots
from additive_jax.train.feed import feed_of
from additive_jax.train.gradients import Averaged, averaged_gradient, usage
from additive_jax.train.recipe import Recipe
from additive_jax.train.rule import average_of
from additive_jax.train.samplers import Listed, Sampler
from additive_jax.train.state import (
  State,
  StateLayout,
  apply_gradient,
  layout_of,
  run_in_chunks,
)
from additive_jax.train.statistics import has_statistics, of_all_on

AveragedOf: Any = Averaged  # of where each part lies
EVERYWHERE, BY_SLOT = PartitionSpec(), PartitionSpec(mesh_.STRUCTURE)


def row_spec(mesh: Mesh, shared_batch: bool) -> PartitionSpec:
  """Returns the placement of a chunk's examples [steps, slots, B]: every device gets its own slots
  and its share of each batch."""
  slots = None if shared_batch else mesh_.STRUCTURE
  return PartitionSpec(None, slots, mesh_.batch_axes(mesh))


def gradient_on_mesh(
  recipe: Recipe, layout: StateLayout, example: Shapes, shared_batch: bool
) -> Callable[..., Any]:
  """Returns the function that gives the `Averaged` gradient of a step on the mesh.

  It takes the pool, the number of the step and its place t in the chunk, the sampler and its key,
  the chunk's examples, and the data that these are numbers in, () if they are the examples.
  """
  mesh = layout.mesh
  reads = usage(recipe.model, example) if recipe.average == 'coverage' else None
  names = mesh_.manual_axes(mesh)
  axes = tuple(axis for axis in names if mesh.shape[axis] > 1)

  def gradient(params, step, t, sampler, key, inputs, data):
    batch = jax.tree.map(lambda a: a[t], inputs)
    if data:
      batch = jax.tree.map(lambda a: a[batch], data)
    slots = device_slots(mesh, sampler, key, step, batch, shared_batch)
    options = {'axes': axes, 'reads': reads, 'specs': layout.pool, 'leaves': layout.leaves}
    options['one_device'] = mesh.size == 1
    with surrounding(layout.around), shares.summing(layout.sums):
      return averaged_gradient(recipe, params, slots, **options)

  return jax.shard_map(
    gradient,
    mesh=mesh,
    in_specs=(layout.pool, *[EVERYWHERE] * 4, row_spec(mesh, shared_batch), EVERYWHERE),
    out_specs=AveragedOf(layout.pool, BY_SLOT, BY_SLOT, *[EVERYWHERE] * 3),
    axis_names=set(names),
    check_vma=False,  # the one reduction is written out in averaged_gradient, after differentiation
  )


@cached(maxsize=32)
def chunk_program(
  recipe: Recipe, layout: StateLayout, example: Shapes, shared_batch: bool
) -> Callable[..., Any]:
  """Returns the compiled program of up to `len(inputs)` steps; how many, and everything else that
  varies, is data."""
  # Compiled as a part of the whole; `jit` keeps its trace, which gives the shapes of metrics too.
  gradient = jax.jit(gradient_on_mesh(recipe, layout, example, shared_batch), inline=True)
  gradient = of_augmented(
    gradient, recipe.augment, layout.mesh, row_spec(layout.mesh, shared_batch)
  )
  curves = layout_.shardings(layout.mesh, PartitionSpec(None, mesh_.STRUCTURE))
  apply = functools.partial(apply_gradient, recipe, one_device=layout.mesh.size == 1)

  def steps(state, sampler, key, num_steps, inputs, data):
    shapes = jax.eval_shape(gradient, state.params, state.step, 0, sampler, key, inputs, data)
    limit = jax.tree.leaves(inputs)[0].shape[0]
    by_step = lambda leaf: jnp.zeros((limit, *leaf.shape), leaf.dtype)
    metrics = {
      'loss': by_step(shapes.loss),
      'finite': by_step(shapes.finite),
      'gradient_norm': jnp.zeros(limit),
      'facts': jax.tree.map(by_step, shapes.facts),
    }

    def body(t, carry):
      state, metrics = carry
      # Here too: else the loop carries a pool that ZeRO updates in parts in such parts, and each
      # step gathers it twice.
      state = jax.lax.with_sharding_constraint(state, layout.shardings)
      averaged = gradient(state.params, state.step, t, sampler, key, inputs, data)
      state, values = layout.storage.step(apply, state, averaged)
      put = lambda m, v: jax.lax.dynamic_update_index_in_dim(m, v, t, 0)
      metrics = jax.tree.map(put, metrics, values)
      for name in ('loss', 'finite'):
        metrics[name] = jax.lax.with_sharding_constraint(metrics[name], curves)
      return jax.lax.with_sharding_constraint(state, layout.shardings), metrics

    return jax.lax.fori_loop(0, num_steps, body, (state, metrics))

  everywhere = layout_.shardings(layout.mesh, EVERYWHERE)
  return jax.jit(steps, donate_argnums=0, out_shardings=(layout.shardings, everywhere))


class Trainer:
  """Trains one pool on one mesh.

  >>> import optax
  >>> from additive_jax.train.samplers import make_sampler
  >>> train = aj.data.ArraySplit(np.eye(6, dtype=np.float32), np.arange(6) % 3)
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> recipe = Recipe(model, 'classification', optax.adam(0.01))
  >>> trainer = Trainer(recipe, train, make_sampler('sandwich', 2, 2), batch_size=4, seed=0)
  >>> trainer.run(3)['loss'].shape, trainer.step
  ((3, 2), 3)

  Attributes:
    sharded_state: the current state as it lies on the mesh, see `state.StateLayout`; `state` gives
      the ordinary one.
    mesh: see `placement.Placement`.
    last_step: up to which examples are read ahead, where it is known; None where it is not.
  """

  last_step: int | None = None

  def __init__(
    self,
    recipe: Recipe,
    train: Any,
    sampler: Sampler,
    *,
    batch_size: int,
    seed: int,
    state: State | None = None,
    shared_batch: bool = False,
    placement: Placement | None = None,
  ):
    """Places data and state.

    Args:
      recipe: how to train.
      train: the training split, see `data`.
      sampler: draws K structures a step, see `samplers`.
      batch_size: B, examples of each slot and step.
      seed: names the initial pool, the order of the data and the draws of structures.
      state: to continue from, an ordinary one; None starts from `model.init` with the seed.
      shared_batch: all K slots train on the same B examples of a step.
      placement: how the steps run on devices; None is `Placement()`.

    Raises:
      UserError: where the slots, their batches or the model's experts or sites do not divide over
        the mesh, the parts of the model do not fit each other, the loss does not suit the sampler,
        the optimizer needs more than a gradient, the state is of another pool, labels, tokens or
        targets are not what the task and the model take, or loss or metrics give something else.
    """
    batch_size = checked_size(batch_size, 'batch_size')
    placement = placement or Placement()
    rows = 1 if shared_batch else sampler.num_structures
    order = Order(len(train), rows * batch_size, seed)
    x, y = train[np.zeros(1, np.int64)]
    recipe.check_network(x)
    expected = expected_of(recipe.model, recipe.task, x)
    self.recipe, self.sampler, self.batch_size = recipe, sampler, batch_size
    self.train: Any = checked(train, expected, 'train')
    recipe.check_task(x, y, batch_size)
    self.mesh = placement.mesh or default_mesh(recipe, sampler, batch_size)
    check_division(self.mesh, sampler, batch_size, recipe.accumulate)
    check_networks(recipe.model, sampler)
    recipe.loss.check_training(recipe, sampler, batch_size, self.mesh)
    self._statistics: tuple[int, PyTree] = (-1, {})
    self._has_statistics = has_statistics(recipe, x)
    key = jax.random.key(order.seed)
    self._key = jax.random.key_data(jax.random.fold_in(key, 1))
    self._sampler = mesh_.replicate(sampler, self.mesh)
    self._data = mesh_.replicate((train.x, train.y), self.mesh) if train.in_memory else ()
    put = functools.partial(mesh_.place, mesh=self.mesh, specs=row_spec(self.mesh, shared_batch))
    self._feed = feed_of(self.train, order, rows, placement.chunk_steps, put)
    example = shapes_of(x)
    self._layout = layout_of(recipe, dataclasses.replace(placement, mesh=self.mesh), example)
    self._program = chunk_program(recipe, self._layout, example, shared_batch)
    if state is None:
      params = initial(recipe.model, jax.random.fold_in(key, 0), x)['params']
      self.sharded_state = self._layout.start(params)
    else:
      self.state = state

  @property
  def state(self) -> State:
    """The current state in its ordinary form, the same on any mesh. Of several processes, all must
    get and set it together."""
    return self._layout.ordinary(self.sharded_state)

  @state.setter
  def state(self, state: State) -> None:
    self.sharded_state = self._layout.place(state)
    self._statistics = -1, {}

  @property
  def step(self) -> int:
    """Steps taken."""
    return int(processes.to_host(self.sharded_state.step))

  @property
  def variables(self) -> dict[str, PyTree]:
    """The pool as `{'params': pool}`; the next `run` reuses its memory, so copy what is to last.

    With BatchNorms it has `batch_stats` too: those of all-on on the first training examples, found
    by one pass where the pool has changed.
    """
    params = self._layout.ordinary_pool(self.sharded_state.params)
    if self._has_statistics and self._statistics[0] != self.step:
      self._statistics = self.step, self._all_on(params)
    return {'params': params, **self._statistics[1]}

  @property
  def averaged(self) -> dict[str, PyTree] | None:
    """The mean of the pool over the steps as `{'params': pool}`, where `Recipe.ema` or a
    schedule-free optimizer keeps one. Of several processes, all must get it together."""
    state = self.state
    mean = average_of(state.opt_state, state.params)
    return None if mean is None else {'params': mean, **self._all_on(mean)}

  def _all_on(self, params: PyTree) -> PyTree:
    return of_all_on(self.recipe, params, self.train) if self._has_statistics else {}

  def warm_up(self) -> None:
    """Compiles the program of a chunk, and takes no step."""
    self._take(0)

  def run(self, num_steps: int) -> dict[str, Any]:
    """Takes steps; the length of the last chunk needs no other program.

    Returns:
      `loss` [num_steps, K], `finite` [num_steps, K], `gradient_norm` [num_steps]; and of a loss
      that gives facts `facts`, each leaf [num_steps, ...].
    """
    metrics = run_in_chunks(self._take, num_steps, self._feed.chunk_steps)
    if not metrics['facts']:
      del metrics['facts']
    return metrics

  def _take(self, count):
    """Takes up to `chunk_steps` steps, and returns their metrics."""
    start = self.step
    end = start + count
    inputs = self._feed.chunk(start, count)
    self._feed.read_ahead(end, self.last_step)
    self.sharded_state, metrics = self._program(
      self.sharded_state, self._sampler, self._key, np.int32(count), inputs, self._data
    )
    return jax.tree.map(lambda values: values[:count], processes.to_host(metrics))

  def place_in_data(self) -> dict[str, Any]:
    """Returns where in an iterator the training stands, as JSON values that are saved beside the
    state; {} where the step says it."""
    return self._feed.place(self.step)

  def go_on_from(self, place: dict[str, Any]) -> None:
    """Goes on at a place in an iterator that `place_in_data` gave; the state is set first.

    Raises:
      UserError: for an iterator that gives something else there than before.
    """
    self._feed.restore(place)


def default_mesh(
  recipe: Recipe,
  sampler: Sampler,
  batch_size: int,
  devices: Sequence[jax.Device] | None = None,
  **spread: int,
) -> Mesh:
  """Returns the mesh of the most devices that the slots and their batches divide over.

  Args:
    devices: default all.
    spread: over how many devices one network is spread, as for `mesh.make_mesh`; the stages are
      those of the loss.
  """
  pipeline, parts = recipe.loss.stages(), recipe.loss.batch_parts(batch_size)
  if parts % recipe.accumulate == 0:  # else `check_division` says so
    parts //= recipe.accumulate
  stages = 1 if pipeline is None else pipeline.devices
  return mesh_.make_mesh(sampler.num_structures, parts, devices, pipe_devices=stages, **spread)


def check_networks(model: Any, sampler: Sampler) -> None:
  """Raises `UserError` for listed structures of which two that differ are one network; one that is
  listed again takes another slot."""
  if isinstance(sampler, Listed) and len(sampler.bits) > 1:
    bits, space = np.unique(processes.to_host(sampler.bits), axis=0), space_of(model)
    if bits.shape[1] == space.num_gates:  # else the first step says so
      different(space, bits, 'the listed sampler')


def check_division(mesh: Mesh, sampler: Sampler, batch_size: int, accumulate: int = 1) -> None:
  """Raises `UserError` where slots and batches do not divide over a mesh, or into pieces."""
  structure, data = mesh.shape[mesh_.STRUCTURE], mesh_.num_shares(mesh)
  if batch_size % (data * accumulate) and accumulate > 1:
    raise UserError(
      f'accumulate {accumulate} of a batch of {batch_size} on {data} devices: expected a number '
      'that divides the examples of each'
    )
  if sampler.num_structures % structure or batch_size % data:
    raise UserError(
      f'a mesh of {structure} × {data} devices for {sampler.num_structures} structures a step, '
      f'each on {batch_size} examples: expected numbers that divide'
    )
