"""The tables of a compression: networks, what is left of each, and the headline figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.files.journal import Record
from additive_jax.report.comparison import SCORES, with_interval
from additive_jax.run.tasks import Task

log = logging.getLogger('additive_jax')

DENSE, VARIATIONAL, MATCHED = 'dense', 'variational', 'magnitude_matched'
UNTUNED = f'{VARIATIONAL}_untuned'
GRADUAL = 'gradual'  # and then the share that is removed
EXPORTED = 'exported'  # folder of the run directory
CLASSIFICATION = Task('classification')


def make_tables(session: Session, records: Records) -> Result:
  """Returns the tables `variants`, `structures` and `layers`, and the summary."""
  by_network = {name: records[name] for name in records.arms}
  table, options = variants(by_network, session.task), session.config.compress
  left = layers(by_network)
  unchanged = nothing_removed(left)
  for name in unchanged:
    log.warning('nothing was removed from %s: it is as large as the dense network', name)
  summary = {
    'level': options.level,
    'nothing_removed': unchanged,
    'threshold': options.threshold,
    'variants': table.set_index('variant').to_dict('index'),
  }
  tables = {
    'variants': table,
    'structures': structures(by_network, session.task.scores),
    'layers': left,
  }
  return Result(tables, summary)


def variants(records: Mapping[str, Sequence[Record]], task: Task = CLASSIFICATION) -> pd.DataFrame:
  """Returns a row for each network: means over the seeds with 95 % intervals, and what it lost
  against the dense one of the same seed.

  `nonzero` weights stay of `weights`, in kernels alone; `factor` is all over nonzero; `flops`, of
  one example, and `bytes`, of all parameters, are those of the network that was cut out (of single
  weights: without the units and inputs that none of them reads), and `receipt` is the largest
  difference of its outputs from those of the network with zeros.
  """
  dense, rows = pd.DataFrame(records[DENSE]), []
  for name, seeds in records.items():
    frame = pd.DataFrame(seeds)
    row = {'variant': name, 'weights': int(frame['weights'].iloc[0])}
    row['nonzero'] = round(frame['nonzero'].mean())
    row |= with_interval('factor', frame['weights'] / np.maximum(frame['nonzero'], 1))
    for key in (*task.scores[1:], 'loss'):
      row |= with_interval(key, frame[key])
    best = task.headline
    row |= with_interval(f'{best}_lost', task.sign(best) * (frame[best] - dense[best]))
    row |= {'flops': float(frame['flops'].mean()), 'bytes': float(frame['bytes'].mean())}
    row |= with_interval('flops_factor', dense['flops'] / frame['flops'])
    row['receipt'] = float(frame['receipt'].max())
    rows.append(row)
  return pd.DataFrame(rows)


def nothing_removed(left: pd.DataFrame) -> list[str]:
  """Returns the networks that were to lose something and lost nothing, in any seed.

  Args:
    left: a row for each network and layer, see `layers`.

  >>> left = pd.DataFrame({'variant': ['variational', 'magnitude_0.5'], 'left': [4, 2], 'of': 4})
  >>> nothing_removed(left)
  ['variational']
  """
  sums = left.groupby('variant', sort=False)[['left', 'of']].sum()
  names = sums.index[sums['left'] == sums['of']]
  return [name for name in names if name.startswith((VARIATIONAL, 'magnitude', GRADUAL))]


def structures(
  records: Mapping[str, Sequence[Record]], scores: Sequence[str] = SCORES
) -> pd.DataFrame:
  """Returns a row for each network and seed: its gates, and what is left of it."""
  keys = ['variant', 'seed', 'structure', 'nonzero', 'flops', 'bytes', *scores, 'receipt']
  return pd.DataFrame([record for seeds in records.values() for record in seeds], columns=keys)


def layers(records: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
  """Returns a row for each network and layer: how many weights, units or gates are left, mean over
  the seeds."""
  rows = []
  for name, seeds in records.items():
    for layer, (_, size) in seeds[0]['left'].items():
      mean = np.mean([record['left'][layer][0] for record in seeds])
      rows.append({'variant': name, 'layer': layer, 'left': mean, 'of': size, 'share': mean / size})
  return pd.DataFrame(rows)
