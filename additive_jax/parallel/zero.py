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
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from additive_jax.errors import UserError
from additive_jax.parallel.placement import Placement

HOST = 'pinned_host'


class Packed(NamedTuple):
  """The state of an optimizer with leaves that no axis of a mesh divides.

  Attributes:
    leaves: the others, in the order of the state, in their own shapes.
    vectors: by dtype, those leaves one after the other, and zeros up to a size that divides.
  """

  leaves: list[Shaped[Array, '...']]
  vectors: dict[str, Shaped[Array, '_']]


class Bytes(NamedTuple):
  """Bytes that the devices of this process hold, by the number of the device.

  Attributes:
    device: in the device's own memory.
    host: in host memory, on the device's behalf.
  """

  device: dict[int, int]
  host: dict[int, int]


def bytes_per_device(state: Any) -> dict[str, Bytes]:
  """Returns the bytes of `parameters`, `gradients` and `optimizer`, measured from the parts that
  each device holds. Gradients exist only within a step; as they lie like the parameters, theirs
  are the same.

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


def _measured(tree: PyTree) -> Bytes:
  device: dict[int, int] = {}
  host: dict[int, int] = {}
  for leaf in jax.tree.leaves(tree):
    here, there = (host, device) if leaf.sharding.memory_kind == HOST else (device, host)
    for shard in leaf.addressable_shards:
      here[shard.device.id] = here.get(shard.device.id, 0) + shard.data.nbytes
      there.setdefault(shard.device.id, 0)
  return Bytes(device, host)


def split_further(shape: tuple[int, ...], spec: PartitionSpec, mesh: Mesh) -> PartitionSpec | None:
  """Returns how a leaf lies when it is also split over all axes of the mesh that `spec` does not
  name; None where its own axes do not divide. Numbers stay whole."""
  if not shape:
    return spec
  over = [[*jax.tree.leaves(entry)] for entry in (*spec, *[None] * (len(shape) - len(spec)))]
  named = {axis for axes in over for axis in axes}
  divides = lambda size, axes: size % math.prod(mesh.shape[axis] for axis in axes) == 0
  # The longest first: it fits into the fewest.
  for axis in sorted(mesh.axis_names, key=lambda name: mesh.shape[name], reverse=True):
    if axis in named or mesh.shape[axis] == 1:
      continue
    fitting = next((axes for n, axes in zip(shape, over) if divides(n, [*axes, axis])), None)
    if fitting is None:
      return None
    fitting.append(axis)
  return PartitionSpec(*(tuple(axes) or None for axes in over))


class Storage:
  """Keeps the state of one optimizer on one mesh.

  Attributes:
    shardings: of what is kept, a pytree of `NamedSharding`.
    unpacked: of the same in the optimizer's own form, where leaves of the vectors are whole.
  """

  def __init__(
    self,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    specs: Any,
    placement: Placement,
  ):
    """Makes nothing yet.

    Args:
      params: the pool, leaves with a shape.
      specs: how `params` and `opt_state` lie without ZeRO, pytrees of `PartitionSpec` like them.
      placement: with a mesh. `zero` splits every leaf over all other axes of the mesh too. Leaves
        whose axes these do not divide, such as a bias of 10, are kept in one vector, which each
        step gathers; so no device keeps more than its share but for numbers such as step counts.
        `offload` keeps the state in host memory, with or without `zero`: as many copies, or parts,
        as devices. In each step, also within a chunk of steps, a device gets its own and gives it
        back.

    Raises:
      UserError: for `offload` where devices have no such memory.
    """
    mesh, self._zero, self._offload = placement.mesh, placement.zero, placement.offload
    assert mesh is not None
    kinds = [memory.kind for memory in mesh.local_devices[0].addressable_memories()]
    if self._offload and HOST not in kinds:
      raise UserError(
        f'offload on {mesh.local_devices[0].platform} devices with memory {", ".join(kinds)}: '
        f'expected some with {HOST}'
      )
    leaves, self._structure = jax.tree.flatten(jax.eval_shape(optimizer.init, params))
    self._shapes = [leaf.shape for leaf in leaves]
    parts = self._structure.flatten_up_to(specs.opt_state)
    if self._zero:
      parts = [split_further(leaf.shape, spec, mesh) for leaf, spec in zip(leaves, parts)]
    # Numbers of the leaves that are kept as they are, and of those in the vector of each dtype.
    self._alone = [i for i, spec in enumerate(parts) if spec is not None]
    self._joined = collections.defaultdict(list)
    for i, (leaf, spec) in enumerate(zip(leaves, parts)):
      if spec is None:
        self._joined[leaf.dtype.name].append(i)
    self._size = mesh.size
    self._whole = NamedSharding(mesh, PartitionSpec())
    self._pool = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs.params)
    part = lambda leaf, spec: NamedSharding(mesh, split_further(leaf.shape, spec, mesh) or spec)
    self._parts = jax.tree.map(part, params, specs.params)
    everywhere = PartitionSpec(tuple(axis for axis in mesh.axis_names if mesh.shape[axis] > 1))
    packed = self._form(parts, lambda members: everywhere)
    place = lambda kind, spec: NamedSharding(mesh, spec, memory_kind=kind)
    here = functools.partial(place, HOST if self._offload else None)
    self._near = jax.tree.map(functools.partial(place, None), packed)
    self.shardings = jax.tree.map(here, packed)
    whole = [PartitionSpec() if spec is None else spec for spec in parts]
    self.unpacked = jax.tree.map(here, self._structure.unflatten(whole))
    first = lambda params: self.pack(optimizer.init(params))
    self._init = jax.jit(first, out_shardings=self.shardings)

  @property
  def zero(self) -> bool:
    """Whether what is kept is split over all axes of the mesh."""
    return self._zero

  @property
  def packs(self) -> bool:
    """Whether what is kept has another form than the optimizer's own."""
    return bool(self._joined)

  def init(self, params: PyTree) -> PyTree:
    """Returns what the optimizer starts from, made where it is kept and so nowhere in more than its
    parts.

    Args:
      params: the pool, on the mesh.
    """
    return self._init(params)

  def pack(self, opt_state: PyTree) -> PyTree:
    """Returns a state in the optimizer's own form as it is kept."""

    def vector(members: list[Array]) -> Array:
      joined = jnp.concatenate([leaf.reshape(-1) for leaf in members])
      return jnp.pad(joined, (0, -joined.size % self._size))

    return self._form(self._structure.flatten_up_to(opt_state), vector)

  def unpack(
    self, kept: PyTree, gather: Callable[[Array], Array] = lambda vector: vector
  ) -> PyTree:
    """Returns what is kept in the optimizer's own form.

    Args:
      gather: what is done to a vector before its leaves are cut out.
    """
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

  def step(self, apply: Callable[..., Any], state: Any, averaged: Any) -> tuple[Any, Any]:
    """Returns `apply(state, averaged)`, the optimizer's part of a step, on what is kept; inside of
    a program.

    It sees the optimizer's own form, in device memory. Numbers are rounded alike with ZeRO and
    without, for XLA is kept from three things: to merge the divisions of the gradient by a count
    and by a norm, which it could only without ZeRO; to add up that norm in the parts in which the
    moments lie; and to round the updates in order to gather them before they are added to the pool,
    which therefore is updated in such parts and gathered then.

    Args:
      state: with `params` and, as it is kept, `opt_state`.
      averaged: with `gradient`.

    Returns:
      The new state, kept alike, and whatever else `apply` gives.
    """
    constrain, kept, params = jax.lax.with_sharding_constraint, state.opt_state, state.params
    averaged = averaged._replace(gradient=jax.lax.optimization_barrier(averaged.gradient))
    if self._offload:
      kept = jax.device_put(kept, self._near)
    opt_state = self.unpack(kept, lambda vector: constrain(vector, self._whole))
    if self._zero:
      averaged = averaged._replace(gradient=constrain(averaged.gradient, self._pool))
      params = constrain(params, self._parts)
    state, values = apply(state._replace(params=params, opt_state=opt_state), averaged)
    kept = self.pack(state.opt_state)
    if self._joined:  # first whole: XLA would join parts of leaves by a collective for each
      whole = constrain(kept.vectors, self._whole)
      kept = kept._replace(vectors=whole)
    kept = (jax.device_put if self._offload else constrain)(kept, self.shardings)
    params = constrain(state.params, self._parts) if self._zero else state.params
    return state._replace(params=params, opt_state=kept), values

  def _form(self, leaves: list[Any], vector: Callable[[list[Any]], Any]) -> PyTree:
    """Returns leaves in the order of the state in the form that is kept: the state's own where no
    leaf goes into a vector.

    Args:
      vector: a function of the leaves that share one.
    """
    if not self._joined:
      return self._structure.unflatten(leaves)
    return Packed(
      [leaves[i] for i in self._alone],
      {name: vector([leaves[i] for i in numbers]) for name, numbers in self._joined.items()},
    )
