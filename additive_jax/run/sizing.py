"""In what portions structures are evaluated: how many examples and prefixes together, and what is
kept, by what the device has room for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Bool, PyTree

from additive_jax.batches import Shapes, num_examples, shapes_of
from additive_jax.data.weights import unweighted
from additive_jax.models.additive import sites_of
from additive_jax.models.contract import check_network
from additive_jax.models.last_layer import has_last_layer
from additive_jax.models.sites import Site
from additive_jax.run import prefix, slots, summary
from additive_jax.run.measures import takes_summary
from additive_jax.run.tasks import Task

# Rows of one matmul: enough to reach its full rate, few enough that activations stay in a core's
# cache.
TILE_ROWS = {'cpu': 512}
DEFAULT_TILE_ROWS = 16384
# A core's share of the last-level cache on CPU; room for a few thousand structures elsewhere.
SLOT_BYTES = {'cpu': 24 * 2**20}
DEFAULT_SLOT_BYTES = 2**30
PASS_ROWS = 64  # that the overhead of a pass through a branch is worth
WORTH_ROWS = 2**16  # that compiling once more is worth
MOST_ROUNDS = 64
# A search evaluates sets of many sizes: a program has room for 1, 8, 64, … structures, so that few
# are compiled. Room that is not used costs the memory of its slots.
STEP = 8
# Where one prefix fills a tile, structures are walked one by one, and slots are the streams of one
# path, in one of these numbers, so that few programs are compiled.
PATH_BYTES = {'cpu': 2**28}
DEFAULT_PATH_BYTES = 2**32
PATH_SLOTS = (4, 16, 64, 256)
# Logits of one batch, and from how many on they are summarised.
LOGIT_BYTES = {'cpu': 2**26}
DEFAULT_LOGIT_BYTES = 2**30
MANY_LOGITS = 2 * summary.PIECE
MOST_EXAMPLES = 256


def batch_size(
  model: nn.Module, task: Task, x: PyTree, y: PyTree, devices: Sequence[jax.Device]
) -> int:
  """Returns how many examples are evaluated together.

  256, as long as streams and logits suit the device; and of examples that fill it alone no more
  than leave a share for each worker.
  """
  platform, one = devices[0].platform, shapes_of(x, 1)
  bytes_of_slot, positions = slots.slot_size(model, one)
  limit = SLOT_BYTES.get(platform, DEFAULT_SLOT_BYTES) // 4
  most = [MOST_EXAMPLES, limit // bytes_of_slot]
  if not is_brief(model, task, one, y):
    outputs = check_network(model, one)
    limit = LOGIT_BYTES.get(platform, DEFAULT_LOGIT_BYTES)
    most.append(limit // (outputs.size * outputs.dtype.itemsize))
  size = _power(max(1, min(most)))
  rows = TILE_ROWS.get(platform, DEFAULT_TILE_ROWS)
  if size * positions < 2 * rows:
    return size
  share = -(-num_examples(x) // len(devices))
  return min(size, max(share, -(-rows // positions)))


def is_brief(model: nn.Module, task: Task, x: Shapes, y: PyTree) -> bool:
  """Returns whether logits are summarised in place of being kept: they are many, and loss and
  metrics can be told from a summary."""
  labels = unweighted(y)
  if not has_last_layer(model) or not takes_summary(task.loss, task.metrics, labels):
    return False
  outputs = check_network(model, x)
  return outputs.shape[-1] >= MANY_LOGITS and labels.shape[1:] == outputs.shape[1:-1]


def plans(
  model: nn.Module,
  x: Shapes,
  bits: Bool[np.ndarray, 'S n'],
  devices: Sequence[jax.Device],
  memory_limit: int | None,
  jobs: int,
) -> tuple[int, list[prefix.Plan]]:
  """Returns the tile of `prefix.run_plan`, and plans of one shape that cover the structures: as
  large as memory allows, and enough of them that all workers have some to do.

  Args:
    x: a batch.
    bits: distinct structures in lexicographic order.
    memory_limit: bytes of streams; None goes by the device.
    jobs: how many batches there are.
  """
  platform = devices[0].platform
  bytes_of_slot, positions = slots.slot_size(model, x)
  rows = TILE_ROWS.get(platform, DEFAULT_TILE_ROWS)
  if positions >= rows:
    limit = memory_limit or PATH_BYTES.get(platform, DEFAULT_PATH_BYTES)
    pieces = 1 if jobs >= len(devices) else 2 * len(devices) // jobs
    if walks := _paths(bits, sites_of(model), pieces, limit // bytes_of_slot - 1):
      return 1, walks
  limit = memory_limit or SLOT_BYTES.get(platform, DEFAULT_SLOT_BYTES)
  share, sites = -(-len(bits) // len(set(devices))), sites_of(model)
  rounds, width, keep = _rounds(max(1, limit // bytes_of_slot - 1), share, len(sites))
  size = rounds * width
  starts = range(0, len(bits), size)
  walks = [prefix.plan(bits[i : i + size], rounds, width, sites, keep=keep) for i in starts]
  return _tile(walks, positions, min(_power(max(1, rows // positions)), width)), walks


def _tile(walks: Sequence[prefix.Plan], positions: int, widest: int) -> int:
  """Returns how many prefixes share a pass through a branch: the most that divide the width, so
  that no slot is spent on padding, or fewer where so many rows would be idle that it is worth a
  program of its own."""
  counts = np.concatenate([walk.count for walk in walks])
  cost = lambda tile: (-(-counts // tile)).sum() * (tile * positions + PASS_ROWS)
  tiles = [widest >> i for i in range(4) if widest >> i]
  best = min(tiles, key=cost)
  is_worth_it = cost(widest) - cost(best) > max(0.25 * cost(widest), WORTH_ROWS)
  return best if is_worth_it else widest


def _paths(
  bits: Bool[np.ndarray, 'S n'], sites: Sequence[Site], pieces: int, most: int
) -> list[prefix.Plan]:
  """Returns plans that walk structures one by one, in at least so many pieces where there are as
  many structures; none where they would need more slots than are allowed."""
  size = min(MOST_ROUNDS, -(-len(bits) // pieces))
  starts = range(0, len(bits), size)
  walks = [prefix.plan(bits[i : i + size], MOST_ROUNDS, 1, sites) for i in starts]
  slots = next((n for n in PATH_SLOTS if n >= max(walk.used for walk in walks)), most + 1)
  return [dataclasses.replace(walk, slots=slots) for walk in walks] if slots <= most else []


def _rounds(slots: int, share: int, num_sites: int) -> tuple[int, int, int]:
  """Returns how to cut a worker's share of structures: rounds of a plan, their width, and the
  levels of a path that may stay from one to the next.

  One round where the slots hold the share, else the widest rounds whose slots leave room for a
  path, and about four plans for each worker, so that none idles for long at the end.
  """
  width = _power(slots)
  if width >= share:
    return 1, min(width, _room(share)), -1
  room = 2 * num_sites + 1
  if slots - width < room and width > 2 * room:
    width //= 2
  keep = min(num_sites, (slots - width - 1) // 2)
  if keep < 0:
    return 1, width, -1
  return min(MOST_ROUNDS, _power(-(-share // (4 * width)))), width, keep


def _room(count: int) -> int:
  """Returns the smallest power of `STEP` that is not below `count`.

  >>> [_room(count) for count in (1, 2, 8, 9)]
  [1, 8, 8, 64]
  """
  room = 1
  while room < count:
    room *= STEP
  return room


def _power(number: int) -> int:
  """Returns the largest power of two that is not above `number`."""
  return 1 << (number.bit_length() - 1)
