"""Which leaves of the pool each part of a model reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from additive_jax.batches import Shapes
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import Inputs, sites_of
from additive_jax.models.batch_norm import BATCH_STATS
from additive_jax.models.side import call_part


@dataclasses.dataclass(frozen=True)
class Parts:
  """Which leaves of the pool each part of a model reads, as pytrees of shapes.

  Attributes:
    embed, readout: parameter trees (`ShapeDtypeStruct` leaves) of the ungated parts.
    sites: one tree per site.
    streams: the stream that each site takes, as `ShapeDtypeStruct`, and the one readout takes; with
      their sides.
    stored: collections beside the parameters, the statistics of BatchNorms, of the whole model.
    normed: the paths of the statistics that each part reads: embed, the sites, readout.
  """

  embed: PyTree
  sites: tuple[PyTree, ...]
  readout: PyTree
  streams: tuple[Any, ...]
  stored: PyTree = dataclasses.field(default_factory=dict)
  normed: tuple[frozenset[tuple[str, ...]], ...] = ()


def parts(model: nn.Module, x: Inputs | Shapes) -> Parts:
  """Returns what each part of `model` reads, by tracing its init on the shape of `x` [B, ...].
  Computes nothing."""
  stored: list[dict[tuple[str, ...], Any]] = []
  embed_tree, h = _shapes(model, lambda module, x: module.embed(x), x, stored)
  trees, streams = [], [h]
  for i, site in enumerate(sites_of(model)):
    on = (True,) * len(site.names)
    call = lambda module, i=i: functools.partial(call_part, module.sites[i])
    run = lambda module, h, call=call, site=site, on=on: site.step(call(module), h, on)
    tree, h = _shapes(model, run, h, stored)
    trees.append(tree)
    streams.append(h)
  readout_tree, _ = _shapes(model, lambda module, h: call_part(module.readout, h), h, stored)
  whole = {path: leaf for of_part in stored for path, leaf in of_part.items()}
  statistics = {BATCH_STATS: unflatten_dict(whole)} if whole else {}
  normed = tuple(frozenset(of_part) for of_part in stored)
  return Parts(embed_tree, tuple(trees), readout_tree, tuple(streams), statistics, normed)


def read_by(model: nn.Module, x: Inputs | Shapes, structure: Structure) -> set[tuple[str, ...]]:
  """Returns the paths of the leaves that a structure reads: those of embed, readout and the sites
  that are not off.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> sorted({m for m, *_ in read_by(model, jnp.ones((1, 5)), aj.Structure((True, False)))})
  ['block_00', 'embed', 'readout']
  """
  shapes = parts(model, x)
  on = [
    tree
    for site, tree in zip(sites_of(model), shapes.sites, strict=True)
    if not site.has_residual or structure[site.start]
  ]
  return {path for tree in (shapes.embed, *on, shapes.readout) for path in flatten_dict(tree)}


def statistics_read_by(
  model: nn.Module, x: Inputs | Shapes, structure: Structure
) -> set[tuple[str, ...]]:
  """Returns the paths of the statistics of BatchNorms that a structure reads."""
  first, *of_sites, last = parts(model, x).normed
  on = [
    paths
    for site, paths in zip(sites_of(model), of_sites, strict=True)
    if not site.has_residual or structure[site.start]
  ]
  return set().union(first, *on, last)


def _shapes(
  model: nn.Module,
  function: Callable[[Any, Any], Any],
  value: Any,
  stored: list[dict[tuple[str, ...], Any]],
) -> tuple[PyTree, Any]:
  """Returns the parameters that `function(module, value)` reads, and what it gives, as shapes; adds
  its statistics, by path, to those of other parts."""
  run = lambda key, value: model.init_with_output(key, value, method=function)
  out, variables = jax.eval_shape(run, jax.random.key(0), value)
  stored.append(flatten_dict(variables.get(BATCH_STATS, {})))
  return variables.get('params', {}), out
