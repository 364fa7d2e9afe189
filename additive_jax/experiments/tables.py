"""Tables that come with a study, and the figures that every summary has."""

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
from additive_jax.report.comparison import (
  SCORES,
  arms_as_structures,
  compare,
  structures_first,
  without_own_differences,
)


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
  return structures_first(table)


def headline(session: Session, **figures: Any) -> dict[str, Any]:
  """Returns the figures that every summary has, and `figures`."""
  return {'data': session.data.name, 'num_seeds': len(session.seeds), **figures}


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
