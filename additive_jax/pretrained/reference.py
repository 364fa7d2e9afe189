"""What the reference implementation, transformers with torch, makes of an exported directory."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from additive_jax.errors import UserError
from additive_jax.pretrained.family import Family
from additive_jax.pretrained.reading import read_json

PACKAGES = ('torch', 'transformers')


class Asked(NamedTuple):
  """What the reference implementation gave.

  Attributes:
    logits: [B, ..., C].
    name: which it is, with its version.
  """

  logits: Float[np.ndarray, 'B ...']
  name: str


def is_installed() -> bool:
  """Returns whether the reference implementation can be asked."""
  return all(importlib.util.find_spec(name) for name in PACKAGES)


def logits_of_reference(
  directory: Path, x: Shaped[np.ndarray, 'B ...'], family: Family, ask: bool | None = None
) -> Asked | None:
  """Returns what the reference implementation gives for a batch, in float32; None where it is not
  installed, or not asked.

  Raises:
    UserError: where it is to be asked and is not installed.
  """
  if ask is False or (ask is None and not is_installed()):
    return None
  if not is_installed():
    raise UserError(f'reference without {" and ".join(PACKAGES)}: expected both installed')
  torch, transformers = map(importlib.import_module, PACKAGES)
  kind = getattr(transformers, family.architecture(read_json(directory / 'config.json')))
  network: Any = kind.from_pretrained(directory, dtype=torch.float32).eval()
  with torch.no_grad():
    if np.issubdtype(x.dtype, np.integer):
      outputs = network(input_ids=torch.from_numpy(x.astype(np.int64)))
    else:
      outputs = network(pixel_values=torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
  logits = outputs.logits if hasattr(outputs, 'logits') else outputs.last_hidden_state
  return Asked(logits.numpy(), f'transformers {transformers.__version__}')
