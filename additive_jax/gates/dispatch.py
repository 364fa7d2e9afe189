"""Runs a function on some tokens alone, whatever their number: nothing is dropped, and shapes stay
static.

The chosen tokens of each row are gathered into the smallest of a few static sizes that holds the
fullest row; which size is found at run time (`lax.switch`), so one compiled program serves every
choice, and the work follows the number of tokens in steps. Of two rows of 8, whose fullest has five
chosen tokens, 6 are gathered:

  chosen     . x . x x . x x      positions   1 3 4 6 7 | 0
             . . . . . . x .                  6 | 0 1 2 3 4
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from additive_jax.gates.sums import SAVED

EIGHTHS = (1, 2, 3, 4, 6, 8)  # of a row, the sizes that it is gathered into


def sizes_of(length: int) -> tuple[int, ...]:
  """Returns the sizes that a row is gathered into: eighths of its length, rounded up, the last one
  all of it.

  >>> sizes_of(16)
  (2, 4, 6, 8, 12, 16)
  """
  return tuple(sorted({-(-length * eighths // 8) for eighths in EIGHTHS}))


def packed(
  function: Callable[[Array, Array, Array], Array],
  x: Float[Array, 'B T D'],
  chosen: Bool[Array, 'B T'],
) -> Float[Array, 'B T E']:
  """Returns `function` of the chosen tokens of each row, and zero for the others.

  >>> x = jnp.array([[[1.0], [2.0]]])
  >>> packed(lambda x, positions, valid: 10 * x, x, jnp.array([[False, True]])).tolist()
  [[[0.0], [20.0]]]

  Args:
    function: from c tokens [B, c, D], their positions in the row, int32 [B, c], and whether they
      are chosen, bool [B, c], to [B, c, E]. Tokens stand in the order of the row; those that are
      not chosen come after them, and what it gives for them is ignored.
    x: all tokens.
    chosen: those that the function is for. Nothing runs when there are none at all.
  """
  sizes = sizes_of(x.shape[1])
  order = jnp.argsort(~chosen, axis=1, stable=True).astype(jnp.int32)
  count = chosen.sum(1)
  rows = jnp.arange(len(x))[:, None]
  out = jax.eval_shape(function, x, order, chosen)
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
  index = jnp.searchsorted(np.array((0, *sizes)), count.max())
  return jax.lax.switch(index, [lambda x: nothing, *map(run, sizes)], x)
