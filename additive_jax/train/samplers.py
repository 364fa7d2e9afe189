"""Distributions over structures that training draws from.

A sampler is a frozen pytree: its numbers (lists of bits, keep rates) are traced, so that other
numbers need no new compile; how many structures it draws a step is static. `sampler(key, step)`
gives the K structures of a step. What is drawn depends on the key and the step alone, never on
devices.

>>> sampler = make_sampler('sandwich', num_gates=3, num_structures=2)
>>> sampler(jax.random.key(0), step=0).astype(int)
Array([[1, 1, 1],
       [0, 0, 0]], dtype=int32)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from additive_jax.errors import UserError
from additive_jax.gates import subsets
from additive_jax.gates.structure import Structure, StructureLike, bits_of
from additive_jax.parallel import processes
from additive_jax.train.ranking_samplers import Fair, Progressive
from additive_jax.train.sampler import Bits, Sampler, pytree

SAMPLERS = (
  'fixed',
  'listed',
  'uniform',
  'bernoulli',
  'sandwich',
  'sorted',
  'fair',
  'progressive',
)
# How keep rates fall over time: evenly, slowly at both ends, all at once at the end of the ramp.
RAMP_SHAPES = ('linear', 'cosine', 'step')


@pytree('num_structures')
@dataclasses.dataclass(frozen=True)
class Listed:
  """The rows of `bits` in turn: step s draws rows s·K … s·K + K − 1, round and round.

  Attributes:
    bits: with L = K every step trains the whole list; with L = 1 one structure alone.
    num_structures: K.

  >>> sampler = Listed(jnp.array([[False, False], [False, True], [True, True]]), num_structures=2)
  >>> sampler(jax.random.key(0), step=1).astype(int).tolist()
  [[1, 1], [0, 0]]
  """

  bits: Bool[Array, 'L n']
  num_structures: int

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    del key
    rows = step * self.num_structures + jnp.arange(self.num_structures)
    return self.bits[rows % self.bits.shape[0]]


@pytree('num_gates', 'num_structures')
@dataclasses.dataclass(frozen=True)
class Uniform:
  """Every structure equally likely: each gate on with probability one half."""

  num_gates: int
  num_structures: int

  def rates(self, step: ArrayLike) -> Float[Array, 'n']:
    """Returns the probability that each gate is on at a step."""
    del step
    return jnp.full(self.num_gates, 0.5)

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    del step
    return jax.random.bernoulli(key, 0.5, (self.num_structures, self.num_gates))


@pytree('num_structures')
@dataclasses.dataclass(frozen=True)
class Bernoulli:
  """Gates on independently, gate i with its own keep rate.

  Attributes:
    keep_rates: the rates once the ramp is over.
    ramp_steps: over the first `ramp_steps` steps the rates fall from 1 to `keep_rates`.
    shape: how they fall: which of `RAMP_SHAPES`.
    num_structures: K.

  >>> sampler = KeepRates(rate=0.5, ramp_steps=10).sampler(num_gates=1, num_structures=4)
  >>> [sampler.rates(step).tolist() for step in (0, 5, 10, 99)]
  [[1.0], [0.75], [0.5], [0.5]]

  Source: stochastic depth, Huang et al. 2016 (arXiv:1603.09382), section 3.
  """

  keep_rates: Float[Array, 'n']
  ramp_steps: Float[Array, '']
  shape: Int[Array, '']
  num_structures: int

  def rates(self, step: ArrayLike) -> Float[Array, 'n']:
    """Returns the probability that each gate is on at a step."""
    share = jnp.clip(step / jnp.maximum(self.ramp_steps, 1e-6), 0, 1)
    share = jnp.where(self.ramp_steps > 0, share, 1.0)
    done = jnp.stack([share, (1 - jnp.cos(jnp.pi * share)) / 2, jnp.floor(share)])[self.shape]
    return 1 - done * (1 - self.keep_rates)

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    shape = (self.num_structures, len(self.keep_rates))
    return jax.random.bernoulli(key, self.rates(step), shape)


@pytree('num_gates', 'num_structures')
@dataclasses.dataclass(frozen=True)
class Sandwich:
  """The largest structure, the smallest, and K − 2 drawn uniformly; K = 1 is all-on alone.

  Source: the sandwich rule, Yu & Huang 2019 (arXiv:1903.05134), section 3.1.
  """

  num_gates: int
  num_structures: int

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    del step
    bits = jax.random.bernoulli(key, 0.5, (self.num_structures, self.num_gates))
    bits = bits.at[0].set(True)
    return bits.at[1].set(False) if self.num_structures > 1 else bits


@pytree('num_structures')
@dataclasses.dataclass(frozen=True)
class Sorted:
  """Nested structures: the first d gates of `order` on, d uniform on 0 … n.

  Attributes:
    order: a permutation of the gates, the one that is kept longest first.
    num_structures: K.

  Gate 2 is on wherever another one is:

  >>> bits = Sorted(jnp.array([2, 0, 1]), num_structures=100)(jax.random.key(0), step=0)
  >>> np.unique(bits, axis=0).astype(int).tolist()
  [[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]]

  Source: SortedNet, Valipour et al. 2023 (arXiv:2309.00255), section 3.
  """

  order: Int[Array, 'n']
  num_structures: int

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    del step
    num_gates = len(self.order)
    depth = jax.random.randint(key, (self.num_structures, 1), 0, num_gates + 1)
    position = jnp.zeros(num_gates, jnp.int32).at[self.order].set(jnp.arange(num_gates))
    return position < depth


def fixed(structure: StructureLike, num_gates: int) -> Listed:
  """Returns the sampler of one structure at every step.

  >>> fixed('101', num_gates=3).bits.astype(int).tolist()
  [[1, 0, 1]]
  """
  return listed([structure], num_gates)


def listed(
  structures: Iterable[StructureLike], num_gates: int, num_structures: int | None = None
) -> Listed:
  """Returns the sampler of the listed structures, K of them a step (default: all), in turn.

  One that is listed again takes another slot. Two different ones that are one network are refused
  by the trainer, which knows the model.

  >>> listed(['101', '111'], num_gates=3).num_structures
  2

  Raises:
    UserError: for an empty list.
  """
  bits = bits_of(structures, num_gates)
  if not len(bits):
    raise UserError('an empty list of structures: expected at least one')
  return Listed(jnp.asarray(bits), num_structures or len(bits))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeepRates:
  """How likely gates are on, over the depth of a network and over time.

  Attributes:
    rate: of the last site.
    ramp: over depth: 'uniform' (all gates `rate`), 'linear' (site i of S: 1 − (i+1)/S·(1 − rate))
      or 'exponential' (rate^((i+1)/S)).
    by_gate: one rate per gate, in place of a ramp over depth.
    sites: number of the site that each gate belongs to, in rising order: all gates of a site have
      the rate of its depth. None: each gate has a site of its own.
    ramp_steps: over how many first steps the rates fall from 1.
    ramp_shape: how they fall, one of `RAMP_SHAPES`.

  >>> KeepRates(rate=0.5, ramp='linear').of_gates(4).tolist()
  [0.875, 0.75, 0.625, 0.5]
  """

  rate: float = 0.5
  ramp: str = 'uniform'
  by_gate: Sequence[float] = ()
  sites: Sequence[int] | None = None
  ramp_steps: float = 0
  ramp_shape: str = 'linear'

  def __post_init__(self):
    subsets.check_rates([self.rate, *self.by_gate])
    if self.ramp_shape not in RAMP_SHAPES:
      expected = ', '.join(RAMP_SHAPES)
      raise UserError(f'ramp shape {self.ramp_shape!r}: expected one of {expected}')

  def of_gates(self, num_gates: int) -> Float[np.ndarray, 'n']:
    """Returns the rate of each gate once the ramp over time is over."""
    if rates := tuple(self.by_gate):
      if len(rates) != num_gates:
        raise UserError(f'{len(rates)} keep rates {rates}: expected {num_gates}, one per gate')
      return np.asarray(rates, np.float32)
    sites = np.arange(num_gates) if self.sites is None else np.asarray(self.sites)
    depth = (sites + 1) / (sites[-1] + 1)
    ramps = {
      'uniform': np.full(num_gates, self.rate, float),
      'linear': 1 - depth * (1 - self.rate),
      'exponential': np.power(float(self.rate), depth),
    }
    if self.ramp not in ramps:
      raise UserError(f'keep-rate ramp {self.ramp!r}: expected one of {", ".join(ramps)}')
    return ramps[self.ramp].astype(np.float32)

  def sampler(self, num_gates: int, num_structures: int) -> Bernoulli:
    """Returns the sampler of gates with these rates."""
    rates, shape = self.of_gates(num_gates), RAMP_SHAPES.index(self.ramp_shape)
    steps = jnp.float32(self.ramp_steps)
    return Bernoulli(jnp.asarray(rates), steps, jnp.int32(shape), num_structures)


def inverse(rates: Float[Array | np.ndarray, 'n']) -> Float[Array, 'n']:
  """Returns `1/p` for each probability p that a gate is on, and 0 where p is 0.

  >>> inverse(np.array([0.5, 0.0])).tolist()
  [2.0, 0.0]
  """
  return jnp.where(rates > 0, 1 / jnp.where(rates > 0, rates, 1), 0)


def check_all_on(sampler: Sampler, purpose: str) -> None:
  """Raises `UserError` for a sampler that may give structures other than all-on."""
  if not isinstance(sampler, Listed) or not np.all(processes.to_host(sampler.bits)):
    raise UserError(
      f'structures of {type(sampler).__name__} for {purpose}: expected the sampler fixed to all-on'
    )


def make_sampler(
  name: str,
  num_gates: int,
  num_structures: int,
  *,
  structures: Sequence[StructureLike] = (),
  keep: KeepRates | None = None,
) -> Sampler:
  """Returns the sampler called `name`, one of `SAMPLERS`.

  Args:
    num_gates: n.
    num_structures: K, structures drawn a step.
    structures: for `fixed` (exactly one, or none for all-on) and `listed`.
    keep: for `bernoulli`, and its `ramp_steps` for `progressive`; None is `KeepRates()`.

  Raises:
    UserError: for an unknown name or options that do not fit.
  """
  if num_structures < 1:
    raise UserError(f'num_structures {num_structures}: expected at least 1')
  match name:
    case 'fixed':
      if len(structures) > 1:
        raise UserError(f'{len(structures)} structures for the sampler fixed: expected one')
      return listed(structures or [Structure.all_on(num_gates)], num_gates, num_structures)
    case 'listed':
      return listed(structures, num_gates, num_structures)
    case 'uniform':
      return Uniform(num_gates, num_structures)
    case 'bernoulli':
      return (keep or KeepRates()).sampler(num_gates, num_structures)
    case 'sandwich':
      return Sandwich(num_gates, num_structures)
    case 'sorted':
      return Sorted(jnp.arange(num_gates), num_structures)
    case 'fair':
      if num_structures % 2:
        raise UserError(f'num_structures {num_structures} for the sampler fair: expected pairs')
      return Fair(num_gates, num_structures)
    case 'progressive':
      ramp_steps = (keep or KeepRates()).ramp_steps
      if not ramp_steps > 0:
        raise UserError(f'ramp_steps {ramp_steps} for the sampler progressive: expected above 0')
      return Progressive(num_gates, jnp.float32(ramp_steps), num_structures)
  raise UserError(f'sampler {name!r}: expected one of {", ".join(SAMPLERS)}')
