"""The tables of Exp 3, from what each seed and variant left in the journal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from additive_jax.experiments.records import Records
from additive_jax.experiments.scores import sampled_structures
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.experiments.tables import headline, structure_table
from additive_jax.report.comparison import SCORES, compare

NONE = 'none'


def make_tables(session: Session, records: Records) -> Result:
  """Returns the tables `structures` and `variants`, and the summary."""
  bits = sampled_structures(session, session.config.stochastic.num_structures)
  _, first, *others = records.arms
  pools = {'': records[first]}
  pools |= {f'{name}_': records[name] for name in (NONE, *others)}
  structures = structure_table(session, bits, pools)
  variants = _variants(session, records, bits.all(1))
  summary = _summary(session, variants, len(bits))
  return Result({'structures': structures, 'variants': variants}, summary)


def _variants(session, records, all_on):
  scores, facts = {}, {}
  for name, variant in records.arms.items():
    scores[name] = _by_seed(records[name], all_on)
    facts[name] = {
      'steps': variant.num_steps,
      'epochs': variant.num_steps * session.config.train.batch_size / len(session.data.train),
      'forward_flops': variant.forward_flops,
      'training_flops': variant.training_flops,
      'skipped': sum(record['skipped'] for record in records[name]),
    }
  return compare(scores, NONE, facts=facts, differences=scores[NONE])


def _by_seed(records: list[dict], all_on: Bool[np.ndarray, ' structures']) -> pd.DataFrame:
  """Scores of one variant in each seed: of the full network, and means over the structures."""
  full = {key: np.array([np.array(r[key])[all_on][0] for r in records]) for key in SCORES}
  train = {f'train_{key}': np.array([r[f'train_{key}'] for r in records]) for key in SCORES}
  return pd.DataFrame(
    {
      **full,
      **train,
      'loss_gap': full['loss'] - train['train_loss'],
      'accuracy_gap': train['train_accuracy'] - full['accuracy'],
      **{f'structures_{key}': [np.mean(r[key]) for r in records] for key in SCORES},
    }
  )


def _summary(session, variants, num_structures) -> dict[str, Any]:
  rows = variants.set_index('variant')
  keys = [*SCORES, 'train_loss', 'loss_gap', 'structures_accuracy']
  paired = [f'{key}_minus_{NONE}' for key in (*SCORES, 'loss_gap')]
  figures = {}
  for name in rows.index:
    chosen = keys if name == NONE else keys + paired
    columns = ['epochs', 'training_flops', *(c for key in chosen for c in (key, f'{key}_ci95'))]
    figures[name] = {column: rows.loc[name, column] for column in columns}
  return headline(
    session,
    experiment='stochastic',
    num_gates=session.space.num_gates,
    num_structures=num_structures,
    rescale=session.config.stochastic.rescale,
    variants=figures,
    skipped=int(variants['skipped'].sum()),
  )
