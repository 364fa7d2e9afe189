"""Logical names of the axes of a network's parameters, which say what an axis counts, not where it
lies: `parallel.layout` has the rules from these names to the axes of a mesh.

Names of the library's own networks: `embed` (D, the stream), `hidden` (H), `heads` (N) and `expert`
(experts, or the modules of a DNA). A module names the axes of its parameters by a method
`axis_names`; a parameter made by `flax.linen.with_logical_partitioning` has the names given there.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

AxisNames = tuple[str | None, ...]


@functools.lru_cache(maxsize=64)
def axis_names(model: Any, example: jax.ShapeDtypeStruct) -> PyTree:
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
  named: dict[tuple[str, ...], AxisNames] = {}

  def read(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    module = context.module
    if context.method_name == '__call__' and hasattr(module, 'axis_names'):
      named.update({(*module.path, name): axes for name, axes in module.axis_names().items()})
    return call(*args, **kwargs)

  def init(x: Any) -> Any:
    if not isinstance(model, nn.Module):
      return model.init(jax.random.key(0), x)['params']
    return nn.Module.init_with_output(model, jax.random.key(0), x)[1]['params']  # with its boxes

  with nn.intercept_methods(read):
    boxed = jax.eval_shape(init, example)

  def names_of(path: Any, leaf: Any) -> AxisNames:
    if isinstance(leaf, nn.Partitioned):
      return tuple(name if isinstance(name, str) else None for name in leaf.names)
    axes = named.get(tuple(key.key for key in path), ())
    return axes if len(axes) == leaf.ndim else (None,) * leaf.ndim

  is_boxed = lambda node: isinstance(node, nn.Partitioned)
  return jax.tree_util.tree_map_with_path(names_of, boxed, is_leaf=is_boxed)
