"""Sums whose terms devices may share out: over the experts of a layer, over the hidden units of a
branch, over the heads of attention. On one device they are computed as they stand.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

# What an expert keeps for the backward pass has this name (`jax.ad_checkpoint.checkpoint_name`).
KEPT = 'kept'


def in_turn(
  run: Callable[..., Array],
  experts: PyTree,
  numbers: Int[Array, 'M'],
  x: Float[Array, '*axes'],
  *others: Any,
) -> Float[Array, '*axes']:
  """Returns `Σ_i run(experts[i], numbers[i], x, *others)`, one expert after the other; of each only
  its part of `experts` is kept for the backward pass, and what it names `KEPT`.

  >>> scale = lambda weight, number, x: weight * x + number
  >>> in_turn(scale, jnp.array([1.0, 2.0]), jnp.arange(2), jnp.ones(1)).tolist()
  [4.0]

  Args:
    run: gives an array like x. It closes over no arrays.
    experts: parameters, leaves [M, ...].
  """

  @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(KEPT))
  def add(total, expert):
    number, parameters = expert
    return total + run(parameters, number, x, *others), None

  return jax.lax.scan(add, jnp.zeros_like(x), (numbers, experts))[0]


def as_one_group(
  run: Callable[..., Array], experts: PyTree, numbers: Int[Array, 'M'], *arguments: Any
) -> Float[Array, '...']:
  """Returns `run(experts, numbers, *arguments)`."""
  return run(experts, numbers, *arguments)


def at_once(
  run: Callable[..., Array], layers: PyTree, axes: PyTree, *arguments: Any
) -> Float[Array, '...']:
  """Returns `run(layers, *arguments)`."""
  del axes
  return run(layers, *arguments)


class Sums(NamedTuple):
  """How sums are computed.

  Attributes:
    experts: takes what `as_one_group` takes.
    units: takes what `sum_of_units` takes.
  """

  experts: Callable[..., Array] = as_one_group
  units: Callable[..., Array] = at_once


ON_ONE_DEVICE = Sums()
_SUMS: contextvars.ContextVar[Sums] = contextvars.ContextVar('sums', default=ON_ONE_DEVICE)


@contextlib.contextmanager
def summing(sums: Sums) -> Iterator[None]:
  """Makes networks that are traced while it is open compute their sums so."""
  token = _SUMS.set(sums)
  try:
    yield
  finally:
    _SUMS.reset(token)


def sum_of_experts(
  run: Callable[..., Array],
  experts: PyTree,
  x: Float[Array, '*axes'],
  *others: Any,
  first: int = 0,
) -> Float[Array, '*axes']:
  """Returns the sum over experts of what each gives, see `in_turn`.

  >>> scale = lambda weight, number, x: weight * x
  >>> sum_of_experts(scale, jnp.array([1.0, 2.0]), jnp.ones(2)).tolist()
  [3.0, 3.0]

  Args:
    first: the number of the first expert.
  """
  group = functools.partial(in_turn, run)
  return sum_of_expert_groups(group, experts, x, *others, first=first)


def sum_of_expert_groups(
  run: Callable[..., Array], experts: PyTree, *arguments: Any, first: int = 0
) -> Float[Array, '...']:
  """Returns the sum over experts, which `run` computes for any group of them that devices share
  out.

  >>> run = lambda weights, numbers, x: weights.sum() * x + numbers.sum()
  >>> sum_of_expert_groups(run, jnp.array([1.0, 2.0]), jnp.ones(2)).tolist()
  [4.0, 4.0]

  Args:
    run: from the parameters of some experts, their numbers, which rise by 1, and the arguments to
      the sum of their terms. It closes over no arrays.
    experts: parameters, leaves [M, ...].
    first: the number of the first expert.
  """
  numbers = first + jnp.arange(len(jax.tree.leaves(experts)[0]))
  return _SUMS.get().experts(run, experts, numbers, *arguments)


def sum_of_units(
  run: Callable[..., Array], layers: PyTree, axes: PyTree, *arguments: Any
) -> Float[Array, '...']:
  """Returns `run(layers, *arguments)`, of which it is known that it is a sum over units: the layers
  of some units alone give the terms of these.

  >>> run = lambda kernels, x: jnp.tanh(x @ kernels[0]) @ kernels[1]
  >>> sum_of_units(run, (jnp.ones((2, 3)), jnp.ones((3, 1))), (1, 0), jnp.zeros(2)).tolist()
  [0.0]

  Args:
    run: closes over no arrays.
    layers: parameters.
    axes: a pytree like them, the axis of the units in each.
  """
  return _SUMS.get().units(run, layers, axes, *arguments)
