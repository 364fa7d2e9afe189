"""What a model is, in words: two models of the same words have the same pool."""

from __future__ import annotations

import dataclasses
import re


def describe(model) -> str:
  """The fields of a model on one line, the same in every process."""
  fields = [f.name for f in dataclasses.fields(model) if f.name not in ('parent', 'name')]
  said = ', '.join(f'{name}={getattr(model, name)!r}' for name in fields)
  # Functions among the fields show where in memory they lie, and modules take several lines.
  said = re.sub(r'\s+', ' ', re.sub(r' at 0x[0-9a-f]+', '', said))
  return f'{type(model).__name__}({said})'
