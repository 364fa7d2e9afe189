"""Compression: what a trained network can do without, found by sparse variational dropout and by
magnitude, and cut out.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Unpack

import jax
import numpy as np
import optax
import pandas as pd
from ml_collections import ConfigDict

from additive_jax import cut, placement
from additive_jax.errors import UserError
from additive_jax.evaluate import evaluate_structures
from additive_jax.experiments import compress_report, compress_tables
from additive_jax.experiments.fit import fit
from additive_jax.experiments.options import check_unsharded
from additive_jax.experiments.results import read_results, run_once, write_results
from additive_jax.experiments.session import Opening, Session
from additive_jax.gradients import Recipe
from additive_jax.journal import Journal, read_all
from additive_jax.optimizers import make_optimizer, make_schedule
from additive_jax.samplers import listed
from additive_jax.sparse import levels, magnitude
from additive_jax.sparse.masks import keep_zeros
from additive_jax.sparse.variational import (
  LOG_VARIANCE,
  MEAN,
  Variational,
  VariationalLoss,
  kept,
  total_divergence,
)
from additive_jax.structure import Structure
from additive_jax.train import Trainer, init_state

log = logging.getLogger('additive_jax')

START, DENSE, VARIATIONAL, UNTUNED, MATCHED = (
  'start',
  'dense',
  'variational',
  'variational_untuned',
  'magnitude_matched',
)
TABLES = ('variants', 'structures', 'layers')
JOURNAL = 'compress.jsonl'
RECEIPT_EXAMPLES = 256


@dataclasses.dataclass(frozen=True)
class CompressResult:
  """What a compression gave; every part is also a file of the run directory.

  Attributes:
    variants: one row per network, means over the seeds (`variants.csv`).
    structures: one row per network and seed: its gates, what is left of it (`structures.csv`).
    layers: one row per network and layer, means over the seeds (`layers.csv`).
    summary: the headline figures (`summary.json`).
  """

  variants: pd.DataFrame
  structures: pd.DataFrame
  layers: pd.DataFrame
  summary: dict


def run(config: ConfigDict, workdir=None, **opening: Unpack[Opening]) -> CompressResult:
  """Compresses `config.model` as `config.compress` says, or goes on with it, and writes the run
  directory. Args and errors are those of `sweep.run`.

  For each seed: a network is trained for `train.epochs`; all others start from it and take as many
  epochs more. One stays dense; one learns its noise for `compress.epochs`, loses what has too much
  of it, and is tuned for `compress.tune_epochs`; the others lose what is small, at once, and are
  tuned all the time.
  """
  check_unsharded(config)
  return run_once(config, workdir, work=_run, read=_read, check=_check, **opening)


def _check(session):
  """Everything that can be said before any training."""
  options = session.config.compress
  for name in ('epochs', 'variance_rate'):
    if not options[name] > 0:
      raise UserError(f'config.compress.{name} {options[name]}: expected a positive number')
  for name in ('tune_epochs', 'kl'):
    if options[name] < 0:
      raise UserError(f'config.compress.{name} {options[name]}: expected 0 or more')
  if not 0 <= options.ramp <= 1:
    raise UserError(f'config.compress.ramp {options.ramp}: expected a share of the run in [0, 1]')
  sparsities = tuple(options.sparsities)
  if len(set(sparsities)) < len(sparsities) or not all(0 < share < 1 for share in sparsities):
    raise UserError(
      f'config.compress.sparsities {sparsities}: expected shares in (0, 1), each once'
    )
  if session.config.train.distill:
    raise UserError(
      f'config.train.distill {session.config.train.distill} in a compression: expected 0'
    )
  if options.scope not in magnitude.SCOPES:
    known = ', '.join(magnitude.SCOPES)
    raise UserError(f'config.compress.scope {options.scope!r}: expected one of {known}')
  session.check_in_memory()
  Compressor.of(session)


def _run(session: Session) -> CompressResult:
  folder = session.rundir.journals
  done = {(r['seed'], r['variant']): r for r in read_all(folder, JOURNAL)}
  compressor = Compressor.of(session)
  for seed in session.seeds:
    if any((seed, name) not in done for name in compressor.names):
      for record in compressor.compress(seed, {n: r for (s, n), r in done.items() if s == seed}):
        done[seed, record['variant']] = record
        if placement.is_primary():
          Journal(folder / JOURNAL).append(record)
  records = {name: [done[seed, name] for seed in session.seeds] for name in compressor.names}
  variants = compress_tables.variants(records)
  structures, layers = compress_tables.structures(records), compress_tables.layers(records)
  summary = compress_tables.summarise(session, variants)
  result = CompressResult(variants, structures, layers, summary)
  curves = session.metrics.read(session.rundir.path)
  page = compress_report.render(session, result, records, curves)
  tables = dict(zip(TABLES, (variants, structures, layers)))
  write_results(session, tables, summary, page)
  return _read(session.rundir)


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained network: its pool on the host, and its gates, bool [n]; `units` as in `Pruned`."""

  params: Any
  structure: np.ndarray
  units: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Compressor:
  """How the networks of a run are trained and judged; the recipes are made once, and with them
  their programs.

  Attributes:
    session: the run.
    level: what is removed.
    noisy: the run with the network under noise.
    learn: the recipe that learns the noise.
    tune: that of networks without what was removed, by number of steps.
  """

  session: Session
  level: levels.Weights | levels.Units | levels.Gates
  noisy: Session
  learn: Recipe
  tune: dict[int, Recipe]

  @classmethod
  def of(cls, session: Session) -> Compressor:
    """For the options `config.compress` of a run.

    Raises:
      UserError: for a level that the model does not have.
    """
    options, data = session.config.compress, session.data
    x = session.test[0][:1]
    level = levels.make_level(options.level, session.model, x, inputs=options.inputs)
    model = Variational(level, options.log_variance)
    steps = session.steps(options.epochs)
    means = make_optimizer(session.config, steps)
    rate = session.config.learning_rate * options.variance_rate
    faster = session.with_options({'learning_rate': rate}).config
    # What pulls weights to zero has no meaning for log σ².
    variances = optax.adam(make_schedule(faster, steps))
    labels = lambda pool: {name: jax.tree.map(lambda _, n=name: n, pool[name]) for name in pool}
    optimizer = optax.multi_transform({MEAN: means, LOG_VARIANCE: variances}, labels)
    terms = len(data.train) * (data.example_shape[0] if data.task == 'language' else 1)
    loss = VariationalLoss(terms, options.kl, options.ramp * steps)
    learn = Recipe(model, session.objective, optimizer, loss=loss)
    lengths = {session.steps(options.epochs + options.tune_epochs)}
    if options.tune_epochs:
      lengths.add(session.steps(options.tune_epochs))
    tune = {
      n: dataclasses.replace(
        session.recipe(n), optimizer=keep_zeros(make_optimizer(session.config, n))
      )
      for n in lengths
    }
    return cls(session, level, dataclasses.replace(session, model=model), learn, tune)

  @property
  def names(self) -> list[str]:
    """Of the networks of each seed."""
    sparse = [named(sparsity) for sparsity in self.session.config.compress.sparsities]
    untuned = [UNTUNED] * bool(self.session.config.compress.tune_epochs)
    return [START, DENSE, *untuned, VARIATIONAL, MATCHED, *sparse]

  def compress(self, seed: int, done: dict):
    """Yields the records of a seed that are not `done`, by name, as they come to be."""
    options = self.session.config.compress
    start = self._start(seed)
    judge = lambda name, network, **more: self._judged(seed, name, network, **more)
    if START not in done:
      yield judge(START, start)
    whole = self.session.steps(options.epochs + options.tune_epochs)
    if DENSE not in done:
      yield judge(DENSE, self._tuned(start, whole, f'{DENSE}-seed{seed}', seed))
    learnt = None
    if {UNTUNED, VARIATIONAL, MATCHED} & set(self.names) - set(done):
      keep, histogram, pool = self._learnt(start, seed)
      learnt = self._network(self.level.prune(pool, keep))
      found = {'histogram': histogram}
      if UNTUNED in self.names and UNTUNED not in done:
        yield judge(UNTUNED, learnt, keep=keep)
      if VARIATIONAL not in done:
        steps = self.session.steps(options.tune_epochs) if options.tune_epochs else 0
        tuned = self._tuned(learnt, steps, f'{VARIATIONAL}-tuned-seed{seed}', seed)
        yield judge(VARIATIONAL, tuned, keep=keep, **found)
      if MATCHED not in done:
        yield self._pruned(start, self._matching(keep), MATCHED, whole, seed)
    for sparsity in options.sparsities:
      if named(sparsity) not in done:
        yield self._pruned(start, self._share(sparsity), named(sparsity), whole, seed)

  def _start(self, seed) -> Network:
    session = self.session
    steps = session.steps(session.config.train.epochs)
    every = np.ones(session.space.num_gates, bool)
    trainer = session.trainer(session.recipe(steps), self._sampler(every), seed)
    fit(session, trainer, steps, f'{START}-seed{seed}')
    return Network(_params(trainer), every)

  def _learnt(self, start, seed):
    """What stays, how log α is spread, and the means, of the network that learns its noise."""
    session, options, model = self.noisy, self.session.config.compress, self.learn.model
    state = init_state(self.learn, {'params': model.pool(start.params)})
    trainer = session.trainer(self.learn, self._sampler(start.structure), seed, state)
    size = sum(int(np.prod(shape)) for _, shape in self.level.shapes)

    def probe(trainer):
      found = kept(model.log_alpha(trainer.state.params), options.threshold)
      return {
        'kept': sum(int(own.sum()) for own in found.values()) / size,
        'divergence': float(total_divergence(model, trainer.state.params)),
      }

    tag = f'{VARIATIONAL}-seed{seed}'
    fit(session, trainer, session.steps(options.epochs), tag, probe=probe)
    pool = _params(trainer)
    found = {name: np.asarray(values) for name, values in model.log_alpha(pool).items()}
    counts, _ = np.histogram(np.concatenate([a.ravel() for a in found.values()]), levels.BINS)
    return kept(found, options.threshold), counts.tolist(), pool[MEAN]

  def _pruned(self, start, count, name, steps, seed):
    """The record of a network that loses all but `count` of what is small."""
    found = magnitude.magnitudes(self.level, start.params)
    keep = magnitude.largest(found, count, self.session.config.compress.scope)
    network = self._network(self.level.prune(start.params, keep))
    tuned = self._tuned(network, steps, f'{name}-seed{seed}', seed)
    return self._judged(seed, name, tuned, keep=keep)

  def _matching(self, keep) -> int | dict[str, int]:
    """As many as variational dropout keeps: weights and gates in all, units of each space, so that
    FLOPs are the same too."""
    counts = {name: int(own.sum()) for name, own in keep.items()}
    return counts if isinstance(self.level, levels.Units) else sum(counts.values())

  def _share(self, sparsity) -> int | dict[str, int]:
    sizes = {name: int(np.prod(shape)) for name, shape in self.level.shapes}
    if isinstance(self.level, levels.Units):
      return {name: max(1, round((1 - sparsity) * size)) for name, size in sizes.items()}
    return round((1 - sparsity) * sum(sizes.values()))

  def _tuned(self, network, steps, name, seed) -> Network:
    """The network after that many steps, in which what is zero stays zero."""
    if not steps:
      return network
    recipe = self.tune[steps]
    state = init_state(recipe, {'params': network.params})
    trainer = self.session.trainer(recipe, self._sampler(network.structure), seed, state)
    fit(self.session, trainer, steps, name)
    return dataclasses.replace(network, params=_params(trainer))

  def _network(self, pruned: levels.Pruned) -> Network:
    return Network(pruned.params, pruned.structure, pruned.units)

  def _sampler(self, structure):
    count = self.session.config.train.structures_per_step
    return listed([Structure(tuple(map(bool, structure)))], len(structure), count)

  def _judged(self, seed, name, network, keep=None, **more) -> dict:
    """The record of a network: how good it is, what is left of it, what it costs cut out."""
    session, variables = self.session, {'params': network.params}
    structure = Structure(tuple(map(bool, network.structure)))
    found = evaluate_structures(
      session.model,
      variables,
      session.test,
      [structure],
      task=session.objective,
      devices=session.workers,
    )
    smaller = cut.cut(session.model, variables, structure, network.units or None)
    x = session.test[0][:RECEIPT_EXAMPLES]
    receipt = cut.receipt(smaller, session.model, variables, x)
    if receipt.max_difference > 1e-3:
      log.warning('%s of seed %d: cut out, logits differ by %g', name, seed, receipt.max_difference)
    cost = cut.cost(smaller.model, smaller.variables, x[:1])
    left = compress_tables.left(self.level, keep)
    return {
      'seed': seed,
      'variant': name,
      'loss': float(found.loss[0]),
      'accuracy': float(found.accuracy[0]),
      'structure': str(structure),
      'nonzero': compress_tables.nonzero(self.level, left, smaller.variables['params']),
      'weights': compress_tables.weights(network.params),
      'flops': cost.flops,
      'bytes': cost.bytes,
      'receipt': receipt.max_difference,
      'left': left,
      **more,
    }


def named(sparsity: float) -> str:
  """The name of the baseline at a sparsity, such as `magnitude_0.975`."""
  return f'magnitude_{sparsity:g}'


def _params(trainer: Trainer):
  return placement.to_host(trainer.state.params)


def _read(rundir):
  tables, summary = read_results(rundir, TABLES)
  return CompressResult(*tables, summary)
