"""Tables of several arms of a study: means over the seeds with intervals, differences paired by
seed, and structures best first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from additive_jax.report import statistics

SCORES = ('loss', 'accuracy')  # of a classification


def with_interval(name: str, values: Iterable[float]) -> dict[str, float]:
  """Returns the mean of one value per seed, and as `<name>_ci95` half its 95 % interval.

  >>> with_interval('loss', [1.0, 1.0])
  {'loss': np.float64(1.0), 'loss_ci95': np.float64(0.0)}
  """
  mean, half_width = statistics.mean_and_ci(np.asarray(list(values), float)[:, None])
  return {name: mean[0], f'{name}_ci95': half_width[0]}


def compare(
  scores: Mapping[str, pd.DataFrame],
  baseline: str,
  *,
  facts: Mapping[str, Mapping[str, Any]],
  differences: Iterable[str] = SCORES,
) -> pd.DataFrame:
  """Returns a row for each arm: means with 95 % intervals, and how far it is from the baseline.

  A difference `<score>_minus_<baseline>` is paired by seed: its interval is that of the differences
  within each seed, so that what all arms of a seed share (its init, its examples) cancels.

       seed   loss of a   loss of baseline   a − baseline
          0        0.50               0.60          −0.10
          1        0.70               0.79          −0.09     → −0.095 ± …, not (0.60 − 0.695) ± …

  Args:
    scores: by arm, a row for each seed and a column for each score.
    baseline: one of the arms; its own differences are NaN.
    facts: by arm, what else its row says.
    differences: the scores that are compared with the baseline's.
  """
  rows = []
  for name, frame in scores.items():
    row = {'variant': name, **facts[name]}
    for score in map(str, frame):
      row |= with_interval(score, frame[score])
    for score in differences:
      if name != baseline:
        row |= with_interval(f'{score}_minus_{baseline}', frame[score] - scores[baseline][score])
    rows.append(row)
  return pd.DataFrame(rows)


def structures_first(table: pd.DataFrame, scores: Sequence[str] = SCORES) -> pd.DataFrame:
  """Returns a table of structures in the order of its ranks, by default those of its losses, with
  the columns in front that every experiment has: the structure, its scores, costs and rank."""
  if 'rank' not in table:
    table = table.assign(rank=statistics.rank(table['loss'].to_numpy()))
  table = table.iloc[np.argsort(table['rank'], kind='stable')].reset_index(drop=True)
  first = ['structure', *scores, 'loss_ci95', 'flops', 'params', 'rank']
  return table[first + [column for column in table if column not in first]]


def arms_as_structures(
  variants: pd.DataFrame, structures: Sequence[str], scores: Sequence[str] = SCORES
) -> pd.DataFrame:
  """Returns the table of structures of a study whose arms are one structure each.

  Args:
    variants: a row for each arm, see `compare`.
    structures: of the arms, in the same order.
    scores: the columns of loss and metrics.
  """
  columns = ['variant', *scores, 'loss_ci95', 'flops', 'params']
  return structures_first(variants[columns].assign(structure=list(structures)), scores)


def figures(variants: pd.DataFrame, baseline: str) -> dict[str, dict[str, Any]]:
  """Returns the rows of a comparison by arm; the baseline's without differences from itself."""
  rows: dict[str, dict[str, Any]] = {}
  for row in variants.to_dict('records'):
    name = row.pop('variant')
    suffix = f'_minus_{baseline}' if name == baseline else None
    rows[name] = {str(k): v for k, v in row.items() if suffix is None or suffix not in str(k)}
  return rows
