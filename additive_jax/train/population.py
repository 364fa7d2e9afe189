"""Many networks trained each by itself: one compiled program for every structure, spread over cores
or devices.

Each worker thread trains one structure at a time with `state.train_step`, as a program of its own
that uses one core: on CPU a network of small matmuls gains little from a second core, while two
networks side by side gain all of it.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from additive_jax.data import Data, Order, checked
from additive_jax.errors import UserError, checked_seed
from additive_jax.files.waiting import waiting_for
from additive_jax.gates.networks import canonical
from additive_jax.gates.structure import Structure, StructureLike
from additive_jax.models.additive import initial, space_of
from additive_jax.models.contract import differences
from additive_jax.parallel import processes, workers
from additive_jax.run.evaluate import evaluate_one
from additive_jax.run.expected import expected_of
from additive_jax.run.recalibration import BATCH_SIZE, NUM_BATCHES, statistics_of_one
from additive_jax.run.tasks import LOSS
from additive_jax.train.augment import augmented
from additive_jax.train.gradients import Slots
from additive_jax.train.recipe import Recipe
from additive_jax.train.rule import average_of
from additive_jax.train.state import State, init_state, train_step


@dataclasses.dataclass(frozen=True)
class Scored:
  """What one pool scored.

  Attributes:
    scores: loss and metrics on the test split, by name.
    valid: the same on the split to choose by; {} where there is none.
  """

  scores: dict[str, float]
  valid: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def chosen(self) -> Mapping[str, float]:
    """Those that structures are chosen by: on `valid`, or on the test split where there is none."""
    return self.valid or self.scores

  @property
  def loss(self) -> float:
    """The loss on the test split."""
    return self.scores[LOSS]

  @property
  def columns(self) -> dict[str, float]:
    """Those that structures are chosen by, and beside them those on the test split as `test_loss`
    and so on.

    >>> Scored({'loss': 0.5}, {'loss': 0.25}).columns, Scored({'loss': 0.5}).columns
    ({'loss': 0.25, 'test_loss': 0.5}, {'loss': 0.5})
    """
    tested = {f'test_{name}': value for name, value in self.scores.items() if self.valid}
    return {**self.chosen, **tested}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member(Scored):
  """One trained network, and what it scored.

  Attributes:
    structure: what was trained.
    state: its final `State`, on the worker's device.
    train_loss: mean over the last tenth of all steps from 0 on, at least one.
    skipped: steps whose loss or gradient was not finite.
    averaged: what the mean of the pool over the steps scored, where the recipe keeps one.
  """

  structure: Structure
  state: State
  train_loss: float
  skipped: int
  averaged: Scored | None = None


class Population:
  """Trains structures alone, all from the same init, on the same examples in the same order.

  What one member becomes does not depend on which others are trained, in what order, or on which
  worker.

  >>> import optax
  >>> split = aj.data.ArraySplit(np.eye(6, dtype=np.float32), np.arange(6) % 2)
  >>> data = Data('rows', 'classification', train=split, test=split, num_outputs=2)
  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=4, num_classes=2)
  >>> recipe = Recipe(model, 'classification', optax.sgd(0.1))
  >>> population = Population(recipe, data, batch_size=2, seed=0)
  >>> sorted(str(member.structure) for member in population.train(['0', '1'], stop=3))
  ['0', '1']
  """

  def __init__(
    self,
    recipe: Recipe,
    data: Data,
    *,
    batch_size: int,
    seed: int,
    devices: Sequence[jax.Device] | None = None,
    variables: PyTree | None = None,
  ):
    """Compiles nothing yet.

    Args:
      recipe: how to train; its average, collective and distillation play no part.
      data: with splits that fit in memory.
      batch_size: B.
      seed: names the initial pool and the order of the data.
      devices: one per worker thread, see `parallel.workers`.
      variables: `{'params': pool}` that all start from; None is the pool that the seed names.

    Raises:
      UserError: for splits that stay in their source, a model whose parts do not fit each other, an
        optimizer that needs more than a gradient, labels, tokens or targets that are not what the
        task and the model take, or a loss or metric that gives something else than expected.
    """
    if not all(split.in_memory for split in data.splits.values()):
      raise UserError(
        f'data {data.name!r} is read from its source as needed: expected a set within '
        'config.data.memory_limit'
      )
    self.recipe, self.batch_size, self.seed = recipe.alone(), batch_size, checked_seed(seed)
    self.devices = workers.workers(devices)
    self._order = Order(len(data.train), batch_size, self.seed)
    key = jax.random.fold_in(jax.random.key(self.seed), 0)
    example, y = data.train[np.zeros(1, np.int64)]
    recipe.check_network(example)
    expected = expected_of(recipe.model, recipe.task, example)
    for part, split in data.splits.items():
      checked(split, expected, f'{data.name}, {part}')
    recipe.check_task(example, y, batch_size)
    start = initial(recipe.model, key, example) if variables is None else variables
    self.variables = processes.to_host(start)
    judged: list[Any] = [data.test] if data.valid is None else [data.test, data.valid]
    self._facts = [recipe.task.facts(split.y) for split in judged]
    arrays_of = lambda split: (split.x, split.y)
    arrays = [arrays_of(data.train), [*map(arrays_of, judged)]]
    first = processes.to_host(init_state(self.recipe, self.variables))
    different = set(self.devices)
    self._placed = {device: jax.device_put((first, *arrays), device) for device in different}
    # Beside the key of the pool; the same for all members, whose steps it is folded with.
    self._dropout = jax.random.key_data(jax.random.fold_in(jax.random.key(self.seed), 2))
    self._compiled: set[tuple[jax.Device, int]] = set()
    self._locks = {device: threading.Lock() for device in different}

  def train(
    self,
    structures: Iterable[StructureLike],
    stop: int,
    *,
    states: Mapping[Structure, State] | None = None,
    start: int = 0,
  ) -> Iterator[Member]:
    """Trains each structure from step `start` to step `stop`; yields members as they end.

    Args:
      structures: in any form, see `Space.parse`. Those that are one network are trained once, and
        each has a member.
      states: where to go on from, by structure, when `start` is not 0.
    """
    if bool(start) != bool(states) or not start < stop:
      raise UserError(
        f'training from step {start} to {stop} with {len(states or {})} states: expected a later '
        'end, and states if and only if the start is not 0'
      )
    for state in (states or {}).values():
      if wrong := differences(state.params, self.variables['params']):
        raise UserError(f'a state whose pool has {wrong}: expected the pool of the model')
    space = space_of(self.recipe.model)
    of_network: dict[bytes, list[Structure]] = {}
    for structure in dict.fromkeys(map(space.parse, structures)):
      network = canonical(space, [structure])[0].tobytes()
      of_network.setdefault(network, []).append(structure)
    indices = self._order.indices(start, stop - start)
    # A share of all steps, so that training taken up again reports the same.
    tail = np.int32(max(1, min(stop // 10, len(indices))))

    def work(same, device):
      structure = same[0]
      first, train, judged = self._placed[device]
      state = jax.device_put(states[structure], device) if states else first
      bits = np.array(structure.bits)
      program = _program(self.recipe, device.platform)
      arguments = state, bits, indices, tail, train, judged, self._dropout
      if (device, len(indices)) in self._compiled:
        return self._member(structure, program(*arguments))
      with self._locks[device]:  # else every thread would compile the same program
        with waiting_for('compiling, and training the first network alone'):
          member = self._member(structure, program(*arguments))
        self._compiled.add((device, len(indices)))
        return member

    for same, member in workers.spread(list(of_network.values()), work, self.devices):
      yield from (dataclasses.replace(member, structure=structure) for structure in same)

  def _member(self, structure, result):
    state, train_loss, every = result
    on_splits = lambda of_pool: list(map(self._finished, jax.device_get(of_pool), self._facts))
    pool, *means = (Scored(*on_splits(of_pool)) for of_pool in every)
    return Member(
      structure=structure,
      state=state,
      scores=pool.scores,
      valid=pool.valid,
      train_loss=float(train_loss),
      skipped=int(state.skipped),
      averaged=means[0] if means else None,
    )

  def _finished(self, sums, facts):
    # As those of pools are finished, so that equal counts give equal accuracies.
    scores = self.recipe.task.finish([np.asarray(part, np.float64) for part in sums], facts)
    return {name: float(value) for name, value in scores.items()}


def _first(x):
  """Returns the inputs that the statistics of a trained network are taken from."""
  return jax.tree.map(lambda a: a[: NUM_BATCHES * BATCH_SIZE], x)


@functools.lru_cache(maxsize=16)
def _program(recipe, platform):
  """Returns the compiled training and judging of one structure."""

  def train(state, bits, indices, tail, train, judged, dropout):
    def body(carry, inputs):
      state, total = carry
      t, rows = inputs
      x, y = jax.tree.map(lambda a: a[rows][None], train)
      key = jax.random.fold_in(jax.random.wrap_key_data(dropout), state.step)
      x, y = augmented(recipe.augment, key[None], x, y)
      state, metrics = train_step(recipe, state, Slots(bits[None], x, y, dropout=key[None]))
      total = total + jnp.where(t >= len(indices) - tail, metrics['loss'][0], 0)
      return (state, total), None

    steps = (jnp.arange(len(indices)), indices)
    (state, total), _ = jax.lax.scan(body, (state, jnp.float32(0)), steps)
    averaged = average_of(state.opt_state, state.params)
    pools = [pool for pool in (state.params, averaged) if pool is not None]
    judge = functools.partial(evaluate_one, recipe.model, task=recipe.task)

    def on_all(pool):
      own = statistics_of_one(recipe.model, pool, _first(train[0]), bits)
      return [judge({'params': pool, **own}, split, bits) for split in judged]

    return state, total / tail, [on_all(pool) for pool in pools]

  options = workers.SINGLE_THREAD if platform == 'cpu' else None
  return jax.jit(train, compiler_options=options)
