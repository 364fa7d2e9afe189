"""Losses beside `recipe.Structures`: what a recipe minimises, for one slot of a step.

A loss that is missing here may be written by a user; see `recipe.Loss`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from additive_jax import run
from additive_jax.batches import num_examples
from additive_jax.data.weights import Weighted, unweighted
from additive_jax.errors import UserError
from additive_jax.gates import subsets
from additive_jax.models.additive import Inputs, embed, gate_names, readout
from additive_jax.models.side import stream_of, with_stream
from additive_jax.models.surrounding import without_dropout
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import pipeline as pipeline_
from additive_jax.parallel import staging
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.run.metrics import by_weight
from additive_jax.train.balance import Balance, move_biases, penalty, summary
from additive_jax.train.recipe import (
  Facts,
  Loss,
  Recipe,
  Scalar,
  Slot,
  Structures,
)
from additive_jax.train.samplers import Sampler, check_all_on, inverse
from additive_jax.train.teacher import divergence_from_all_on


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerSample(Structures):
  """The task's mean loss over examples that each have a random structure of their own.

  Every gate runs on a random subset of the batch, of a size that the keep rates fix. The structures
  of slots are all-on. Distillation spares examples that drew all-on; rescaling is by the exact
  share of examples that a gate runs on.

  The first block runs on all examples of a batch of 8, the second one on 4:

  >>> import optax
  >>> rates = (1.0, 0.5)
  >>> [subsets.size(rate, 8) for rate in rates]
  [8, 4]
  >>> model = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  >>> loss = PerSample(subsets=subsets.Subsets((rates,)))
  >>> recipe = Recipe(model, 'classification', optax.sgd(0.1), loss)

  Attributes:
    subsets: how many examples each gate runs on.
  """

  subsets: subsets.Subsets

  by_parts: ClassVar[bool] = True

  def __call__(self, recipe: Recipe, params: PyTree, slot: Slot) -> tuple[Scalar, Facts]:
    """Returns the mean loss and no facts."""
    return self._in_stage(slot, lambda stage: self._loss(recipe, params, slot, stage)), {}

  def gradient(
    self, recipe: Recipe, params: PyTree, slot: Slot
  ) -> tuple[tuple[Scalar, Facts], PyTree]:
    """Returns loss and gradient, which each stage takes by itself: what is kept for the backward
    pass differs in shape."""
    gradient = jax.value_and_grad(self._loss, argnums=1)
    loss, gradient = self._in_stage(slot, lambda stage: gradient(recipe, params, slot, stage))
    return (loss, {}), gradient

  def _in_stage(self, slot, function):
    """Returns `function(stage)` of the stage that the step lies in."""
    stages = [functools.partial(function, stage) for stage in range(len(self.subsets.starts))]
    if len(stages) == 1:
      return stages[0]()
    return jax.lax.switch(self.subsets.stage(slot.step), stages)

  def _loss(self, recipe, params, slot, stage):
    parts, size = self.subsets.parts // slot.num_shares, num_examples(slot.x)
    rates, first = self.subsets.keep_rates[stage], slot.share * parts
    examples = subsets.draw(slot.key, rates, size // parts, parts=parts, first=first)
    scales = None
    if self.rescale == 'inverse':
      scales = inverse(np.array([len(rows) / size for rows in examples], np.float32))
    outputs = run.gathered(recipe.model, {'params': params}, slot.x, examples, scales=scales)
    loss = recipe.losses(outputs, slot.y)
    if not self.distill:
      return recipe.mean(loss, slot)
    weight = recipe.task.weights(slot.y)
    divergence = divergence_from_all_on(recipe.model, params, outputs, slot.x)
    loss, divergence = by_weight(loss, weight), by_weight(divergence, weight)
    all_on = subsets.as_gates(examples, size).all(-1)
    mixed = (1 - self.distill) * loss + self.distill * divergence
    return recipe.mean(jnp.where(all_on.reshape(-1, *[1] * (loss.ndim - 1)), loss, mixed), slot)

  def alone(self) -> Loss:
    """Returns the plain loss of all-on."""
    return Structures()

  def batch_parts(self, batch_size: int) -> int:
    """Returns the parts that have a subset each, which devices take whole."""
    return self.subsets.parts

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` where parts, rates and structures do not suit batch, model and mesh."""
    check_all_on(sampler, 'subsets per sample')
    self.subsets.rows(batch_size)
    num_rates, num_gates = len(self.subsets.keep_rates[0]), len(gate_names(recipe.model))
    if num_rates != num_gates:
      raise UserError(f'{num_rates} keep rates: expected {num_gates}, one per gate')
    devices, pieces = mesh_.num_shares(mesh), recipe.accumulate
    if self.subsets.parts % (devices * pieces):
      of_each, and_pieces = (
        (f', {pieces} pieces on each,', ' and pieces') if pieces > 1 else ('', '')
      )
      raise UserError(
        f'{devices} devices{of_each} split a batch of {self.subsets.parts} parts with a subset '
        f'each: expected devices{and_pieces} that divide the parts'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FromStream(Structures):
  """The loss of a task with a teacher, `objectives.Distilled`, of which the data has the last
  streams [B, ..., D] in place of the logits [B, ..., C].

  The readout makes logits of them: that of the pool, which is the teacher's where it is frozen.
  Streams are far smaller than the logits of a large vocabulary.

  >>> import optax
  >>> from additive_jax.run.objectives import CrossEntropy, Distilled, Taught
  >>> model, x = aj.models.MLP(num_blocks=1, width=4, hidden=8, num_classes=3), jnp.ones((2, 6))
  >>> recipe = Recipe(model, Distilled(CrossEntropy(), 0.5), optax.sgd(0.1), FromStream())
  >>> pool = jax.jit(model.init)(jax.random.key(0), x)['params']
  >>> taught = Taught(jnp.array([0, 1]), jnp.ones((2, 4)))
  >>> recipe.loss.targets(recipe, pool, x, taught).logits.shape
  (2, 3)
  """

  by_parts: ClassVar[bool] = True

  def __call__(self, recipe: Recipe, params: PyTree, slot: Slot) -> tuple[Scalar, Facts]:
    """Returns the mean loss and no facts."""
    y = self.targets(recipe, params, slot.x, slot.y)
    return super().__call__(recipe, params, dataclasses.replace(slot, y=y))

  def targets(self, recipe: Recipe, params: PyTree, x: Inputs, y: PyTree) -> PyTree:
    """Returns targets that are `Taught`, or `data.Weighted` of such, with logits."""
    taught = unweighted(y)
    variables = {'params': jax.lax.stop_gradient(params)}
    with without_dropout():
      like = embed(recipe.model, variables, x)
      stream = taught.logits.astype(stream_of(like).dtype)
      logits = readout(recipe.model, variables, with_stream(like, stream))
    taught = taught._replace(logits=jax.lax.stop_gradient(logits))
    return y._replace(y=taught) if isinstance(y, Weighted) else taught

  def alone(self) -> Loss:
    """Returns itself: the teacher is in the data."""
    return self


@dataclasses.dataclass(frozen=True)
class Routed(Loss):
  """The task's mean loss of all-on with the penalties of its routers; facts are theirs by site.

  The selection biases of routers move after each step, outside of the gradient.

  Attributes:
    balance: how the routers are kept balanced.
  """

  balance: Balance

  by_parts: ClassVar[bool] = True

  def __call__(self, recipe: Recipe, params: PyTree, slot: Slot) -> tuple[Scalar, Facts]:
    """Returns the mean loss and the facts of each site, with the loads of the slot's whole batch:
    the load-balance loss is a product of two means."""
    outputs, facts = run.routed(recipe.model, {'params': params}, slot.x, slot.key)
    facts = {name: site._replace(load=slot.mean(site.load)) for name, site in facts.items()}
    return recipe.mean_loss(outputs, slot) + penalty(self.balance, facts), facts

  def adjust(self, params: PyTree, before: PyTree, facts: Facts) -> PyTree:
    """Returns the pool with the routers' biases moved towards an even load."""
    return move_biases(self.balance, params, before, facts)

  def curves(self, facts: Facts) -> dict[str, float]:
    """Returns what `balance.summary` says of each site."""
    return {
      f'{site.replace("__", "/")}/{name}': value
      for site, site_facts in facts.items()
      for name, value in summary(site_facts).items()
    }

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` for structures other than all-on."""
    check_all_on(sampler, 'a model with routers')

  def check(self, recipe: Recipe) -> None:
    """Raises `UserError` for a load-balance loss of pieces: it is a product of means over the whole
    batch."""
    if recipe.accumulate > 1 and self.balance.auxiliary:
      raise UserError(
        f'accumulate {recipe.accumulate} with a load-balance loss of weight '
        f'{self.balance.auxiliary}, which is of whole batches: expected 1, or balance.auxiliary 0'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piped(Loss):
  """The task's mean loss in the slot's structure, of a pool in stages over the mesh axis `pipe`.

  A pool that is not in stages runs as `recipe.Structures` runs it.

  Attributes:
    pipeline: how sites and batches are laid out.
    rescale: as for `recipe.Structures`.
  """

  pipeline: Pipeline
  rescale: str = 'none'

  def __post_init__(self):
    self.whole()

  def whole(self) -> Structures:
    """Returns the loss of a pool that is not in stages."""
    return Structures(rescale=self.rescale)

  def __call__(self, recipe: Recipe, params: PyTree, slot: Slot) -> tuple[Scalar, Facts]:
    """Returns the mean loss and no facts."""
    if not isinstance(params, staging.Staged):
      return self.whole()(recipe, params, slot)
    scales = self.whole().scales(slot)
    model, task, total = recipe.model, recipe.task, slot.total
    total = task.total(slot.y) if total is None else total
    part = None if total is None else total / self.pipeline.microbatches
    judge = functools.partial(task.mean_loss, total=part)
    loss, _ = pipeline_.loss(
      model, self.pipeline, judge, params, slot.structure, slot.x, slot.y, scales=scales
    )
    return loss, {}

  def alone(self) -> Loss:
    """Returns the plain loss of a whole network."""
    return Structures()

  def batch_parts(self, batch_size: int) -> int:
    """Returns how many devices may each have whole examples in every microbatch."""
    return batch_size // self.pipeline.microbatches

  def stages(self) -> Pipeline:
    """Returns the pipeline."""
    return self.pipeline

  def check(self, recipe: Recipe) -> None:
    """Raises `UserError` for 'coverage', or an optimizer that treats stacked leaves otherwise."""
    if recipe.average != 'mean':
      raise UserError(f'average {recipe.average} in a pipeline: expected mean')
    staging.check_optimizer(recipe.optimizer)
    for name in ('learning_rates', 'frozen'):
      if given := getattr(recipe, name):
        raise UserError(f'{name} {given} in a pipeline: expected none')

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` where sampler, mesh or batch do not suit the pipeline."""
    self.whole().check_training(recipe, sampler, batch_size, mesh)
    pipeline_.check_mesh(mesh, self.pipeline)
    shares = mesh.shape[mesh_.DATA] * recipe.accumulate
    pipeline_.check_batch(batch_size // shares, self.pipeline)
