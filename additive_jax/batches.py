"""Batches: pytrees of arrays with the example as the leading axis of every leaf.

The x and y of some examples are a batch each. A plain array is one; a network of several inputs
takes a dict, a tuple or a NamedTuple of arrays, and so may targets be.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree


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


def is_array(batch: PyTree) -> bool:
  """Returns whether a batch is one plain array, not a pytree of several.

  >>> is_array(np.zeros(3)), is_array({'source': np.zeros(3)}), is_array((np.zeros(3),))
  (True, False, False)
  """
  return jax.tree.structure(batch) == _ONE


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


_ONE = jax.tree.structure(0)
