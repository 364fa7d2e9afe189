"""The narrow model of Exp 5: small copies of the large model, trained side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, PyTree

from additive_jax import transplant
from additive_jax.experiments.fit import Curves, fit
from additive_jax.experiments.options import refused
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Journal
from additive_jax.models.additive import initial
from additive_jax.parallel import processes
from additive_jax.train.fleet import Fleet
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import State, init_state

AVERAGE, PACK, BEST = ('average', 'pack', 'best')
CLOCK = 'seconds.jsonl'


def test_scores(session: Session, variables: PyTree) -> dict[str, float]:
  """Returns `test_loss` and each metric as `test_<name>` of a pool, all gates on."""
  return {f'test_{key}': value for key, value in session.scores(variables).items()}


@dataclasses.dataclass(frozen=True)
class Narrow:
  """The narrow copies of a run's model, and how they are trained.

  Attributes:
    large: the run, with the large model.
    session: the run with the small model and its options.
    place: the numbers of the large model's blocks that the small one's become.
    num_models: J, the number of copies.
    recipe: how each is trained.
  """

  large: Session
  session: Session
  place: tuple[int, ...]
  num_models: int
  recipe: Recipe

  @classmethod
  def of(cls, large: Session, num_models: int) -> Narrow:
    """Returns the J copies that `config.booster` asks for.

    Raises:
      UserError: for options of which no copies can be made.
    """
    options, size = large.config.booster, large.config.train.batch_size
    model, place = transplant.narrowed(large.model, options.width, options.structure or None)
    if num_models > len(large.data.train):
      expected = f'at most {len(large.data.train)}, the training examples'
      raise refused(large.config, 'booster.num_models', expected=expected)
    if size % num_models:
      expected = 'a number that divides it, since the copies share the batch of a step'
      raise refused(large.config, 'booster.num_models', 'train.batch_size', expected=expected)
    # Each copy is whole on its device, and has a training of its own.
    changes = {'train.pipe_devices': 1, 'schedule': options.schedule}
    # What is said of the large model's leaves and of their mean is not about the copies.
    changes |= {'train.ema': 0.0, 'train.learning_rates': {}, 'train.frozen': ()}
    rate = options.learning_rate if num_models > 1 else options.lone_learning_rate
    if rate:
      changes['learning_rate'] = rate
    session = large.with_model(model).with_options(changes)
    recipe = session.training.recipe(session.training.steps(options.epochs))
    return cls(large, session, place, num_models, recipe)

  @property
  def model(self) -> Any:
    """The small model."""
    return self.session.model

  @property
  def num_steps(self) -> int:
    """The steps of each copy."""
    return self.session.training.steps(self.session.config.booster.epochs)

  @property
  def batch_size(self) -> int:
    """The examples of each copy and step; all J together take `config.train.batch_size`."""
    return self.session.config.train.batch_size // self.num_models

  @property
  def sync_every(self) -> int:
    """The steps after which copies are replaced by their mean; 0 is never."""
    epochs = self.session.config.booster.sync_epochs
    return self.session.training.steps(epochs) if self.num_models > 1 and epochs else 0

  @property
  def flops_per_step(self) -> float:
    """The FLOPs of a step of all copies, forward and backward."""
    space = self.session.space
    return 3 * self.batch_size * self.num_models * space.flops(space.all_on())

  def fleet(
    self,
    groups: Sequence[Int[np.ndarray, ' n']],
    seed: int,
    names: Sequence[int] | None = None,
    devices: Sequence[jax.Device] | None = None,
  ) -> Fleet:
    """Returns copies before their first step.

    Args:
      groups: the numbers of the training examples of each.
      seed: names the pools to start from and the order of the examples.
      names: numbers of the copies, where not all are made here.
      devices: default those of the run.
    """
    sync_every = self.sync_every if len(groups) > 1 else 0
    return Fleet(
      self.recipe,
      self.large.in_memory(),
      groups,
      batch_size=self.batch_size,
      seed=seed,
      names=names,
      # Networks that begin apart have nothing in common that could be averaged.
      same_start=self.large.config.booster.join == AVERAGE or sync_every > 0,
      sync_every=sync_every,
      devices=self.large.machine.devices if devices is None else devices,
      chunk_steps=self.large.config.train.chunk_steps,
    )

  def untrained(self, seed: int) -> State:
    """Returns the state of a copy that takes no step."""
    key = jax.random.fold_in(jax.random.key(seed), 0)
    example = self.large.data.train[np.zeros(1, np.int64)][0]
    return processes.to_host(init_state(self.recipe, initial(self.model, key, example)))

  def train(self, groups: Sequence[Int[np.ndarray, ' n']], seed: int, name: str) -> list[State]:
    """Returns the states of all copies after their last step, trained now or restored.

    Args:
      groups, seed: as `fleet` takes them.
      name: of curves and checkpoints.
    """
    labels = [f'cluster_{i}' for i in range(len(groups))] if len(groups) > 1 else ()
    fleet = self.fleet(groups, seed)
    fit(self.session, fleet, self.num_steps, name, Curves(labels, self._scores, self.clock()))
    return fleet.members()

  def briefly_trained(self, seed: int) -> PyTree:
    """Returns `{'params': pool}` of one copy after `config.booster.embedding_epochs` on all
    examples, in batches of the large model's size."""
    config, data, training = self.large.config, self.large.in_memory(), self.session.training
    num_steps = training.steps(config.booster.embedding_epochs)
    fleet = Fleet(
      training.recipe(num_steps),
      data,
      [np.arange(len(data))],
      batch_size=config.train.batch_size,
      seed=seed,
      devices=self.large.machine.devices[:1],
      chunk_steps=config.train.chunk_steps,
    )
    curves = Curves(clock=self.clock())
    fit(self.session, fleet, num_steps, f'embedding-seed{seed}', curves)
    return {'params': fleet.members()[0].params}

  def clock(self, name: str = CLOCK) -> Journal:
    """Returns the journal of the seconds that steps take."""
    return Journal(self.large.rundir.journals / name)

  def _scores(self, fleet) -> dict[str, float]:
    """Of the mean pool where copies are averaged, else means over the copies."""
    pools = [{'params': state.params} for state in fleet.members()]
    if self.large.config.booster.join == AVERAGE:
      pools = [transplant.average(pools)]
    scores = [test_scores(self.session, pool) for pool in pools]
    return {key: float(np.mean([score[key] for score in scores])) for key in scores[0]}
