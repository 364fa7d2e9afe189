"""Exp 4: tokens choose among the structures of a layer, against a dense network, its best single
structure, experts of their own weights, and a choice at random.

The dense network is `config.model`, a transformer. Every other one of `config.experts.variants`
takes its place twice: with hidden units such that its active FLOPs are those of the dense network,
and such that its parameters are.
`run` gives a result with:

  table         structures.csv: a row for each static structure of the feed-forward layers,
                ranked in one pool; the dense network alone where none were ranked
  variants      variants.csv: a row for each network: scores, active FLOPs, parameters
  routers       routers.csv: a row for each network and layer with a router
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from additive_jax.experiments.arms import Arm, Trained
from additive_jax.experiments.contenders import (
  DENSE,
  Contender,
  check_dense,
  compare,
  contenders_of,
  make_contender,
)
from additive_jax.experiments.experts_page import page
from additive_jax.experiments.options import refused
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session, first_input
from additive_jax.experiments.shared import judge_all, shared_arm
from additive_jax.experiments.study import Result, Study
from additive_jax.experiments.tables import structure_table
from additive_jax.gates.networks import sampled_networks
from additive_jax.gates.structure import Structure
from additive_jax.models.active import active_flops, fitted
from additive_jax.models.costs import num_params
from additive_jax.models.kinds import SUB_ACTIVATION
from additive_jax.models.moe import Experts
from additive_jax.models.routing import Routing
from additive_jax.report import statistics
from additive_jax.report.comparison import arms_as_structures
from additive_jax.report.paths import path_codes, rank_frequency
from additive_jax.report.power_law import fit_power_law
from additive_jax.run.inspection import inspect

POOL, SINGLE, MOE = 'pool', 'single', 'moe'


def _check(session):
  """Everything that can be said before any training."""
  session.machine.check_networks([contender.model for contender in make_contenders(session)])
  if SINGLE in session.config.experts.variants:
    if session.config.experts.num_structures < 2:
      expected = 'at least 2, all gates on and a structure with some gate off'
      raise refused(session.config, 'experts.num_structures', expected=expected)
    _pool(session)


def _routing(session, router) -> Routing:
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


def make_contenders(session: Session, single: Structure | str | None = None) -> list[Contender]:
  """Returns the networks of a run, the dense one first; the best single structure only where it is
  known.

  Raises:
    UserError: for options of which a network cannot be made.
  """
  dense, options = check_dense(session), session.config.experts
  x = first_input(session.data)
  contenders = [make_contender(session, DENSE, DENSE, dense)]
  if single is not None:
    model = _pool_session(session).model
    contenders.append(make_contender(session, SINGLE, 'single structure', model, structure=single))
  costs = {'flops': lambda model: active_flops(model, x), 'params': lambda m: num_params(m, x)}
  experts = Experts(options.num_experts, options.expert_top_k, options.renormalise)
  for budget in options.budgets:
    target = costs[budget](dense)
    for variant in options.variants:
      if variant == SINGLE:
        continue
      routing = experts if variant == MOE else _routing(session, variant)
      make = lambda hidden, routing=routing: dense.clone(hidden=hidden, routing=routing)
      name = f'{variant}_equal_{budget}'
      model = fitted(make, costs[budget], target, f'{budget} of {name}')
      family = 'separate experts' if variant == MOE else f'{variant} router'
      contenders.append(make_contender(session, name, family, model, routed=True))
  return contenders


def _pool_session(session):
  """The run with the dense network's feed-forward layers as sub-activation gates."""
  return session.with_model(session.model.clone(gates=(SUB_ACTIVATION,)))


def _stages(session: Session, records: Records) -> Iterator[Sequence[Arm]]:
  """A pool that finds the best single structure, then all networks."""
  single = None
  if SINGLE in session.config.experts.variants:
    pool = _pool(session)
    yield [pool]
    single = _best_single(pool.session, records)
  yield make_contenders(session, single)


def _pool(session) -> Arm:
  """The pool in which static structures are ranked, on examples to choose by (training examples,
  where none were held out) and on the test split."""
  pool_session = _pool_session(session)
  bits = _static_structures(pool_session)

  def judge(trained: Trained) -> dict[str, list[float]]:
    seen = pool_session.data.train
    known = seen[np.arange(min(len(seen), len(pool_session.data.test)))]
    train = pool_session.evaluate(trained.variables, bits, known)
    return {'train_loss': train.loss.tolist(), **judge_all(bits, trained)}

  return shared_arm(
    pool_session, POOL, pool_session.config.train.epochs, judge=judge, judged=2 * len(bits)
  )


def _static_structures(pool_session):
  limit = pool_session.config.experts.num_structures
  return sampled_networks(pool_session.space, limit, pool_session.config.seed)


def _best_single(pool_session: Session, records: Records) -> Structure:
  """The structure with some gate off that is best on the examples to choose by, or on training
  examples, where none were held out."""
  bits = _static_structures(pool_session)
  task = pool_session.task
  key = 'train_loss' if pool_session.data.valid is None else f'valid_{task.rank_by}'
  score, _ = statistics.mean_and_ci([record[key] for record in records[POOL]])
  cost = score if key == 'train_loss' else task.cost({task.rank_by: score})
  eligible = ~bits.all(1) & np.isfinite(cost)
  return Structure(tuple(bits[np.where(eligible, cost, np.inf).argmin()]))


def _tables(session: Session, records: Records) -> Result:
  contenders = contenders_of(records)
  compared = compare(contenders, records)
  single = next((str(c.structure) for c in contenders if c.name == SINGLE), None)
  if single is None:
    all_on, scores = [str(contenders[0].structure)], session.task.scores
    structures = arms_as_structures(compared.variants[:1], all_on, scores)
    structures = structures.drop(columns='variant')
  else:
    pool_session = records.arms[POOL].session
    keys = (*session.task.scores, 'train_loss')
    structures = structure_table(
      pool_session, _static_structures(pool_session), {'': records[POOL]}, keys
    )
  extras: dict[str, Any] = {} if single is None else {'explored': pool_session}
  paths = _paths(session, contenders)
  summary = compared.summary | {'single_structure': single}
  for name, path in paths.items():
    if 'fit' in path:
      summary['variants'][name]['first_seed'] = path['fit'].figures()
  tables = {'structures': structures, **compared.tables}
  return Result(tables, summary, extras=extras | {'paths': paths})


def _paths(session, contenders) -> dict[str, dict[str, Any]]:
  """What the tokens of the test split choose in all layers together, by network, in one seed."""
  paths: dict[str, dict[str, Any]] = {}
  for contender in contenders:
    if not contender.has_routers or getattr(contender.model.routing, 'router', '') == 'random':
      continue  # what is drawn at random says nothing about tokens
    trained = contender.train(session.config.seed)
    network = trained.session
    inspection = inspect(network.model, network.task, trained.variables, network.test)
    paths[contender.name] = {'on': inspection.on}
    if inspection.chosen is not None:
      codes = path_codes(inspection.chosen)
      paths[contender.name] |= {'counts': rank_frequency(codes), 'fit': fit_power_law(codes)}
  return paths


STUDY = Study('experts', _stages, check=_check, tables=_tables, page=page, baseline=DENSE)

run = STUDY.run
