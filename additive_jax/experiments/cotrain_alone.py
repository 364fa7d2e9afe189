"""The structures of Exp 2 trained by themselves."""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Sequence

from jaxtyping import PyTree

from additive_jax.experiments.arms import Arm, Trained
from additive_jax.experiments.lone_pools import is_sound, keep_pool, pool_file
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.standalone import Crowd, Lone
from additive_jax.files.journal import Record
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes
from additive_jax.train.population import Member
from additive_jax.train.samplers import listed

log = logging.getLogger('additive_jax')


def alone_arms(
  session: Session,
  records: Records,
  structures: Sequence[Structure],
  num_steps: int,
  seeds: Sequence[int],
) -> list[Lone] | list[Arm]:
  """Returns the arms of structures by themselves: side by side, or one after the other where the
  data is read as they are trained.

  Args:
    num_steps: of each.
    seeds: those whose networks will be read again; one that is damaged is trained anew.
  """

  def keep(seed: int, structure: Structure, params: PyTree) -> Record:
    write = processes.is_primary() or in_memory
    return keep_pool(session.rundir, seed, structure, params, write=write)

  def describe(seed: int, arm: Lone, member: Member) -> Record:
    return keep(seed, arm.structure, member.state.params) | {'skipped': member.skipped}

  def judge_arm(structure: Structure, trained: Trained) -> Record:
    scores = session.evaluate(trained.variables, [structure]).scores
    values = {key: float(score[0]) for key, score in scores.items()}
    values |= {'skipped': trained.skipped}
    return keep(trained.seed, structure, trained.variables['params']) | values

  in_memory = session.data.train.in_memory and session.data.test.in_memory
  recipe = session.training.recipe(num_steps)
  for seed in seeds:
    for structure in structures:
      _forget_damaged(session, records, seed, structure)
  if in_memory:
    crowd = Crowd(session, recipe, describe, operator.attrgetter('scores'))
    return [Lone(structure, num_steps, crowd) for structure in structures]
  alone = recipe.alone()
  return [
    Arm(
      str(structure),
      session,
      alone,
      listed([structure], session.space.num_gates),
      num_steps,
      judge=functools.partial(judge_arm, structure),
      tag=f'alone-{structure}-seed{{seed}}',
    )
    for structure in structures
  ]


def _forget_damaged(session, records, seed, structure):
  """Drops the record of a structure whose network is damaged, so that it is trained again."""
  record, path = records.get(str(structure), seed), pool_file(session.rundir, seed, structure)
  if record is None or is_sound(path, record['crc32']):
    return
  log.warning('%s is damaged or missing: the structure is trained alone again', path)
  records.forget(str(structure), seed)
