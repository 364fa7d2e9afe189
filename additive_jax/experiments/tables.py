"""Tables that come with a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.files.journal import Record
from additive_jax.gates.structure import Structure
from additive_jax.report import comparison, statistics


def structure_table(
  session: Session,
  bits: Bool[np.ndarray, 'structures gates'],
  records: Mapping[str, Sequence[Record]],
  keys: Iterable[str] = comparison.SCORES,
) -> pd.DataFrame:
  """Returns a row for each structure, best first, with its costs and mean scores in several pools.

  Args:
    session: knows what structures cost.
    bits: the structures.
    records: by the prefix of their columns, the records of a pool in each seed, which hold a list
      of values for each of `keys`. The pool with the prefix '' gives the rank.
    keys: the scores.

  Where a split was held out the validation loss of that pool, `valid_loss`, gives the rank.
  """
  table = pd.DataFrame({'structure': [str(Structure(tuple(row))) for row in bits]})
  for prefix, seeds in records.items():
    for key in keys:
      mean, half_width = statistics.mean_and_ci([record[key] for record in seeds])
      table[f'{prefix}{key}'], table[f'{prefix}{key}_ci95'] = mean, half_width
  table['flops'], table['params'] = session.space.costs(bits)
  first = records.get('', [])
  if first and all('valid_loss' in record for record in first):
    table['valid_loss'] = statistics.mean_and_ci([record['valid_loss'] for record in first])[0]
    table['rank'] = statistics.rank(table['valid_loss'].to_numpy())
  return comparison.structures_first(table)


def plain_tables(
  session: Session, records: Records, baseline: str
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
  """Returns the tables `structures` and `variants`, and a summary, of arms that are judged by
  `study.full_network`."""
  frames = {name: pd.DataFrame(records[name]) for name in records.arms}
  baseline, scores, facts = baseline or next(iter(frames)), {}, {}
  for name, frame in frames.items():
    scores[name] = frame[list(comparison.SCORES)]
    facts[name] = {'steps': records.arms[name].num_steps, 'skipped': int(frame['skipped'].sum())}
    facts[name] |= {key: frame[key].mean() for key in ('flops', 'params')}
  variants = comparison.compare(scores, baseline, facts=facts)
  full = [str(session.space.all_on())] * len(variants)
  tables = {'structures': comparison.arms_as_structures(variants, full), 'variants': variants}
  return tables, {'baseline': baseline, 'variants': comparison.figures(variants, baseline)}
