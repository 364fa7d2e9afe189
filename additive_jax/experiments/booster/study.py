"""The declaration of the study `booster`: its arms, and what is judged of each."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from additive_jax import transplant
from additive_jax.batches import described, is_array
from additive_jax.data import assignment
from additive_jax.experiments.arms import Arm, Start, Trained, full_network
from additive_jax.experiments.booster.groups import clusters_of
from additive_jax.experiments.booster.joining import join
from additive_jax.experiments.booster.narrow import AVERAGE, CLOCK, Narrow, test_scores
from additive_jax.experiments.booster.page import page
from additive_jax.experiments.booster.process import check_processes, newest, train_apart
from additive_jax.experiments.booster.tables import (
  METHODS,
  SCRATCH,
  UNTRAINED,
  lost,
  make_tables,
  read_clock,
)
from additive_jax.experiments.fit import Curves
from additive_jax.experiments.options import refused
from additive_jax.experiments.pages import read_curves
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session, first_input
from additive_jax.experiments.study import Study
from additive_jax.files.journal import Journal
from additive_jax.models.additive import initial
from additive_jax.parallel import processes
from additive_jax.parallel.pipeline_timing import measure_bubble
from additive_jax.parallel.zero import bytes_rows
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import State

log = logging.getLogger('additive_jax')

TAKEN = 'narrow.jsonl'


def _check(session: Session) -> None:
  """Everything that can be said before any training."""
  options = session.config.booster
  if options.sync_epochs and options.join != AVERAGE and options.num_models > 1:
    expected = '0, since copies that are synchronised are all alike'
    raise refused(session.config, 'booster.sync_epochs', 'booster.join', expected=expected)
  if session.config.train.structures_per_step != 1:
    expected = '1, since large and small models are trained with all gates on'
    raise refused(session.config, 'train.structures_per_step', expected=expected)
  if session.config.train.frozen and options.optimizer_state:
    expected = 'none frozen, or false: of what is frozen nothing is kept'
    raise refused(session.config, 'train.frozen', 'booster.optimizer_state', expected=expected)
  if 'clusters' in options.variants and not is_array(x := first_input(session.data)):
    expected = f'others than clusters, which are of one array, for inputs {described(x, "x")}'
    raise refused(session.config, 'booster.variants', expected=expected)
  session.in_memory()
  if options.balanced and any(METHODS.get(name) == 'kmeans' for name in options.variants):
    assignment.solver()
  if options.asynchronous:
    check_processes(session)
  for way in make_ways(session):
    if way.narrow is not None:
      _check_grows(way.narrow)


def _check_grows(narrow):
  """Makes the large pool of an untrained copy."""
  key, x = jax.random.key(0), first_input(narrow.large.data)
  small, large = (initial(model, key, x) for model in (narrow.model, narrow.large.model))
  grown = transplant.grow(
    narrow.model, small, narrow.large.model, large, key=key, place=narrow.place
  )
  if narrow.large.config.booster.optimizer_state:
    transplant.grow_optimizer(grown, narrow.recipe.optimizer.init(small['params']))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Way(Arm):
  """One way of training the large model.

  Attributes:
    narrow: the copies that it starts from; None from scratch.
  """

  narrow: Narrow | None = None


def make_ways(session: Session) -> list[Way]:
  """Returns the ways of a run, training from scratch first.

  Raises:
    UserError: for options of which a way cannot be made.
  """
  options = session.config.booster
  num_models = {name: options.num_models if name in METHODS else 1 for name in options.variants}
  narrows = {number: Narrow.of(session, number) for number in dict.fromkeys(num_models.values())}
  rate = options.large_learning_rate
  grown = session.with_options({'learning_rate': rate}) if rate else session
  ways = [_way(SCRATCH, session, session.training.steps(session.config.train.epochs), None)]
  num_steps = grown.training.steps(options.large_epochs)
  return ways + [_way(name, grown, num_steps, narrows[num_models[name]]) for name in num_models]


def _way(name, session, num_steps, narrow) -> Way:
  recipe = session.training.recipe(num_steps)
  return Way(
    name,
    session,
    recipe,
    session.training.sampler_of(session.space.all_on()),
    num_steps,
    start=functools.partial(_start, name, narrow, recipe),
    judge=_judge,
    curves=Curves(
      probe=lambda trainer: test_scores(session, processes.to_host(trainer.variables)),
      clock=Journal(session.rundir.journals / CLOCK),
    ),
    narrow=narrow,
  )


def _stages(session: Session, records: Records) -> Iterator[list[Way]]:
  ways = make_ways(session)
  _forget_lost(session, records, ways)
  yield ways


def _forget_lost(session, records, ways):
  """Drops the records of trainings of which points are lost, so that they are trained again from
  there: the tables are made of points."""
  curves, clock = read_curves(session), read_clock(session)
  for way in ways:
    for seed in session.seeds:
      if records.get(way.name, seed) is None:
        continue
      problem = lost(session, way, seed, curves, clock)
      if processes.agree(bool(problem)):
        log.warning('%s; it is trained again from there', problem or 'another process')
        records.forget(way.name, seed)


def _start(name: str, narrow: Narrow | None, recipe: Recipe, seed: int) -> Start:
  """What the large model starts from, and what that cost."""
  if narrow is None:
    return Start()
  members, facts = _members(name, narrow, seed)
  start = join(narrow, members, recipe, seed)
  return Start(start.state, {**facts, **start.facts})


def _members(name, narrow, seed) -> tuple[Sequence[State], dict[str, Any]]:
  """The copies of a way, and what they cost."""
  groups, facts, spent = [np.arange(len(narrow.large.data.train))], {}, 0.0
  if name == UNTRAINED:
    return [narrow.untrained(seed)], {'narrow_flops': 0.0}
  if name in METHODS:
    clusters, spent, seconds = clusters_of(narrow, METHODS[name], seed)
    groups = [clusters.members(i) for i in range(narrow.num_models)]
    sizes = clusters.sizes.tolist()
    facts = {'cluster_flops': spent, 'cluster_seconds': seconds, 'sizes': sizes}
  tag = f'{name}-narrow-seed{seed}'
  if narrow.large.config.booster.asynchronous and name in METHODS:
    copies = _apart(narrow, groups, seed, name, tag)
    members, taken = [state for state, _ in copies], [step for _, step in copies]
  else:
    members = narrow.train(groups, seed, tag)
    taken = [narrow.num_steps] * len(members)
  flops = spent + narrow.flops_per_step / narrow.num_models * sum(taken)
  return members, {**facts, 'narrow_flops': flops, 'taken': taken}


def _apart(narrow, groups, seed, name, tag) -> list[tuple[State, int]]:
  """As `train_apart`; what was taken from each copy is journalled, and taken again after a stop."""
  journal = Journal(narrow.large.rundir.journals / TAKEN)
  for record in journal.records():
    if (record['seed'], record['variant']) == (seed, name):
      return [copy for i in range(narrow.num_models) if (copy := newest(narrow, f'{tag}-{i}'))]
  copies = train_apart(narrow, groups, seed, tag)
  journal.append({'seed': seed, 'variant': name, 'taken': [step for _, step in copies]})
  return copies


def _judge(trained: Trained) -> dict[str, Any]:
  session, stages = trained.session, trained.arm.recipe.loss.stages()
  record = full_network(trained) | {'memory': bytes_rows(trained.trainer.sharded_state)}
  if (trained.arm.name, trained.seed) == (SCRATCH, session.config.seed) and stages is not None:
    record['bubble'] = _bubble(session, stages, trained.trainer.variables)
  return record


def _bubble(session, pipeline, variables) -> dict[str, Any]:
  """Busy and idle ticks of a step of the pipeline, see `pipeline_timing`."""
  rows = np.arange(session.config.train.batch_size) % len(session.data.train)
  x, y = session.data.train[rows]
  devices = session.machine.devices[: pipeline.devices]
  report = measure_bubble(
    session.model, session.task.mean_loss, pipeline, variables, x, y, devices=devices
  )
  values = {'formula': report.formula, 'measured': report.measured}
  parts = ('busy', 'microbatch', 'forward', 'backward')
  return values | {part: getattr(report, part).tolist() for part in parts}


STUDY = Study('booster', _stages, check=_check, tables=make_tables, page=page, baseline=SCRATCH)

run = STUDY.run
