"""What may bear noise and be removed: every weight, every hidden unit or head, every residual gate.

A level says where the noise enters a model, how many numbers it has, what they cost, and what is
left of a pool without some of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from additive_jax import run
from additive_jax.compress.cut_steps import INPUTS, MAKERS
from additive_jax.compress.cutting import masked
from additive_jax.compress.cutting import spaces as cut_spaces
from additive_jax.compress.noise import (
  KERNEL,
  Draw,
  NoisyKernel,
  ScaledKernel,
  linear_maps,
  with_kernels,
)
from additive_jax.errors import UserError
from additive_jax.models import MLP, DenseStack
from additive_jax.models.additive import gate_names, sites_of
from additive_jax.models.costs import measure
from additive_jax.models.kinds import LANE
from additive_jax.transplant import wiring_of
from additive_jax.transplant.wiring import READS, WRITES

LEVELS = ('weight', 'unit', 'gate')
GATES = 'gates'
LIMIT = 8.0  # of |log α|; beyond it noise or mean is nothing beside the other
BINS = np.linspace(-LIMIT, LIMIT, 65)  # edges of those of a histogram of log α


class Pruned(NamedTuple):
  """A network without what was removed.

  Attributes:
    params: the pool, with zeros for removed weights and for all weights of removed units.
    structure: its gates, bool [n].
    units: which units of each space are left, bool [size] by space: the others were removed, or no
      weight that is left reads them. {} for gates.
  """

  params: Any
  structure: np.ndarray
  units: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Weights:
  """The weights of all kernels that are matrices; biases, norms and embeddings stay.

  Attributes:
    model: an additive model.
    shapes: of the kernels by name, their path in the pool.
  """

  model: Any
  shapes: tuple[tuple[str, tuple[int, ...]], ...]

  @property
  def counts(self) -> tuple[tuple[str, int], ...]:
    """How many weights go with each number of a name: by name, a number or an array."""
    return tuple((name, 1) for name, _ in self.shapes)

  def run(self, mean, log_variance, x: jax.Array, keys: jax.Array) -> jax.Array:
    """Logits of all gates on with noise, a draw for each example.

    Args:
      mean: the pool of the model.
      log_variance: log σ² by name.
      keys: [B].
    """
    draw = Draw(keys)
    noisy = {
      name.removesuffix(f'/{KERNEL}'): lambda kernel, name=name: NoisyKernel(
        kernel, jnp.exp(log_variance[name]), draw
      )
      for name, _ in self.shapes
    }
    return with_kernels(self.model, mean, x, noisy)

  def log_alpha(self, mean, log_variance) -> dict[str, jax.Array]:
    """By name, clipped to ±8, as in the paper's program."""
    own = flatten_dict(mean, sep='/')
    squared = {name: jnp.square(own[name]) for name, _ in self.shapes}
    return {
      name: jnp.clip(log_variance[name] - jnp.log(value + 1e-16), -LIMIT, LIMIT)
      for name, value in squared.items()
    }

  def prune(self, params, keep) -> Pruned:
    """The network with the weights of `keep`, bool by name, alone."""
    leaves = flatten_dict(jax.tree.map(np.asarray, params), sep='/')
    leaves |= {name: np.where(keep[name], leaves[name], 0) for name, _ in self.shapes}
    params = unflatten_dict(leaves, sep='/')
    return Pruned(params, _all_on(self.model), self._read(params))

  def _read(self, params) -> dict[str, np.ndarray]:
    """Which units some weight still reads; the others can be cut out."""
    sizes = cut_spaces(self.model, {'params': params})
    read = {name: np.zeros(size, bool) for name, size in sizes.items()}
    wiring = wiring_of(self.model)
    for name, leaf in wiring.flat(params).items():
      for number, axis in enumerate(wiring.axes.get(name, ())):
        if axis is not None and axis.role == READS and axis.space in read:
          others = tuple(i for i in range(leaf.ndim) if i != number)
          read[axis.space] |= (leaf != 0).any(others)
    if INPUTS in read:
      first = flatten_dict(params, sep='/')[self.shapes[0][0]]
      read[INPUTS] = (first != 0).any(1)
    for own in read.values():
      own[0] |= not own.any()
    return read


@dataclasses.dataclass(frozen=True)
class Units:
  """Hidden units and attention heads: each has one noise for all tokens of an example, which
  multiplies what is read of it. Its mean is 1, for the weights can take any other; so log α is
  log σ².

  Attributes:
    model: a model that has a `transplant.Wiring`.
    shapes: (size,) by space.
    counts: by space, the weights that go with a unit.
    readers: the modules whose kernels read a space, with the space and how many numbers of their
      input belong to a unit.
  """

  model: Any
  shapes: tuple[tuple[str, tuple[int]], ...]
  counts: tuple[tuple[str, int], ...]
  readers: tuple[tuple[str, str, int], ...]

  def run(self, mean, log_variance, x: jax.Array, keys: jax.Array) -> jax.Array:
    draw = Draw(keys)
    scales = {
      name: 1 + jnp.exp(log_variance[name] / 2) * draw((len(x), *shape))
      for name, shape in self.shapes
    }
    scaled = {
      module: lambda kernel, space=space, each=each: ScaledKernel(
        kernel, jnp.repeat(scales[space], each, axis=1)
      )
      for module, space, each in self.readers
    }
    return with_kernels(self.model, mean, x, scaled)

  def log_alpha(self, mean, log_variance) -> dict[str, jax.Array]:
    del mean
    return _clipped(log_variance)

  def prune(self, params, keep) -> Pruned:
    """The network with the units of `keep`, bool by space, alone."""
    units = {name: np.array(keep[name], bool) for name, _ in self.shapes}
    found = masked(self.model, {'params': params}, units)
    return Pruned(jax.tree.map(np.asarray, found['params']), _all_on(self.model), units)


@dataclasses.dataclass(frozen=True)
class Gates:
  """Residual gates: what a site adds is multiplied by a noise of mean 1 for each example; log α is
  log σ², as for units. Other gates stay on.

  Attributes:
    model: an additive model.
    positions: the numbers of its residual gates.
    weights: parameters that each switches.
  """

  model: Any
  positions: tuple[int, ...]
  weights: tuple[int, ...]

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(gate_names(self.model)[i] for i in self.positions)

  @property
  def shapes(self) -> tuple[tuple[str, tuple[int]], ...]:
    return ((GATES, (len(self.positions),)),)

  @property
  def counts(self) -> tuple[tuple[str, np.ndarray], ...]:
    return ((GATES, np.array(self.weights, np.float32)),)

  def run(self, mean, log_variance, x: jax.Array, keys: jax.Array) -> jax.Array:
    noise = Draw(keys)((len(x), len(self.positions)))
    gates = jnp.ones((len(x), len(gate_names(self.model))))
    gates = gates.at[:, self.positions].add(jnp.exp(log_variance[GATES] / 2) * noise)
    return run.masked(self.model, {'params': mean}, x, gates)

  def log_alpha(self, mean, log_variance) -> dict[str, jax.Array]:
    del mean
    return _clipped(log_variance)

  def prune(self, params, keep) -> Pruned:
    """The network with the residual gates of `keep[GATES]`, bool, alone."""
    structure = _all_on(self.model)
    structure[list(self.positions)] = keep[GATES]
    return Pruned(jax.tree.map(np.asarray, params), structure, {})


def make_level(level: str, model, x, *, inputs: bool = False) -> Weights | Units | Gates:
  """The level called `level` of a model, for inputs of the shape of `x` [B, ...].

  Args:
    inputs: whether the numbers of an input that is flattened are units too, the space `inputs`.

  Raises:
    UserError: for another name, or a model in which nothing is found at this level.
  """
  if level not in LEVELS:
    raise UserError(f'level {level!r}: expected one of {", ".join(LEVELS)}')
  if level == 'unit':
    return _units(model, x, inputs)
  if inputs:
    raise UserError(f'noise of inputs per {level}: expected it per unit alone')
  return _weights(model, x) if level == 'weight' else _gates(model, x)


def _weights(model, x):
  named = _check_maps(model, 'weights', x)
  shapes = tuple((f'{name}/{KERNEL}', shape) for name, shape in named.items())
  pool = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), x)['params'], sep='/')
  missed = [n for n in pool if n.endswith(KERNEL) and n not in dict(shapes)]
  if missed or not shapes:
    raise UserError(
      f'noise per weight in {type(model).__name__} with {missed[0] if missed else "no kernel"}: '
      'expected kernels of dense layers alone, as dense_stack, mlp and transformer have'
    )
  return Weights(model, shapes)


def _units(model, x, inputs):
  if type(model) not in MAKERS:
    known = ', '.join(kind.__name__ for kind in MAKERS)
    raise UserError(f'noise per unit in {type(model).__name__}: expected one of {known}')
  named, wiring = _check_maps(model, 'units', x), wiring_of(model)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  shapes = wiring.shapes(variables['params'])
  sizes, counts, written, readers = {}, {}, set(), {}
  for leaf, shape in shapes.items():
    module = leaf.removesuffix(f'/{KERNEL}')
    for number, axis in enumerate(wiring.axes.get(leaf, ())):
      if axis is None or axis.space in wiring.streams or axis.space in wiring.nested:
        continue
      sizes[axis.space] = shape[number]
      counts[axis.space] = counts.get(axis.space, 0) + int(np.prod(shape)) // shape[number]
      written |= {axis.space} if axis.role == WRITES else set()
      if axis.role == READS and module in named:
        readers[module] = (axis.space, int(np.prod(shape[number + 1 : -1])))
  read = {space for space, _ in readers.values()}
  spaces = [space for space in sizes if space in written & read]
  if not spaces:
    raise UserError(
      f'noise per unit in {type(model).__name__}: expected hidden units or heads that dense layers '
      'read, as dense_stack, mlp and transformer have'
    )
  if inputs:
    if not isinstance(model, DenseStack | MLP):
      raise UserError(
        f'noise of inputs of {type(model).__name__}: expected a network that flattens them, '
        'dense_stack or mlp'
      )
    first, (sizes[INPUTS], counts[INPUTS]) = next(iter(named.items()))
    readers[first] = (INPUTS, 1)
    spaces = [INPUTS, *spaces]
  return Units(
    model,
    tuple((space, (sizes[space],)) for space in spaces),
    tuple((space, counts[space]) for space in spaces),
    tuple((module, *own) for module, own in readers.items() if own[0] in spaces),
  )


def _gates(model, x):
  positions = tuple(site.start for site in sites_of(model) if site.has_residual)
  if not positions:
    raise UserError(
      f'noise per gate in {type(model).__name__} with gates {", ".join(gate_names(model))}: '
      'expected residual gates'
    )
  space = measure(model, x)
  return Gates(model, positions, tuple(space.gates[i].params for i in positions))


def _check_maps(model, what, x):
  """The modules of a model whose kernels can be replaced."""
  if getattr(model, 'routing', None) is not None or LANE in getattr(model, 'gates', ()):
    raise UserError(
      f'noise per {what[:-1]} in {type(model).__name__} with routers or lanes: expected neither'
    )
  return linear_maps(model, x)


def _clipped(log_variance):
  return jax.tree.map(lambda values: jnp.clip(values, -LIMIT, LIMIT), log_variance)


def _all_on(model) -> np.ndarray:
  return np.ones(len(gate_names(model)), bool)
