"""Runs a function on some tokens alone, whatever their number: nothing is dropped, and shapes stay
static.

Tokens that the function treats one by one go through it in blocks (`in_blocks`): the chosen ones
first, an eighth of all in each, as many blocks as they fill. Of 16 tokens with five chosen

  chosen     . x . x x . x x . . . . . . . .      blocks   1 3 | 4 6 | 7 0 | … none of these run

Tokens that are mixed within their row, as by attention, have to be together (`packed`). The tokens
of each row are put in order, the chosen ones first, and cut to the smallest of a few static sizes
that holds the fullest row; which size is found at run time (`lax.switch`), and every size is a
branch to compile. Of two rows of 8, whose fullest has five chosen tokens, 6 are taken:

  chosen     . x . x x . x x      positions   1 3 4 6 7 | 0
             . . . . . . x .                  6 | 0 1 2 3 4

Gradients are written out, in branches of their own which compute the function once more: reverse
mode would hand what it keeps of each branch on to the backward pass, and fill it with zeros for all
branches that are not taken.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

EIGHTHS = (1, 2, 3, 4, 6, 8)  # of a row, the sizes that it is gathered into
BLOCKS = 8  # that all tokens fill

# From parameters, some tokens, their positions and whether they are chosen.
OfTokens = Callable[[Any, Any, Array, Array], Array]


class Order(NamedTuple):
  """The tokens of each row in the order in which they are taken: the chosen ones first.

  Attributes:
    chosen: those that a function is for.
    positions: in that order.
    ranks: for each token the number of chosen ones up to it, less one.
    counts: how many are chosen.
  """

  chosen: Bool[Array, '*rows T']
  positions: Int[Array, '*rows T']
  ranks: Int[Array, '*rows T']
  counts: Int[Array, '*rows']


def ordered(chosen: Bool[Array, '*rows T'] | Order) -> Order:
  """Returns the order of the tokens of each row, where it is not given already. Several functions
  of the same tokens may share one.

  >>> ordered(jnp.array([False, True, False, True])).positions.tolist()
  [1, 3, 0, 2]
  """
  if isinstance(chosen, Order):
    return chosen
  positions = jnp.argsort(~chosen, axis=-1, stable=True).astype(jnp.int32)
  ranks = jnp.cumsum(chosen, axis=-1, dtype=jnp.int32) - 1
  return Order(chosen, positions, ranks, chosen.sum(-1, dtype=jnp.int32))


class Tokens(NamedTuple):
  """The tokens that chose a module.

  Attributes:
    order: of the tokens of all rows, one row after the other, for `in_blocks`.
    by_row: of those of each row, for `packed`; None where nothing mixes them.
  """

  order: Order
  by_row: Order | None

  @classmethod
  def chosen(cls, chosen: Bool[Array, 'M B T'], *, by_row: bool) -> Tokens:
    """Returns the tokens of M modules.

    >>> tokens = Tokens.chosen(jnp.array([[[False, True], [True, False]]]), by_row=True)
    >>> tokens.order.positions.tolist(), tokens.by_row.positions.tolist()
    ([[1, 2, 0, 3]], [[[1, 0], [0, 1]]])
    """
    flat = chosen.reshape(*chosen.shape[:-2], -1)
    return cls(ordered(flat), ordered(chosen) if by_row else None)


def sizes_of(length: int) -> tuple[int, ...]:
  """Returns the sizes that a row is gathered into: eighths of its length, rounded up, the last one
  all of it.

  >>> sizes_of(16)
  (2, 4, 6, 8, 12, 16)
  """
  return tuple(sorted({-(-length * eighths // 8) for eighths in EIGHTHS}))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def packed(
  function: OfTokens, parameters: PyTree, tokens: PyTree, chosen: Bool[Array, 'B T'] | Order
) -> Float[Array, 'B T E']:
  """Returns `function` of the chosen tokens of each row, and zero for the others.

  >>> x = jnp.array([[[1.0], [2.0]]])
  >>> scale = lambda parameters, x, positions, valid: parameters * x
  >>> packed(scale, jnp.float32(10), x, jnp.array([[False, True]])).tolist()
  [[[0.0], [20.0]]]

  Args:
    function: from parameters, c tokens of each row, their positions in it, int32 [B, c], and
      whether they are chosen, bool [B, c], to [B, c, E]. Tokens stand in the order of the row;
      those that are not chosen come after them, and what it gives for them is ignored. Closes over
      no arrays.
    parameters: a pytree.
    tokens: what it reads of all tokens, leaves [B, T, ...].
    chosen: those that the function is for, or their order. Nothing runs when there are none at all.

  Differentiable in reverse mode, with respect to parameters and tokens.
  """
  return _packed_forward(function, parameters, tokens, chosen)[0]


def _packed_forward(function, parameters, tokens, chosen):
  order = ordered(chosen)
  first = jax.tree.map(functools.partial(_first, order), tokens)
  out = jax.eval_shape(function, parameters, tokens, order.positions, order.chosen)

  def run(size):
    def of_size(parameters, first):
      part = jax.tree.map(lambda leaf: leaf[:, :size], first)
      return _fill(_length(order), _of_size(function, order, size, parameters, part))

    return of_size

  nothing = lambda parameters, first: jnp.zeros(out.shape, out.dtype)
  y = _by_size(run, nothing, order, parameters, first)
  return _in_place(y, order), (parameters, tokens, order)


def _packed_backward(function, kept, slope):
  parameters, tokens, order = kept
  first = jax.tree.map(functools.partial(_first, order), (tokens, slope))

  def pull(size):
    run = functools.partial(_of_size, function, order, size)

    def pulled(parameters, tokens, slope):
      part, slope = jax.tree.map(lambda leaf: leaf[:, :size], (tokens, slope))
      of_parameters, of_part = _pulled(run, parameters, part, slope)
      return of_parameters, jax.tree.map(functools.partial(_fill, _length(order)), of_part)

    return pulled

  nothing = lambda *operands: jax.tree.map(jnp.zeros_like, _moving(operands[:2]))
  of_parameters, of_first = _by_size(pull, nothing, order, parameters, *first)
  of_tokens = jax.tree.map(lambda leaf: _in_place(leaf, order), of_first)
  return of_parameters, of_tokens, None


packed.defvjp(_packed_forward, _packed_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_blocks(
  function: OfTokens, parameters: PyTree, tokens: PyTree, chosen: Bool[Array, 'T'] | Order
) -> Float[Array, 'T E']:
  """Returns `function` of the chosen tokens, each by itself, and zero for the others.

  >>> x = jnp.array([[1.0], [2.0]])
  >>> scale = lambda parameters, x, positions, valid: parameters * x
  >>> in_blocks(scale, jnp.float32(10), x, jnp.array([False, True])).tolist()
  [[0.0], [20.0]]

  Args:
    function: as for `packed`, of one row: from parameters, c tokens, positions and validity [c] to
      [c, E]. Tokens that are not chosen fill up the last block.
    parameters: a pytree.
    tokens: what it reads of all tokens, leaves [T, ...].
    chosen: those that the function is for, or their order.

  Differentiable in reverse mode, with respect to parameters and tokens.
  """
  return _blocks_forward(function, parameters, tokens, chosen)[0]


def _blocks_forward(function, parameters, tokens, chosen):
  order = ordered(chosen)
  blocks = _blocks(order)
  run = functools.partial(_of_block, function, parameters)
  cut = functools.partial(_cut, order, blocks)
  out = jax.eval_shape(lambda: run(*cut(tokens, 0)))

  def step(carry, block):
    nothing = lambda tokens: jnp.zeros(out.shape, out.dtype)
    some = lambda tokens: run(*cut(tokens, block))
    return carry, jax.lax.cond(block * blocks[1] < order.counts, some, nothing, tokens)

  y = jax.lax.scan(step, None, jnp.arange(blocks[0]))[1]
  return _spread(y, order), (parameters, tokens, order)


def _blocks_backward(function, kept, slope):
  parameters, tokens, order = kept
  blocks = _blocks(order)
  cut = functools.partial(_cut, order, blocks)
  zeros = jax.tree.map(jnp.zeros_like, _moving(parameters))
  out = jax.eval_shape(lambda: _moving(cut(tokens, 0)[0]))

  def step(total, block):
    def some(total, tokens, slope):
      part, positions, valid = cut(tokens, block)
      run = lambda parameters, part: _of_block(function, parameters, part, positions, valid)
      of_block = cut(slope, block)[0]
      of_parameters, of_part = _pulled(run, parameters, part, of_block)
      return jax.tree.map(jnp.add, total, of_parameters), of_part

    def nothing(total, tokens, slope):
      return total, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out)

    some_left = block * blocks[1] < order.counts
    return jax.lax.cond(some_left, some, nothing, total, tokens, slope)

  of_parameters, of_blocks = jax.lax.scan(step, zeros, jnp.arange(blocks[0]))
  of_tokens = jax.tree.map(lambda leaf: _spread(leaf, order), of_blocks)
  return of_parameters, of_tokens, None


in_blocks.defvjp(_blocks_forward, _blocks_backward)


def _length(order):
  return order.chosen.shape[-1]


def _by_size(branch, nothing, order, *operands):
  """Returns what `branch(size)` gives at the smallest size that holds the fullest row, or
  `nothing` where it is empty."""
  sizes = sizes_of(_length(order))
  index = (order.counts.max() > np.array((0, *sizes[:-1]))).sum()
  return jax.lax.switch(index, [nothing, *map(branch, sizes)], *operands)


def _of_size(function, order, size, parameters, part):
  """Returns the outputs of the first `size` positions of each row, [B, size, ...]."""
  valid = jnp.arange(size) < order.counts[:, None]
  values = function(parameters, part, order.positions[:, :size], valid)
  return jnp.where(valid[..., None], values, 0)


def _first(order, leaf):
  """Returns values of all tokens [B, T, ...] in their order: the chosen ones first."""
  return leaf[jnp.arange(len(leaf))[:, None], order.positions]


def _in_place(leaf, order):
  """Returns values in that order where the tokens stand, zero for those not chosen."""
  values = leaf[jnp.arange(len(leaf))[:, None], jnp.maximum(order.ranks, 0)]
  is_chosen = order.chosen.reshape(*order.chosen.shape, *[1] * (leaf.ndim - 2))
  return jnp.where(is_chosen, values, 0)


def _fill(length, leaf):
  """Returns values [B, size, ...], and zeros after them up to a length."""
  return jnp.pad(leaf, [(0, 0), (0, length - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)])


def _blocks(order):
  """Returns how many blocks all tokens fill, and the tokens of a block."""
  rows = -(-_length(order) // BLOCKS)
  return -(-_length(order) // rows), rows


def _cut(order, blocks, tokens, block):
  """Returns the tokens of a block, their positions and which of them are chosen."""
  numbers = block * blocks[1] + jnp.arange(blocks[1])
  positions = order.positions[jnp.minimum(numbers, _length(order) - 1)]
  return jax.tree.map(lambda leaf: leaf[positions], tokens), positions, numbers < order.counts


def _of_block(function, parameters, part, positions, valid):
  return jnp.where(valid[:, None], function(parameters, part, positions, valid), 0)


def _spread(blocks, order):
  """Returns the values of all tokens [T, ...], of those in blocks [blocks, rows, ...]."""
  flat = blocks.reshape(-1, *blocks.shape[2:])
  is_chosen = order.chosen.reshape(-1, *[1] * (flat.ndim - 1))
  return jnp.where(is_chosen, flat[jnp.maximum(order.ranks, 0)], 0)


def _moving(tree: PyTree) -> PyTree:
  """Returns a pytree with None for leaves that have no gradient."""
  is_moving = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
  return jax.tree.map(lambda leaf: leaf if is_moving(leaf) else None, tree)


def _pulled(run, parameters, tokens, slope: Float[Array, '...']):
  """Returns the gradients of `run(parameters, tokens)`, as `_moving` has them."""
  values = parameters, tokens
  fill = lambda moving, value: value if moving is None else moving
  whole = lambda moving: jax.tree.map(fill, moving, values, is_leaf=lambda leaf: leaf is None)
  _, pull = jax.vjp(lambda moving: run(*whole(moving)), _moving(values))
  return pull(slope)[0]
