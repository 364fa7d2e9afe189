"""Random structures per example: for each gate, a random subset of fixed size of the batch.

Sizes are shapes: they are Python numbers, and other keep rates are another program. What is drawn
depends on the key alone. A batch may be cut into equal parts with a subset each, so that devices
which split the batch by parts draw what one device would.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from additive_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Subsets:
  """How many examples of a batch each gate runs on, in stages over time: static and hashable.

  >>> Subsets(((0.5, 1.0),), parts=2).rows(batch_size=8)
  4

  Attributes:
    keep_rates: one row of n rates for each stage.
    starts: the first step of each stage, rising from 0.
    parts: equal parts that a batch is cut into. A gate of rate p runs on `size(p, rows)` of the
      rows of each part, so rates are rounded to whole rows of a part.

  Raises:
    UserError: for a rate outside [0, 1], or stages or parts that make no sense.
  """

  keep_rates: tuple[tuple[float, ...], ...]
  starts: tuple[int, ...] = (0,)
  parts: int = 1

  def __post_init__(self):
    starts = self.starts
    if len(starts) != len(self.keep_rates) or starts[:1] != (0,) or any(np.diff(starts) <= 0):
      raise UserError(
        f'{len(self.keep_rates)} rows of keep rates for stages from steps {starts}: '
        'expected one row a stage, and steps that rise from 0'
      )
    if len({len(row) for row in self.keep_rates}) > 1:
      lengths = [len(row) for row in self.keep_rates]
      raise UserError(f'rows of {lengths} keep rates: expected as many in each, one per gate')
    if self.parts < 1:
      raise UserError(f'{self.parts} parts of a batch: expected at least 1')
    for row in self.keep_rates:
      check_rates(row)

  def rows(self, batch_size: int) -> int:
    """Returns the rows of one part of a batch; raises `UserError` where parts do not divide it."""
    if batch_size % self.parts:
      raise UserError(f'a batch of {batch_size} in {self.parts} parts: expected parts that divide')
    return batch_size // self.parts

  def probabilities(self, stage: int, batch_size: int) -> tuple[float, ...]:
    """Returns the exact probability that each gate runs on an example: its size over the rows of a
    part."""
    rows = self.rows(batch_size)
    return tuple(size(rate, rows) / rows for rate in self.keep_rates[stage])

  def stage(self, step: int | Int[Array, '']) -> Int[Array, '']:
    """Returns the number of the stage that a traced step is in."""
    return jnp.sum(step >= jnp.asarray(self.starts)) - 1


def in_stages(
  rates: Callable[[float], Iterable[float]],
  num_steps: int,
  ramp_steps: float,
  stages: int,
  parts: int = 1,
) -> Subsets:
  """Returns `Subsets` that follow a schedule over time, constant within a stage.

  >>> in_stages(lambda step: [1 - step / 16], num_steps=8, ramp_steps=4, stages=2)
  Subsets(keep_rates=((0.96875,), (0.84375,), (0.5,)), starts=(0, 2, 4), parts=1)

  Args:
    rates: gives the keep rates [n] at a step.
    num_steps: steps of the whole training; those after the ramp are one stage.
    ramp_steps: over how many first steps the rates change.
    stages: into how many equal stages these are cut; each has the rates of its middle. Neighbours
      with the same rates become one.
    parts: see `Subsets`.
  """
  if stages < 1:
    raise UserError(f'{stages} stages of a ramp: expected at least 1')
  end = min(round(ramp_steps), num_steps)
  edges = sorted({*np.linspace(0, end, stages + 1).round().astype(int).tolist(), num_steps})
  table, starts = [], []
  for first, stop in itertools.pairwise(edges):
    middle = (first + stop - 1) / 2 if stop <= end else num_steps
    row = tuple(round(float(rate), 6) for rate in rates(middle))  # they are float32
    if not table or row != table[-1]:
      table.append(row)
      starts.append(first)
  return Subsets(tuple(table), tuple(starts), parts)


def check_rates(rates: Sequence[float]) -> None:
  """Raises `UserError` for a keep rate outside [0, 1]."""
  for rate in rates:
    if not 0 <= rate <= 1:
      raise UserError(f'keep rate {rate}: expected a number in [0, 1]')


def size(rate: float, rows: int) -> int:
  """Returns how many of `rows` examples a gate of a keep rate runs on: the nearest number, halves
  up.

  >>> size(0.5, 5)
  3
  """
  return min(rows, int(rate * rows + 0.5))


def draw(
  key: PRNGKeyArray,
  keep_rates: Sequence[float],
  rows: int,
  *,
  parts: int = 1,
  first: int | Int[Array, ''] = 0,
) -> tuple[Int[Array, '_'], ...]:
  """Draws one subset for each gate, independently, every subset of its size equally likely.

  >>> [len(rows) for rows in draw(jax.random.key(0), (0.5, 1.0), rows=4)]
  [2, 4]

  Args:
    keep_rates: one per gate, Python numbers.
    rows: examples of each part.
    parts: how many parts of the batch are here.
    first: which part of the whole batch the first one here is; may be traced.

  Returns:
    The numbers of the examples of each gate, int [size·parts], in no order.
  """
  sizes = [size(rate, rows) for rate in keep_rates]

  def shuffled(gate, part):  # ties between 32 bits are too rare to matter
    part_key = jax.random.fold_in(jax.random.fold_in(key, gate), first + part)
    return part * rows + jnp.argsort(jax.random.bits(part_key, (rows,)))

  of_parts = jax.vmap(shuffled, in_axes=(None, 0))
  order = jax.vmap(of_parts, in_axes=(0, None))(jnp.arange(len(sizes)), jnp.arange(parts))
  batch = jnp.arange(rows * parts)
  return tuple(
    batch if count == rows else order[gate, :, :count].reshape(-1)
    for gate, count in enumerate(sizes)
  )


def as_gates(subsets: Sequence[Int[Array, '_']], batch_size: int) -> Float[Array, 'B n']:
  """Returns subsets as gates per example, 1 where the gate runs.

  >>> as_gates([jnp.array([0]), jnp.array([0, 1])], batch_size=2).tolist()
  [[1.0, 1.0], [0.0, 1.0]]
  """
  columns = [jnp.zeros(batch_size).at[rows].set(1.0) for rows in subsets]
  return jnp.stack(columns, axis=-1)
