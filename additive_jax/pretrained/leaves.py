"""How the tensors of a file become the leaves of a pool, as data: names and a pattern for each.

A pattern says how axes are split, joined and ordered, in the notation of `einops`. A matrix of
PyTorch is [outputs, inputs]; that of keys, of K heads of U units, becomes [inputs, K, U] by

  '(k u) d -> d k u'

and read backwards it is how the leaf is written again. Several tensors of one leaf are stacked: the
pattern's first axis `i` counts them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import einops
import numpy as np
from jaxtyping import Shaped

Sizes = Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Leaf:
  """Where one leaf of a pool comes from.

  >>> leaf = Leaf('q/kernel', ('q_proj.weight',), '(k u) d -> d k u')
  >>> leaf.tensor_shape((8, 2, 4), {})
  (8, 8)
  >>> leaf.read([np.arange(64).reshape(8, 8)], (8, 2, 4), {}).shape
  (8, 2, 4)

  Attributes:
    path: in the pool, below its layer if it belongs to one: `attention/q/kernel`.
    names: of the tensors, likewise.
    pattern: from tensors to the leaf; '' for a tensor that is the leaf.
  """

  path: str
  names: tuple[str, ...]
  pattern: str = ''

  @property
  def _sides(self) -> tuple[str, str]:
    before, _, after = self.pattern.partition('->')
    return before.strip(), after.strip()

  def _axes(self, shape: tuple[int, ...], sizes: Sizes) -> dict[str, int]:
    """Returns the size of each axis that the pattern names, from the leaf's shape."""
    found, after = dict(sizes), _groups(self._sides[1])
    for group, size in zip(after, shape, strict=True):
      unknown = [name for name in group if name not in found]
      if len(unknown) == 1:
        found[unknown[0]] = size // math.prod(found[name] for name in group if name in found)
    return {name: found[name] for group in after for name in group}

  def tensor_shape(self, shape: tuple[int, ...], sizes: Sizes) -> tuple[int, ...]:
    """Returns the shape of each tensor.

    Args:
      shape: of the leaf.
      sizes: of axes that are joined in the leaf, by name.
    """
    if not self.pattern:
      return shape
    axes = self._axes(shape, sizes)
    whole = tuple(math.prod(axes[name] for name in group) for group in _groups(self._sides[0]))
    return whole[1:] if len(self.names) > 1 else whole

  def read(
    self, tensors: list[Shaped[np.ndarray, '...']], shape: tuple[int, ...], sizes: Sizes
  ) -> Shaped[np.ndarray, '...']:
    """Returns the leaf, where that is possible as a view of the tensor."""
    if not self.pattern:
      return tensors[0]
    given = tensors if len(self.names) > 1 else tensors[0]
    return einops.rearrange(given, self.pattern, **self._axes(shape, sizes))

  def write(
    self, leaf: Shaped[np.ndarray, '...'], sizes: Sizes
  ) -> dict[str, Shaped[np.ndarray, '...']]:
    """Returns the tensors of a leaf by name."""
    if not self.pattern:
      return {self.names[0]: leaf}
    before, after = self._sides
    axes = self._axes(leaf.shape, sizes)
    whole = einops.rearrange(leaf, f'{after} -> {before}', **axes)
    return dict(zip(self.names, whole)) if len(self.names) > 1 else {self.names[0]: whole}


def _groups(side: str) -> list[list[str]]:
  """Returns the names of the axes of a side of a pattern, those that are joined together.

  >>> _groups('i (k u) d')
  [['i'], ['k', 'u'], ['d']]
  """
  return [token.strip('()').split() for token in re.findall(r'\([^)]*\)|\S+', side)]


def leaf(path: str, *names: str, pattern: str = '') -> Leaf:
  """Returns a `Leaf` of some tensors."""
  return Leaf(path, names, pattern)
