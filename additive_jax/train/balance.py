"""Keeping routers balanced: what is added to the loss, and biases that move outside the
gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from additive_jax.errors import UserError
from additive_jax.gates import routers
from additive_jax.models.routing import KEEP_BIAS, SELECTION_BIAS

NEAR = 0.1  # share of tokens


@dataclasses.dataclass(frozen=True)
class Balance:
  """How a model's routers are kept balanced; all means are over its sites with a router.

  Attributes:
    auxiliary: weight of the load-balance loss, see `routers.load_balance`.
    z: weight of the z-loss, the mean squared log-normaliser of the logits. Source: Zoph et al. 2022
      (arXiv:2202.08906), equation 5.
    bias_rate: by how much the selection biases move a step, see `routers.rebalanced`; 0 leaves them
      where they are.
    keep_rate: by how much the biases of tokens' own gates move a step, towards the share that
      `routing.Routing.keep` asks for; less within 0.1 of it, in proportion.

  >>> Balance(auxiliary=0.01, bias_rate=0.001)
  Balance(auxiliary=0.01, z=0.0, bias_rate=0.001, keep_rate=0.0)
  """

  auxiliary: float = 0.0
  z: float = 0.0
  bias_rate: float = 0.0
  keep_rate: float = 0.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not 0 <= value < float('inf'):
        raise UserError(f'{field.name} {value} of the balance: expected a weight, 0 or more')


def penalty(balance: Balance, facts: Mapping[str, routers.Facts]) -> Float[Array, '']:
  """Returns what is added to the loss, from the facts of each site by name; see `run.routed`.

  An even load has a load-balance loss of 1:

  >>> even = routers.facts_of_list(jnp.zeros((4, 2)), jnp.array([[0], [1], [0], [1]]), count=2)
  >>> print(penalty(Balance(auxiliary=0.5), {'block_00__mlp': even}))
  0.5

  Raises:
    UserError: for a model without routers.
  """
  sites = list(facts.values())
  if not sites:
    raise UserError('a balance of routers for a model without any: expected one with routers')
  loads: Any = sum(routers.load_balance(site) for site in sites)
  return (balance.auxiliary * loads + balance.z * sum(site.z for site in sites)) / len(sites)


def move_biases(
  balance: Balance,
  params: Mapping[str, PyTree],
  before: Mapping[str, PyTree],
  facts: Mapping[str, routers.Facts],
) -> dict[str, PyTree]:
  """Returns the pool with the selection bias of every router moved towards an even load, whatever
  the optimizer did to it.

  Args:
    params, before: the pool after and before the optimizer's step.
    facts: by site, averaged over the batch and the devices.

  The first of two structures took all tokens, so the second one becomes easier to choose:

  >>> facts = routers.facts_of_list(jnp.zeros((4, 2)), jnp.zeros((4, 1), int), count=2)
  >>> pool = {'block_00__mlp': {SELECTION_BIAS: jnp.zeros(2)}}
  >>> pool = move_biases(Balance(bias_rate=0.25), pool, pool, {'block_00__mlp': facts})
  >>> pool['block_00__mlp'][SELECTION_BIAS].tolist()
  [-0.25, 0.25]
  """
  moved = dict(params)
  for name, site in facts.items():
    old, new = before[name], dict(params[name])
    if SELECTION_BIAS in new:
      new[SELECTION_BIAS] = routers.rebalanced(old[SELECTION_BIAS], site, balance.bias_rate)
    if KEEP_BIAS in new:
      # Smaller steps near the target: scores of tokens may lie close to each other.
      distance = jnp.clip((site.keep - site.kept) / NEAR, -1, 1)
      new[KEEP_BIAS] = old[KEEP_BIAS] + balance.keep_rate * distance
    moved[name] = new
  return moved


def summary(facts: routers.Facts) -> dict[str, float]:
  """Returns what users look at, of one site's facts averaged over some steps, as NumPy arrays.

  Returns:
    `entropy`, in nats; `kept`, the share of tokens that were computed; where choices are counted
    also `utilisation_max` and `utilisation_min`, the load over the ideal even one, of the most and
    the least used structure (of gates: of all 2^n); `max_violation`, how far the most used is above
    the ideal (MaxVio); `dead`, the structures that no token chose.

  >>> figures = summary(routers.facts_of_list(None, jnp.zeros((4, 1), int), count=2))
  >>> figures['utilisation_max'], figures['max_violation'], figures['dead']
  (2.0, 1.0, 1)
  """
  load = facts.structures if isinstance(facts, routers.GateFacts) else facts.load
  figures = {'entropy': float(facts.entropy), 'kept': float(facts.kept)}
  if load.size:
    share = np.asarray(load) * load.size
    figures |= {
      'utilisation_max': float(share.max()),
      'utilisation_min': float(share.min()),
      'max_violation': float(share.max() - 1),
      'dead': int((share == 0).sum()),
    }
  return figures
