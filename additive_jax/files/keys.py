"""Typed PRNG keys as the numbers that they hold, which files and NumPy take, and back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped


def is_key(leaf: Any) -> bool:
  """Returns whether a leaf is typed PRNG keys, such as `jax.random.key` makes.

  >>> is_key(jax.random.key(0)), is_key(jax.random.PRNGKey(0))
  (True, False)
  """
  return jax.dtypes.issubdtype(getattr(leaf, 'dtype', np.bool_), jax.dtypes.prng_key)


def key_data(leaf: Any) -> Any:
  """Returns the numbers of a leaf that is PRNG keys, where these lie, or their shape for a shape of
  keys; every other leaf as it is.

  >>> key_data(jax.random.key(7)).tolist()
  [0, 7]
  """
  if not is_key(leaf):
    return leaf
  if isinstance(leaf, jax.Array):
    return jax.random.key_data(leaf)
  data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=getattr(leaf, 'sharding', None))


def like(value: Any, template: Any) -> Any:
  """Returns numbers as PRNG keys where the template is keys; every other leaf as it is.

  >>> bool(like(np.array([0, 7], np.uint32), jax.random.key(0)) == jax.random.key(7))
  True
  """
  if not is_key(template):
    return value
  kind = jax.random.key_impl(jnp.empty(0, template.dtype))
  return jax.random.wrap_key_data(jnp.asarray(value), impl=kind)


def as_numpy(leaf: Any) -> Shaped[np.ndarray, '...']:
  """Returns a leaf as a NumPy array; of PRNG keys the numbers."""
  return np.asarray(key_data(leaf))
