"""Ways to run a network: one structure (static, conditional, masked), or many at once."""

from additive_jax.run.cascade import Cascade
from additive_jax.run.curve import Curve, Window
from additive_jax.run.evaluate import Evaluation, evaluate_structures
from additive_jax.run.prefix import shared_prefix
from additive_jax.run.recalibration import recalibrate
from additive_jax.run.ways import (
  chosen,
  conditional,
  gathered,
  masked,
  routed,
  sampled,
  static,
)

__all__ = [
  'Cascade',
  'Curve',
  'Evaluation',
  'Window',
  'chosen',
  'conditional',
  'evaluate_structures',
  'gathered',
  'masked',
  'recalibrate',
  'routed',
  'sampled',
  'shared_prefix',
  'static',
]
