"""What is pruned, cut out: a smaller dense network that computes what the masked one does.

A network with gates in one structure, without the units that are not kept, becomes a plain module
of its own config: branches whose residual gates are off and units that are cut have no parameters
in it, inner gates are the arithmetic that they stand for. The residual stream keeps its width, as
the norms read all of it; a plain stack has none.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from additive_jax.compress.cut_steps import INPUTS, MAKERS, Kept, has_routers
from additive_jax.compress.fixed import Fixed, make_fixed
from additive_jax.compress.steps import Steps, make_steps
from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, parse
from additive_jax.models.additive import gate_names, sites_of
from additive_jax.models.dense_stack import DenseStack
from additive_jax.models.mlp import MLP
from additive_jax.transplant.growth import Receipt, compare
from additive_jax.transplant.pairs import params_of
from additive_jax.transplant.wiring import (
  READS,
  Axis,
  Wiring,
  dense_layers,
  wiring_of,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
  """A smaller network, cut out of one with gates.

  Attributes:
    model: a plain Flax module; `model.apply(variables, x)` gives the logits.
    variables: `{'params': its parameters}`.
    config: of the model, as JSON values; `make(config)` makes it again.
    gates, structure: names of the gates of the network it was cut out of, and their values.
    units: by space, which units were kept, bool [n].
    rule: what was cut, in words.
  """

  model: nn.Module
  variables: Any
  config: dict
  gates: tuple[str, ...]
  structure: Structure
  units: Mapping[str, np.ndarray]
  rule: str


class Cost(NamedTuple):
  """What a network costs.

  Attributes:
    flops: of one example's forward pass, in XLA's own count.
    bytes: of its parameters.
  """

  flops: float
  bytes: int


def cut(model, variables, structure=None, keep: Mapping[str, Any] | None = None) -> Cut:
  """Cuts out what a structure does not run and what is not kept.

  Args:
    model: an MLP, DenseStack, Transformer or ConvNet; or any other additive network, LeNet and VGG
      among them, for which there is no `keep`: the result holds the module in its structure, and
      of the pool what sites that are off call their own is left out.
    variables: `{'params': pool}`.
    structure: static, in any form; None is all-on.
    keep: which units stay, bool [n] by space; see `spaces`. Others keep all. A unit that is not
      kept is taken to give zero.

  Raises:
    UserError: for a network with routers, a structure of another length, spaces or lengths that the
      model does not have, or a layer of a plain stack without units.
  """
  if has_routers(model):
    raise UserError(
      f'cut of {type(model).__name__} with routers: expected a network that runs the same for all '
      'tokens'
    )
  pool = params_of(variables)
  gates = gate_names(model)
  count = len(gates)
  structure = Structure.all_on(count) if structure is None else parse(structure, count)
  units = _units(model, variables, keep or {})
  if type(model) not in MAKERS:
    network = Fixed(model, structure.bits)
    config = {'network': 'fixed', **network.config}
    off = {
      site.label.replace('/', '__')
      for site in sites_of(model)
      if site.has_residual and not structure[site.start]
    }
    params = {name: leaves for name, leaves in pool.items() if name not in off}
  else:
    made = MAKERS[type(model)](model, Kept(structure, units))
    network = Steps(made.steps)
    config = {'network': 'steps', 'steps': network.config}
    params = _cut_pool(model, pool, units, made.parameters)
  rule = _rule(model, structure, units)
  return Cut(network, {'params': params}, config, gates, structure, units, rule)


def make(config: Mapping[str, Any]) -> nn.Module:
  """The module of a `Cut.config`.

  Raises:
    UserError: for anything else.
  """
  kind = config.get('network') if isinstance(config, Mapping) else None
  if kind not in ('steps', 'fixed'):
    raise UserError(f"config with network {kind!r}: expected 'steps' or 'fixed', as cut gives it")
  return make_steps(config['steps']) if kind == 'steps' else make_fixed(config)


def spaces(model, variables) -> dict[str, int]:
  """The spaces whose units can be cut, and how many each has: hidden units, heads and inner
  channels of each block, in the names of `transplant.wiring_of`; and `inputs`, the numbers of an
  input that is flattened.

  Empty for models other than MLP, DenseStack, Transformer and ConvNet.
  """
  if type(model) not in MAKERS:
    return {}
  wiring, found = _wiring(model), {}
  for name, shape in wiring.shapes(params_of(variables)).items():
    if name not in wiring.axes:
      raise UserError(f'leaf {name} of the pool: expected those of {type(model).__name__}')
    for axis, size in zip(wiring.axes[name], shape):
      if axis is not None:
        found[axis.space] = size
  held = wiring.streams.keys() | wiring.nested
  return {name: size for name, size in found.items() if name not in held}


def masked(model, variables, keep: Mapping[str, Any]):
  """`{'params': pool}` with zeros in place of all that writes or reads a unit that is not kept, so
  that it gives exactly zero; the network that `cut` is compared with.

  Raises:
    UserError: as `cut`.
  """
  units = _units(model, variables, keep)
  if all(kept.all() for kept in units.values()):
    return variables
  wiring = _wiring(model)
  leaves = wiring.flat(params_of(variables))
  for name, leaf in leaves.items():
    for i, axis in enumerate(wiring.axes[name]):
      if axis is not None and axis.space in units:
        along = [-1 if i == j else 1 for j in range(leaf.ndim)]
        leaf = np.where(units[axis.space].reshape(along), leaf, np.zeros((), leaf.dtype))
    leaves[name] = leaf
  return {'params': jax.tree.map(jnp.asarray, wiring.pool(leaves))}


def used(model, variables) -> dict[str, np.ndarray]:
  """Which units a pool with zeros in it uses, as `cut` takes them.

  A unit that only zeros write gives zero, as every activation does at zero, and one that only zeros
  read is as good as zero; the same is asked again without them, until nothing changes. Layers of a
  plain stack, and inputs, keep one unit at least, which `cut` needs.
  """
  wiring, sizes = _wiring(model), spaces(model, variables)
  keep, found = None, {name: np.ones(size, bool) for name, size in sizes.items()}
  while keep is None or any((found[name] != keep[name]).any() for name in keep):
    keep = found
    leaves = wiring.flat(params_of(masked(model, variables, keep)))
    found = {name: _is_used(name, leaves, wiring) for name in keep}
    for name, units in found.items():
      units[0] |= not units.any() and _needs_a_unit(model, name)
  return keep


@functools.partial(jax.jit, static_argnums=(0, 3))
def logits(model, variables, x: jax.Array, structure: Structure | None = None) -> jax.Array:
  """The logits [B, ..., C] of a network with gates in a structure, or of a plain module; compiled
  once for each."""
  return model.apply(variables, x, *([] if structure is None else [structure]))


def receipt(cut: Cut, model, variables, x: jax.Array) -> Receipt:
  """Compares the logits of what was cut out with those of the masked network.

  Args:
    cut: what `cut` returned.
    model, variables: what it was cut out of.
    x: a batch of inputs, [B, ...].
  """
  before = logits(model, masked(model, variables, cut.units), x, cut.structure)
  after = logits(cut.model, cut.variables, x)
  return compare(cut.rule, True, before, after)


def cost(model, variables, x: jax.Array, structure=None) -> Cost:
  """What a network costs, with gates or without.

  Args:
    model: with gates, in `structure` (None is all-on), or a plain module.
    variables: all of its parameters are counted, whether they are read or not.
    x: a batch of inputs, [B, ...], of which the shape matters.
  """
  if structure is not None:
    structure = parse(structure, len(gate_names(model)))
  analysis = logits.lower(model, variables, x, structure).cost_analysis() or {}
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  return Cost(float(analysis.get('flops', 0.0)) / len(x), size)


def _wiring(model) -> Wiring:
  """That of transplants, and the inputs of a network that flattens them."""
  wiring = wiring_of(model)
  if isinstance(model, MLP | DenseStack):
    first = next(iter(dense_layers(model).values())) if isinstance(model, DenseStack) else 'embed'
    path = f'{first}/kernel'
    axes = {**wiring.axes, path: (Axis(READS, INPUTS), *wiring.axes[path][1:])}
    wiring = dataclasses.replace(wiring, axes=axes)
  return wiring


def _units(model, variables, keep) -> dict[str, np.ndarray]:
  """Which units of all spaces are kept, checked."""
  sizes = spaces(model, variables)
  units = {name: np.ones(size, bool) for name, size in sizes.items()}
  for name, kept in keep.items():
    if name not in sizes:
      known = ', '.join(sizes) or f'no units of {type(model).__name__}, structures alone'
      raise UserError(f'keep of {name!r}: expected some of {known}')
    kept = np.asarray(kept)
    if kept.dtype != bool or kept.shape != (sizes[name],):
      raise UserError(
        f'keep of {name} of {kept.dtype}{list(kept.shape)}: expected bool[{sizes[name]}], one for '
        'each unit'
      )
    if not kept.any() and _needs_a_unit(model, name):
      raise UserError(f'keep of {name} without units: expected at least one of {sizes[name]}')
    units[name] = kept
  return units


def _needs_a_unit(model, space) -> bool:
  return isinstance(model, DenseStack) or space == INPUTS


def _is_used(space, leaves, wiring) -> np.ndarray:
  """Which units of a space have something that writes them and something that reads them."""
  sides = {True: [], False: []}
  for path, leaf in leaves.items():
    for i, axis in enumerate(wiring.axes[path]):
      if axis is not None and axis.space == space:
        others = tuple(j for j in range(leaf.ndim) if j != i)
        sides[axis.role == READS].append((leaf != 0).any(others))
  return np.logical_and.reduce([np.any(side, 0) for side in sides.values() if side])


def _cut_pool(model, pool, units, parameters):
  """The leaves that are kept, without the units that are not, under their new names."""
  wiring = _wiring(model)
  leaves = wiring.flat(pool)
  for name, leaf in leaves.items():
    for i, axis in enumerate(wiring.axes[name]):
      if axis is not None and axis.space in units:
        leaf = np.compress(units[axis.space], leaf, i)
    leaves[name] = leaf
  leaves, kept = flatten_dict(wiring.pool(leaves), sep='/'), {}
  for new, old in parameters.items():
    for path, leaf in leaves.items():
      if path == old or path.startswith(f'{old}/'):
        kept[f'{new}{path.removeprefix(old)}'] = jnp.asarray(leaf)
  return unflatten_dict(kept, sep='/')


def _rule(model, structure, units) -> str:
  """What was cut, such as `cut MLP: 2 of 6 gates off, hidden 48→13`."""
  parts, sizes = [], {}
  if off := structure.num_gates - structure.num_on:
    parts.append(f'{off} of {structure.num_gates} gates off')
  for name, kept in units.items():
    before, after = sizes.get(name.split('/')[-1], (0, 0))
    sizes[name.split('/')[-1]] = before + len(kept), after + int(kept.sum())
  parts += [f'{kind} {n}→{m}' for kind, (n, m) in sizes.items() if n != m]
  return f'cut {type(model).__name__}: {", ".join(parts) or "nothing"}'
