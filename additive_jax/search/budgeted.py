"""A search under a budget: of an evaluator (`find`), and of a pool (`search_pool`).

| method | evaluations, of r gates off of n | source |
| --- | --- | --- |
| leave_one_out | n + r | |
| greedy | n·r | SLEB, BlockPruner |
| lazy_greedy | n + 8·r | |
| beam | 4·n·r, which share most of their sites | |
| evolution | 40·6, mostly by few examples | EvoPress |
| bayesian | 5·n | BOCS, level by level |
| surrogate | 3·n + 48 | a Walsh regression and an exact programme |
| cosine | r, after one forward pass | ShortGPT |
| random | 256 | the control |
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import flax.linen as nn
from jaxtyping import PyTree

from additive_jax.batches import rows
from additive_jax.data.splits import Data
from additive_jax.errors import UserError, checked_seed, did_you_mean, user_path
from additive_jax.files.journal import Journal
from additive_jax.models.additive import space_of
from additive_jax.models.costs import measure
from additive_jax.run.evaluate import as_batch
from additive_jax.run.latency import Latency, latency_table, measure_latency, verify_latency
from additive_jax.run.tasks import Task, task_of
from additive_jax.search.bayesian import Bayesian
from additive_jax.search.costs import Budget, Costs
from additive_jax.search.evaluations import Evaluations, Evaluator, SpentError
from additive_jax.search.evaluator import PoolEvaluator
from additive_jax.search.evolution import Evolution, Random
from additive_jax.search.greedy import Beam, Greedy, LazyGreedy, LeaveOneOut
from additive_jax.search.path import Path
from additive_jax.search.probe import stream_changes
from additive_jax.search.problem import Method, Probe, Problem
from additive_jax.search.surrogate import Cosine, Surrogate

BY_BUDGET: Mapping[str, Method] = types.MappingProxyType(
  {
    'leave_one_out': LeaveOneOut(),
    'greedy': Greedy(),
    'lazy_greedy': LazyGreedy(),
    'beam': Beam(),
    'evolution': Evolution(),
    'bayesian': Bayesian(),
    'surrogate': Surrogate(),
    'cosine': Cosine(),
    'random': Random(),
  }
)


def find(
  evaluate: Evaluator,
  costs: Costs,
  *,
  method: str | Method = 'bayesian',
  budget: float | Budget = 0.8,
  seed: int = 0,
  journal: str | FilePath | Journal | None = None,
  identity: Mapping[str, Any] | None = None,
  evaluations: float | None = None,
  probe: Probe | None = None,
) -> Path:
  """Returns what a search under a budget finds, by an evaluator of any kind.

  >>> space = aj.Space((aj.Gate('a'), aj.Gate('b'), aj.Gate('c')))
  >>> costs = Costs('params', space, gates=(1.0, 2.0, 3.0), fixed=0.0)
  >>> losses = lambda bits, share: 3.0 - bits @ np.array([1.0, 0.1, 1.5])
  >>> find(losses, costs, method='greedy', budget=0.7).best
  Structure('101')

  Args:
    evaluate: from networks, bool [S, n], and a share of the examples to losses [S]; lower is
      better.
    costs, method, budget, seed, journal, evaluations: as `search_pool` takes them.
    identity: what the losses are of, for the journal.
    probe: for methods that look into the network, see `probe.stream_changes`.
  """
  chosen, limit = method_of(method), budget_of(budget, costs.kind).limit(costs)
  if evaluations is not None and not evaluations >= 1:
    raise UserError(f'evaluations {evaluations!r}: expected at least 1, or None')
  if journal is not None and not isinstance(journal, Journal):
    journal = Journal(user_path(journal, 'journal'))
  judge = Evaluations(evaluate, costs.space, journal, identity, evaluations)
  with contextlib.suppress(SpentError):
    chosen.run(Problem(costs, limit, judge, checked_seed(seed), probe))
  bits, losses = judge.evaluated()
  path = Path(costs, limit, bits, losses, judge.used)
  if not path.is_met:
    reached = f'no structure within {costs.told(limit)} that was evaluated has a finite loss'
    if evaluations is None:
      raise UserError(f'{reached}: expected one that has')
    name = method_name(chosen)
    raise UserError(
      f'evaluations {evaluations:g}, {name}: {reached}; expected more of them, or None'
    )
  return path


def method_of(method: str | Method) -> Method:
  """Returns a method by its name, or as it is.

  >>> method_of('beam')
  Beam(width=4, fresh=None, levels=None)

  Raises:
    UserError: for another name.
  """
  if not isinstance(method, str):
    if not callable(getattr(method, 'run', None)):
      raise UserError(f'method {method!r}: expected one of {", ".join(BY_BUDGET)}, or a `Method`')
    return method
  if method not in BY_BUDGET:
    hint = did_you_mean(method, [*BY_BUDGET])
    raise UserError(f'method {method!r}: expected one of {", ".join(BY_BUDGET)}{hint}')
  return BY_BUDGET[method]


def method_name(method: Method) -> str:
  """Returns the name of a method, of one's own that of its class."""
  names = {type(known): name for name, known in BY_BUDGET.items()}
  return names.get(type(method), type(method).__name__)


def budget_of(budget: float | Budget, kind: str) -> Budget:
  """Returns a budget in costs of that kind."""
  return budget if isinstance(budget, Budget) else Budget(kind, budget)


def search_pool(
  model: nn.Module,
  variables: PyTree,
  data: Any,
  *,
  method: str | Method = 'bayesian',
  budget: float | Budget = 0.8,
  costs: str | Costs | Latency = 'params',
  seed: int = 0,
  journal: str | FilePath | None = None,
  evaluations: float | None = None,
  task: str | Task = 'classification',
  batch_size: int | None = None,
  recalibrate: Any = None,
) -> Path:
  """Searches a pool for the structures of lowest loss under a budget.

  With the loss L(s) of structure s in the pool, by `task`, and its costs C(s), `path.best` is
  argmin L(s) over the s with C(s) ≤ budget that were evaluated; the path has it at every cost.

  Methods are those of `search.budgeted`; each also is a class with its options, such as
  `additive_jax.search.Beam(width=8)`.

  >>> model = aj.models.MLP(num_blocks=5, width=4, hidden=8, num_classes=3)
  >>> x, y = np.random.default_rng(0).normal(size=(12, 6)).astype('f'), np.arange(12) % 3
  >>> pool = model.init(jax.random.key(0), x)
  >>> search_pool(model, pool, (x, y), method='greedy', budget=0.6).best.num_on
  2

  Args:
    model: an additive network of n gates, of any kind.
    variables: `{'params': pool}`.
    data: (x [N, ...], y [N, ...]), a split in memory, or a `data.Data`, of which see `batch_of`.
    method, seed: a name or an object, and what its random draws go by.
    budget: share of what all-on costs, up to 1, or above 1 that many of the unit; or a `Budget`.
    costs: 'params', 'flops' of an example, or 'latency', seconds of an example of x, measured now
      on this device; or a `Costs`, or a `Latency` that `measure_latency` gave.
    journal: a file in which evaluations are kept, so that a search that was killed goes on;
      searches of one pool and data may share it. A latency table lies beside it.
    evaluations: the most that are made, on all examples; None is what the method takes.
    task, batch_size, recalibrate: as `evaluate_structures` takes them; lower is better, by
      `task.rank_by`.

  Raises:
    UserError: for a budget that no structure meets, an unknown method, a journal of another pool or
      data; and as `evaluate_structures`.
  """
  batch, chosen = batch_of(data), task_of(task)
  evaluate = PoolEvaluator(model, variables, batch, chosen, batch_size, recalibrate)
  table = _costs(model, variables, batch[0], costs, journal)
  cost_model = table if isinstance(table, Costs) else Costs.of_latency(table, space_of(model))
  given: Any = {'budget': budget, 'seed': seed, 'journal': journal, 'evaluations': evaluations}
  given |= {'identity': evaluate.identity() if journal else None, 'method': method}
  given['probe'] = functools.partial(stream_changes, model, variables, batch[0])
  path = find(evaluate, cost_model, **given)
  if not isinstance(table, Latency):
    return path
  one = rows(batch[0], slice(table.batch))
  receipt = verify_latency(table, model, variables, one, [space_of(model).all_on(), path.best])
  return dataclasses.replace(path, latency=receipt)


def batch_of(data: Any) -> tuple[Any, Any]:
  """Returns the x and y that structures are chosen by: of a `data.Data` its validation split, or
  the test split where nothing was held out.

  Raises:
    UserError: for a split that is not in memory.
  """
  if isinstance(data, Data):
    data = data.test if data.valid is None else data.valid
    if not hasattr(data, 'in_memory') or not data.in_memory:
      raise UserError(
        'a validation split that is read as needed: expected one in memory, or (x, y)'
      )
  return as_batch(data)


def _costs(model, variables, x, costs, journal) -> Costs | Latency:
  if isinstance(costs, Costs | Latency):
    return costs
  if costs == 'latency':
    one = rows(x, slice(1))
    if journal is None:
      return measure_latency(model, variables, one)
    path = user_path(journal, 'journal')
    return latency_table(path.with_name(f'{path.stem}.latency.json'), model, variables, one)
  return Costs.of_space(costs, measure(model, rows(x, slice(1))))
