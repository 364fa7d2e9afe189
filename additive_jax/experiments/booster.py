"""Exp 5: start a large model from small ones trained in parallel on clusters of the data, and count
what that saves.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Unpack

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from additive_jax import transplant
from additive_jax.errors import UserError
from additive_jax.experiments import booster_report
from additive_jax.experiments.booster_clusters import cluster_pieces
from additive_jax.experiments.booster_tables import (
  CLUSTERS,
  RANDOM,
  SCRATCH,
  UNTRAINED,
  cluster_table,
  compare,
  curve_table,
  memory_rows,
  receipt_table,
  summarise,
)
from additive_jax.experiments.fit import Curves, fit
from additive_jax.experiments.groups import clusters_of, features_of
from additive_jax.experiments.narrow import (
  AVERAGE,
  CLOCK,
  Narrow,
  Start,
  join,
  judged,
  make_narrow,
  train_together,
)
from additive_jax.experiments.narrow_process import check_processes, newest, train_apart
from additive_jax.experiments.options import check_unsharded
from additive_jax.experiments.results import read_results, run_once, write_results
from additive_jax.experiments.session import Opening, Session
from additive_jax.files.journal import Journal, read_all
from additive_jax.models.additive import initial
from additive_jax.parallel import processes
from additive_jax.parallel.pipeline_timing import measure_bubble
from additive_jax.train.fleet import Fleet
from additive_jax.train.samplers import listed

log = logging.getLogger('additive_jax')

METHODS = {CLUSTERS: 'kmeans', RANDOM: 'random'}
TABLES = ('structures', 'variants', 'curves', 'receipts', 'clusters', 'memory')
JOURNAL, TAKEN = 'booster.jsonl', 'narrow.jsonl'


@dataclasses.dataclass(frozen=True)
class BoosterResult:
  """What Exp 5 gave; every part is also a file of the run directory.

  Attributes:
    table: the large model as each way of training made it (`structures.csv`).
    variants: one row per way: scores, FLOPs of the whole training, and what it saves of those of
      training from scratch at equal loss (`variants.csv`).
    curves: test loss and accuracy against all FLOPs and seconds spent (`curves.csv`).
    receipts: one row per way and seed: how the large pool was made, and max |Δlogit|
      (`receipts.csv`).
    clusters: sizes of the clusters (`clusters.csv`).
    memory: bytes of the large model's training on each device and in host memory (`memory.csv`).
    summary: the headline figures (`summary.json`).
  """

  table: pd.DataFrame
  variants: pd.DataFrame
  curves: pd.DataFrame
  receipts: pd.DataFrame
  clusters: pd.DataFrame
  memory: pd.DataFrame
  summary: dict


def run(config: ConfigDict, workdir=None, **opening: Unpack[Opening]) -> BoosterResult:
  """Runs Exp 5, or goes on with it, and writes its run directory.

  `config.model` is trained from scratch for `config.train.epochs`. Each of
  `config.booster.variants` trains narrow copies of it for `config.booster.epochs`, all together,
  makes a pool of the large model of them, and trains that for `config.booster.large_epochs`. Args
  and errors are those of `sweep.run`.
  """
  options = config.booster
  if options.sync_epochs and options.join != AVERAGE and options.num_models > 1:
    raise UserError(
      f'config.booster.sync_epochs {options.sync_epochs:g} with join {options.join!r}: expected 0, '
      'since copies that are synchronised are all alike'
    )
  if config.train.structures_per_step != 1:
    raise UserError(
      f'config.train.structures_per_step {config.train.structures_per_step}: expected 1, since '
      'large and small models are trained with all gates on'
    )
  check_unsharded(config)
  return run_once(config, workdir, work=_run, read=_read, check=_check, **opening)


def _check(session: Session) -> None:
  """Everything that can be said before any training."""
  options = session.config.booster
  session.check_in_memory()
  if options.asynchronous:
    check_processes(session)
  for variant in (SCRATCH, options.variants[0]):
    _large(session, variant)
  for variant in options.variants:
    narrow = narrow_of(session, variant)
    _check_grows(session, narrow)


def _check_grows(session, narrow):
  """Makes the large pool of an untrained copy."""
  key, x = jax.random.key(0), session.test[0][:1]
  small, large = (initial(model, key, x) for model in (narrow.model, session.model))
  grown = transplant.grow(narrow.model, small, session.model, large, key=key, place=narrow.place)
  if session.config.booster.optimizer_state:
    transplant.grow_optimizer(grown, narrow.recipe.optimizer.init(small['params']))


def narrow_of(session: Session, variant: str) -> Narrow:
  """The narrow copies of a way of training."""
  return make_narrow(session, session.config.booster.num_models if variant in METHODS else 1)


@dataclasses.dataclass(frozen=True)
class Large:
  """How the large model is trained: with what session (for its learning rate), recipe and sampler,
  and for how many steps."""

  session: Session
  recipe: Any
  sampler: Any
  num_steps: int


def _large(session, variant):
  options = session.config.booster
  epochs, rate = session.config.train.epochs, 0.0
  if variant != SCRATCH:
    epochs, rate = options.large_epochs, options.large_learning_rate
  own = session.with_options({'learning_rate': rate} if rate else {})
  num_steps = own.steps(epochs)
  sampler = listed([own.space.all_on()], own.space.num_gates, 1)
  return Large(own, own.recipe(num_steps), sampler, num_steps)


def _run(session: Session) -> BoosterResult:
  variants = (SCRATCH, *session.config.booster.variants)
  narrows = {variant: narrow_of(session, variant) for variant in variants[1:]}
  larges = {variant: _large(session, variant) for variant in variants}
  # One recipe is one program: all that start from a transplant share theirs.
  larges |= dict.fromkeys(variants[1:], larges[variants[1]])
  narrows = _shared(narrows)
  folder = session.rundir.journals
  done = {(r['seed'], r['variant']): r for r in read_all(folder, JOURNAL)}
  for seed in session.seeds:
    for variant in variants:
      if (seed, variant) not in done:
        record = _trained(session, variant, narrows.get(variant), larges[variant], seed)
        done[seed, variant] = record = {'seed': seed, 'variant': variant, **record}
        if processes.is_primary():
          Journal(folder / JOURNAL).append(record)
  records = {variant: [done[seed, variant] for seed in session.seeds] for variant in variants}
  steps = {variant: large.num_steps for variant, large in larges.items()}
  curves = curve_table(session, records, narrows, steps)
  table = compare(records, curves)
  receipts, sizes = receipt_table(records), cluster_table(records)
  memory = pd.DataFrame(records[SCRATCH][0]['memory'])
  columns = ['variant', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params']
  structures = table[columns].assign(rank=table['loss'].rank(method='first').astype(int))
  structures.insert(0, 'structure', str(session.space.all_on()))
  structures = structures.sort_values('rank').reset_index(drop=True)
  bubble = records[SCRATCH][0].get('bubble')
  summary = summarise(session, table, receipts, narrows, bubble)
  result = BoosterResult(structures, table, curves, receipts, sizes, memory, summary)
  page = booster_report.page(session, result, narrows, _pictures(session, narrows), bubble)
  tables = (structures, table, curves, receipts, sizes, memory)
  write_results(session, dict(zip(TABLES, tables)), summary, page)
  return _read(session.rundir)


def _shared(narrows):
  """The same narrow copies for the ways that have as many."""
  first = {}
  return {name: first.setdefault(own.num_models, own) for name, own in narrows.items()}


def _trained(session, variant, narrow, large, seed) -> dict:
  """What one way of training gave in one seed, trained now or restored."""
  state, record = None, {}
  if narrow is not None:
    start, record = _started(session, variant, narrow, large, seed)
    state = start.state
    record['receipt'] = start.receipt()
    record['start'] = judged(session, {'params': state.params})
  own = large.session
  trainer = own.trainer(large.recipe, large.sampler, seed, state)
  probe = lambda trainer: judged(own, processes.to_host(trainer.variables))
  clock = Journal(session.rundir.journals / CLOCK)
  fit(own, trainer, large.num_steps, f'{variant}-seed{seed}', Curves(probe=probe, clock=clock))
  found = judged(own, processes.to_host(trainer.variables))
  space = session.space
  record |= {'loss': found['test_loss'], 'accuracy': found['test_accuracy']}
  record |= {'flops': space.flops(space.all_on()), 'params': space.params(space.all_on())}
  record['memory'] = memory_rows(trainer.sharded_state)
  if variant == SCRATCH and seed == session.config.seed and large.recipe.loss.stages() is not None:
    record['bubble'] = _bubble(session, large.recipe.loss.stages(), trainer.variables)
  return record | {'skipped': int(processes.to_host(trainer.sharded_state.skipped))}


def _bubble(session, pipeline, variables) -> dict:
  """Busy and idle ticks of a step of the pipeline, see `pipeline_timing`."""
  rows = np.arange(session.config.train.batch_size) % len(session.data.train)
  x, y = session.data.train[rows]
  devices = session.devices[: pipeline.devices]
  found = measure_bubble(
    session.model, session.objective, pipeline, variables, x, y, devices=devices
  )
  values = {'formula': found.formula, 'measured': found.measured}
  parts = ('busy', 'microbatch', 'forward', 'backward')
  return values | {part: getattr(found, part).tolist() for part in parts}


def _started(session, variant, narrow, large, seed) -> tuple[Start, dict]:
  """What the large model starts from, and what that cost."""
  name, options = f'{variant}-narrow-seed{seed}', session.config.booster
  whole = np.arange(len(session.data.train))
  if variant == UNTRAINED:
    devices = session.devices[:1]
    size, train = narrow.batch_size, session.data.train
    fleet = Fleet(narrow.recipe, train, [whole], batch_size=size, seed=seed, devices=devices)
    return join(session, narrow, fleet.members(), large.recipe, seed), {'narrow_flops': 0.0}
  groups, spent, record = [whole], 0.0, {}
  if variant in METHODS:
    found, spent, seconds = clusters_of(session, narrow, METHODS[variant], seed)
    groups = [found.members(i) for i in range(narrow.num_models)]
    record = {'cluster_flops': spent, 'cluster_seconds': seconds, 'sizes': found.sizes.tolist()}
  if options.asynchronous and variant in METHODS:
    members, taken = _apart(session, narrow, groups, seed, variant, name)
  else:
    members = train_together(session, narrow, groups, seed, name)
    taken = [narrow.num_steps] * len(members)
  each = narrow.flops_per_step / narrow.num_models
  record |= {'narrow_flops': spent + each * sum(taken), 'taken': taken}
  return join(session, narrow, members, large.recipe, seed), record


def _apart(session, narrow, groups, seed, variant, name):
  """As `train_apart`; what was taken from each copy is journalled, and taken again after a stop."""
  journal = Journal(session.rundir.journals / TAKEN)
  for record in journal.records():
    if (record['seed'], record['variant']) == (seed, variant):
      found = [newest(session, narrow, f'{name}-{i}') for i in range(narrow.num_models)]
      return [state for state, step in found if step], [step for _, step in found if step]
  members, taken = train_apart(session, narrow, groups, seed, name)
  journal.append({'seed': seed, 'variant': variant, 'taken': taken})
  return members, taken


def _pictures(session, narrows) -> list:
  """Of the clusters of the first seed, with their captions."""
  found = {
    variant: clusters_of(session, narrow, METHODS[variant], session.config.seed).clusters
    for variant, narrow in narrows.items()
    if variant in METHODS
  }
  if not found:
    return []
  narrow = next(narrows[variant] for variant in found)
  features = features_of(session, narrow, session.config.seed)
  return cluster_pieces(session.data, features, list(found.values()))


def _read(rundir):
  tables, summary = read_results(rundir, TABLES)
  return BoosterResult(*tables, summary)
