"""Compression: what a network can do without, by sparse variational dropout and by magnitude."""

from additive_jax.compress.cutting import Cut, cut, receipt
from additive_jax.compress.gradual import Gradual, input_power
from additive_jax.compress.keep import THRESHOLD, below_threshold, keep_zeros, largest
from additive_jax.compress.levels import Gates, Level, Pruned, Units, Weights
from additive_jax.compress.parts import LEVELS, make_level
from additive_jax.compress.variational import Variational, VariationalLoss, divergence

__all__ = [
  'LEVELS',
  'THRESHOLD',
  'Cut',
  'Gates',
  'Gradual',
  'Level',
  'Pruned',
  'Units',
  'Variational',
  'VariationalLoss',
  'Weights',
  'below_threshold',
  'cut',
  'divergence',
  'input_power',
  'keep_zeros',
  'largest',
  'make_level',
  'receipt',
]
