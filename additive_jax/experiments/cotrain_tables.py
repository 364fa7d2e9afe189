"""The tables of Exp 2, from what each seed left in the journal."""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.report import statistics

ENSEMBLE = 'ensemble'
SCORES = ('loss', 'accuracy')
VARIANTS = {'cotrained': '', 'alone': 'alone_'}  # and the prefix of its columns


def make_tables(session, texts: list[str], records: list[dict], num_steps: int):
  """Means and 95 % intervals over the seeds; in all of them the best structures come first.

  Args:
    texts: the K structures.
    records: one per seed, as `cotrain` journals them.
    num_steps: of each training.

  Returns:
    (table, comparison, cosines, summary), see `CotrainResult`.
  """
  scores = {variant: _scores(records, variant) for variant in VARIANTS}
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
  first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
  table = table[first + [column for column in table if column not in first]]
  comparison = pd.DataFrame(rows)
  cosines = np.mean([record['cosines'] for record in records], axis=0)[np.ix_(order, order)]
  frame = pd.DataFrame(cosines, columns=texts)
  frame.insert(0, 'structure', texts)
  summary = _summary(session, table, comparison, cosines, records, num_steps)
  return table, comparison, frame, summary


def _scores(records, variant):
  """Mean and interval of each score, [K+1]: the structures as they were trained, the ensemble."""
  found = {}
  for key in SCORES:
    of_each = np.array([record[variant][key] for record in records])
    of_all = np.array([[record[ENSEMBLE][variant][key]] for record in records])
    mean, half_width = statistics.mean_and_ci(np.concatenate([of_each, of_all], axis=1))
    found |= {key: mean, f'{key}_ci95': half_width}
  return found


def _summary(session, table, comparison, cosines, records, num_steps):
  together, alone = ([np.mean(r[variant]['loss']) for r in records] for variant in VARIANTS)
  gain, gain_ci95 = statistics.mean_and_ci((np.array(together) - np.array(alone))[:, None])
  ensembles = comparison[comparison['label'] == ENSEMBLE].set_index('variant')
  apart = cosines[~np.eye(len(cosines), dtype=bool)]
  # A backward pass costs about twice a forward pass.
  examples = num_steps * session.config.train.batch_size
  return {
    'experiment': 'cotrain',
    'data': session.data.name,
    'structures': table['structure'].tolist(),
    'num_gates': session.space.num_gates,
    'num_seeds': len(records),
    'best_structure': table['structure'][0],
    'loss': table['loss'].mean(),
    'accuracy': table['accuracy'].mean(),
    'alone_loss': table['alone_loss'].mean(),
    'alone_accuracy': table['alone_accuracy'].mean(),
    'cotrained_minus_alone_loss': gain[0],
    'cotrained_minus_alone_loss_ci95': gain_ci95[0],
    'ensemble_loss': ensembles['loss']['cotrained'],
    'ensemble_accuracy': ensembles['accuracy']['cotrained'],
    'alone_ensemble_loss': ensembles['loss']['alone'],
    'alone_ensemble_accuracy': ensembles['accuracy']['alone'],
    'mean_cosine': apart.mean() if len(apart) else None,
    'training_flops_of_each_side': 3 * examples * table['flops'].sum(),
    'pool_params': session.space.params(session.space.all_on()),
    'alone_params': int(table['params'].sum()),
    'skipped': sum(record['skipped'] for record in records),
  }
