"""What a model is, in words: two models of the same words have the same pool."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

_LANES, _EXPERTS = ('lane_devices=1', 'lane_axis=None'), ('expert_devices=1', 'expert_axis=None')
# Fields that the library's networks once had. Their descriptions keep them, and so do the
# directories of their runs.
FORMER = {'MLP': _LANES, 'Transformer': _LANES + _EXPERTS, 'DNA': _EXPERTS}


def describe(value: Any) -> str:
  """Returns a model on one line, the same in every process: its class and its fields. Functions and
  objects among the fields, whose text would show where in memory they are, are named by their kind.

  >>> describe(aj.models.MLP(num_blocks=2, width=4, hidden=(8, 6), num_classes=3))
  "MLP(num_blocks=2, width=4, hidden=(8, 6), num_classes=3, gates=('residual',), ...)"
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    names = (field.name for field in dataclasses.fields(value) if field.init)
    names = (name for name in names if name not in ('parent', 'name'))  # of every Flax module
    fields = [f'{name}={describe(getattr(value, name))}' for name in names]
    if type(value).__module__.startswith('additive_jax.'):
      fields += FORMER.get(type(value).__name__, ())
    return f'{type(value).__name__}({", ".join(fields)})'
  if isinstance(value, functools.partial):
    return f'partial({describe(value.func)}, {describe(value.args)}, {describe(value.keywords)})'
  if isinstance(value, tuple | list | set | frozenset):
    items = ', '.join(map(describe, value))
    return f'({items},)' if isinstance(value, tuple) and len(value) == 1 else f'({items})'
  if isinstance(value, Mapping):
    return '{' + ', '.join(f'{key!r}: {describe(item)}' for key, item in value.items()) + '}'
  if type(value).__repr__ is object.__repr__ or (callable(value) and not isinstance(value, type)):
    return f'<{getattr(value, "__qualname__", type(value).__qualname__)}>'
  return ' '.join(repr(value).split())
