"""How a pool is trained: the recipe, and the loss that it minimises.

`losses.py` has losses beside the plain one that stands here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from additive_jax import run
from additive_jax.batches import num_examples
from additive_jax.errors import UserError, checked_size
from additive_jax.models import contract
from additive_jax.models.additive import Inputs, initial_shapes
from additive_jax.models.surrounding import Mode
from additive_jax.parallel import collectives
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.run.expected import check_task
from additive_jax.run.objectives import Outputs
from additive_jax.run.tasks import LABELLED, task_of
from additive_jax.train import rule as rule_
from additive_jax.train.augment import Augment, augmented_shapes
from additive_jax.train.samplers import Sampler, inverse
from additive_jax.train.slot import Slot
from additive_jax.train.teacher import divergence_from_all_on

AVERAGES = ('mean', 'coverage')
RESCALES = ('none', 'inverse')
DTYPES = ('float32', 'bfloat16')
Scalar = Float[Array, '']
Facts = dict[str, PyTree]


class Loss:
  """The function that a recipe minimises.

  A loss of one's own is a frozen dataclass derived from this class. It is called inside the
  compiled step, once for each slot, and has to be hashable, for one program is compiled per recipe.
  All methods but the call have defaults.

  >>> @dataclasses.dataclass(frozen=True)
  ... class LabelSmoothed(Loss):
  ...   amount: float
  ...
  ...   def __call__(self, recipe, params, slot):
  ...     logits = run.conditional(recipe.model, {'params': params}, slot.x, slot.structure)
  ...     targets = optax.smooth_labels(jax.nn.one_hot(slot.y, logits.shape[-1]), self.amount)
  ...     return optax.softmax_cross_entropy(logits, targets).mean(), {}
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> recipe = Recipe(model, 'classification', optax.adamw(1e-3), LabelSmoothed(0.1))
  """

  def __call__(self, recipe: Recipe, params: PyTree, slot: Slot) -> tuple[Scalar, Facts]:
    """Returns the mean loss of a slot's examples, and facts.

    Args:
      params: the pool.

    Facts are arrays by name that are no part of the gradient. The trainer gives their mean over
    slots and devices for each step.
    """
    raise NotImplementedError

  # Whether it reads the pool through the functions of a model alone, part by part, so that devices
  # may hold it in pieces; a class that is derived from one that does has to say so itself.
  by_parts: ClassVar[bool] = False

  def gradient(
    self, recipe: Recipe, params: PyTree, slot: Slot
  ) -> tuple[tuple[Scalar, Facts], PyTree]:
    """Returns what the call gives, and the gradient of the loss with respect to the pool."""
    return jax.value_and_grad(lambda params: self(recipe, params, slot), has_aux=True)(params)

  def adjust(self, params: PyTree, before: PyTree, facts: Facts) -> PyTree:
    """Returns the pool after a step, with what moves outside of the gradient.

    Args:
      params, before: the pool after and before the optimizer's step.
      facts: of the step.
    """
    del before, facts
    return params

  def curves(self, facts: Facts) -> dict[str, float]:
    """Returns the figures to plot, by name, of facts that are averaged over some steps."""
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
    leaves = jax.tree.leaves_with_path(facts)
    return {name(path): float(leaf) for path, leaf in leaves if leaf.ndim == 0}

  def targets(self, recipe: Recipe, params: PyTree, x: Inputs, y: PyTree) -> PyTree:
    """Returns targets as the task's loss takes them, of those that the data has."""
    del recipe, params, x
    return y

  def alone(self) -> Loss:
    """Returns the loss of a structure that is trained by itself, without others in its pool."""
    return self

  def whole(self) -> Loss:
    """Returns the same loss of a pool that is not in stages: what is minimised, wherever it is."""
    return self

  def batch_parts(self, batch_size: int) -> int:
    """Returns into how many equal parts devices may split a slot's batch."""
    return batch_size

  def stages(self) -> Pipeline | None:
    """Returns how the sites lie in stages over the mesh axis `pipe`; None for whole networks."""
    return None

  def check(self, recipe: Recipe) -> None:
    """Raises `UserError` where the loss does not suit the recipe that holds it."""

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` where sampler, batch or mesh do not suit the loss."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structures(Loss):
  """The task's mean loss in the slot's structure, which runs by conditionals.

  Attributes:
    distill: weight α of in-place distillation: the loss of a structure other than all-on is
      (1 − α)·loss + α·KL(all-on ‖ structure). Source: Yu & Huang 2019 (arXiv:1903.05134), section
      3.2.
    rescale: 'none', or 'inverse': what a gate adds in training is divided by the probability p that
      it is on, so that the mean over its draws is what it adds with the gate always on; with p = 0
      it adds nothing. All structures are judged without scales.
  """

  distill: float = 0.0
  rescale: str = 'none'

  by_parts: ClassVar[bool] = True

  def __post_init__(self):
    if not 0 <= self.distill <= 1:
      raise UserError(f'distill {self.distill}: expected a weight in [0, 1]')
    if self.rescale not in RESCALES:
      raise UserError(f'rescale {self.rescale!r}: expected one of {", ".join(RESCALES)}')

  def __call__(self, recipe: Recipe, params: PyTree, slot: Slot) -> tuple[Scalar, Facts]:
    """Returns the mean loss and no facts."""
    model, variables = recipe.model, {'params': params}
    outputs = run.conditional(model, variables, slot.x, slot.structure, scales=self.scales(slot))
    loss = recipe.mean_loss(outputs, slot)
    if not self.distill:
      return loss, {}
    divergence = recipe.mean(divergence_from_all_on(model, params, outputs, slot.x), slot)
    mixed = (1 - self.distill) * loss + self.distill * divergence
    return jnp.where(slot.structure.all(), loss, mixed), {}

  def scales(self, slot: Slot) -> Float[Array, 'n'] | None:
    """Returns what each residual gate's addition is multiplied by; None, which is 1, also where
    structures are not drawn with keep rates."""
    return None if self.rescale == 'none' or slot.rates is None else inverse(slot.rates)

  def alone(self) -> Loss:
    """Returns the plain loss: alone there is no teacher, and nothing is drawn."""
    return Structures()

  def check(self, recipe: Recipe) -> None:
    """Raises `UserError` for distillation in a task without classes."""
    if self.distill and recipe.task.name not in ('', *LABELLED):
      name = recipe.task.name
      raise UserError(f'distill {self.distill} in a {name}: expected 0, for want of classes')

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` for a rescaling of structures whose sampler has no keep rates."""
    if self.rescale != 'none' and not hasattr(sampler, 'rates'):
      raise UserError(
        f'rescale {self.rescale!r} of the structures of {type(sampler).__name__}: expected a '
        'sampler of gates with keep rates, uniform or bernoulli'
      )


def reads_by_parts(loss: Loss) -> bool:
  """Returns whether the class of a loss says so, see `Loss.by_parts`; what it inherits does not
  count."""
  return bool(vars(type(loss)).get('by_parts', False))


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a pool is trained: static and hashable, one compiled program per recipe.

  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> recipe = Recipe(model, 'classification', optax.adamw(1e-3), Structures(distill=0.5))
  >>> print(np.asarray(recipe.losses(jnp.zeros((1, 3)), jnp.array([2]))).round(3))
  [1.099]
  >>> recipe.alone().loss
  Structures(distill=0.0, rescale='none')

  Attributes:
    model: an additive model.
    task: what is minimised and judged: a name, a `Task`, or a function from outputs and targets to
      the loss of each example or token; see `tasks`.
    optimizer: an Optax transformation.
    loss: what is minimised.
    average: 'mean' divides the summed gradient by the number of slots; 'coverage' divides each
      parameter's by the number of slots whose structure read it, so that rarely chosen sites are
      not held back.
    collective: 'psum' or 'ring'.
    slot_clip_norm: the global norm that the gradient of each slot is clipped to, before the slots
      are averaged; 0 is no clipping.
    dtype: what branches, embed and readout compute in: 'float32' or 'bfloat16'. Parameters, their
      gradients, the optimizer, the stream, losses, softmax, routers and the statistics of norms are
      float32 in any case; pools are judged in float32.
    accumulate: A, pieces of a slot's examples that go through the network one after the other, for
      the memory of one; their gradients are averaged to that of the slot.
    ema: decay of a mean of the pool over the steps, see `rule.averaged`; 0 keeps none.
    learning_rates: what multiplies the learning rate, by a regular expression of the paths of
      leaves, `{'embed': 0.1, 'block_0.*/kernel': 2.0}`; see `rule.fits`.
    frozen: regular expressions of the paths of what does not learn.
    augment: what changes the examples of each step at random, see `augment`; None leaves them.
  """

  model: Any
  task: Any  # a `Task`, once the recipe is made
  optimizer: optax.GradientTransformation
  loss: Loss = Structures()
  average: str = 'mean'
  collective: str = 'psum'
  slot_clip_norm: float = 0.0
  dtype: str = 'float32'
  accumulate: int = 1
  ema: float = 0.0
  learning_rates: Any = ()  # pairs, once the recipe is made
  frozen: tuple[str, ...] = ()
  augment: Augment | None = None

  def __post_init__(self):
    object.__setattr__(self, 'task', task_of(self.task))
    if self.average not in AVERAGES:
      raise UserError(f'average {self.average!r}: expected one of {", ".join(AVERAGES)}')
    if self.collective not in collectives.COLLECTIVES:
      known = ', '.join(collectives.COLLECTIVES)
      raise UserError(f'collective {self.collective!r}: expected one of {known}')
    if not 0 <= self.slot_clip_norm < math.inf:
      raise UserError(f'slot_clip_norm {self.slot_clip_norm}: expected 0, or a positive number')
    if self.dtype not in DTYPES:
      raise UserError(f'dtype {self.dtype!r}: expected one of {", ".join(DTYPES)}')
    checked_size(self.accumulate, 'accumulate')
    if not 0 <= self.ema < 1:
      raise UserError(f'ema {self.ema}: expected a decay in [0, 1), such as 0.999')
    object.__setattr__(self, 'learning_rates', rule_.checked_rates(self.learning_rates))
    object.__setattr__(self, 'frozen', rule_.checked_patterns(self.frozen, 'frozen'))
    if not isinstance(self.loss, Loss):
      raise UserError(f'loss {self.loss!r}: expected a Loss, such as Structures()')
    if not all(callable(getattr(self.optimizer, part, None)) for part in ('init', 'update')):
      raise UserError(
        f'optimizer {self.optimizer!r}: expected one of Optax, such as optax.adam(0.1)'
      )
    if type(self.loss).__hash__ is None:
      raise UserError(f'loss {self.loss!r}: expected a hashable one, such as a frozen dataclass')
    self.loss.check(self)

  def check_network(self, x: Inputs) -> None:
    """Raises `UserError` for a network whose parts do not fit each other on inputs of the shape of
    `x` [B, ...], see `models.contract`, or BatchNorms where parts of a batch pass by themselves;
    one that is no Flax module is not looked at."""
    if not isinstance(self.model, nn.Module):
      return
    contract.check_network(self.model, x)
    if not contract.statistics_of(self.model, x):
      return
    name = f'{type(self.model).__name__} with BatchNorms'
    if self.accumulate > 1:
      raise UserError(
        f'{name} and accumulate {self.accumulate}: expected 1, for a batch is normalised as a '
        'whole, or another norm'
      )
    if self.loss.stages() is not None:
      raise UserError(
        f'{name} in a pipeline, whose microbatches pass by themselves: expected '
        'config.train.pipe_devices=1, or another norm'
      )

  def check_task(self, x: Inputs, y: PyTree, size: int) -> None:
    """Raises `UserError` for a loss or metrics of one's own that do not give what is expected of
    `size` examples such as `x` and `y`, see `expected.check_task`, or an augmentation that gives
    no such batch."""
    if self.augment is not None:
      _, shapes = augmented_shapes(self.augment, x, y, size)
      y = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), shapes)
    shaped = lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype)
    x = jax.tree.map(shaped, x)
    if type(self.loss).targets is not Loss.targets:
      pool = initial_shapes(self.model, x)['params']
      read = functools.partial(self.loss.targets, self)
      y = jax.eval_shape(read, pool, x, jax.tree.map(shaped, y))
    check_task(self.model, self.task, x, y)

  def losses(self, outputs: Outputs, y: PyTree) -> Float[Array, '...']:
    """Returns the loss of each example, or of each token, of float32."""
    return self.task.losses(outputs, y)

  def mean(self, values: Float[Array, '...'], slot: Slot) -> Scalar:
    """Returns this device's part of the mean of values of a slot's examples, or tokens, over what
    counts in the slot: the mean of the devices' parts is that of the slot."""
    return self.task.mean(values, slot.y, slot.total)

  def mean_loss(self, outputs: Outputs, slot: Slot) -> Scalar:
    """Returns the mean loss of a slot's examples, see `mean`."""
    return self.task.mean_loss(outputs, slot.y, slot.total)

  @property
  def rule(self) -> optax.GradientTransformation:
    """What a step takes updates from, the same object each time: the optimizer, with
    `learning_rates`, `frozen` and `ema`."""
    return rule_.rule_of(self.optimizer, self.learning_rates, self.frozen, self.ema)

  def check_pool(self, params: PyTree) -> None:
    """Raises `UserError` for rates or frozen parts that fit no leaf of a pool, of arrays or shapes,
    or where nothing is left to learn."""
    rule_.check_pool(params, dict(self.learning_rates), self.frozen)

  def mode(self, slot: Slot) -> Mode:
    """Returns the mode in which the parts of the network run on a slot's examples."""
    count = num_examples(slot.x)
    rows = slot.share * count + jnp.arange(count)
    dtype = None if self.dtype == 'float32' else jnp.dtype(self.dtype)
    return Mode(dtype, slot.dropout, rows, slot.share)

  def alone(self) -> Recipe:
    """Returns the recipe of a structure that is trained by itself, with nothing to average."""
    return dataclasses.replace(self, loss=self.loss.alone(), average='mean')
