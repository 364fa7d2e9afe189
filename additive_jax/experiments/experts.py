"""Exp 4: tokens choose among the structures of a layer, against a dense network, its best single
structure, experts of their own weights, and a choice at random.
"""

from __future__ import annotations

import dataclasses
from typing import Unpack

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from additive_jax.errors import UserError
from additive_jax.experiments import experts_report
from additive_jax.experiments.contenders import (
  DENSE,
  SCORES,
  Contender,
  balance_of,
  check_dense,
  compare,
  inspect,
  make_contender,
  router_table,
  summarise,
  train_all,
)
from additive_jax.experiments.options import check_unsharded
from additive_jax.experiments.results import read_results, run_once, write_results
from additive_jax.experiments.scores import evaluate, sampled_structures
from additive_jax.experiments.session import Opening, Session
from additive_jax.experiments.shared import train_shared
from additive_jax.files.journal import Journal, read_all
from additive_jax.gates.structure import Structure
from additive_jax.models.active import active_flops, fitted
from additive_jax.models.costs import num_params
from additive_jax.models.kinds import SUB_ACTIVATION
from additive_jax.models.moe import Experts
from additive_jax.models.routing import Routing
from additive_jax.parallel import processes
from additive_jax.report import statistics
from additive_jax.report.paths import fit_power_law, path_codes, rank_frequency

SINGLE, MOE = 'single', 'moe'
TABLES = ('structures', 'variants', 'routers')
JOURNAL, POOL_JOURNAL = 'experts.jsonl', 'pool.jsonl'


@dataclasses.dataclass(frozen=True)
class ExpertsResult:
  """What Exp 4 gave; every part is also a file of the run directory.

  Attributes:
    table: one row per static structure of the dense network's feed-forward layers, ranked in one
      pool, best first (`structures.csv`); the dense network alone where none were ranked.
    variants: one row per network: scores, active FLOPs, parameters, and what it differs by from the
      dense one (`variants.csv`).
    routers: one row per network and layer with a router (`routers.csv`).
    summary: the headline figures (`summary.json`).
  """

  table: pd.DataFrame
  variants: pd.DataFrame
  routers: pd.DataFrame
  summary: dict


def run(config: ConfigDict, workdir=None, **opening: Unpack[Opening]) -> ExpertsResult:
  """Runs Exp 4, or goes on with it, and writes its run directory.

  The dense network is `config.model`, a transformer. Every other one of `config.experts.variants`
  takes its place twice: with hidden units such that its active FLOPs are those of the dense
  network, and such that its parameters are. Args and errors are those of `sweep.run`.
  """
  check_unsharded(config)
  return run_once(config, workdir, work=_run, read=_read, check=_check, **opening)


def _check(session):
  """Everything that can be said before any training."""
  session.check_experts([contender.model for contender in make_contenders(session)])
  if SINGLE in session.config.experts.variants:
    if session.config.experts.num_structures < 2:
      raise UserError(
        f'config.experts.num_structures {session.config.experts.num_structures}: expected at least '
        '2, all gates on and a structure with some gate off'
      )
    pool = _pool_session(session)
    pool.sampler(pool.steps(session.config.train.epochs))


def routing_of(session: Session, router: str) -> Routing:
  """The options `config.experts` of a router."""
  options = session.config.experts
  lists = router in ('softmax', 'random')
  return Routing(
    router,
    options.top_k,
    options.renormalise,
    tuple(options.structures) if lists else (),
    options.keep,
    options.shared_router and router != 'random',
  )


def make_contenders(session: Session, single: Structure | None = None) -> list[Contender]:
  """The networks of a run, the dense one first; the best single structure only where it is known.

  Raises:
    UserError: for options of which a network cannot be made.
  """
  dense, options = check_dense(session), session.config.experts
  x = session.test[0][:1]
  found = [make_contender(session, DENSE, DENSE, dense)]
  if single is not None:
    model = _pool_session(session).model
    found.append(make_contender(session, SINGLE, 'single structure', model, structure=single))
  costs = {'flops': lambda model: active_flops(model, x), 'params': lambda m: num_params(m, x)}
  experts = Experts(options.num_experts, options.expert_top_k, options.renormalise)
  for budget in options.budgets:
    target = costs[budget](dense)
    for variant in options.variants:
      if variant == SINGLE:
        continue
      how = experts if variant == MOE else routing_of(session, variant)
      make = lambda hidden, how=how: dense.clone(hidden=hidden, routing=how)
      name = f'{variant}_equal_{budget}'
      model = fitted(make, costs[budget], target, f'{budget} of {name}')
      family = 'separate experts' if variant == MOE else f'{variant} router'
      found.append(make_contender(session, name, family, model, balance=balance_of(session)))
  return found


def _pool_session(session):
  """The run with the dense network's feed-forward layers as sub-activation gates."""
  return session.with_model(session.model.clone(gates=(SUB_ACTIVATION,)))


def _run(session: Session) -> ExpertsResult:
  single, table = None, None
  if SINGLE in session.config.experts.variants:
    single, table = _best_single(_pool_session(session))
  contenders = make_contenders(session, single)
  records = train_all(session, contenders, JOURNAL)
  variants, routers = compare(contenders, records), router_table(records)
  if table is None:
    columns = ['loss', 'accuracy', 'loss_ci95', 'flops', 'params']
    table = variants.loc[:0, columns].assign(rank=1)
    table.insert(0, 'structure', str(contenders[0].structure))
  paths = _paths(contenders, session.config.seed)
  summary = summarise(session, 'experts', variants, routers)
  summary['single_structure'] = None if single is None else str(single)
  for name, found in paths.items():
    if 'fit' not in found:
      continue
    summary['variants'][name]['first_seed'] = {
      'paths': len(found['counts']),
      'path_exponent': found['fit'].exponent,
      'path_exponent_ci95': [found['fit'].low, found['fit'].high],
    }
  result = ExpertsResult(table, variants, routers, summary)
  curves = session.metrics.read(session.rundir.path)
  page = experts_report.page(session, result, contenders, records, paths, curves)
  tables = dict(zip(TABLES, (table, variants, routers)))
  write_results(session, tables, summary, page)
  return _read(session.rundir)


def _best_single(session: Session) -> tuple[Structure, pd.DataFrame]:
  """The structure with some gate off that is best on training examples, in pools trained on the
  structures of `config.sampler`; and the table of all of them on the test split."""
  config, folder = session.config, session.rundir.journals
  bits = sampled_structures(session, config.experts.num_structures)
  done = {record['seed']: record for record in read_all(folder, POOL_JOURNAL)}
  for seed in session.seeds:
    if seed not in done:
      pool = train_shared(session, seed, config.train.epochs, f'pool-seed{seed}')
      found = evaluate(session, pool.variables, bits)
      seen = session.data.train
      known = np.arange(min(len(seen), len(session.data.test)))
      train = evaluate(session, pool.variables, bits, seen[known])
      done[seed] = {'seed': seed, 'train_loss': train.loss.tolist()}
      done[seed] |= {key: getattr(found, key).tolist() for key in SCORES}
      if processes.is_primary():
        Journal(folder / POOL_JOURNAL).append(done[seed])
  records = [done[seed] for seed in session.seeds]
  table = pd.DataFrame({'structure': [str(Structure(tuple(row))) for row in bits]})
  for key in (*SCORES, 'train_loss'):
    mean, half_width = statistics.mean_and_ci([record[key] for record in records])
    table[key], table[f'{key}_ci95'] = mean, half_width
  table['flops'], table['params'] = session.space.costs(bits)
  some_off = table[~bits.all(1)]
  best = some_off.loc[some_off['train_loss'].idxmin(), 'structure']
  table['rank'] = statistics.rank(table['loss'].to_numpy())
  table = table.iloc[np.argsort(table['rank'], kind='stable')].reset_index(drop=True)
  first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
  return Structure.from_string(best), table[first + [c for c in table if c not in first]]


def _paths(contenders, seed):
  """What the tokens of the test split choose in all layers together, by network, in one seed."""
  found = {}
  for contender in contenders:
    routing = contender.model.routing
    if not contender.has_routers or getattr(routing, 'router', '') == 'random':
      continue  # what is drawn at random says nothing about tokens
    trainer = contender.trained(seed)
    seen = inspect(contender, processes.to_host(trainer.variables), contender.session.test)
    found[contender.name] = {'on': seen.on}
    if seen.chosen is not None:
      codes = path_codes(seen.chosen)
      found[contender.name] |= {'counts': rank_frequency(codes), 'fit': fit_power_law(codes)}
  return found


def _read(rundir):
  tables, summary = read_results(rundir, TABLES)
  return ExpertsResult(*tables, summary)
