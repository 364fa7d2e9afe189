"""Structures trained alone: processes and shards share them out, successive halving cuts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from additive_jax.experiments.records import Records, lone_name
from additive_jax.experiments.session import Session
from additive_jax.files.progress import Progress
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes
from additive_jax.report import statistics
from additive_jax.train.population import Member, Population
from additive_jax.train.recipe import Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Lone:
  """An arm that is one structure, trained alone.

  Attributes:
    structure: the structure.
    stop: the step at which its training ends.
    executor: trains it.
    rung: number of the rung of successive halving that ends there.
  """

  structure: Structure
  stop: int
  executor: Crowd = dataclasses.field(repr=False)
  rung: int = 0

  @property
  def name(self) -> str:
    """The name of the arm."""
    return lone_name(str(self.structure), self.rung)


class Crowd:
  """Trains structures alone, as many at a time as there are cores or devices."""

  spread = True

  def __init__(
    self,
    recipe: Recipe,
    judge: Callable[[int, Lone, Member], dict],
    *,
    keeps_states: bool = False,
  ):
    """Trains nothing yet.

    Args:
      recipe: how each is trained.
      judge: from a seed, an arm and its trained `Member` to what the journal keeps.
      keeps_states: whether states are kept, from which arms of a later rung go on.
    """
    self.recipe, self.judge, self.keeps_states = recipe, judge, keeps_states
    self._populations: dict[int, Population] = {}
    self._states: dict[tuple[int, Structure], tuple[int, Any]] = {}

  def __call__(
    self, session: Session, units: Sequence[tuple[int, Lone]], total: int
  ) -> Iterator[tuple[int, Lone, dict]]:
    """Yields seed, arm and record of each unit when it is trained; see `arms.Executor`."""
    wanted = {(seed, arm.structure) for seed, arm in units}
    self._states = {unit: state for unit, state in self._states.items() if unit in wanted}
    title = f'alone to step {units[0][1].stop}' if units else 'alone'
    bar = Progress(total, title, unit='structure', start=total - len(units))
    with bar as progress:
      for seed in sorted({seed for seed, _ in units}):
        arms = [arm for other, arm in units if other == seed]
        for start, group in self._by_start(seed, arms):
          for arm, member in self._train(session, seed, start, group):
            yield seed, arm, self.judge(seed, arm, member)
            progress.advance(1, loss=member.loss)
            if session.stopper.stop_requested:
              return

  def _by_start(self, seed, arms):
    """Arms grouped by the step to go on from; what another process began starts at 0."""
    starts = [self._states.get((seed, arm.structure), (0, None))[0] for arm in arms]
    for start in sorted(set(starts)):
      yield start, [arm for arm, step in zip(arms, starts) if step == start]

  def _train(self, session, seed, start, arms):
    if seed not in self._populations:
      self._populations[seed] = session.population(self.recipe, seed)
    by_structure = {arm.structure: arm for arm in arms}
    states = {s: self._states[seed, s][1] for s in by_structure} if start else None
    members = self._populations[seed].train(
      list(by_structure), arms[0].stop, states=states, start=start
    )
    for member in members:
      if self.keeps_states:
        self._states[seed, member.structure] = arms[0].stop, processes.to_host(member.state)
      yield by_structure[member.structure], member


def rungs(
  session: Session, records: Records, structures: Sequence[Structure]
) -> Iterator[list[Lone]]:
  """Yields the arms of a standalone sweep, a rung of successive halving at a time.

  Rung r of R ends at step num_steps·η^(r+1−R); the 1/η structures of lowest mean loss over the
  seeds go on to the next. With η = 2, R = 3, 40 steps and 8 structures:

      step   0 ─────── 10 ─────── 20 ─────────────────── 40
      rung       0          1               2
      trained    8          4               2

  Without halving there is one rung. Source: Jamieson & Talwalkar 2016 (arXiv:1502.07943).

  Raises:
    Incomplete: when a rung waits for what other shards have not trained.
  """
  halving, num_steps = (
    session.config.sweep.halving,
    session.training.steps(session.config.train.epochs),
  )
  num_rungs = session.config.sweep.rungs if halving else 1
  crowd = Crowd(session.training.recipe(num_steps), _record, keeps_states=bool(halving))
  for rung in range(num_rungs):
    stop = max(1, round(num_steps * halving ** (rung + 1 - num_rungs))) if halving else num_steps
    arms = [Lone(structure, stop, crowd, rung) for structure in structures]
    yield arms
    if rung + 1 < num_rungs:
      by_arm = [[record['loss'] for record in records[arm.name]] for arm in arms]
      order = np.argsort(statistics.rank(np.array(by_arm).T.mean(0)))
      structures = [structures[i] for i in sorted(order[: max(1, len(structures) // halving)])]


def _record(seed: int, arm: Lone, member: Member) -> dict[str, Any]:
  del seed
  return {
    'structure': str(arm.structure),
    'rung': arm.rung,
    'steps': arm.stop,
    'loss': member.loss,
    'accuracy': member.accuracy,
    'train_loss': member.train_loss,
    'skipped': member.skipped,
  }
