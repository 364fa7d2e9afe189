"""What every experiment stands on: from a config to data, model, recipe and run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from ml_collections import ConfigDict

from additive_jax import data as data_
from additive_jax import models
from additive_jax.errors import UserError
from additive_jax.experiments.network import make_model
from additive_jax.experiments.options import (
  PLACEMENT,
  DataOptions,
  Options,
  parse_shard,
  read_options,
  replaced,
  selected,
)
from additive_jax.files.lock import locked
from additive_jax.files.metrics import Metrics
from additive_jax.files.progress import Stopper
from additive_jax.files.rundir import RunDir, default_workdir
from additive_jax.gates.structure import Space
from additive_jax.models.additive import sites_of
from additive_jax.models.identity import describe
from additive_jax.parallel import layout, pipeline, processes, staging
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel.pipeline_schedule import Pipeline
from additive_jax.parallel.placement import Placement
from additive_jax.run.objectives import objective_of
from additive_jax.train import samplers
from additive_jax.train.losses import Piped
from additive_jax.train.optimizers import make_optimizer
from additive_jax.train.population import Population
from additive_jax.train.recipe import Loss, Recipe, Structures
from additive_jax.train.state import State
from additive_jax.train.trainer import Trainer, default_mesh

log = logging.getLogger('additive_jax')


class Stopped(Exception):
  """The run was asked to stop; what it had done is saved, and the same command goes on."""


@dataclasses.dataclass(frozen=True)
class Session:
  """An open run.

  Attributes:
    config: the resolved options.
    rundir: where the run's files go.
    metrics: its curves.
    data: training and test split.
    model: the additive model.
    space: its gates and their costs.
    objective: see `objectives`.
    stopper: tells whether the run was asked to stop.
    devices: those of the mesh that pools are trained on.
    command: the command line that started the run, '' for none.
    recipes: made so far, by number of steps; see `recipe`.
  """

  config: Options
  rundir: RunDir
  metrics: Metrics
  data: data_.Data
  model: Any
  space: Space
  objective: Any
  stopper: Stopper
  devices: list[jax.Device]
  command: str = ''
  recipes: dict[int, Recipe] = dataclasses.field(default_factory=dict, repr=False)

  @property
  def seeds(self) -> list[int]:
    return list(range(self.config.seed, self.config.seed + self.config.num_seeds))

  @property
  def shard(self) -> tuple[int, int]:
    """The number of this process's part of the run, and how many parts there are."""
    return parse_shard(self.config.shard)

  @property
  def test(self) -> tuple[np.ndarray, np.ndarray]:
    """The test split as arrays."""
    return self.data.test[np.arange(len(self.data.test))]

  @property
  def identity(self) -> dict:
    """What a checkpoint of this model carries."""
    return {'model': describe(self.model), 'gates': list(self.space.names)}

  def with_model(self, model) -> Session:
    """This run with another model, for experiments that compare several."""
    space = models.measure(model, self.data.train[np.zeros(1, np.int64)][0])
    return dataclasses.replace(self, model=model, space=space, recipes={})

  def with_options(self, changed: dict) -> Session:
    """This run with other options, by their dotted names."""
    return dataclasses.replace(self, config=replaced(self.config, changed), recipes={})

  def check_in_memory(self, expected: str = 'a set that fits') -> None:
    """Raises `UserError` for data that is read batch by batch."""
    if not self.data.train.in_memory:
      raise UserError(
        f'{self.data.name} is larger than config.data.memory_limit '
        f'{self.config.data.memory_limit}: expected {expected}'
      )

  def check_experts(self, models) -> None:
    """Raises `UserError` where `config.train.expert_devices` suits none of the models of a run, or
    does not divide the experts of one that has some."""
    spread = [model for model in models if layout.has_experts(model)] or models
    for model in spread:
      layout.local_model(model, self.config.train.expert_devices)

  @property
  def pipeline(self) -> Pipeline | None:
    """How pools are trained in stages; None for whole networks on each device.

    Raises:
      UserError: for a model or a batch that does not divide into them, see `staging`.
    """
    train = self.config.train
    options = train.pipe_devices, train.microbatches, train.pipe_schedule, train.pipe_repeats
    if train.pipe_devices == 1:
      return None
    found = Pipeline(*options)
    pipeline.check_batch(train.batch_size, found)
    x = self.data.train[np.zeros(1, np.int64)][0]
    staging.staging(self.model, found, jax.ShapeDtypeStruct(x.shape, x.dtype))
    return found

  def steps(self, epochs: float) -> int:
    """Steps of `batch_size` examples that pass `epochs` times over the training set."""
    order = data_.Order(len(self.data.train), self.config.train.batch_size, 0)
    return order.steps_for(epochs)

  def trainer(self, recipe: Recipe, sampler, seed: int, state: State | None = None) -> Trainer:
    """A trainer of one pool on this run's devices, from `state` or the pool that the seed names."""
    train = self.config.train
    spread = train.expert_devices if layout.has_experts(self.model) else 1
    mesh = default_mesh(recipe, sampler, train.batch_size, self.devices, spread)
    return Trainer(
      recipe,
      self.data.train,
      sampler,
      batch_size=train.batch_size,
      seed=seed,
      state=state,
      shared_batch=train.shared_batch,
      placement=selected(Placement, train, mesh=mesh, chunk_steps=train.log_every),
    )

  @property
  def workers(self) -> list[jax.Device] | None:
    """This process's devices for work without a mesh; None on CPU, where cores count."""
    local = [device for device in self.devices if device.process_index == jax.process_index()]
    return None if local[0].platform == 'cpu' else local

  def population(self, recipe: Recipe, seed: int) -> Population:
    """Networks trained alone on this run's devices."""
    size = self.config.train.batch_size
    return Population(recipe, self.data, batch_size=size, seed=seed, devices=self.workers)

  def recipe(self, num_steps: int) -> Recipe:
    """How pools and lone structures are trained for `num_steps` steps; the same object each time.

    The compiled programs belong to the object: another one, though equal, would compile them anew.
    """
    if num_steps not in self.recipes:
      train = self.config.train
      self.recipes[num_steps] = Recipe(
        self.model,
        self.objective,
        make_optimizer(self.config, num_steps),
        self.loss(train.distill),
        average=train.average,
        collective=train.collective,
      )
    return self.recipes[num_steps]

  def loss(self, distill: float = 0.0, rescale: str = 'none') -> Loss:
    """The loss of structures, in stages where `config.train.pipe_devices` asks for them."""
    pipeline = self.pipeline
    if pipeline is None:
      return Structures(distill=distill, rescale=rescale)
    if distill:
      raise UserError(f'distill {distill} in a pipeline: expected 0')
    return Piped(pipeline=pipeline, rescale=rescale)

  def check_whole(self, loss: str) -> None:
    """Raises `UserError` for a loss that cannot be in stages where stages are asked for."""
    if self.config.train.pipe_devices > 1:
      devices = self.config.train.pipe_devices
      raise UserError(f'{loss} with config.train.pipe_devices {devices}: expected 1')

  def sampler(self, num_steps: int):
    """The sampler of `config.sampler`, for a run of `num_steps` steps."""
    options = self.config.sampler
    keep = samplers.KeepRates(
      rate=options.keep_rate,
      ramp=options.keep_ramp,
      by_gate=options.gate_keep_rates,
      sites=[i for i, site in enumerate(sites_of(self.model)) for _ in site.names],
      ramp_steps=options.ramp * num_steps,
      ramp_shape=options.ramp_shape,
    )
    slots = self.config.train.structures_per_step
    return samplers.make_sampler(
      options.name, self.space.num_gates, slots, structures=options.structures, keep=keep
    )

  def check_stop(self) -> None:
    """Raises `Stopped` when the run was asked to stop, in all processes alike."""
    if processes.agree(self.stopper.stop_requested):
      raise Stopped


class Opening(TypedDict, total=False):
  """What an experiment may be given beside its config and run directory.

  Attributes:
    model: an additive model in place of `config.model`.
    data: a `data.Data` in place of `config.data`.
    name: of the default run directory; None is the experiment's.
    devices: how many to use; 0 is all.
    command: the command line that started the run, for its report.
  """

  model: Any
  data: Any
  name: str | None
  devices: int
  command: str


@contextlib.contextmanager
def open_session(
  config: ConfigDict | Options,
  workdir=None,
  *,
  check: Callable[[Session], None],
  model=None,
  data=None,
  name=None,
  devices: int = 0,
  command: str = '',
) -> Iterator[Session]:
  """Checks the config, finds the data, makes the model and opens the run directory.

  Args:
    config: as in `configs/default.py`.
    workdir: the run directory; None is `runs/<name>-<hash of the config>`.
    check: raises `UserError` for what the experiment cannot do; called before anything is written,
      and not for a run that is finished.
    model, data, name, devices, command: see `Opening`.

  Raises:
    UserError: for options that make no sense, or while another process is at work in the directory;
      nothing has been written then.
  """
  config = read_options(config)
  devices = mesh_.pick_devices(devices)
  data = data or load_data(config.data)
  model = model or make_model(config.model, data)
  if config.train.batch_size > len(data.train):
    raise UserError(
      f'config.train.batch_size {config.train.batch_size}: expected at most {len(data.train)}, the '
      f'training examples of {data.name}'
    )
  mesh_.check_expert_devices(config.train.expert_devices, len(devices))
  mesh_.check_pipe_devices(config.train.pipe_devices, len(devices))
  x = data.train[np.zeros(1, np.int64)][0]
  space = models.measure(model, x)
  resolved = to_plain_config(config) | {'gates': list(space.names)}
  resolved['data']['name'], resolved['model']['name'] = data.name, type(model).__name__
  resolved['model']['fields'] = describe(model)
  workdir = Path(workdir or default_workdir(name or config.experiment, resolved, exclude=PLACEMENT))
  rundir = RunDir(workdir, primary=processes.is_primary())
  shard, num_shards = parse_shard(config.shard)
  curves = Metrics(rundir, shard=shard, num_shards=num_shards)
  with contextlib.ExitStack() as held, Stopper() as stopper, curves as metrics:
    objective = objective_of(data.task)
    session = Session(
      config, rundir, metrics, data, model, space, objective, stopper, devices, command
    )
    if not rundir.finished:
      check(session)
    _open(workdir, resolved, lambda path: held.enter_context(locked(path, shard, num_shards)))
    yield session


def _open(workdir, resolved, hold):
  """Opens the run directory in the first process, then in the others; all fail together."""
  primary, problem = processes.is_primary(), None
  for turn in (True, False):
    if primary == turn:
      try:
        RunDir.open(workdir, resolved, exclude=PLACEMENT, primary=primary, hold=hold)
      except UserError as error:
        problem = error
    if processes.agree(problem is not None):
      raise problem or UserError(f'{workdir}: expected a directory that all processes can use')


def load_data(options: DataOptions) -> data_.Data:
  """The data of `config.data`."""
  data = data_.load(
    options.name,
    sequence_length=options.sequence_length,
    data_dir=options.data_dir or None,
    download=options.download,
    memory_limit=options.memory_limit,
  )
  splits = {}
  for name in ('train', 'test'):
    count = getattr(options, f'{name}_examples')
    try:
      splits[name] = data_.take(getattr(data, name), count)
    except UserError as error:
      raise UserError(f'config.data.{name}_examples of {data.name}: {error}') from error
  return dataclasses.replace(data, **splits)


def to_plain_config(config: Options) -> dict:
  """The config as nested dicts of JSON values."""

  def plain(value):
    if isinstance(value, dict):
      return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple | list) else value

  return plain(dataclasses.asdict(config))
