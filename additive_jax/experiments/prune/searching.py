"""Which structures of a pool are healed: found on calibration sets, and ranked on the whole split
to choose by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, PyTree

from additive_jax.batches import num_examples, rows
from additive_jax.errors import UserError
from additive_jax.experiments.options import refused
from additive_jax.experiments.session import Session, first_input
from additive_jax.experiments.stored import PREFIX, stored_scores
from additive_jax.files.journal import Journal, Record
from additive_jax.gates.networks import all_networks, num_networks
from additive_jax.gates.structure import Space, Structure
from additive_jax.parallel import processes
from additive_jax.report.statistics import mean_and_ci, rank
from additive_jax.run.latency import latency_table
from additive_jax.search import Budget, Costs, Path, effects, find
from additive_jax.search.costs import within
from additive_jax.search.evaluations import Evaluations
from additive_jax.search.evaluator import PoolEvaluator
from additive_jax.search.probe import stream_changes
from additive_jax.search.problem import Problem

ENUMERATED = 4096  # up to so many networks all within the budget are ranked
ALL, MANY = 'all', 'bayesian'
LATENCIES = 'latency.json'


@dataclasses.dataclass(frozen=True)
class Every:
  """The method of few networks: all of them within the budget, and all-on."""

  def run(self, problem: Problem) -> None:
    bits = all_networks(problem.space)
    inside = within(problem.costs, bits, problem.limit) | bits.all(1)
    problem.judge(bits[inside])


class SetEvaluator(PoolEvaluator):
  """The losses of structures by a calibration set, which a stop is heard of. They are infinite for
  those of a pretrained network that nobody else can run, so that these are not found."""

  def __init__(self, session: Session, variables: PyTree, batch: tuple[Any, Any]):
    super().__init__(session.model, variables, batch, session.task)
    self._session = session

  def __call__(self, bits: Bool[np.ndarray, 'S n'], share: float = 1.0) -> Float[np.ndarray, 'S']:
    """Returns the losses."""
    losses, runs = np.full(len(bits), np.inf), exportable(self._session, bits)
    if runs.any():
      losses[runs] = super().__call__(bits[runs], share)
    return losses

  def scores(self, bits: Bool[np.ndarray, 'S n'], batch: tuple[Any, Any]) -> Mapping[str, Any]:
    """Returns the scores of structures by some examples."""
    return self._session.evaluate(self._variables, bits, batch).scores


def exportable(session: Session, bits: Bool[np.ndarray, 'S n']) -> Bool[np.ndarray, ' S']:
  """Returns which structures can be written as others read them; all of a network of one's own."""
  if session.pretrained is None:
    return np.ones(len(bits), bool)
  from additive_jax.pretrained.dropped import kept

  found = np.ones(len(bits), bool)
  for number, row in enumerate(bits):
    try:
      kept(session.model, Structure(tuple(row.tolist())))
    except UserError:
      found[number] = False
  return found


def budget_of(session: Session) -> Budget:
  """Returns the budget of the options."""
  options = session.config.prune
  return Budget(options.cost, options.budget, of=options.of)


def costs_of(session: Session, variables: PyTree | None = None) -> Costs | None:
  """Returns what structures cost; None for latencies without a pool, which are still to be
  measured. Those that were are a file of the run."""
  kind = session.config.prune.cost
  if kind != 'latency':
    return Costs.of_space(kind, session.space)
  if variables is None:
    return None
  path = session.rundir.path / LATENCIES
  table = latency_table(path, session.model, variables, first_input(session.data))
  return Costs.of_latency(table, session.space)


def check(session: Session) -> None:
  """Raises `UserError` for a budget that no structure meets, and calibration sets that are more
  than there is to choose by."""
  options, config = session.config.prune, session.config
  if costs := costs_of(session):
    try:
      budget_of(session).limit(costs)
    except UserError as error:
      raise UserError(f'config.prune.{error}') from error
  count = len(session.data.test if session.data.valid is None else session.data.valid)
  if not options.calibration_examples and options.sets > 1:
    raise refused(
      config, 'prune.sets', 'prune.calibration_examples', expected='the size of several sets'
    )
  if options.calibration_examples > count:
    raise refused(
      config,
      'prune.calibration_examples',
      expected=f'at most the {count} of the split to choose by',
    )
  if options.candidates == 1 and options.alone:
    raise refused(config, 'prune.alone', 'prune.candidates', expected='several candidates')


def choose(session: Session, variables: PyTree) -> Record:
  """Returns the candidates and how they were found, as a line of the run's journal; written down,
  so that a run goes on with it. Every evaluation is journalled too.

  `best` has a row for each structure that was ranked on the whole split, best first; `methods` one
  for each method, calibration set and level; `paths` the best structure at every cost of each
  search; `gates` what each gate does alone and on average; `fit` how well that tells losses.
  """
  journal = Journal(session.rundir.journals / 'choice.jsonl')
  for line in journal.sound():
    return line
  costs = costs_of(session, variables)
  assert costs is not None, 'expected a pool'
  limit = budget_of(session).limit(costs)
  paths = dict(_searched(session, variables, costs))
  main = [path for (method, _), path in paths.items() if method == method_of(session)]
  record: Record = {'split': session.chosen_on, 'limit': limit, 'full': costs.full}
  record['best'] = _ranked(session, variables, costs, limit, main).to_dict('records')
  record['methods'] = _compared(session, variables, costs, limit, paths)
  record['paths'] = [
    {'method': method, 'set': number, **row}
    for (method, number), path in paths.items()
    for row in path.table.to_dict('records')
  ]
  record |= _of_gates(session, variables, main)
  if processes.is_primary():
    journal.append(record)
  return record


def method_of(session: Session) -> str:
  """Returns the method of the options, or that of as many networks."""
  few = num_networks(session.space) <= ENUMERATED
  return session.config.prune.method or (ALL if few else MANY)


def calibration_sets(session: Session) -> Iterator[tuple[Any, Any]]:
  """Yields the examples of each calibration set: all to choose by, or some at random, of different
  sets different ones as far as they go."""
  options, batch = session.config.prune, session.valid
  count, size = num_examples(batch), session.config.prune.calibration_examples
  if not size:
    yield batch
    return
  order = np.random.default_rng(session.config.seed).permutation(count)
  for number in range(options.sets):
    yield rows(batch, np.sort(np.take(order, np.arange(size) + number * size, mode='wrap')))


def evaluators(session: Session, variables: PyTree) -> Iterator[dict[str, Any]]:
  """Yields for each calibration set what gives losses on it, and where they are kept."""
  for number, batch in enumerate(calibration_sets(session)):
    evaluate = SetEvaluator(session, variables, batch)
    journal = Journal(session.rundir.journals / f'search-{number}.jsonl')
    yield {'evaluate': evaluate, 'journal': journal, 'identity': evaluate.identity()}


def _searched(session, variables, costs) -> Iterator[tuple[tuple[str, int], Path]]:
  """Every method on every calibration set; those of a set share what they evaluate."""
  options, method = session.config.prune, method_of(session)
  budget = budget_of(session)
  for number, judged in enumerate(evaluators(session, variables)):
    x = judged['evaluate'].batch[0]
    changes = lambda kind, x=x: stream_changes(session.model, variables, x, kind)
    for name in dict.fromkeys((method, *options.baselines)):
      yield (
        (name, number),
        find(
          costs=costs,
          method=Every() if name == ALL else name,
          budget=budget,
          seed=session.config.seed,
          evaluations=options.evaluations or None,
          probe=changes,
          **judged,
        ),
      )


def _ranked(session, variables, costs, limit, paths) -> pd.DataFrame:
  """The best structures of each set, ranked on the whole split."""
  bits = []
  for path in paths:
    inside = np.flatnonzero(within(costs, path.bits, limit) & np.isfinite(path.losses))
    first = inside[np.argsort(path.losses[inside], kind='stable')]
    # Where the set is the whole split, they are ranked already.
    most = None if len(paths) == 1 else session.config.prune.ranked
    bits.append(path.bits[first[:most]])
  found = np.unique(np.concatenate(bits), axis=0)
  scores = session.evaluate(variables, found, session.valid).scores
  cost, score = session.task.cost(scores), session.task.rank_by
  table = pd.DataFrame({'structure': [_text(row) for row in found]})
  for name, values in scores.items():
    table[name] = values
  stored = stored_scores(session, variables, found, session.valid)
  if (name := f'{PREFIX}{score}') in stored:
    table[name] = stored[name]
  table['flops'], table['params'] = session.space.costs(found)
  if costs.kind == 'latency':
    table['latency'] = costs.of(found)
  table['rank'] = rank(cost)
  return table.sort_values('rank', kind='stable')


def _compared(session, variables, costs, limit, paths) -> list[Record]:
  """The best structure of every method and set at each level, by the test split too."""
  levels = np.linspace(costs.full, limit, session.config.prune.levels + 1)[1:]
  lines: list[Record] = []
  for (method, number), path in paths.items():
    for level, most in enumerate(levels):
      inside = within(costs, path.bits, most) & np.isfinite(path.losses)
      if inside.any():
        structure = str(path.at(most))
        line = {'method': method, 'set': number, 'level': level, 'most': float(most)}
        line |= {'structure': structure, 'calibration_loss': path.loss(path.at(most))}
        lines.append(line | {'evaluations': path.evaluations})
  different = list(dict.fromkeys(line['structure'] for line in lines))
  bits = np.array([session.space.parse(text).bits for text in different])
  cost = dict(zip(different, costs.of(bits).tolist()))
  for split, word in ((session.valid, 'valid_'), (session.test, '')):
    if not word or session.data.valid is not None:
      scores = session.evaluate(variables, bits, split).scores
      for name, values in scores.items():
        of = dict(zip(different, np.asarray(values).tolist()))
        for line in lines:
          line[f'{word}{name}'] = of[line['structure']]
  return [line | {costs.kind: cost[line['structure']]} for line in lines]


def _of_gates(session, variables, paths) -> dict[str, Any]:
  """What each gate does alone, with the interval over calibration sets, and on average in what the
  searches saw. Most of what it asks for they have evaluated."""
  space = session.space
  n = space.num_gates
  alone = ~np.eye(n + 1, n, -1, dtype=bool)  # all on, then each off
  asked = [
    Evaluations(each['evaluate'], space, each['journal'], each['identity'])
    for each in evaluators(session, variables)
  ]
  losses = np.array([judge(alone) for judge in asked])
  mean, half_width = mean_and_ci(losses[:, 1:] - losses[:, :1])
  bits = np.concatenate([path.bits for path in paths])
  found = effects(bits, np.concatenate([path.losses for path in paths]), gates=space)
  flops, params = space.costs(alone)
  gates = pd.DataFrame({'gate': list(space.names), 'alone': mean, 'alone_ci95': half_width})
  gates['effect'] = found.main
  gates['flops'], gates['params'] = flops[0] - flops[1:], params[0] - params[1:]
  fit = None if found.held_out is None else dataclasses.asdict(found.held_out)
  return {'gates': gates.to_dict('records'), 'fit': fit}


def _text(row: Bool[np.ndarray, ' n']) -> str:
  return str(Structure(tuple(row.tolist())))


def candidates(space: Space, line: Record, count: int) -> list[Structure]:
  """Returns the structures that are healed, best first."""
  return [space.parse(row['structure']) for row in line['best'][:count]]
