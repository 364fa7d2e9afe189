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
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from additive_jax import run
from additive_jax.data import Order
from additive_jax.errors import UserError
from additive_jax.models.additive import initial
from additive_jax.parallel import layout, pipeline, processes, staging
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.zero import Storage
from additive_jax.train.balance import move_biases
from additive_jax.train.draws import check_draws
from additive_jax.train.gradients import Averaged, Draw, Recipe, averaged_gradient, usage


class State(NamedTuple):
  """What a step reads and writes.

  Attributes:
    params: the pool.
    opt_state: of the optimizer.
    step: int32 scalar, steps taken.
    skipped: int32 scalar, slots left out so far because their loss or gradient was not finite.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  skipped: jax.Array


def init_state(recipe: Recipe, variables) -> State:
  """The state before the first step, from `{'params': pool}`."""
  params = variables['params']
  return State(params, recipe.optimizer.init(params), jnp.int32(0), jnp.int32(0))


def train_step(recipe: Recipe, state: State, bits: jax.Array, batch, *, reads=None, draw=None):
  """One step of the pool, with all slots on one device and outside of any mesh; the arguments are
  those of `averaged_gradient`, and what it returns is that of `apply_gradient`.
  """
  found = averaged_gradient(recipe, state.params, bits, batch, reads=reads, draw=draw)
  return apply_gradient(recipe, state, found)


def apply_gradient(recipe: Recipe, state: State, found: Averaged):
  """The optimizer's part of a step, outside of `shard_map`: on whole arrays, however they lie on
  the mesh, so that norms are those of all of them.

  Returns:
    The new state, and a dict: `loss` [K], `finite` bool [K], `gradient_norm` [], and for models
    with routers `facts`, by site. When no slot is finite, or their average is not, the pool and the
    optimizer stay as they were.
  """
  updates, opt_state = recipe.optimizer.update(found.gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  if recipe.balance is not None:
    params = move_biases(recipe.balance, params, state.params, found.facts)
  norm = optax.tree.norm(found.gradient)
  # Gradients that are each finite may overflow in their sum.
  sound = (found.count > 0) & jnp.isfinite(norm)
  keep = lambda new, old: jnp.where(sound, new, old)
  params, opt_state = jax.tree.map(keep, (params, opt_state), (state.params, state.opt_state))
  skipped = state.skipped + found.finite.size - jnp.where(sound, found.count, 0)
  metrics = {
    'loss': found.loss,
    'finite': found.finite,
    'gradient_norm': norm,
    'facts': found.facts,
  }
  return State(params, opt_state, state.step + 1, skipped.astype(jnp.int32)), metrics


def state_specs(recipe: Recipe, mesh: Mesh, example: jax.ShapeDtypeStruct) -> State:
  """The layout of a state: a `State` of pytrees of `PartitionSpec`.

  Experts are split over the mesh axis `expert`, stages over `pipe`, with what the optimizer keeps
  of them; all else is on every device.

  Args:
    example: the shape of a batch of inputs.
  """
  variables = jax.eval_shape(recipe.model.init, jax.random.key(0), example)
  shapes = jax.eval_shape(
    lambda v: staging.on_mesh(recipe.model, recipe.pipeline, init_state(recipe, v), example),
    variables,
  )
  specs = staging.layout_of(recipe.model, recipe.pipeline, mesh, example)
  optimizer = layout.like_pool(shapes.opt_state, shapes.params, specs)
  return State(specs, optimizer, PartitionSpec(), PartitionSpec())


@functools.lru_cache(maxsize=32)
def _chunk(
  recipe: Recipe,
  mesh: Mesh,
  example,
  shared_batch: bool,
  gathered: bool,
  lay_out: Callable,
  zero: bool,
  offload: bool,
):
  """The compiled program of up to `len(inputs)` steps; how many, and everything else that varies,
  is data. Also the layout of the state that it takes and returns, and the storage of what its
  optimizer keeps.
  """
  experts = mesh.shape.get(mesh_.EXPERT, 1)
  local = dataclasses.replace(recipe, model=layout.local_model(recipe.model, experts))
  specs = staging.layout_of(recipe.model, recipe.pipeline, mesh, example)
  reads = usage(recipe.model, example) if recipe.average == 'coverage' else None
  axes = tuple(axis for axis in mesh.axis_names if mesh.shape[axis] > 1)
  rescaled = recipe.rescale != 'none' and recipe.subsets is None
  facts = {}
  if recipe.balance is not None:
    variables = jax.eval_shape(recipe.model.init, jax.random.key(0), example)
    facts = jax.eval_shape(lambda v, x: run.routed(recipe.model, v, x)[1], variables, example)
  everywhere, by_slot = PartitionSpec(), PartitionSpec(mesh_.STRUCTURE)

  def gradient(params, step, t, sampler, key, inputs, data):
    """What one device finds for step `step`, the chunk's t-th."""
    per_device = sampler.num_structures // mesh.shape[mesh_.STRUCTURE]
    first = jax.lax.axis_index(mesh_.STRUCTURE) * per_device
    slots = jnp.arange(per_device)
    now = jax.random.fold_in(jax.random.wrap_key_data(key), step)
    bits = jax.lax.dynamic_slice_in_dim(sampler(now, step), first, per_device)
    draw = Draw(jax.vmap(lambda slot: jax.random.fold_in(now, slot))(first + slots), step)
    if rescaled:
      draw = draw._replace(rates=sampler.rates(step))
    batch = jax.tree.map(lambda a: a[t], inputs)
    if gathered:
      batch = jax.tree.map(lambda a: a[batch], data)
    if shared_batch:
      repeat = lambda a: jnp.broadcast_to(a, (per_device, *a.shape[1:]))
      batch = jax.tree.map(repeat, batch)
    return averaged_gradient(
      local, params, bits, batch, axes=axes, reads=reads, draw=draw, specs=specs
    )

  gradient = jax.shard_map(
    gradient,
    mesh=mesh,
    in_specs=(specs, *[everywhere] * 4, _rows(shared_batch), everywhere),
    out_specs=Averaged(specs, by_slot, by_slot, everywhere, everywhere),
    check_vma=False,  # the one reduction is written out in averaged_gradient, after differentiation
  )
  lies = lay_out(recipe, mesh, example)
  variables = jax.eval_shape(recipe.model.init, jax.random.key(0), example)
  shapes = jax.eval_shape(
    lambda v: staging.on_mesh(recipe.model, recipe.pipeline, v['params'], example), variables
  )
  storage = Storage(recipe.optimizer, shapes, lies, mesh, zero=zero, offload=offload)
  of_state = layout.shardings(mesh, lies)._replace(opt_state=storage.shardings)
  curves = layout.shardings(mesh, PartitionSpec(None, mesh_.STRUCTURE))

  def steps(state, sampler, key, num_steps, inputs, data):
    limit, slots = jax.tree.leaves(inputs)[0].shape[0], sampler.num_structures
    metrics = {
      'loss': jnp.zeros((limit, slots)),
      'finite': jnp.zeros((limit, slots), bool),
      'gradient_norm': jnp.zeros(limit),
      'facts': jax.tree.map(lambda leaf: jnp.zeros((limit, *leaf.shape), leaf.dtype), facts),
    }

    def body(t, carry):
      state, metrics = carry
      found = gradient(state.params, state.step, t, sampler, key, inputs, data)
      state, values = storage.step(functools.partial(apply_gradient, recipe), state, found)
      metrics = jax.tree.map(lambda m, v: m.at[t].set(v), metrics, values)
      for name in ('loss', 'finite'):
        metrics[name] = jax.lax.with_sharding_constraint(metrics[name], curves)
      return jax.lax.with_sharding_constraint(state, of_state), metrics

    return jax.lax.fori_loop(0, num_steps, body, (state, metrics))

  whole = layout.shardings(mesh, everywhere)
  return jax.jit(steps, donate_argnums=0, out_shardings=(of_state, whole)), lies, storage


def _rows(shared_batch: bool) -> PartitionSpec:
  """Placement of a chunk's examples [steps, slots, B]: every device gets its own slots and its
  share of each batch.
  """
  return PartitionSpec(None, None if shared_batch else mesh_.STRUCTURE, mesh_.DATA)


class Trainer:
  """Trains one pool on one mesh.

  Attributes:
    held: the current `State`, on the mesh as `specs` says, of a pipeline with stages stacked; what
      the optimizer keeps of it, as `zero.Storage` does. See also `state`.
    mesh: axes `structure` and `data`, `expert` where experts are spread over devices, and `pipe`
      where stages are.
  """

  def __init__(
    self,
    recipe: Recipe,
    train,
    sampler,
    *,
    batch_size: int,
    seed: int,
    state: State | None = None,
    mesh: Mesh | None = None,
    chunk_steps: int = 100,
    shared_batch: bool = False,
    specs: Callable = state_specs,
    zero: bool = False,
    offload: bool = False,
  ):
    """Places data and state.

    Args:
      recipe: how to train.
      train: the training split, see `data`.
      sampler: draws K structures a step, see `samplers`.
      batch_size: B, examples of each slot and step.
      seed: names the initial pool, the order of the data and the draws of structures.
      state: to continue from, with the ordinary pool; None starts from `model.init` with the seed.
      mesh: default all devices, see `placement.make_mesh`.
      chunk_steps: the most steps that one call of the compiled program takes.
      shared_batch: all K slots train on the same B examples of a step, instead of on B of their
        own.
      specs: the layout of the state, a function like `state_specs`. Leaves of the pool that it
        splits in another way than experts are gathered in each step.
      zero, offload: what each device keeps of the optimizer's state, see `zero.Storage`.

    Raises:
      UserError: where the slots, their batches or the model's experts or sites do not divide over
        the mesh, or the recipe does not suit the sampler.
    """
    for name, value in (('batch_size', batch_size), ('chunk_steps', chunk_steps)):
      if value < 1:
        raise UserError(f'{name} {value}: expected at least 1')
    self.recipe, self.sampler, self.train = recipe, sampler, train
    self.batch_size, self.chunk_steps, self.shared_batch = batch_size, chunk_steps, shared_batch
    self.mesh = mesh or self._default_mesh()
    structure, data = (self.mesh.shape[axis] for axis in (mesh_.STRUCTURE, mesh_.DATA))
    if sampler.num_structures % structure or batch_size % data:
      raise UserError(
        f'a mesh of {structure} × {data} devices for {sampler.num_structures} structures a step, '
        f'each on {batch_size} examples: expected numbers that divide'
      )
    check_draws(recipe, sampler, batch_size, data)
    if recipe.pipeline is not None:
      pipeline.check_mesh(self.mesh, recipe.pipeline)
      pipeline.check_batch(batch_size // data, recipe.pipeline)
    self._rows = 1 if shared_batch else sampler.num_structures
    self._order = Order(len(train), self._rows * batch_size, seed)
    key = jax.random.key(seed)
    self._key = jax.random.key_data(jax.random.fold_in(key, 1))
    example = train[np.zeros(1, np.int64)][0]
    self._sampler = mesh_.replicate(sampler, self.mesh)
    self._data = mesh_.replicate((train.x, train.y), self.mesh) if train.in_memory else ()
    self._example = jax.ShapeDtypeStruct(example.shape, example.dtype)
    self._program, self._lies, self._storage = _chunk(
      recipe, self.mesh, self._example, shared_batch, train.in_memory, specs, zero, offload
    )
    if state is None:
      params = initial(recipe.model, jax.random.fold_in(key, 0), example)['params']
      params = self._on_mesh(processes.to_host(params))
      self.held = self._placed(State(params, (), np.int32(0), np.int32(0)))
      self.held = self.held._replace(opt_state=self._storage.init(self.held.params))
    else:
      self.state = state

  def _default_mesh(self):
    stages, size = self.recipe.pipeline, self.batch_size
    if stages is None:
      return mesh_.make_mesh(self.sampler.num_structures, size)
    return mesh_.make_mesh(
      self.sampler.num_structures, size // stages.microbatches, pipe_devices=stages.devices
    )

  @property
  def state(self) -> State:
    """The current state with the ordinary pool, in the optimizer's own form: the same however it is
    held. Of several processes, all must get and set it together."""
    whole = self.held._replace(opt_state=self._storage.unpack(self.held.opt_state))
    return self._ordinary(whole)

  @state.setter
  def state(self, state: State):
    if self.recipe.pipeline is not None:
      state = self._on_mesh(processes.to_host(state))
    opt_state = self._storage.place(state.opt_state)
    self.held = self._placed(state)._replace(opt_state=opt_state)

  def _on_mesh(self, tree):
    return staging.on_mesh(self.recipe.model, self.recipe.pipeline, tree, self._example)

  def _ordinary(self, tree):
    return staging.ordinary(self.recipe.model, self.recipe.pipeline, tree, self._example)

  def _placed(self, state):
    """All but the optimizer's part of a state, on the mesh."""
    rest, specs = (tree._replace(opt_state=()) for tree in (state, self._lies))
    return mesh_.place(processes.to_host(rest), self.mesh, specs)

  @property
  def step(self) -> int:
    return int(processes.to_host(self.held.step))

  @property
  def variables(self):
    """The pool as `{'params': pool}`; the next `run` reuses its memory, so copy what is to last."""
    return {'params': self._ordinary(self.held.params)}

  def warm_up(self) -> None:
    """Compiles the program of a chunk, and takes no step."""
    inputs = self._inputs(self.step, 0)
    self.held, _ = self._program(
      self.held, self._sampler, self._key, np.int32(0), inputs, self._data
    )

  def run(self, num_steps: int) -> dict[str, np.ndarray]:
    """Takes steps; the length of the last chunk needs no other program.

    Returns:
      `loss` [num_steps, K], `finite` [num_steps, K], `gradient_norm` [num_steps]; and of a model
      with routers `facts`, by site, each leaf [num_steps, ...].
    """
    if num_steps < 0:
      raise UserError(f'num_steps {num_steps}: expected 0 or more')
    num_slots = self.sampler.num_structures
    nothing = {
      'loss': np.zeros((0, num_slots), np.float32),
      'finite': np.zeros((0, num_slots), bool),
      'gradient_norm': np.zeros(0, np.float32),
    }
    collected, seen = [nothing], []
    while num_steps > 0:
      count = min(num_steps, self.chunk_steps)
      inputs = self._inputs(self.step, count)
      self.held, metrics = self._program(
        self.held, self._sampler, self._key, np.int32(count), inputs, self._data
      )
      facts = metrics.pop('facts')
      collected.append({name: value[:count] for name, value in processes.to_host(metrics).items()})
      if facts:
        seen.append(jax.tree.map(lambda leaf, count=count: leaf[:count], processes.to_host(facts)))
      num_steps -= count
    values = {name: np.concatenate([chunk[name] for chunk in collected]) for name in nothing}
    if seen:
      values['facts'] = jax.tree.map(lambda *chunks: np.concatenate(chunks), *seen)
    return values

  def _inputs(self, start, count):
    indices = self._order.indices(start, count).reshape(count, self._rows, self.batch_size)
    padding = [(0, self.chunk_steps - count), (0, 0), (0, 0)]
    if self.train.in_memory:
      inputs = np.pad(indices, padding)
    else:
      inputs = tuple(
        np.pad(a.reshape(*indices.shape, *a.shape[1:]), padding + [(0, 0)] * (a.ndim - 1))
        for a in self.train[indices.reshape(-1)]
      )
    return mesh_.place(inputs, self.mesh, _rows(self.shared_batch))
