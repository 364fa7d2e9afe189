"""How well a shared pool ranks structures, by how it is trained, at the cost of two trainings.

  python benchmarks/rankers.py --results=rankers.jsonl [--spaces=equal,exp1] [--rankers=fair 4]

Claim: at the cost of at most two trainings of all-on, a pool ranks structures at 0.9 of the noise
ceiling or better, on spaces whose ceiling is at least 0.9.

Method: two spaces of 64 structures on digits, a residual MLP of 6 blocks of 32 hidden units each
(`equal`), and that of `configs/exp1.py`. All are trained alone with 44 seeds (exp1: 16), for a
ceiling near 0.9; their mean test loss is the truth. Each ranker trains 10 pools of seeds of their
own (100 to 109), for as many steps as the FLOPs of two trainings of all-on pay, and ranks all
structures by validation loss, as a sweep does. A backward pass counts as two forward ones; a
distilled step pays for all-on's forward pass, and a split for its gradients. Reading a pool, which
every ranker does, is not counted. `K` in a name is the number of structures of a step. Random
search trains structures drawn at random alone for the same FLOPs and takes the best of them by
validation loss: 1,000 draws in each seed.

Results are appended to a file, a line for each seed alone and each pool; a second start goes on.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
from absl import app, flags

import additive_jax as aj
from additive_jax import models
from additive_jax.experiments.network import make_model
from additive_jax.experiments.opening import load_data
from additive_jax.experiments.options import Options, read_options, replaced
from additive_jax.experiments.task import make_task
from additive_jax.experiments.training import Training
from additive_jax.files.journal import Journal
from additive_jax.gates.structure import all_bits
from additive_jax.parallel import processes
from additive_jax.report import rankings, statistics
from additive_jax.run.evaluate import evaluate_structures
from additive_jax.train.disagreement import disagreement
from additive_jax.train.population import Population
from additive_jax.train.ranking_samplers import Held
from additive_jax.train.trainer import Trainer

RESULTS = flags.DEFINE_string('results', 'rankers.jsonl', 'Where results are kept.')
SPACES_ = flags.DEFINE_list('spaces', ['equal', 'exp1'], 'Some of the spaces.')
RANKERS_ = flags.DEFINE_list('rankers', None, 'Some of the rankers, by name; all if unset.')
SECONDS = flags.DEFINE_integer(
  'seconds', 10**6, 'After how many CPU seconds no other training begins.'
)

SEEDS = {'equal': range(44), 'exp1': range(16)}  # alone, for a ceiling near 0.9
POOL_SEEDS, TOP, BASE = range(100, 110), 8, 'uniform 2'
SPLIT_DRAWS = 4  # structures whose gates are turned to see along which one to split
TRAININGS = 2.0  # of all-on, which a ranker may cost
EQUAL = {
  'data.name': 'digits',
  'model.num_blocks': 6,
  'model.width': 32,
  'model.hidden': (32,),
  'learning_rate': 2e-3,
  'train.epochs': 5.0,
}


@dataclasses.dataclass(frozen=True)
class Ranker:
  """How a pool is trained.

  Attributes:
    options: those of the config that differ.
    trainings: of all-on, which the pool may cost.
    split_after: share of its steps after which the pool is split in two; 0 is not at all.
    pools: how many pools share the cost; structures are ranked by their mean loss.
  """

  options: Mapping[str, Any]
  trainings: float = TRAININGS
  split_after: float = 0.0
  pools: int = 1


def _pool(name, slots, trainings=TRAININGS, split_after=0.0, pools=1, **more):
  options = {'sampler.name': name, 'train.structures_per_step': slots}
  options |= {key.replace('__', '.'): more[key] for key in more}
  return Ranker(options, trainings, split_after, pools)


RANKERS = {
  'uniform 1': _pool('uniform', 1),
  'uniform 2': _pool('uniform', 2),
  'uniform 4': _pool('uniform', 4),
  'sandwich 4': _pool('sandwich', 4),
  'uniform 2 distilled': _pool('uniform', 2, train__distill=0.5),
  'fair 2': _pool('fair', 2),
  'fair 4': _pool('fair', 4),
  'progressive 1': _pool('progressive', 1, sampler__ramp=0.7),
  'progressive 2': _pool('progressive', 2, sampler__ramp=0.7),
  'progressive 2 to the end': _pool('progressive', 2, sampler__ramp=1.0),
  'progressive 2 half': _pool('progressive', 2, trainings=1.0, sampler__ramp=0.7),
  'uniform 1 in 4 pools': _pool('uniform', 1, pools=4),
  'uniform 2 in 2 pools': _pool('uniform', 2, pools=2),
  'fair 2 in 2 pools': _pool('fair', 2, pools=2),
  'split 2': _pool('uniform', 2, split_after=0.4),
  'uniform 2 long': _pool('uniform', 2, trainings=4 * TRAININGS),
}


def options_of(space: str) -> Options:
  """Returns the options of a space."""
  if space == 'equal':
    return replaced(Options(), EQUAL)
  return read_options(aj.load_config(space))


gate_disagreement = jax.jit(disagreement, static_argnums=0)


@jax.jit
def drawn(sampler, steps):
  """Returns the structures of steps."""
  key = jax.random.key(0)
  return jax.vmap(lambda step: sampler(jax.random.fold_in(key, step), step))(steps)


class Space:
  """A network, its data and its structures."""

  def __init__(self, name: str):
    self.name, self.options = name, options_of(name)
    self.data = load_data(self.options.data)
    self.task = make_task(self.options, self.data)
    self.model = make_model(self.options.model, self.data)
    self.space = models.measure(self.model, self.data.train[np.zeros(1, np.int64)][0])
    self.bits = all_bits(self.space.num_gates)
    self.flops = self.space.costs(self.bits)[0].astype(float)
    self._trainings: dict[str, Training] = {}

  def training(self, changed: Mapping[str, Any]) -> Training:
    """Returns how pools are trained with changed options; the same object each time."""
    key = repr(sorted(changed.items()))
    if key not in self._trainings:
      options = replaced(self.options, dict(changed))
      self._trainings[key] = Training(options, self.model, self.data, self.task)
    return self._trainings[key]

  @property
  def steps_alone(self) -> int:
    """Steps of a structure alone."""
    return self.training({}).steps(self.options.train.epochs)

  def flops_of(self, sampler, distill: float, num_steps: int) -> float:
    """Returns FLOPs of a training with the structures that a sampler draws, as a multiple of those
    of a training of all-on: the mean of 1,024 steps times their number."""
    bits = np.asarray(drawn(sampler, jnp.linspace(0, num_steps - 1, 1024).astype(int)))
    of_slots = self.flops[bits @ (1 << np.arange(bits.shape[-1]))]
    forward = 3 * of_slots + (self.flops[-1] if distill else 0)
    return float(forward.sum(1).mean()) * num_steps / (3 * self.flops[-1] * self.steps_alone)

  def alone(self, seed: int) -> dict[str, Any]:
    """Trains all structures alone; returns their losses."""
    recipe = self.training({}).recipe(self.steps_alone)
    size = self.options.train.batch_size
    population = Population(recipe, self.data, batch_size=size, seed=seed)
    rows = np.zeros((2, len(self.bits)))
    for member in population.train(list(map(tuple, self.bits)), self.steps_alone):
      place = np.asarray(member.structure.bits) @ (1 << np.arange(self.bits.shape[1]))
      rows[:, place] = member.valid['loss'], member.scores['loss']
    return {'valid': rows[0].tolist(), 'test': rows[1].tolist(), 'steps': self.steps_alone}

  def pools(self, ranker: Ranker, seed: int) -> dict[str, Any]:
    """Trains the pools of a ranker; returns the mean losses of all structures in them."""
    one = dataclasses.replace(ranker, trainings=ranker.trainings / ranker.pools, pools=1)
    lines = [self.pool(one, seed + 1000 * number) for number in range(ranker.pools)]
    mean = lambda name: np.mean([line[name] for line in lines], axis=0).tolist()
    total = sum(line['trainings'] for line in lines)
    return {**lines[0], 'valid': mean('valid'), 'test': mean('test'), 'trainings': total}

  def pool(self, ranker: Ranker, seed: int) -> dict[str, Any]:
    """Trains a pool; returns the losses of all structures in it."""
    training = self.training(ranker.options)
    distill, steps = training.config.train.distill, self.steps_alone
    gradients = SPLIT_DRAWS * (1 + self.bits.shape[1]) if ranker.split_after else 0
    choice = gradients * self.flops.mean() / self.flops[-1] / self.steps_alone
    for _ in range(3):  # what a step costs may depend on how many there are
      cost = self.flops_of(training.sampler(steps), distill, steps)
      steps = int(steps * (ranker.trainings - choice) / cost)
    sampler, warm = training.sampler(steps), round(ranker.split_after * steps)
    cost = choice + self.flops_of(sampler, distill, steps)
    line = {'trainings': cost, 'steps': steps}
    if not warm:
      trainer = self.trainer(training, sampler, steps, seed)
      trainer.run(steps)
      return line | self.judged(trainer.variables, self.bits)
    last = warm + (steps - warm) // 2
    first = self.trainer(training, sampler, last, seed)
    first.run(warm)
    state = processes.to_host(first.state)
    draws = jax.random.bernoulli(jax.random.key(seed), 0.5, (SPLIT_DRAWS, self.bits.shape[1]))
    batch = self.data.train[np.arange(training.config.train.batch_size)]
    apart = np.asarray(gate_disagreement(first.recipe, state.params, draws, *batch))
    gate, scores = int(apart.argmax()), []
    line |= {'gate': gate, 'disagreement': apart.tolist()}
    for value in (False, True):
      held = Held(sampler, jnp.int32(gate), jnp.bool_(value))
      half = self.trainer(training, held, last, seed, state)
      half.run(last - warm)
      scores.append(self.judged(half.variables, self.bits))
    off, on = scores
    choose = lambda name: np.where(self.bits[:, gate], on[name], off[name]).tolist()
    return line | {name: choose(name) for name in off}

  def trainer(self, training, sampler, last, seed, state=None):
    """Returns the trainer of a pool whose schedule ends at step `last`."""
    size, recipe = training.config.train.batch_size, training.recipe(last)
    return Trainer(recipe, self.data.train, sampler, batch_size=size, seed=seed, state=state)

  def judged(self, variables, bits) -> dict[str, list[float]]:
    """Returns losses of structures in a pool."""
    splits = {'valid': self.data.valid, 'test': self.data.test}
    judge = lambda split: evaluate_structures(self.model, variables, split, bits, task=self.task)
    return {name: judge(split).loss.tolist() for name, split in splits.items()}


def main(argv):
  """Trains what is missing, and prints the tables."""
  del argv
  journal = Journal(RESULTS.value)
  done = {(line['space'], line['ranker'], line['seed']): line for line in journal.sound()}
  for name in SPACES_.value:
    space = Space(name)
    jobs = [('alone', seed, space.alone, (seed,)) for seed in SEEDS[name]]
    for ranker in RANKERS_.value or RANKERS:
      jobs += [(ranker, seed, space.pools, (RANKERS[ranker], seed)) for seed in POOL_SEEDS]
    for ranker, seed, job, arguments in jobs:
      if (name, ranker, seed) in done or time.process_time() > SECONDS.value:
        continue
      before = time.process_time()
      line = {'space': name, 'ranker': ranker, 'seed': seed, **job(*arguments)}
      line['cpu_seconds'] = round(time.process_time() - before, 2)
      journal.append(line)
      done[name, ranker, seed] = line
      print(name, ranker, seed, f'{line["cpu_seconds"]:.1f} s', file=sys.stderr, flush=True)
    lines = {ranker: [] for ranker in ('alone', *RANKERS)}
    for (other, ranker, _), line in done.items():
      if other == name and ranker in lines:
        lines[ranker].append(line)
    report(space, lines)


def report(space: Space, lines: Mapping[str, list[dict[str, Any]]]) -> None:
  """Prints the table of a space."""
  tests, valids = (np.array([line[part] for line in lines['alone']]) for part in ('test', 'valid'))
  truth, noise = tests.mean(0), rankings.noise_ceiling(tests)
  ceiling = noise.tau_of_mean
  rows = [row(f'{len(truth)} structures alone, one seed', len(truth), valids, truth, ceiling)]
  tables_of = lambda ranker: np.array([line['valid'] for line in sorted_by_seed(lines[ranker])])
  base = tables_of(BASE) if lines[BASE] else None
  for ranker in RANKERS:
    if found := lines[ranker]:
      trainings, tables = np.mean([line['trainings'] for line in found]), tables_of(ranker)
      rows.append(row(ranker, trainings, tables, truth, ceiling, base))
  best = random_search(space, valids, truth)
  mean, half = statistics.mean_and_ci(best[:, None])
  rows.append(['random search', TRAININGS, *[''] * 6, f'{mean[0]:.3f} ± {half[0]:.3f}'])
  random_regret = rankings.random_top_k_baseline(truth, 1)[1]
  title = (
    f'{space.name}: noise ceiling τ {ceiling:.3f} ({len(tests)} seeds, '
    f'{noise.tau_between_seeds:.3f} between single seeds)'
  )
  head = ['ranker', 'trainings', 'τ', 'of the ceiling', f'less {BASE}', 'by main effects']
  timing.report(
    title,
    [*head, 'τ of the mean', f'top-{TOP} recall', 'regret'],
    rows,
    f'A structure drawn at random has a regret of {random_regret:.3f}. Intervals are of 95 %, over '
    'pools, in the first and last row over seeds. By main effects: τ, of the ceiling, where '
    'structures are ranked by the main effects of the gates in the table of the pool. Differences '
    f'from {BASE} are of the ceiling and paired by seed.',
    f'CPU seconds of all trainings, compile included: '
    f'{sum(line["cpu_seconds"] for of in lines.values() for line in of):.0f}.',
  )


def sorted_by_seed(lines):
  return sorted(lines, key=lambda line: line['seed'])


def row(name, trainings, tables, truth, ceiling, base=None):
  """Returns the row of a ranker that gives these losses [pools, S]."""
  over = lambda measure, tables=tables: np.array([measure(table, truth) for table in tables])
  taus, smooth = over(rankings.kendall_tau), [main_effects(table) for table in tables]
  recall = over(lambda table, truth: rankings.top_k_recall(table, truth, TOP))
  text = lambda values: ' ± '.join(
    f'{part[0]:.3f}' for part in statistics.mean_and_ci(values[:, None])
  )
  difference = ''
  if base is not None and base is not tables and len(base) == len(tables):
    difference = text((taus - over(rankings.kendall_tau, base)) / ceiling)
  cells = [
    text(taus),
    text(taus / ceiling),
    difference,
    text(over(rankings.kendall_tau, smooth) / ceiling),
    f'{rankings.kendall_tau(tables.mean(0), truth):.3f}',
    f'{recall.mean():.2f}',
    text(over(rankings.regret)),
  ]
  return [name, f'{trainings:.2f}', *cells]


def main_effects(values):
  """Returns what the main effects of a table of all structures say of each of them."""
  coefficients = statistics.walsh_hadamard(values)
  gates = np.arange(len(values).bit_length() - 1)
  signs = np.where(all_bits(len(gates)), 1.0, -1.0)
  return coefficients[0] + signs @ coefficients[1 << gates]


def random_search(space: Space, valids, truth, draws: int = 1000):
  """Returns for each seed the mean regret of the best of structures drawn at random, as many as the
  FLOPs of the rankers train alone."""
  random = np.random.default_rng(0)
  regrets = np.zeros((len(valids), draws))
  for seed, valid in enumerate(valids):
    for draw in range(draws):
      order = random.permutation(len(truth))
      spent = np.cumsum(space.flops[order]) / space.flops[-1]
      chosen = order[: max(1, np.searchsorted(spent, TRAININGS, side='right'))]
      regrets[seed, draw] = truth[chosen[valid[chosen].argmin()]] - truth.min()
  return regrets.mean(1)


if __name__ == '__main__':
  app.run(main)
