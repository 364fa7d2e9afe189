"""Exp 4: mixtures of structures."""

from additive_jax.experiments.experts.study import STUDY, make_contenders, run

__all__ = ['STUDY', 'make_contenders', 'run']
