"""What a model is, in words: two models of the same words have the same pool.

Checkpoints and the directories of runs are known by these words, so they stay as they are.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

_LANES: dict[str, Any] = {'lane_devices': 1, 'lane_axis': None}
_EXPERTS: dict[str, Any] = {'expert_devices': 1, 'expert_axis': None}
# Fields that the library's networks once had. Their descriptions keep them.
# Fields that came later, by their defaults, at which a network is what it was without them.
LATER: dict[str, Any] = {'dropout': 0.0}
FORMER = {'MLP': _LANES, 'Transformer': _LANES | _EXPERTS, 'DNA': _EXPERTS}


def describe(model: Any) -> str:
  """Returns a model on one line, the same in every process: its class and its fields.

  >>> describe(aj.models.MLP(num_blocks=2, width=4, hidden=(8, 6), num_classes=3))
  "MLP(num_blocks=2, width=4, hidden=(8, 6), num_classes=3, gates=('residual',), ...)"
  """
  names = [field.name for field in dataclasses.fields(model)]
  # What a network refuses changes nothing that it computes.
  others = ('parent', 'name', *getattr(model, 'limits', ()))
  fields = {name: getattr(model, name) for name in names if name not in others}
  fields = {name: fields[name] for name in fields if name not in _later(model)} | _former(model)
  text = ', '.join(f'{name}={value!r}' for name, value in fields.items())
  # Functions among the fields show where in memory they are, and modules take several lines.
  text = re.sub(r'\s+', ' ', re.sub(r' at 0x[0-9a-f]+', '', text))
  return f'{type(model).__name__}({text})'


def inner(model: Any) -> str:
  """Returns the text of a model that is a field of an object which is described.

  >>> print(inner(aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)))
  MLP(
      # attributes
      num_blocks = 2
      ...
      lane_axis = None
  )
  """
  lines = [f'    {name} = {value!r}\n' for name, value in _former(model).items()]
  text = repr(model)
  for name, value in _later(model).items():
    text = text.replace(f'    {name} = {value!r}\n', '')
  return f'{text.removesuffix(")")}{"".join(lines)})'


def _later(model: Any) -> dict[str, Any]:
  """Returns the fields that came later to a network of the library and are at their defaults."""
  is_ours = type(model).__module__.startswith('additive_jax.')
  return {
    name: value for name, value in LATER.items() if is_ours and getattr(model, name, None) == value
  }


def _former(model: Any) -> dict[str, Any]:
  """Returns the fields that a network of the library once had."""
  is_ours = type(model).__module__.startswith('additive_jax.')
  return FORMER.get(type(model).__name__, {}) if is_ours else {}
