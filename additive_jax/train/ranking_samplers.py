"""Samplers of pools that structures are ranked in: every gate as often on as off, large structures
before small ones, one gate of a given value."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from additive_jax.train.sampler import Bits, Sampler, pytree


@pytree('num_gates', 'num_structures')
@dataclasses.dataclass(frozen=True)
class Fair:
  """Structures in complementary pairs: each gate is on in exactly half of a step's structures.

  Every structure is equally likely, as in `Uniform`, but no gate of a pool is trained more often
  than another one. Structure k + K/2 of a step is the complement of structure k.

  Attributes:
    num_gates: n.
    num_structures: K, an even number.

  >>> Fair(num_gates=3, num_structures=4)(jax.random.key(0), step=0).sum(0).tolist()
  [2, 2, 2]

  Source: strict fairness, Chu et al. 2019 (FairNAS, arXiv:1907.01845), section 3.3; with two
  choices for each gate.
  """

  num_gates: int
  num_structures: int

  def rates(self, step: ArrayLike) -> Float[Array, 'n']:
    """Returns the probability that each gate is on at a step."""
    del step
    return jnp.full(self.num_gates, 0.5)

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    del step
    half = jax.random.bernoulli(key, 0.5, (self.num_structures // 2, self.num_gates))
    return jnp.concatenate([half, ~half])


@pytree('num_gates', 'num_structures')
@dataclasses.dataclass(frozen=True)
class Progressive:
  """Large structures first: at most m gates off, where m grows from 0 to n over the ramp.

  Structures with at most m gates off are equally likely; the others are not drawn. The first
  1/(n + 1) of the ramp trains all-on alone, and after it all structures are equally likely.

  Attributes:
    num_gates: n.
    ramp_steps: over how many first steps m grows.
    num_structures: K.

  >>> sampler = Progressive(num_gates=3, ramp_steps=jnp.float32(8), num_structures=100)
  >>> [int((~sampler(jax.random.key(0), step)).sum(1).max()) for step in (0, 2, 4, 6, 99)]
  [0, 1, 2, 3, 3]

  Source: progressive shrinking, Cai et al. 2020 (once for all, arXiv:1908.09791), section 3.3.
  """

  num_gates: int
  ramp_steps: Float[Array, '']
  num_structures: int

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    share = jnp.clip(step / jnp.maximum(self.ramp_steps, 1e-6), 0, 1)
    most = jnp.minimum(jnp.floor(share * (self.num_gates + 1)), self.num_gates)
    counts = jnp.arange(self.num_gates + 1)
    # log C(n, m), since the numbers themselves are too large from some hundred gates on.
    log_number = -gammaln(counts + 1.0) - gammaln(self.num_gates - counts + 1.0)
    of_count, of_place = jax.random.split(key)
    log_number = jnp.where(counts <= most, log_number, -jnp.inf)
    num_off = jax.random.categorical(of_count, log_number, shape=(self.num_structures, 1))
    score = jax.random.uniform(of_place, (self.num_structures, self.num_gates))
    return score.argsort(axis=1).argsort(axis=1) >= num_off


@pytree()
@dataclasses.dataclass(frozen=True)
class Held:
  """The structures of another sampler with one gate of a given value.

  Attributes:
    sampler: draws the other gates.
    gate: number of the gate.
    value: of the gate, whatever was drawn.

  >>> held = Held(Fair(num_gates=2, num_structures=2), jnp.int32(0), jnp.bool_(True))
  >>> held(jax.random.key(0), step=0)[:, 0].tolist()
  [True, True]
  """

  sampler: Sampler
  gate: Int[Array, '']
  value: Bool[Array, '']

  @property
  def num_structures(self) -> int:
    """How many structures a step draws."""
    return self.sampler.num_structures

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    return self.sampler(key, step).at[:, self.gate].set(self.value)
