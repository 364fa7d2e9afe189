"""Additive networks, in Flax Linen."""

from additive_jax.models.additive import Additive, measure
from additive_jax.models.mlp import MLP
from additive_jax.models.transformer import Transformer

__all__ = ['MLP', 'Additive', 'Transformer', 'measure']
