"""What the parts of a model cost: FLOPs as XLA counts them, and parameters. Nothing is computed but
shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from additive_jax.gates.structure import Gate, Space
from additive_jax.models.additive import (
  Inputs,
  Parts,
  embed,
  gate_names,
  parts,
  readout,
  shape_of,
  sites_of,
  update,
)


def measure(model: nn.Module, x: Inputs | jax.ShapeDtypeStruct) -> Space:
  """Returns the space of `model` with all its costs, for inputs of the shape of `x` [B, ...].

  FLOPs are XLA's own count for the program of each part, per example of `x`. Parameters shared by
  several parts are counted once: for embed and readout if they read them, else for the first site
  that does. What a site without a residual gate costs with its gates off is fixed.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> measure(model, jnp.zeros((1, 5))).params('11')
  215
  """
  return measured(model, shape_of(x))


@functools.lru_cache(maxsize=64)
def measured(model: nn.Module, x: jax.ShapeDtypeStruct) -> Space:
  """Returns `measure` of a shape; experiments ask for that of one network many times."""
  batch, names, shapes = x.shape[0], gate_names(model), parts(model, x)
  counted = _sizes(shapes.embed) | _sizes(shapes.readout)
  gates: list[Gate] = []
  fixed_flops, fixed_params = 0.0, sum(counted.values())
  for i, (site, h, tree) in enumerate(zip(sites_of(model), shapes.streams, shapes.sites)):
    new = {path: size for path, size in _sizes(tree).items() if path not in counted}
    counted |= new

    def flops(inner: tuple[bool, ...], i=i, h=h, tree=tree) -> float:
      return _flops(lambda v, h: update(model, v, i, h, inner), tree, h) / batch

    base, params = flops((False,) * site.num_inner), sum(new.values())
    residual = names[site.start] if site.has_residual else None
    if residual is None:
      fixed_flops, fixed_params = fixed_flops + base, fixed_params + params
    else:
      gates.append(Gate(residual, base, params))
    for k, name in enumerate(names[site.inner]):
      alone = tuple(j == k for j in range(site.num_inner))
      gates.append(Gate(name, flops(alone) - base, 0, residual))
  fixed_flops += ends_flops(model, shapes, x)
  return Space(tuple(gates), fixed_flops, fixed_params)


def ends_flops(model: nn.Module, shapes: Parts, x: Inputs | jax.ShapeDtypeStruct) -> float:
  """Returns the FLOPs of embed and readout, per example of `x`; `shapes` are the model's for x.

  They are what `measure` gives as fixed where every site has a residual gate:

  >>> model, x = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3), jnp.zeros((1, 5))
  >>> ends_flops(model, parts(model, x), x) == measure(model, x).fixed_flops
  True
  """
  flops = _flops(lambda v, x: embed(model, v, x), shapes.embed, shape_of(x))
  flops += _flops(lambda v, h: readout(model, v, h), shapes.readout, shapes.streams[-1])
  return flops / x.shape[0]


def module_flops(module: nn.Module, tokens: int, width: int) -> float:
  """Returns the FLOPs of a module on a stream [1, T, D].

  For each token and output a dense layer multiplies and adds D times and adds a bias:

  >>> module_flops(nn.Dense(4), tokens=3, width=8) == 3 * 4 * (2 * 8 + 1)
  True
  """
  h = jax.ShapeDtypeStruct((1, tokens, width), 'float32')
  params = jax.eval_shape(module.init, jax.random.key(0), h)['params']
  return _flops(module.apply, params, h)


def num_params(model: nn.Module, x: Inputs | jax.ShapeDtypeStruct) -> int:
  """Returns how many parameters the pool has, for inputs of the shape of `x` [B, ...].

  >>> num_params(aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3), jnp.zeros((1, 5)))
  215
  """
  return sum(_sizes(jax.eval_shape(model.init, jax.random.key(0), shape_of(x))).values())


def _flops(function: Callable[..., Any], params: PyTree, value: jax.ShapeDtypeStruct) -> float:
  """Returns XLA's count for `function({'params': params}, value)`, before it optimises the
  program."""
  analysis = jax.jit(function).lower({'params': params}, value).cost_analysis() or {}
  return float(analysis.get('flops', 0.0))


def _sizes(tree: PyTree) -> dict[str, int]:
  """Returns how many parameters each leaf has, by its path."""
  flat = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): int(np.prod(leaf.shape)) for path, leaf in flat}
