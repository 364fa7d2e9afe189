"""How pools of one model are trained with the options of a run, and where: recipes, samplers,
devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from additive_jax.batches import Shapes, shapes_of
from additive_jax.data import Data, Order
from additive_jax.errors import UserError
from additive_jax.experiments.options import Options, TrainOptions, refused, selected
from additive_jax.gates.networks import different
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import initial_shapes, sites_of, space_of
from additive_jax.parallel import layout, pipeline, staging
from additive_jax.parallel.mesh import EXPERT, TENSOR
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.placement import Placement
from additive_jax.run.tasks import Task
from additive_jax.train import samplers
from additive_jax.train.augment import Augment, augmented_shapes, make_augment
from additive_jax.train.losses import Piped
from additive_jax.train.low_rank import low_rank
from additive_jax.train.optimizers import make_optimizer
from additive_jax.train.recipe import Loss, Recipe, Structures
from additive_jax.train.rule import check_pool
from additive_jax.train.samplers import Sampler
from additive_jax.train.trainer import default_mesh


class Training:
  """Makes what a pool is trained with. It remembers its recipes, since the compiled programs belong
  to the object: another one, though equal, would compile them anew.

  Attributes:
    config: the options of the run.
    model: the network.
    data: what it is trained on.
    task: what they are trained for and judged by.
    optimizer: one given from Python, in place of that of the options; None for that.
    augment: in place of `config.data.augment`, see `train.augment`.
  """

  def __init__(
    self,
    config: Options,
    model: Any,
    data: Data,
    task: Task,
    optimizer: Any = None,
    augment: Augment | None = None,
  ):
    self.config, self.model, self.data, self.task = config, model, data, task
    self.optimizer, self.augment = optimizer, augment
    self._recipes: dict[int, Recipe] = {}

  def steps(self, epochs: float) -> int:
    """Returns the steps of `batch_size` examples that pass `epochs` times over the training set."""
    order = Order(len(self.data.train), self.config.train.batch_size, 0)
    return order.steps_for(epochs)

  def recipe(self, num_steps: int) -> Recipe:
    """Returns how a training of `num_steps` steps takes each of them; the same object each time."""
    if num_steps not in self._recipes:
      train = self.config.train
      optimizer = self.make_optimizer(num_steps)
      self._recipes[num_steps] = selected(
        Recipe,
        train,
        model=self.model,
        task=self.task,
        optimizer=optimizer,
        loss=self.loss(train.distill),
        augment=self.augment or self._named_augment(),
      )
      self._recipes[num_steps].check_network(self.data.train[np.zeros(1, np.int64)][0])
    return self._recipes[num_steps]

  def _named_augment(self) -> Augment | None:
    """Returns what `config.data.augment` names, after a look at what it makes of the examples."""
    options = self.config.data
    if 'mixup' in options.augment and self.task.ignore_label is not None:
      raise refused(self.config, 'data.augment', 'task.ignore_label', expected='no mixup')
    made = make_augment(
      options.augment,
      self.data.num_outputs if self.data.task == 'classification' else 0,
      crop_pixels=options.crop_pixels,
      flip_rate=options.flip_rate,
      mixup_alpha=options.mixup_alpha,
    )
    try:
      example = self.data.train[np.zeros(1, np.int64)]
      augmented_shapes(made, *example, self.config.train.batch_size)
    except UserError as error:
      raise UserError(f'config.data.augment {options.augment!r}: {error}') from error
    return made

  def make_optimizer(self, num_steps: int) -> Any:
    """Returns the optimizer of a training of `num_steps` steps."""
    optimizer, train = self.optimizer or make_optimizer(self.config, num_steps), self.config.train
    if not train.low_rank:
      return optimizer
    for name in ('zero', 'fsdp_devices', 'tensor_devices', 'expert_devices', 'pipe_devices'):
      if getattr(train, name) > 1 or getattr(train, name) is True:
        raise refused(
          self.config, 'train.low_rank', f'train.{name}', expected='a device with whole matrices'
        )
    return low_rank(optimizer, train.low_rank)

  def loss(self, distill: float = 0.0, rescale: str = 'none') -> Loss:
    """Returns the loss of structures, in stages where `config.train.pipe_devices` asks for them."""
    stages = self.pipeline
    if stages is None:
      return Structures(distill=distill, rescale=rescale)
    if distill:
      raise UserError(f'distill {distill} in a pipeline: expected 0')
    return Piped(pipeline=stages, rescale=rescale)

  @property
  def pipeline(self) -> Pipeline | None:
    """How pools are trained in stages; None for whole networks on each device.

    Raises:
      UserError: for a model or a batch that does not divide into them, see `staging`.
    """
    train = self.config.train
    if train.pipe_devices == 1:
      return None
    stages = Pipeline(
      train.pipe_devices, train.microbatches, train.pipe_schedule, train.pipe_repeats
    )
    pipeline.check_batch(train.batch_size, stages)
    x = self.data.train[np.zeros(1, np.int64)][0]
    staging.staging(self.model, stages, shapes_of(x))
    return stages

  def check_whole(self, loss: str) -> None:
    """Raises `UserError` for a loss that cannot be in stages where stages are asked for."""
    if self.config.train.pipe_devices > 1:
      devices = self.config.train.pipe_devices
      raise UserError(f'{loss} with config.train.pipe_devices {devices}: expected 1')

  def sampler(self, num_steps: int) -> Sampler:
    """Returns the sampler of `config.sampler`, for a training of `num_steps` steps."""
    options = self.config.sampler
    sites = [number for number, site in enumerate(sites_of(self.model)) for _ in site.names]
    keep = samplers.KeepRates(
      rate=options.keep_rate,
      ramp=options.keep_ramp,
      by_gate=options.gate_keep_rates,
      sites=sites,
      ramp_steps=options.ramp * num_steps,
      ramp_shape=options.ramp_shape,
    )
    slots = self.config.train.structures_per_step
    if options.name == 'fair' and slots % 2:
      names = 'train.structures_per_step', 'sampler.name'
      raise refused(self.config, *names, expected='an even number, for pairs')
    if options.name == 'progressive' and not options.ramp:
      raise refused(self.config, 'sampler.ramp', 'sampler.name', expected='a share above 0')
    space, source = space_of(self.model), 'config.sampler.structures'
    structures = different(space, options.structures, source)
    return samplers.make_sampler(options.name, len(sites), slots, structures=structures, keep=keep)

  def sampler_of(self, structure: Structure) -> Sampler:
    """Returns the sampler that gives all slots of every step one structure."""
    return samplers.listed([structure], len(structure), self.config.train.structures_per_step)


@dataclasses.dataclass(frozen=True)
class Machine:
  """The devices of a run.

  Attributes:
    devices: those of the mesh that pools are trained on.
    options: how pools are laid out on them.
    example: the shape of a batch of inputs.
  """

  devices: Sequence[jax.Device]
  options: TrainOptions
  example: Shapes

  @property
  def workers(self) -> list[jax.Device] | None:
    """This process's devices for work without a mesh; None on CPU, where cores count."""
    local = [device for device in self.devices if device.process_index == jax.process_index()]
    return None if local[0].platform == 'cpu' else local

  def placement(self, model: Any, recipe: Recipe, sampler: Sampler) -> Placement:
    """Returns where a pool of the model is trained."""
    spread = self._spread(model)
    mesh = default_mesh(recipe, sampler, self.options.batch_size, self.devices, **spread)
    return selected(Placement, self.options, mesh=mesh)

  def _spread(self, model: Any) -> dict[str, int]:
    """Returns over how many devices a model is spread, by the options' names."""
    experts = self.options.expert_devices > 1 and layout.has_experts(model, self.example)
    return {
      'expert_devices': self.options.expert_devices if experts else 1,
      'fsdp_devices': self.options.fsdp_devices,
      'tensor_devices': self.options.tensor_devices,
    }

  def check_networks(self, networks: Iterable[Any]) -> None:
    """Raises `UserError` where `config.train.expert_devices` suits none of the networks of a run,
    or heads, hidden units or experts of one do not divide over the devices; and for frozen parts
    and learning rates that fit no leaf of one, and pieces that do not divide a batch."""
    networks, options = list(networks), self.options
    if options.batch_size % options.accumulate:
      raise UserError(
        f'config.train.accumulate {options.accumulate} of config.train.batch_size '
        f'{options.batch_size}: expected a number that divides it'
      )
    for network in networks if options.frozen or options.learning_rates else ():
      pool = initial_shapes(network, self.example)['params']
      check_pool(pool, options.learning_rates, tuple(options.frozen))
    if self.options.expert_devices == self.options.tensor_devices == 1:
      return
    some = any(layout.has_experts(network, self.example) for network in networks)
    for network in networks:
      sizes = {TENSOR: self.options.tensor_devices}
      if not some or layout.has_experts(network, self.example):
        sizes[EXPERT] = self.options.expert_devices
      layout.check_model(network, sizes, self.example)
