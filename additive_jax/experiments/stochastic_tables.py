"""The tables of Exp 3, from what each seed and variant left in the journal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from additive_jax.experiments.results import with_interval
from additive_jax.gates.structure import Space, Structure
from additive_jax.report import statistics

NONE = 'none'
SCORES = ('loss', 'accuracy')


def expected_flops(space: Space, keep_rates) -> np.ndarray:
  """Expected FLOPs of one example's forward pass when gates are on independently.

  Args:
    space: with costs.
    keep_rates: probabilities [..., n]; a gate within a residual gate is paid for when both are on.

  Returns:
    [...].
  """
  on = np.asarray(keep_rates, float)
  total = np.full(on.shape[:-1], float(space.fixed_flops))
  for i, gate in enumerate(space.gates):
    paid = on[..., i]
    if gate.within is not None:
      paid = paid * on[..., space.index(gate.within)]
    total = total + gate.flops * paid
  return total


def make_tables(session, variants: Sequence, bits: np.ndarray, scores: dict[str, list[dict]]):
  """Means and 95 % intervals over the seeds.

  Args:
    variants: as `stochastic.make_variants` gives them, the one with all gates on first.
    bits: structures bool [S, n], with all-on among them.
    scores: by variant's name, one journal record per seed.

  Returns:
    (table, variants, summary), see `StochasticResult`.
  """
  structures = _structures(session, variants, bits, scores)
  frame = _variants(session, variants, bits.all(1), scores)
  return structures, frame, _summary(session, frame, len(bits), scores)


def _structures(session, variants, bits, scores):
  table = pd.DataFrame({'structure': [str(Structure(tuple(row))) for row in bits]})
  first = variants[1].name
  for prefix, name in [('', first), *((f'{v.name}_', v.name) for v in variants if v.name != first)]:
    for key in SCORES:
      mean, half_width = statistics.mean_and_ci([record[key] for record in scores[name]])
      table[f'{prefix}{key}'], table[f'{prefix}{key}_ci95'] = mean, half_width
  table['flops'], table['params'] = session.space.costs(bits)
  table['rank'] = statistics.rank(table['loss'].to_numpy())
  table = table.iloc[np.argsort(table['rank'], kind='stable')].reset_index(drop=True)
  front = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
  return table[front + [column for column in table if column not in front]]


def _variants(session, variants, all_on, scores):
  """One row per variant; columns `<score>_minus_none` are paired by seed."""
  by_seed = {v.name: _by_seed(scores[v.name], all_on) for v in variants}
  rows = []
  for variant in variants:
    row = {
      'variant': variant.name,
      'steps': variant.num_steps,
      'epochs': variant.num_steps * session.config.train.batch_size / len(session.data.train),
      'forward_flops': variant.forward_flops,
      'training_flops': variant.training_flops,
    }
    for key, values in by_seed[variant.name].items():
      row |= with_interval(key, values)
    for key, values in by_seed[variant.name].items():
      apart = values - by_seed[NONE][key]
      row |= {} if variant.name == NONE else with_interval(f'{key}_minus_none', apart)
    row['skipped'] = sum(record['skipped'] for record in scores[variant.name])
    rows.append(row)
  return pd.DataFrame(rows)


def _by_seed(records, all_on):
  """Each score of one variant, [seeds]: of the full network, and means over the structures."""
  full = {key: np.array([np.array(r[key])[all_on][0] for r in records]) for key in SCORES}
  train = {f'train_{key}': np.array([r[f'train_{key}'] for r in records]) for key in SCORES}
  return {
    **full,
    **train,
    'loss_gap': full['loss'] - train['train_loss'],
    'accuracy_gap': train['train_accuracy'] - full['accuracy'],
    **{f'structures_{key}': np.array([np.mean(r[key]) for r in records]) for key in SCORES},
  }


def _summary(session, frame, num_structures, scores):
  rows = frame.set_index('variant')
  keys = [*SCORES, 'train_loss', 'loss_gap', 'structures_accuracy']
  paired = [f'{key}_minus_none' for key in (*SCORES, 'loss_gap')]
  figures = {}
  for name in rows.index:
    chosen = keys if name == NONE else keys + paired
    columns = ['epochs', 'training_flops', *(c for key in chosen for c in (key, f'{key}_ci95'))]
    figures[name] = {column: rows.loc[name, column] for column in columns}
  return {
    'experiment': 'stochastic',
    'data': session.data.name,
    'num_gates': session.space.num_gates,
    'num_structures': num_structures,
    'num_seeds': len(next(iter(scores.values()))),
    'rescale': session.config.stochastic.rescale,
    'variants': figures,
    'skipped': int(frame['skipped'].sum()),
  }
