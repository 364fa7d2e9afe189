"""An optimizer whose matrices change by a product of low rank, for the memory of that."""

from __future__ import annotations

import functools
import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from additive_jax.errors import checked_size
from additive_jax.train.rule import paths_of


class LowRank(NamedTuple):
  """What a low-rank optimizer keeps: what the inner one does, of the small factors."""

  inner: PyTree


@functools.lru_cache(maxsize=16)
def low_rank(optimizer: optax.GradientTransformation, rank: int) -> optax.GradientTransformation:
  """Returns an optimizer that changes each matrix W [m, n] by A·B alone, with a fixed A [m, r] of
  orthonormal columns and a B [r, n] that starts at 0 and learns.

  The gradient of B is Aᵀ times that of W; the inner optimizer sees B alone, so what it keeps of a
  matrix is r/m of what it would. A is drawn from the leaf's path, the same in every training, and
  is not stored. Leaves of more axes are matrices of their first axis and the rest; vectors, and
  matrices with m ≤ r, learn as ever. The same object each time.

  Source: LoRA-FA, Zhang et al. 2023 (arXiv:2308.03303).

  >>> rule, pool = low_rank(optax.sgd(1.0), 1), {'w': jnp.zeros((4, 3)), 'b': jnp.zeros(3)}
  >>> updates, _ = rule.update(jax.tree.map(jnp.ones_like, pool), rule.init(pool), pool)
  >>> int(jnp.linalg.matrix_rank(updates['w'])), updates['b'].tolist()
  (1, [-1.0, -1.0, -1.0])

  Args:
    optimizer: of an Optax transformation.
    rank: r.
  """
  checked_size(rank, 'low_rank')

  def project(tree: PyTree) -> PyTree:
    return _each(lambda leaf, basis: basis.T @ leaf.reshape(leaf.shape[0], -1), tree, rank)

  def init(params: PyTree) -> LowRank:
    return LowRank(optimizer.init(project(jax.tree.map(jnp.zeros_like, params))))

  def update(updates: PyTree, state: LowRank, params: Any = None) -> tuple[PyTree, LowRank]:
    # What decays weights sees the part of W that it may change.
    small = None if params is None else project(params)
    changes, inner = optimizer.update(project(updates), state.inner, small)
    shapes = updates
    back = lambda leaf, basis, like: (basis @ leaf).reshape(like.shape).astype(like.dtype)
    return _each(back, changes, rank, like=shapes), LowRank(inner)

  return optax.GradientTransformation(init, update)


def _each(function, tree, rank, like=None):
  """Applies a function to the leaves that have a basis, and to those of `like` beside them."""
  like = tree if like is None else like
  leaves, form = jax.tree.flatten(tree)
  shaped, paths = jax.tree.leaves(like), paths_of(like)
  others = [(leaf,) for leaf in shaped] if like is not tree else [()] * len(leaves)
  made = [
    function(leaf, basis_of(path, shape.shape[0], rank), *other)
    if has_basis(shape.shape, rank)
    else leaf
    for leaf, shape, path, other in zip(leaves, shaped, paths, others)
  ]
  return jax.tree.unflatten(form, made)


def has_basis(shape: tuple[int, ...], rank: int) -> bool:
  """Returns whether leaves of a shape change by a product of low rank.

  >>> has_basis((8, 3), 4), has_basis((8,), 4), has_basis((4, 8), 4)
  (True, False, False)
  """
  return len(shape) > 1 and shape[0] > rank and math.prod(shape[1:]) > 1


def basis_of(path: str, size: int, rank: int) -> Float[Array, 'm r']:
  """Returns the fixed factor A of a leaf: r orthonormal columns."""
  key = jax.random.key(zlib.crc32(path.encode()))
  return jnp.linalg.qr(jax.random.normal(key, (size, rank)))[0]
