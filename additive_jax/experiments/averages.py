"""Means of pools over the steps (`config.train.ema`), judged beside the pools: a table of every
experiment that trains some."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from additive_jax.experiments.records import Records
from additive_jax.files.journal import Record
from additive_jax.report import statistics
from additive_jax.report.page import Piece, section, table

EMA = 'ema'  # of a record: what the mean of the pool scored, like the record itself
TABLE = 'averages'


def averages(records: Records, names: Sequence[str]) -> pd.DataFrame:
  """Returns a row for each arm and score: of the pool after the last step, of the mean of the pool
  over the steps, and their difference, paired by seed. Of scores of several structures it is the
  mean. What is the same in both and no score, such as steps, is left out. No rows where no means
  are kept.

  Args:
    names: of the loss and the metrics of the task.
  """
  rows = []
  for name in records.arms:
    seeds = records[name]
    if not all(EMA in record for record in seeds):
      continue
    for score in _scores(seeds[0][EMA]):
      pool, mean = (np.array([_scores(of)[score] for of in part]) for part in _both(seeds))
      if _ends(score, names) or not np.array_equal(pool, mean):
        rows.append({'arm': name, 'score': score} | _columns(pool, mean))
  return pd.DataFrame(rows)


def parts(
  records: Records, names: Sequence[str]
) -> tuple[dict[str, pd.DataFrame], dict[str, Any], Piece | None]:
  """Returns what a run that keeps means has more: a table and a part of the summary, by name, and a
  section of the page."""
  means = averages(records, names)
  if not len(means):
    return {}, {}, None
  return {TABLE: means}, {TABLE: figures(means)}, piece(means)


def figures(frame: pd.DataFrame) -> dict[str, Any]:
  """Returns the headline figures of such a table, by arm and score.

  >>> figures(pd.DataFrame([{'arm': 'pool', 'score': 'loss', 'pool': 0.5, 'ema': 0.25}]))
  {'pool': {'loss': {'pool': 0.5, 'ema': 0.25}}}
  """
  found: dict[str, Any] = {}
  for row in frame.to_dict('records'):
    values = {key: value for key, value in row.items() if key not in ('arm', 'score')}
    found.setdefault(row['arm'], {})[row['score']] = values
  return found


def piece(frame: pd.DataFrame) -> Piece | None:
  """Returns the section of a page with such a table."""
  caption = (
    'Each score of the pool after its last step, and of its mean over the steps (ema); “ema minus '
    'pool” is paired by seed. Of an arm with several structures it is the mean over all of them.'
  )
  return section('Means over the steps', table(frame, caption))


def _both(seeds: Sequence[Record]) -> tuple[list[Any], list[Any]]:
  return list(seeds), [record[EMA] for record in seeds]


def _ends(score: str, names: Sequence[str]) -> bool:
  """Returns whether a dotted name, such as "all_on.test_loss", ends with that of a score."""
  return any(re.search(rf'(?:^|[._]){re.escape(name)}$', score) for name in names)


def _columns(pool: Any, mean: Any) -> dict[str, float]:
  columns: dict[str, float] = {}
  for key, values in (('pool', pool), (EMA, mean), (f'{EMA}_minus_pool', mean - pool)):
    centre, half_width = statistics.mean_and_ci(values[:, None])
    columns |= {key: float(centre[0]), f'{key}_ci95': float(half_width[0])}
  return columns


def _scores(record: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers of a record by their dotted names, of lists of numbers the means."""
  return dict(_numbers(record))


def _numbers(record: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, float]]:
  for key, value in record.items():
    if key in (EMA, 'seed'):
      continue
    if isinstance(value, Mapping):
      yield from _numbers(value, f'{prefix}{key}.')
    elif isinstance(value, int | float) and not isinstance(value, bool):
      yield f'{prefix}{key}', float(value)
    elif isinstance(value, list) and value and all(isinstance(v, int | float) for v in value):
      yield f'{prefix}{key}', float(np.mean(value))
