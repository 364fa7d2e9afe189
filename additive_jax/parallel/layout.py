"""How the pool lies on a mesh: rules from the logical names of its axes to the axes of the mesh.

`shard_map` writes out the axes `structure`, `data` and `pipe`. Over the other axes the arrays of a
step are whole to the program, and XLA moves the bytes:

  expert   leaves of experts, along the experts; each device runs its own (`experts`)
  tensor   kernels along heads and hidden units; a branch ends in one all-reduce (Shoeybi et al.
           2019, arXiv:1909.08053)
  fsdp     every leaf, along its longest axis that divides, and the batch; a part of the network
           gathers what it reads, and its gradients are scattered (Zhao et al. 2023,
           arXiv:2304.11277). A site that is off gathers nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from additive_jax.errors import UserError
from additive_jax.models import additive
from additive_jax.models.axes import AxisNames, axis_names
from additive_jax.parallel.mesh import EXPERT, FSDP, MANUAL, TENSOR

RULES = {'expert': EXPERT, 'heads': TENSOR, 'hidden': TENSOR}


def has_experts(model: nn.Module, example: jax.ShapeDtypeStruct) -> bool:
  """Returns whether a model has experts or modules of their own weights, which can be spread."""
  names = jax.tree.leaves(axis_names(model, example))  # those of all axes in one list
  return 'expert' in names


def check_model(model: nn.Module, sizes: Mapping[str, int], example: jax.ShapeDtypeStruct) -> None:
  """Raises `UserError` for a model that has nothing to spread over an axis of some size, or what
  does not divide over it.

  Args:
    sizes: of the axes of a mesh.
  """
  if sizes.get(EXPERT, 1) > 1 and not has_experts(model, example):
    raise UserError(
      f'{type(model).__name__} over {sizes[EXPERT]} expert_devices: expected a model with experts '
      'or modules of their own weights, or 1'
    )
  for path, leaf, names in _leaves(model, example):
    for size, name in zip(leaf.shape, names):
      axis = RULES.get(name) if name else None
      if axis and size % sizes.get(axis, 1):
        raise UserError(
          f'{size} {name} of {jax.tree_util.keystr(path, simple=True, separator="/")} over '
          f'{sizes[axis]} {axis}_devices: expected a multiple of {sizes[axis]}'
        )


@dataclasses.dataclass(frozen=True)
class Leaf:
  """How a leaf of the pool lies on a mesh.

  Attributes:
    shape: of the whole leaf.
    kept: between steps.
    read: where a part of the network reads it.
  """

  shape: tuple[int, ...]
  kept: PartitionSpec
  read: PartitionSpec


@functools.lru_cache(maxsize=32)
def pool_specs(model: nn.Module, mesh: Mesh, example: jax.ShapeDtypeStruct) -> PyTree:
  """Returns how the pool lies on a mesh, a pytree of `Leaf`.

  Args:
    example: the shape of a batch of inputs.

  Raises:
    UserError: see `check_model`.
  """
  check_model(model, mesh.shape, example)
  lies = {path: _lies(leaf.shape, names, mesh) for path, leaf, names in _leaves(model, example)}
  return jax.tree.map_with_path(lambda path, _: lies[path], _pool(model, example))


def _pool(model: nn.Module, example: jax.ShapeDtypeStruct) -> PyTree:
  return jax.eval_shape(model.init, jax.random.key(0), example)['params']


def _leaves(
  model: nn.Module, example: jax.ShapeDtypeStruct
) -> Iterator[tuple[Any, jax.ShapeDtypeStruct, AxisNames]]:
  """Yields path, shape and the names of the axes of each leaf."""
  structure = jax.tree.structure(_pool(model, example))
  names = structure.flatten_up_to(axis_names(model, example))
  for (path, leaf), axes in zip(jax.tree.leaves_with_path(_pool(model, example)), names):
    yield path, leaf, axes


def _lies(shape: tuple[int, ...], names: AxisNames, mesh: Mesh) -> Leaf:
  over = [RULES.get(name) if name else None for name in names]
  over = [axis if axis in mesh.axis_names else None for axis in over]
  read = PartitionSpec(*over)
  # Tensor devices share out what has no heads or hidden units too; it is gathered to be read.
  for axis in (TENSOR, FSDP):
    size = mesh.shape.get(axis, 1)
    free = [i for i, n in enumerate(shape) if over[i] is None and n % size == 0 and n >= size]
    if size > 1 and axis not in over and free:
      over[max(free, key=lambda i: shape[i])] = axis
  return Leaf(shape, PartitionSpec(*over), read)


def kept(leaves: PyTree) -> PyTree:
  """Returns the layouts between steps of a pytree of `Leaf`."""
  return jax.tree.map(lambda leaf: leaf.kept, leaves)


def manual(specs: PyTree) -> PyTree:
  """Returns the part of a pytree of `PartitionSpec` that `shard_map` writes out."""

  def part(entry: Any) -> Any:
    return tuple(axis for axis in jax.tree.leaves(entry) if axis in MANUAL) or None

  return jax.tree.map(lambda spec: PartitionSpec(*map(part, spec)), specs)


def read_from(leaves: PyTree, example: jax.ShapeDtypeStruct) -> additive.Around:
  """Returns what runs a part of a network on a pool that lies as these leaves say: see
  `additive.surrounding`. Inside of `shard_map`.

  Args:
    leaves: a pytree of `Leaf`.
    example: the shape of a batch of inputs.
  """
  by_path = {path: leaf for path, leaf in jax.tree.leaves_with_path(leaves)}

  def around(
    model: nn.Module, part: additive.Part, variables: PyTree, run: Callable[[PyTree], Any]
  ) -> Any:
    reads = _paths(model, example, part)

    def fetch(path: Any, array: jax.Array) -> jax.Array:
      leaf = by_path.get(path)
      if leaf is None or path not in reads or leaf.shape != array.shape:
        return array
      return _fetched(array, leaf.kept, leaf.read)

    pool = jax.tree.map_with_path(fetch, variables['params'])
    return jax.tree.map(split_batch, run({**variables, 'params': pool}))

  return around


@functools.lru_cache(maxsize=1024)
def _paths(model: nn.Module, example: jax.ShapeDtypeStruct, part: additive.Part) -> frozenset[Any]:
  """Returns the paths of the leaves that a part of a model reads."""
  if part == additive.WHOLE:
    tree = _pool(model, example)
  else:
    found = additive.parts(model, example)
    tree = found.sites[part] if isinstance(part, int) else getattr(found, part)
  return frozenset(path for path, _ in jax.tree.leaves_with_path(tree))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _fetched(array: jax.Array, kept: PartitionSpec, read: PartitionSpec) -> jax.Array:
  """Returns an array that is kept in one layout in another one; its gradient lies as it is kept."""
  return jax.lax.with_sharding_constraint(array, read)


def _fetch_forward(array: jax.Array, kept: PartitionSpec, read: PartitionSpec) -> Any:
  return _fetched(array, kept, read), None


def _fetch_backward(kept: PartitionSpec, read: PartitionSpec, _: None, g: jax.Array) -> Any:
  return (jax.lax.with_sharding_constraint(g, kept),)


_fetched.defvjp(_fetch_forward, _fetch_backward)


def split_batch(array: jax.Array, axis: int = 0) -> jax.Array:
  """Returns an array whose batch, on an axis, is split over `fsdp` where the mesh has that axis,
  and all else whole. Inside of `shard_map`."""
  mesh = jax.sharding.get_abstract_mesh()
  if array.ndim <= axis:
    return array
  rows = FSDP if array.shape[axis] % mesh.shape.get(FSDP, 1) == 0 else None
  rows = rows if FSDP in mesh.axis_names else None
  return jax.lax.with_sharding_constraint(array, PartitionSpec(*[None] * axis, rows))


def like_pool(tree: PyTree, params: PyTree, specs: PyTree) -> PyTree:
  """Returns a layout for what an optimizer keeps: its leaves lie like the leaves of the pool that
  they belong to, and the others whole on every device.

  A leaf belongs to that of the pool whose path ends its own, if it has the same shape.

  Args:
    tree: of the optimizer, leaves with a shape.
    params, specs: the pool, leaves with a shape, and its layout.
  """
  shapes = [(path, leaf.shape) for path, leaf in jax.tree.leaves_with_path(params)]
  known = dict(zip(shapes, jax.tree.leaves(specs), strict=True))

  def spec(path: Any, leaf: Any) -> PartitionSpec:
    ends = (known.get((path[i:], leaf.shape)) for i in range(len(path)))
    return next((belongs for belongs in ends if belongs is not None), PartitionSpec())

  return jax.tree.map_with_path(spec, tree)


def shardings(mesh: Mesh, specs: PyTree) -> PyTree:
  """Returns a pytree of `PartitionSpec` as one of `NamedSharding`."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
