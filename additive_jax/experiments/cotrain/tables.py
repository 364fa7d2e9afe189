"""The tables of Exp 2, from what each seed left in the journal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.standalone import Lone
from additive_jax.experiments.study import Result
from additive_jax.experiments.tables import headline
from additive_jax.report import statistics
from additive_jax.report.comparison import FIRST, SCORES, with_interval

POOL, ENSEMBLE = 'pool', 'ensemble'
VARIANTS = {'cotrained': '', 'alone': 'alone_'}  # and the prefix of its columns


def make_tables(session: Session, records: Records) -> Result:
  """Returns the tables and the summary; in all of them the best structures come first."""
  seeds = records[POOL]
  texts = [name for name, arm in records.arms.items() if isinstance(arm, Lone)]
  scores = {variant: _scores(seeds, variant) for variant in VARIANTS}
  order = np.argsort(statistics.rank(scores['cotrained']['loss'][:-1]))
  texts = [texts[i] for i in order]
  table, rows = pd.DataFrame({'structure': texts}), []
  for variant, prefix in VARIANTS.items():
    columns = {name: values[[*order, -1]] for name, values in scores[variant].items()}
    for name, values in columns.items():
      table[f'{prefix}{name}'] = values[:-1]
    for i, label in enumerate([*texts, ENSEMBLE]):
      values = {name: column[i] for name, column in columns.items()}
      rows.append({'label': label, 'variant': variant, **values})
  table['flops'], table['params'] = session.space.costs(texts)
  table['rank'] = np.arange(1, len(texts) + 1)
  table = table[FIRST + [column for column in table if column not in FIRST]]
  comparison = pd.DataFrame(rows)
  matrix = np.mean([record['cosines'] for record in seeds], axis=0)[np.ix_(order, order)]
  cosines = pd.DataFrame(matrix, columns=texts)
  cosines.insert(0, 'structure', texts)
  summary = _summary(session, table, comparison, matrix, seeds, records.arms[POOL].num_steps)
  return Result({'structures': table, 'comparison': comparison, 'cosines': cosines}, summary)


def _scores(seeds, variant):
  """Mean and interval of each score, [K+1]: the structures as they were trained, the ensemble."""
  columns = {}
  for key in SCORES:
    alone = np.array([record[variant][key] for record in seeds])
    together = np.array([[record[ENSEMBLE][variant][key]] for record in seeds])
    mean, half_width = statistics.mean_and_ci(np.concatenate([alone, together], axis=1))
    columns |= {key: mean, f'{key}_ci95': half_width}
  return columns


def _summary(session, table, comparison, matrix, seeds, num_steps) -> dict[str, Any]:
  together, alone = ([np.mean(r[variant]['loss']) for r in seeds] for variant in VARIANTS)
  ensembles = comparison[comparison['label'] == ENSEMBLE].set_index('variant')
  apart = matrix[~np.eye(len(matrix), dtype=bool)]
  # A backward pass costs about twice a forward pass.
  examples = num_steps * session.config.train.batch_size
  return headline(
    session,
    experiment='cotrain',
    structures=table['structure'].tolist(),
    num_gates=session.space.num_gates,
    best_structure=table['structure'][0],
    loss=table['loss'].mean(),
    accuracy=table['accuracy'].mean(),
    alone_loss=table['alone_loss'].mean(),
    alone_accuracy=table['alone_accuracy'].mean(),
    **with_interval('cotrained_minus_alone_loss', np.array(together) - np.array(alone)),
    ensemble_loss=ensembles['loss']['cotrained'],
    ensemble_accuracy=ensembles['accuracy']['cotrained'],
    alone_ensemble_loss=ensembles['loss']['alone'],
    alone_ensemble_accuracy=ensembles['accuracy']['alone'],
    mean_cosine=apart.mean() if len(apart) else None,
    training_flops_of_each_side=3 * examples * table['flops'].sum(),
    pool_params=session.space.params(session.space.all_on()),
    alone_params=int(table['params'].sum()),
    skipped=sum(record['skipped'] for record in seeds),
  )
