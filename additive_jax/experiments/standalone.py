"""Structures trained alone: processes and shards share them out, successive halving cuts them."""

from __future__ import annotations

import dataclasses
import functools
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from additive_jax.experiments.averages import EMA
from additive_jax.experiments.left_out import LeftOut, check_learning
from additive_jax.experiments.lone_pools import keep_pool
from additive_jax.experiments.records import Records, lone_name
from additive_jax.experiments.session import Session
from additive_jax.experiments.speed import Clock, say
from additive_jax.files.journal import Record
from additive_jax.files.progress import Progress
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes
from additive_jax.report import statistics
from additive_jax.run.tasks import LOSS
from additive_jax.train.population import Member, Population, Scored
from additive_jax.train.recipe import Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Lone:
  """An arm that is one structure, trained alone.

  Attributes:
    structure: the structure.
    stop: the step at which its training ends.
    crowd: trains it.
    rung: number of the rung of successive halving that ends there.
    may_diverge: whether a loss that is not finite is a result.
    spread: processes share such arms out.
  """

  structure: Structure
  stop: int
  crowd: Crowd = dataclasses.field(repr=False)
  rung: int = 0
  may_diverge: bool = False
  spread: ClassVar[bool] = True

  @property
  def name(self) -> str:
    """The name of the arm."""
    return lone_name(str(self.structure), self.rung)

  @staticmethod
  def train_all(
    units: Sequence[tuple[int, Lone]], total: int
  ) -> Iterator[tuple[int, Lone, Record]]:
    """Yields seed, arm and record of each unit when it is trained; see `Arm.train_all`."""
    if units:
      yield from units[0][1].crowd.train(units, total)


class Crowd:
  """Trains structures alone, as many at a time as there are cores or devices.

  Args:
    session: the run.
    recipe: how each is trained.
    describe: from a seed, an arm and its trained `Member` to what the journal keeps beside scores.
    scores: from what a pool scored to what the journal keeps of it; of the mean of the pool over
      the steps too, where the recipe keeps one.
    keeps_states: whether states are kept, from which arms of a later rung go on.
  """

  def __init__(
    self,
    session: Session,
    recipe: Recipe,
    describe: Callable[[int, Lone, Member], Record],
    scores: Callable[[Scored], Record],
    *,
    keeps_states: bool = False,
  ):
    self.session, self.recipe = session, recipe
    self.describe, self.scores = describe, scores
    self.keeps_states = keeps_states
    self._populations: dict[int, Population] = {}
    self._states: dict[tuple[int, Structure], tuple[int, Any]] = {}

  def train(
    self, units: Sequence[tuple[int, Lone]], total: int
  ) -> Iterator[tuple[int, Lone, Record]]:
    """Yields seed, arm and record of each unit; `total` counts those that have a record too."""
    wanted = {(seed, arm.structure) for seed, arm in units}
    self._states = {unit: state for unit, state in self._states.items() if unit in wanted}
    title = f'alone to step {units[0][1].stop}'
    with Progress(total, title, unit='structure', start=total - len(units)) as progress:
      for seed in sorted({seed for seed, _ in units}):
        arms = [arm for other, arm in units if other == seed]
        for arm, member in self._train_seed(seed, arms):
          record = self.describe(seed, arm, member) | self.scores(member)
          if member.averaged:
            record[EMA] = self.scores(member.averaged)
          yield seed, arm, record
          word = f'{self.session.chosen_word} loss'
          progress.advance(1, **{word: member.chosen['loss']})
          if self.session.stopper.stop_requested:
            return

  def _train_seed(self, seed, arms):
    """In groups that go on from the same step; what another process began starts at 0."""
    if seed not in self._populations:
      self._populations[seed] = self.session.population(self.recipe, seed)
    starts = [self._states.get((seed, arm.structure), (0, None))[0] for arm in arms]
    for start in sorted(set(starts)):
      group = {arm.structure: arm for arm, step in zip(arms, starts) if step == start}
      states = {s: self._states[seed, s][1] for s in group} if start else None
      stop, population = arms[0].stop, self._populations[seed]
      members = population.train(list(group), stop, states=states, start=start)
      for member in self._timed(members, population, stop - start, f'alone-seed{seed}'):
        name = f'{member.structure} alone, seed {seed}'
        check_learning(LeftOut(name, member.skipped, stop), stop, stop)
        if self.keeps_states:
          self._states[seed, member.structure] = stop, processes.to_host(member.state)
        yield group[member.structure], member

  def _timed(self, members, population, num_steps, name):
    """Yields the members, and says how fast they were trained: those of the first round compile."""
    space, first, last = self.session.space, len(population.devices), None
    started, count, flops = 0.0, 0, 0.0
    for member in members:
      if member.state is not last:  # structures that are one network are trained once
        last, count = member.state, count + 1
        flops += space.flops(member.structure) if count > first else 0.0
        started = time.perf_counter() if count == first else started
      seconds = time.perf_counter() - started
      yield member
    if count > first:
      clock = Clock((count - first) * num_steps, seconds)
      examples = clock.steps * population.batch_size
      flops *= num_steps * population.batch_size
      dtype = getattr(self.recipe, 'dtype', None)
      say(self.session, name, clock, examples, flops, population.devices, dtype)


def rung_sizes(session: Session, count: int) -> list[tuple[int, int]]:
  """Returns of each rung the step at which it ends, and how many of `count` structures reach it."""
  num_steps = session.training.steps(session.config.train.epochs)
  halving, num_rungs = session.config.sweep.halving, session.config.sweep.rungs
  if not halving:
    return [(num_steps, count)]
  sizes = []
  for rung in range(num_rungs):
    sizes.append((max(1, round(num_steps * halving ** (rung + 1 - num_rungs))), count))
    count = max(1, count // halving)
  return sizes


def rungs(
  session: Session, records: Records, structures: Sequence[Structure]
) -> Iterator[list[Lone]]:
  """Yields the arms of a standalone sweep, a rung of successive halving at a time.

  Rung r of R ends at step num_steps·η^(r+1−R); the 1/η structures of lowest mean loss over the
  seeds, on the split to choose by, go on to the next. With η = 2, R = 3, 40 steps and 8 structures:

      step   0 ─────── 10 ─────── 20 ─────────────────── 40
      rung       0          1               2
      trained    8          4               2

  Without halving there is one rung. Source: Jamieson & Talwalkar 2016 (arXiv:1502.07943).

  Raises:
    Incomplete: when a rung waits for what other shards have not trained.
  """
  training, halving = session.training, bool(session.config.sweep.halving)
  num_steps = training.steps(session.config.train.epochs)
  columns = operator.attrgetter('columns')
  recipe = training.recipe(num_steps)
  described = functools.partial(_described, session)
  crowd = Crowd(session, recipe, described, columns, keeps_states=halving)
  sizes = rung_sizes(session, len(structures))
  for rung, (stop, _) in enumerate(sizes):
    arms = [Lone(structure, stop, crowd, rung, may_diverge=True) for structure in structures]
    yield arms
    if rung + 1 < len(sizes):
      cost = lambda record: float(session.task.cost(record)) + 0.0 * record[LOSS]  # NaN is last
      by_arm = [[cost(record) for record in records[arm.name]] for arm in arms]
      order = np.argsort(statistics.rank(np.array(by_arm).T.mean(0)))
      structures = [structures[i] for i in sorted(order[: sizes[rung + 1][1]])]


def _described(session: Session, seed: int, arm: Lone, member: Member) -> Record:
  kept: Record = {}
  if session.config.sweep.keep_alone:
    kept = keep_pool(session.rundir, seed, arm.structure, member.state.params)
  record = {'structure': str(arm.structure), 'rung': arm.rung, 'steps': arm.stop}
  return kept | record | {'train_loss': member.train_loss, 'skipped': member.skipped}
