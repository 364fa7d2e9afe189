"""What a run will cost: said before it starts, and refused where it is more than `config.limit`."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import NamedTuple

from additive_jax.errors import UserError
from additive_jax.experiments.session import Session
from additive_jax.files.progress import duration
from additive_jax.files.quantities import flops_text
from additive_jax.gates.networks import num_networks
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes, workers
from additive_jax.report.wording import counted

log = logging.getLogger('additive_jax')

# What certainly ends in minutes is not timed first: steps, and operations at a slow core's rate.
FEW_STEPS, FEW_FLOPS = 300_000, 2e12
TIMED_STEPS = 20
FEWER = (
  "config.search.method 'evolution' ranks config.search.budget networks in place of all; "
  'config.structures or config.structures_from names those to train'
)


@dataclasses.dataclass(frozen=True)
class Work:
  """What is still to be done in one seed, by this process.

  Attributes:
    networks: how many are ranked or trained.
    trainings: of networks alone.
    alone_steps: of these trainings together.
    pools: how many are trained, in all seeds together.
    pool_steps: of pools, each with the K structures of a step.
    ranked: networks that each pool is judged by.
  """

  networks: int
  trainings: float = 0
  alone_steps: float = 0
  pools: int = 0
  pool_steps: float = 0
  ranked: float = 0

  def network_steps(self, session: Session) -> float:
    """Returns the steps of one network that the trainings of all seeds take together."""
    slots = self.pool_steps * session.config.train.structures_per_step
    return (self.alone_steps + slots) * len(session.seeds)

  def ranking_flops(self, session: Session) -> float:
    """Returns the operations of ranking in all seeds."""
    return self.ranked * judging_flops(session) * len(session.seeds)


class Times(NamedTuple):
  """Seconds that were taken: by a step of one network, by judging one, by compiling."""

  step: float
  judging: float
  compiling: float


def judging_flops(session: Session) -> float:
  """Returns the operations of judging one structure among many on all splits but the training one:
  it takes about two gates of its own, since it shares what comes before with others, and the
  readout."""
  space = session.space
  of_one = (space.fixed_flops or 0) + 2 * max((g.flops or 0 for g in space), default=0)
  return of_one * num_judged_by(session)


def num_judged_by(session: Session) -> int:
  """Returns how many examples of all splits but the training one there are."""
  return sum(len(split) for name, split in session.data.splits.items() if name != 'train')


def check_cost(session: Session, work: Work, shorter: str, words: str = '') -> None:
  """Adds to the plan of a run what it will cost.

  Args:
    shorter: which options shorten it.
    words: what is to be done, where that is not a sweep; not said where it takes minutes at most.

  Raises:
    UserError: where it is estimated to take longer than `config.limit`.
  """
  sweep, words = not words, words or describe(session, work)
  if steps := (work.alone_steps + work.pool_steps) * len(session.seeds):
    of_one = 3.0 * session.config.train.batch_size * session.space.flops(session.space.all_on())
    words = f'{words}, {amounts(steps, work.network_steps(session) * of_one)}'
  seconds, limit = estimate(session, work, words), session.config.limit
  if processes.agree(0 < 3600 * limit < seconds):
    raise UserError(
      f'{words}, would take about {duration(seconds)}: expected at most config.limit {limit:g} '
      f'hours; {shorter}'
    )
  if sweep or seconds:
    session.plan.append(f'{words}: {about(seconds)}')


def check_choice(session: Session) -> None:
  """Says what it costs to choose among very many networks, and to train those that are chosen, as
  `check_cost` does."""
  config, seeds, k = session.config, len(session.seeds), session.config.cotrain.top_k
  ranked = config.search.budget if config.search.method else num_networks(session.space)
  steps = session.training.steps(config.train.epochs)
  pools = steps + session.training.steps(config.cotrain.sweep_epochs) / seeds
  work = Work(ranked, k, k * steps, 1 + seeds, pools, ranked / seeds)
  chosen = f'{counted(ranked, "network")} ranked by a pool, the best {k}'
  words = f'{chosen} trained together and alone with {counted(seeds, "seed")}'
  check_cost(session, work, FEWER, words)


def describe(session: Session, work: Work) -> str:
  """Returns in words what is to be done."""
  structures = 2**session.space.num_gates
  parts = [counted(structures, 'structure')]
  if work.networks != structures:
    parts = [f'{counted(work.networks, "network")} of {parts[0]}']
  if work.trainings:
    alone = round(work.trainings * len(session.seeds))
    parts.append(f'{counted(alone, "training")} of one alone')
  if work.pools:
    parts.append(
      f'{counted(work.pools, "pool")} that {"ranks" if work.pools == 1 else "rank"} them'
    )
  return f'{parts[0]}, {" and ".join(parts[1:]) or "all trained before"}'


def estimate(session: Session, work: Work, words: str = 'a run') -> float:
  """Returns the seconds that the work takes on this machine, from a few timed steps; 0 where it is
  too little to be worth timing.

  Times are those of a network with every other gate on.
  """
  space, size = session.space, session.config.train.batch_size
  structure = Structure(tuple(i % 2 == 0 for i in range(space.num_gates)))
  step_flops = 3 * size * space.flops(structure)  # a backward pass costs about two forward passes
  steps, ranking = work.network_steps(session), work.ranking_flops(session)
  if steps <= FEW_STEPS and steps * step_flops + ranking <= FEW_FLOPS:
    return 0.0
  if processes.is_primary():
    log.info('%s; timing a few steps', words)
  times = _timed(session, structure)
  seconds = steps * times.step + work.trainings * len(session.seeds) * times.judging
  seconds += ranking * times.step / step_flops
  programs = (work.trainings > 0) + (work.pools > 0)
  return seconds / len(workers.workers(session.machine.workers)) + programs * times.compiling


def _timed(session, structure) -> Times:
  """Returns the seconds of a short training, the first of which compiles; those of a step and of
  judging are shared out by their operations, three of a forward pass for each example of a step.
  """
  population = session.population(session.training.recipe(TIMED_STEPS), session.config.seed)
  times = []
  for _ in range(3):  # the first one compiles
    began = time.perf_counter()
    list(population.train([structure], TIMED_STEPS))
    times.append(time.perf_counter() - began)
  least = min(times)
  passes = (3 * TIMED_STEPS * session.config.train.batch_size, num_judged_by(session))
  second = least / sum(passes)
  return Times(second * passes[0] / TIMED_STEPS, second * passes[1], times[0] - least)


def amounts(steps: float, flops: float) -> str:
  """Returns in words how many steps trainings take, and how many operations at most.

  >>> amounts(3000, 4.3e12)
  '3,000 steps, up to 4.3 TFLOP'
  """
  return f'{counted(round(steps), "step")}, up to {flops_text(flops)}'


def about(seconds: float) -> str:
  """Returns an estimate in words; 0 was too short to be timed.

  >>> about(75.0), about(0.0)
  ('about 1 min 15 s with compiling and judging', 'some minutes at most')
  """
  if not seconds:
    return 'some minutes at most'
  return f'about {duration(seconds)} with compiling and judging'
