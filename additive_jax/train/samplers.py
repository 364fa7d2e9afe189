"""Distributions over structures that training draws from.

A sampler is a frozen pytree: its numbers (lists of bits, keep rates) are traced, so that other
numbers need no new compile; how many structures it draws a step is static. `sampler(key, step)`
gives bool [K, n]. What is drawn depends on the key and the step alone, never on devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from additive_jax.errors import UserError
from additive_jax.gates import subsets
from additive_jax.gates.structure import Structure, bits_of, parse
from additive_jax.parallel import processes


class Sampler(Protocol):
  """What draws the structures of a step: a pytree that is called with a key and the step.

  Samplers of gates with keep rates also have a method `rates`, from the step to float [n].
  """

  num_structures: int

  def __call__(self, key: Key[Array, ''], step: Int[Array, '']) -> Bool[Array, 'slots gates']:
    """Returns the structures of a step's slots."""


def _sampler(*static: str):
  """Registers a frozen dataclass as a pytree whose named fields are static."""

  def register(cls):
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    data = [name for name in names if name not in static]

    # The class is part of the static data: JAX 0.10.2 calls the tree structures of two registered
    # dataclasses equal when their static fields are, and then one may run as the other's program.
    def flatten(sampler):
      values = tuple(getattr(sampler, name) for name in data)
      return values, (cls, *(getattr(sampler, name) for name in static))

    def unflatten(fixed, values):
      return cls(**dict(zip(data, values)), **dict(zip(static, fixed[1:])))

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls

  return register


@_sampler('num_structures')
class Listed:
  """The rows of `bits` in turn: step s draws rows s·K … s·K + K − 1, round and round.

  Attributes:
    bits: bool [L, n]. With L = K every step trains the whole list; with L = 1 one structure alone.
    num_structures: K.
  """

  bits: jax.Array
  num_structures: int

  def __call__(self, key: jax.Array, step: jax.Array) -> jax.Array:
    del key
    rows = step * self.num_structures + jnp.arange(self.num_structures)
    return self.bits[rows % self.bits.shape[0]]


@_sampler('num_gates', 'num_structures')
class Uniform:
  """Every structure equally likely: each gate on with probability one half."""

  num_gates: int
  num_structures: int

  def rates(self, step: jax.Array) -> jax.Array:
    """The probability that each gate is on at a step, float [n]."""
    del step
    return jnp.full(self.num_gates, 0.5)

  def __call__(self, key: jax.Array, step: jax.Array) -> jax.Array:
    del step
    return jax.random.bernoulli(key, 0.5, (self.num_structures, self.num_gates))


@_sampler('num_structures')
class Bernoulli:
  """Gates on independently, gate i with its own keep rate.

  Attributes:
    keep_rates: float [n], the rates once the ramp is over.
    ramp_steps: float scalar; over the first `ramp_steps` steps the rates fall from 1 to
      `keep_rates`.
    shape: int scalar, how they fall: which of `RAMP_SHAPES`.
    num_structures: K.

  Source: stochastic depth, Huang et al. 2016 (arXiv:1603.09382), section 3.
  """

  keep_rates: jax.Array
  ramp_steps: jax.Array
  shape: jax.Array
  num_structures: int

  def rates(self, step: jax.Array) -> jax.Array:
    """The probability that each gate is on at a step, float [n]."""
    share = jnp.clip(step / jnp.maximum(self.ramp_steps, 1e-6), 0, 1)
    share = jnp.where(self.ramp_steps > 0, share, 1.0)
    done = jnp.stack([share, (1 - jnp.cos(jnp.pi * share)) / 2, jnp.floor(share)])[self.shape]
    return 1 - done * (1 - self.keep_rates)

  def __call__(self, key: jax.Array, step: jax.Array) -> jax.Array:
    shape = (self.num_structures, len(self.keep_rates))
    return jax.random.bernoulli(key, self.rates(step), shape)


@_sampler('num_gates', 'num_structures')
class Sandwich:
  """The largest structure, the smallest, and K − 2 drawn uniformly; K = 1 is all-on alone.

  Source: the sandwich rule, Yu & Huang 2019 (arXiv:1903.05134), section 3.1.
  """

  num_gates: int
  num_structures: int

  def __call__(self, key: jax.Array, step: jax.Array) -> jax.Array:
    del step
    bits = jax.random.bernoulli(key, 0.5, (self.num_structures, self.num_gates))
    bits = bits.at[0].set(True)
    return bits.at[1].set(False) if self.num_structures > 1 else bits


@_sampler('num_structures')
class Sorted:
  """Nested structures: the first d gates of `order` on, d uniform on 0 … n.

  Attributes:
    order: int [n], a permutation of the gates, the one that is kept longest first.
    num_structures: K.

  Source: SortedNet, Valipour et al. 2023 (arXiv:2309.00255), section 3.
  """

  order: jax.Array
  num_structures: int

  def __call__(self, key: jax.Array, step: jax.Array) -> jax.Array:
    del step
    num_gates = len(self.order)
    depth = jax.random.randint(key, (self.num_structures, 1), 0, num_gates + 1)
    position = jnp.zeros(num_gates, jnp.int32).at[self.order].set(jnp.arange(num_gates))
    return position < depth


def fixed(structure, num_gates: int) -> Listed:
  """One structure at every step."""
  bits = np.array([parse(structure, num_gates).bits])
  return Listed(jnp.asarray(bits), 1)


def listed(structures, num_gates: int, num_structures: int | None = None) -> Listed:
  """The listed structures, `num_structures` of them a step (default: all), in turn."""
  bits = bits_of(structures, num_gates)
  if not len(bits):
    raise UserError('an empty list of structures: expected at least one')
  return Listed(jnp.asarray(bits), num_structures or len(bits))


def keep_rates(
  num_gates: int, rate: float, ramp: str, sites: Sequence[int] | None = None
) -> np.ndarray:
  """Keep rates [n] over depth that end at `rate` for the last site.

  Args:
    ramp: 'uniform' (all gates `rate`), 'linear' (site i of S: 1 − (i+1)/S·(1 − rate)) or
      'exponential' (rate^((i+1)/S)).
    sites: number of the site that each gate belongs to, in rising order: all gates of a site have
      the rate of its depth. None: each gate has a site of its own.
  """
  subsets.check_rates([rate])
  sites = np.arange(num_gates) if sites is None else np.asarray(sites)
  depth = (sites + 1) / (sites[-1] + 1)
  ramps = {
    'uniform': np.full(num_gates, rate, float),
    'linear': 1 - depth * (1 - rate),
    'exponential': np.power(float(rate), depth),
  }
  if ramp not in ramps:
    raise UserError(f'keep-rate ramp {ramp!r}: expected one of {", ".join(ramps)}')
  return ramps[ramp].astype(np.float32)


def inverse(rates):
  """`1/p` for each probability p that a gate is on, [n], and 0 where p is 0."""
  return jnp.where(rates > 0, 1 / jnp.where(rates > 0, rates, 1), 0)


def check_all_on(sampler: Sampler, what: str) -> None:
  """Raises `UserError` for a sampler that may give structures other than all-on.

  Args:
    what: what the structures are for, for the message.
  """
  if not isinstance(sampler, Listed) or not np.all(processes.to_host(sampler.bits)):
    raise UserError(
      f'structures of {type(sampler).__name__} for {what}: expected the sampler fixed to all-on'
    )


def _bernoulli(num_gates, num_structures, *, rate, ramp, rates, ramp_steps, shape, sites):
  if len(rates):
    if len(rates) != num_gates:
      raise UserError(f'{len(rates)} keep rates {tuple(rates)}: expected {num_gates}, one per gate')
    subsets.check_rates(rates)
  if shape not in RAMP_SHAPES:
    raise UserError(f'ramp shape {shape!r}: expected one of {", ".join(RAMP_SHAPES)}')
  if len(rates):
    values = np.asarray(rates, np.float32)
  else:
    values = keep_rates(num_gates, rate, ramp, sites)
  index = jnp.int32(RAMP_SHAPES.index(shape))
  return Bernoulli(jnp.asarray(values), jnp.float32(ramp_steps), index, num_structures)


# How keep rates fall over time: evenly, slowly at both ends, all at once at the end of the ramp.
RAMP_SHAPES = ('linear', 'cosine', 'step')
SAMPLERS = ('fixed', 'listed', 'uniform', 'bernoulli', 'sandwich', 'sorted')


def make_sampler(
  name: str,
  num_gates: int,
  num_structures: int,
  *,
  structures=(),
  keep_rate: float = 0.5,
  keep_ramp: str = 'uniform',
  gate_keep_rates=(),
  ramp_steps: float = 0,
  ramp_shape: str = 'linear',
  sites: Sequence[int] | None = None,
):
  """The sampler called `name`, for the options of `config.sampler`.

  Args:
    num_gates: n.
    num_structures: K, structures drawn a step.
    structures: for `fixed` (exactly one, or none for all-on) and `listed`.
    keep_rate, keep_ramp, gate_keep_rates, ramp_steps, ramp_shape, sites: for `bernoulli`;
      `gate_keep_rates`, one per gate, replaces the ramp over depth, for which see `keep_rates`.

  Raises:
    UserError: for an unknown name or options that do not fit.
  """
  if num_structures < 1:
    raise UserError(f'num_structures {num_structures}: expected at least 1')
  if name == 'fixed':
    if len(structures) > 1:
      raise UserError(f'{len(structures)} structures for the sampler fixed: expected one')
    one = structures[0] if len(structures) else Structure.all_on(num_gates)
    return listed([one], num_gates, num_structures)
  makers = {
    'listed': functools.partial(listed, structures, num_gates, num_structures),
    'uniform': functools.partial(Uniform, num_gates, num_structures),
    'bernoulli': functools.partial(
      _bernoulli,
      num_gates,
      num_structures,
      rate=keep_rate,
      ramp=keep_ramp,
      rates=gate_keep_rates,
      ramp_steps=ramp_steps,
      shape=ramp_shape,
      sites=sites,
    ),
    'sandwich': functools.partial(Sandwich, num_gates, num_structures),
    'sorted': functools.partial(Sorted, jnp.arange(num_gates), num_structures),
  }
  if name not in makers:
    raise UserError(f'sampler {name!r}: expected one of {", ".join(SAMPLERS)}')
  return makers[name]()
