"""How the pool lies on a mesh: rules from the logical names of its axes to the axes of the mesh.

  expert   leaves of experts, along the experts; each device runs its own (`shares`)
  tensor   kernels along heads and hidden units; a branch ends in one all-reduce (`shares`; Shoeybi
           et al. 2019, arXiv:1909.08053)
  fsdp     every leaf, along its longest axis that divides, and the batch (Zhao et al. 2023,
           arXiv:2304.11277)

Along `fsdp` a part of the network gathers what it reads, and its gradient is scattered, inside of
the branch: a site that is off moves nothing. `structure`, `data`, `fsdp` and `pipe` are written out
in `shard_map`; over `expert` and `tensor` arrays are whole to a step, and each sum over them is a
`shard_map` of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, Shaped

from additive_jax.batches import Shapes, cached
from additive_jax.errors import UserError
from additive_jax.models.additive import initial_shapes
from additive_jax.models.axes import AxisNames, axis_names, shared_axes
from additive_jax.models.reads import parts
from additive_jax.models.surrounding import EMBED, READOUT, WHOLE, Around, Part
from additive_jax.parallel.mesh import EXPERT, FSDP, MANUAL, TENSOR

RULES = {'expert': EXPERT, 'heads': TENSOR, 'hidden': TENSOR}


def has_experts(model: Any, example: Shapes) -> bool:
  """Returns whether a model has experts or modules of their own weights, which can be spread."""
  return any(EXPERT in leaf.rules for leaf in _leaves(model, example))


def check_model(model: Any, sizes: Mapping[str, int], example: Shapes) -> None:
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
  for leaf in _leaves(model, example):
    for size, name, axis in zip(leaf.shape, leaf.names, leaf.rules):
      if axis and size % sizes.get(axis, 1):
        raise UserError(
          f'{size} {name} of {jax.tree_util.keystr(leaf.path, simple=True, separator="/")} over '
          f'{sizes[axis]} {axis}_devices: expected a multiple of {sizes[axis]}'
        )


@dataclasses.dataclass(frozen=True)
class Leaf:
  """How a leaf of the pool lies on a mesh.

  Attributes:
    stored: between steps.
    read: where a part of the network reads it.
    local: its shape inside of `shard_map`.
  """

  stored: PartitionSpec
  read: PartitionSpec
  local: tuple[int, ...]

  def axis(self, name: str) -> int | None:
    """Returns the axis along which a part of the network gathers it over a mesh axis, or None."""
    return self.stored.index(name) if name in self.stored and name not in self.read else None


@cached(maxsize=32)
def pool_specs(model: Any, mesh: Mesh, example: Shapes) -> PyTree:
  """Returns how the pool lies on a mesh, a pytree of `Leaf`.

  Along `fsdp` a kernel is split on its longer axis, and whole where it is read:

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> mesh = jax.make_mesh((2,), ('fsdp',), devices=jax.devices()[:2])
  >>> leaves = pool_specs(model, mesh, jax.ShapeDtypeStruct((2, 6), jnp.float32))
  >>> kernel = leaves['block_00']['in']['kernel']
  >>> tuple(kernel.stored), tuple(kernel.read), kernel.local
  ((None, 'fsdp'), (None, None), (4, 4))

  Args:
    example: the shape of a batch of inputs.

  Raises:
    UserError: see `check_model`.
  """
  check_model(model, mesh.shape, example)
  of_path = {leaf.path: _layout_of_leaf(leaf, mesh) for leaf in _leaves(model, example)}
  return jax.tree.map_with_path(lambda path, _: of_path[path], _pool(model, example))


def _pool(model: Any, example: Shapes) -> PyTree:
  return initial_shapes(model, example)['params']


class _Named(NamedTuple):
  """A leaf of the pool.

  Attributes:
    path, shape: in the pool.
    names: of its axes.
    rules: for each axis the mesh axis that a sum over it is shared out along, or None.
  """

  path: Any
  shape: tuple[int, ...]
  names: AxisNames
  rules: tuple[str | None, ...]


def _leaves(model: Any, example: Shapes) -> Iterator[_Named]:
  """Yields the leaves of the pool. A name alone spreads nothing: only sums that `gates.shares`
  computes are shared out, for XLA would have to move what they are computed from."""
  pool = _pool(model, example)
  flatten = jax.tree.structure(pool).flatten_up_to
  names, shared = flatten(axis_names(model, example)), flatten(shared_axes(model, example))
  for (path, leaf), of_leaf, axes in zip(jax.tree.leaves_with_path(pool), names, shared):
    rules = tuple(RULES.get(name) if i in axes else None for i, name in enumerate(of_leaf))
    yield _Named(path, leaf.shape, of_leaf, rules)


def _layout_of_leaf(leaf: _Named, mesh: Mesh) -> Leaf:
  """Returns how a leaf lies on a mesh."""
  over = [axis if axis in mesh.axis_names else None for axis in leaf.rules]
  shape, read, local = leaf.shape, PartitionSpec(*over), list(leaf.shape)
  # Tensor devices keep parts of what has no heads or hidden units too; it is gathered to be read.
  for axis in (TENSOR, FSDP):
    size = mesh.shape.get(axis, 1)
    free = [i for i, n in enumerate(shape) if over[i] is None and n % size == 0 and n >= size]
    if size > 1 and axis not in over and free:
      longest = max(free, key=lambda i: shape[i])
      over[longest] = axis
      local[longest] //= size if axis == FSDP else 1
  return Leaf(PartitionSpec(*over), read, tuple(local))


def stored(leaves: PyTree) -> PyTree:
  """Returns the layouts between steps of a pytree of `Leaf`."""
  return jax.tree.map(lambda leaf: leaf.stored, leaves)


def manual(specs: PyTree) -> PyTree:
  """Returns the part of a pytree of `PartitionSpec` that `shard_map` writes out."""

  def part(entry: Any) -> Any:
    return tuple(axis for axis in jax.tree.leaves(entry) if axis in MANUAL) or None

  return jax.tree.map(lambda spec: PartitionSpec(*map(part, spec)), specs)


def read_from(model: Any, leaves: PyTree, example: Shapes) -> Around:
  """Returns what runs a part of the model on a pool that lies as these leaves say: see
  `models.surrounding`. It is called inside of `shard_map`.

  Args:
    model: the only one that it runs so.
    leaves: a pytree of `Leaf`.
    example: the shape of a batch of inputs.
  """
  by_path, reads = dict(jax.tree.leaves_with_path(leaves)), _paths(model, example)

  def around(other: Any, part: Part, variables: PyTree, run: Callable[[PyTree], Any]) -> Any:
    if other != model:
      return run(variables)

    def fetch(path: Any, array: Any) -> Any:
      leaf = by_path.get(path)
      if leaf is None or path not in reads[part] or leaf.local != array.shape:
        return array
      return gathered(array, leaf)

    return run({**variables, 'params': jax.tree.map_with_path(fetch, variables['params'])})

  return around


def gathered(array: Shaped[Array, '*local'], leaf: Leaf) -> Shaped[Array, '*shape']:
  """Returns a leaf of the pool as a part of the network reads it. Its gradient is scattered.

  Args:
    array: what this device holds of it.
    leaf: how it lies on the mesh.
  """
  if (axis := leaf.axis(FSDP)) is not None:
    array = jax.lax.all_gather(array, FSDP, axis=axis, tiled=True)
  if (axis := leaf.axis(TENSOR)) is not None:
    array = jax.shard_map(
      lambda part: jax.lax.all_gather(part, TENSOR, axis=axis, tiled=True),
      in_specs=PartitionSpec(*[None] * axis, TENSOR),
      out_specs=PartitionSpec(),
      axis_names={TENSOR},
      check_vma=False,
    )(array)
  return array


def scattered(gradient: Shaped[Array, '*shape'], leaf: Leaf) -> Shaped[Array, '*local']:
  """Returns this device's part of the sum over `fsdp` of the gradients of a whole leaf."""
  if (axis := leaf.axis(FSDP)) is None:
    return gradient
  return jax.lax.psum_scatter(gradient, FSDP, scatter_dimension=axis, tiled=True)


def _paths(model: Any, example: Shapes) -> dict[Part, frozenset[Any]]:
  """Returns the paths of the leaves that each part of a model reads."""
  reads = parts(model, example)
  trees: dict[Part, PyTree] = {
    **dict(enumerate(reads.sites)),
    EMBED: reads.embed,
    READOUT: reads.readout,
    WHOLE: _pool(model, example),
  }
  paths = lambda tree: frozenset(path for path, _ in jax.tree.leaves_with_path(tree))
  return {part: paths(tree) for part, tree in trees.items()}


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
