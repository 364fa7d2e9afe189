"""What a sampler is: a frozen pytree that gives the structures of a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, PRNGKeyArray

Bits = Bool[Array, 'K n']


class Sampler(Protocol):
  """A distribution over the structures of a step: a pytree, called with a key and the step.

  Samplers of gates with keep rates also have a method `rates`, from the step to float [n].
  """

  @property
  def num_structures(self) -> int:
    """How many structures a step draws."""

  def __call__(self, key: PRNGKeyArray, step: ArrayLike) -> Bits:
    """Returns the structures of a step's slots."""


Class = TypeVar('Class')


def pytree(*static: str) -> Callable[[type[Class]], type[Class]]:
  """Registers a dataclass as a pytree whose named fields are static.

  >>> @pytree('num_structures')
  ... @dataclasses.dataclass(frozen=True)
  ... class AllOff:
  ...   num_structures: int
  >>> jax.tree.leaves(AllOff(2))
  []
  """

  def register(cls):
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
