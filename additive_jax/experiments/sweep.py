"""Exp 1: ranks the structures of a model, each trained alone and all in one shared pool.

See the sections `sweep`, `sampler` and `search` of the options.
`run` gives a result with:

  table         structures.csv: a row for each structure, best first
  effects       effects.csv: main effect of each gate on the loss, with its interval
  interactions  interactions.csv: interactions of gates in pairs
  stored        stored.csv: of a network with BatchNorms, see `stored.stored_table`
  agreement     how well the shared pool ranks the standalone losses, and the noise ceiling
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from additive_jax.errors import UserError
from additive_jax.experiments.cost import Work, check_cost
from additive_jax.experiments.options import Options, refused
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.shared import (
  MOST_TESTED,
  check_shared,
  judge_to_choose,
  most_networks,
  of_networks,
  read_search,
  read_tested,
  search_pools,
  shared_arm,
  test_pools,
)
from additive_jax.experiments.split_pools import GATE, check_split, split_arm
from additive_jax.experiments.standalone import Lone, rung_sizes, rungs
from additive_jax.experiments.stored import PREFIX, scores_with_stored, stored_table
from additive_jax.experiments.study import Result, Study
from additive_jax.experiments.sweep_alone import Alone, with_differences
from additive_jax.experiments.sweep_page import page
from additive_jax.gates.networks import all_networks, num_networks, places_of
from additive_jax.gates.structure import ENUMERABLE_GATES, Structure, all_bits
from additive_jax.parallel import processes
from additive_jax.report import rankings, statistics
from additive_jax.report.comparison import structures_first
from additive_jax.run.tasks import LOSS, Task

STANDALONE, SHARED = 'standalone', 'shared'
MANY = 4096  # networks, of which more are searched
BY_ITSELF = 'evolution'
SHORTER = (
  "config.search.method 'evolution' trains the best alone and no others, config.sweep.modes "
  "('shared',) none; config.sweep.halving and config.train.epochs shorten the trainings, "
  'config.shard shares them out'
)


def searched(session: Session) -> Session:
  """Returns the run as it is, or with a search of its own where nobody asked for one: of more than
  4,096 networks those to train alone are found in the shared pool, and of more than can be listed
  all."""
  config, networks = session.config, num_networks(session.space)
  several = MANY if STANDALONE in config.sweep.modes else 1 << ENUMERABLE_GATES
  alone = SHARED not in config.sweep.modes or session.shard[1] > 1
  if config.search.method or alone or networks <= several:
    return session
  return session.with_options({'search.method': BY_ITSELF})


def _check(session):
  """Everything that can be said before any training."""
  session = searched(session)
  config, networks = session.config, num_networks(session.space)
  modes, sharded = config.sweep.modes, session.shard[1] > 1
  session.machine.check_networks([session.model])
  # The default, which nobody asked for, may be more than there are.
  if config.sweep.top_k > networks and config.sweep.top_k != Options().sweep.top_k:
    raise refused(config, 'sweep.top_k', expected=f'at most {most_networks(session.space)}')
  if config.search.method and SHARED not in modes:
    raise refused(config, 'search.method', 'sweep.modes', expected="'shared' among the modes")
  if config.search.method and sharded:
    raise refused(config, 'shard', 'search.method', expected='no shard')
  if sharded and processes.process()[1] > 1:
    raise UserError(f'config.shard {config.shard!r} in one of several processes: expected no shard')
  if SHARED in modes:
    check_shared(session, _shared_epochs(session))
    if config.sweep.split_after:
      check_split(session)
  if STANDALONE in modes:
    _check_standalone(session)
  check_cost(session, _work(session), SHORTER)


def _work(session) -> Work:
  """What a sweep has still to do."""
  config, networks = session.config, num_networks(session.space)
  searched, modes = config.search.method, config.sweep.modes
  trained = 2 * config.sweep.top_k if searched else networks
  sizes = rung_sizes(session, trained) if STANDALONE in modes else []
  trainings = sum(count for _, count in sizes)
  starts = [0, *(stop for stop, _ in sizes)]
  steps = sum((stop - start) * count for (stop, count), start in zip(sizes, starts))
  # Shards and processes share out what is not in the journals yet.
  records, seeds = Records(session.rundir, 'sweep', session.seeds), len(session.seeds)
  pools = sum(not records.get(SHARED, seed) for seed in session.seeds) if SHARED in modes else 0
  done = len(records) - (seeds - pools if SHARED in modes else 0)
  left = max(0.0, 1 - done / (trainings * seeds)) if trainings else 0.0
  share = left / (session.shard[1] if session.shard[1] > 1 else processes.process()[1])
  ranked = config.search.budget if searched else networks
  each = pools / seeds  # of the pools of a run, still to be trained and ranked by
  pool_steps = session.training.steps(_shared_epochs(session)) * each if pools else 0
  return Work(ranked, trainings * share, steps * share, pools, pool_steps, ranked * each)


def _check_standalone(session):
  config = session.config
  if not config.search.method:
    all_networks(session.space)  # says so if there are too many
  num_steps = session.training.steps(config.train.epochs)
  session.training.recipe(num_steps)
  halving, num_rungs = config.sweep.halving, config.sweep.rungs
  if halving and num_steps < halving ** (num_rungs - 1):
    least = f'at least {halving ** (num_rungs - 1)} steps, one for the first rung, not {num_steps}'
    raise refused(config, 'sweep.rungs', 'sweep.halving', expected=least)
  session.in_memory("config.sweep.modes=('shared',)")


def _shared_epochs(session):
  return session.config.sweep.shared_epochs or session.config.train.epochs


def _stages(session: Session, records: Records) -> Iterator[list[Any]]:
  """The shared pool, then structures alone, rung by rung."""
  session = searched(session)
  modes, epochs = session.config.sweep.modes, _shared_epochs(session)
  if session.config.search.method:
    pool = shared_arm(session, SHARED, epochs, judge=lambda trained: {})
    yield [pool]
    bits, scores = search_pools(session, lambda: map(pool.train, session.seeds))
    mean = session.task.cost(scores.scores).mean(0)
    if STANDALONE not in modes:
      _test(session, pool, bits, mean)
    bits = _compared(session, bits, mean)
  else:
    bits = all_networks(session.space)
    if SHARED in modes:
      pool = _pool_of_all(session, epochs, bits)
      yield [pool]
      if STANDALONE not in modes and len(bits) > MOST_TESTED:
        by = session.task.rank_by
        values = [of_networks(session.space, record[by]) for record in records[SHARED]]
        _test(session, pool, bits, session.task.cost({by: np.mean(values, axis=0)}))
  if STANDALONE in modes:
    yield from rungs(session, records, [Structure(tuple(row)) for row in bits])


def _pool_of_all(session, epochs, bits):
  """The arm of a pool in which all structures are judged."""
  if session.config.sweep.split_after:
    return split_arm(session, SHARED, session.training.steps(epochs), bits)
  judge = functools.partial(judge_to_choose, bits)
  return shared_arm(session, SHARED, epochs, judge=judge)


def _test(session, pool, bits, cost):
  """Judges what was chosen in the pools on the test split."""
  best_first = bits[np.argsort(cost, kind='stable')]
  test_pools(session, lambda: map(pool.train, session.seeds), best_first)


def _compared(session, bits, cost):
  """Of a searched set the top K found, and as many at random for comparison."""
  order = np.argsort(cost, kind='stable')
  k = min(session.config.sweep.top_k, len(order))
  others = np.random.Generator(np.random.PCG64(session.config.seed)).permutation(order[k:])
  return bits[[*order[:k], *others[:k]]]


def _tables(session: Session, records: Records) -> Result:
  """Returns the tables `structures`, `effects` and `interactions`, and the summary."""
  session = searched(session)
  config, names, task = session.config, session.space.names, session.task
  by, columns = task.rank_by, task.scores
  bits, shared = _in_pool(session, records)
  texts = [str(Structure(tuple(row))) for row in bits]
  alone = Alone(records) if any(isinstance(arm, Lone) for arm in records.arms.values()) else None
  table, agreement, diverged = pd.DataFrame({'structure': texts}), {}, []
  if shared is not None:
    table['shared_loss'], table['shared_loss_ci95'] = statistics.mean_and_ci(shared[LOSS])
    for name, values in shared.items():
      table[f'shared_{name}'] = statistics.mean_and_ci(values)[0]
    table = with_differences(table, f'shared_{LOSS}', shared[LOSS])
    table['shared_rank'] = statistics.rank(task.cost({by: table[f'shared_{by}']}))
  if alone is not None:
    table = table.merge(alone.table(columns), how='left', on='structure')
    diverged = [text for text in texts if text in alone.diverged]
    # Structures are compared after the same training: that of successive halving's first rung.
    loss = alone.values(texts, LOSS, alone.first)
    truth = task.cost({by: alone.values(texts, by, alone.first)})
    truth = np.where(np.isfinite(loss), truth, np.nan)
    if shared is not None:
      agreement = _agreement(task, table, truth, config.sweep.top_k)
  else:
    loss, truth = shared[LOSS], task.cost(shared)
    of_loss = [name for name in map(str, table) if name.startswith(f'shared_{LOSS}_')]
    for column in (*columns, *(name.removeprefix('shared_') for name in of_loss)):
      table[column] = table[f'shared_{column}']
    table = _with_test_scores(session, records, table)
  table['flops'], table['params'] = session.space.costs(bits)
  table['rank'] = _ranks(table, task, diverged)
  table['pareto'] = _on_front(table, task)
  # Of a searched set only few are trained alone.
  effects, pairs = _effects(session.space, bits, shared[LOSS] if config.search.method else loss)
  table = structures_first(table, columns)
  interactions = pd.DataFrame(pairs, columns=list(names))
  interactions.insert(0, 'gate', names)
  ceiling = rankings.noise_ceiling(truth[:, np.isfinite(truth).all(0)])
  summary = {
    'num_gates': len(names),
    'num_networks': len(table),
    'num_structures': len(table) if config.search.method else 2 ** len(names),
    'best_structure': table['structure'][0],
    **_best(session, table),
    'all_on_rank': _rank_of(table, '1' * len(names)),
    'pareto': table.loc[table['pareto'], 'structure'].tolist(),
    'noise_ceiling': ceiling._asdict(),
    'shared_against_standalone': agreement,
  } | ({'diverged': diverged} if diverged else {})
  if config.sweep.split_after and shared is not None:
    summary['split_gates'] = [record[GATE] for record in records[SHARED]]
  tables = {'structures': table, 'effects': effects, 'interactions': interactions}
  return Result(tables | stored_table(task, {SHARED: shared or {}}), summary)


def _best(session, table) -> dict[str, float]:
  """The headline scores of the best structure: on the test split, and those it was chosen by."""
  chosen = {f'best_{key}': table[key][0] for key in session.task.scores}
  if session.data.valid is None:
    return chosen
  tested = {f'best_{key}': table[f'test_{key}'][0] for key in session.task.scores}
  return tested | {name.replace('best_', 'best_valid_'): value for name, value in chosen.items()}


def _with_test_scores(session, records, table) -> pd.DataFrame:
  """The table of structures of a pool with what they score on the test split, where they were
  chosen on another: all of them, or of very many the best."""
  tested, names = read_tested(session), session.task.scores
  if SHARED in records.arms and all('test_loss' in record for record in records[SHARED]):
    keys = [f'test_{key}' for key in names]
    by_seed = {key: [record[key] for record in records[SHARED]] for key in keys}
    texts = list(table['structure'])
  elif tested is not None:
    texts, scores = tested
    by_seed = {f'test_{key}': scores[key] for key in names}
  else:
    return table
  columns = pd.DataFrame({'structure': texts})
  for key, values in by_seed.items():
    columns[key], columns[f'{key}_ci95'] = statistics.mean_and_ci(np.asarray(values, float))
    if key == f'test_{LOSS}':
      columns = with_differences(columns, key, np.asarray(values, float))
  intervals = [f'test_{key}_ci95' for key in names[1:]]
  return table.merge(columns.drop(columns=intervals), how='left', on='structure')


def _in_pool(session, records):
  """The structures, and their scores [seeds, S] in the shared pools; None without these."""
  if session.config.search.method:
    return read_search(session)
  bits = all_networks(session.space)
  if SHARED not in records.arms:
    return bits, None
  by_seed = scores_with_stored(session.task, records[SHARED])
  return bits, {key: of_networks(session.space, values) for key, values in by_seed.items()}


def _agreement(task, table, truth, top_k):
  both = np.isfinite(truth).all(0)
  k = min(top_k, max(1, int(both.sum()) // 4))
  costs = lambda name: task.cost({task.rank_by: table[name].to_numpy()})[both]
  agreement = rankings.compare_rankings(costs(f'shared_{task.rank_by}'), truth[:, both], k)
  if len(truth) == 1:  # the noise of training would be missing from an interval over structures
    agreement |= {'tau_low': np.nan, 'tau_high': np.nan}
  if (stored := f'shared_{PREFIX}{task.rank_by}') in table:
    agreement['stored_tau'] = rankings.kendall_tau(costs(stored), truth[:, both].mean(0))
  return agreement


def _ranks(
  table: pd.DataFrame, task: Task, diverged: Sequence[str]
) -> Int[np.ndarray, ' structures']:
  """Ranks by loss, or by the task's metric; what was not trained alone is ranked by what it has in
  the shared pool, behind the others. After successive halving, structures that were trained longer
  come first. What diverged alone is last.
  """
  by = task.rank_by
  keys = [task.cost({by: table[key]}) for key in (f'shared_{by}', by) if key in table]
  if 'steps' in table:
    keys.append(-table['steps'].to_numpy())
  keys.append(table['structure'].isin(diverged).to_numpy())
  ranks = np.empty(len(table), np.int64)
  ranks[np.lexsort(keys)] = np.arange(1, len(table) + 1)
  return ranks


def _on_front(table: pd.DataFrame, task: Task) -> Bool[np.ndarray, ' structures']:
  """Whether each is on the Pareto front; those that successive halving dropped stand apart."""
  steps = table.get('steps', pd.Series(0, table.index))
  longest = (steps == steps.max()).to_numpy()
  cost = np.where(longest & np.isfinite(table[LOSS]), task.cost(table), np.nan)
  return statistics.pareto_front(table['flops'].to_numpy(), cost)


def _effects(space, bits, by_seed):
  """Main effects as a table, and interactions [n, n], of losses [seeds, N] of networks.

  Where these are all, every structure has the loss of its network, and effects are averages over
  all 2^n structures.
  """
  if len(bits) == num_networks(space):  # a search may have them in another order
    by_seed = by_seed[:, np.argsort(places_of(space, bits))]
    bits = all_bits(space.num_gates)
    by_seed = by_seed[:, places_of(space, bits)]
  usable = np.isfinite(by_seed).all(0)
  frame = statistics.effect_table(bits[usable], by_seed[:, usable], space.names)
  mean = by_seed.mean(0)
  if len(bits) == 2 ** bits.shape[1] and usable.all():
    return frame, statistics.interactions(mean)
  return frame, statistics.effects_from_sample(bits[usable], mean[usable])[1]


def _rank_of(table, structure):
  ranks = table.loc[table['structure'] == structure, 'rank']
  return int(ranks.iloc[0]) if len(ranks) else None


STUDY = Study('sweep', _stages, check=_check, tables=_tables, page=page, sharded=True)

run = STUDY.run
