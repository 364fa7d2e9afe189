"""Gradient accumulation: a slot's examples in pieces, one after the other, so that a step needs the
memory of one of them.

A piece is to a loss what a device's share of the examples is. With two devices and two pieces on
each, the examples of a slot lie

  device 0: share 0, then share 1      device 1: share 2, then share 3      4 shares in all
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from additive_jax.train.recipe import Recipe, Slot

Parts = tuple[tuple[Float[Array, ''], PyTree], PyTree]  # loss and facts, and the gradient
Gradient = Callable[[Slot], Parts]


def pieces_of(slot: Slot, count: int) -> Callable[[Int[Array, ''], PyTree], Slot]:
  """Returns the function from the number of a piece and its examples to its slot."""

  def piece(number: Int[Array, ''], examples: PyTree) -> Slot:
    x, y = examples
    share, total = slot.share * count + number, slot.total
    total = None if total is None else total / count
    return dataclasses.replace(slot, x=x, y=y, share=share, pieces=count, total=total)

  return piece


def accumulated(recipe: Recipe, slot: Slot, gradient: Gradient) -> Parts:
  """Returns loss, facts and gradient of a slot, the means of those of its pieces.

  Args:
    recipe: says how many pieces.
    slot: whose examples are a multiple of that.
    gradient: gives loss, facts and gradient of a piece.
  """
  count = recipe.accumulate
  if count == 1:
    return gradient(slot)
  cut = lambda leaf: leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:])
  examples, piece = jax.tree.map(cut, (slot.x, slot.y)), pieces_of(slot, count)
  first = jax.tree.map(lambda leaf: leaf[0], examples)
  total = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(lambda: gradient(piece(jnp.int32(0), first))),
  )

  def add(total: PyTree, inputs: tuple[Int[Array, ''], PyTree]) -> tuple[PyTree, None]:
    return jax.tree.map(jnp.add, total, gradient(piece(*inputs))), None

  total, _ = jax.lax.scan(add, total, (jnp.arange(count), examples))
  return jax.tree.map(lambda leaf: leaf / count, total)
