"""The parts of a model that bear noise at a level: the weights, units or gates of one model."""

from __future__ import annotations

import numpy as np
from flax.traverse_util import flatten_dict

from additive_jax.compress.levels import GATES, Batch, Gates, Level, Units, Weights
from additive_jax.compress.noise import KERNEL, linear_maps
from additive_jax.compress.plans import INPUTS, PLANNERS, cut_wiring
from additive_jax.errors import UserError
from additive_jax.models import MLP, DenseStack
from additive_jax.models.additive import Additive, gate_names, initial_shapes, sites_of
from additive_jax.models.costs import measure
from additive_jax.models.kinds import LANE
from additive_jax.transplant.wiring import READS, WRITES

LEVELS = ('weight', 'unit', 'gate')


def make_level(level: str, model: Additive, x: Batch, *, inputs: bool = False) -> Level:
  """Returns the level called `level` of a model.

  Args:
    level: 'weight', 'unit' or 'gate'.
    model: an additive model.
    x: inputs, of which the shape matters.
    inputs: whether the numbers of an input that is flattened are units too, the space `inputs`.

  Raises:
    UserError: for another name, or a model in which nothing is found at this level.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> make_level('unit', model, np.ones((1, 5), np.float32)).shapes
  (('block_00/hidden', (8,)), ('block_01/hidden', (8,)))
  """
  if level not in LEVELS:
    raise UserError(f'level {level!r}: expected one of {", ".join(LEVELS)}')
  if level == 'unit':
    return _units(model, x, inputs)
  if inputs:
    raise UserError(f'noise of inputs per {level}: expected it per unit alone')
  return _weights(model, x) if level == 'weight' else _gates(model, x)


def _weights(model, x) -> Weights:
  kernels = {f'{name}/{KERNEL}': shape for name, shape in _maps(model, 'weight', x).items()}
  pool = flatten_dict(initial_shapes(model, x)['params'], sep='/')
  unmapped = [name for name in pool if name.endswith(KERNEL) and name not in kernels]
  if unmapped or not kernels:
    kernel = unmapped[0] if unmapped else 'no kernel'
    raise UserError(
      f'noise per weight in {type(model).__name__} with {kernel}: '
      'expected kernels of dense layers alone, as dense_stack, mlp and transformer have'
    )
  return Weights(model, tuple(kernels.items()), tuple((name, 1) for name in kernels))


def _units(model, x, inputs: bool) -> Units:
  if type(model) not in PLANNERS:
    known = ', '.join(kind.__name__ for kind in PLANNERS)
    raise UserError(f'noise per unit in {type(model).__name__}: expected one of {known}')
  maps, wiring = _maps(model, 'unit', x), cut_wiring(model)
  shapes = wiring.shapes(initial_shapes(model, x)['params'])
  sizes: dict[str, int] = {}
  counts: dict[str, int] = {}
  written_spaces: set[str] = set()
  readers: dict[str, tuple[str, int]] = {}
  for leaf, shape, number, (role, space) in wiring.unit_axes(shapes):
    if space in wiring.streams or space in wiring.nested:
      continue
    module = leaf.removesuffix(f'/{KERNEL}')
    sizes[space] = shape[number]
    counts[space] = counts.get(space, 0) + int(np.prod(shape)) // shape[number]
    if role == WRITES:
      written_spaces.add(space)
    elif role == READS and module in maps:
      readers[module] = space, int(np.prod(shape[number + 1 : -1]))
  read_spaces = {space for space, _ in readers.values()}
  chosen = [space for space in sizes if space in written_spaces & read_spaces]
  if not chosen:
    raise UserError(
      f'noise per unit in {type(model).__name__}: expected hidden units or heads that dense layers '
      'read, as dense_stack, mlp and transformer have'
    )
  if inputs and not isinstance(model, DenseStack | MLP):
    raise UserError(
      f'noise of inputs of {type(model).__name__}: expected a network that flattens them, '
      'dense_stack or mlp'
    )
  chosen = [INPUTS, *chosen] if inputs else chosen
  return Units(
    model,
    tuple((space, (sizes[space],)) for space in chosen),
    tuple((space, counts[space]) for space in chosen),
    tuple((module, *reads) for module, reads in readers.items() if reads[0] in chosen),
  )


def _gates(model, x) -> Gates:
  sites = [site for site in sites_of(model) if site.has_residual]
  positions = tuple(site.start for site in sites)
  if not positions:
    raise UserError(
      f'noise per gate in {type(model).__name__} with gates {", ".join(gate_names(model))}: '
      'expected residual gates'
    )
  shares = measure(model, x).params_by_gate()  # of parameters that sites share, equal parts
  counts = ((GATES, tuple(round(shares[site.gates].sum()) for site in sites)),)
  return Gates(model, ((GATES, (len(positions),)),), counts, positions)


def _maps(model, level: str, x) -> dict[str, tuple[int, ...]]:
  """Returns the modules of a model whose kernels can be replaced, and these kernels' shapes."""
  if getattr(model, 'routing', None) is not None or LANE in getattr(model, 'gates', ()):
    raise UserError(
      f'noise per {level} in {type(model).__name__} with routers or lanes: expected neither'
    )
  return linear_maps(model, x)
