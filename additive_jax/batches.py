"""Batches: pytrees of arrays with the example as the leading axis of every leaf.

The x and y of some examples are a batch each. A plain array is one; a network of several inputs
takes a dict, a tuple or a NamedTuple of arrays, and so may targets be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import PyTree

from additive_jax.errors import UserError

Shapes: TypeAlias = PyTree[jax.ShapeDtypeStruct]


def num_examples(batch: PyTree) -> int:
  """Returns the number of examples of a batch, of arrays or of their shapes.

  >>> num_examples({'source': np.zeros((5, 8)), 'target': np.zeros((5, 6))})
  5

  Args:
    batch: a pytree of arrays, at least one, with the example as leading axis.
  """
  return jax.tree.leaves(batch)[0].shape[0]


def example_shapes(batch: PyTree) -> PyTree:
  """Returns the shape of one example: of an array a tuple of sizes, else a pytree of such tuples.

  >>> example_shapes(np.zeros((5, 8, 8, 1)))
  (8, 8, 1)
  >>> example_shapes({'source': np.zeros((5, 8)), 'target': np.zeros((5, 6))})
  {'source': (8,), 'target': (6,)}
  """
  return jax.tree.map(lambda leaf: tuple(np.shape(leaf)[1:]), batch)


def rows(batch: PyTree, indices: Any) -> PyTree:
  """Returns some of the examples of a batch.

  >>> rows({'source': np.arange(5), 'target': np.ones((5, 6))}, slice(2))['source']
  array([0, 1])

  Args:
    indices: whatever an array takes in brackets for its first axis.
  """
  return jax.tree.map(lambda leaf: leaf[indices], batch)


def shapes_of(batch: PyTree, num: int | None = None) -> PyTree:
  """Returns the shape and dtype of each array, as JAX takes it; `num` is another number of
  examples.

  >>> shapes_of(np.zeros((5, 8)), num=1)
  ShapeDtypeStruct(shape=(1, 8), dtype=float32)
  """

  def shape(leaf: Any) -> jax.ShapeDtypeStruct:
    first = leaf.shape[:1] if num is None else (num,)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return jax.ShapeDtypeStruct((*first, *leaf.shape[1:]), dtype)

  return jax.tree.map(shape, batch)


def is_array(batch: PyTree) -> bool:
  """Returns whether a batch is one plain array, not a pytree of several.

  >>> is_array(np.zeros(3)), is_array({'source': np.zeros(3)}), is_array((np.zeros(3),))
  (True, False, False)
  """
  return jax.tree.structure(batch) == _ONE


def check_one_array(batch: PyTree) -> None:
  """Raises `UserError` for several inputs where a network takes one array.

  >>> check_one_array({'left': np.zeros((5, 8)), 'right': np.zeros((5, 6))})
  Traceback (most recent call last):
  additive_jax.errors.UserError: inputs ['left'] (5, 8) and ['right'] (5, 6): expected one array
  [B, ...], which this network takes
  """
  if not is_array(batch):
    told = ' and '.join(f'{name} {np.shape(leaf)}' for name, leaf in named_leaves(batch))
    raise UserError(f'inputs {told}: expected one array [B, ...], which this network takes')


def named_leaves(batch: PyTree, name: str = '') -> list[tuple[str, Any]]:
  """Returns the arrays of a batch with what they are called in messages.

  >>> [name for name, _ in named_leaves({'source': np.zeros(3), 'mask': np.zeros(3)}, 'x')]
  ["x['mask']", "x['source']"]
  """
  leaves = jax.tree_util.tree_leaves_with_path(batch)
  return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def described(batch: PyTree, name: str = '') -> str:
  """Returns the shape of one example and the type of each array, in words.

  >>> described(np.zeros((5, 8, 8, 1), np.float32), 'x')
  'x [8, 8, 1] float32'
  """
  parts = [
    f'{leaf_name} {list(np.shape(leaf)[1:])} {leaf.dtype}'.strip()
    for leaf_name, leaf in named_leaves(batch, name)
  ]
  return ', '.join(parts)


class _Frozen:
  """A pytree with a hash: that of its form and its leaves."""

  def __init__(self, tree: PyTree):
    leaves, form = jax.tree.flatten(tree)
    self.tree, self._key = tree, (form, tuple(leaves))

  def __hash__(self) -> int:
    return hash(self._key)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Frozen) and self._key == other._key


def cached(maxsize: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Returns a decorator like `functools.lru_cache(maxsize)`, for functions whose arguments may be
  the shapes of a batch: a dict of them has no hash, of which it makes one.

  >>> @cached(maxsize=8)
  ... def names(shapes):
  ...   return sorted(shapes)
  >>> names(shapes_of({'b': np.zeros(3), 'a': np.zeros(3)}))
  ['a', 'b']
  """

  def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.lru_cache(maxsize=maxsize)
    def remembered(*args: Any) -> Any:
      return function(*(arg.tree if isinstance(arg, _Frozen) else arg for arg in args))

    @functools.wraps(function)
    def call(*args: Any) -> Any:
      return remembered(*map(_frozen, args))

    call.cache_clear = remembered.cache_clear  # type: ignore[attr-defined]
    return call

  return decorate


def _frozen(argument: Any) -> Any:
  """Returns an argument as it is, or a pytree without a hash in a form that has one."""
  if not isinstance(argument, dict | list | tuple):
    return argument
  try:
    hash(argument)
    return argument
  except TypeError:
    return _Frozen(argument)


_ONE = jax.tree.structure(0)
