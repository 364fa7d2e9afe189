"""Logical names of the axes of a network's parameters, which say what an axis counts, not where it
lies: `parallel.layout` has the rules from these names to the axes of a mesh.

Names of the library's own networks: `embed` (D, the stream), `hidden` (H), `heads` (N) and `expert`
(experts, or the modules of a DNA). A module names the axes of its parameters by a method
`axis_names`; a parameter made by `flax.linen.with_logical_partitioning` has the names given there.
What is more than a name is which sums of `gates.shares` a parameter goes into: `shared_axes`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from additive_jax.batches import Shapes, cached
from additive_jax.errors import UserError
from additive_jax.gates.shares import Sums, as_one_group, at_once, summing

AxisNames = tuple[str | None, ...]


def axis_names(model: Any, example: Shapes) -> PyTree:
  """Returns the names of the axes of each leaf of the pool: a pytree like it, of tuples with a name
  or None for each axis.

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> names = axis_names(model, jax.ShapeDtypeStruct((1, 6), jnp.float32))
  >>> names['block_00']['in']['kernel'], names['block_00']['norm']['scale']
  (('embed', 'hidden'), (None,))

  Args:
    model: a Flax module, or an object with a method `init` like one's.
    example: the shape of a batch of inputs.
  """
  return _axes_of(model, example)[0]


def shared_axes(model: Any, example: Shapes) -> PyTree:
  """Returns the axes of each leaf of the pool that a sum of `gates.shares` goes over, so that
  devices may share it out: a pytree like the pool, of sets of numbers.

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> axes = shared_axes(model, jax.ShapeDtypeStruct((1, 6), jnp.float32))
  >>> axes['block_00']['in']['kernel'], axes['readout']['out']['kernel']
  (frozenset({1}), frozenset())

  Args:
    model, example: as for `axis_names`.
  """
  return _axes_of(model, example)[1]


@cached(maxsize=64)
def _axes_of(model: Any, example: Shapes) -> tuple[PyTree, PyTree]:
  """Returns names and shared axes, from one trace of the model's init."""
  named: dict[tuple[str, ...], AxisNames] = {}
  sums = _Recorder()
  shared: list[frozenset[int]] = []

  def read(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    module = context.module
    if context.method_name == '__call__' and hasattr(module, 'axis_names'):
      named.update({(*module.path, name): axes for name, axes in module.axis_names().items()})
    return call(*args, **kwargs)

  def init(x: Any) -> Any:
    if not isinstance(model, nn.Module):
      pool = model.init(jax.random.key(0), x)['params']
    else:  # with its boxes
      pool = nn.Module.init_with_output(model, jax.random.key(0), x)[1]['params']
    shared.extend(map(sums.axes_of, jax.tree.leaves(pool)))
    return pool

  with nn.intercept_methods(read), summing(Sums(sums.experts, sums.units)):
    boxed = jax.eval_shape(init, example)

  def names_of(path: Any, leaf: Any) -> AxisNames:
    if isinstance(leaf, nn.Partitioned):
      return tuple(name if isinstance(name, str) else None for name in leaf.names)
    axes = named.get(tuple(key.key for key in path), ()) or (None,) * leaf.ndim
    if len(axes) != leaf.ndim:
      where = jax.tree_util.keystr(path, simple=True, separator='/')
      raise UserError(f'axis names {axes} of {where}, of shape {leaf.shape}: expected {leaf.ndim}')
    return axes

  is_boxed = lambda node: isinstance(node, nn.Partitioned)
  names = jax.tree_util.tree_map_with_path(names_of, boxed, is_leaf=is_boxed)
  return names, jax.tree.structure(nn.meta.unbox(boxed)).unflatten(shared)


class _Recorder:
  """Computes sums as they stand, and notes which arrays they are given, along which axes."""

  def __init__(self) -> None:
    self._notes: list[tuple[Any, int]] = []

  def experts(self, run: Any, experts: PyTree, *others: Any) -> Any:
    self._notes += [(leaf, 0) for leaf in jax.tree.leaves(experts)]
    return as_one_group(run, experts, *others)

  def units(self, run: Any, layers: PyTree, axes: PyTree, *arguments: Any) -> Any:
    pairs = zip(jax.tree.leaves(layers), jax.tree.leaves(axes), strict=True)
    self._notes += [(leaf, axis % leaf.ndim) for leaf, axis in pairs]
    return at_once(run, layers, axes, *arguments)

  def axes_of(self, leaf: Any) -> frozenset[int]:
    return frozenset(axis for array, axis in self._notes if array is leaf)
