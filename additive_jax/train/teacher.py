"""All-on as the teacher of the other structures of its pool."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jaxtyping import Array, Float, PyTree

from additive_jax import run
from additive_jax.models.additive import Inputs, gate_names
from additive_jax.models.surrounding import without_dropout


def divergence_from_all_on(
  model: Any, params: PyTree, outputs: Float[Array, '*batch C'], x: Inputs
) -> Float[Array, '*batch']:
  """Returns KL(all-on ‖ outputs) of each example, or each token of it; all-on is constant.

  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((2, 6))
  >>> variables = jax.jit(model.init)(jax.random.key(0), x)
  >>> all_on = run.static(model, variables, x, '1')
  >>> divergence_from_all_on(model, variables['params'], all_on, x).round(5).tolist()
  [0.0, 0.0]
  """
  all_on = (True,) * len(gate_names(model))
  with without_dropout():
    teacher = jax.lax.stop_gradient(run.static(model, {'params': params}, x, all_on))
  return optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(outputs), jax.nn.log_softmax(teacher)
  )
