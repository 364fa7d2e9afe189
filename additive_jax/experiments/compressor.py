"""The networks of a compression: trained, judged, and what is left of them cut out."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from typing import Any

import jax
import numpy as np
import optax

from additive_jax.compress import cutting, exported, levels, magnitude
from additive_jax.compress.masks import keep_zeros
from additive_jax.compress.variational import (
  LOG_VARIANCE,
  MEAN,
  Variational,
  VariationalLoss,
  kept,
  total_divergence,
)
from additive_jax.data import ArraySplit
from additive_jax.errors import user_errors
from additive_jax.experiments import compress_tables
from additive_jax.experiments.fit import Curves, fit
from additive_jax.experiments.session import Session
from additive_jax.files.rundir import WRITABLE
from additive_jax.gates.structure import Structure
from additive_jax.parallel import processes
from additive_jax.run.evaluate import evaluate_structures
from additive_jax.run.objectives import Distilled
from additive_jax.train.optimizers import make_optimizer, make_schedule
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import listed
from additive_jax.train.state import init_state
from additive_jax.train.trainer import Trainer

log = logging.getLogger('additive_jax')

START, TEACHER, DENSE, VARIATIONAL, UNTUNED, MATCHED = (
  'start',
  'teacher',
  'dense',
  'variational',
  'variational_untuned',
  'magnitude_matched',
)
RECEIPT_EXAMPLES = 256
EXPORTED = 'exported'  # folder of the run directory
TEACHER_BATCH = 2048  # training examples that the teacher sees at once


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
    learn: the recipe that learns the noise.
    tune: that of networks without what was removed, by number of steps.
    dense: that of networks that lose nothing, and have no teacher, by number of steps.
  """

  session: Session
  level: levels.Weights | levels.Units | levels.Gates
  learn: Recipe
  tune: dict[int, Recipe]
  dense: dict[int, Recipe]

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
    objective = session.objective
    if options.distill:
      objective = Distilled(objective, options.distill, options.temperature)
    learn = Recipe(model, objective, optimizer, loss=loss)
    whole = session.steps(options.epochs + options.tune_epochs)
    lengths = {
      whole,
      *(session.steps(n) for n in (options.tune_epochs, options.teacher_epochs) if n),
    }
    dense = {
      n: dataclasses.replace(
        session.recipe(n), optimizer=keep_zeros(make_optimizer(session.config, n))
      )
      for n in lengths
    }
    tune = {n: dataclasses.replace(recipe, objective=objective) for n, recipe in dense.items()}
    return cls(session, level, learn, tune, dense)

  @property
  def names(self) -> list[str]:
    """Of the networks of each seed."""
    sparse = [named(sparsity) for sparsity in self.session.config.compress.sparsities]
    untuned = [UNTUNED] * bool(self.session.config.compress.tune_epochs)
    return [START, *[TEACHER] * self._has_teacher, DENSE, *untuned, VARIATIONAL, MATCHED, *sparse]

  @property
  def _has_teacher(self) -> bool:
    """Whether a network is trained to teach the others."""
    return self.session.config.compress.distill > 0 < self.session.config.compress.teacher_epochs

  def compress(self, seed: int, done: dict):
    """Yields the records of a seed that are not `done`, by name, as they come to be."""
    options = self.session.config.compress
    start = self._start(seed)
    judge = lambda name, network, **more: self._judged(seed, name, network, **more)
    if START not in done:
      yield judge(START, start)
    whole = self.session.steps(options.epochs + options.tune_epochs)
    teacher = start
    if self._has_teacher:
      teacher = self._kept(start, self.session.steps(options.teacher_epochs), TEACHER, seed)
      if TEACHER not in done:
        yield judge(TEACHER, teacher)
    if DENSE not in done:
      yield judge(DENSE, self._kept(start, whole, DENSE, seed))
    taught = self._taught(teacher)
    if {UNTUNED, VARIATIONAL, MATCHED} & set(self.names) - set(done):
      keep, histogram, pool = self._learnt(taught, start, seed)
      learnt = self._network(self.level.prune(pool, keep))
      if UNTUNED in self.names and UNTUNED not in done:
        yield judge(UNTUNED, learnt, keep=keep)
      if VARIATIONAL not in done:
        steps = self.session.steps(options.tune_epochs) if options.tune_epochs else 0
        tuned = self._tuned(taught, learnt, steps, f'{VARIATIONAL}-tuned-seed{seed}', seed)
        yield judge(VARIATIONAL, tuned, keep=keep, histogram=histogram)
      if MATCHED not in done:
        yield self._pruned(taught, start, self._matching(keep), MATCHED, whole, seed)
    for sparsity in options.sparsities:
      if named(sparsity) not in done:
        yield self._pruned(taught, start, self.share(sparsity), named(sparsity), whole, seed)

  def _start(self, seed) -> Network:
    session = self.session
    steps = session.steps(session.config.train.epochs)
    every = np.ones(session.space.num_gates, bool)
    trainer = session.trainer(session.recipe(steps), self._sampler(every), seed)
    fit(session, trainer, steps, f'{START}-seed{seed}')
    return Network(_params(trainer), every)

  def _taught(self, teacher) -> Session:
    """The run with what a network says of its training examples beside their labels."""
    session = self.session
    if not session.config.compress.distill:
      return session
    train, said = session.data.train, []
    structure = Structure.all_on(session.space.num_gates)
    for rows in np.split(np.arange(len(train)), range(TEACHER_BATCH, len(train), TEACHER_BATCH)):
      x = train[rows][0]
      said.append(
        np.asarray(cutting.logits(session.model, {'params': teacher.params}, x, structure))
      )
    split = ArraySplit(train.x, Distilled.targets(train.y, np.concatenate(said)))
    return dataclasses.replace(session, data=dataclasses.replace(session.data, train=split))

  def _learnt(self, taught, start, seed):
    """What stays, how log α is spread, and the means, of the network that learns its noise."""
    options, model = self.session.config.compress, self.learn.model
    session = dataclasses.replace(taught, model=model)
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
    fit(session, trainer, session.steps(options.epochs), tag, Curves(probe=probe))
    pool = _params(trainer)
    found = {name: np.asarray(values) for name, values in model.log_alpha(pool).items()}
    counts, _ = np.histogram(np.concatenate([a.ravel() for a in found.values()]), levels.BINS)
    return kept(found, options.threshold), counts.tolist(), pool[MEAN]

  def _pruned(self, taught, start, count, name, steps, seed):
    """The record of a network that loses all but `count` of what is small."""
    found = magnitude.magnitudes(self.level, start.params)
    keep = magnitude.largest(found, count, self.session.config.compress.scope)
    network = self._network(self.level.prune(start.params, keep))
    tuned = self._tuned(taught, network, steps, f'{name}-seed{seed}', seed)
    return self._judged(seed, name, tuned, keep=keep)

  def _matching(self, keep) -> int | dict[str, int]:
    """As many as variational dropout keeps: weights and gates in all, units of each space, so that
    FLOPs are the same too."""
    counts = {name: int(own.sum()) for name, own in keep.items()}
    return counts if isinstance(self.level, levels.Units) else sum(counts.values())

  def share(self, sparsity: float) -> int | dict[str, int]:
    """How many stay, in all, or of units in each space, where that share is removed."""
    sizes = {name: int(np.prod(shape)) for name, shape in self.level.shapes}
    if isinstance(self.level, levels.Units):
      return {name: max(1, round((1 - sparsity) * size)) for name, size in sizes.items()}
    return max(1, round((1 - sparsity) * sum(sizes.values())))

  def _tuned(self, taught, network, steps, name, seed) -> Network:
    """The network after that many steps, in which what is zero stays zero."""
    if not steps:
      return network
    return self._trained(taught, self.tune[steps], network, steps, name, seed)

  def _kept(self, start, steps, name, seed) -> Network:
    """The network after that many steps, in which nothing is removed."""
    tag = f'{name}-seed{seed}'
    return self._trained(self.session, self.dense[steps], start, steps, tag, seed)

  def _trained(self, session, recipe, network, steps, name, seed) -> Network:
    state = init_state(recipe, {'params': network.params})
    trainer = session.trainer(recipe, self._sampler(network.structure), seed, state)
    fit(session, trainer, steps, name)
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
    smaller = cutting.cut(session.model, variables, structure, network.units or None)
    x = session.test[0][:RECEIPT_EXAMPLES]
    receipt = cutting.receipt(smaller, session.model, variables, x)
    if receipt.max_difference > 1e-3:
      log.warning('%s of seed %d: cut out, logits differ by %g', name, seed, receipt.max_difference)
    cost = cutting.cost(smaller.model, smaller.variables, x[:1])
    if name == VARIATIONAL and processes.is_primary():
      self._hand_over(smaller, f'{name}-seed{seed}', receipt, cost)
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

  def _hand_over(self, smaller, name, receipt, cost):
    """Writes the network that was cut out, with its receipt and costs."""
    folder = self.session.rundir.path / EXPORTED
    with user_errors('write', folder, WRITABLE):
      folder.mkdir(exist_ok=True)
      if (folder / name).exists():  # of a run that was killed before its record
        shutil.rmtree(folder / name)
    notes = {'receipt': dataclasses.asdict(receipt), 'cost': cost._asdict()}
    exported.export(smaller, folder / name, notes=notes)


def named(sparsity: float) -> str:
  """The name of the baseline at a sparsity, such as `magnitude_0.975`."""
  return f'magnitude_{sparsity:g}'


def _params(trainer: Trainer):
  return processes.to_host(trainer.state.params)
