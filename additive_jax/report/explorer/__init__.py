"""The explorer of a page: the network drawn as its `+`, every gate a switch, and what is known of
the structure that they make.

data         what the explorer shows, as arrays
piece        the same as a part of a page: text as JSON, numbers as bytes
*.js         plain ES modules, `main` on top; `report.assets` joins them, there is no build step
"""

from additive_jax.report.explorer.data import (
  Explorer,
  Export,
  Gate,
  Judged,
  Prediction,
  Score,
  Site,
)
from additive_jax.report.explorer.piece import MOST, OfRun, explorer, explorers, read_explorer

__all__ = [
  'MOST',
  'Explorer',
  'Export',
  'Gate',
  'Judged',
  'OfRun',
  'Prediction',
  'Score',
  'Site',
  'explorer',
  'explorers',
  'read_explorer',
]
