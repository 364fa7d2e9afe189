"""Tables of a study: means over the seeds with intervals, and differences paired by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.gates.structure import Structure
from additive_jax.report import statistics

SCORES = ('loss', 'accuracy')
# Of a table of structures the first columns, in every experiment.
FIRST = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']


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
    for score in frame:
      row |= with_interval(score, frame[score])
    for score in differences:
      if name != baseline:
        row |= with_interval(f'{score}_minus_{baseline}', frame[score] - scores[baseline][score])
    rows.append(row)
  return pd.DataFrame(rows)


def structure_table(
  session: Session,
  bits: Bool[np.ndarray, 'structures gates'],
  records: Mapping[str, Sequence[dict]],
  keys: Iterable[str] = SCORES,
) -> pd.DataFrame:
  """Returns a row for each structure, best first, with its costs and mean scores in several pools.

  Args:
    session: knows what structures cost.
    bits: the structures.
    records: by the prefix of their columns, the records of a pool in each seed, which hold a list
      of values for each of `keys`. The pool with the prefix '' gives the rank.
    keys: the scores.
  """
  table = pd.DataFrame({'structure': [str(Structure(tuple(row))) for row in bits]})
  for prefix, seeds in records.items():
    for key in keys:
      mean, half_width = statistics.mean_and_ci([record[key] for record in seeds])
      table[f'{prefix}{key}'], table[f'{prefix}{key}_ci95'] = mean, half_width
  table['flops'], table['params'] = session.space.costs(bits)
  return best_first(table)


def best_first(table: pd.DataFrame) -> pd.DataFrame:
  """Returns a table of structures in the order of its ranks, by default those of its losses, with
  the columns `FIRST` in front."""
  if 'rank' not in table:
    table = table.assign(rank=statistics.rank(table['loss'].to_numpy()))
  table = table.iloc[np.argsort(table['rank'], kind='stable')].reset_index(drop=True)
  return table[FIRST + [column for column in table if column not in FIRST]]


def arms_as_structures(variants: pd.DataFrame, structures: Sequence[str]) -> pd.DataFrame:
  """Returns the table of structures of a study whose arms are one structure each.

  Args:
    variants: a row for each arm, see `compare`.
    structures: of the arms, in the same order.
  """
  columns = ['variant', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params']
  return best_first(variants[columns].assign(structure=list(structures)))


def headline(session: Session, **figures: Any) -> dict[str, Any]:
  """Returns the figures that every summary has, and `figures`."""
  return {'data': session.data.name, 'num_seeds': len(session.seeds), **figures}


def without_own_differences(row: Mapping[str, Any], baseline: str) -> dict[str, Any]:
  """Returns the figures of an arm's row; of the baseline's without differences from itself."""
  figures = {key: value for key, value in row.items() if key != 'variant'}
  if row['variant'] == baseline:
    figures = {key: value for key, value in figures.items() if f'_minus_{baseline}' not in key}
  return figures


def plain_tables(
  session: Session, records: Records, baseline: str
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
  """Returns the tables `structures` and `variants` of a study with `arms.scores_on_test`, and a
  summary."""
  scores = {name: pd.DataFrame(records[name]) for name in records.arms}
  facts = {
    name: {key: frame[key].mean() for key in ('flops', 'params')}
    | {'steps': records.arms[name].num_steps, 'skipped': int(frame['skipped'].sum())}
    for name, frame in scores.items()
  }
  only_scores = {name: frame[list(SCORES)] for name, frame in scores.items()}
  baseline = baseline or next(iter(scores))
  variants = compare(only_scores, baseline, facts=facts)
  full = str(session.space.all_on())
  tables = {
    'structures': arms_as_structures(variants, [full] * len(variants)),
    'variants': variants,
  }
  rows = variants.to_dict('records')
  figures = {row['variant']: without_own_differences(row, baseline) for row in rows}
  return tables, headline(session, baseline=baseline, variants=figures)
