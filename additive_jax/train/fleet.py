"""Networks of one shape trained side by side, each on its own share of the examples.

The J pools stand along a leading axis that is split over the mesh axis `structure`: one network per
device, or several per device in turn. Every so many steps they may be replaced by their mean (local
SGD: Stich 2018, arXiv:1805.09767); between these no device waits for another.

    device 0: ─ network 0 ─ network 1 ─┐ mean of ┌─ network 0 ─ …
    device 1: ─ network 2 ─ network 3 ─┘ all J   └─ network 2 ─ …
                sync_every steps each
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Int, Shaped

from additive_jax.data import ArraySplit, Order, checked
from additive_jax.errors import UserError, checked_seed, checked_size
from additive_jax.files import keys as keys_
from additive_jax.gates.structure import Structure, StructureLike, parse
from additive_jax.models.additive import gate_names, initial
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.run.expected import expected_of
from additive_jax.train.augment import augmented
from additive_jax.train.gradients import Slots
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import State, init_state, run_in_chunks, train_step

log = logging.getLogger('additive_jax')

BY_NETWORK = PartitionSpec(mesh_.STRUCTURE)
BY_STEP = PartitionSpec(None, mesh_.STRUCTURE)


class Fleet:
  """Trains J networks in one structure, side by side.

  Each passes through its own group of examples in an order of its own, and all take the same number
  of steps, so those with small groups pass through them more often.

  Each network trains on one device. The most devices are used whose number divides J, so that one
  network alone uses one of them; the others stay idle, which is logged.

  >>> import optax
  >>> train = ArraySplit(np.eye(6, 4, dtype=np.float32), np.arange(6) % 2)
  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=4, num_classes=2)
  >>> recipe, groups = Recipe(model, 'classification', optax.sgd(0.1)), [[0, 1, 2], [3, 4, 5]]
  >>> fleet = Fleet(recipe, train, groups, batch_size=2, seed=0, devices=jax.devices()[:2])
  >>> fleet.run(3)['loss'].shape
  (3, 2)

  Attributes:
    state: a `State` whose leaves have a leading axis [J], but `step`, which all share.
    mesh: its axis `structure` divides J.
    structure: which all networks are.
  """

  def __init__(
    self,
    recipe: Recipe,
    train: ArraySplit,
    groups: Sequence[Sequence[int] | Int[np.ndarray, ' n']],
    *,
    structure: StructureLike | None = None,
    batch_size: int,
    seed: int,
    names: Sequence[int] | None = None,
    same_start: bool = True,
    sync_every: int = 0,
    devices: Sequence[jax.Device] | None = None,
    chunk_steps: int = 100,
  ):
    """Places data and initial states.

    Args:
      recipe: how to train; its average, collective and distillation play no part.
      train: the training split, in memory.
      groups: for each network the numbers of its examples.
      structure: which all of them are, default all-on.
      batch_size: B, examples of each network and step.
      seed: names the initial pool and the orders of the data.
      names: a number for each network, which together with the seed names its order of the data and
        its own start; default 0, 1, …
      same_start: whether all start from the pool that the seed names, or each from its own.
      sync_every: steps after which pools, and what optimizers keep, become their mean; 0 is never.
      devices: default all.
      chunk_steps: the most steps that one call of the compiled program takes.

    Raises:
      UserError: for no groups, an empty one, numbers out of range, or a loss that is none.
    """
    names, seed = range(len(groups)) if names is None else names, checked_seed(seed)
    _check(groups, names, len(train))
    x, y = train[np.zeros(1, np.int64)]
    recipe.check_network(x)
    checked(train, expected_of(recipe.model, recipe.task, x), 'train')
    sizes = checked_size(batch_size, 'batch_size'), checked_size(chunk_steps, 'chunk_steps')
    recipe.check_task(x, y, batch_size)
    if sync_every < 0:
      raise UserError(f'sync_every {sync_every}: expected 0 or more')
    self.recipe, (self.batch_size, self.chunk_steps) = recipe.alone(), sizes
    num_gates = len(gate_names(recipe.model))
    structure = Structure.all_on(num_gates) if structure is None else parse(structure, num_gates)
    self.structure = structure
    self.mesh = _mesh(len(groups), devices)
    self._groups = [np.asarray(group) for group in groups]
    self._orders = [
      Order(len(group), batch_size, int(np.random.SeedSequence([seed, name]).generate_state(1)[0]))
      for group, name in zip(groups, names)
    ]
    key = jax.random.fold_in(jax.random.key(seed), 0)
    keys = [key if same_start else jax.random.fold_in(key, name + 1) for name in names]
    self.state = self._start(keys, x)
    self._dropout = mesh_.place(_dropout_keys(key, names), self.mesh, BY_NETWORK)
    self._bits = mesh_.replicate(np.array(structure.bits), self.mesh)
    self._data = mesh_.replicate((train.x, train.y), self.mesh)
    self._program = _program(self.recipe, self.mesh, sync_every)

  def _start(self, keys, x):
    """Returns the states before the first step on the mesh, of the pools that the keys name."""
    states = [init_state(self.recipe, initial(self.recipe.model, key, x)) for key in keys]
    stack = lambda *leaves: keys_.like(np.stack([*map(keys_.as_numpy, leaves)]), leaves[0])
    state = jax.tree.map(stack, *states)
    state = state._replace(step=np.int32(0))
    specs = jax.tree.map(lambda _: BY_NETWORK, state)._replace(step=PartitionSpec())
    return mesh_.place(state, self.mesh, specs)

  @property
  def step(self) -> int:
    """Steps taken."""
    return int(processes.to_host(self.state.step))

  @property
  def size(self) -> int:
    """J."""
    return len(self._groups)

  def members(self) -> list[State]:
    """Returns the state of each network, on the host."""
    state = processes.to_host(self.state)
    state = state._replace(step=np.full(self.size, state.step))
    return [jax.tree.map(lambda leaf, j=j: leaf[j], state) for j in range(self.size)]

  def warm_up(self) -> None:
    """Compiles, and takes no step."""
    self._take(0)

  def run(self, num_steps: int) -> dict[str, Shaped[np.ndarray, 'steps ...']]:
    """Takes steps.

    Returns:
      `loss` [num_steps, J], `finite` [num_steps, J], `gradient_norm` [num_steps], mean over the
      networks.
    """
    return run_in_chunks(self._take, num_steps, self.chunk_steps)

  def _take(self, count):
    """Takes up to `chunk_steps` steps, and returns their metrics."""
    start = self.step
    rows = np.zeros((self.chunk_steps, self.size, self.batch_size), np.int32)
    for j, (group, order) in enumerate(zip(self._groups, self._orders)):
      rows[:count, j] = group[order.indices(start, count)]
    rows = mesh_.place(rows, self.mesh, BY_STEP)
    self.state, metrics = self._program(
      self.state, self._bits, np.int32(count), rows, self._data, self._dropout
    )
    metrics = {name: value[:count] for name, value in processes.to_host(metrics).items()}
    return metrics | {'gradient_norm': metrics['gradient_norm'].mean(1)}


def _dropout_keys(key, names):
  """Returns the numbers of the keys of what networks drop, [J, ...]; steps are folded into them."""
  keys = [jax.random.fold_in(jax.random.fold_in(key, 1), name) for name in names]
  return np.stack([np.asarray(jax.random.key_data(key)) for key in keys])


def _check(groups, names, num_examples):
  """Raises `UserError` for groups of which no fleet can be made."""
  empty = [i for i, group in enumerate(groups) if not len(group)]
  if empty or not len(groups):
    raise UserError(f'{len(groups)} groups, of which {empty} are empty: expected some examples')
  ends = [int(end) for group in groups for end in (np.min(group), np.max(group))]
  outside = [i for i in ends if not 0 <= i < num_examples]
  if outside:
    raise UserError(
      f'example {outside[0]} of a group: expected a number from 0 to {num_examples - 1}'
    )
  if len(names) != len(groups):
    raise UserError(f'names {list(names)} of {len(groups)} groups: expected one for each')


def _mesh(size: int, devices: Sequence[jax.Device] | None) -> Mesh:
  """Returns the mesh of `size` networks, on the most devices that divide them."""
  devices = list(jax.devices() if devices is None else devices)
  used = max(count for count in range(1, len(devices) + 1) if size % count == 0)
  # Of several processes all devices take part, or `make_mesh` says so.
  if used < len(devices) and jax.process_count() == 1:
    networks = '1 network trains' if size == 1 else f'{size} networks train'
    log.warning('%s on %d of %d devices, each whole on one', networks, used, len(devices))
    devices = devices[:used]
  return mesh_.make_mesh(size, 1, devices)


@functools.lru_cache(maxsize=8)
def _program(recipe: Recipe, mesh: Mesh, sync_every: int) -> Callable[..., Any]:
  """Returns the compiled program of up to `len(rows)` steps of all networks."""

  def mean(leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
      return leaf
    whole = jax.lax.pmean(leaf.mean(0, keepdims=True), mesh_.STRUCTURE)
    return jnp.broadcast_to(whole, leaf.shape)

  def steps(state, bits, num_steps, rows, data, dropout):
    limit, local, _ = rows.shape
    metrics = {
      'loss': jnp.zeros((limit, local)),
      'finite': jnp.zeros((limit, local), bool),
      'gradient_norm': jnp.zeros((limit, local)),
    }

    def step_of_one(inputs):
      state, rows, dropout = inputs
      x, y = jax.tree.map(lambda a: a[rows][None], data)
      key = jax.random.fold_in(jax.random.wrap_key_data(dropout), state.step)
      x, y = augmented(recipe.augment, key[None], x, y)
      state, values = train_step(recipe, state, Slots(bits[None], x, y, dropout=key[None]))
      return state, {name: jnp.squeeze(values[name]) for name in metrics}

    def body(t, carry):
      state, metrics = carry
      step = state.step + 1
      networks = state._replace(step=jnp.full(local, state.step))
      # In turn, not under vmap: gates stay conditionals, and convolutions fast.
      networks, values = jax.lax.map(step_of_one, (networks, rows[t], dropout))
      pools = (networks.params, networks.opt_state)
      if sync_every:
        # The step is the same on all devices, so all of them meet in the mean or none.
        pools = jax.lax.cond(
          step % sync_every == 0, lambda p: jax.tree.map(mean, p), lambda p: p, pools
        )
      state = State(pools[0], pools[1], step, networks.skipped)
      return state, jax.tree.map(lambda m, v: m.at[t].set(v), metrics, values)

    return jax.lax.fori_loop(0, num_steps, body, (state, metrics))

  states = State._make((BY_NETWORK, BY_NETWORK, PartitionSpec(), BY_NETWORK))
  return jax.jit(
    jax.shard_map(
      steps,
      mesh=mesh,
      in_specs=(states, PartitionSpec(), PartitionSpec(), BY_STEP, PartitionSpec(), BY_NETWORK),
      out_specs=(states, BY_STEP),
      check_vma=False,  # nothing here is differentiated across devices
    ),
    donate_argnums=0,
  )
