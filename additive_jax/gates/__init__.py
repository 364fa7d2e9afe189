"""The three `+` that can be gates, structures of gates, mixtures and routers: pure functions."""

from additive_jax.gates.layers import (
  Layer,
  LayerPair,
  chunks,
  compose,
  groups,
  joins,
  sub_activation,
)
from additive_jax.gates.sums import choose, lane, lane_mean, residual

__all__ = [
  'Layer',
  'LayerPair',
  'choose',
  'chunks',
  'compose',
  'groups',
  'joins',
  'lane',
  'lane_mean',
  'residual',
  'sub_activation',
]
