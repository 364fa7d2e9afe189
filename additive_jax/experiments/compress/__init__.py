"""Compression of a trained network."""

from additive_jax.experiments.compress.study import STUDY, run

__all__ = ['STUDY', 'run']
