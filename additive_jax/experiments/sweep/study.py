"""The declaration of the study `sweep`: its arms, and what is judged of each."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from additive_jax.errors import UserError
from additive_jax.experiments import study
from additive_jax.experiments.options import refused
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.shared import check_shared, judge_all, search_pools, shared_arm
from additive_jax.experiments.standalone import rungs
from additive_jax.experiments.sweep.page import page
from additive_jax.experiments.sweep.tables import SHARED, make_tables
from additive_jax.gates.structure import Structure, all_bits
from additive_jax.parallel import processes

STANDALONE = 'standalone'


def _check(session):
  """Everything that can be said before any training."""
  config, num_gates = session.config, session.space.num_gates
  modes, sharded = config.sweep.modes, session.shard[1] > 1
  session.machine.check_experts([session.model])
  if config.sweep.top_k > 2**num_gates:
    most = f'at most 2^{num_gates} = {2**num_gates} structures'
    raise refused(config, 'sweep.top_k', expected=most)
  if config.search.method and SHARED not in modes:
    raise refused(config, 'search.method', 'sweep.modes', expected="'shared' among the modes")
  if config.search.method and sharded:
    raise refused(config, 'shard', 'search.method', expected='no shard')
  if sharded and processes.process()[1] > 1:
    raise UserError(f'config.shard {config.shard!r} in one of several processes: expected no shard')
  if SHARED in modes:
    check_shared(session, _shared_epochs(session))
  if STANDALONE in modes:
    _check_standalone(session)


def _check_standalone(session):
  config, num_gates = session.config, session.space.num_gates
  if not config.search.method:
    all_bits(num_gates)  # says so if there are too many
  num_steps = session.training.steps(config.train.epochs)
  session.training.recipe(num_steps)
  halving, num_rungs = config.sweep.halving, config.sweep.rungs
  if halving and num_steps < halving ** (num_rungs - 1):
    least = f'at least {halving ** (num_rungs - 1)} steps, one for the first rung, not {num_steps}'
    raise refused(config, 'sweep.rungs', 'sweep.halving', expected=least)
  session.check_in_memory("a set that fits, or config.sweep.modes=('shared',)")


def _shared_epochs(session):
  return session.config.sweep.shared_epochs or session.config.train.epochs


def _stages(session: Session, records: Records) -> Iterator[list[Any]]:
  """The shared pool, then structures alone, rung by rung."""
  config, searched = session.config, bool(session.config.search.method)
  bits = None if searched else all_bits(session.space.num_gates)
  if SHARED in config.sweep.modes:
    judge = (lambda trained: {}) if searched else functools.partial(judge_all, bits)
    pool = shared_arm(session, SHARED, _shared_epochs(session), judge)
    yield [pool]
    if searched:
      bits, scores = search_pools(session, lambda: [pool.train(session, s) for s in session.seeds])
      bits = _compared(session, bits, scores.loss.mean(0))
  if STANDALONE in config.sweep.modes:
    yield from rungs(session, records, [Structure(tuple(row)) for row in bits])


def _compared(session, bits, loss):
  """Of a searched set the top K found, and as many at random for comparison."""
  order = np.argsort(loss, kind='stable')
  k = min(session.config.sweep.top_k, len(order))
  others = np.random.Generator(np.random.PCG64(session.config.seed)).permutation(order[k:])
  return bits[[*order[:k], *others[:k]]]


STUDY = study.Study(
  'sweep',
  stages=_stages,
  check=_check,
  tables=make_tables,
  page=page,
  sharded=True,
)

run = STUDY.run
