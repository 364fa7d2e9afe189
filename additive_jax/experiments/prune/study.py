"""The study: a pool, the structures in it that are worth healing, and what they become."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from additive_jax.experiments.arms import Arm, Trained
from additive_jax.experiments.options import refused
from additive_jax.experiments.prune import searching
from additive_jax.experiments.prune.healing import check_healing, healing_arm
from additive_jax.experiments.prune.page import page
from additive_jax.experiments.prune.samples import continuations
from additive_jax.experiments.prune.tables import ALONE, HEALED, POOL, tables
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session, first_input
from additive_jax.experiments.shared import judge_all, shared_arm
from additive_jax.experiments.stored import stored_scores
from additive_jax.experiments.study import Study
from additive_jax.files.journal import Record
from additive_jax.gates.structure import Structure
from additive_jax.run.latency import time_structures
from additive_jax.run.tasks import LOSS

TIMED = 5.0  # seconds that networks are timed for


def check(session: Session) -> None:
  """Everything that can be said before any training."""
  if session.config.num_seeds != 1:
    raise refused(session.config, 'num_seeds', expected='1, since one network is pruned')
  session.machine.check_networks([session.model])
  searching.check(session)
  check_healing(session)
  if session.start is None:
    shared_arm(session, POOL, session.config.train.epochs)


def stages(session: Session, records: Records) -> Iterator[list[Arm]]:
  """The pool, unless it is given, and the healing of the best structures within the budget."""
  del records
  if session.start is None:
    arm = shared_arm(session, POOL, session.config.train.epochs)
    yield [arm]
    variables = arm.train(session.config.seed).variables
  else:
    variables = {'params': session.start}
  line, options = searching.choose(session, variables), session.config.prune
  chosen = searching.candidates(session.space, line, options.candidates)
  judge = functools.partial(judge_healed, variables, chosen)
  arms = [healing_arm(session, HEALED, variables, chosen, judge)]
  if options.alone and len(chosen) > 1:
    first = chosen[:1]
    judge = functools.partial(judge_scores, first)
    arms.append(healing_arm(session, ALONE, variables, first, judge))
  yield arms


def judge_scores(structures: Sequence[Structure], trained: Trained) -> Record:
  """Returns what structures score after healing, and which is best on the split to choose by."""
  bits = np.array([structure.bits for structure in structures])
  scores, task = judge_all(bits, trained), trained.session.task
  known = {task.rank_by: scores.get(f'valid_{task.rank_by}', scores[task.rank_by])}
  best = int(np.argmin(task.cost(known)))
  own = {name: values[best] for name, values in scores.items()}
  texts = list(map(str, structures))
  return {**own, 'structure': texts[best], 'structures': texts, 'scores': scores}


def judge_healed(variables: PyTree, structures: Sequence[Structure], trained: Trained) -> Record:
  """Returns that, and beside it what the full network scores, and the structure before healing;
  how long they take, and how they go on with some texts."""
  session = trained.session
  record = judge_scores(structures, trained)
  chosen, full = session.space.parse(record['structure']), session.space.all_on()
  record['before'] = _scores(session, variables, full)
  record['unhealed'] = _scores(session, variables, chosen)
  x = first_input(session.data)
  seconds = time_structures(session.model, variables, x, [full, chosen], seconds=TIMED)
  record['seconds'] = dict(zip(('before', 'after'), seconds.tolist()))
  if session.task.name == 'language':
    record['tokens'] = jax.tree.leaves(session.data.test[np.zeros(1, np.int64)][1])[0].size
  pools = {'before': (variables, full), 'after': (trained.variables, chosen)}
  record['bytes'] = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
  record['samples'] = continuations(session, pools)
  return record | {'skipped': trained.skipped}


def _scores(session: Session, variables: PyTree, structure: Structure) -> dict[str, float]:
  """Returns the test scores of a structure in a pool."""
  scores: dict[str, Any] = {**session.evaluate(variables, [structure]).scores}
  scores |= stored_scores(session, variables, np.array([structure.bits]))
  if session.data.valid is not None:
    of_valid = session.evaluate(variables, [structure], session.valid).scores
    scores[f'valid_{LOSS}'] = of_valid[LOSS]
  return {key: float(values[0]) for key, values in scores.items()}


STUDY = Study('prune', stages, check=check, tables=tables, page=page)

run = STUDY.run
