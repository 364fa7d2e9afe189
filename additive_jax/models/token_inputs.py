"""Inputs of token networks: tokens alone, or with what says which of them belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, PyTree, Shaped

from additive_jax.batches import named_leaves
from additive_jax.errors import UserError
from additive_jax.models.side import WithSide

TOKENS, MASK, SEGMENTS, TYPES = 'tokens', 'mask', 'segments', 'types'
EXPECTED = (
  'tokens, integers [B, T], or a dict of these with a mask (1, and 0 for padding) or segments (the '
  'number of the document of each token, 0 for padding)'
)
Side = dict[str, Array]


def token_inputs(
  x: PyTree[Shaped[Array, 'B T']], others: tuple[str, ...] = ()
) -> tuple[Integer[Array, 'B T'], Side | None, Mapping[str, Any]]:
  """Returns tokens, the side of their stream, and other inputs by name.

  Tokens see each other within a segment alone, and their positions are counted within it, so that
  packed documents do not cross and padding may stand on either side.

  >>> x = {'tokens': jnp.array([[7, 5, 9]]), 'segments': jnp.array([[1, 1, 2]])}
  >>> token_inputs(x)[1]['positions'].tolist()
  [[0, 1, 0]]

  Args:
    x: tokens [B, T], or a dict of these with `mask` or `segments`.
    others: names that the dict may have beside.

  Returns:
    Tokens; None, or a dict of `segments` and `positions`; the inputs called in `others`.

  Raises:
    UserError: for anything else.
  """
  given = x if isinstance(x, Mapping) else {TOKENS: x}
  known = (TOKENS, MASK, SEGMENTS, *others)
  arrays = [leaf for _, leaf in named_leaves(given)]
  whole = all(
    getattr(leaf, 'ndim', 0) == 2
    and (jnp.issubdtype(leaf.dtype, jnp.integer) or leaf.dtype == bool)
    for leaf in arrays
  )
  fits = TOKENS in given and set(given) <= set(known) and not {MASK, SEGMENTS} <= set(given)
  if not (fits and whole and len(arrays) == len(given)) or len({a.shape for a in arrays}) != 1:
    leaf = lambda name, a: f'{name} {getattr(a, "dtype", type(a).__name__)} {np.shape(a)}'.strip()
    told = ', '.join(leaf(name, array) for name, array in named_leaves(x))
    raise UserError(f'inputs {told}: expected {EXPECTED}')
  segments = given.get(SEGMENTS, given.get(MASK))
  beside = {name: given[name] for name in others if name in given}
  if segments is None:
    return jnp.asarray(given[TOKENS]), None, beside
  segments = jnp.asarray(segments, jnp.int32)
  side = {SEGMENTS: segments, 'positions': _positions(segments)}
  return jnp.asarray(given[TOKENS]), side, beside


def with_side(h: Any, side: Side | None) -> Any:
  """Returns a stream with its side, if it has one."""
  return h if side is None else WithSide(h, side)


def positions_of(
  tokens: Integer[Array, 'B T'], side: Side | None, longest: int
) -> Integer[Array, '#B T']:
  """Returns the positions of tokens, for learned ones.

  Args:
    tokens, side: as `token_inputs` gives them.
    longest: how many positions there are.

  Raises:
    UserError: for more tokens.
  """
  check_length(tokens, longest)
  return jnp.arange(tokens.shape[1])[None] if side is None else side['positions']


def check_length(tokens: Integer[Array, 'B T'], longest: int) -> None:
  """Raises `UserError` for rows of more tokens than a network has positions for.

  Rows are counted, not the documents in them: how long these are is not known by shapes.

  >>> check_length(jnp.zeros((1, 9), int), 8)
  Traceback (most recent call last):
  additive_jax.errors.UserError: 9 tokens: expected at most 8, max_tokens
  """
  if tokens.shape[1] > longest:
    raise UserError(f'{tokens.shape[1]} tokens: expected at most {longest}, max_tokens')


def _positions(segments: Integer[Array, 'B T']) -> Integer[Array, 'B T']:
  """Returns for each token how many tokens of its segment stand before it."""
  earlier = jnp.tril(segments[:, :, None] == segments[:, None, :], -1)
  return earlier.sum(-1, dtype=jnp.int32)
