"""An open run: its options, files, data and network, and what trains on which devices."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from additive_jax import models
from additive_jax.data import ArraySplit, Data, IteratorSplit, take
from additive_jax.data.splits import Examples
from additive_jax.errors import Stopped, UserError
from additive_jax.experiments.options import Options, parse_shard, replaced
from additive_jax.experiments.training import Machine, Training
from additive_jax.files.metrics import Metrics
from additive_jax.files.progress import Progress
from additive_jax.files.rundir import RunDir
from additive_jax.files.signals import Stopper
from additive_jax.gates.structure import Space, StructureLike
from additive_jax.models.additive import initial, initial_shapes
from additive_jax.models.batch_norm import BATCH_STATS
from additive_jax.models.contract import statistics_of
from additive_jax.models.identity import describe
from additive_jax.parallel import processes
from additive_jax.run.evaluate import Evaluation, evaluate_structures
from additive_jax.run.recalibration import recalibrate
from additive_jax.run.tasks import Task
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import Sampler
from additive_jax.train.state import State, init_state
from additive_jax.train.trainer import Trainer

log = logging.getLogger('additive_jax')

PORTION = 2**14  # structures that are ranked at once


@dataclasses.dataclass(frozen=True)
class Session:
  """An open run.

  Attributes:
    config: the resolved options.
    rundir: where the run's files go.
    metrics: its curves.
    stopper: tells whether the run was asked to stop.
    data: what is learnt, what choices are made on, and what is reported.
    model: the additive model.
    space: its gates and their costs.
    training: how pools of the model are trained.
    machine: the devices that they are trained on.
    command: the command line that started the run, '' for none.
    plan: what the run will do and cost, in words; logged when its directory is open.
    start: the pool that trainings start from; None for the one that each seed names.
    pretrained: what `config.pretrained` names, a `pretrained.Pretrained`, or None.
  """

  config: Options
  rundir: RunDir
  metrics: Metrics
  stopper: Stopper
  data: Data
  model: Any
  space: Space
  training: Training
  machine: Machine
  command: str = ''
  plan: list[str] = dataclasses.field(default_factory=list)
  start: PyTree | None = None
  pretrained: Any = None

  @property
  def seeds(self) -> list[int]:
    """The seeds of the run, in order."""
    return list(range(self.config.seed, self.config.seed + self.config.num_seeds))

  @functools.cached_property
  def has_statistics(self) -> bool:
    """Whether the model has BatchNorms: then each structure is judged by statistics of its own."""
    return bool(statistics_of(self.model, first_input(self.data)))

  @property
  def shard(self) -> tuple[int, int]:
    """The number of this process's part of the run, and how many parts there are."""
    return parse_shard(self.config.shard)

  @property
  def task(self) -> Task:
    """What networks are trained for and judged by."""
    return self.training.task

  @property
  def test(self) -> Examples:
    """The split that is reported, as arrays."""
    return self.data.test[np.arange(len(self.data.test))]

  @property
  def valid(self) -> Examples:
    """The split that choices are made on, as arrays: the test split where nothing was held out."""
    split = self.data.test if self.data.valid is None else self.data.valid
    return split[np.arange(len(split))]

  @property
  def chosen_on(self) -> str:
    """The name of that split: `valid` or `test`."""
    return 'test' if self.data.valid is None else 'valid'

  @property
  def chosen_word(self) -> str:
    """What that split is called before `loss`: `validation` or `test`."""
    return 'test' if self.data.valid is None else 'validation'

  @property
  def identity(self) -> dict[str, Any]:
    """What a checkpoint of this model carries."""
    return {'model': describe(self.model), 'gates': list(self.space.names)}

  def with_model(self, model: Any) -> Session:
    """Returns this run with another model, for experiments that compare several."""
    optimizer, augment = self.training.optimizer, self.training.augment
    training = Training(self.config, model, self.data, self.task, optimizer, augment)
    space = models.measure(model, first_input(self.data))
    return dataclasses.replace(self, model=model, space=space, training=training)

  def with_options(self, changed: Mapping[str, Any]) -> Session:
    """Returns this run with other options, by their dotted names."""
    config = replaced(self.config, changed)
    optimizer, augment = self.training.optimizer, self.training.augment
    training = Training(config, self.model, self.data, self.task, optimizer, augment)
    machine = dataclasses.replace(self.machine, options=config.train)
    return dataclasses.replace(self, config=config, training=training, machine=machine)

  def trainer(
    self, recipe: Recipe, sampler: Sampler, seed: int, state: State | None = None
  ) -> Trainer:
    """Returns a trainer of one pool, from a state, or from where trainings `begin`."""
    train, begun = self.config.train, None if state is not None else self.begin(seed)
    if begun is not None:
      state = init_state(recipe, begun)
    return Trainer(
      recipe,
      self.data.train,
      sampler,
      batch_size=train.batch_size,
      seed=seed,
      state=state,
      shared_batch=train.shared_batch,
      placement=self.machine.placement(self.model, recipe, sampler),
    )

  def population(self, recipe: Recipe, seed: int) -> Population:
    """Returns networks to train alone."""
    size, workers = self.config.train.batch_size, self.machine.workers
    options: dict[str, Any] = {'batch_size': size, 'devices': workers}
    return Population(recipe, self.data, seed=seed, variables=self.begin(seed), **options)

  def begin(self, seed: int) -> PyTree | None:
    """Returns `{'params': pool}` that a training starts from; None for the pool of its seed.

    The run's `start` is the same in every seed. Another network than the run's takes of it the
    leaves of the same path and shape, and the others from its seed.
    """
    if self.start is None:
      return None
    given = flatten_dict(self.start)
    x = first_input(self.data)
    shapes = flatten_dict(initial_shapes(self.model, x)['params'])
    fits = [p for p, leaf in shapes.items() if p in given and given[p].shape == leaf.shape]
    if len(fits) == len(shapes) == len(given):
      return {'params': self.start}
    log.info(
      '%d of %d leaves of %s start as given', len(fits), len(shapes), type(self.model).__name__
    )
    key = jax.random.fold_in(jax.random.key(seed), 0)
    pool = flatten_dict(processes.to_host(initial(self.model, key, x))['params'])
    return {'params': unflatten_dict(pool | {path: given[path] for path in fits})}

  def evaluate(
    self,
    variables: PyTree,
    structures: Iterable[StructureLike],
    split: Any = None,
    *,
    stored: bool = False,
  ) -> Evaluation:
    """Returns loss and metrics [S] of structures in a pool.

    Args:
      variables: `{'params': pool}`.
      structures: in any form, or as bits [S, n].
      split: (x, y), or a split in memory; None is the test split.
      stored: of a network with BatchNorms, judges by the stored statistics, or where there are
        none by those of all-on, in place of statistics of each structure's own.

    Raises:
      Stopped: when the run was asked to stop meanwhile; of several processes they all go on to the
        end, since they may judge different sets.
    """
    if stored and not variables.get(BATCH_STATS):
      (variables,) = self.with_own_statistics([variables], [self.space.all_on()])
    scores = functools.partial(
      evaluate_structures,
      self.model,
      variables,
      self.test if split is None else split,
      task=self.task,
      devices=self.machine.workers,
      recalibrate=self.data.train if self.has_statistics and not stored else False,
    )
    if not isinstance(structures, np.ndarray):
      structures = list(structures)
    if not isinstance(structures, np.ndarray) or len(structures) <= PORTION:
      with Progress(len(structures), 'judging', unit='structure', brief=True) as progress:
        return scores(structures, progress=self._advancing(progress))
    parts: list[Evaluation] = []
    order = np.lexsort(structures.T[::-1])  # those that share their first gates next to each other
    with Progress(len(order), 'ranking', unit='structure') as progress:
      for start in range(0, len(order), PORTION):
        advance = self._advancing(progress, start, min(PORTION, len(order) - start))
        parts.append(scores(structures[order[start : start + PORTION]], progress=advance))
    back = np.argsort(order)
    joined = {name: np.concatenate([p.scores[name] for p in parts]) for name in parts[0].scores}
    return Evaluation.of({name: values[back] for name, values in joined.items()})

  def _advancing(self, progress: Progress, start: int = 0, size: int | None = None) -> Any:
    """Returns what moves a bar by the share that is done of `size` of its units, and stops there
    when the run was asked to."""
    count, done = progress.total or 0 if size is None else size, start

    def advance(share: float) -> None:
      nonlocal done
      now = start + int(share * count)
      progress.advance(now - done)
      done = now
      if processes.process()[1] == 1:
        self.check_stop()

    return advance

  def with_own_statistics(
    self, pools: Sequence[PyTree], structures: Iterable[StructureLike]
  ) -> Sequence[PyTree]:
    """Returns pools as they are, or with BatchNorms each with the statistics of its structure."""
    if not self.has_statistics:
      return pools
    own = functools.partial(recalibrate, self.model, data=self.data.train)
    return [own(pool, [structure])[0] for pool, structure in zip(pools, structures, strict=True)]

  def scores(self, variables: PyTree, split: Any = None) -> dict[str, float]:
    """Returns loss and metrics of a pool by name, all gates on, as `evaluate` does."""
    scores = self.evaluate(variables, [self.space.all_on()], split).scores
    return {key: float(values[0]) for key, values in scores.items()}

  def in_memory(self, otherwise: str = '') -> ArraySplit:
    """Returns the training split as arrays.

    Args:
      otherwise: what makes up for data that is not in memory, in words.

    Raises:
      UserError: for data that is read batch by batch.
    """
    train = self.data.train
    if isinstance(train, ArraySplit):
      return train
    ways = f', or {otherwise}' if otherwise else ''
    if isinstance(train, IteratorSplit):
      raise UserError(f'{self.data.name} is read from an iterator: expected arrays in memory{ways}')
    limit = f'config.data.memory_limit {self.config.data.memory_limit}'
    raise UserError(f'{self.data.name} is larger than {limit}: expected a set that fits{ways}')

  def seen(self) -> tuple[PyTree, PyTree]:
    """Returns the training examples on which scores are taken beside those of the test split: all
    in memory; of a set that is read as needed as many as that has, spaced evenly, and of an
    iterator its first ones."""
    train = self.data.train
    if isinstance(train, ArraySplit):
      return train.x, train.y
    count = min(len(train), len(self.data.test))
    some = train if isinstance(train, IteratorSplit) else take(train, count)
    return some[np.arange(count)]

  def check_stop(self) -> None:
    """Raises `Stopped` when the run was asked to stop, in all processes alike."""
    if processes.agree(self.stopper.stop_requested):
      raise Stopped


def first_input(data: Data) -> PyTree:
  """Returns a batch of one training input, of which the shape matters."""
  return data.train[np.zeros(1, np.int64)][0]
