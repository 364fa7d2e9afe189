"""Distributed neural architectures."""

from additive_jax.experiments.dna.study import STUDY, make_baselines, make_dnas, run

__all__ = ['STUDY', 'make_baselines', 'make_dnas', 'run']
