"""Cutting out what is pruned: a smaller dense network that computes what the masked one does.

A network with gates in one structure, without the units that do not stay, becomes a plain module of
its own config: branches whose residual gates are off and units that are cut have no parameters in
it, inner gates are the arithmetic that they stand for. The residual stream keeps its width, as the
norms read all of it; a plain stack has none.

  hidden units 0 and 2 of 3:   in/kernel [D, 3] → [D, 2]   out/kernel [3, D] → [2, D]
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from additive_jax.batches import rows
from additive_jax.compress.fixed import Fixed, make_fixed
from additive_jax.compress.plans import INPUTS, PLANNERS, Selection, cut_wiring, has_routers
from additive_jax.compress.steps import Steps, make_steps
from additive_jax.errors import UserError
from additive_jax.gates.structure import Structure, parse
from additive_jax.models.additive import Additive, canonical, gate_names, sites_of
from additive_jax.models.batch_norm import has_statistics
from additive_jax.models.contract import statistics_of
from additive_jax.models.dense_stack import DenseStack
from additive_jax.models.flops import count_flops
from additive_jax.models.reads import read_by
from additive_jax.transplant.growth import Receipt, compare
from additive_jax.transplant.pairs import params_of
from additive_jax.transplant.wiring import module_names

Batch: TypeAlias = PyTree[Shaped[Array | np.ndarray, 'B ...']]
Units = dict[str, Bool[np.ndarray, 'size']]  # by space


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
  """A smaller network, cut out of one with gates.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
  >>> smaller = cut(model, variables, '10')
  >>> smaller.structure, list(smaller.variables['params'])
  (Structure('10'), ['block_00', 'embed', 'readout'])
  >>> make(smaller.config) == smaller.model
  True

  Attributes:
    model: a plain Flax module; `model.apply(variables, x)` gives the outputs.
    variables: `{'params': its parameters}`.
    config: of the model, as JSON values; `make(config)` makes it again.
    gates, structure: names of the gates of the network it was cut out of, and their values.
    units: by space, which units stay.
    rule: what was cut, in words.
  """

  model: nn.Module
  variables: PyTree
  config: dict[str, Any]
  gates: tuple[str, ...]
  structure: Structure
  units: Units
  rule: str


class Cost(NamedTuple):
  """The costs of a network.

  Attributes:
    flops: of one example's forward pass, see `models.flops`.
    bytes: of its parameters.
  """

  flops: float
  bytes: int


def cut(
  model: Additive,
  variables: PyTree,
  structure: Any = None,
  keep: Mapping[str, Any] | None = None,
  x: Batch | None = None,
) -> Cut:
  """Cuts out what a structure does not run and units that do not stay.

  Args:
    model: an MLP, DenseStack, Transformer or ConvNet; or any other additive network, LeNet and VGG
      among them, for which there is no `keep`: the result holds the module in its structure and
      those leaves of the pool that it asks for.
    variables: `{'params': pool}`; of a network with BatchNorms with the structure's statistics, as
      `recalibrate` gives them.
    structure: static, in any form; None is all-on. The result names it without the gates that have
      no effect.
    keep: which units stay, bool [n] by space; see `spaces`. Others keep all. A unit that does not
      stay is taken to give zero.
    x: a batch of inputs, of which the shape matters. Without it, a network of one's own keeps what
      several sites share, even where all of them are off: its inputs tell who reads what.

  Raises:
    UserError: for a network with routers, a structure of another length, spaces or lengths that the
      model does not have, or a layer of a plain stack without units.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> variables = model.init(jax.random.key(0), jnp.ones((1, 5)))
  >>> smaller = cut(model, variables, '10', {'block_00/hidden': np.arange(8) < 3})
  >>> smaller.rule
  'cut MLP: 1 of 2 gates off, hidden 16→11'
  >>> smaller.variables['params']['block_00']['in']['kernel'].shape
  (4, 3)
  """
  if has_routers(model):
    raise UserError(
      f'cut of {type(model).__name__} with routers: expected a network that runs the same for all '
      'tokens'
    )
  pool, gates = params_of(variables), gate_names(model)
  structure = _parsed(structure, len(gates))
  structure = Structure(tuple(canonical(model, np.array([structure.bits], bool))[0]))
  units = _checked_units(model, variables, keep or {})
  network: Fixed | Steps
  if type(model) in PLANNERS:
    plan = PLANNERS[type(model)](model, Selection(structure, units))
    network = Steps(tuple(plan.steps))
    config = {'network': 'steps', 'steps': network.config}
    smaller = {'params': _cut_pool(model, pool, units, plan.sources)}
  else:
    network = Fixed(model, structure.bits)
    config = {'network': 'fixed', **network.config}
    smaller = _fixed_variables(model, variables, structure, x)
  rule = _rule(model, structure, units)
  return Cut(network, smaller, config, gates, structure, units, rule)


def make(config: Mapping[str, Any], model: Callable[..., Additive] | None = None) -> nn.Module:
  """Returns the module of a `Cut.config`.

  Args:
    config: as it is, or from a file. It makes networks of the library alone.
    model: the class of a network of one's own, where the config is of one.

  Raises:
    UserError: for anything else.
  """
  kind = config.get('network') if isinstance(config, Mapping) else None
  if kind not in ('steps', 'fixed'):
    raise UserError(f"config with network {kind!r}: expected 'steps' or 'fixed', as cut gives it")
  if kind == 'fixed':
    return make_fixed(config, model)
  if not isinstance(config.get('steps'), list | tuple):
    raise UserError(f'config with steps {config.get("steps")!r}: expected a list, as cut gives it')
  return make_steps(config['steps'])


def spaces(model: Additive, variables: PyTree) -> dict[str, int]:
  """Returns the spaces whose units can be cut, and how many each has: hidden units, heads and inner
  channels of each block, in the names of `transplant.wiring_of`; and `inputs`, the numbers of an
  input that is flattened.

  Empty for models other than MLP, DenseStack, Transformer and ConvNet.
  """
  if type(model) not in PLANNERS:
    return {}
  wiring = cut_wiring(model)
  shapes = wiring.shapes(params_of(variables))
  for name in shapes:
    if name not in wiring.axes:
      raise UserError(f'leaf {name} of the pool: expected those of {type(model).__name__}')
  fixed = wiring.streams.keys() | wiring.nested
  return {
    axis.space: shape[number]
    for _, shape, number, axis in wiring.unit_axes(shapes)
    if axis.space not in fixed
  }


def masked(model: Additive, variables: PyTree, keep: Mapping[str, Any]) -> PyTree:
  """Returns `{'params': pool}` with zeros in place of all that writes or reads a unit that does not
  stay, so that it gives exactly zero; the network that `cut` is compared with.

  Raises:
    UserError: as `cut`.
  """
  units = _checked_units(model, variables, keep)
  if all(mask.all() for mask in units.values()):
    return variables
  wiring = cut_wiring(model)
  leaves = wiring.flat(params_of(variables))
  for name, _, number, axis in wiring.unit_axes(dict(leaves)):
    if axis.space in units:
      leaf = leaves[name]
      mask = np.expand_dims(units[axis.space], [i for i in range(leaf.ndim) if i != number])
      leaves[name] = np.where(mask, leaf, np.zeros((), leaf.dtype))
  return {'params': jax.tree.map(jnp.asarray, wiring.pool(leaves))}


def used(model: Additive, variables: PyTree) -> Units:
  """Returns which units a pool with zeros in it uses, as `cut` takes them.

  A unit that only zeros write gives zero, as every activation does at zero, and one that only zeros
  read is as good as zero; the same is asked again without them, until nothing changes. Layers of a
  plain stack, and inputs, keep one unit at least, which `cut` needs.
  """
  wiring = cut_wiring(model)
  units = {name: np.ones(size, bool) for name, size in spaces(model, variables).items()}
  while True:
    leaves = wiring.flat(params_of(masked(model, variables, units)))
    remaining = {}
    for name in units:
      sides = wiring.sides(leaves, name, lambda leaf, axes: (leaf != 0).any(axes))
      remaining[name] = np.logical_and.reduce([np.any(side, 0) for side in sides if side])
      remaining[name][0] |= not remaining[name].any() and _needs_a_unit(model, name)
    if all((remaining[name] == units[name]).all() for name in units):
      return units
    units = remaining


@functools.partial(jax.jit, static_argnums=(0, 3))
def logits(
  model: nn.Module, variables: PyTree, x: Batch, structure: Structure | None = None
) -> Float[Array, 'B ...']:
  """Returns the outputs of a network with gates in a structure, or of a plain module; compiled once
  for each."""
  apply: Any = model.apply  # gives arrays alone, as nothing in the pool may change
  return apply(variables, x, *([] if structure is None else [structure]))


def receipt(cut: Cut, model: Additive, variables: PyTree, x: Batch) -> Receipt:
  """Compares the outputs of what was cut out with those of the masked network.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> x = jnp.ones((1, 5))
  >>> variables = model.init(jax.random.key(0), x)
  >>> found = receipt(cut(model, variables, '10'), model, variables, x)
  >>> found.rule, found.max_difference < 1e-5
  ('cut MLP: 1 of 2 gates off', True)

  Args:
    cut: the result of `cut`.
    model, variables: what it was cut out of.
    x: a batch of inputs.
  """
  before = logits(model, masked(model, variables, cut.units), x, cut.structure)
  after = logits(cut.model, cut.variables, x)
  return compare(cut.rule, True, before, after)


def cost(model: nn.Module, variables: PyTree, x: Batch, structure: Any = None) -> Cost:
  """Returns what a network costs, with gates or without.

  FLOPs are those of one example by itself, as tables of structures have them: what a batch takes
  once, such as the square roots of a BatchNorm's variances, counts whole.

  Args:
    model: with gates, in `structure` (None is all-on), or a plain module.
    variables: all of its parameters are counted, whether they are read or not.
    x: a batch of inputs, of which the shape matters.
    structure: in any form.
  """
  if structure is not None:
    structure = parse(structure, len(gate_names(model)))
  run = functools.partial(logits, model, structure=structure)
  flops = count_flops(run, variables, rows(x, slice(1)), of=type(model).__name__)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  return Cost(flops, size)


def _parsed(structure: Any, num_gates: int) -> Structure:
  return Structure.all_on(num_gates) if structure is None else parse(structure, num_gates)


def _checked_units(model, variables, keep: Mapping[str, Any]) -> Units:
  """Returns which units of all spaces stay."""
  sizes = spaces(model, variables)
  units = {name: np.ones(size, bool) for name, size in sizes.items()}
  for name, values in keep.items():
    if name not in sizes:
      known = ', '.join(sizes) or f'no units of {type(model).__name__}, structures alone'
      raise UserError(f'keep of {name!r}: expected some of {known}')
    mask = np.asarray(values)
    if mask.dtype != bool or mask.shape != (sizes[name],):
      raise UserError(
        f'keep of {name} of {mask.dtype}{list(mask.shape)}: expected bool[{sizes[name]}], one for '
        'each unit'
      )
    if not mask.any() and _needs_a_unit(model, name):
      raise UserError(f'keep of {name} without units: expected at least one of {sizes[name]}')
    units[name] = mask
  return units


def _needs_a_unit(model, space: str) -> bool:
  return isinstance(model, DenseStack) or space == INPUTS


def _cut_pool(model, pool, units: Units, sources: Mapping[str, str]) -> PyTree:
  """Returns the leaves that stay, without the units that do not, under their new names."""
  wiring = cut_wiring(model)
  leaves = wiring.flat(pool)
  for name, _, number, axis in wiring.unit_axes(dict(leaves)):
    if axis.space in units:
      leaves[name] = np.compress(units[axis.space], leaves[name], number)
  renamed = {}
  for path, leaf in flatten_dict(wiring.pool(leaves), sep='/').items():
    for new, old in sources.items():
      if path == old or path.startswith(f'{old}/'):
        renamed[f'{new}{path.removeprefix(old)}'] = jnp.asarray(leaf)
  return unflatten_dict(renamed, sep='/')


def _fixed_variables(model, variables, structure: Structure, x: Batch | None) -> PyTree:
  """Returns the leaves that a network in its structure asks for."""
  named = zip(module_names(model), sites_of(model), strict=True)
  off = {name for name, site in named if site.has_residual and not structure[site.start]}
  smaller = {
    collection: {name: leaves for name, leaves in tree.items() if name not in off}
    for collection, tree in variables.items()
  }
  if x is None:
    return smaller
  if statistics_of(model, x) and not has_statistics(variables):
    raise UserError(
      f'cut of {type(model).__name__} without statistics of its BatchNorms: expected those of the '
      f'structure, additive_jax.recalibrate(model, variables, [{str(structure)!r}], data)[0]'
    )
  asked, pool = read_by(model, x, structure), flatten_dict(params_of(variables))
  read = {path: leaf for path, leaf in pool.items() if path in asked}
  return smaller | {'params': unflatten_dict(read)}


def _rule(model, structure: Structure, units: Units) -> str:
  """Returns what was cut, such as `cut MLP: 2 of 6 gates off, hidden 48→13`."""
  off = structure.num_gates - structure.num_on
  parts = [f'{off} of {structure.num_gates} gates off'] if off else []
  sizes: dict[str, tuple[int, int]] = {}
  for name, mask in units.items():
    kind = name.split('/')[-1]
    before, after = sizes.get(kind, (0, 0))
    sizes[kind] = before + len(mask), after + int(mask.sum())
  parts += [f'{kind} {n}→{m}' for kind, (n, m) in sizes.items() if n != m]
  return f'cut {type(model).__name__}: {", ".join(parts) or "nothing"}'
