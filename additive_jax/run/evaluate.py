"""Loss and accuracy of many structures of one pool."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from additive_jax import run
from additive_jax.batches import num_examples, rows, shapes_of
from additive_jax.errors import UserError, checked_size
from additive_jax.gates.structure import StructureLike, all_bits, bits_of
from additive_jax.models.additive import canonical, gate_names, sites_of
from additive_jax.models.contract import check_pool, statistics_of
from additive_jax.parallel import processes, workers
from additive_jax.run import prefix, recalibration
from additive_jax.run.objectives import (
  Objective,
  check_objective,
  expected_of,
  is_ours,
  objective_of,
  scores_of,
)

log = logging.getLogger('additive_jax')

# Rows of one matmul: enough to reach its full rate, few enough that activations stay in a core's
# cache.
TILE_ROWS = {'cpu': 512}
DEFAULT_TILE_ROWS = 16384
# A core's share of the last-level cache on CPU; room for a few thousand structures elsewhere.
SLOT_BYTES = {'cpu': 24 * 2**20}
DEFAULT_SLOT_BYTES = 2**30
MOST_ROUNDS = 64


class Evaluation(NamedTuple):
  """Means over the examples, in the order of the structures.

  >>> evaluation = Evaluation(loss=np.array([0.9, 0.4]), accuracy=np.array([0.6, 0.8]))
  >>> int(evaluation.loss.argmin())
  1
  """

  loss: Float[np.ndarray, 'S']
  accuracy: Float[np.ndarray, 'S']


def evaluate_structures(
  model: nn.Module,
  variables: PyTree,
  batch: Any,
  structures: Iterable[StructureLike] | None = None,
  *,
  task: str | Objective = 'classification',
  batch_size: int = 256,
  memory_limit: int | None = None,
  devices: list[jax.Device] | None = None,
  recalibrate: Any = None,
) -> Evaluation:
  """Returns loss and accuracy of structures by shared-prefix evaluation: structures that agree on
  their first gates share that work.

  All 2^n cost 2^n − 1 branch evaluations a batch. The second call of the same shapes compiles
  nothing, whatever the structures. Examples go through in other batches than they came in, so a
  model must not mix them: `testing.check_model` checks that, this does not.

  Args:
    model: an additive model.
    variables: `{'params': pool}`.
    batch: (x [N, ...], y [N, ...]), any number of examples, each an array or a pytree of arrays;
      or a split that fits in memory.
    structures: anything `Space.parse` takes, or bool [S, n], repeats allowed; None is all 2^n in
      integer order.
    task: 'classification', 'language' or 'regression', or a function from outputs [B, ...] and
      targets [B, ...] to loss [B] and accuracy [B] as in `objectives`.
    batch_size: examples that are evaluated together.
    memory_limit: bytes of streams that each worker may hold; None chooses for the device.
    devices: one per worker thread; None takes every local accelerator, or every core of a CPU.
    recalibrate: for networks with BatchNorms, examples of the training split by which each
      structure is given statistics of its own, as `recalibrate` takes them; None judges all by the
      stored ones, which are those of all-on, and warns. Structures are then judged one by one.

  Raises:
    UserError: when 2^n is too large to enumerate, x and y differ in length, the pool is not one of
      the model, inputs are not finite, labels, tokens or targets are not what the task and the
      model take, or a function gives no pair of [B].

  >>> model = aj.models.MLP(num_blocks=3, width=4, hidden=8, num_classes=2)
  >>> x, y = np.ones((5, 6), np.float32), np.zeros(5, np.int32)
  >>> evaluate_structures(model, model.init(jax.random.key(0), x), (x, y)).loss.shape
  (8,)
  """
  x, y = jax.tree.map(np.asarray, as_batch(batch))
  count = num_examples(x)
  if count != num_examples(y) or not count:
    given = f'{count} inputs and {num_examples(y)} targets'
    raise UserError(f'{given}: expected the same number, at least one')
  batch_size = checked_size(batch_size, 'batch_size')
  num_gates = len(gate_names(model))
  bits = all_bits(num_gates) if structures is None else bits_of(structures, num_gates)
  if recalibrate is None:
    check_pool(model, variables, rows(x, slice(batch_size)))
    _warn_of_stored(model, rows(x, slice(1)), bits)
  objective = objective_of(task)
  expected_of(model, task, rows(x, slice(1))).check(x, y, 'batch')
  check_objective(model, objective, rows(x, slice(1)), y, min(batch_size, count))
  if not len(bits):
    return Evaluation(np.zeros(0), np.zeros(0))
  bits, inverse = np.unique(canonical(model, bits), axis=0, return_inverse=True)
  devices = workers.workers(devices)
  batch_size = min(batch_size, count)

  def judged(bits, variables):
    tile, plans = _plans(model, shapes_of(x, batch_size), bits, devices, memory_limit)
    program = _program(model, objective, tile, devices[0].platform)
    return _sums(program, variables, (x, y), batch_size, plans, devices)

  if recalibrate is None:
    sums = judged(bits, variables)
  else:
    each = zip(bits, recalibration.recalibrate(model, variables, bits, recalibrate))
    sums = np.concatenate([judged(row[None], own) for row, own in each])
  loss, accuracy = sums[inverse.reshape(-1)].T / count
  return Evaluation(loss, accuracy)


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


def _plans(model, x, bits, devices, memory_limit):
  """Returns the tile of `prefix.run_plan`, and plans of one shape that cover the structures: as
  large as memory allows, and enough of them that all workers have some to do."""
  platform = devices[0].platform
  limit = memory_limit or SLOT_BYTES.get(platform, DEFAULT_SLOT_BYTES)
  bytes_of_slot, positions = prefix.slot_size(model, x)
  share = -(-len(bits) // len(set(devices)))
  sites = sites_of(model)
  rounds, width, keep = _rounds(max(1, limit // bytes_of_slot - 1), share, len(sites))
  tile = max(1, TILE_ROWS.get(platform, DEFAULT_TILE_ROWS) // positions)
  tile = min(_power(tile), width)  # divides the width, so that no slot is spent on padding
  size = rounds * width
  starts = range(0, len(bits), size)
  return tile, [prefix.plan(bits[i : i + size], rounds, width, sites, keep=keep) for i in starts]


def _sums(program, variables, batch, batch_size, plans, devices):
  """Returns the sums of loss and accuracy of each structure over all examples, [S, 2]."""
  x, y = batch
  placed = {device: jax.device_put(processes.to_host(variables), device) for device in set(devices)}
  compiling = {device: threading.Lock() for device in set(devices)}
  compiled = set()

  def work(job, device):
    start, number = job
    piece = jax.device_put(_padded(x, y, start, batch_size), device)
    call = lambda plan: np.asarray(program(placed[device], *piece, jax.device_put(plan, device)))
    with compiling[device]:  # else every thread would compile the same program
      if device not in compiled:
        call(jax.tree.map(np.zeros_like, plans[0]))
        compiled.add(device)
    return call(plans[number])

  starts = range(0, num_examples(x), batch_size)
  jobs = [(start, number) for start in starts for number in range(len(plans))]
  results = dict(workers.spread(jobs, work, devices))
  # Added up in this order whoever was first, so that the sum is the same each time.
  sums = [np.zeros((int(plan.size), 2)) for plan in plans]
  for start, number in jobs:
    sums[number] += results[start, number][: len(sums[number])]
  return np.concatenate(sums)


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
  objective: Objective,
  batch_size: int = 512,
) -> Float[Array, '2']:
  """Returns the mean loss and accuracy of one traced structure, inside a compiled program.

  Args:
    batch: inputs and targets on the device.
    objective: see `objectives`.
    batch_size: examples that are evaluated together.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> x, y = jnp.ones((5, 6)), jnp.zeros(5, int)
  >>> judge = functools.partial(evaluate_one, model, objective=objective_of('classification'))
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)
  >>> jax.jit(judge)(pool, (x, y), jnp.array([True, False])).shape
  (2,)
  """
  count = num_examples(batch)
  batch_size = min(batch_size, count)
  pieces = -(-count // batch_size)
  # The last piece starts early instead of being padded; the examples it repeats have no weight.
  starts = jnp.minimum(jnp.arange(pieces) * batch_size, count - batch_size)

  def piece(start):
    cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, batch_size)
    x, y = jax.tree.map(cut, batch)
    outputs = run.conditional(model, variables, x, structure)
    return jnp.stack(scores_of(objective, outputs, y))

  values = jax.lax.map(piece, starts)
  fresh = starts[:, None] + jnp.arange(batch_size) >= jnp.arange(pieces)[:, None] * batch_size
  return jnp.where(fresh[:, None], values, 0).sum((0, 2)) / count


def _rounds(slots, share, num_sites):
  """Returns how to cut a worker's share of structures: rounds of a plan, their width, and the
  levels of a path that may stay from one to the next.

  One round where the slots hold the share, else the widest rounds whose slots leave room for a
  path, and about four plans for each worker, so that none idles for long at the end.
  """
  width = _power(slots)
  if width >= share:
    return 1, _power(2 * share - 1), -1
  room = 2 * num_sites + 1
  if slots - width < room and width > 2 * room:
    width //= 2
  keep = min(num_sites, (slots - width - 1) // 2)
  if keep < 0:
    return 1, width, -1
  return min(MOST_ROUNDS, _power(-(-share // (4 * width)))), width, keep


def _power(number):
  """Returns the largest power of two that is not above `number`."""
  return 1 << (number.bit_length() - 1)


@functools.lru_cache(maxsize=32)
def _program(model, objective, tile, platform):
  own = jax.vmap(functools.partial(scores_of, objective), in_axes=(0, None))
  judge = objective if is_ours(objective) else own

  def evaluate(variables, x, y, weight, plan):
    def finish(outputs):
      loss, accuracy = judge(outputs, y)
      if loss.ndim != 2:
        raise UserError(
          f'losses {loss.shape[1:]} of outputs {outputs.shape[1:]} and targets {y.shape}: expected '
          "one per example; for text, task='language'"
        )
      values = jnp.stack((loss, accuracy), axis=-1)  # [W, B, 2]
      return jnp.where(weight[:, None] > 0, values, 0).sum(1)

    return prefix.run_plan(model, variables, x, plan, finish, tile=tile)

  options = workers.SINGLE_THREAD if platform == 'cpu' else None
  return jax.jit(evaluate, compiler_options=options)


def _padded(x, y, start, batch_size):
  """Returns a batch of examples, filled up with the last one, and which of them count."""
  x, y = rows((x, y), slice(start, start + batch_size))
  count = num_examples(x)
  missing = batch_size - count
  weight = np.r_[np.ones(count, np.float32), np.zeros(missing, np.float32)]
  pad = lambda a: np.concatenate([a, np.repeat(a[-1:], missing, 0)]) if missing else a
  return *jax.tree.map(pad, (x, y)), weight
