"""Checksums of arrays that do not depend on how the arrays are cut into shards.

An array's elements, as unsigned integers v of their bits, are summed with a weight for each place:

  checksum = Σ v[i, j, …] · w_0(i) · w_1(j) · …   mod 2^64

so what the shards of any devices and processes contribute adds up to the checksum of the whole:

  [[a b]   over two devices   [[a] and [b]    each with the weights
   [c d]]                      [c]]    [d]]   of its own rows and columns

Weights are odd and look random. One changed element always changes the checksum, for an odd number
times a difference below 2^64 is no multiple of 2^64. That several changes cancel has a chance of
at most 2^−32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped, UInt64

Sums = UInt64[np.ndarray, '_replicas']


def of_block(block: Shaped[np.ndarray, '...'], index: Sequence[slice] = ()) -> int:
  """Returns what a block of an array adds to the array's checksum.

  Args:
    block: of any dtype.
    index: where in the array it lies, a slice for each axis; () is at its start.

  >>> whole = np.arange(6, dtype=np.float32).reshape(2, 3)
  >>> parts = of_block(whole[:, :1]), of_block(whole[:, 1:], (slice(0, 2), slice(1, 3)))
  >>> sum(parts) % 2**64 == of_block(whole)
  True
  """
  size = min(block.dtype.itemsize, 8)  # a complex number is two integers
  values = np.ascontiguousarray(block[..., None]).view(f'u{size}').astype(np.uint64)
  starts = [part.start or 0 for part in index] + [0] * (values.ndim - len(index))
  for axis in reversed(range(values.ndim)):
    values = values @ _weights(axis, starts[axis], values.shape[axis])
  return int(values)


def of_arrays(arrays: Sequence[Shaped[Array | np.ndarray, '...']]) -> list[Sums]:
  """Returns, of each array, the checksum of each of its replicas.

  All processes must call this together, each with its own shards of JAX arrays. A NumPy array has
  one replica, this process's own.

  >>> values = np.arange(3)
  >>> of_arrays([values])[0].tolist() == [of_block(values)]
  True
  """
  sums = [_by_replica(array) for array in arrays]
  spread = [not getattr(array, 'is_fully_addressable', True) for array in arrays]
  if any(spread):
    local = np.concatenate([total for total, over in zip(sums, spread) if over])
    # As halves, for JAX has no 64-bit integers by default.
    halves = multihost_utils.process_allgather(local.view(np.uint32))
    totals = np.ascontiguousarray(halves).view(np.uint64).sum(0)
    for i in np.flatnonzero(spread):
      sums[i], totals = totals[: len(sums[i])], totals[len(sums[i]) :]
  return sums


def _by_replica(array: Shaped[Array | np.ndarray, '...']) -> Sums:
  """Returns what the shards of this process add to the checksum of each replica of an array."""
  if not isinstance(array, jax.Array):
    return np.array([of_block(array)], np.uint64)
  indices = array.sharding.devices_indices_map(array.shape).values()
  distinct = {str(index): index for index in indices}
  sums = np.zeros(len(indices) // len(distinct), np.uint64)
  by_place = {}
  for shard in array.addressable_shards:
    place = str(shard.index)
    if place not in by_place:
      by_place[place] = np.uint64(of_block(np.asarray(shard.data), shard.index))
    sums[shard.replica_id : shard.replica_id + 1] += by_place[place]
  return sums


def _weights(axis: int, start: int, length: int) -> UInt64[np.ndarray, '{length}']:
  """Returns odd numbers for the places start, start + 1, … along an axis (splitmix64)."""
  place = np.arange(start + 1, start + 1 + length, dtype=np.uint64) + np.uint64(axis << 48)
  place *= np.uint64(0x9E3779B97F4A7C15)
  place = (place ^ (place >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  return (place ^ (place >> np.uint64(27))) | np.uint64(1)
