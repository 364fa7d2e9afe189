"""What the trainings of a stage will cost: said before the first one, and refused where it is more
than `config.limit`. A sweep says it for the whole run, see `cost`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from additive_jax.errors import UserError
from additive_jax.experiments import cost
from additive_jax.experiments.session import Session
from additive_jax.experiments.standalone import Lone
from additive_jax.files.progress import duration
from additive_jax.parallel import processes
from additive_jax.report.wording import counted

log = logging.getLogger('additive_jax')

SHORTER = 'config.train.epochs shortens the trainings, config.num_seeds makes them fewer'


def check_stage(session: Session, units: Sequence[tuple[int, Any]]) -> None:
  """Logs how many trainings, steps and FLOPs a stage takes, and about how long with compiling and
  judging, from two timed steps of its largest training; what certainly ends in minutes is not
  timed.

  FLOPs are those of all gates on, three forward passes for each example of a step, so at most.

  Args:
    units: pairs of a seed and an arm, those that are still to be trained.

  Raises:
    UserError: where it is estimated to take longer than `config.limit`.
  """
  if session.plan:
    return
  steps = sum(_steps(arm) for _, arm in units)
  flops = [_flops(session, arm) for _, arm in units]
  words = f'{counted(len(units), "training")}, {cost.amounts(steps, sum(flops))}'
  seconds = _seconds(session, units, flops) if steps else 0.0
  if processes.agree(0 < 3600 * session.config.limit < seconds):
    raise UserError(
      f'{words}, would take about {duration(seconds)}: expected at most config.limit '
      f'{session.config.limit:g} hours; {SHORTER}'
    )
  if steps and processes.is_primary():
    log.info('%s: %s', words, cost.about(seconds))


def _steps(arm):
  return arm.stop if isinstance(arm, Lone) else arm.num_steps


def _flops(session, arm) -> float:
  """What a training takes at most."""
  if isinstance(arm, Lone):
    slots, space, structure = 1, session.space, arm.structure
  else:
    session, slots = arm.session, arm.sampler.num_structures
    space, structure = session.space, session.space.all_on()
  return 3.0 * _steps(arm) * slots * session.config.train.batch_size * space.flops(structure)


def _seconds(session, units, flops) -> float:
  """The time of a stage by two steps of its largest training, which compile first as each arm's
  do; 0 where it is not worth timing. Judging goes at the rate of the steps."""
  steps, judging = sum(_steps(arm) for _, arm in units), sum(_judging(arm) for _, arm in units)
  if steps <= cost.FEW_STEPS and sum(flops) + judging <= cost.FEW_FLOPS:
    return 0.0
  if processes.is_primary():
    log.info('%s; timing two steps', counted(len(units), 'training'))
  seed, arm = units[int(np.argmax(flops))]
  if isinstance(arm, Lone):
    work = cost.Work(len(units), len(units) / len(session.seeds), steps / len(session.seeds))
    return cost.estimate(session, work)
  trainer, _ = arm.begin(seed)
  began = time.perf_counter()
  trainer.run(1)  # compiles; the training itself uses the same program
  compiled = time.perf_counter()
  trainer.run(2)
  step = (time.perf_counter() - compiled) / 2
  compiling = max(0.0, compiled - began - step) * len({other.name for _, other in units})
  return step * arm.num_steps * (sum(flops) + judging) / max(flops) + compiling


def _judging(arm) -> float:
  """The operations of judging an arm's structures; a network alone is judged in its program."""
  return 0.0 if isinstance(arm, Lone) else arm.judged * cost.judging_flops(arm.session)
