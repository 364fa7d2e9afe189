"""Sparse variational dropout: which weights, units or gates a network can do without is learnt as
the noise that they bear.

Each has a variance of its own beside its mean. Training minimises the loss under that noise plus
the divergence from a log-uniform prior, which draws variances up; what the data does not hold back
ends with a variance far above its squared mean, and can go. Source: Molchanov et al. 2017
(arXiv:1701.05369): log σ² is the free parameter (additive noise), section 4.2; what has log α above
3 is removed, section 4.3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from additive_jax.batches import num_examples
from additive_jax.compress.levels import Level
from additive_jax.errors import UserError
from additive_jax.train.recipe import Loss, Recipe, Slot
from additive_jax.train.samplers import Sampler, check_all_on

MEAN, LOG_VARIANCE = 'mean', 'log_variance'


def divergence(log_alpha: Float[Array, '*shape']) -> Float[Array, '*shape']:
  """Returns KL(N(θ, α·θ²) ‖ log-uniform) in nats, up to a constant by which it is 0 for an infinite
  α. The published approximation, within 0.01 nats of the integral. Source: Molchanov et al. 2017,
  equation 14.

  >>> [f'{nats:.2f}' for nats in divergence(jnp.array([-4.0, 0.0, 4.0]))]
  ['2.63', '0.43', '0.01']
  """
  k1, k2, k3 = 0.63576, 1.87320, 1.48695
  return k1 - k1 * jax.nn.sigmoid(k2 + k3 * log_alpha) + jax.nn.softplus(-log_alpha) / 2


@dataclasses.dataclass(frozen=True)
class Variational:
  """A model with noise, as the trainer takes one: its pool is `{'mean': pool of the model,
  'log_variance': {name: log σ²}}`.

  >>> from additive_jax.compress import make_level
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> noisy = Variational(make_level('gate', model, np.ones((1, 5), np.float32)), log_variance=-8.0)
  >>> noisy.pool({})['log_variance']['gates'].tolist()
  [-8.0, -8.0]

  Attributes:
    noise: where it enters.
    log_variance: log σ² at the start.
  """

  noise: Level
  log_variance: float

  def init(self, key: PRNGKeyArray, *args: Any, method: Any = None) -> Any:
    """Returns `{'params': pool}`, as a Flax module does, or the result of `method` of the model."""
    if method is not None:
      return self.noise.model.init(key, *args, method=method)
    mean = self.noise.model.init(key, *args)['params']
    return {'params': self.pool(mean)}

  def pool(self, mean: PyTree) -> dict[str, PyTree]:
    """Returns the pool around the means of a trained network."""
    full = {name: jnp.full(shape, self.log_variance) for name, shape in self.noise.shapes}
    return {MEAN: mean, LOG_VARIANCE: full}

  def log_alpha(self, pool: PyTree) -> dict[str, Float[Array, '...']]:
    """Returns log α = log σ² − log θ² of each weight, unit or gate, by name."""
    return self.noise.log_alpha(pool[MEAN], pool[LOG_VARIANCE])


@dataclasses.dataclass(frozen=True)
class VariationalLoss(Loss):
  """The mean loss of a batch under noise, plus the divergence over the number of terms that the
  whole training set's loss has: the negative evidence lower bound of one term.

  >>> loss = VariationalLoss(num_terms=60_000, ramp_steps=100)
  >>> [float(loss.weight(step)) for step in (0, 50, 100, 200)]
  [0.0, 0.5, 1.0, 1.0]

  Attributes:
    num_terms: examples of the training set, or of text its tokens; where they have weights, the
      sum of these.
    kl_weight: of the divergence, once the ramp is over; 1 is the bound itself.
    ramp_steps: over the first of these steps the weight rises from 0.
  """

  num_terms: int
  kl_weight: float = 1.0
  ramp_steps: float = 0.0

  def __post_init__(self):
    if self.kl_weight < 0 or self.ramp_steps < 0:
      raise UserError(
        f'kl_weight {self.kl_weight} and ramp_steps {self.ramp_steps}: expected 0 or more'
      )

  def weight(self, step: Any) -> Float[Array, '']:
    """Returns the weight of the divergence at a step."""
    share = jnp.clip(step / jnp.maximum(self.ramp_steps, 1e-6), 0, 1)
    return self.kl_weight * jnp.where(self.ramp_steps > 0, share, 1.0)

  def __call__(
    self, recipe: Recipe, params: PyTree, slot: Slot
  ) -> tuple[Float[Array, ''], dict[str, Any]]:
    """Returns the bound, and no facts; see `recipe.Loss`."""
    noise, count = recipe.model.noise, num_examples(slot.x)
    key: Any = slot.key  # every slot of a training has one
    rows = slot.share * count + jnp.arange(count)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
    outputs = noise.run(params[MEAN], params[LOG_VARIANCE], slot.x, keys)
    loss = recipe.mean_loss(outputs, slot)
    total = total_divergence(recipe.model, params)
    return loss + self.weight(slot.step) * total / self.num_terms, {}

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` for structures other than all-on."""
    check_all_on(sampler, 'a loss of its own')


def total_divergence(model: Variational, pool: PyTree) -> Float[Array, '']:
  """Returns the divergence of all weights, units or gates; a unit and a gate count once for each
  weight that goes with them."""
  log_alpha = model.log_alpha(pool)
  parts = [
    (divergence(log_alpha[name]) * jnp.asarray(count, jnp.float32)).sum()
    for name, count in model.noise.counts
  ]
  return jnp.asarray(sum(parts))
