"""The leaves of a state in files: written and read by Orbax, in shards, by the processes that hold
them.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jaxtyping import Array, PyTree, Shaped

from additive_jax.files import checksum
from additive_jax.files.seal import DamagedError

Leaf = Shaped[Array | np.ndarray, '...']

# Devices that hold copies of a leaf share its writing where each then writes as many bytes.
SHARED_WRITES = 1 << 20


def handler() -> ocp.PyTreeCheckpointHandler:
  """Returns what writes a state in the format that `read` reads, whatever Orbax's defaults become.

  It reads buffers on CPU after it returns; see `copied`.
  """
  arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED_WRITES)
  return ocp.PyTreeCheckpointHandler(
    use_ocdbt=True,
    use_zarr3=False,
    type_handler_registry=ocp.type_handlers.create_type_handler_registry(
      (np.ndarray, ocp.type_handlers.NumpyHandler()), (jax.Array, arrays)
    ),
  )


def copied(leaf: Any) -> Leaf:
  """Returns a leaf whose buffer is not reused while it is written: a JAX array where its shards
  lie, of all else a NumPy array.

  >>> copied(3)
  array(3)
  """
  if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable and jax.process_count() > 1):
    device: Any = next(iter(leaf.sharding.device_set))
    on_cpu = device.platform == 'cpu'
    return jnp.copy(leaf) if on_cpu else leaf
  return np.array(leaf)


def names(tree: PyTree) -> list[str]:
  """Returns the leaves' names in the files, in order.

  >>> names({'pool': {'kernel': 1, 'bias': 2}, 'step': 3})
  ['pool.bias', 'pool.kernel', 'step']

  Raises:
    ValueError: two leaves have the same name.
  """
  paths = list(ocp.tree.to_flat_dict(tree, sep='.'))
  if len(paths) < len(jax.tree.leaves(tree)):
    raise ValueError('two leaves of the state have the same keys when these are joined by dots')
  return paths


def describe(leaves: Mapping[str, Leaf]) -> dict[str, dict[str, Any]]:
  """Returns dtype, shape and checksum of each leaf, as JSON values; for all processes to call.

  Args:
    leaves: numbers; those of PRNG keys for keys.

  >>> describe({'bias': np.zeros(2, np.float32)})
  {'bias': {'dtype': 'float32', 'shape': [2], 'sum': '0000000000000000'}}
  """
  sums = checksum.of_arrays(list(leaves.values()))
  return {
    name: {'dtype': str(leaf.dtype), 'shape': list(leaf.shape), 'sum': f'{replicas[0]:016x}'}
    for (name, leaf), replicas in zip(leaves.items(), sums)
  }


def read(folder: Path, templates: Mapping[str, Any], saved: Sequence[dict[str, Any]]) -> list[Any]:
  """Returns the leaves of a state: a JAX array where its template says on which devices it lies, of
  which this process reads its shards, and else a whole NumPy array.

  All reads are waited for even where one fails, for what is left behind in an event loop that is
  closed fails noisily in other threads.

  Args:
    templates: what each leaf is to be like, by its name in the files.
    saved: what `describe` said of each.

  Returns:
    In place of a leaf that cannot be read, the exception.
  """
  context = ocp.type_handlers.get_ts_context(use_ocdbt=True)
  as_array, as_numpy = ocp.type_handlers.ArrayHandler(), ocp.type_handlers.NumpyHandler()

  async def read_leaf(name: str, template: Any, record: dict[str, Any]) -> Leaf:
    info = ocp.type_handlers.ParamInfo(
      name=name,
      parent_dir=epath.Path(folder),
      is_ocdbt_checkpoint=True,
      use_zarr3=False,
      ts_context=context,
    )
    # Before reading: a damaged shape may be of any size.
    (stored,) = await as_numpy.metadata([info])
    spec = {'dtype': np.dtype(stored.dtype).name, 'shape': list(stored.shape)}
    if record | spec != record:
      raise DamagedError(f'found {spec}, saved {record}')
    if 'sum' not in record or not _is_placed(template):
      return (await as_numpy.deserialize([info], [ocp.RestoreArgs()]))[0]
    args = ocp.ArrayRestoreArgs(sharding=template.sharding, global_shape=tuple(record['shape']))
    return (await as_array.deserialize([info], [args]))[0]

  async def read_all() -> list[Leaf | BaseException]:
    leaves = [read_leaf(*leaf, record) for leaf, record in zip(templates.items(), saved)]
    values = await asyncio.gather(*leaves, return_exceptions=True)
    behind = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*behind, return_exceptions=True)
    return values

  # A thread of its own: a notebook's has an event loop already.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(asyncio.run, read_all()).result()


def sound(values: Sequence[Leaf], saved: Sequence[dict[str, Any]]) -> list[bool]:
  """Returns whether each leaf is what was saved, byte for byte; for all processes to call."""
  flags = []
  for value, record, replicas in zip(values, saved, checksum.of_arrays(values)):
    if 'sum' in record:
      flags.append(all(f'{total:016x}' == record['sum'] for total in replicas))
    else:  # saved by a version that gathered whole leaves
      content = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
      flags.append(zlib.crc32(content.data) == record['crc32'])
  return flags


def place(value: Leaf, template: Any) -> Any:
  """Returns what was read of a leaf in the kind and sharding of its template.

  >>> place(np.array(3), 0), place(np.array(3), jnp.zeros((), int))
  (3, Array(3, dtype=int32))
  """
  if isinstance(value, jax.Array) or isinstance(template, np.ndarray):
    return value
  if isinstance(template, np.generic):
    return value[()]
  if isinstance(template, bool | int | float | complex):
    return value.item()
  if not _is_placed(template):
    return jnp.asarray(value)
  return jax.make_array_from_callback(value.shape, template.sharding, lambda index: value[index])


def _is_placed(template: Any) -> bool:
  return getattr(template, 'sharding', None) is not None and getattr(template, 'committed', True)
