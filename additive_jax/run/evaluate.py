"""Loss and metrics of many structures of one pool."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from additive_jax import run
from additive_jax.batches import num_examples, rows, shapes_of
from additive_jax.data.weights import checked_weights
from additive_jax.errors import UserError, checked_size
from additive_jax.files.waiting import waiting_for
from additive_jax.gates.structure import StructureLike, all_bits, bits_of
from additive_jax.models.additive import canonical, gate_names
from additive_jax.models.contract import check_pool, statistics_of
from additive_jax.models.last_layer import last_layer
from additive_jax.parallel import processes, workers
from additive_jax.run import prefix, recalibration, sizing, summary
from additive_jax.run.expected import check_task, expected_of
from additive_jax.run.objectives import LossFunction
from additive_jax.run.tasks import LOSS, Task, task_of

log = logging.getLogger('additive_jax')

Progress: TypeAlias = Callable[[float], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Loss and metrics of S structures over all examples, in the order of the structures; of several
  pools with an axis in front.

  >>> evaluation = Evaluation(np.array([0.9, 0.4]), {'accuracy': np.array([0.6, 0.8])})
  >>> int(evaluation.loss.argmin()), float(evaluation.accuracy[1])
  (1, 0.8)
  >>> list(evaluation.scores)
  ['loss', 'accuracy']

  Attributes:
    loss: the mean over what counts; of several pools with an axis of them in front.
    metrics: of the task, by name, the first one its headline.
  """

  loss: Float[np.ndarray, '*pools S']
  metrics: dict[str, Float[np.ndarray, '*pools S']] = dataclasses.field(default_factory=dict)

  @property
  def scores(self) -> dict[str, Float[np.ndarray, '*pools S']]:
    """Loss and metrics by name."""
    return {LOSS: self.loss, **self.metrics}

  @property
  def accuracy(self) -> Float[np.ndarray, '*pools S']:
    """The metric of that name.

    Raises:
      AttributeError: for a task without it.
    """
    if 'accuracy' not in self.metrics:
      known = ', '.join(self.metrics) or 'none'
      raise AttributeError(f'no accuracy in this evaluation: its metrics are {known}')
    return self.metrics['accuracy']

  @classmethod
  def of(cls, scores: Mapping[str, Any]) -> Evaluation:
    """Returns the evaluation with these scores."""
    return cls(scores[LOSS], {name: values for name, values in scores.items() if name != LOSS})


def evaluate_structures(
  model: nn.Module,
  variables: PyTree,
  batch: Any,
  structures: Iterable[StructureLike] | None = None,
  *,
  task: str | Task | LossFunction = 'classification',
  loss: str | LossFunction = '',
  metrics: Sequence[Any] | None = None,
  batch_size: int | None = None,
  memory_limit: int | None = None,
  devices: list[jax.Device] | None = None,
  recalibrate: Any = None,
  progress: Progress | None = None,
) -> Evaluation:
  """Returns loss and metrics of structures; those that agree on their first gates share that work.

  All 2^n cost 2^n − 1 branch evaluations a batch. The second call of the same shapes compiles
  nothing. A model must not mix examples: `testing.check_model` checks that, this does not.

  Args:
    model: an additive model.
    variables: `{'params': pool}`.
    batch: (x [N, ...], y [N, ...]), y maybe `data.Weighted`; or a split in memory.
    structures: anything `Space.parse` takes, or bool [S, n]; None is all 2^n in integer order.
    task: a name or a `Task`, see `tasks`, or a loss of your own.
    loss, metrics: in place of the task's.
    batch_size: examples that are evaluated together; None goes by memory, see `sizing.batch_size`.
    memory_limit: bytes of streams that each worker may hold; None chooses for the device.
    devices: one per worker thread; None takes every local accelerator, or every core of a CPU.
    recalibrate: for BatchNorms, training examples that give each structure statistics of its own,
      as `recalibrate` does; None judges by those stored, and warns; False does not warn.
    progress: called with the share that is done, 0 to 1; what it raises ends the evaluation.

  Raises:
    UserError: for too many structures, and where pool, examples, task and model do not suit.

  >>> model, x = aj.models.MLP(3, width=4, hidden=8, num_classes=2), np.ones((5, 6), np.float32)
  >>> variables, y = model.init(jax.random.key(0), x), np.zeros(5, np.int32)
  >>> evaluate_structures(model, variables, (x, y)).loss.shape
  (8,)
  """
  (x, y, count), bits = _examples(batch), _bits(model, structures)
  chosen, devices = task_of(task, loss, metrics), workers.workers(devices)
  if is_stored := recalibrate is None or recalibrate is False:
    most = checked_size(batch_size or sizing.MOST_EXAMPLES, 'batch_size')
    check_pool(model, variables, rows(x, slice(most)))
    _warn_of_stored(model, rows(x, slice(1)), bits[: None if recalibrate is None else 0])
  size = sizing.batch_size(model, chosen, x, y, devices) if batch_size is None else batch_size
  batch_size = min(checked_size(size, 'batch_size'), count)
  facts = _facts(model, chosen, (x, y), batch_size)
  if not len(bits):
    return Evaluation.of({score: np.zeros(0) for score in chosen.scores})
  bits, inverse = np.unique(canonical(model, bits), axis=0, return_inverse=True)
  judge = functools.partial(_judge, model, chosen, (x, y), devices, batch_size, memory_limit)
  tell = progress or (lambda share: None)
  own = lambda: recalibration.recalibrate(model, variables, bits, recalibrate)
  sums = judge(bits, variables, tell) if is_stored else _in_own_pools(judge, bits, own(), tell)
  return Evaluation.of(chosen.finish([part[inverse.reshape(-1)] for part in sums], facts))


def _in_own_pools(judge, bits, pools, tell):
  """Returns the sums of structures that have a pool each, with statistics of their own."""
  each: list[list[Any]] = []
  for row, pool in zip(bits, pools):
    each.append(judge(row[None], pool, lambda share: tell((len(each) + share) / len(bits))))
  return [np.concatenate(parts) for parts in zip(*each)]


def _bits(model, structures):
  num_gates = len(gate_names(model))
  return all_bits(num_gates) if structures is None else bits_of(structures, num_gates)


def _judge(model, task, batch, devices, batch_size, memory_limit, bits, variables, tell):
  """Returns the sums over all examples of what `Task.statistics` gives, of structures."""
  x, jobs = shapes_of(batch[0], batch_size), -(-num_examples(batch) // batch_size)
  tile, plans = sizing.plans(model, x, bits, devices, memory_limit, jobs)
  brief = sizing.is_brief(model, task, x, batch[1])
  program = _program(model, task, tile, devices[0].platform, brief)
  return _sums(program, variables, batch, batch_size, plans, devices, tell)


def _examples(batch):
  """Returns x and y in NumPy, and how many examples they are."""
  x, y = jax.tree.map(np.asarray, as_batch(batch))
  count, targets = num_examples(x), num_examples(y)
  if count != targets or not count:
    raise UserError(f'{count} inputs and {targets} targets: expected the same number, at least one')
  return x, checked_weights(y, 'batch'), count


def _facts(model, task, batch, batch_size):
  """Checks examples and task, and returns what the task's scores need to know of all targets."""
  x, y = batch
  expected_of(model, task, rows(x, slice(1))).check(x, y, 'batch')
  check_task(model, task, rows(x, slice(batch_size)), y)
  return task.facts(y)


def _warn_of_stored(model, x, bits):
  """Warns where structures are judged by statistics that are not theirs."""
  others = int((~bits.all(1)).sum())
  if others and statistics_of(model, x):
    log.warning(
      '%s has BatchNorms, and structures (%d) are judged by stored statistics, which are those of '
      'all-on unless additive_jax.recalibrate gave them: recalibrate=(training examples) gives '
      'each its own',
      type(model).__name__,
      others,
    )


def _sums(program, variables, batch, batch_size, plans, devices, tell):
  """Returns the sums of `Task.statistics` of each structure over all examples, each [S, K]."""
  placed = {device: _placed(variables, device) for device in set(devices)}
  compiling = {device: threading.Lock() for device in set(devices)}
  compiled = set()

  def work(job, device):
    start, number = job
    piece = jax.device_put(_padded(batch, start, batch_size), device)
    call = lambda plan: jax.device_get(
      program(placed[device], *piece, jax.device_put(plan, device))
    )
    with compiling[device]:  # else every thread would compile the same program
      if device not in compiled:
        with waiting_for('compiling the judging of structures'):
          call(jax.tree.map(np.zeros_like, plans[0]))
        compiled.add(device)
    return call(plans[number])

  starts = range(0, num_examples(batch), batch_size)
  jobs = [(start, number) for start in starts for number in range(len(plans))]
  results = {}
  with contextlib.closing(workers.spread(jobs, work, devices)) as finished:
    for job, result in finished:
      results[job] = result
      tell(len(results) / len(jobs))
  # Added up in this order whoever was first, so that the sum is the same each time.
  sums: list[list[Any]] = [[0.0] * len(results[jobs[0]]) for _ in plans]
  for start, number in jobs:
    size = int(plans[number].size)
    for k, part in enumerate(results[start, number]):
      sums[number][k] = sums[number][k] + part[:size].astype(np.float64)
  return [np.concatenate(parts) for parts in zip(*sums)]


def _placed(variables, device):
  """Returns a pool on a device; one that is there is not copied."""
  there = lambda leaf: isinstance(leaf, jax.Array) and leaf.devices() == {device}
  is_there = all(map(there, jax.tree.leaves(variables)))
  return jax.device_put(variables if is_there else processes.to_host(variables), device)


def as_batch(batch: Any) -> tuple[Any, Any]:
  """Returns a pair (x, y) as it is, or the two arrays of a split.

  >>> as_batch((np.ones((2, 3)), np.array([0, 1]), np.ones(2)))
  Traceback (most recent call last):
  additive_jax.errors.UserError: a batch of (2, 3), (2,), (2,): expected a pair (x, y), inputs and
  targets
  """
  if hasattr(batch, 'in_memory'):
    return batch.x, batch.y
  if not isinstance(batch, tuple | list) or len(batch) != 2:
    many = isinstance(batch, tuple | list)
    given = ', '.join(str(np.shape(part)) for part in batch) if many else type(batch).__name__
    raise UserError(f'a batch of {given}: expected a pair (x, y), inputs and targets')
  return batch[0], batch[1]


def evaluate_one(
  model: nn.Module,
  variables: PyTree,
  batch: tuple[PyTree[Shaped[Array, 'N ...']], PyTree[Shaped[Array, 'N ...']]],
  structure: Bool[Array, 'n'],
  *,
  task: Task,
  batch_size: int = 512,
) -> tuple[Float[Array, '_'], ...]:
  """Returns the sums of `Task.statistics` of one traced structure over all examples, inside a
  compiled program; `Task.finish` makes loss and metrics of them.

  Args:
    batch: inputs and targets on the device.
    task: see `tasks`.
    batch_size: examples that are evaluated together.

  >>> model, task = aj.models.MLP(2, width=4, hidden=8, num_classes=3), Task('regression')
  >>> x, y = jnp.ones((5, 6)), jnp.arange(15.0).reshape(5, 3)
  >>> judge = jax.jit(functools.partial(evaluate_one, model, task=task))
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)
  >>> list(task.finish(judge(pool, (x, y), jnp.array([True, False])), task.facts(y)))
  ['loss', 'r2', 'mae']
  """
  count = num_examples(batch)
  batch_size = min(batch_size, count)
  pieces = -(-count // batch_size)
  # The last piece starts early instead of being padded; the examples it repeats have no weight.
  starts = jnp.minimum(jnp.arange(pieces) * batch_size, count - batch_size)
  sizes: list[int] = []

  def piece(start):
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, start, batch_size)
    x, y = jax.tree.map(cut, batch)
    parts = task.statistics(run.conditional(model, variables, x, structure), y)
    sizes[:] = [part.shape[-1] for part in parts]
    return jnp.concatenate(parts, axis=-1).T

  values = jax.lax.map(piece, starts)
  fresh = starts[:, None] + jnp.arange(batch_size) >= jnp.arange(pieces)[:, None] * batch_size
  sums = jnp.where(fresh[:, None], values, 0).sum((0, 2))
  return tuple(jnp.split(sums, np.cumsum(sizes)[:-1]))


@functools.lru_cache(maxsize=32)
def _program(model, task, tile, platform, brief):
  judge = jax.vmap(task.statistics, in_axes=(0, None))

  def summarise(variables, y, h):
    labels = jnp.concatenate([task.clean(y).astype(jnp.int32)] * tile)
    return summary.summarised(last_layer(model, variables, h), labels)

  def evaluate(variables, x, y, fresh, plan):
    sizes = []

    def finish(outputs):
      parts = judge(outputs, y)
      sizes[:] = [part.shape[-1] for part in parts]
      values = jnp.concatenate(parts, axis=-1)  # [W, B, K]
      return jnp.where(fresh[:, None] > 0, values, 0).sum(1)

    read = functools.partial(summarise, variables, y) if brief else None
    sums = prefix.run_plan(model, variables, x, plan, finish, tile=tile, read=read)
    return tuple(jnp.split(sums, np.cumsum(sizes)[:-1], axis=-1))

  options = workers.SINGLE_THREAD if platform == 'cpu' else None
  return jax.jit(evaluate, compiler_options=options)


def _padded(batch, start, batch_size):
  """Returns a batch of examples, filled up with the last one, and which of them count."""
  batch = rows(batch, slice(start, start + batch_size))
  count = num_examples(batch)
  missing = batch_size - count
  fresh = np.r_[np.ones(count, np.float32), np.zeros(missing, np.float32)]
  pad = lambda a: np.concatenate([a, np.repeat(a[-1:], missing, 0)]) if missing else a
  return *jax.tree.map(pad, batch), fresh
