"""Structures trained alone: the executor that processes and shards share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from additive_jax.experiments.session import Session
from additive_jax.files.progress import Progress
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes
from additive_jax.train.population import Member, Population
from additive_jax.train.recipe import Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Lone:
  """A structure that is trained alone.

  Attributes:
    name: of its records.
    structure: the structure.
    stop: the step at which its training ends.
    executor: trains it.
  """

  name: str
  structure: Structure
  stop: int
  executor: Crowd = dataclasses.field(repr=False)


class Crowd:
  """Trains structures alone, as many at a time as there are cores or devices.

  Args:
    recipe: how each is trained.
    judge: from a seed, an arm and its trained `Member` to what the journal keeps.
    title: of the progress bar.
    keeps_states: whether states are kept, from which later arms of the same structures go on.
  """

  spread = True

  def __init__(
    self,
    recipe: Recipe,
    judge: Callable[[int, Lone, Member], dict],
    title: str,
    *,
    keeps_states: bool = False,
  ):
    self.recipe, self.judge, self.title = recipe, judge, title
    self.keeps_states = keeps_states
    self._populations: dict[int, Population] = {}
    self._states: dict[tuple[int, Structure], tuple[int, Any]] = {}

  def __call__(
    self, session: Session, units: Sequence[tuple[int, Lone]], total: int
  ) -> Iterator[tuple[int, Lone, dict]]:
    wanted = {(seed, arm.structure) for seed, arm in units}
    self._states = {unit: state for unit, state in self._states.items() if unit in wanted}
    bar = Progress(total, self.title, unit='structure', start=total - len(units))
    with bar as progress:
      for seed in sorted({seed for seed, _ in units}):
        arms = [arm for other, arm in units if other == seed]
        for start, group in self._by_start(seed, arms):
          for arm, member in self._train(session, seed, start, group):
            yield seed, arm, self.judge(seed, arm, member)
            progress.advance(1, loss=member.loss)
            if session.stopper.stop_requested:
              return

  def population(self, session: Session, seed: int) -> Population:
    """Returns the networks of one seed, all of which start from the same pool."""
    if seed not in self._populations:
      self._populations[seed] = session.population(self.recipe, seed)
    return self._populations[seed]

  def _by_start(self, seed, arms):
    """Arms grouped by the step to go on from; what another process began starts at 0."""
    starts = [self._states.get((seed, arm.structure), (0, None))[0] for arm in arms]
    for start in sorted(set(starts)):
      yield start, [arm for arm, step in zip(arms, starts) if step == start]

  def _train(self, session, seed, start, arms):
    structures, stop = [arm.structure for arm in arms], arms[0].stop
    states = {s: self._states[seed, s][1] for s in structures} if start else None
    population = self.population(session, seed)
    by_structure = {arm.structure: arm for arm in arms}
    for member in population.train(structures, stop, states=states, start=start):
      if self.keeps_states:
        self._states[seed, member.structure] = stop, processes.to_host(member.state)
      yield by_structure[member.structure], member
