"""The three `+` that can be gates, structures of gates, mixtures and routers: pure functions."""

from additive_jax.gates.sums import (
  choose,
  chunks,
  compose,
  groups,
  joins,
  lane,
  lane_mean,
  residual,
  sub_activation,
)

__all__ = [
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
