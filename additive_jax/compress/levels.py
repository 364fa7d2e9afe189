"""The levels at which a model bears noise and loses parts: every weight, every hidden unit or head,
every residual gate.

A level says where the noise enters a model, how many numbers it has, how large each is, what they
cost, and what is left of a pool without some of them.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Key, PyTree, Shaped

from additive_jax import run
from additive_jax.batches import num_examples
from additive_jax.compress.cutting import masked, spaces
from additive_jax.compress.noise import KERNEL, Draw, NoisyKernel, ScaledKernel, with_kernels
from additive_jax.compress.plans import cut_wiring
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import Additive, gate_names, sites_of
from additive_jax.models.identity import inner
from additive_jax.transplant.copies import strengths
from additive_jax.transplant.wiring import module_names

GATES = 'gates'
LIMIT = 8.0  # of |log α|; beyond it noise or mean is nothing beside the other
BINS = np.linspace(-LIMIT, LIMIT, 65)  # edges of those of a histogram of log α

Batch: TypeAlias = PyTree[Shaped[Array | np.ndarray, 'B ...']]
ByName = Mapping[str, Float[Array | np.ndarray, '...']]
Keys = Key[Array, 'B']
Logits = Float[Array, 'B ...']
Magnitudes = dict[str, Float[np.ndarray, '...']]
Masks = Mapping[str, Bool[np.ndarray, '...']]


class Pruned(NamedTuple):
  """A network without what was removed.

  >>> from additive_jax.compress import make_level
  >>> model, x = aj.models.MLP(2, width=4, hidden=8, num_classes=3), np.ones((1, 5), np.float32)
  >>> params = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  >>> params = jax.tree.map(lambda leaf: np.ones(leaf.shape), params)
  >>> pruned = make_level('gate', model, x).prune(params, {'gates': np.array([True, False])})
  >>> pruned.structure, pruned.units
  (Structure('10'), {})

  Attributes:
    params: the pool, with zeros for removed weights and for all weights of removed units.
    structure: its gates.
    units: which units of each space are left: the others were removed, or no weight that is left
      reads them. {} for gates.
  """

  params: PyTree
  structure: Structure
  units: dict[str, Bool[np.ndarray, 'size']]


@dataclasses.dataclass(frozen=True, repr=False)
class Level(abc.ABC):
  """The parts of a model that bear noise and may be removed.

  >>> from additive_jax.compress import make_level
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> level = make_level('gate', model, np.ones((1, 5), np.float32))
  >>> level.shapes, level.counts
  ((('gates', (2,)),), (('gates', (84, 84)),))

  Attributes:
    model: an additive model.
    shapes: of the numbers that have a noise of their own, by name: a kernel, a space, `gates`.
    counts: by name, how many weights go with each number; one count, or one for each.
  """

  model: Additive
  shapes: tuple[tuple[str, tuple[int, ...]], ...]
  counts: tuple[tuple[str, int | tuple[int, ...]], ...]

  def __repr__(self) -> str:
    """Returns the text by which checkpoints know a level; see `models.identity`."""
    fields = ''.join(f', {name}={value!r}' for name, value in self._described().items())
    return f'{type(self).__name__}(model={inner(self.model)}{fields})'

  @abc.abstractmethod
  def _described(self) -> dict[str, Any]:
    """Returns what its text says beside the model."""

  @abc.abstractmethod
  def run(self, mean: PyTree, log_variance: ByName, x: Batch, keys: Keys) -> Logits:
    """Returns the logits of all gates on with noise, a draw for each example.

    Args:
      mean: the pool of the model.
      log_variance: log σ² by name.
      x: inputs.
      keys: one for each example.
    """

  def log_alpha(self, mean: PyTree, log_variance: ByName) -> dict[str, Float[Array, '...']]:
    """Returns log α = log σ² − log θ² by name, clipped to ±8, as in the paper's program. Units and
    gates have the mean 1, as the weights beside them can take any other."""
    del mean
    return {name: jnp.clip(values, -LIMIT, LIMIT) for name, values in log_variance.items()}

  @abc.abstractmethod
  def magnitudes(self, params: PyTree) -> Magnitudes:
    """Returns how large each number of a pool is, by name."""

  @abc.abstractmethod
  def prune(self, params: PyTree, keep: Masks) -> Pruned:
    """Returns the network with the numbers of `keep`, by name, alone."""


@dataclasses.dataclass(frozen=True, repr=False)
class Weights(Level):
  """The weights of all kernels that are matrices; biases, norms and embeddings stay.

  >>> from additive_jax.compress import make_level
  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> level = make_level('weight', model, np.ones((1, 5), np.float32))
  >>> [name for name, shape in level.shapes]
  ['embed/kernel', 'block_00/in/kernel', 'block_00/out/kernel', 'readout/out/kernel']
  """

  def _described(self) -> dict[str, Any]:
    return {'shapes': self.shapes}

  def run(self, mean: PyTree, log_variance: ByName, x: Batch, keys: Keys) -> Logits:
    draw = Draw(keys)

    def noisy(name):
      return lambda kernel: NoisyKernel(kernel, jnp.exp(log_variance[name]), draw)

    kernels = {name.removesuffix(f'/{KERNEL}'): noisy(name) for name, _ in self.shapes}
    return with_kernels(self.model, mean, x, kernels)

  def log_alpha(self, mean: PyTree, log_variance: ByName) -> dict[str, Float[Array, '...']]:
    leaves = flatten_dict(mean, sep='/')
    log_square = {name: jnp.log(jnp.square(leaves[name]) + 1e-16) for name, _ in self.shapes}
    return super().log_alpha(mean, {n: log_variance[n] - log for n, log in log_square.items()})

  def magnitudes(self, params: PyTree) -> Magnitudes:
    """Returns absolute values."""
    leaves = flatten_dict(params, sep='/')
    return {name: np.abs(np.asarray(leaves[name])) for name, _ in self.shapes}

  def prune(self, params: PyTree, keep: Masks) -> Pruned:
    leaves = flatten_dict(jax.tree.map(np.asarray, params), sep='/')
    leaves |= {name: np.where(keep[name], leaves[name], 0) for name, _ in self.shapes}
    params = unflatten_dict(leaves, sep='/')
    return Pruned(params, _all_on(self.model), self._read_units(params))

  def _read_units(self, params) -> dict[str, np.ndarray]:
    """Returns which units some weight still reads, one of a space at least; the others can be cut
    out."""
    sizes = spaces(self.model, {'params': params})
    if not sizes:
      return {}
    wiring, units = cut_wiring(self.model), {}
    leaves = wiring.flat(params)
    for space in sizes:
      _, readers = wiring.sides(leaves, space, lambda leaf, axes: (leaf != 0).any(axes))
      units[space] = np.any(readers, 0)
      units[space][0] |= not units[space].any()
    return units


@dataclasses.dataclass(frozen=True, repr=False)
class Units(Level):
  """Hidden units and attention heads: each has one noise for all tokens of an example, which
  multiplies what is read of it.

  >>> from additive_jax.compress import make_level
  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> level = make_level('unit', model, np.ones((1, 5), np.float32))
  >>> level.shapes, level.readers
  ((('block_00/hidden', (8,)),), (('block_00/out', 'block_00/hidden', 1),))

  Attributes:
    readers: the modules whose kernels read a space, with the space and how many numbers of their
      input belong to a unit.
  """

  readers: tuple[tuple[str, str, int], ...]

  def _described(self) -> dict[str, Any]:
    return {'shapes': self.shapes, 'counts': self.counts, 'readers': self.readers}

  def run(self, mean: PyTree, log_variance: ByName, x: Batch, keys: Keys) -> Logits:
    draw = Draw(keys)
    scales = {
      name: 1 + jnp.exp(log_variance[name] / 2) * draw((num_examples(x), *shape))
      for name, shape in self.shapes
    }

    def scaled(space, repeats):
      return lambda kernel: ScaledKernel(kernel, jnp.repeat(scales[space], repeats, axis=1))

    kernels = {module: scaled(space, repeats) for module, space, repeats in self.readers}
    return with_kernels(self.model, mean, x, kernels)

  def magnitudes(self, params: PyTree) -> Magnitudes:
    """Returns the norm of all that writes a unit times the norm of all that reads it, which
    scaling one up and the other down leaves as it is; of an input the norm of what reads it."""
    wiring = cut_wiring(self.model)
    leaves = wiring.flat(params)
    return {name: strengths(leaves, wiring, name) for name, _ in self.shapes}

  def prune(self, params: PyTree, keep: Masks) -> Pruned:
    units = {name: np.array(keep[name], bool) for name, _ in self.shapes}
    zeroed = masked(self.model, {'params': params}, units)
    return Pruned(jax.tree.map(np.asarray, zeroed['params']), _all_on(self.model), units)


@dataclasses.dataclass(frozen=True, repr=False)
class Gates(Level):
  """Residual gates: what a site adds is multiplied by a noise of mean 1 for each example. Other
  gates stay on.

  >>> from additive_jax.compress import make_level
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> make_level('gate', model, np.ones((1, 5), np.float32)).names
  ('block_00/residual', 'block_01/residual')

  Attributes:
    positions: the numbers of the model's residual gates.
  """

  positions: tuple[int, ...]

  def _described(self) -> dict[str, Any]:
    return {'positions': self.positions, 'weights': self.counts[0][1]}

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the residual gates."""
    return tuple(gate_names(self.model)[i] for i in self.positions)

  def run(self, mean: PyTree, log_variance: ByName, x: Batch, keys: Keys) -> Logits:
    count = num_examples(x)
    noise = Draw(keys)((count, len(self.positions)))
    gates = jnp.ones((count, len(gate_names(self.model))))
    gates = gates.at[:, self.positions].add(jnp.exp(log_variance[GATES] / 2) * noise)
    return run.masked(self.model, {'params': mean}, jax.tree.map(jnp.asarray, x), gates)

  def magnitudes(self, params: PyTree) -> Magnitudes:
    """Returns the root-mean-square parameter of each gate's site."""
    sizes = []
    for module, site in zip(module_names(self.model), sites_of(self.model)):
      if site.has_residual:
        leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params[module])])
        sizes.append(np.sqrt(np.square(leaves).mean()))
    return {GATES: np.array(sizes)}

  def prune(self, params: PyTree, keep: Masks) -> Pruned:
    bits = np.array(_all_on(self.model))
    bits[list(self.positions)] = keep[GATES]
    return Pruned(jax.tree.map(np.asarray, params), Structure(tuple(bits)), {})


def _all_on(model) -> Structure:
  return Structure.all_on(len(gate_names(model)))
