"""Rotary positions: queries and keys turned by where their tokens stand, and how fast each pair of
units turns. Source: Su et al. 2021 (arXiv:2104.09864).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from additive_jax.errors import UserError

BASE = 10_000.0
Scaling = tuple[tuple[str, Any], ...]
# What each way to stretch positions needs to know.
KINDS: dict[str, tuple[str, ...]] = {
  'default': (),
  'linear': ('factor',),
  'llama3': (
    'factor',
    'low_freq_factor',
    'high_freq_factor',
    'original_max_position_embeddings',
  ),
  'yarn': ('factor', 'original_max_position_embeddings'),
}


@dataclasses.dataclass(frozen=True)
class Rotary:
  """The rates at which pairs of units turn, as configs of pretrained networks give them.

  >>> Rotary(scaling=(('rope_type', 'linear'), ('factor', 4.0))).rates(4).tolist()
  [0.25, 0.0024999999441206455]

  Attributes:
    theta: the base of the rates theta^(−2i/U).
    scaling: how they are changed for long inputs: pairs of `rope_type` ('linear', 'llama3' or
      'yarn', Peng et al. 2023, arXiv:2309.00071) and what that needs; () changes nothing.

  Raises:
    UserError: for another kind, or something missing.
  """

  theta: float = BASE
  scaling: Scaling = ()

  def __post_init__(self):
    given = self._given
    if self.kind not in KINDS:
      raise UserError(f'rope_type {self.kind!r}: expected one of {", ".join(KINDS)}')
    if missing := [name for name in KINDS[self.kind] if given.get(name) is None]:
      raise UserError(f'rope scaling {given} without {", ".join(missing)}: expected a number')
    if not self.theta > 1:
      raise UserError(f'rope theta {self.theta}: expected more than 1')

  @property
  def _given(self) -> Mapping[str, Any]:
    return dict(self.scaling)

  @property
  def kind(self) -> str:
    """The `rope_type`."""
    return str(self._given.get('rope_type', 'default'))

  @property
  def factor(self) -> float:
    """What queries and keys are multiplied by beside turning."""
    given = self._given
    if self.kind != 'yarn':
      return 1.0
    if given.get('attention_factor') is not None:
      return float(given['attention_factor'])
    scale = lambda m: 0.1 * m * math.log(given['factor']) + 1 if given['factor'] > 1 else 1.0
    first, second = given.get('mscale'), given.get('mscale_all_dim')
    return scale(first) / scale(second) if first and second else scale(1.0)

  def rates(self, size: int) -> Float[np.ndarray, 'pairs']:
    """Returns the radians that each of U/2 pairs of units turns from one position to the next."""
    given = self._given
    rates = 1 / self.theta ** (np.arange(0, size, 2) / size)
    if self.kind == 'linear':
      rates = rates / given['factor']
    elif self.kind == 'llama3':
      rates = _llama3(rates, given)
    elif self.kind == 'yarn':
      rates = _yarn(rates, self.theta, given)
    return rates.astype(np.float32)


def _llama3(rates: np.ndarray, given: Mapping[str, Any]) -> np.ndarray:
  """Slow pairs are slowed by the factor, fast ones stay, and those between are mixed."""
  low, high = given['low_freq_factor'], given['high_freq_factor']
  turns = given['original_max_position_embeddings'] * rates / (2 * np.pi)
  fast = np.clip((turns - low) / (high - low), 0, 1)
  return fast * rates + (1 - fast) * rates / given['factor']


def _yarn(rates: np.ndarray, theta: float, given: Mapping[str, Any]) -> np.ndarray:
  """As `_llama3`, with the mix linear in the number of the pair."""
  size, longest = 2 * len(rates), given['original_max_position_embeddings']
  pair = lambda turns: size * math.log(longest / (turns * 2 * np.pi)) / (2 * math.log(theta))
  first, last = pair(given.get('beta_fast') or 32.0), pair(given.get('beta_slow') or 1.0)
  if given.get('truncate', True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, size - 1)
  slow = np.clip((np.arange(len(rates)) - first) / (max(last - first, 1e-3)), 0, 1)
  return (1 - slow) * rates + slow * rates / given['factor']


def rotate(
  x: Float[Array, 'B T *heads U'],
  positions: Int[Array, 'B T'] | None = None,
  rotary: Rotary | None = None,
) -> Float[Array, 'B T *heads U']:
  """Returns queries or keys turned by their positions: the pair (i, i + U/2) of a token at position
  t by t·rate_i, by default base^(−2i/U). Positions of None are 0 to T − 1.
  """
  size = x.shape[-1]
  positions = jnp.arange(x.shape[1]) if positions is None else positions
  if rotary is None:
    rate = BASE ** (-jnp.arange(size // 2) / (size // 2))
  else:
    rate = jnp.asarray(rotary.rates(size))
  angle = positions[..., None] * rate
  angle = angle.reshape(*angle.shape[:-1], *(1,) * (x.ndim - 3), -1)  # [..., T, 1, U/2]
  cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
  if rotary is not None and rotary.factor != 1:
    cos, sin = cos * rotary.factor, sin * rotary.factor
  first, second = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)
