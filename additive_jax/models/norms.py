"""How a branch is normalised: which norm, and whether it stands before the branch or after the
sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from additive_jax.gates.sums import GateValue, residual


class Scale(nn.Module):
  """The scales [size] of a norm, for code that normalises by itself."""

  size: int

  @nn.compact
  def __call__(self) -> Float[Array, 'size']:
    return self.param('scale', nn.initializers.ones, (self.size,), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Norm:
  """A norm by its kind.

  >>> sorted(Norm().module().init(jax.random.key(0), jnp.ones((1, 4)))['params'])
  ['bias', 'scale']
  >>> sorted(Norm('rms').module().init(jax.random.key(0), jnp.ones((1, 4)))['params'])
  ['scale']

  Attributes:
    kind: 'layer' or 'rms', which leaves out the mean and the bias.
    epsilon: is added to the variance.
    after: False for `h + f(norm(h))`, True for `norm(h + f(h))` (post-norm).
  """

  kind: str = 'layer'
  epsilon: float = 1e-6
  after: bool = False

  def module(self, name: str | None = None) -> nn.Module:
    """Returns the norm as a Flax module."""
    make = nn.RMSNorm if self.kind == 'rms' else nn.LayerNorm
    return make(epsilon=self.epsilon, name=name)


def rms(
  x: Float[Array, '*axes U'], scale: Float[Array, 'U'], epsilon: float
) -> Float[Array, '*axes U']:
  """Returns x divided by the root of its mean square, in float32, times the scales.

  >>> rms(jnp.array([2.0, 2.0]), jnp.array([1.0, 3.0]), 0.0).tolist()
  [1.0, 3.0]
  """
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + epsilon)
  return wide.astype(x.dtype) * scale.astype(x.dtype)


def post_norm(
  h: Float[Array, '*axes D'],
  branch: Callable[[Array], Array],
  norm: Callable[[Array], Array],
  gate: GateValue = True,
) -> Float[Array, '*axes D']:
  """Returns `norm(h + g·f(h))`: a branch that is off leaves the norm of the stream.

  >>> post_norm(jnp.ones(2), jnp.sin, jnp.negative, False).tolist()
  [-1.0, -1.0]
  """
  return norm(residual(h, branch, gate))
