"""The share of its cost that a training saves until it is as good as another one."""

from __future__ import annotations

import numpy as np
import pandas as pd


def spent_until(curve: pd.DataFrame, target: float, measure: str) -> float:
  """Returns what a training had spent when its test loss first was no more than `target`, on
  straight lines between its points; NaN if it never was.

  Args:
    curve: the points of one training in order, columns `loss` and the measure.
    target: a test loss.
    measure: 'flops' or 'seconds'.
  """
  loss, spent = curve['loss'].to_numpy(float), curve[measure].to_numpy(float)
  below = np.flatnonzero(loss <= target)
  if not len(below):
    return float('nan')
  last = below[0]
  if last == 0 or not np.isfinite(loss[last - 1]):
    return float(spent[last])
  share = (loss[last - 1] - target) / (loss[last - 1] - loss[last])
  return float(spent[last - 1] + share * (spent[last] - spent[last - 1]))


def savings(curves: pd.DataFrame, measure: str, baseline: str) -> pd.DataFrame:
  """Returns the share that each training saves, of what the baseline spent until its lowest loss,
  until its own loss is as low; a row for each seed, a column for each training.

  Args:
    curves: points of all trainings, columns `variant`, `seed`, `loss` and the measure.
    measure: 'flops' or 'seconds'.
    baseline: the variant that others are compared with.
  """
  by_seed = {}
  for seed, frame in curves.groupby('seed'):
    by_variant = dict(list(frame.groupby('variant', sort=False)))
    base = by_variant.pop(baseline)
    target = base['loss'].min()
    cost = spent_until(base, target, measure)
    by_seed[seed] = {
      name: 1 - spent_until(curve, target, measure) / cost for name, curve in by_variant.items()
    }
  return pd.DataFrame(by_seed).T
