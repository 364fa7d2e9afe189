"""Loss and accuracy of many structures of one pool."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax import placement, prefix, run
from additive_jax.errors import UserError
from additive_jax.models.additive import canonical, embed, gate_names, sites_of
from additive_jax.objectives import objective_of
from additive_jax.structure import all_bits, bits_of

# Rows of one matmul: enough to reach its full rate, few enough that activations stay in a core's
# cache.
TILE_ROWS = {'cpu': 512}
DEFAULT_TILE_ROWS = 16384
# A core's share of the last-level cache on CPU; room for a few thousand structures elsewhere.
SLOT_BYTES = {'cpu': 24 * 2**20}
DEFAULT_SLOT_BYTES = 2**30


class Evaluation(NamedTuple):
  """Means over the examples, in the order of the structures: loss [S] and accuracy [S], float64."""

  loss: np.ndarray
  accuracy: np.ndarray


def evaluate_structures(
  model,
  variables,
  batch,
  structures: Iterable | np.ndarray | None = None,
  *,
  task: str | Callable = 'classification',
  batch_size: int = 256,
  memory_limit: int | None = None,
  devices: list[jax.Device] | None = None,
) -> Evaluation:
  """Ranks structures by shared-prefix evaluation: structures that agree on their first gates share
  that work.

  All 2^n cost 2^n − 1 branch evaluations a batch. The second call of the same shapes compiles
  nothing, whatever the structures.

  Args:
    model: an additive model.
    variables: `{'params': pool}`.
    batch: (x [N, ...], y [N, ...]), any number of examples; or a split that fits in memory.
    structures: what to evaluate, in any form (see `Space.parse`) or as bits [S, n], repeats
      allowed; None is all 2^n in integer order.
    task: 'classification', 'language' or 'regression', or a function (outputs, y) → (loss,
      accuracy) as in `objectives`.
    batch_size: examples that are evaluated together.
    memory_limit: bytes of streams that each worker may hold; None chooses for the device.
    devices: one per worker thread; None takes every local accelerator, or every core of a CPU.

  Returns:
    `Evaluation(loss, accuracy)`, each [S].

  Raises:
    UserError: when 2^n is too large to enumerate, or x and y differ in length.
  """
  x, y = (np.asarray(part) for part in as_batch(batch))
  if len(x) != len(y) or not len(x):
    raise UserError(f'{len(x)} inputs and {len(y)} targets: expected the same number, at least one')
  if batch_size < 1:
    raise UserError(f'batch_size {batch_size}: expected at least 1')
  num_gates = len(gate_names(model))
  bits = all_bits(num_gates) if structures is None else bits_of(structures, num_gates)
  if not len(bits):
    return Evaluation(np.zeros(0), np.zeros(0))
  bits, inverse = np.unique(canonical(model, bits), axis=0, return_inverse=True)
  devices = placement.workers(devices)
  platform = devices[0].platform

  batch_size = min(batch_size, len(x))
  stream = jax.eval_shape(lambda v, x: embed(model, v, x), variables, x[:batch_size])
  limit = memory_limit or SLOT_BYTES.get(platform, DEFAULT_SLOT_BYTES)
  rows = stream.size // stream.shape[-1]
  tile = max(1, TILE_ROWS.get(platform, DEFAULT_TILE_ROWS) // rows)
  tile = 1 << (tile.bit_length() - 1)  # divides the capacity, so that no slot is spent on padding
  fits = max(1, limit // prefix.largest_stream(model, variables, x[:batch_size]) - 1)
  share = -(-len(bits) // len(set(devices)))
  capacity = min(1 << (fits.bit_length() - 1), 1 << (share - 1).bit_length())
  tile = min(tile, capacity)

  program = _program(model, objective_of(task), tile, platform)
  chunks = prefix.chunks(bits, capacity)
  plans = [prefix.plan(bits[chunk], capacity, sites_of(model)) for chunk in chunks]
  starts = range(0, len(x), batch_size)
  placed = {device: jax.device_put(placement.to_host(variables), device) for device in set(devices)}
  compiling = {device: threading.Lock() for device in set(devices)}
  compiled = set()

  def work(job, device):
    start, chunk = job
    x_b, y_b, weight = _padded(x, y, start, batch_size)
    arguments = jax.device_put((x_b, y_b, weight, plans[chunk].arrays), device)
    if device not in compiled:
      with compiling[device]:  # else every thread would compile the same program
        result = np.asarray(program(placed[device], *arguments))
        compiled.add(device)
        return result
    return np.asarray(program(placed[device], *arguments))

  total = np.zeros((len(bits), 2))
  jobs = [(start, chunk) for start in starts for chunk in range(len(plans))]
  results = dict(placement.spread(jobs, work, devices))
  # Added up in this order whoever was first, so that the sum is the same each time.
  for start, chunk in jobs:
    total[chunks[chunk]] += results[start, chunk][plans[chunk].slot]
  loss, accuracy = total[inverse.reshape(-1)].T / len(x)
  return Evaluation(loss, accuracy)


def as_batch(batch):
  """A pair (x, y), or the two arrays of a split."""
  return (batch.x, batch.y) if hasattr(batch, 'in_memory') else batch


def evaluate_one(model, variables, batch, structure, *, objective: Callable, batch_size: int = 512):
  """Loss and accuracy of one traced structure, bool [n]; for use inside a compiled program.

  Args:
    batch: (x [N, ...], y [N, ...]) on the device.
    objective: see `objectives`.
    batch_size: examples that are evaluated together.

  Returns:
    float32 [2], the means over the N examples.
  """
  x, y = batch
  batch_size = min(batch_size, len(x))
  pieces = -(-len(x) // batch_size)
  # The last piece starts early instead of being padded; the examples it repeats have no weight.
  starts = jnp.minimum(jnp.arange(pieces) * batch_size, len(x) - batch_size)

  def piece(start):
    x_b, y_b = (jax.lax.dynamic_slice_in_dim(a, start, batch_size) for a in (x, y))
    loss, accuracy = objective(run.conditional(model, variables, x_b, structure), y_b)
    return jnp.stack([loss, accuracy])

  values = jax.lax.map(piece, starts)
  fresh = starts[:, None] + jnp.arange(batch_size) >= jnp.arange(pieces)[:, None] * batch_size
  return jnp.where(fresh[:, None], values, 0).sum((0, 2)) / len(x)


@functools.lru_cache(maxsize=32)
def _program(model, objective, tile, platform):
  def evaluate(variables, x, y, weight, arrays):
    def finish(outputs):
      values = jnp.stack(objective(outputs, y), axis=-1)  # [W, B, 2]
      return jnp.where(weight[:, None] > 0, values, 0).sum(1)

    return prefix.run_plan(model, variables, x, arrays, finish, tile=tile)

  options = placement.SINGLE_THREAD if platform == 'cpu' else None
  return jax.jit(evaluate, compiler_options=options)


def _padded(x, y, start, batch_size):
  x, y = x[start : start + batch_size], y[start : start + batch_size]
  missing = batch_size - len(x)
  weight = np.r_[np.ones(len(x), np.float32), np.zeros(missing, np.float32)]
  pad = lambda a: np.concatenate([a, np.repeat(a[-1:], missing, 0)]) if missing else a
  return pad(x), pad(y), weight
