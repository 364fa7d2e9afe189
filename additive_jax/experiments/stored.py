"""Structures of a network with BatchNorms judged without recalibration, beside what they are judged
by: the trap of stored statistics, which are those of all-on.

A record has each score twice, `loss` by statistics of each structure's own and `stored_loss` by the
stored ones, and so have the tables of structures. `stored.csv` compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, PyTree
from numpy.typing import ArrayLike

from additive_jax.experiments.session import Session
from additive_jax.files.journal import Record
from additive_jax.report import rankings, statistics
from additive_jax.report.page import Piece, section, table
from additive_jax.run.tasks import Task

PREFIX = 'stored_'
TABLE = 'stored'


def stored_scores(
  session: Session, variables: PyTree, bits: Bool[np.ndarray, 'structures gates'], split: Any = None
) -> dict[str, list[float]]:
  """Returns loss and metrics of structures by the stored statistics of a pool, as `stored_loss` and
  so on; {} for a network without BatchNorms.

  Args:
    split: as of `Session.evaluate`.
  """
  if not session.has_statistics:
    return {}
  scores = session.evaluate(variables, bits, split, stored=True).scores
  return {f'{PREFIX}{name}': values.tolist() for name, values in scores.items()}


def scores_with_stored(task: Task, records: Sequence[Record]) -> dict[str, list[list[float]]]:
  """Returns by name the scores in the records of a pool in all seeds: those of the task, and by
  stored statistics where all records have them.

  >>> task, trap = Task('classification', metrics=[]), {'stored_loss': [0.5, 0.75]}
  >>> scores_with_stored(task, [{'loss': [0.5, 0.25]} | trap])
  {'loss': [[0.5, 0.25]], 'stored_loss': [[0.5, 0.75]]}
  """
  stored = [f'{PREFIX}{name}' for name in task.scores]
  names = [name for name in stored if all(name in record for record in records)]
  return {name: [record[name] for record in records] for name in (*task.scores, *names)}


def stored_table(
  task: Task, pools: Mapping[str, Mapping[str, ArrayLike]]
) -> dict[str, pd.DataFrame]:
  """Returns by its name the table of how both judge the structures of each pool; {} without stored
  statistics.

  A row has means over the structures, `tau` between the two rankings, and the `regret` of taking
  the structure that is best by stored statistics: how much worse it is than the best one, both by
  statistics of their own, in the score that structures are ranked by.

  >>> scores = {'loss': [[0.5, 0.25]], 'stored_loss': [[0.5, 0.75]]}
  >>> task = Task('classification', metrics=[])
  >>> frame = stored_table(task, {'pool': scores})['stored']
  >>> frame[['loss', 'stored_loss', 'tau', 'regret']].values.tolist()
  [[0.375, 0.625, -1.0, 0.25]]
  >>> stored_table(task, {'pool': {'loss': [[0.5, 0.25]]}})
  {}

  Args:
    pools: by name, the scores of each [seeds, structures], as `scores_with_stored` gives them.
  """
  rows = []
  for pool, scores in pools.items():
    if f'{PREFIX}{task.rank_by}' not in scores:
      continue
    mean = lambda name, scores=scores: statistics.mean_and_ci(scores[name])[0]
    names = [name for name in task.scores if f'{PREFIX}{name}' in scores]
    own = {name: mean(name) for name in names}
    stored = {name: mean(f'{PREFIX}{name}') for name in names}
    row: dict[str, Any] = {'pool': pool, 'structures': len(own[task.rank_by])}
    for name in names:
      row |= {name: own[name].mean(), f'{PREFIX}{name}': stored[name].mean()}
    costs = task.cost(stored), task.cost(own)
    rows.append(row | {'tau': rankings.kendall_tau(*costs), 'regret': rankings.regret(*costs)})
  return {TABLE: pd.DataFrame(rows)} if rows else {}


def parts(tables: Mapping[str, pd.DataFrame]) -> tuple[dict[str, Any], Piece | None]:
  """Returns what a run with such a table has more: a part of the summary, its rows by pool, and a
  section of the page; nothing without one."""
  if TABLE not in tables:
    return {}, None
  rows = [
    {str(key): value for key, value in row.items()} for row in tables[TABLE].to_dict('records')
  ]
  return {TABLE: {row.pop('pool'): row for row in rows}}, section(
    'With and without statistics of their own',
    table(
      tables[TABLE],
      'The network has BatchNorms. Structures are judged by statistics of their own, found on '
      'training examples (recalibrated); columns that begin with “stored” are what the same pool '
      'gives by its stored statistics, which are those of all-on. Means over the structures; tau '
      'is between the two rankings, and regret what it costs to take the structure that is best by '
      'stored statistics.',
    ),
  )
