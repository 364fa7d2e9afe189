"""Losses by name: functions from outputs [B, ..., C] and targets [B, ...] to the loss of each
example, or of each token, label or target of it.

One of your own is such a function. Losses are of float32, and no means: `Task` takes them, over
what counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer, Shaped

from additive_jax.errors import UserError
from additive_jax.run.summary import Summary

Outputs = Float[Array | np.ndarray, '...']
Targets = Shaped[Array | np.ndarray, '...']
Losses = Float[Array, '...']
LossFunction = Callable[[Any, Any], Any]


def is_soft(y: Any) -> bool:
  """Returns whether targets are shares of classes [B, C], as of mixed examples, and no labels.

  >>> is_soft(np.array([1, 0])), is_soft(np.array([[0.25, 0.75]]))
  (False, True)
  """
  return jnp.issubdtype(y.dtype, jnp.floating)


def labels_of(y: Targets) -> Integer[Array | np.ndarray, '...']:
  """Returns labels as integers; of shares of classes, the class with the largest."""
  return y.argmax(-1) if is_soft(y) else y.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
  """Cross-entropy in nats of softmax(outputs): of labels [B], or [B, T] of text; or of shares of
  classes [B, C], which are floats.

  >>> loss = CrossEntropy()(jnp.array([[0.0, 0.0], [2.0, 1.0]]), jnp.array([0, 0]))
  >>> print(np.asarray(loss).round(3))
  [0.693 0.313]

  Attributes:
    label_smoothing: the share ε of each target that is spread evenly over all classes. Source:
      Szegedy et al. 2015 (arXiv:1512.00567), section 7.
  """

  label_smoothing: float = 0.0

  def __post_init__(self):
    if not 0 <= self.label_smoothing < 1:
      raise UserError(f'label_smoothing {self.label_smoothing}: expected a share in [0, 1)')

  def __call__(self, outputs: Any, y: Targets) -> Losses:
    """Returns the loss of each example or token; of a `Summary`, that of labels."""
    if isinstance(outputs, Summary):
      return outputs.losses
    if is_soft(y):
      check_shapes(outputs, y, 'shares of classes')
      return optax.softmax_cross_entropy(outputs, optax.smooth_labels(y, self.label_smoothing))
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, labels_of(y))
    if not self.label_smoothing:
      return loss
    even = jax.nn.logsumexp(outputs, axis=-1) - outputs.mean(-1)
    return (1 - self.label_smoothing) * loss + self.label_smoothing * even


@dataclasses.dataclass(frozen=True)
class SigmoidCrossEntropy:
  """Cross-entropy in nats of sigmoid(outputs) and labels 0 or 1, or shares between: of each label,
  y [B, C]; or of one, outputs [B, 1] and y [B].

  >>> loss = SigmoidCrossEntropy()(jnp.array([[0.0, 2.0]]), jnp.array([[1, 0]]))
  >>> print(np.asarray(loss).round(3))
  [[0.693 2.127]]
  """

  def __call__(self, outputs: Outputs, y: Targets) -> Losses:
    """Returns the loss of each label."""
    outputs = one_output(outputs, y)
    check_shapes(outputs, y, 'labels')
    return optax.sigmoid_binary_cross_entropy(outputs, y.astype(outputs.dtype))


@dataclasses.dataclass(frozen=True)
class Squared:
  """Squared error of each target, y [B, C].

  >>> print(Squared()(jnp.ones((2, 1)), jnp.array([[1.0], [0.5]])).tolist())
  [[0.0], [0.25]]
  """

  def __call__(self, outputs: Outputs, y: Targets) -> Losses:
    """Returns the loss of each target.

    Raises:
      UserError: when shapes differ, such as of targets [B] for predictions [B, 1].
    """
    check_shapes(outputs, y, 'targets')
    return jnp.square(outputs - y)


@dataclasses.dataclass(frozen=True)
class Absolute:
  """Absolute error of each target, y [B, C].

  >>> print(Absolute()(jnp.ones((2, 1)), jnp.array([[1.0], [0.5]])).tolist())
  [[0.0], [0.5]]
  """

  def __call__(self, outputs: Outputs, y: Targets) -> Losses:
    """Returns the loss of each target; errors as of `Squared`."""
    check_shapes(outputs, y, 'targets')
    return jnp.abs(outputs - y)


@dataclasses.dataclass(frozen=True)
class Huber:
  """Half the squared error of each target, y [B, C], where it is below `delta`, and beyond that its
  tangent. Source: Huber 1964 (Annals of Mathematical Statistics 35).

  >>> print(Huber()(jnp.array([[0.5, 3.0]]), jnp.zeros((1, 2))).tolist())
  [[0.125, 2.5]]
  """

  delta: float = 1.0

  def __call__(self, outputs: Outputs, y: Targets) -> Losses:
    """Returns the loss of each target; errors as of `Squared`."""
    check_shapes(outputs, y, 'targets')
    return optax.losses.huber_loss(outputs, y, delta=self.delta)


LOSSES: dict[str, LossFunction] = {
  'cross_entropy': CrossEntropy(),
  'sigmoid': SigmoidCrossEntropy(),
  'squared': Squared(),
  'absolute': Absolute(),
  'huber': Huber(),
}


def one_output(outputs: Outputs, y: Targets) -> Outputs:
  """Returns outputs without their last axis where there is one output for each y, as of yes or no.

  >>> one_output(np.zeros((5, 1)), np.zeros(5)).shape
  (5,)
  """
  return outputs[..., 0] if outputs.shape == (*y.shape, 1) else outputs


def check_shapes(outputs: Outputs, y: Targets, word: str) -> None:
  """Raises `UserError` for targets that are not of the outputs' shape, which NumPy's rules would
  spread over each other."""
  if outputs.shape != y.shape:
    raise UserError(
      f'predictions {outputs.shape} and {word} {y.shape}: expected {word} of the same shape'
    )


def as_float(values: Targets) -> Losses:
  """Returns numbers as floats of at least 32 bits.

  >>> as_float(jnp.array([True], bool)).dtype.name, as_float(jnp.ones(1, jnp.bfloat16)).dtype.name
  ('float32', 'float32')
  """
  values = jnp.asarray(values)
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def check_values(
  word: str, function: Any, result: Any, shape: tuple[int, ...], *, floats: bool = False
) -> None:
  """Raises `UserError` for what is no number of each example, or of each token, label or target.

  >>> check_values('loss', jnp.mean, jnp.ones(()), (32, 3), floats=True)
  Traceback (most recent call last):
  additive_jax.errors.UserError: loss mean gives float32 (): expected floats of shape (32,), one for
  each example, or one for each token

  Args:
    word: what the function is.
    function: the function.
    result: what it gave, an array or its shape.
    shape: of the outputs, [B, ..., C].
    floats: whether integers and truth values are refused too.
  """
  given, kind = getattr(result, 'shape', None), jnp.floating if floats else np.generic
  allowed = [shape[:axes] for axes in range(1, len(shape) + 1)]
  if given in allowed and jnp.issubdtype(result.dtype, kind):
    return
  is_pair = word == 'loss' and isinstance(result, tuple | list)
  raise UserError(
    f'{word} {name_of(function)} gives {_described(result)}: expected '
    f'{"floats" if floats else "numbers"} of shape {shape[:1]}, one for each example, or one for '
    f'each token{"; accuracy is a metric: metrics=" if is_pair else ""}'
  )


def name_of(function: Any) -> str:
  """Returns what a function is called in messages."""
  return getattr(function, '__name__', type(function).__name__)


def _described(result: Any) -> str:
  """Returns the types and shapes of what a function gave."""
  if isinstance(result, tuple | list):
    return f'({", ".join(map(_described, result))})'
  if hasattr(result, 'shape'):
    return f'{result.dtype} {result.shape}'
  return repr(result) if result is None or np.isscalar(result) else f'a {type(result).__name__}'


class Taught(NamedTuple):
  """Targets with what a teacher says of them, so that no step runs a teacher.

  Attributes:
    y: labels, int [B] or [B, T].
    logits: the teacher's, [B, ..., C].
  """

  y: Any
  logits: Any


@dataclasses.dataclass(frozen=True)
class Distilled:
  """A loss with a teacher, of targets that are `Taught`: (1 − w)·loss + w·t²·KL(teacher ‖ outputs)
  in nats, both of them softmax(logits / t). Source: Hinton et al. 2015 (arXiv:1503.02531), section
  2.

  Attributes:
    loss: of classes.
    weight: w, in [0, 1].
    temperature: t, above 0.

  >>> logits = jnp.array([[2.0, 1.0]])
  >>> loss = Distilled(CrossEntropy(), weight=1.0)(logits, Taught(jnp.array([0]), logits))
  >>> bool(abs(loss[0]) < 1e-6)
  True
  """

  loss: LossFunction
  weight: float
  temperature: float = 1.0

  def __post_init__(self):
    if not 0 <= self.weight <= 1:
      raise UserError(f'weight {self.weight} of a teacher: expected one in [0, 1]')
    if not self.temperature > 0:
      raise UserError(f'temperature {self.temperature} of a teacher: expected a positive number')

  def __call__(self, outputs: Outputs, y: Taught) -> Losses:
    """Returns the loss of each example or token."""
    student, teacher = (jax.nn.log_softmax(a / self.temperature) for a in (outputs, y.logits))
    divergence = optax.losses.kl_divergence_with_log_targets(student, teacher)
    loss = as_float(self.loss(outputs, y.y))
    divergence = divergence.reshape(*loss.shape, -1).mean(-1)  # as finely as the loss
    return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence
