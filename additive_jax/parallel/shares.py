"""Sums over experts, hidden units and heads that devices share out: each device computes the terms
that it has the parameters of, from all tokens of its share of the batch, and one all-reduce adds
them up. See `gates.shares`.

Written out, not left to XLA. Modules may run one after the other, each under conditions of its own:
a loop over an axis that is split would gather it. And inside a branch that only some devices take,
what XLA would move to lay arrays out otherwise has to be kept out: on CPU a collective-permute
waits for all devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from additive_jax.gates.shares import Sums, as_one_group, at_once
from additive_jax.parallel.mesh import EXPERT, TENSOR


def sums_on(mesh: Mesh) -> Sums:
  """Returns how the devices of a mesh compute these sums, inside of `shard_map` over other axes."""
  experts = experts_over_devices if EXPERT in mesh.axis_names else as_one_group
  units = units_over_devices if TENSOR in mesh.axis_names else at_once
  return Sums(experts, units)


def experts_over_devices(
  run: Callable[..., Array], experts: PyTree, numbers: Int[Array, 'M'], *arguments: Any
) -> Float[Array, '...']:
  """Returns what `gates.shares.as_one_group` does, with the experts spread over the mesh axis
  `expert`, which divides their number."""
  split = PartitionSpec(EXPERT)
  specs = jax.tree.map(lambda _: split, experts), split
  terms = lambda parts, *arguments: run(*parts, *arguments)
  return _summed(EXPERT, terms, (experts, numbers), specs, arguments)


def units_over_devices(
  run: Callable[..., Array], layers: PyTree, axes: PyTree, *arguments: Any
) -> Float[Array, '...']:
  """Returns what `gates.shares.at_once` does, with the units spread over the mesh axis `tensor`.

  Layers that are no arrays, as of a network under noise, and units that do not divide, as they may
  be within an expert, are whole on every device.
  """
  size = jax.sharding.get_abstract_mesh().shape[TENSOR]
  pairs = list(zip(jax.tree.leaves(layers), jax.tree.leaves(axes)))
  if not all(isinstance(leaf, jax.Array) and leaf.shape[axis] % size == 0 for leaf, axis in pairs):
    return run(layers, *arguments)
  split = lambda leaf, axis: PartitionSpec(*[None] * (leaf.ndim + axis), TENSOR)
  return _summed(TENSOR, run, layers, jax.tree.map(split, layers, axes), arguments)


def _summed(
  axis: str, terms: Callable[..., Array], parts: PyTree, specs: PyTree, arguments: tuple[Any, ...]
) -> Array:
  """Returns the sum over a mesh axis of `terms(parts, *arguments)`, of each device's parts."""
  total = lambda parts, *arguments: jax.lax.psum(terms(parts, *arguments), axis)
  return jax.shard_map(
    total,
    in_specs=(specs, *[PartitionSpec()] * len(arguments)),
    out_specs=PartitionSpec(),
    axis_names={axis},
    check_vma=False,
  )(parts, *arguments)
