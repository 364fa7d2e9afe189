"""Seeds: which numbers name something of their own."""

from __future__ import annotations

import numbers
from typing import Any

from additive_jax.errors import UserError

# A key of JAX is made of 32 bits of a seed: it would take 2^32 for 0.
SEEDS = 2**32
EXPECTED = 'an integer from 0 to 2^32 − 1'


def checked_seed(seed: Any, name: str = 'seed') -> int:
  """Returns a seed as a Python integer.

  >>> checked_seed(7)
  7
  >>> checked_seed(2**32)
  Traceback (most recent call last):
  additive_jax.errors.UserError: seed 4294967296: expected an integer from 0 to 2^32 − 1

  Raises:
    UserError: for one that is not from 0 to 2^32 − 1, or no integer.
  """
  whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
  if not whole or not 0 <= seed < SEEDS:
    raise UserError(f'{name} {seed!r}: expected {EXPECTED}')
  return int(seed)
