"""What a network is trained for and judged by: loss and accuracy of each example, per task."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from additive_jax.errors import UserError


def classification(outputs: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy in nats, and 1 where the label's logit is larger than every other.

  Args:
    outputs: logits [..., B, C]; the leading axes are structures.
    y: labels, int [B].

  Returns:
    loss and accuracy, both [..., B].
  """
  y = jnp.broadcast_to(y.astype(jnp.int32), outputs.shape[:-1])
  loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
  # An argmax takes ten times as long on CPU, where it is not vectorised.
  own = jnp.take_along_axis(outputs, y[..., None], axis=-1)[..., 0]
  others = jnp.where(jnp.arange(outputs.shape[-1]) == y[..., None], -jnp.inf, outputs).max(-1)
  return loss, (own > others).astype(jnp.float32)


def language(outputs: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy in nats per token and next-token accuracy, averaged over each example's tokens.

  Args:
    outputs: logits [..., B, T, C].
    y: next tokens, int [B, T].
  """
  loss, accuracy = classification(outputs, y)
  return loss.mean(-1), accuracy.mean(-1)


def regression(outputs: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Squared error of standardised targets, and one minus it: its mean is the coefficient of
  determination R².

  Args:
    outputs: predictions [..., B, C].
    y: targets with unit variance over the training set, float [B, C].

  Raises:
    UserError: when their shapes differ, such as targets [B] for predictions [B, 1].
  """
  if outputs.shape[-y.ndim :] != y.shape:
    raise UserError(
      f'predictions {outputs.shape} and targets {y.shape}: expected targets [batch, outputs]'
    )
  loss = jnp.square(outputs - y).mean(-1)
  return loss, 1 - loss


OBJECTIVES: dict[str, Callable] = {
  'classification': classification,
  'language': language,
  'regression': regression,
}


def objective_of(task: str | Callable) -> Callable:
  """The objective of a task by name; a function of the same form is returned as it is."""
  if callable(task):
    return task
  if task not in OBJECTIVES:
    raise UserError(f'task {task!r}: expected one of {", ".join(OBJECTIVES)}')
  return OBJECTIVES[task]
