"""Arms: ways of training that a study compares, and how they are executed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from additive_jax.experiments.fit import PLAIN, Curves, fit
from additive_jax.experiments.scores import evaluate
from additive_jax.experiments.session import Session
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


SEED = Start()


def from_seed(session: Session, seed: int) -> Start:
  """Returns the start from the pool that the seed names."""
  del session, seed
  return SEED


@dataclasses.dataclass(frozen=True)
class Trained:
  """An arm after its last step, in one seed.

  Attributes:
    arm: the arm.
    session: the run with the arm's model.
    seed: the seed.
    trainer: the trainer, which holds the last state.
    variables: `{'params': pool}`, a copy on the host.
  """

  arm: Any
  session: Session
  seed: int
  trainer: Trainer
  variables: Any

  @property
  def skipped(self) -> int:
    """The number of slots that were left out because their loss or gradient was not finite."""
    return int(processes.to_host(self.trainer.sharded_state.skipped))


def scores_on_test(trained: Trained) -> dict[str, Any]:
  """Returns loss and accuracy of the full network on the test split, its FLOPs and parameters."""
  session, full = trained.session, trained.session.space.all_on()
  scores = evaluate(session, trained.variables, [full])
  return {
    'loss': float(scores.loss[0]),
    'accuracy': float(scores.accuracy[0]),
    'flops': session.space.flops(full),
    'params': session.space.params(full),
    'skipped': trained.skipped,
  }


class Executor(Protocol):
  """Trains arms and yields what the journal keeps of each.

  Attributes:
    spread: whether several processes share the arms out, instead of training each together.
  """

  spread: bool

  def __call__(
    self, session: Session, units: Sequence[tuple[int, Any]], total: int
  ) -> Iterator[tuple[int, Any, dict]]:
    """Yields (seed, arm, record) for each of `units`, pairs of a seed and an arm.

    Args:
      session: the run.
      units: those that have no record yet.
      total: how many there are with those that have one.
    """


class InTurn:
  """Trains one arm after the other, each as one pool over all devices of the run."""

  spread = False

  def __call__(
    self, session: Session, units: Sequence[tuple[int, Arm]], total: int
  ) -> Iterator[tuple[int, Arm, dict]]:
    del total
    for seed, arm in units:
      start = arm.begin(session, seed)
      trained = arm.train(session, seed, start)
      yield seed, arm, {**start.facts, **arm.judge(trained)}


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
  """One way of training a pool, which a study compares with others over the seeds.

  Attributes:
    name: unique in its study; names the arm's records, curves and checkpoints.
    recipe: how each step is taken; the same object in every seed, so that it compiles once.
    sampler: draws the structures of each step.
    num_steps: of the training.
    start: gives the `Start` from a session and a seed.
    judge: gives what the journal keeps of a trained pool: a dict of JSON values.
    own_session: the run with this arm's model and options, where they are not the run's.
    tag: names curves and checkpoints in place of `name`.
    curves: what the curves show beside the training loss.
    executor: what trains arms of this kind.
  """

  name: str
  recipe: Recipe
  sampler: Sampler
  num_steps: int
  start: Callable[[Session, int], Start] = from_seed
  judge: Callable[[Trained], dict] = scores_on_test
  own_session: Session | None = None
  tag: str = ''
  curves: Curves = PLAIN
  executor: Executor = dataclasses.field(default=InTurn(), repr=False)

  def begin(self, session: Session, seed: int) -> Start:
    """Returns where the training of one seed starts."""
    return self.start(self.own_session or session, seed)

  def train(self, session: Session, seed: int, start: Start = SEED, *, folder: str = '') -> Trained:
    """Returns the arm after its last step, trained now or restored from its last checkpoint.

    Args:
      session: the run.
      seed: the seed.
      start: what `begin` gave.
      folder: of the checkpoints, and name of the curves; '' is the tag with the seed.
    """
    session = start.session or self.own_session or session
    sampler = self.sampler if start.sampler is None else start.sampler
    trainer = session.trainer(self.recipe, sampler, seed, start.state)
    folder = folder or f'{self.tag or self.name}-seed{seed}'
    fit(session, trainer, self.num_steps, folder, self.curves)
    return Trained(self, session, seed, trainer, processes.to_host(trainer.variables))
