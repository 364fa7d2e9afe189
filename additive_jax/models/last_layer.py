"""Logits as the matrix product that they are, for those who need no logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, PyTree

from additive_jax.models.applying import apply_part
from additive_jax.models.side import call_part
from additive_jax.models.sites import Stream
from additive_jax.models.surrounding import READOUT


class LastLayer(NamedTuple):
  """Logits that are not multiplied out: x·kernel + bias.

  A network over a large vocabulary gives it by a method `last_layer(h)` beside `readout`, so that
  losses can go through the vocabulary in pieces.

  Attributes:
    x: what the last layer reads.
    kernel: its matrix, or with `tied` the embedding, a row for each token.
    bias: what is added; None is none.
    tied: whether the kernel is [V, D].
  """

  x: Float[Array, 'B ... D']
  kernel: Float[Array, 'D V'] | Float[Array, 'V D']
  bias: Float[Array, 'V'] | None = None
  tied: bool = False

  @property
  def num_logits(self) -> int:
    """V."""
    return self.kernel.shape[0 if self.tied else 1]


def has_last_layer(model: nn.Module) -> bool:
  """Returns whether a network, or the one that it is around, gives its last layer apart."""
  inner = getattr(getattr(model, 'network', None), 'module', None)
  if isinstance(inner, nn.Module):
    return has_last_layer(inner)
  return callable(getattr(type(model), 'last_layer', None))


def last_layer(model: nn.Module, variables: PyTree, h: Stream) -> LastLayer:
  """Returns the last layer of a stream [B, ..., D], of a network that has one.

  >>> sizes = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_classes': 256, 'num_tokens': 256}
  >>> model, x = aj.models.Transformer(1, **sizes, causal=True), jnp.zeros((2, 5), int)
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)
  >>> last = last_layer(model, pool, jnp.ones((2, 5, 8)))
  >>> last.x.shape, last.kernel.shape, last.num_logits
  ((2, 5, 8), (8, 256), 256)
  """

  def read(module: Any, h: Stream) -> tuple[Any, ...]:
    given = call_part(module.last_layer, h)
    tied.append(given.tied)
    return given.x, given.kernel, given.bias

  tied: list[bool] = []
  x, kernel, bias = apply_part(model, variables, READOUT, read, h)
  return LastLayer(x, kernel, bias, tied[-1])


def of_dense(x: Float[Array, 'B ... D'], dense: nn.Dense) -> LastLayer:
  """Returns the last layer that is a `Dense` of a bound module, made in its `setup`."""
  params = dense.variables['params']
  return LastLayer(x, params['kernel'], params.get('bias'))
