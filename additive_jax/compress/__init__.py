"""Compression: what a network can do without, by sparse variational dropout and by magnitude."""

from additive_jax.compress.cutting import Cut, cut, receipt
from additive_jax.compress.levels import LEVELS, Gates, Pruned, Units, Weights, make_level
from additive_jax.compress.magnitude import largest, magnitudes
from additive_jax.compress.masks import keep_zeros
from additive_jax.compress.variational import (
  THRESHOLD,
  Variational,
  VariationalLoss,
  divergence,
  kept,
)

__all__ = [
  'LEVELS',
  'THRESHOLD',
  'Cut',
  'Gates',
  'Pruned',
  'Units',
  'Variational',
  'VariationalLoss',
  'Weights',
  'cut',
  'divergence',
  'keep_zeros',
  'kept',
  'largest',
  'magnitudes',
  'make_level',
  'receipt',
]
