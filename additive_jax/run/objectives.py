"""What a network is trained for and judged by: loss and accuracy of each example, per task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
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


@dataclasses.dataclass(frozen=True)
class Distilled:
  """What another network says of each example beside its labels: (1 − w)·loss + w·t²·KL(teacher ‖
  outputs) in nats, both of them softmax(logits / t). Source: Hinton et al. 2015 (arXiv:1503.02531),
  section 2.

  Attributes:
    objective: `classification` or `language`.
    weight: w, in [0, 1].
    temperature: t, above 0.
  """

  objective: Callable
  weight: float
  temperature: float = 1.0

  def __post_init__(self):
    if not 0 <= self.weight <= 1:
      raise UserError(f'weight {self.weight} of a teacher: expected one in [0, 1]')
    if not self.temperature > 0:
      raise UserError(f'temperature {self.temperature} of a teacher: expected a positive number')
    if self.objective is regression:
      raise UserError(f'weight {self.weight} of a teacher in a regression: expected classes')

  @staticmethod
  def targets(y, logits) -> np.ndarray:
    """Labels, int [B] or [B, T], and the teacher's logits [..., C], as float32 [..., 1 + C]."""
    return np.concatenate([np.asarray(y, np.float32)[..., None], logits], axis=-1)

  def __call__(self, outputs: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy of each example; `y` is what `targets` gave."""
    loss, accuracy = self.objective(outputs, y[..., 0].astype(jnp.int32))
    own, teacher = (jax.nn.log_softmax(a / self.temperature) for a in (outputs, y[..., 1:]))
    apart = optax.losses.kl_divergence_with_log_targets(own, jnp.broadcast_to(teacher, own.shape))
    apart = apart.reshape(*loss.shape, -1).mean(-1)  # of text, over the tokens
    return (1 - self.weight) * loss + self.weight * self.temperature**2 * apart, accuracy


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
