"""The gradient of several structures in one pool: each from its own slot, averaged over slots and
devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from additive_jax import run
from additive_jax.errors import UserError
from additive_jax.gates import subsets
from additive_jax.models.additive import gate_names, parts, sites_of
from additive_jax.parallel import collectives, mesh, pipeline, staging
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.run.objectives import objective_of, regression
from additive_jax.train.balance import Balance, penalty
from additive_jax.train.samplers import inverse

AVERAGES = ('mean', 'coverage')
RESCALES = ('none', 'inverse')


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a pool is trained: static and hashable, one compiled program per recipe.

  Attributes:
    model: an additive model.
    objective: from outputs and targets to per-example loss and accuracy, or a task's name; see
      `objectives`.
    optimizer: an Optax transformation.
    average: 'mean' divides the summed gradient by the number of slots; 'coverage' divides each
      parameter's by the number of slots whose structure read it, so that rarely chosen sites are
      not held back.
    collective: 'psum' or 'ring'.
    distill: weight α of in-place distillation: the loss of a structure other than all-on is
      (1 − α)·loss + α·KL(all-on ‖ structure). Source: Yu & Huang 2019 (arXiv:1903.05134), section
      3.2.
    rescale: 'none', or 'inverse': in training what a gate adds is divided by the probability p that
      it is on, so that the mean over its draws is what it adds with the gate always on; with p = 0
      it adds nothing. All structures are judged without scales.
    subsets: None for structures of whole slots (conditional), or how many examples each residual
      gate runs on (per sample); the structures of slots are then all-on.
    balance: how the routers of a model of experts are kept balanced; None for models without. The
      structures of slots are then all-on.
    loss: None, or what is minimised in place of the objective's mean, for models that are not run
      as structures: called as `loss(recipe, params, x, y, key=…, step=…, first=…)`, with the slot's
      key, the step, and the number that the first of these examples has in the slot's batch. The
      structures of slots are then all-on.
    pipeline: how the sites lie in stages over the mesh axis `pipe`, on a mesh that has one; None
      for whole networks on every device.
  """

  model: Any
  objective: Callable
  optimizer: optax.GradientTransformation
  average: str = 'mean'
  collective: str = 'psum'
  distill: float = 0.0
  rescale: str = 'none'
  subsets: subsets.Subsets | None = None
  balance: Balance | None = None
  loss: Callable | None = None
  pipeline: Pipeline | None = None

  def __post_init__(self):
    object.__setattr__(self, 'objective', objective_of(self.objective))
    if self.average not in AVERAGES:
      raise UserError(f'average {self.average!r}: expected one of {", ".join(AVERAGES)}')
    if self.collective not in collectives.COLLECTIVES:
      known = ', '.join(collectives.COLLECTIVES)
      raise UserError(f'collective {self.collective!r}: expected one of {known}')
    if self.rescale not in RESCALES:
      raise UserError(f'rescale {self.rescale!r}: expected one of {", ".join(RESCALES)}')
    if not 0 <= self.distill <= 1:
      raise UserError(f'distill {self.distill}: expected a weight in [0, 1]')
    if self.distill and self.objective is regression:
      raise UserError(f'distill {self.distill} in a regression: expected 0, for want of classes')
    if self.balance and (self.distill or self.subsets or self.rescale != 'none'):
      raise UserError('a balance of routers with random structures or distillation: expected one')
    if self.loss and (self.distill or self.subsets or self.balance or self.rescale != 'none'):
      raise UserError(
        'a loss of its own with random structures, distillation or routers: expected one'
      )
    if self.pipeline:
      self._check_pipeline()

  def _check_pipeline(self):
    for name, value, plain in (
      ('average', self.average, 'mean'),
      ('distill', self.distill, 0),
      ('subsets', self.subsets, None),
      ('balance', self.balance, None),
    ):
      if value != plain:
        raise UserError(f'{name} {value} in a pipeline: expected {plain}')
    staging.check_optimizer(self.optimizer)


class Averaged(NamedTuple):
  """The gradient of a step.

  Attributes:
    gradient: a pytree like the pool, or this device's part of it.
    loss: of each slot of this device, [K/P].
    finite: bool [K/P], False for slots that were left out.
    facts: of the routers by site, averaged over all slots that are finite; {} without routers.
    count: int32 scalar, the finite slots of all devices.
  """

  gradient: Any
  loss: jax.Array
  finite: jax.Array
  facts: dict
  count: jax.Array


class Draw(NamedTuple):
  """What is random in a step beside its structures and examples.

  Attributes:
    keys: of this device's slots, [K/P]; the same for all devices that split a slot's batch.
    step: of the training.
    rates: float [n], the probability that each gate of a structure is on; for 'inverse' rescaling
      of structures.
  """

  keys: jax.Array
  step: jax.Array
  rates: jax.Array | None = None


def structure_loss(
  recipe: Recipe, params, bits: jax.Array, x: jax.Array, y: jax.Array, *, scales=None
) -> jax.Array:
  """Mean loss of one traced structure, bool [n], on a batch; distilled from all-on if the recipe
  says so.

  Args:
    scales: float [n]; what residual gate i adds is multiplied by `scales[i]`; None: 1.
  """
  outputs = run.conditional(recipe.model, {'params': params}, x, bits, scales=scales)
  loss = recipe.objective(outputs, y)[0].mean()
  if not recipe.distill:
    return loss
  divergence = _divergence(recipe, params, outputs, x).mean()
  return jnp.where(bits.all(), loss, (1 - recipe.distill) * loss + recipe.distill * divergence)


def subsets_loss(
  recipe: Recipe, params, key: jax.Array, x: jax.Array, y: jax.Array, *, stage: int, split=False
) -> jax.Array:
  """Mean loss of a batch whose examples each have a random structure, drawn as `recipe.subsets`
  says; distilled from all-on if the recipe says so, but for examples that drew all-on.

  Args:
    stage: which of `recipe.subsets` applies.
    split: whether the batch is this device's share, by whole parts, along the mesh axis `data`.
  """
  plan, parts, first = recipe.subsets, recipe.subsets.parts, 0
  if split:
    parts //= jax.lax.axis_size(mesh.DATA)
    first = jax.lax.axis_index(mesh.DATA) * parts
  rows = len(x) // parts
  chosen = subsets.draw(key, plan.keep_rates[stage], rows, parts=parts, first=first)
  scales = None
  if recipe.rescale == 'inverse':
    scales = inverse(np.array([len(own) / len(x) for own in chosen], np.float32))
  outputs = run.gathered(recipe.model, {'params': params}, x, chosen, scales=scales)
  loss = recipe.objective(outputs, y)[0]
  if not recipe.distill:
    return loss.mean()
  divergence = _divergence(recipe, params, outputs, x)
  divergence = divergence.reshape(len(x), -1).mean(-1)  # of text, over the tokens
  all_on = subsets.as_gates(chosen, len(x)).all(-1)
  mixed = (1 - recipe.distill) * loss + recipe.distill * divergence
  return jnp.where(all_on, loss, mixed).mean()


def _divergence(recipe, params, outputs, x):
  """KL(all-on ‖ outputs), of each example, or each token of it."""
  full = (True,) * len(gate_names(recipe.model))
  teacher = jax.lax.stop_gradient(run.static(recipe.model, {'params': params}, x, full))
  return optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(outputs), jax.nn.log_softmax(teacher)
  )


def routed_loss(recipe: Recipe, params, key, x: jax.Array, y: jax.Array, *, split=False):
  """Mean loss of all-on on a batch with the penalties of its routers, and what they did.

  Args:
    key: for routers that draw at random.
    split: whether the batch is this device's share along the mesh axis `data`; loads are then those
      of the whole batch, since the load-balance loss is a product of two means.
  """
  outputs, facts = run.routed(recipe.model, {'params': params}, x, key)
  if split:
    whole = lambda load: jax.lax.pmean(jax.lax.stop_gradient(load), mesh.DATA)
    facts = {name: site._replace(load=whole(site.load)) for name, site in facts.items()}
  return recipe.objective(outputs, y)[0].mean() + penalty(recipe.balance, facts), facts


def piped_loss(recipe: Recipe, params, bits, x, y, *, scales=None) -> jax.Array:
  """`structure_loss` of a pool in stages over the mesh axis `pipe`, inside `shard_map`."""
  how, objective = recipe.pipeline, recipe.objective
  return pipeline.loss(recipe.model, how, objective, params, bits, x, y, scales=scales)[0]


def _slot_gradient(recipe, params, bits, x, y, key, draw, split, structure_loss):
  """Loss of one slot with what its routers did, and its gradient."""
  if recipe.balance is not None:
    loss = lambda params: routed_loss(recipe, params, key, x, y, split=split)
    return jax.value_and_grad(loss, has_aux=True)(params)
  loss, gradient = _plain_gradient(recipe, params, bits, x, y, key, draw, split, structure_loss)
  return (loss, {}), gradient


def _plain_gradient(recipe, params, bits, x, y, key, draw, split, structure_loss):
  if recipe.loss is not None:
    first = jax.lax.axis_index(mesh.DATA) * len(x) if split else 0
    own = lambda params: recipe.loss(recipe, params, x, y, key=key, step=draw.step, first=first)
    return jax.value_and_grad(own)(params)
  if recipe.subsets is None:
    scales = None
    if recipe.rescale == 'inverse':
      scales = inverse(draw.rates)
    loss = lambda params: structure_loss(recipe, params, bits, x, y, scales=scales)
    return jax.value_and_grad(loss)(params)

  def gradient(stage, params):
    loss = functools.partial(subsets_loss, recipe, stage=stage, split=split)
    return jax.value_and_grad(loss)(params, key, x, y)

  stages = [functools.partial(gradient, stage) for stage in range(len(recipe.subsets.starts))]
  if len(stages) == 1:
    return stages[0](params)
  return jax.lax.switch(recipe.subsets.stage(draw.step), stages, params)


def usage(model, x):
  """Which parts of the model read each leaf of the pool.

  Returns:
    A pytree like the pool, of bool [n + 1]: one per residual gate for its site (False for other
    gates), and a last one for embed, readout and the sites that no gate skips.
  """
  found = parts(model, x)

  def paths(tree):
    return {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}

  always = paths(found.embed) | paths(found.readout)
  readers = []
  for site, tree in zip(sites_of(model), found.sites):
    if site.has_residual:
      readers += [paths(tree), *[set()] * site.num_inner]
    else:
      always |= paths(tree)
      readers += [set()] * site.num_inner
  readers.append(always)
  pool = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  return jax.tree_util.tree_map_with_path(
    lambda path, _: np.array([jax.tree_util.keystr(path) in reader for reader in readers]), pool
  )


def averaged_gradient(
  recipe: Recipe, params, bits: jax.Array, batch, *, axes=(), reads=None, draw=None, specs=None
):
  """The gradient of one step, averaged over its K slots, which P devices may share.

  Args:
    params: the pool, the same on every device but for leaves that are split, see `specs`.
    bits: the structures of this device's slots, bool [K/P, n].
    batch: (x, y) with leading axes [K/P, B]: this device's examples for each of its slots.
    axes: the names of the mesh axes inside `shard_map`; () outside.
    reads: for 'coverage', what `usage` gave.
    draw: a `Draw`, for recipes with subsets or a rescaling.
    specs: how leaves are split over the axes, a pytree of `PartitionSpec` like the pool, for a
      model that joins what they give by `psum`, and for a pool in stages, a `staging.Staged`; None:
      every device has the whole pool.

  Returns:
    An `Averaged`. A slot whose loss or gradient is not finite on any device is left out.

  Devices along an axis other than `structure` share a slot. Where a `psum` joins them each
  differentiates the sum of their losses, for without replication checks (`check_vma=False`) `psum`
  is its own transpose. Summed over the devices that have a copy of a leaf and divided by how many
  share the slot, these are the gradients of the slot's mean loss, of split leaves as of whole ones.
  """
  split = mesh.DATA in axes
  sharing = tuple(axis for axis in axes if axis != mesh.STRUCTURE)
  of_structure = piped_loss if mesh.PIPE in axes else structure_loss

  def slot(total, inputs):
    bits, (x, y), key = inputs
    (loss, facts), gradient = _slot_gradient(
      recipe, params, bits, x, y, key, draw, split, of_structure
    )
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    if sharing:  # these devices run the same structure, so they arrive here together
      finite = jax.lax.pmin(finite.astype(jnp.int32), sharing) > 0
      gradient = jax.tree.map(lambda g: g / jax.lax.axis_size(sharing), gradient)
    if split:
      loss, facts = jax.lax.pmean((loss, facts), mesh.DATA)
    if total is None:
      return gradient, (loss, finite, facts)
    add = lambda t, g: t + jnp.where(finite, g, 0)
    return jax.tree.map(add, total, gradient), (loss, finite, facts)

  slots = bits, batch, None if draw is None else draw.keys
  if len(bits) == 1:
    alone = jax.tree.map(lambda a: a[0], slots)
    total, seen = slot(None, alone)
    if axes:  # without others to add to, the caller drops the whole step instead
      total = jax.tree.map(lambda g: jnp.where(seen[1], g, 0), total)
    loss, finite, facts = jax.tree.map(lambda a: a[None], seen)
  else:
    zeros = jax.tree.map(jnp.zeros_like, params)
    total, (loss, finite, facts) = jax.lax.scan(slot, zeros, slots)
  total = collectives.all_reduce_sum(total, axes, recipe.collective, specs)

  over_slots = lambda a: jax.lax.psum(a, mesh.STRUCTURE) if mesh.STRUCTURE in axes else a
  kept = lambda leaf: jnp.where(finite.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0).sum(0)
  count, facts = over_slots((finite.sum(), jax.tree.map(kept, facts)))
  facts = jax.tree.map(lambda leaf: leaf / jnp.maximum(count, 1), facts)
  if recipe.average == 'mean':
    gradient = jax.tree.map(lambda g: g / jnp.maximum(count, 1), total)
  else:
    on = jnp.pad(bits, ((0, 0), (0, 1)), constant_values=True)
    used = lambda readers: (finite & (on & readers).any(-1)).sum()
    counts = over_slots(jax.tree.map(used, reads))
    gradient = jax.tree.map(lambda g, n: g / jnp.maximum(n, 1), total, counts)
  return Averaged(gradient, loss, finite, facts, count)


def cosines(recipe: Recipe, params, bits: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
  """Cosine between the gradients of K structures on one batch, [K, K].

  Args:
    bits: bool [K, n].
    x, y: one batch for all, [B, ...].

  Where a parameter is read by one of two structures only, it counts as zero in the other's
  gradient.
  """

  def flat(bits):
    gradient = jax.grad(lambda params: structure_loss(recipe, params, bits, x, y))(params)
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(gradient)])

  gradient = jax.lax.map(flat, bits)
  norm = jnp.linalg.norm(gradient, axis=1, keepdims=True)
  unit = gradient / jnp.maximum(norm, jnp.finfo(gradient.dtype).tiny)
  return jnp.matmul(unit, unit.T, precision='highest')
