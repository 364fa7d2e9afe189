"""Runs a function on some tokens alone, whatever their number: nothing is dropped, and shapes stay
static.

The chosen tokens of each row are gathered into the smallest of a few static sizes that holds the
fullest row; which size is found at run time (`lax.switch`), so one compiled program serves every
choice, and the work follows the number of tokens in steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from additive_jax.errors import UserError
from additive_jax.gates.sums import SAVED

EIGHTHS = (1, 2, 3, 4, 6, 8)  # the sizes that a row is gathered into by default


def default_sizes(length: int) -> tuple[int, ...]:
  """Eighths of a row's length, rounded up, the last one all of it."""
  return tuple(sorted({-(-length * eighths // 8) for eighths in EIGHTHS}))


def packed(
  function: Callable, x: jax.Array, chosen: jax.Array, *, sizes: Sequence[int] | None = None
) -> jax.Array:
  """`function` of the chosen tokens of each row, and zero for the others.

  Args:
    function: from tokens [B, c, D], their positions in the row, int32 [B, c], and whether they are
      chosen, bool [B, c], to [B, c, E]. Tokens stand in the order of the row; those that are not
      chosen fill the rest of c, and what it gives for them is ignored.
    x: [B, T, D].
    chosen: bool [B, T].
    sizes: what c may be, ascending, the last one T; see `default_sizes`. Nothing runs when no token
      is chosen at all.

  Returns:
    [B, T, E].

  Raises:
    UserError: for sizes that do not ascend to T.
  """
  length = x.shape[1]
  sizes = default_sizes(length) if sizes is None else tuple(sizes)
  if sizes != tuple(sorted(set(sizes))) or not sizes or sizes[0] < 1 or sizes[-1] != length:
    raise UserError(f'sizes {sizes} for rows of {length}: expected numbers that ascend to {length}')
  order = jnp.argsort(~chosen, axis=1, stable=True).astype(jnp.int32)
  count = chosen.sum(1)
  rows = jnp.arange(len(x))[:, None]
  full = jax.ShapeDtypeStruct((len(x), length), jnp.int32)
  valid = jax.ShapeDtypeStruct(full.shape, bool)
  out = jax.eval_shape(function, x, full, valid)
  nothing = jnp.zeros(out.shape, out.dtype)

  def run(size):
    def run_size(x):
      positions = order[:, :size]
      valid = jnp.arange(size) < count[:, None]
      part = x[rows, positions]
      y = jnp.where(valid[..., None], function(part, positions, valid), 0)
      return nothing.at[rows, positions].set(y, unique_indices=True)

    return jax.checkpoint(run_size, prevent_cse=False, policy=SAVED)

  # A branch that is not taken must not leave residuals, which reverse mode would fill with zeros.
  which = jnp.searchsorted(np.array((0, *sizes)), count.max())
  return jax.lax.switch(which, [lambda x: nothing, *map(run, sizes)], x)
