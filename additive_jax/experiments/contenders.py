"""Networks of different models, trained on the same examples in the same order, judged alike, and
compared with a dense one.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from additive_jax.errors import UserError
from additive_jax.experiments.arms import Arm, Trained
from additive_jax.experiments.options import refused, selected
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session, first_input
from additive_jax.experiments.study import Result
from additive_jax.files.journal import Record
from additive_jax.gates.structure import Structure
from additive_jax.models import Transformer
from additive_jax.models.active import active_flops
from additive_jax.models.additive import initial_shapes
from additive_jax.models.costs import num_params
from additive_jax.models.kinds import RESIDUAL
from additive_jax.report import comparison
from additive_jax.run.inspection import inspect
from additive_jax.run.tasks import LOSS
from additive_jax.train.balance import Balance, summary
from additive_jax.train.losses import Routed
from additive_jax.train.rule import fits, paths_of

log = logging.getLogger('additive_jax')

DENSE = 'dense'
ROUTERS = '(.*/)?router'  # the paths of their leaves; a router at random has none


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Contender(Arm):
  """One network of a comparison.

  Attributes:
    family: what it is, for the colours of pictures.
    structure: the static structure it is, all-on for networks with routers.
  """

  family: str
  structure: Structure

  @property
  def model(self) -> Any:
    """The network."""
    return self.session.model

  @property
  def has_routers(self) -> bool:
    """Whether its tokens choose."""
    return isinstance(self.recipe.loss, Routed)


def make_contender(
  session: Session,
  name: str,
  family: str,
  model: Any,
  *,
  routed: bool = False,
  structure: Structure | str | None = None,
) -> Contender:
  """Returns a contender with the run's data and training options.

  Args:
    session: the run.
    name: unique among the contenders.
    family: what the network is.
    model: the network.
    routed: whether it has routers, which are kept balanced by `config.balance`.
    structure: what it is without routers; None is all-on.
  """
  changed = session.with_model(model)
  num_steps = changed.training.steps(changed.config.train.epochs)
  recipe = changed.training.recipe(num_steps)
  if routed:
    if changed.config.train.distill:
      raise refused(changed.config, 'train.distill', expected='0 with routers')
    changed.training.check_whole('a balance of routers')
    recipe = dataclasses.replace(recipe, loss=Routed(selected(Balance, changed.config.balance)))
    rate = changed.config.balance.router_rate
    if rate != 1 and _has_router(model, first_input(changed.data)):
      rates = (*recipe.learning_rates, (ROUTERS, rate))
      recipe = dataclasses.replace(recipe, learning_rates=rates)
  structure = changed.space.all_on() if structure is None else changed.space.parse(structure)
  return Contender(
    name,
    changed,
    recipe,
    changed.training.sampler_of(structure),
    num_steps,
    judge=functools.partial(_judge, structure, routed),
    family=family,
    structure=structure,
  )


def _has_router(model, x):
  """Whether the pool has leaves of a router, which one at random has not."""
  return any(fits(ROUTERS, path) for path in paths_of(initial_shapes(model, x)['params']))


def contenders_of(records: Records) -> list[Contender]:
  """Returns the contenders of a run, those without routers first."""
  contenders = [arm for arm in records.arms.values() if isinstance(arm, Contender)]
  return sorted(contenders, key=lambda contender: contender.has_routers)


def check_dense(session: Session) -> Transformer:
  """Returns the model of the config as the dense transformer that others are made from and compared
  with.

  Raises:
    UserError: for another model, or gates other than residual.
  """
  model = session.model
  if not isinstance(model, Transformer) or model.routing is not None:
    raise UserError(
      f'{type(model).__name__} for networks with routers: expected config.model.name transformer'
    )
  if model.gates != (RESIDUAL,):
    raise refused(session.config, 'model.gates', expected='residual alone with routers')
  return model


def _judge(structure: Structure, has_routers: bool, trained: Trained) -> Record:
  """Scores on both splits, active FLOPs of an example's forward pass, parameters, skipped slots,
  and of networks with routers what those of each site did."""
  session, seen = trained.session, trained.session.seen()
  x = first_input(session.data)
  record: Record = {'params': num_params(session.model, x), 'skipped': trained.skipped}
  if has_routers:
    log.info('looking at what the tokens of %s choose', trained.arm.name)
    look = functools.partial(inspect, session.model, session.task, trained.variables)
    test = look(session.test)
    train = look(seen)
    sites = {name.replace('__', '/'): _site(facts) for name, facts in test.facts.items()}
    flops = active_flops(session.model, x, test.facts, test.chosen)
    return record | {
      'sites': sites,
      'flops': flops,
      **test.scores,
      'train_loss': train.scores[LOSS],
    }
  test, train = (
    session.evaluate(trained.variables, [structure], split) for split in (session.test, seen)
  )
  record |= {'flops': session.space.flops(structure)}
  record |= {name: float(values[0]) for name, values in test.scores.items()}
  return record | {'train_loss': float(train.loss[0])}


def _site(facts):
  load = facts.structures if hasattr(facts, 'structures') else facts.load
  return {**summary(facts), 'load': np.asarray(load, float).round(6).tolist()}


def compare(contenders: Sequence[Contender], records: Records) -> Result:
  """Returns the tables `variants` and `routers`, and the headline figures.

  `variants` has a row for each contender: scores, costs, and what it differs by from `dense`;
  `routers` one for each contender and site with a router: means over the seeds of what
  `balance.summary` says.
  """
  variants, routers = _variants(contenders, records), _routers(contenders, records)
  figures = comparison.figures(variants.drop(columns=['family', 'skipped']), DENSE)
  for name, rows in routers.groupby('variant', sort=False) if len(routers) else ():
    figures[str(name)]['routers'] = rows.drop(columns='variant').set_index('site').mean().to_dict()
  summary = {'variants': figures, 'skipped': int(variants['skipped'].sum())}
  return Result({'variants': variants, 'routers': routers}, summary)


def _variants(contenders, records) -> pd.DataFrame:
  scores, facts = {}, {}
  for contender in contenders:
    frame, train = pd.DataFrame(records[contender.name]), contender.session.config.train
    flops = float(frame['flops'].mean())
    examples = contender.num_steps * train.batch_size * train.structures_per_step
    scores[contender.name] = frame[[*contender.session.task.scores, 'train_loss']]
    facts[contender.name] = {
      'family': contender.family,
      'flops': flops,
      'params': int(frame['params'].iloc[0]),
      'training_flops': 3 * examples * flops,  # a backward pass costs about two forward passes
      'skipped': int(frame['skipped'].sum()),
    }
  names = contenders[0].session.task.scores
  return comparison.compare(scores, DENSE, facts=facts, differences=names)


def _routers(contenders, records) -> pd.DataFrame:
  rows = []
  for contender in contenders:
    seeds = records[contender.name]
    for site in seeds[0].get('sites', {}):
      frame = pd.DataFrame([record['sites'][site] for record in seeds]).drop(columns='load')
      rows.append({'variant': contender.name, 'site': site, **frame.mean().to_dict()})
  return pd.DataFrame(rows)


def loads(seeds: Sequence[Record]) -> dict[str, Float[np.ndarray, ' choices']]:
  """Returns by site the load over the ideal even one of the most used structure, expert or module,
  the next, and so on.

  They are means over the seeds, since experts of two seeds have nothing in common but their rank.

  >>> loads([{'sites': {'block': {'load': [0.25, 0.75]}}}, {'sites': {'block': {'load': [1, 0]}}}])
  {'block': array([1.75, 0.25])}
  """
  by_site = {}
  for site in seeds[0].get('sites', {}):
    load = np.mean([np.sort(record['sites'][site]['load'])[::-1] for record in seeds], axis=0)
    by_site[site] = load * load.size
  return by_site
