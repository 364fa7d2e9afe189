"""Losses beside `recipe.Structures`: what a recipe minimises, for one slot of a step.

A loss that is missing here may be written by a user; see `recipe.Loss`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from additive_jax import run
from additive_jax.errors import UserError
from additive_jax.gates import subsets
from additive_jax.models.additive import gate_names
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import pipeline as pipeline_
from additive_jax.parallel import staging
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.train import balance as balance_
from additive_jax.train import recipe as recipe_
from additive_jax.train.balance import Balance
from additive_jax.train.recipe import Loss, Recipe, Slot, Structures
from additive_jax.train.samplers import Sampler, check_all_on, inverse


@dataclasses.dataclass(frozen=True)
class PerSample(Loss):
  """The objective's mean over examples that each have a random structure of their own.

  Every gate runs on a random subset of the batch, of a size that the keep rates fix. The structures
  of slots are all-on.

  Attributes:
    subsets: how many examples each gate runs on.
    distill: as for `recipe.Structures`, of each example that did not draw all-on.
    rescale: as for `recipe.Structures`, by the exact share of examples that a gate runs on.
  """

  subsets: subsets.Subsets
  distill: float = 0.0
  rescale: str = 'none'

  def __post_init__(self):
    recipe_.check_distill(self.distill)
    recipe_.check_rescale(self.rescale)

  def __call__(
    self, recipe: Recipe, params: PyTree, slot: Slot
  ) -> tuple[Float[Array, ''], dict[str, PyTree]]:
    """Returns the mean loss and no facts."""
    loss = lambda stage, params: self._loss(recipe, params, slot, stage)
    return self._in_stage(slot, loss, params), {}

  def gradient(
    self, recipe: Recipe, params: PyTree, slot: Slot
  ) -> tuple[tuple[Float[Array, ''], dict[str, PyTree]], PyTree]:
    """Returns loss and gradient, which each stage takes by itself: their residuals differ in
    shape."""

    def gradient(stage, params):
      loss = lambda params: self._loss(recipe, params, slot, stage)
      return jax.value_and_grad(loss)(params)

    loss, gradient = self._in_stage(slot, gradient, params)
    return (loss, {}), gradient

  def _in_stage(self, slot: Slot, function: Callable, params: PyTree) -> Any:
    """Returns `function(stage, params)` of the stage that the step lies in."""
    stages = [functools.partial(function, stage) for stage in range(len(self.subsets.starts))]
    if len(stages) == 1:
      return stages[0](params)
    return jax.lax.switch(self.subsets.stage(slot.step), stages, params)

  def _loss(self, recipe, params, slot, stage):
    parts = self.subsets.parts // slot.num_shares
    rows, size = len(slot.x) // parts, len(slot.x)
    chosen = subsets.draw(
      slot.key, self.subsets.keep_rates[stage], rows, parts=parts, first=slot.share * parts
    )
    scales = None
    if self.rescale == 'inverse':
      scales = inverse(np.array([len(examples) / size for examples in chosen], np.float32))
    outputs = run.gathered(recipe.model, {'params': params}, slot.x, chosen, scales=scales)
    loss = recipe.objective(outputs, slot.y)[0]
    if not self.distill:
      return loss.mean()
    divergence = recipe_.divergence_from_all_on(recipe.model, params, outputs, slot.x)
    divergence = divergence.reshape(size, -1).mean(-1)  # of text, over the tokens
    all_on = subsets.as_gates(chosen, size).all(-1)
    mixed = (1 - self.distill) * loss + self.distill * divergence
    return jnp.where(all_on, loss, mixed).mean()

  def batch_parts(self, batch_size: int) -> int:
    """Returns the parts that have a subset each, which devices take whole."""
    return self.subsets.parts

  def check(self, recipe: Recipe) -> None:
    """Raises `UserError` for distillation in a regression."""
    recipe_.check_classes(self.distill, recipe.objective)

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` where parts, rates and structures do not suit batch, model and mesh."""
    check_all_on(sampler, 'subsets per sample')
    self.subsets.rows(batch_size)
    num_rates, num_gates = len(self.subsets.keep_rates[0]), len(gate_names(recipe.model))
    if num_rates != num_gates:
      raise UserError(f'{num_rates} keep rates: expected {num_gates}, one per gate')
    devices = mesh.shape[mesh_.DATA]
    if self.subsets.parts % devices:
      raise UserError(
        f'{devices} devices split a batch of {self.subsets.parts} parts with a subset each: '
        'expected devices that divide the parts'
      )


@dataclasses.dataclass(frozen=True)
class Routed(Loss):
  """The objective's mean of all-on with the penalties of its routers; facts are theirs by site.

  The selection biases of routers move after each step, outside of the gradient.

  Attributes:
    balance: how the routers are kept balanced.
  """

  balance: Balance

  def __call__(
    self, recipe: Recipe, params: PyTree, slot: Slot
  ) -> tuple[Float[Array, ''], dict[str, PyTree]]:
    """Returns the mean loss and the facts of each site, with the loads of the slot's whole batch:
    the load-balance loss is a product of two means."""
    outputs, facts = run.routed(recipe.model, {'params': params}, slot.x, slot.key)
    facts = {name: site._replace(load=slot.mean(site.load)) for name, site in facts.items()}
    loss = recipe.objective(outputs, slot.y)[0].mean()
    return loss + balance_.penalty(self.balance, facts), facts

  def adjust(self, params: PyTree, before: PyTree, facts: dict[str, PyTree]) -> PyTree:
    """Returns the pool with the routers' biases moved towards an even load."""
    return balance_.move_biases(self.balance, params, before, facts)

  def curves(self, facts: dict[str, PyTree]) -> dict[str, float]:
    """Returns what `balance.summary` says of each site."""
    return {
      f'{site.replace("__", "/")}/{name}': value
      for site, of_site in facts.items()
      for name, value in balance_.summary(of_site).items()
    }

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` for structures other than all-on."""
    check_all_on(sampler, 'a model with routers')


@dataclasses.dataclass(frozen=True)
class Piped(Loss):
  """The objective's mean in the slot's structure, of a pool in stages over the mesh axis `pipe`.

  A pool that is not in stages runs as `recipe.Structures` runs it.

  Attributes:
    pipeline: how sites and batches are laid out.
    rescale: as for `recipe.Structures`.
  """

  pipeline: Pipeline
  rescale: str = 'none'

  def __post_init__(self):
    recipe_.check_rescale(self.rescale)

  def __call__(
    self, recipe: Recipe, params: PyTree, slot: Slot
  ) -> tuple[Float[Array, ''], dict[str, PyTree]]:
    """Returns the mean loss and no facts."""
    if not isinstance(params, staging.Staged):
      return Structures(rescale=self.rescale)(recipe, params, slot)
    scales = recipe_.scales_of(self.rescale, slot)
    model, objective = recipe.model, recipe.objective
    loss, _ = pipeline_.loss(
      model, self.pipeline, objective, params, slot.bits, slot.x, slot.y, scales=scales
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

  def check_training(self, recipe: Recipe, sampler: Sampler, batch_size: int, mesh: Mesh) -> None:
    """Raises `UserError` where mesh or batch do not suit the pipeline."""
    recipe_.check_rates_known(self.rescale, sampler)
    pipeline_.check_mesh(mesh, self.pipeline)
    pipeline_.check_batch(batch_size // mesh.shape[mesh_.DATA], self.pipeline)
