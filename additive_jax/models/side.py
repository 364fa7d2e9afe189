"""Side inputs: what sites take beside the stream, such as a padding mask, positions or what an
encoder gives. It travels with the stream, and no `+` changes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, PyTree, Shaped


class WithSide(NamedTuple):
  """What `embed` of a network with side inputs gives.

  Sites and readout that have a parameter called `side` are called with it, `site(h, side=side)` and
  `readout(h, side=side)`; others take the stream alone.

  Attributes:
    h: the stream.
    side: the same for all sites. Parameters learn through it as through the stream.

  >>> import flax.linen as nn
  >>> class Attend(nn.Module):
  ...   @nn.compact
  ...   def __call__(self, h, side):
  ...     return nn.MultiHeadDotProductAttention(2)(h, mask=side[:, None, None])
  >>> class Padded(aj.Additive):
  ...   def setup(self):
  ...     self.table, self.readout = nn.Embed(9, 4), nn.Dense(9)
  ...     self.sites = [Attend(name='attend'), nn.Dense(4, name='dense')]
  ...   def embed(self, x):
  ...     return aj.models.WithSide(self.table(x), x > 0)
  >>> x = np.array([[1, 2, 0], [3, 0, 0]])
  >>> variables = jax.jit(Padded().init)(jax.random.key(0), x)
  >>> Padded().apply(variables, x, '10').shape
  (2, 3, 9)
  """

  h: Float[Array, 'B ...']
  side: PyTree[Shaped[Array, 'B ...']]


def stream_of(value: Any) -> Any:
  """Returns the stream without its side.

  >>> stream_of(WithSide(1, 2)), stream_of(1)
  (1, 1)
  """
  return value.h if isinstance(value, WithSide) else value


def with_stream(value: Any, h: Any) -> Any:
  """Returns another stream with the side of `value`, if that has one.

  >>> with_stream(WithSide(1, 2), 3)
  WithSide(h=3, side=2)
  """
  return value._replace(h=h) if isinstance(value, WithSide) else h


def side_of(part: Callable[..., Any], side: Any) -> dict[str, Any]:
  """Returns the side as a part is given it: {} for a part without a parameter of that name, or
  where there is no side.

  A module of NNX that is made one of Linen (`flax.nnx.bridge.to_linen`) takes what its own
  `__call__` takes.

  >>> side_of(lambda h, side: h, 3), side_of(lambda h: h, 3)
  ({'side': 3}, {})
  """
  if side is None:
    return {}
  inner = getattr(part, 'nnx_class', None)
  called = getattr(inner, '__call__', part)  # noqa: B004
  return {'side': side} if 'side' in inspect.signature(called).parameters else {}


def call_part(part: Callable[..., Any], value: Any, *others: Any) -> Any:
  """Returns what a site or readout gives for a stream, with its side if the part takes that.

  >>> call_part(lambda h, side: h + side, WithSide(1, 2))
  3
  """
  side = value.side if isinstance(value, WithSide) else None
  return part(stream_of(value), *others, **side_of(part, side))
