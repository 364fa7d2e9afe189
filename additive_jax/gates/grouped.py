"""Runs every expert on the tokens that chose it, all experts together: nothing is dropped, and
shapes stay static.

The choices of all tokens are sorted by expert, and those of an expert cut into blocks of a fixed
number of rows. The first blocks of all experts are one batch of matmuls, which reads the parameters
once; the others, few unless some expert is chosen much more than the even load, follow one after
the other, as many as there are. With blocks of two rows, where 0 2 3 5 9 are the tokens that chose
the first expert:

  expert       0 0 0 0 0   1   2 2 2 2
  token        0 2 3 5 9   4   1 6 7 8
  at once      0 2         4 .   1 6
  then             3 5   9           7 8
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

Expert = Callable[[Any, Array], Array]  # of the parameters of one expert, and its tokens


def rows_of(tokens: int, top_k: int, num_experts: int) -> int:
  """Returns the rows of a block: one and a half times the even load, a multiple of 8, and at most
  all tokens, since none chooses an expert twice.

  >>> rows_of(tokens=512, top_k=2, num_experts=64), rows_of(tokens=5, top_k=1, num_experts=2)
  (24, 5)
  """
  return min(tokens, 8 * -(-3 * tokens * top_k // (16 * num_experts)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def grouped(
  function: Expert,
  rows: int,
  experts: PyTree,
  numbers: Int[Array, 'M'],
  x: Float[Array, 'T D'],
  index: Int[Array, 'T k'],
  weights: Float[Array, 'T k'],
) -> Float[Array, 'T E']:
  """Returns `Σ_i w_i f_i(x)` for every token, over those of its k experts that are given.

  >>> scale, x = jnp.array([1.0, 10.0]), jnp.array([[1.0], [2.0], [3.0]])
  >>> index, weights = jnp.array([[0], [1], [0]]), jnp.ones((3, 1))
  >>> grouped(lambda s, x: s * x, 2, scale, jnp.arange(2), x, index, weights).tolist()
  [[1.0], [20.0], [3.0]]

  Args:
    function: f, from the parameters of one expert and some tokens [rows, D] to [rows, E], each from
      its own; closes over no arrays. What it gives for rows that are filled up is ignored.
    rows: of a block, see `rows_of`.
    experts: parameters, leaves [M, ...].
    numbers: of these experts, which rise by 1.
    x: tokens.
    index: the numbers of the experts that each chose, all different; others than `numbers` are
      somewhere else.
    weights: of its choices.

  Differentiable in reverse mode, with respect to experts, x and weights. The gradient of the
  parameters is written once.
  """
  return _forward(function, rows, experts, numbers, x, index, weights)[0]


class _Blocks(NamedTuple):
  """The choices in blocks. Choice c is that of token c // k.

  Attributes:
    order: the choices in the order of their experts, those of experts elsewhere last.
    starts: where each expert's begin in it, and where the last one's end.
    place: of each choice its row in the first blocks, [M·rows], or M·rows where it is in none.
    last: blocks of each expert but its first, summed up to it.
  """

  order: Int[Array, 'Tk']
  starts: Int[Array, 'M+1']
  place: Int[Array, 'T k']
  last: Int[Array, 'M']

  def first(self, rows: int) -> tuple[Int[Array, 'M rows'], Bool[Array, 'M rows']]:
    """Returns the choices in the first blocks, and whether a row is one, not filled up."""
    return self._choices(self.starts[:-1, None] + jnp.arange(rows), self.starts[1:, None])

  def later(
    self, number: Int[Array, ''], rows: int
  ) -> tuple[Int[Array, ''], Int[Array, 'rows'], Bool[Array, 'rows']]:
    """Returns the expert of one of the other blocks, and its choices as `first` does."""
    expert = jnp.searchsorted(self.last, number, side='right')
    before_end = self.last[expert] - number  # 1 for the last block of the expert
    blocks = -(-(self.starts[expert + 1] - self.starts[expert]) // rows)
    start = self.starts[expert] + (blocks - before_end) * rows
    return expert, *self._choices(start + jnp.arange(rows), self.starts[expert + 1])

  def _choices(self, positions, end):
    return self.order[jnp.minimum(positions, len(self.order) - 1)], positions < end


def _blocks(rows, count, first, index):
  """Returns the blocks of `count` experts from number `first` on."""
  expert = index.reshape(-1) - first
  expert = jnp.where((expert >= 0) & (expert < count), expert, count).astype(jnp.int32)
  order = jnp.argsort(expert, stable=True).astype(jnp.int32)
  starts = jnp.searchsorted(expert[order], jnp.arange(count + 1)).astype(jnp.int32)
  positions = jnp.arange(len(order), dtype=jnp.int32)
  within = jnp.zeros_like(order).at[order].set(positions, unique_indices=True) - starts[expert]
  outside = (expert == count) | (within >= rows)
  place = jnp.where(outside, count * rows, expert * rows + within).reshape(index.shape)
  last = jnp.cumsum(jnp.maximum(-(-jnp.diff(starts) // rows) - 1, 0))
  return _Blocks(order, starts, place, last)


def _in_turn(blocks, rows, add, total):
  """Returns `total` after `add(number, total)` for every block but the first ones. There are at
  most as many as fill whole blocks with choices, so that the loop has known trips; those beyond the
  last block are branches not taken."""
  tokens, top_k = blocks.place.shape
  experts = len(blocks.last)
  most = min(tokens * top_k // rows, experts * (-(-tokens // rows) - 1))

  def step(total, number):
    skip = lambda number, total: total
    return jax.lax.cond(number < blocks.last[-1], add, skip, number, total), None

  return jax.lax.scan(step, total, jnp.arange(most))[0] if most else total


def _of_choice(values, place):
  """Returns the rows of values [M, rows, F] at a place [T], zero where it is in none."""
  flat = values.reshape(-1, values.shape[-1])
  return jnp.where((place < len(flat))[:, None], flat[jnp.minimum(place, len(flat) - 1)], 0)


def _take(experts, number):
  return jax.tree.map(lambda leaf: leaf[number], experts)


def _forward(function, rows, experts, numbers, x, index, weights):
  top_k, of_choice = index.shape[1], weights.reshape(-1)
  blocks = _blocks(rows, len(numbers), numbers[0], index)
  values, pull = jax.vjp(jax.vmap(function), experts, x[blocks.first(rows)[0] // top_k])
  each = [weights[:, i, None] * _of_choice(values, blocks.place[:, i]) for i in range(top_k)]

  def add(number, total):
    expert, choices, valid = blocks.later(number, rows)
    tokens = choices // top_k
    share = jnp.where(valid, of_choice[choices], 0)[:, None]
    return total.at[tokens].add(share * function(_take(experts, expert), x[tokens]))

  y = _in_turn(blocks, rows, add, sum(each[1:], each[0]))
  return y, (experts, x, weights, blocks, values, pull)


def _backward(function, rows, kept, slope):
  experts, x, weights, blocks, values, pull = kept
  top_k, of_choice = weights.shape[1], weights.reshape(-1)
  choices, valid = blocks.first(rows)
  share = jnp.where(valid, of_choice[choices], 0)[..., None]
  of_experts, of_rows = pull((share * slope[choices // top_k]).astype(values.dtype))
  places = [blocks.place[:, i] for i in range(top_k)]
  each = [_of_choice(of_rows, place) for place in places]
  of_x = sum(each[1:], each[0])
  of_weights = jnp.stack([(_of_choice(values, place) * slope).sum(-1) for place in places], -1)

  def add(number, slopes):
    of_experts, of_x, of_weights = slopes
    expert, choices, valid = blocks.later(number, rows)
    tokens = choices // top_k
    values, pull = jax.vjp(function, _take(experts, expert), x[tokens])
    share = jnp.where(valid, of_choice[choices], 0)[:, None]
    of_expert, of_tokens = pull((share * slope[tokens]).astype(values.dtype))
    of_experts = jax.tree.map(lambda all_, one: all_.at[expert].add(one), of_experts, of_expert)
    products = jnp.where(valid, (values * slope[tokens]).sum(-1), 0)
    return of_experts, of_x.at[tokens].add(of_tokens), of_weights.at[choices].add(products)

  slopes = of_experts, of_x, of_weights.reshape(-1)
  of_experts, of_x, of_weights = _in_turn(blocks, rows, add, slopes)
  of_weights = of_weights.reshape(weights.shape).astype(weights.dtype)
  return of_experts, None, of_x, None, of_weights


grouped.defvjp(_forward, _backward)
