"""Tables that come with a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.stored import scores_with_stored
from additive_jax.files.journal import Record
from additive_jax.gates.structure import Structure
from additive_jax.report import comparison, statistics


def structure_table(
  session: Session,
  bits: Bool[np.ndarray, 'structures gates'],
  records: Mapping[str, Sequence[Record]],
  keys: Iterable[str] | None = None,
) -> pd.DataFrame:
  """Returns a row for each structure, best first, with its costs and mean scores in several pools.

  Args:
    session: knows what structures cost.
    bits: the structures.
    records: by the prefix of their columns, the records of a pool in each seed, which hold a list
      of values for each of `keys`. The pool with the prefix '' gives the rank.
    keys: the scores; None are those of the task, of networks with BatchNorms by stored statistics
      too, as `stored_loss` and so on.

  Where a split was held out the validation loss of that pool, `valid_loss`, or the metric that
  structures are ranked by, gives the rank.
  """
  table = pd.DataFrame({'structure': [str(Structure(tuple(row))) for row in bits]})
  for prefix, seeds in records.items():
    for key in scores_with_stored(session.task, seeds) if keys is None else keys:
      mean, half_width = statistics.mean_and_ci([record[key] for record in seeds])
      table[f'{prefix}{key}'], table[f'{prefix}{key}_ci95'] = mean, half_width
  table['flops'], table['params'] = session.space.costs(bits)
  task, first = session.task, records.get('', [])
  held_out = f'valid_{task.rank_by}'
  if first and all(held_out in record for record in first):
    table[held_out] = statistics.mean_and_ci([record[held_out] for record in first])[0]
    table['rank'] = statistics.rank(task.cost({task.rank_by: table[held_out]}))
  else:
    table['rank'] = statistics.rank(task.cost(table))
  return comparison.structures_first(table, task.scores)


def plain_tables(
  session: Session, records: Records, baseline: str
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
  """Returns the tables `structures` and `variants`, and a summary, of arms that are judged by
  `arms.full_network`."""
  frames = {name: pd.DataFrame(records[name]) for name in records.arms}
  baseline, scores, facts = baseline or next(iter(frames)), {}, {}
  for name, frame in frames.items():
    scores[name] = frame[list(session.task.scores)]
    facts[name] = {'steps': records.arms[name].num_steps, 'skipped': int(frame['skipped'].sum())}
    facts[name] |= {key: frame[key].mean() for key in ('flops', 'params')}
  names, full = session.task.scores, [str(session.space.all_on())] * len(scores)
  variants = comparison.compare(scores, baseline, facts=facts, differences=names)
  structures = comparison.arms_as_structures(variants, full, names)
  tables = {'structures': structures, 'variants': variants}
  return tables, {'baseline': baseline, 'variants': comparison.figures(variants, baseline)}
