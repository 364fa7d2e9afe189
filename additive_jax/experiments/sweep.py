"""Exp 1: ranks the structures of a model, each trained alone and all in one shared pool."""

from __future__ import annotations

import dataclasses
import logging
from typing import Unpack

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from additive_jax.errors import UserError
from additive_jax.experiments import sweep_report
from additive_jax.experiments.options import parse_shard
from additive_jax.experiments.results import read_results, run_once, write_results
from additive_jax.experiments.session import Opening, Session
from additive_jax.experiments.shared import check_shared, rank_shared, search_shared, shared_epochs
from additive_jax.experiments.standalone import train_standalone
from additive_jax.gates.structure import Structure, all_bits
from additive_jax.parallel import processes
from additive_jax.report import rankings, statistics

log = logging.getLogger('additive_jax')

TABLES = ('structures', 'effects', 'interactions')


@dataclasses.dataclass(frozen=True)
class SweepResult:
  """What a sweep found; every part is also a file of the run directory.

  Attributes:
    table: one row per structure, best first (`structures.csv`).
    effects: main effect of each gate on the loss, with its interval (`effects.csv`).
    interactions: pairwise interactions of the gates, [n, n] (`interactions.csv`).
    agreement: how well the shared pool ranks the standalone losses, and the noise ceiling; empty
      unless both modes ran.
    summary: the headline figures (`summary.json`).
    complete: False for one shard of several, which leaves only its journal.
  """

  table: pd.DataFrame
  effects: pd.DataFrame
  interactions: pd.DataFrame
  agreement: dict
  summary: dict
  complete: bool = True


def run(config: ConfigDict, workdir=None, **opening: Unpack[Opening]) -> SweepResult:
  """Runs Exp 1, or goes on with it, and writes its run directory.

  Args:
    config: as in `configs/default.py`; see its sections `train`, `sweep`, `sampler` and `search`.
    workdir: the run directory; None is `runs/<name>-<hash of the config>`.
    opening: what else may be given, see `session.Opening`.

  Raises:
    UserError: for options that make no sense.
    Stopped: when the run was asked to stop; the same call goes on.
  """
  return run_once(config, workdir, work=_run, read=_read, check=_check, **opening)


def _check(session):
  """Everything that can be said before any training."""
  session.check_experts([session.model])
  config, num_gates = session.config, session.space.num_gates
  modes, sharded = config.sweep.modes, parse_shard(config.shard)[1] > 1
  if config.sweep.top_k > 2**num_gates:
    raise UserError(
      f'config.sweep.top_k {config.sweep.top_k}: expected at most 2^{num_gates} = {2**num_gates} '
      'structures'
    )
  if config.search.method and 'shared' not in modes:
    raise UserError(
      f"config.search.method {config.search.method!r} needs 'shared' in config.sweep.modes: "
      f'got {tuple(modes)}'
    )
  if config.search.method and sharded:
    raise UserError(f'config.shard {config.shard!r} of a search: expected no shard')
  if sharded and processes.process()[1] > 1:
    raise UserError(f'config.shard {config.shard!r} in one of several processes: expected no shard')
  if 'shared' in modes:
    check_shared(session, shared_epochs(session))
  if 'standalone' in modes:
    _check_standalone(session)


def _check_standalone(session):
  config, num_gates = session.config, session.space.num_gates
  if not config.search.method:
    all_bits(num_gates)  # says so if there are too many
  num_steps = session.steps(config.train.epochs)
  session.recipe(num_steps)
  halving, rungs = config.sweep.halving, config.sweep.rungs
  if halving and num_steps < halving ** (rungs - 1):
    raise UserError(
      f'config.sweep.rungs {rungs} of halving {halving} in {num_steps} steps: expected at least '
      f'{halving ** (rungs - 1)} steps, one for the first rung'
    )
  session.check_in_memory("a set that fits, or config.sweep.modes=('shared',)")


def _run(session: Session) -> SweepResult:
  config, num_gates = session.config, session.space.num_gates
  shard, num_shards = parse_shard(config.shard)
  shared = None
  if config.search.method:
    bits, shared = search_shared(session)
  else:
    bits = all_bits(num_gates)
    if 'shared' in config.sweep.modes:
      shared = rank_shared(session, bits, shard, num_shards)
  alone = None
  if 'standalone' in config.sweep.modes:
    chosen = _standalone_set(session, bits, shared)
    parts = (shard, num_shards) if num_shards > 1 else processes.process()
    alone = train_standalone(session, chosen, *parts)
  if num_shards > 1:
    log.info('shard %s is done; run again without config.shard to merge', config.shard)
    empty = pd.DataFrame()
    return SweepResult(empty, empty, empty, {}, {}, complete=False)
  result = _analyse(session, bits, alone, shared)
  page = sweep_report.page(session, result, session.metrics.read(session.rundir.path))
  tables = dict(zip(TABLES, (result.table, result.effects, result.interactions)))
  write_results(session, tables, result.summary, page)
  return _read(session.rundir)


def _standalone_set(session, bits, shared):
  """All structures; of a searched set the top K found, and as many at random for comparison."""
  if not session.config.search.method:
    return [Structure(tuple(row)) for row in bits]
  order = np.argsort(shared.loss.mean(0), kind='stable')
  k = min(session.config.sweep.top_k, len(order))
  rest = np.random.Generator(np.random.PCG64(session.config.seed)).permutation(order[k:])
  return [Structure(tuple(bits[i])) for i in [*order[:k], *rest[:k]]]


def _analyse(session: Session, bits, alone, shared) -> SweepResult:
  names, config = session.space.names, session.config
  texts = [str(Structure(tuple(row))) for row in bits]
  flops, params = session.space.costs(bits)
  table = pd.DataFrame({'structure': texts})
  agreement = {}
  if shared is not None:
    table['shared_loss'], table['shared_loss_ci95'] = statistics.mean_and_ci(shared.loss)
    table['shared_accuracy'] = statistics.mean_and_ci(shared.accuracy)[0]
    table['shared_rank'] = statistics.rank(table['shared_loss'])
  truth = None if shared is None else shared.loss
  if alone is not None:
    table = table.merge(alone.table, how='left', on='structure')
    # Structures are compared after the same training: that of successive halving's first rung.
    truth = alone.first_rung(texts)
    if shared is not None:
      both = np.isfinite(truth).all(0)
      k = min(config.sweep.top_k, max(1, int(both.sum()) // 4))
      predicted = table['shared_loss'].to_numpy()[both]
      agreement = rankings.compare_rankings(predicted, truth[:, both], k)
  else:
    for column in ('loss', 'accuracy', 'loss_ci95'):
      table[column] = table[f'shared_{column}']
  table['flops'], table['params'] = flops, params
  table['rank'] = _rank(table)
  steps = table.get('steps', pd.Series(0, table.index))
  longest = (steps == steps.max()).to_numpy()  # those that successive halving dropped stand apart
  table['pareto'] = statistics.pareto_front(flops, table['loss'].where(longest).to_numpy())
  # Of a searched set only few are trained alone.
  effects, pairs = _effects(bits, shared.loss if config.search.method else truth, names)
  order = np.argsort(table['rank'], kind='stable')
  table = table.iloc[order].reset_index(drop=True)
  first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
  table = table[first + [column for column in table if column not in first]]
  ceiling = rankings.noise_ceiling(truth[:, np.isfinite(truth).all(0)])
  summary = {
    'experiment': 'sweep',
    'data': session.data.name,
    'num_gates': len(names),
    'num_structures': len(table),
    'num_seeds': len(session.seeds),
    'best_structure': table['structure'][0],
    'best_loss': table['loss'][0],
    'best_accuracy': table['accuracy'][0],
    'all_on_rank': _rank_of(table, '1' * len(names)),
    'pareto': table.loc[table['pareto'], 'structure'].tolist(),
    'noise_ceiling': ceiling._asdict(),
    'shared_against_standalone': agreement,
  }
  interactions = pd.DataFrame(pairs, columns=list(names))
  interactions.insert(0, 'gate', names)
  return SweepResult(table, effects, interactions, agreement, summary)


def _rank(table):
  """Ranks by loss, what was not trained alone by its loss in the shared pool, behind the rest.

  After successive halving, structures that were trained longer come first.
  """
  keys = [table[key].to_numpy() for key in ('shared_loss', 'loss') if key in table]
  if 'steps' in table:
    keys.append(-table['steps'].to_numpy())
  ranks = np.empty(len(table), np.int64)
  ranks[np.lexsort(keys)] = np.arange(1, len(table) + 1)
  return ranks


def _effects(bits, by_seed, names):
  usable = np.isfinite(by_seed).all(0)
  frame = statistics.effect_table(bits[usable], by_seed[:, usable], names)
  full = len(bits) == 2 ** bits.shape[1] and usable.all()
  mean = by_seed.mean(0)
  if full:
    return frame, statistics.interactions(mean)
  return frame, statistics.effects_from_sample(bits[usable], mean[usable])[1]


def _rank_of(table, structure):
  found = table.loc[table['structure'] == structure, 'rank']
  return int(found.iloc[0]) if len(found) else None


def _read(rundir):
  tables, summary = read_results(rundir, TABLES)
  return SweepResult(*tables, summary['shared_against_standalone'], summary)
