"""Exp 5: a large model started from small ones."""

from additive_jax.experiments.booster.study import STUDY, run

__all__ = ['STUDY', 'run']
