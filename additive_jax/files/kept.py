"""Small results that take long to find and are the same each time, kept beside compiled programs:

    <folder>/kept-<key>-cache      {"crc32": …, "value": …}

A key is a digest of the function's name, its arguments, the code of this library and the versions
of those below. Arguments that say no more than their address, as a function made on the spot or a
class of the user's own, whose code may change, have no key: what follows from them is not kept.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import importlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import flax
import jax
import jaxlib
import numpy as np

from additive_jax.files.temporaries import beside

_FOLDER: contextvars.ContextVar[Path | None] = contextvars.ContextVar('folder', default=None)
# Code that a version or `_library` names.
PACKAGES = ('additive_jax', 'flax', 'jax', 'jaxlib', 'numpy', 'builtins')
SETTINGS = (
  *('jax_enable_x64', 'jax_default_matmul_precision', 'jax_numpy_dtype_promotion'),
  *(
    'jax_numpy_rank_promotion',
    'jax_platforms',
    'jax_default_prng_impl',
    'jax_threefry_partitionable',
  ),
)

P = ParamSpec('P')
T = TypeVar('T')


class NamelessError(Exception):
  """A value that no text names from one process to the next."""


@contextlib.contextmanager
def keeping(folder: Path) -> Iterator[None]:
  """Keeps results inside in `folder`, and takes those that are there."""
  token = _FOLDER.set(folder)
  try:
    yield
  finally:
    _FOLDER.reset(token)


def kept(
  encode: Callable[[T], Any], decode: Callable[[Any], T]
) -> Callable[[Callable[P, T]], Callable[P, T]]:
  """Returns a decorator that keeps what a function of descriptions gives.

  Args:
    encode: from what the function gives to a JSON value, which is not None.
    decode: the way back; must give an equal value.

  >>> import tempfile
  >>> calls = []
  >>> @kept(float, float)
  ... def half(x):
  ...   calls.append(x)
  ...   return x / 2
  >>> with tempfile.TemporaryDirectory() as folder, keeping(Path(folder)):
  ...   half(3), half(3), calls
  (1.5, 1.5, [3])
  """

  def decorate(function: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
      folder = _FOLDER.get()
      if folder is None:
        return function(*args, **kwargs)
      try:
        text = named((function.__module__, function.__qualname__, args, kwargs, _surroundings()))
      except NamelessError:
        return function(*args, **kwargs)
      path = folder / f'kept-{hashlib.sha256(text.encode()).hexdigest()}-cache'
      value = _read(path)
      if value is not None:
        return decode(value)
      result = function(*args, **kwargs)
      _write(path, encode(result))
      return result

    return call

  return decorate


def named(value: Any) -> str:
  """Returns a text that is the same in another process, and another one for every other value.

  >>> named((1, 'a', jax.ShapeDtypeStruct((2,), 'float32'), np.tanh))
  "(1,'a',[(2,) float32],numpy.tanh)"

  Raises:
    NamelessError: for what only its address tells from others.
  """
  if value is None or type(value) in (bool, int, float, str, bytes):
    return repr(value)
  if type(value) in (tuple, list):
    left, right = '()' if type(value) is tuple else '[]'
    return f'{left}{",".join(map(named, value))}{right}'
  if isinstance(value, Mapping):
    pairs = sorted((named(key), named(one)) for key, one in value.items())
    return f'{{{",".join(map(":".join, pairs))}}}'
  if isinstance(value, jax.ShapeDtypeStruct):
    if value.sharding is not None:
      raise NamelessError
    return f'[{value.shape} {value.dtype}{" weak" * value.weak_type}]'
  if isinstance(value, np.dtype):
    return f'<{value}>'
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return f'{_address(type(value))}{named(fields)}'
  return _address(value)


def _address(value: Any) -> str:
  """Returns where the code of a function or class stands, if that is all there is to it."""
  name = getattr(value, '__qualname__', None) or getattr(value, '__name__', None)
  module = getattr(value, '__module__', None) or 'numpy'
  if not isinstance(name, str) or module.partition('.')[0] not in PACKAGES:
    raise NamelessError
  try:
    found = functools.reduce(getattr, name.split('.'), importlib.import_module(module))
  except (AttributeError, ImportError) as error:
    raise NamelessError from error
  if found is not value:
    raise NamelessError
  return f'{module}.{name}'


def _surroundings() -> tuple[Any, ...]:
  """What else results follow from: code, versions, and settings of JAX."""
  settings = [str(getattr(jax.config, name, None)) for name in SETTINGS]
  versions = [jax.__version__, jaxlib.__version__, flax.__version__, np.__version__]
  return _library(), versions, settings, jax.default_backend()


@functools.cache
def _library() -> str:
  """A digest of this library's code."""
  total, root = hashlib.sha256(), Path(__file__).parent.parent
  for path in sorted(root.rglob('*.py')):
    total.update(f'{path.relative_to(root)}\n'.encode() + path.read_bytes())
  return total.hexdigest()


def _read(path: Path) -> Any:
  """Returns what is kept; None where nothing whole is."""
  try:
    entry = json.loads(path.read_bytes())
    whole = zlib.crc32(json.dumps(entry['value']).encode()) == entry['crc32']
    os.utime(path)  # what was used longest ago is removed first
  except (OSError, ValueError, KeyError, TypeError):
    return None
  return entry['value'] if whole else None


def _write(path: Path, value: Any) -> None:
  """Keeps a value; a full disk or a folder that is gone is told of by the run's own files."""
  entry, temporary = {'crc32': zlib.crc32(json.dumps(value).encode()), 'value': value}, beside(path)
  with contextlib.suppress(OSError):
    temporary.write_text(json.dumps(entry))
    temporary.replace(path)
