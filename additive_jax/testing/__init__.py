"""The contract of an additive network, for those who bring their own."""

from additive_jax.testing.check import ContractError, check_model

__all__ = ['ContractError', 'check_model']
