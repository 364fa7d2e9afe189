"""The state of a training: what a step reads and writes, and how it lies on a mesh."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from additive_jax.batches import Shapes, cached
from additive_jax.errors import UserError
from additive_jax.models.additive import initial_shapes
from additive_jax.models.contract import differences
from additive_jax.parallel import layout, processes, shares, staging
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.placement import Placement
from additive_jax.parallel.zero import HOST, Storage
from additive_jax.train import rule
from additive_jax.train.gradients import Averaged, Slots, averaged_gradient, gradient_norm
from additive_jax.train.optimizers import check_optimizer
from additive_jax.train.recipe import Recipe, reads_by_parts


class State(NamedTuple):
  """The arrays that a step reads and writes.

  Attributes:
    params: the pool.
    opt_state: of the optimizer, with the mean of the pool where the recipe keeps one, see `rule`.
    step: steps taken.
    skipped: slots left out so far because their loss or gradient was not finite.
  """

  params: PyTree
  opt_state: PyTree
  step: Int[Array, '']
  skipped: Int[Array, '']


StateOf: Any = State  # of other things than arrays, such as where each lies


def init_state(recipe: Recipe, variables: dict[str, PyTree]) -> State:
  """Returns the state before the first step, from `{'params': pool}`.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> recipe = Recipe(model, 'classification', optax.sgd(0.1))
  >>> state = init_state(recipe, jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 6))))
  >>> int(state.step), int(state.skipped)
  (0, 0)

  Raises:
    UserError: for an optimizer that does not suit, see `optimizers.check_optimizer`.
  """
  params = variables['params']
  recipe.check_pool(params)
  check_optimizer(recipe.rule, params)
  opt_state = recipe.rule.init(params)
  rule.check_rates(opt_state, recipe.learning_rates)
  return State(params, opt_state, jnp.int32(0), jnp.int32(0))


def train_step(
  recipe: Recipe, state: State, slots: Slots, *, reads: PyTree | None = None
) -> tuple[State, dict[str, Any]]:
  """Returns what `apply_gradient` does for one step, with all slots on one device and no mesh.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> recipe, x = Recipe(model, 'classification', optax.sgd(0.1)), jnp.ones((1, 5, 6))
  >>> state = init_state(recipe, jax.jit(model.init)(jax.random.key(0), x[0]))
  >>> slots = Slots(jnp.array([[True, True]]), x, jnp.zeros((1, 5), int))
  >>> state, metrics = jax.jit(train_step, static_argnums=0)(recipe, state, slots)
  >>> int(state.step), metrics['loss'].shape
  (1, (1,))

  Args:
    slots, reads: as for `averaged_gradient`.
  """
  averaged = averaged_gradient(recipe, state.params, slots, reads=reads)
  return apply_gradient(recipe, state, averaged)


def apply_gradient(
  recipe: Recipe, state: State, averaged: Averaged, *, one_device: bool = True
) -> tuple[State, dict[str, Any]]:
  """Takes the optimizer's part of a step, outside of `shard_map`: on whole arrays, however they lie
  on the mesh, so that norms are those of all of them.

  Args:
    one_device: whether all arrays are on one device.

  Returns:
    The new state, and a dict: `loss` [K], `finite` bool [K], `gradient_norm` [] and `facts`. When
    no slot is finite, or their average is not, or the update would make numbers of the pool or of
    the optimizer that are not, these stay as they were, and all slots of the step are left out.

  Adam without epsilon divides 0 by 0 where a gradient is 0:

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> recipe, x = Recipe(model, 'classification', optax.adam(0.1, eps=0.0)), jnp.ones((1, 5, 6))
  >>> state = init_state(recipe, jax.jit(model.init)(jax.random.key(0), x[0]))
  >>> averaged = averaged_gradient(
  ...   recipe, state.params, Slots(jnp.array([[False]]), x, jnp.zeros((1, 5), int))
  ... )
  >>> state, metrics = apply_gradient(recipe, state, averaged)
  >>> int(state.skipped), metrics['finite'].tolist()
  (1, [False])
  """
  updates, opt_state = recipe.rule.update(averaged.gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  params = recipe.loss.adjust(params, state.params, averaged.facts)
  params = rule.kept_frozen(params, state.params, recipe.frozen)
  opt_state = rule.averaged(opt_state, params, state.step, recipe.ema)
  norm = averaged.norm
  if norm is None:
    norm = gradient_norm(averaged.gradient, one_device=one_device)
  before = (state.params, state.opt_state)
  # Gradients that are each finite may overflow in their sum.
  finite = jnp.stack([jnp.isfinite(norm), *_stay_finite((params, opt_state), before, one_device)])
  # A branch, for XLA would copy the sum of all of these into the update of every leaf.
  any_finite = averaged.num_finite > 0
  sound = jax.lax.cond(any_finite, jnp.all, lambda finite: jnp.zeros((), bool), finite)
  params, opt_state = _kept(sound, (params, opt_state), before, one_device)
  skipped = state.skipped + averaged.finite.size - jnp.where(sound, averaged.num_finite, 0)
  metrics = {
    'loss': averaged.loss,
    'finite': averaged.finite & sound,
    'gradient_norm': norm,
    'facts': averaged.facts,
  }
  return State(params, opt_state, state.step + 1, skipped.astype(jnp.int32)), metrics


def _kept(sound: Bool[Array, ''], new: PyTree, old: PyTree, one_device: bool) -> PyTree:
  """Returns what is new where it is sound, else what was before. On one device this is a branch,
  which copies memory: to choose takes a kernel for each leaf, which compile long."""
  if one_device:
    return jax.lax.cond(sound, lambda new, old: new, lambda new, old: old, new, old)
  return jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, old)


def _stay_finite(new: PyTree, old: PyTree, one_device: bool) -> list[Bool[Array, '']]:
  """Returns of some leaves at a time whether no number has become infinite or NaN; some optimizers
  begin with such. Leaves of one shape are looked at together where all are on one device: a kernel
  for each shape compiles much faster than one for each leaf."""
  pairs = [(a, b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old))]
  masks: dict[Any, list[Array]] = collections.defaultdict(list)
  for i, (a, b) in enumerate(pairs):
    if jnp.issubdtype(a.dtype, jnp.inexact):
      masks[a.shape if one_device else i].append(jnp.isfinite(a) | ~jnp.isfinite(b))
  return [functools.reduce(jnp.logical_and, group).all() for group in masks.values()]


def run_in_chunks(
  take: Callable[[int], dict[str, Any]], num_steps: int, chunk_steps: int
) -> dict[str, Any]:
  """Takes steps, and returns their metrics, with a leading axis of steps.

  Args:
    take: takes a number of steps, at most `chunk_steps`, and returns their metrics.

  >>> take = lambda count: {'loss': np.full(count, 1 / count)}
  >>> run_in_chunks(take, num_steps=5, chunk_steps=2)['loss'].tolist()
  [0.5, 0.5, 0.5, 0.5, 1.0]
  """
  if num_steps < 0:
    raise UserError(f'num_steps {num_steps}: expected 0 or more')
  counts = [min(chunk_steps, num_steps - i) for i in range(0, num_steps, chunk_steps)] or [0]
  return jax.tree.map(lambda *parts: np.concatenate(parts), *map(take, counts))


def state_specs(recipe: Recipe, mesh: Mesh, example: Shapes) -> State:
  """Returns the layout of a state: a `State` of pytrees of `PartitionSpec`.

  Leaves of the pool lie as `parallel.layout` says, in stages as `staging` does, and what the
  optimizer keeps lies like them.

  Args:
    example: the shape of a batch of inputs.
  """
  pipeline = recipe.loss.stages()
  variables = initial_shapes(recipe.model, example)
  shapes = jax.eval_shape(
    lambda v: staging.on_mesh(recipe.model, pipeline, init_state(recipe, v), example), variables
  )
  specs = staging.layout_of(recipe.model, pipeline, mesh, example)
  optimizer = layout.like_pool(shapes.opt_state, shapes.params, specs)
  return StateOf(specs, optimizer, PartitionSpec(), PartitionSpec())


class StateLayout:
  """How the state of one training lies on a mesh, and the way there and back.

  An ordinary state has the pool as `model.init` makes it and the optimizer's state in its own form.
  On the mesh its arrays are split over devices, of a pipeline with stages stacked, and the
  optimizer's state is kept as `zero.Storage` keeps it. Made by `layout_of`.

  Attributes:
    mesh: with all its axes.
    specs: that of a state without ZeRO, a `State` of pytrees of `PartitionSpec`.
    pool: the part of the pool's that `shard_map` writes out, a pytree of `PartitionSpec`.
    leaves: how leaves of the pool are gathered, a pytree of `layout.Leaf`; None where no axis of
      the mesh asks for it.
    around: what runs a part of the network on such a pool, see `models.surrounding`, or None.
    sums: how experts, hidden units and heads are summed, see `gates.shares`.
    storage: of what the optimizer keeps.
    shardings: of the whole state, a `State` of pytrees of `NamedSharding`.
    ordinary_shardings: of a state on the mesh in its ordinary form.
  """

  def __init__(self, recipe: Recipe, placement: Placement, example: Shapes):
    assert placement.mesh is not None
    self.mesh: Mesh = placement.mesh
    self.specs = state_specs(recipe, self.mesh, example)
    self.pool = layout.manual(self.specs.params)
    self.leaves = self.around = None
    if {mesh_.FSDP, mesh_.TENSOR} & set(self.mesh.axis_names):
      self.leaves = layout.pool_specs(recipe.model, self.mesh, example)
      if reads_by_parts(recipe.loss):
        self.around = layout.read_from(recipe.model, self.leaves, example)
    self.sums = shares.sums_on(self.mesh)
    self._forms = recipe.model, recipe.loss.stages()
    self._example = example
    variables = initial_shapes(recipe.model, example)
    self._shapes = shapes = jax.eval_shape(functools.partial(init_state, recipe), variables)
    in_stages = jax.eval_shape(self._in_stages, shapes.params)
    self.storage = Storage(recipe.rule, in_stages, self.specs, placement)
    shardings = layout.shardings(self.mesh, self.specs)
    self.shardings = shardings._replace(opt_state=self.storage.shardings)
    self.ordinary_shardings = self._ordinary_shardings(shapes, placement)
    self._enter = jax.jit(self._kept, out_shardings=self.shardings)
    self._enter_pool = jax.jit(self._in_stages, out_shardings=self.shardings.params)
    self._leave = jax.jit(self._unkept, out_shardings=self.ordinary_shardings)
    self._leave_pool = jax.jit(self._apart, out_shardings=self.ordinary_shardings.params)

  def abstract(self) -> State:
    """Returns the shapes of a state as it lies on the mesh, with their shardings."""
    placed = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(placed, jax.eval_shape(self._kept, self._shapes), self.shardings)

  def start(self, params: PyTree) -> State:
    """Returns the state on the mesh before the first step, from an ordinary pool."""
    params = mesh_.lay(processes.to_host(params), self.ordinary_shardings.params)
    if self._has_stages:
      params = self._enter_pool(params)
    step, skipped = mesh_.replicate((np.int32(0), np.int32(0)), self.mesh)
    return State(params, self.storage.init(params), step, skipped)

  def place(self, state: State) -> State:
    """Returns a copy of an ordinary state as it lies on the mesh; what is there in parts already,
    as `ordinary` gives it, goes by no host.

    Raises:
      UserError: for a state of another pool or another optimizer.
    """
    self._check(state)
    is_here = mesh_.is_on(self.mesh, state)
    if not is_here:
      state = mesh_.lay(processes.to_host(state), self.ordinary_shardings)
    return self._enter(_near(state)) if is_here or self._has_other_form else state

  def ordinary(self, state: State) -> State:
    """Returns a state on the mesh in its ordinary form, on the same devices. Of several processes,
    all must call this together."""
    return self._leave(_near(state)) if self._has_other_form else state

  def ordinary_pool(self, params: PyTree) -> PyTree:
    """Returns a pool on the mesh in the ordinary form, on the same devices."""
    return self._leave_pool(params) if self._has_stages else params

  def _check(self, state: State) -> None:
    if wrong := differences(state.params, self._shapes.params):
      raise UserError(f'a state whose pool has {wrong}: expected the pool of the model')
    if wrong := differences(state.opt_state, self._shapes.opt_state):
      raise UserError(f'a state whose optimizer keeps {wrong}: expected that of the recipe')

  @property
  def _has_stages(self) -> bool:
    return self._forms[1] is not None

  @property
  def _has_other_form(self) -> bool:
    return self._has_stages or self.storage.packs

  def _ordinary_shardings(self, shapes: State, placement: Placement) -> State:
    """Returns how an ordinary state lies on the mesh, a `State` of pytrees of `NamedSharding`."""
    if not self._has_stages:
      return self.shardings._replace(opt_state=self.storage.unpacked)
    params = staging.ordinary_specs(shapes.params, self.mesh)
    optimizer = layout.like_pool(shapes.opt_state, shapes.params, params)
    specs = StateOf(params, optimizer, PartitionSpec(), PartitionSpec())
    shardings = layout.shardings(self.mesh, specs)
    if not placement.offload:
      return shardings
    there = jax.tree.map(lambda sharding: sharding.with_memory_kind(HOST), shardings.opt_state)
    return shardings._replace(opt_state=there)

  def _in_stages(self, tree: PyTree) -> PyTree:
    return staging.on_mesh(*self._forms, tree, self._example)

  def _apart(self, tree: PyTree) -> PyTree:
    return staging.ordinary(*self._forms, tree, self._example)

  def _kept(self, state: State) -> State:
    state = self._in_stages(jax.tree.map(jnp.copy, state))
    return state._replace(opt_state=self.storage.pack(state.opt_state))

  def _unkept(self, state: State) -> State:
    return self._apart(state._replace(opt_state=self.storage.unpack(state.opt_state)))


def _near(state: State) -> State:
  """Returns a state with all arrays in the memory of their devices."""

  def near(leaf: jax.Array) -> jax.Array:
    if leaf.sharding.memory_kind != HOST:
      return leaf
    return jax.device_put(leaf, leaf.sharding.with_memory_kind('device'))

  return jax.tree.map(near, state)


@cached(maxsize=32)
def layout_of(recipe: Recipe, placement: Placement, example: Shapes) -> StateLayout:
  """Returns the layout of a training's states, the same object each time.

  Args:
    placement: with a mesh.
    example: the shape of a batch of inputs.
  """
  return StateLayout(recipe, placement, example)
