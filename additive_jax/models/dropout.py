"""Dropout that is the same on one device as on many."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from additive_jax.errors import UserError
from additive_jax.models.kinds import LANE
from additive_jax.models.surrounding import DROPOUT, dropout_key, mode


def dropping(rate: float) -> Dropout | None:
  """Returns what drops numbers at a rate, a submodule of the compact module that calls it; None at
  rate 0, where such a module is what it is without dropout.

  >>> dropping(0.0) is None
  True
  """
  return Dropout(rate) if rate else None


def check_dropout(rate: float, kinds: Sequence[str], routing: object = None) -> None:
  """Raises `UserError` for a rate outside [0, 1), or dropout in a network with lane gates or
  routers.

  >>> check_dropout(0.1, ('lane',))
  Traceback (most recent call last):
  additive_jax.errors.UserError: dropout 0.1 with lane gates: expected 0
  """
  if not 0 <= rate < 1:
    raise UserError(f'dropout {rate}: expected a probability in [0, 1)')
  if rate and LANE in kinds:
    raise UserError(f'dropout {rate} with lane gates: expected 0')
  if rate and routing is not None:
    raise UserError(f'dropout {rate} with routers: expected 0')


class Dropout(nn.Module):
  """Sets each number to zero with probability `rate` and divides the others by 1 − rate, while a
  network is trained; judging drops nothing. Source: Srivastava et al. 2014 (JMLR 15, 56).

  What is dropped of an example depends on the seed, the step, the slot, the part of the network and
  the example alone: it is the same however devices share out structures, batches and parameters.
  Flax's own `nn.Dropout(rate, deterministic=not self.has_rng('dropout'))` works too; its draw is of
  the share of a batch that a device has.

  Attributes:
    rate: the probability in [0, 1).

  Trainers give it its key. By hand it takes Flax's:

  >>> drop, x = Dropout(0.5), jnp.ones((2, 3))
  >>> drop.apply({}, x).tolist()
  [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
  >>> dropped = drop.apply({}, jnp.ones((64, 3)), rngs={'dropout': jax.random.key(0)})
  >>> sorted(set(dropped.ravel().tolist()))
  [0.0, 2.0]
  """

  rate: float

  def __post_init__(self):
    if not 0 <= self.rate < 1:
      raise UserError(f'dropout {self.rate}: expected a probability in [0, 1)')
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Float[Array, 'B *axes']) -> Float[Array, 'B *axes']:
    """Returns x, in training with some of its numbers dropped.

    Args:
      x: the examples of the batch first; an axis of examples times tokens serves as well.

    Raises:
      UserError: for a first axis that is no multiple of the batch.
    """
    key, rows = dropout_key(self.path), mode().rows
    if key is None:
      if self.is_initializing() or not self.has_rng(DROPOUT):
        return x
      key, rows = self.make_rng(DROPOUT), None
    if not self.rate:
      return x
    rows = jnp.arange(len(x)) if rows is None else rows
    if len(x) % len(rows):
      raise UserError(
        f'dropout of an array of shape {x.shape} in a batch of {len(rows)} examples: expected the '
        'examples as its first axis'
      )
    shape = (len(x) // len(rows), *x.shape[1:])
    of_example = lambda row: jax.random.bernoulli(
      jax.random.fold_in(key, row), 1 - self.rate, shape
    )
    keep = jax.vmap(of_example)(rows).reshape(x.shape)
    return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)
