"""What a recipe draws must suit its sampler, its batches and its devices."""

from __future__ import annotations

import numpy as np

from additive_jax.errors import UserError
from additive_jax.models.additive import gate_names
from additive_jax.parallel import processes
from additive_jax.train.gradients import Recipe
from additive_jax.train.samplers import Listed


def check_draws(recipe: Recipe, sampler, batch_size: int, data_devices: int) -> None:
  """Raises `UserError` where sampler, batch and devices do not suit what the recipe draws."""
  plan, num_gates = recipe.subsets, len(gate_names(recipe.model))
  if recipe.balance is not None:
    _check_all_on(sampler, 'a model with routers')
  if recipe.loss is not None:
    _check_all_on(sampler, 'a loss of its own')
  if plan is None:
    if recipe.rescale != 'none' and not hasattr(sampler, 'rates'):
      raise UserError(
        f'rescale {recipe.rescale!r} of the structures of {type(sampler).__name__}: expected a '
        'sampler of gates with keep rates, uniform or bernoulli'
      )
    return
  _check_all_on(sampler, 'subsets per sample')
  plan.rows(batch_size)
  if len(plan.keep_rates[0]) != num_gates:
    raise UserError(f'{len(plan.keep_rates[0])} keep rates: expected {num_gates}, one per gate')
  if plan.parts % data_devices:
    raise UserError(
      f'{data_devices} devices split a batch of {plan.parts} parts with a subset each: expected '
      'devices that divide the parts'
    )


def _check_all_on(sampler, what):
  if not isinstance(sampler, Listed) or not np.all(processes.to_host(sampler.bits)):
    raise UserError(
      f'structures of {type(sampler).__name__} for {what}: expected the sampler fixed to all-on'
    )
