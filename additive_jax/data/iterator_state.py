"""The state of an iterator of someone else: asked for, written as JSON, and given back."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from additive_jax.errors import UserError

# How an iterator is asked for its state, and how it is given one: those of grain, and those of
# torchdata and Hugging Face datasets.
METHODS = (('get_state', 'set_state'), ('state_dict', 'load_state_dict'))


class Reading:
  """One pass over an iterable, from its beginning or from a state.

  The state is that of the iterator, or of the iterable where only this says one.

  >>> Reading([1, 2]).says_state, next(Reading([1, 2]).iterator)
  (False, 1)

  Args:
    iterable: of one pass.
    state: what `state` gave; None is the beginning. Without effect on what says no state.
  """

  def __init__(self, iterable: Iterable[Any], state: Any = None):
    self.iterator = iter(iterable)
    self._holder: Any = None
    self._methods = METHODS[0]
    for holder in (self.iterator, iterable):
      if methods := _methods_of(holder):
        self._holder, self._methods = holder, methods
        break
    if state is not None and self._holder is not None:
      getattr(self._holder, self._methods[1])(state)
      if self._holder is not self.iterator:
        self.iterator = iter(iterable)

  @property
  def says_state(self) -> bool:
    """Whether the iterator, or the iterable, has a state."""
    return self._holder is not None

  def state(self) -> Any:
    """Returns the state before the next item; None where there is none."""
    return None if self._holder is None else getattr(self._holder, self._methods[0])()


def _methods_of(holder):
  for names in METHODS:
    if all(callable(getattr(holder, name, None)) for name in names):
      return names
  return None


def encoded(value: Any, name: str = 'data') -> Any:
  """Returns the state of an iterator as JSON values.

  >>> encoded({'place': 3, 'rest': b'ab'})
  {'place': 3, 'rest': {'__bytes__': 'YWI='}}

  Raises:
    UserError: for values of other types than numbers, texts, bytes, arrays, lists, tuples, dicts.
  """
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, bytes):
    return {'__bytes__': base64.b64encode(value).decode()}
  if isinstance(value, np.generic | np.ndarray | jax.Array):
    array = np.asarray(value)
    if array.dtype.kind not in 'OV':
      data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
      return {'__array__': data, 'dtype': array.dtype.str, 'shape': list(array.shape)}
  if isinstance(value, list):
    return [encoded(item, name) for item in value]
  if isinstance(value, tuple):
    return {'__tuple__': [encoded(item, name) for item in value]}
  if isinstance(value, dict):
    return (
      {'__dict__': [[encoded(k, name), encoded(v, name)] for k, v in value.items()]}
      if any(not isinstance(key, str) or key.startswith('__') for key in value)
      else {key: encoded(item, name) for key, item in value.items()}
    )
  raise UserError(
    f'{name}: the state of the iterator has a {type(value).__name__}: expected bytes, or numbers, '
    'texts, arrays, lists and dicts of them'
  )


def decoded(value: Any) -> Any:
  """Returns what `encoded` was given; nothing in it is run.

  >>> decoded(encoded({'place': (3, b'ab'), 5: np.arange(2)}))
  {'place': (3, b'ab'), 5: array([0, 1])}
  """
  if isinstance(value, list):
    return [decoded(item) for item in value]
  if not isinstance(value, dict):
    return value
  if '__bytes__' in value:
    return base64.b64decode(value['__bytes__'])
  if '__array__' in value:
    flat = np.frombuffer(base64.b64decode(value['__array__']), np.dtype(value['dtype']))
    return flat.reshape(value['shape']).copy()
  if '__tuple__' in value:
    return tuple(decoded(item) for item in value['__tuple__'])
  if '__dict__' in value:
    return {decoded(key): decoded(item) for key, item in value['__dict__']}
  return {key: decoded(item) for key, item in value.items()}


def digest(batch: PyTree) -> str:
  """Returns a checksum of shapes, types and values of a batch.

  >>> digest(np.zeros(3)) == digest(np.zeros(3, np.float32))
  False
  """
  total = hashlib.blake2b(digest_size=8)
  for leaf in jax.tree.leaves(batch):
    total.update(f'{leaf.dtype}{leaf.shape}'.encode())
    total.update(np.ascontiguousarray(leaf).tobytes())
  return total.hexdigest()
