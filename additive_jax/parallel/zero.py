"""Where the state of an optimizer is kept between steps: split over the devices that would else
each hold a copy (ZeRO), in their own memory or in that of the host.

Stage 1 of Rajbhandari et al. 2020 (arXiv:1910.02054): every device has the pool and the averaged
gradient, each updates its part of the moments, and the new parameters are gathered. The optimizer
itself knows nothing of it: it sees whole arrays in the shapes it gave them, which XLA splits.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from additive_jax.errors import UserError
from additive_jax.parallel import processes

HOST = 'pinned_host'


class Packed(NamedTuple):
  """The state of an optimizer with leaves that no axis of a mesh divides.

  Attributes:
    leaves: the others, in the order of the state, in their own shapes.
    vectors: by dtype, those leaves one after the other, and zeros up to a size that divides.
  """

  leaves: list[jax.Array]
  vectors: dict[str, jax.Array]


class Bytes(NamedTuple):
  """Bytes that the devices of this process hold, by the number of the device.

  Attributes:
    device: in the device's own memory.
    host: in host memory, on the device's behalf.
  """

  device: dict[int, int]
  host: dict[int, int]


def bytes_per_device(state) -> dict[str, Bytes]:
  """Bytes of `parameters`, `gradients` and `optimizer`, measured from the parts that lie on each
  device. Gradients exist only within a step; as they lie like the parameters, theirs are the same.

  Args:
    state: with `params` and `opt_state` of arrays on devices, such as `Trainer.sharded_state`.
  """
  parameters = _measured(state.params)
  return {
    'parameters': parameters,
    'gradients': parameters,
    'optimizer': _measured(state.opt_state),
  }


def bytes_rows(state: Any) -> list[dict[str, int]]:
  """Returns a row for each device of what `bytes_per_device` measures, with host memory beside
  it."""
  parts = bytes_per_device(state)
  return [
    {'device': device}
    | {part: measured.device.get(device, 0) for part, measured in parts.items()}
    | {'optimizer_in_host_memory': parts['optimizer'].host.get(device, 0)}
    for device in sorted(parts['parameters'].device)
  ]


def _measured(tree) -> Bytes:
  found = Bytes({}, {})
  for leaf in jax.tree.leaves(tree):
    here, there = found if leaf.sharding.memory_kind != HOST else found[::-1]
    for shard in leaf.addressable_shards:
      here[shard.device.id] = here.get(shard.device.id, 0) + shard.data.nbytes
      there.setdefault(shard.device.id, 0)
  return found


def split_further(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> PartitionSpec | None:
  """How a leaf lies when it is also split over all axes of the mesh that `spec` does not name; None
  where its own axes do not divide. Numbers stay whole.
  """
  if not shape:
    return spec
  over = [[*jax.tree.leaves(entry)] for entry in (*spec, *[None] * (len(shape) - len(spec)))]
  named = {axis for axes in over for axis in axes}
  # The longest first: it fits into the fewest.
  for axis in sorted(mesh.axis_names, key=mesh.shape.get, reverse=True):
    if axis in named or mesh.shape[axis] == 1:
      continue
    divides = lambda size, axes: size % math.prod(mesh.shape[a] for a in axes) == 0
    own = next((own for n, own in zip(shape, over) if divides(n, [*own, axis])), None)
    if own is None:
      return None
    own.append(axis)
  return PartitionSpec(*(tuple(axes) or None for axes in over))


class Storage:
  """Keeps the state of one optimizer on one mesh.

  Attributes:
    shardings: of what is kept, a pytree of `NamedSharding`.
  """

  def __init__(
    self,
    optimizer: optax.GradientTransformation,
    params,
    lies,
    mesh: Mesh,
    *,
    zero: bool = False,
    offload: bool = False,
  ):
    """Makes nothing yet.

    Args:
      params: the pool, leaves with a shape.
      lies: how `params` and `opt_state` lie without ZeRO, pytrees of `PartitionSpec` like them.
      zero: split every leaf over all other axes of the mesh too. Leaves whose axes these do not
        divide, such as a bias of 10, are kept in one vector, which each step gathers; so no device
        keeps more than its share but for numbers such as step counts.
      offload: keep it in host memory, with or without `zero`: as many copies, or parts, as devices.
        In each step, also within a chunk of steps, a device gets its own and gives it back.

    Raises:
      UserError: for `offload` where devices have no such memory.
    """
    kinds = [memory.kind for memory in mesh.local_devices[0].addressable_memories()]
    if offload and HOST not in kinds:
      raise UserError(
        f'offload on {mesh.local_devices[0].platform} devices with memory {", ".join(kinds)}: '
        f'expected some with {HOST}'
      )
    leaves, self._structure = jax.tree.flatten(jax.eval_shape(optimizer.init, params))
    self._shapes = [leaf.shape for leaf in leaves]
    found = self._structure.flatten_up_to(lies.opt_state)
    if zero:
      found = [split_further(leaf.shape, spec, mesh) for leaf, spec in zip(leaves, found)]
    # Numbers of the leaves that are kept as they are, and of those in the vector of each dtype.
    self._alone = [i for i, spec in enumerate(found) if spec is not None]
    self._joined = collections.defaultdict(list)
    for i, (leaf, spec) in enumerate(zip(leaves, found)):
      if spec is None:
        self._joined[leaf.dtype.name].append(i)
    self._size, self._zero, self._offload = mesh.size, zero, offload
    self._whole = NamedSharding(mesh, PartitionSpec())
    self._pool = jax.tree.map(lambda spec: NamedSharding(mesh, spec), lies.params)
    part = lambda leaf, spec: NamedSharding(mesh, split_further(leaf.shape, spec, mesh) or spec)
    self._parts = jax.tree.map(part, params, lies.params)
    everywhere = PartitionSpec(tuple(axis for axis in mesh.axis_names if mesh.shape[axis] > 1))
    specs = self._form(found, lambda members: everywhere)
    place = lambda kind, spec: NamedSharding(mesh, spec, memory_kind=kind)
    self._near = jax.tree.map(functools.partial(place, None), specs)
    self.shardings = jax.tree.map(functools.partial(place, HOST if offload else None), specs)
    first = lambda params: self._pack(optimizer.init(params), jnp)
    self._init = jax.jit(first, out_shardings=self.shardings)

  def init(self, params):
    """What the optimizer starts from, made where it is kept and so nowhere in more than its parts.

    Args:
      params: the pool, on the mesh.
    """
    return self._init(params)

  def place(self, opt_state):
    """Puts a state in the optimizer's own form, the same in every process, where it is kept."""
    put = lambda leaf, sharding: jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    )
    return jax.tree.map(put, self._pack(processes.to_host(opt_state), np), self.shardings)

  def unpack(self, kept):
    """What is kept in the optimizer's own form; leaves of the vectors come as NumPy arrays. Of
    several processes, all must call this together."""
    return self._unpack(kept, processes.to_host)

  def step(self, apply: Callable, state, found):
    """Inside of a program: `apply(state, found)`, the optimizer's part of a step, on what is kept.

    It sees the optimizer's own form, in device memory. Numbers are rounded alike with ZeRO and
    without, for XLA is kept from three things: to merge the divisions of the gradient by a count
    and by a norm, which it could only without ZeRO; to add up that norm in the parts in which the
    moments lie; and to round the updates in order to gather them before they are added to the pool,
    which therefore is updated in such parts and gathered then.

    Args:
      state: with `params` and, as it is kept, `opt_state`.
      found: with `gradient`.

    Returns:
      The new state, kept alike, and whatever else `apply` gives.
    """
    constrain, kept, params = jax.lax.with_sharding_constraint, state.opt_state, state.params
    found = found._replace(gradient=jax.lax.optimization_barrier(found.gradient))
    if self._offload:
      kept = jax.device_put(kept, self._near)
    opt_state = self._unpack(kept, lambda vector: constrain(vector, self._whole))
    if self._zero:
      found = found._replace(gradient=constrain(found.gradient, self._pool))
      params = constrain(params, self._parts)
    state, values = apply(state._replace(params=params, opt_state=opt_state), found)
    kept = self._pack(state.opt_state, jnp)
    if self._joined:  # first whole: XLA would join parts of leaves by a collective for each
      whole = constrain(kept.vectors, self._whole)
      kept = kept._replace(vectors=whole)
    kept = (jax.device_put if self._offload else constrain)(kept, self.shardings)
    params = constrain(state.params, self._parts) if self._zero else state.params
    return state._replace(params=params, opt_state=kept), values

  def _form(self, leaves: list, vector):
    """Leaves in the order of the state, in the form that is kept: the state's own where no leaf
    goes into a vector.

    Args:
      vector: a function of the leaves that share one.
    """
    if not self._joined:
      return self._structure.unflatten(leaves)
    return Packed(
      [leaves[i] for i in self._alone],
      {name: vector([leaves[i] for i in numbers]) for name, numbers in self._joined.items()},
    )

  def _pack(self, opt_state, library: Any):
    def vector(members):
      joined = library.concatenate([leaf.reshape(-1) for leaf in members])
      return library.pad(joined, (0, -joined.size % self._size))

    return self._form(self._structure.flatten_up_to(opt_state), vector)

  def _unpack(self, kept, gather):
    if not self._joined:
      return kept
    leaves = dict(zip(self._alone, kept.leaves))
    for name, numbers in self._joined.items():
      vector, start = gather(kept.vectors[name]), 0
      for i in numbers:
        size = math.prod(self._shapes[i])
        leaves[i] = vector[start : start + size].reshape(self._shapes[i])
        start += size
    return self._structure.unflatten([leaves[i] for i in range(len(leaves))])
