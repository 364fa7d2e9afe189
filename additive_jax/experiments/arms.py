"""Arms: ways of training a pool, which a study compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import PyTree

from additive_jax.experiments.averages import EMA
from additive_jax.experiments.fit import PLAIN, Curves, fit
from additive_jax.experiments.options import PLACEMENT, identity
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Record, to_plain
from additive_jax.files.rundir import flatten
from additive_jax.models.identity import describe
from additive_jax.parallel import processes
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import Sampler
from additive_jax.train.state import State
from additive_jax.train.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Start:
  """Where a training begins, and what of it depends on the seed.

  Attributes:
    state: of the trainer; None for the pool that the seed names.
    facts: what making the state gave, for the arm's record.
    session, sampler: in place of the arm's.
  """

  state: State | None = None
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  session: Session | None = None
  sampler: Sampler | None = None


@dataclasses.dataclass(frozen=True)
class Trained:
  """An arm after its last step in one seed.

  Attributes:
    arm: the arm.
    seed: the seed.
    trainer: holds the last state.
    variables: `{'params': pool}`, a copy on the host.
    facts: those of the start.
    averaged: the mean of the pool over the steps, where `config.train.ema` keeps one.
  """

  arm: Arm
  seed: int
  trainer: Trainer
  variables: PyTree
  facts: Mapping[str, Any]
  averaged: PyTree | None = None

  @property
  def session(self) -> Session:
    """The run with the arm's model."""
    return self.arm.session

  @property
  def skipped(self) -> int:
    """The number of slots that were left out because their loss or gradient was not finite."""
    return int(processes.to_host(self.trainer.sharded_state.skipped))


def full_network(trained: Trained) -> dict[str, Any]:
  """Returns loss and metrics of the full network on the test split, its FLOPs and parameters."""
  space = trained.session.space
  costs = {'flops': space.flops(space.all_on()), 'params': space.params(space.all_on())}
  return trained.session.scores(trained.variables) | costs | {'skipped': trained.skipped}


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
  """One way of training a pool, which a study compares with others over the seeds.

  Attributes:
    name: unique in its study; names the arm's records.
    session: the run, with this arm's model and options.
    recipe: how each step is taken; the same object in every seed, so that it compiles once.
    sampler: draws the structures of each step.
    num_steps: of the training.
    start: gives the `Start` from a seed.
    judge: gives what the journal keeps of a trained pool: a dict of JSON values.
    tag: names curves and checkpoints, in place of `<name>-seed<seed>`.
    curves: what the curves show beside the training loss.
    judged: how many structures `judge` looks at, for the estimate of its time.
    spread: whether several processes share the arms out, instead of training each together.
  """

  name: str
  session: Session
  recipe: Recipe
  sampler: Sampler
  num_steps: int
  start: Callable[[int], Start] = lambda seed: Start()
  judge: Callable[[Trained], dict[str, Any]] = full_network
  tag: str = ''
  curves: Curves = PLAIN
  judged: int = 1
  spread: ClassVar[bool] = False

  def described(self) -> dict[str, Any]:
    """Returns what makes the arm: its options, but where it is computed, its steps, loss and
    sampler."""
    options = flatten(to_plain(identity(self.session.config)), PLACEMENT)
    return options | {
      'steps': self.num_steps,
      'loss': describe(self.recipe.loss.whole()),
      'average': self.recipe.average,
      'sampler': describe(self.sampler),
    }

  def begin(self, seed: int) -> tuple[Trainer, Start]:
    """Returns the trainer of the arm before its first step, and what that begins with."""
    start = self.start(seed)
    session = start.session or self.session
    sampler = self.sampler if start.sampler is None else start.sampler
    return session.trainer(self.recipe, sampler, seed, start.state), start

  def train(self, seed: int) -> Trained:
    """Returns the arm after its last step, trained now or restored from its last checkpoint."""
    trainer, start = self.begin(seed)
    tag = self.tag or f'{self.name}-seed{{seed}}'
    fit(start.session or self.session, trainer, self.num_steps, tag.format(seed=seed), self.curves)
    pools = processes.to_host((trainer.variables, trainer.averaged))
    return Trained(self, seed, trainer, pools[0], start.facts, pools[1])

  @staticmethod
  def train_all(units: Sequence[tuple[int, Arm]], total: int) -> Iterator[tuple[int, Arm, Record]]:
    """Trains arms of this kind; yields (seed, arm, record) when one is judged.

    Args:
      units: pairs of a seed and an arm that have no record yet.
      total: how many there are with those that have one.
    """
    del total
    for seed, arm in units:
      trained = arm.train(seed)
      record = {**trained.facts, **arm.judge(trained)}
      if trained.averaged is not None:
        record[EMA] = arm.judge(dataclasses.replace(trained, variables=trained.averaged))
      yield seed, arm, record
