"""The tables of a compression: networks, what is left of each, and the headline figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
from flax.traverse_util import flatten_dict

from additive_jax.compress.levels import Gates, Weights
from additive_jax.compress.noise import KERNEL
from additive_jax.experiments.results import with_interval

DENSE = 'dense'


def weights(params) -> int:
  """The weights of all kernels of a pool."""
  leaves = flatten_dict(params, sep='/')
  return sum(int(np.size(leaf)) for name, leaf in leaves.items() if name.endswith(KERNEL))


def nonzero(level, left: dict[str, list[int]], params) -> int:
  """The weights that are left: per weight those of the mask, whether or not another one reads what
  they give; otherwise those of the network that was cut out, `params`."""
  if isinstance(level, Weights):
    return sum(count for count, _ in left.values())
  return weights(params)


def left(level, keep) -> dict[str, list[int]]:
  """How many of each layer stay, and how many there were: by name, for gates by gate."""
  if isinstance(level, Gates):
    on = np.ones(len(level.names), bool) if keep is None else next(iter(keep.values()))
    return {name: [int(bit), 1] for name, bit in zip(level.names, on)}
  sizes = {name: int(np.prod(shape)) for name, shape in level.shapes}
  return {n: [size if keep is None else int(keep[n].sum()), size] for n, size in sizes.items()}


def variants(records: dict[str, list[dict]]) -> pd.DataFrame:
  """One row per network: means over the seeds with 95 % intervals, and what it lost against the
  dense one of the same seed.

  `nonzero` weights stay of `weights`, in kernels alone; `factor` is all over nonzero; `flops`, of
  one example, and `bytes`, of all parameters, are those of the network that was cut out (of single
  weights: without the units and inputs that none of them reads), and `receipt` is the largest
  difference of its logits from those of the network with zeros.
  """
  dense, rows = pd.DataFrame(records[DENSE]), []
  for name, found in records.items():
    own = pd.DataFrame(found)
    row = {'variant': name, 'weights': int(own['weights'].iloc[0])}
    row['nonzero'] = round(own['nonzero'].mean())
    row |= with_interval('factor', own['weights'] / np.maximum(own['nonzero'], 1))
    for key in ('accuracy', 'loss'):
      row |= with_interval(key, own[key])
    row |= with_interval('accuracy_lost', dense['accuracy'] - own['accuracy'])
    row |= {'flops': float(own['flops'].mean()), 'bytes': float(own['bytes'].mean())}
    row |= with_interval('flops_factor', dense['flops'] / own['flops'])
    row['receipt'] = float(own['receipt'].max())
    rows.append(row)
  return pd.DataFrame(rows)


def structures(records: dict[str, list[dict]]) -> pd.DataFrame:
  """One row per network and seed, the networks in order: its gates, and what is left of it."""
  keys = (
    'variant',
    'seed',
    'structure',
    'nonzero',
    'flops',
    'bytes',
    'loss',
    'accuracy',
    'receipt',
  )
  rows = [{key: record[key] for key in keys} for found in records.values() for record in found]
  return pd.DataFrame(rows)


def layers(records: dict[str, list[dict]]) -> pd.DataFrame:
  """One row per network and layer: how many weights, units or gates are left, mean over the
  seeds."""
  rows = []
  for name, found in records.items():
    for layer, (_, size) in found[0]['left'].items():
      own = np.mean([record['left'][layer][0] for record in found])
      rows.append({'variant': name, 'layer': layer, 'left': own, 'of': size, 'share': own / size})
  return pd.DataFrame(rows)


def summarise(session, table: pd.DataFrame) -> dict:
  """The headline figures."""
  options = session.config.compress
  return {
    'experiment': 'compress',
    'data': session.data.name,
    'num_seeds': len(session.seeds),
    'level': options.level,
    'threshold': options.threshold,
    'variants': table.set_index('variant').to_dict('index'),
  }
