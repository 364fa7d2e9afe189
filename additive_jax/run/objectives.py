"""Objectives that a network is trained for and judged by: loss and accuracy of each example.

An objective takes outputs [B, ...] and targets [B, ...], and returns a pair (loss, accuracy), each
of shape [B]. One of your own sees just that, wherever it is used:

>>> def absolute(outputs, y):  # outputs [B, 1], y [B]
...   loss = jnp.abs(outputs[:, 0] - y)
...   return loss, loss < 0.5
>>> model, x = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=1), np.ones((5, 6))
>>> variables = jax.jit(model.init)(jax.random.key(0), x)
>>> aj.evaluate_structures(model, variables, (x, np.zeros(5)), task=absolute).loss.shape
(4,)

Where it is trained for, its loss may also be of each token, [B, T] of outputs [B, T, C]. The
objectives here take leading axes of structures too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num, PyTree, Shaped

from additive_jax.batches import is_array, shapes_of
from additive_jax.data import Expected
from additive_jax.errors import UserError
from additive_jax.models.additive import Inputs
from additive_jax.models.contract import check_network

Outputs = Float[Array | np.ndarray, '...']
Targets: TypeAlias = PyTree[Shaped[Array | np.ndarray, '...']]
Scores = tuple[Float[Array, '...'], Float[Array, '...']]
Objective = Callable[[Any, Any], Scores]


def classification(outputs: Outputs, y: Targets) -> Scores:
  """Returns the cross-entropy in nats, and 1 where the label's logit is larger than every other.

  Args:
    outputs: logits [..., B, C].
    y: labels, int [B], or shares of classes, float [B, C], as of mixed examples; of these the
      label is the class with the largest.

  >>> loss, accuracy = classification(jnp.array([[0.0, 0.0], [2.0, 1.0]]), jnp.array([0, 0]))
  >>> print(np.asarray(loss).round(3), accuracy)
  [0.693 0.313] [0. 1.]
  """
  is_soft = jnp.issubdtype(y.dtype, jnp.floating) and y.ndim > 1
  shares = y if is_soft and outputs.shape[-y.ndim :] == y.shape else None
  y = y if shares is None else y.argmax(-1)
  y = jnp.broadcast_to(y.astype(jnp.int32), outputs.shape[:-1])
  if shares is None:
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
  else:
    loss = optax.softmax_cross_entropy(outputs, shares)
  # An argmax takes ten times as long on CPU, where it is not vectorised.
  labelled = jnp.take_along_axis(outputs, y[..., None], axis=-1)[..., 0]
  others = jnp.where(jnp.arange(outputs.shape[-1]) == y[..., None], -jnp.inf, outputs).max(-1)
  return loss, (labelled > others).astype(jnp.float32)


def language(outputs: Outputs, y: Targets) -> Scores:
  """Returns cross-entropy in nats and next-token accuracy, averaged over each example's tokens.

  Args:
    outputs: logits [..., B, T, C].
    y: next tokens, int [B, T].

  >>> print(np.asarray(language(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)))[0]).round(3))
  [1.386 1.386]
  """
  loss, accuracy = classification(outputs, y)
  return loss.mean(-1), accuracy.mean(-1)


def regression(outputs: Outputs, y: Targets) -> Scores:
  """Returns the squared error of standardised targets, and one minus it, whose mean is the
  coefficient of determination R².

  Args:
    outputs: predictions [..., B, C].
    y: targets with unit variance over the training set, float [B, C].

  Raises:
    UserError: when their shapes differ, such as targets [B] for predictions [B, 1].

  >>> print(*regression(jnp.ones((2, 1)), jnp.array([[1.0], [0.5]])))
  [0.   0.25] [1.   0.75]
  """
  if outputs.shape[-y.ndim :] != y.shape:
    raise UserError(
      f'predictions {outputs.shape} and targets {y.shape}: expected targets [batch, outputs]'
    )
  loss = jnp.square(outputs - y).mean(-1)
  return loss, 1 - loss


@dataclasses.dataclass(frozen=True)
class Distilled:
  """An objective with a teacher: (1 − w)·loss + w·t²·KL(teacher ‖ outputs) in nats, both of them
  softmax(logits / t). Source: Hinton et al. 2015 (arXiv:1503.02531), section 2.

  The teacher's logits stand beside the labels in the targets, so that no step runs a teacher.

  Attributes:
    objective: `classification` or `language`.
    weight: w, in [0, 1].
    temperature: t, above 0.

  >>> targets = Distilled.targets(np.array([0]), np.array([[2.0, 1.0]]))
  >>> loss, _ = Distilled(classification, weight=1.0)(jnp.array([[2.0, 1.0]]), jnp.asarray(targets))
  >>> bool(abs(loss[0]) < 1e-6)
  True
  """

  objective: Objective
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
  def targets(
    y: Num[np.ndarray, '*examples'], logits: Float[np.ndarray, '*examples C']
  ) -> Float[np.ndarray, '*examples 1+C']:
    """Returns labels, int [B] or [B, T], and the teacher's logits in one array.

    >>> Distilled.targets(np.array([1]), np.array([[2.5, 0.5]])).tolist()
    [[1.0, 2.5, 0.5]]
    """
    return np.concatenate([np.asarray(y, np.float32)[..., None], logits], axis=-1)

  def __call__(self, outputs: Outputs, y: Float[Array, '*examples _']) -> Scores:
    """Returns loss and accuracy of each example; `y` is what `targets` gave."""
    loss, accuracy = self.objective(outputs, y[..., 0].astype(jnp.int32))
    student, teacher = (jax.nn.log_softmax(a / self.temperature) for a in (outputs, y[..., 1:]))
    teacher = jnp.broadcast_to(teacher, student.shape)
    divergence = optax.losses.kl_divergence_with_log_targets(student, teacher)
    divergence = divergence.reshape(*loss.shape, -1).mean(-1)  # of text, over the tokens
    return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence, accuracy


OBJECTIVES: dict[str, Objective] = {
  'classification': classification,
  'language': language,
  'regression': regression,
}


def objective_of(task: str | Objective) -> Objective:
  """Returns the objective of a task by name, and a function of the same form as it is.

  >>> objective_of('regression') is regression, objective_of(regression) is regression
  (True, True)

  Raises:
    UserError: for an unknown task.
  """
  if callable(task):
    return task
  if task not in OBJECTIVES:
    raise UserError(f'task {task!r}: expected one of {", ".join(OBJECTIVES)}')
  return OBJECTIVES[task]


def is_ours(objective: Objective) -> bool:
  """Returns whether an objective is one of this file, which takes leading axes of structures.

  >>> is_ours(Distilled(language, weight=0.5)), is_ours(lambda outputs, y: language(outputs, y))
  (True, False)
  """
  inner = objective.objective if isinstance(objective, Distilled) else objective
  return any(inner is known for known in OBJECTIVES.values())


def scores_of(
  objective: Objective, outputs: Any, y: Any, *, by_token: bool = False
) -> tuple[Any, Any]:
  """Returns what an objective gives, if it is loss and accuracy of each example.

  >>> squares = lambda outputs, y: jnp.square(outputs[:, 0] - y)
  >>> scores_of(squares, jnp.ones((4, 3)), jnp.zeros(4))
  Traceback (most recent call last):
  additive_jax.errors.UserError: objective <lambda> gives float32 (4,): expected a pair (loss,
  accuracy), each of shape (4,)

  Args:
    outputs: [B, ..., C].
    y: targets [B, ...].
    by_token: whether they may also be of each token, [B, T] of outputs [B, T, C].
  """
  result = objective(outputs, y)
  _check(objective, result, outputs.shape, by_token)
  return result[0], result[1]


def _check(objective, result, shape, by_token):
  """Raises `UserError` where a result, of arrays or shapes, is not what `scores_of` wants of
  outputs of this shape."""
  allowed = [shape[:1], shape[:-1]] if by_token and len(shape) > 2 else [shape[:1]]
  if isinstance(result, tuple | list):
    shapes = [getattr(part, 'shape', None) for part in result]
  else:
    whole: tuple[int, ...] = getattr(result, 'shape', ())  # an array [2, B] is a pair too
    shapes = [whole[1:]] * whole[0] if len(whole) > 1 else []
  if len(shapes) != 2 or shapes[0] != shapes[1] or shapes[0] not in allowed:
    name = getattr(objective, '__name__', type(objective).__name__)
    raise UserError(
      f'objective {name} gives {_described(result)}: expected a pair (loss, accuracy), each of '
      f'shape {" or ".join(map(str, allowed))}'
    )


def _described(result: Any) -> str:
  """Returns the types and shapes of what an objective gave."""
  if isinstance(result, tuple | list):
    return f'({", ".join(map(_described, result))})'
  if hasattr(result, 'shape'):
    return f'{result.dtype} {result.shape}'
  return repr(result) if result is None or np.isscalar(result) else f'a {type(result).__name__}'


def check_objective(
  model: Any, objective: Objective, x: Inputs, y: Targets, size: int, *, by_token: bool = False
) -> None:
  """Raises `UserError` for an objective of one's own that does not give loss and accuracy of each
  example of a batch; by shapes alone.

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> mean = lambda outputs, y: (outputs.mean(), outputs.mean())
  >>> check_objective(model, mean, np.ones((1, 6)), np.ones(1), size=32)
  Traceback (most recent call last):
  additive_jax.errors.UserError: objective <lambda> gives (float32 (), float32 ()): expected a pair
  (loss, accuracy), each of shape (32,)

  Args:
    x, y: some examples, of which the shapes matter.
    size: B.
    by_token: as for `scores_of`.
  """
  if is_ours(objective) or not hasattr(model, 'init_with_output'):  # see `expected_of`
    return
  outputs, targets = shapes_of((check_network(model, x), y), size)
  result = jax.eval_shape(objective, outputs, targets)
  _check(objective, result, outputs.shape, by_token)


def expected_of(model: Any, task: str | Objective, x: Inputs) -> Expected:
  """Returns what a network and a task take of examples, to check them with.

  >>> model = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3)
  >>> expected_of(model, 'classification', np.ones((2, 6), np.float32))
  Expected(task='classification', num_outputs=3, num_tokens=0, target_shape=())

  Args:
    x: a batch of inputs, of which the shape matters.
  """
  objective = objective_of(task)
  is_tokens = is_array(x) and np.issubdtype(x.dtype, np.integer)
  tokens = getattr(model, 'num_tokens', 0) if is_tokens else 0
  name = next((name for name, known in OBJECTIVES.items() if known is objective), '')
  if not name or not hasattr(model, 'init_with_output'):  # in place of a module, with parts alone
    return Expected(name, num_tokens=tokens)
  _, *shape, outputs = check_network(model, x).shape
  targets = (*shape, outputs) if objective is regression else tuple(shape)
  return Expected(name, outputs, tokens, targets)
