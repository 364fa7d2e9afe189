"""Exp 3: random structures as a regulariser, against the same training with all gates on."""

from __future__ import annotations

import dataclasses
import logging
from typing import Unpack

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from additive_jax.errors import UserError
from additive_jax.experiments import stochastic_report
from additive_jax.experiments.fit import fit
from additive_jax.experiments.options import check_unsharded
from additive_jax.experiments.results import read_results, run_once, write_results
from additive_jax.experiments.session import Opening, Session
from additive_jax.experiments.shared import evaluate_pool, sampled_structures
from additive_jax.experiments.stochastic_tables import NONE, expected_flops, make_tables
from additive_jax.files.journal import Journal, read_all
from additive_jax.gates.subsets import in_stages
from additive_jax.parallel import processes
from additive_jax.report.page import counted
from additive_jax.run.evaluate import evaluate_structures
from additive_jax.train.losses import PerSample
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import listed

log = logging.getLogger('additive_jax')

MODES = CONDITIONAL, PER_SAMPLE = ('conditional', 'per_sample')
TABLES = ('structures', 'variants')
JOURNAL = 'stochastic.jsonl'


@dataclasses.dataclass(frozen=True)
class StochasticResult:
  """What random structures gave; every part is also a file of the run directory.

  Attributes:
    table: one row per structure, best first, with its scores in the pool of each variant
      (`structures.csv`); columns without a variant's name are those of the first variant with
      random structures.
    variants: one row per variant: scores of the full network, the train–test gap, the mean over all
      structures, and what each differs by from training with all gates on (`variants.csv`).
    summary: the headline figures (`summary.json`).
  """

  table: pd.DataFrame
  variants: pd.DataFrame
  summary: dict


@dataclasses.dataclass(frozen=True)
class Variant:
  """One way to train a pool.

  Attributes:
    name: `none`, or a mode followed by `_equal_flops` and `_distilled` where they apply.
    num_steps: of its training.
    recipe, sampler: what trains it.
    keep_rates: float [num_steps, n], the exact probabilities that gates are on.
    forward_flops: expected FLOPs of an example's forward pass, mean over the steps.
    training_flops: of a whole training, the teacher's passes included.
  """

  name: str
  num_steps: int
  recipe: Recipe
  sampler: object
  keep_rates: np.ndarray
  forward_flops: float
  training_flops: float


def run(config: ConfigDict, workdir=None, **opening: Unpack[Opening]) -> StochasticResult:
  """Runs Exp 3, or goes on with it, and writes its run directory.

  For each seed, pools are trained from the same init on the same data in the same order: with all
  gates on, and for each of `config.stochastic.modes` with random structures, for as many epochs and
  again for as many FLOPs. Args and errors are those of `sweep.run`.
  """
  modes = config.stochastic.modes
  if not modes or set(modes) - set(MODES) or len(set(modes)) < len(modes):
    raise UserError(
      f'config.stochastic.modes {tuple(modes)}: expected some of {", ".join(MODES)}, each once'
    )
  check_unsharded(config)
  return run_once(config, workdir, work=_run, read=_read, check=_check, **opening)


def _check(session):
  """Everything that can be said before any training."""
  session.check_experts([session.model])
  session.check_in_memory()
  make_variants(session)


def make_variants(session: Session) -> list[Variant]:
  """The variants of a run, the one with all gates on first.

  Raises:
    UserError: for options of which a variant cannot be made.
  """
  options, distill = session.config.stochastic, session.config.train.distill
  epochs, num_gates = session.config.train.epochs, session.space.num_gates
  num_steps = session.steps(epochs)
  ones = np.ones((num_steps, num_gates))
  variants = [_variant(session, NONE, num_steps, _all_on(session), ones, session.loss())]
  for mode in options.modes:
    for weight in (0.0, distill) if distill else (0.0,):
      ending = '_distilled' if weight else ''
      alike = _random(session, mode, f'{mode}{ending}', num_steps, weight)
      share = alike.training_flops / variants[0].training_flops
      longer = session.steps(epochs / share)
      variants.append(alike)
      if longer != num_steps:
        variants.append(_random(session, mode, f'{mode}_equal_flops{ending}', longer, weight))
  return variants


def _random(session, mode, name, num_steps, distill):
  """A variant with random structures of the keep rates of `config.sampler`."""
  options = session.config.stochastic
  sampler = session.sampler(num_steps)
  if not hasattr(sampler, 'rates'):
    raise UserError(
      f'config.sampler.name {session.config.sampler.name!r} for random structures: expected '
      'uniform or bernoulli, which have keep rates'
    )
  if mode == CONDITIONAL:
    rates = np.asarray(jax.vmap(sampler.rates)(np.arange(num_steps)), float)
    loss = session.loss(distill, options.rescale)
    return _variant(session, name, num_steps, sampler, rates, loss, distill)
  session.check_whole('subsets per sample')
  ramp_steps = session.config.sampler.ramp * num_steps
  plan = in_stages(sampler.rates, num_steps, ramp_steps, options.stages, options.parts)
  size = session.config.train.batch_size
  table = np.array([plan.probabilities(stage, size) for stage in range(len(plan.starts))])
  stage = np.searchsorted(plan.starts, np.arange(num_steps), side='right') - 1
  loss = PerSample(plan, distill, options.rescale)
  return _variant(session, name, num_steps, _all_on(session), table[stage], loss, distill)


def _all_on(session):
  """A sampler that gives all slots of a step the full network."""
  everything, slots = session.space.all_on(), session.config.train.structures_per_step
  return listed([everything], session.space.num_gates, slots)


def _variant(session, name, num_steps, sampler, keep_rates, loss, distill=0.0):
  full = session.space.flops(session.space.all_on())
  forward = float(np.mean(expected_flops(session.space, keep_rates)))
  # A backward pass costs about twice a forward pass; the teacher has none.
  each = 3 * forward + (full if distill else 0)
  examples = num_steps * sampler.num_structures * session.config.train.batch_size
  recipe = dataclasses.replace(session.recipe(num_steps), loss=loss)
  return Variant(name, num_steps, recipe, sampler, keep_rates, forward, each * examples)


def _run(session: Session) -> StochasticResult:
  variants = make_variants(session)
  bits = sampled_structures(session, session.config.stochastic.num_structures)
  log.info('%s, judged by %s', counted(len(variants), 'variant'), counted(len(bits), 'structure'))
  journal = Journal(session.rundir.journals / JOURNAL)
  done = {(r['seed'], r['variant']): r for r in read_all(session.rundir.journals, JOURNAL)}
  for seed in session.seeds:
    for variant in variants:
      if (seed, variant.name) not in done:
        record = {'seed': seed, 'variant': variant.name, **_train(session, variant, seed, bits)}
        done[seed, variant.name] = record
        if processes.is_primary():
          journal.append(record)
  scores = {
    variant.name: [done[seed, variant.name] for seed in session.seeds] for variant in variants
  }
  result = StochasticResult(*make_tables(session, variants, bits, scores))
  curves = session.metrics.read(session.rundir.path)
  page = stochastic_report.render(session, result, variants, curves)
  tables = dict(zip(TABLES, (result.table, result.variants)))
  write_results(session, tables, result.summary, page)
  return _read(session.rundir)


def _train(session, variant, seed, bits):
  """Trains one pool; its scores on all structures, and on the training split with all gates on."""
  trainer = session.trainer(variant.recipe, variant.sampler, seed)
  fit(session, trainer, variant.num_steps, f'{variant.name}-seed{seed}')
  test = evaluate_pool(session, trainer, bits)
  train = evaluate_structures(
    session.model,
    processes.to_host(trainer.variables),
    session.data.train,
    [session.space.all_on()],
    task=session.objective,
    devices=session.workers,
  )
  return {
    'loss': test.loss.tolist(),
    'accuracy': test.accuracy.tolist(),
    'train_loss': float(train.loss[0]),
    'train_accuracy': float(train.accuracy[0]),
    'skipped': int(processes.to_host(trainer.state.skipped)),
  }


def _read(rundir):
  tables, summary = read_results(rundir, TABLES)
  return StochasticResult(*tables, summary)
