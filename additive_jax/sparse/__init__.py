"""Compression: what a network can do without, by sparse variational dropout and by magnitude."""

from additive_jax.sparse.levels import LEVELS, Gates, Pruned, Units, Weights, make_level
from additive_jax.sparse.magnitude import largest, magnitudes
from additive_jax.sparse.masks import keep_zeros
from additive_jax.sparse.variational import (
  THRESHOLD,
  Variational,
  VariationalLoss,
  divergence,
  kept,
)

__all__ = [
  'LEVELS',
  'THRESHOLD',
  'Gates',
  'Pruned',
  'Units',
  'Variational',
  'VariationalLoss',
  'Weights',
  'divergence',
  'keep_zeros',
  'kept',
  'largest',
  'magnitudes',
  'make_level',
]
