"""Pretrained networks: loaded with a gate on every residual sum, and exported in a structure."""

from additive_jax.pretrained.exporting import Receipt, export
from additive_jax.pretrained.loading import Pretrained, load

__all__ = ['Pretrained', 'Receipt', 'export', 'load']
