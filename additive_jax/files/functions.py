"""Digests of a user's functions, by which a run knows whether it goes on with the same ones."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import sys
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from additive_jax.files.kept import PACKAGES

LIBRARIES = (*PACKAGES, 'optax', 'chex', 'jaxtyping')
PYTHON = f'{sys.version_info[0]}.{sys.version_info[1]}'


def digest_of(function: Any) -> str:
  """Returns a digest of what a function does: its code, without names of places and comments, and
  the values that it has from outside; after the version of Python, whose code it is.

  >>> times = lambda factor: lambda x: factor * x
  >>> digest_of(times(2)) == digest_of(times(2)), digest_of(times(2)) == digest_of(times(3))
  (True, False)

  Of what is no function, array, number, text or collection of them the class alone is known.

  Args:
    function: also a `functools.partial`, a method, an object with `__call__`, or an Optax
      transformation.
  """
  total = hashlib.blake2b(digest_size=6)
  _add(total, function, frozenset())
  return f'{PYTHON}:{total.hexdigest()}'


def is_same(stored: str, digest: str) -> bool:
  """Returns whether two digests may be of one function: those of two versions of Python are.

  >>> is_same('3.9:ab', '3.12:cd'), is_same('3.9:ab', '3.9:cd')
  (True, False)
  """
  versions = {text.partition(':')[0] for text in (stored, digest)}
  return stored == digest or len(versions) > 1


def is_of_library(value: Any) -> bool:
  """Returns whether the code of a function, or of an object's class, is this library's or one of
  those below it.

  >>> is_of_library(jax.nn.relu), is_of_library(functools.wraps)
  (True, False)
  """
  module = getattr(value, '__module__', None) or type(value).__module__ or ''
  return module.partition('.')[0] in LIBRARIES


def _add(total: Any, value: Any, within: frozenset[int]) -> None:
  """Adds what a value is; `within` are those that hold it, of which none is added again."""
  say = lambda *texts: total.update(repr(texts).encode())
  if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.dtype):
    say(type(value).__name__, str(value))
    return
  if isinstance(value, types.ModuleType | type):
    say(getattr(value, '__module__', ''), value.__name__)
    return
  if id(value) in within:
    return
  within |= {id(value)}
  parts: list[Any] = []
  if isinstance(value, np.ndarray | np.generic | jax.Array):
    array = np.asarray(value)
    say(str(array.dtype), array.shape)
    total.update(np.ascontiguousarray(array).tobytes())
  elif isinstance(value, types.CodeType):
    say(value.co_code, value.co_names, value.co_varnames[: value.co_argcount])
    parts = list(value.co_consts)
  elif isinstance(value, types.FunctionType):
    parts = _of_function(value)
  elif isinstance(value, functools.partial):
    parts = [value.func, value.args, value.keywords]
  elif isinstance(value, types.MethodType):
    parts = [value.__func__, value.__self__]
  elif hasattr(value, '__wrapped__'):  # of jax.jit and the like
    parts = [value.__wrapped__]
  elif isinstance(value, Mapping):
    parts = [part for key in sorted(value, key=repr) for part in (key, value[key])]
  elif isinstance(value, tuple | list):
    parts = list(value)
  elif isinstance(value, set | frozenset):
    parts = sorted(value, key=repr)
  else:
    parts = _of_object(value)
  say(type(value).__name__, getattr(value, '__name__', ''), len(parts))
  for part in parts:
    _add(total, part, within)


def _of_function(function: types.FunctionType) -> list[Any]:
  """Returns the code of a function, or the name of a library's, and the values it reads."""
  if is_of_library(function):
    function = inspect.unwrap(function)  # of what checks types, say
  cells = [_content(cell) for cell in function.__closure__ or ()]
  given = [function.__defaults__, function.__kwdefaults__]
  if is_of_library(function):
    return [function.__module__, function.__qualname__, *given, *cells]
  names, known = function.__code__.co_names, function.__globals__
  return [function.__code__, *given, *cells, *(known[name] for name in names if name in known)]


def _of_object(value: Any) -> list[Any]:
  """Returns the class of an object, its methods where it is the user's, and its fields."""
  kind = type(value)
  methods = [] if is_of_library(kind) else [f for f in vars(kind).values() if callable(f)]
  methods = [f for f in methods if isinstance(f, types.FunctionType) and f.__name__ != '__init__']
  fields: list[Any] = []
  if dataclasses.is_dataclass(value):
    methods = [f for f in methods if not f.__name__.startswith('__') or f.__name__ == '__call__']
    fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
  return [kind, *methods, *fields]


def _content(cell: Any) -> Any:
  try:
    return cell.cell_contents
  except ValueError:  # not filled yet
    return None
