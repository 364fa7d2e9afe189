"""Additive networks, in Flax Linen."""

from additive_jax.models.additive import Additive, measure
from additive_jax.models.mlp import MLP

__all__ = ['MLP', 'Additive', 'measure']
