"""Sites whose residual is a projection: strided or widening blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from additive_jax.gates.sums import SAVED, GateValue, aligned, is_soft, is_static
from additive_jax.models.batch_norm import run_of_batch
from additive_jax.models.side import side_of
from additive_jax.models.surrounding import DROPOUT


class Projected(nn.Module):
  """A site `y = P(x) + g·f(x)` that may change the shape of the stream. Its one gate, `branch`,
  skips f; the shortcut P always runs, so that a gate that is off leaves P(x).

  P counts as fixed cost, f with the gate. Ways to run that take bits skip f where it is off,
  forward and backward; masks, also those of shared-prefix evaluation and of structures per sample,
  compute it. Rescaling is that of residual gates alone, and leaves it as it is.

  Attributes:
    branch: f, from the stream to what is added.
    shortcut: P, from the stream to the new one, of the same shape as what f gives.

  >>> site = Projected(nn.Conv(8, (3, 3), 2), shortcut=nn.Conv(8, (1, 1), 2))
  >>> x = jnp.ones((1, 4, 4, 3))
  >>> variables = site.init(jax.random.key(0), x)
  >>> site.apply(variables, x, (False,)).shape, sorted(variables['params'])
  ((1, 2, 2, 8), ['branch', 'shortcut'])
  """

  branch: nn.Module
  shortcut: nn.Module

  gates: ClassVar[tuple[str, ...]] = ('branch',)

  def __call__(
    self,
    h: Float[Array, 'B ...'],
    gates: Sequence[GateValue] = (True,),
    side: PyTree | None = None,
  ) -> Float[Array, 'B ...']:
    """Returns the new stream.

    Args:
      h: the stream.
      gates: the value of the gate, in one of the forms of `gates.sums`.
      side: of the stream, see `WithSide`; f and P are given it where they have such a parameter.
    """
    (gate,) = gates or (True,)
    y = self.shortcut(h, **side_of(self.shortcut, side))
    takes = side_of(self.branch, side)
    if is_static(gate):
      if gate:
        return y + self.branch(h, **takes).astype(y.dtype)
      if self.is_initializing():  # a pool has all parameters, whatever the structure
        self.branch(h, **takes)
      return y
    if is_soft(gate):
      return y + aligned(gate, y) * self.branch(h, **takes).astype(y.dtype)
    return self._conditional(h, y, jnp.asarray(gate), takes)

  def _conditional(self, h: Array, y: Array, gate: Array, takes: dict[str, Any]) -> Array:
    # JAX's conditional takes pure functions.
    branch, variables = self.branch.unbind()
    rngs = {DROPOUT: self.make_rng(DROPOUT)} if self.has_rng(DROPOUT) else None

    def add(h: Array, y: Array, takes: dict[str, Any]) -> Array:
      apply = lambda **flax: branch.apply(variables, h, **takes, rngs=rngs, **flax)
      return y + run_of_batch(apply).astype(y.dtype)

    on = jax.checkpoint(add, prevent_cse=False, policy=SAVED)  # as for residual gates
    return jax.lax.cond(gate, on, lambda h, y, takes: y, h, y, takes)
