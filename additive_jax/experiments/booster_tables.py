"""The tables of Exp 5: what each way of training spent until it was as good as training from
scratch.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.experiments.results import with_interval
from additive_jax.files.journal import read_all
from additive_jax.parallel.zero import bytes_per_device

SCRATCH, CLUSTERS, RANDOM = 'scratch', 'clusters', 'random_split'
ONE, UNTRAINED = 'one_narrow', 'untrained'
NARROW, LARGE = 'narrow', 'large'


def curve_table(session, records: dict, narrows: dict, steps: dict) -> pd.DataFrame:
  """Test loss and accuracy at every point of every training, against all that was spent up to it.

  Columns: variant, seed, phase, step (of the phase), flops (of training, forward and backward, all
  copies together, what found the clusters included), seconds (of the same, without compiling),
  loss, accuracy. A large model that was made of others has a point at step 0.

  Args:
    records: by variant, one of each seed; see `booster`.
    narrows: by variant, its `Narrow`; none for training from scratch.
    steps: by variant, of the large model.
  """
  curves = session.metrics.read(session.rundir.path)
  clock = {}
  for record in read_all(session.rundir.journals, '*seconds.jsonl'):
    clock[record['tag'], record['step']] = record['seconds']
  forward = session.space.flops(session.space.all_on())
  of_large = 3 * session.config.train.batch_size * forward
  rows = []

  def add(tag, variant, seed, phase, flops, seconds, per_step):
    own = curves[curves['tag'] == tag].sort_values('step')
    for point in own.to_dict('records'):
      step = int(point['step'])
      seconds += clock.get((tag, step), 0.0)
      row = [variant, seed, phase, step, flops + step * per_step, seconds]
      rows.append([*row, point['test_loss'], point['test_accuracy']])
    return seconds

  for variant, found in records.items():
    for record in found:
      seed, flops, seconds = record['seed'], 0.0, 0.0
      if variant in narrows:
        flops = record.get('cluster_flops', 0.0)
        name, narrow = f'{variant}-narrow-seed{seed}', narrows[variant]
        of_copies = [f'{name}-{i}' for i in range(narrow.num_models)]
        # Copies that trained at their own pace have no common points; the slowest one counts.
        apart = [sum(s for (tag, _), s in clock.items() if tag == own) for own in of_copies]
        seconds = record.get('cluster_seconds', 0.0)
        if flops:  # a random split needs no embedding
          seconds += sum(s for (tag, _), s in clock.items() if tag == f'embedding-seed{seed}')
        seconds = add(name, variant, seed, NARROW, flops, seconds, narrow.flops_per_step)
        flops, seconds = record['narrow_flops'], seconds + max(apart)
        start = record['start']
        row = [variant, seed, LARGE, 0, flops, seconds]
        rows.append([*row, start['test_loss'], start['test_accuracy']])
      add(f'{variant}-seed{seed}', variant, seed, LARGE, flops, seconds, of_large)
  columns = ['variant', 'seed', 'phase', 'step', 'flops', 'seconds', 'loss', 'accuracy']
  return pd.DataFrame(rows, columns=columns)


def spent_until(curve: pd.DataFrame, target: float, measure: str) -> float:
  """What of `measure` ('flops' or 'seconds') a training had spent when its test loss first was no
  more than `target`, on straight lines between its points; NaN if it never was.

  Args:
    curve: the points of one training in order, columns `loss` and the measure.
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


def savings(curves: pd.DataFrame, measure: str) -> pd.DataFrame:
  """The share of what training from scratch spent until its lowest test loss that each other
  training saves until it is as low; a row for each seed, a column for each variant."""
  found = {}
  for seed, own in curves.groupby('seed'):
    each = dict(list(own.groupby('variant', sort=False)))
    target = each[SCRATCH]['loss'].min()
    whole = spent_until(each[SCRATCH], target, measure)
    found[seed] = {
      variant: 1 - spent_until(curve, target, measure) / whole
      for variant, curve in each.items()
      if variant != SCRATCH
    }
  return pd.DataFrame(found).T


def compare(records: dict, curves: pd.DataFrame) -> pd.DataFrame:
  """One row per variant: scores with 95 % intervals over the seeds, what its training spent, and
  what it saves at equal loss: NaN unless all seeds came to that loss; `reached` tells how many did.
  """
  by_flops, by_seconds = savings(curves, 'flops'), savings(curves, 'seconds')
  ends = curves.groupby(['variant', 'seed'], sort=False)[['flops', 'seconds']].last()
  scratch, rows = pd.DataFrame(records[SCRATCH]), []
  for variant, found in records.items():
    own, end = pd.DataFrame(found), ends.loc[variant]
    row = {'variant': variant, 'flops': own['flops'].iloc[0], 'params': int(own['params'].iloc[0])}
    for key in ('loss', 'accuracy'):
      row |= with_interval(key, own[key])
      if variant != SCRATCH:
        row |= with_interval(f'{key}_minus_scratch', own[key] - scratch[key])
    row['training_flops'] = end['flops'].mean()
    row['narrow_flops'] = own['narrow_flops'].mean() if variant != SCRATCH else 0.0
    row['cluster_flops'] = np.mean([record.get('cluster_flops', 0.0) for record in found])
    row |= with_interval('seconds', end['seconds'])
    if variant != SCRATCH:
      row['reached'] = int(by_flops[variant].notna().sum())
      for name, each in (('saving', by_flops), ('saving_seconds', by_seconds)):
        whole = each[variant].notna().all()
        unknown = {name: np.nan, f'{name}_ci95': np.nan}
        row |= with_interval(name, each[variant]) if whole else unknown
    row['skipped'] = int(own['skipped'].sum())
    rows.append(row)
  return pd.DataFrame(rows)


def receipt_table(records: dict) -> pd.DataFrame:
  """One row per variant and seed: how the large pool was made, and max |Δlogit| to the mean of all
  small models, and to the one that was grown."""
  rows = []
  for variant, found in records.items():
    for record in found:
      if 'receipt' in record:
        row = {'variant': variant, 'seed': record['seed'], **record['receipt']}
        row['steps'] = ', '.join(map(str, dict.fromkeys(record.get('taken', [0]))))
        rows.append(row)
  return pd.DataFrame(rows)


def cluster_table(records: dict) -> pd.DataFrame:
  """One row per variant, seed and cluster: how many training examples it has."""
  rows = [
    {'variant': variant, 'seed': record['seed'], 'cluster': i, 'size': size}
    for variant, found in records.items()
    for record in found
    for i, size in enumerate(record.get('sizes', ()))
  ]
  return pd.DataFrame(rows, columns=['variant', 'seed', 'cluster', 'size'])


def memory_rows(state) -> list[dict]:
  """The bytes that the state of a training takes on each device, and in host memory beside it, as
  they lie; those of gradients are as many as the parameters'."""
  found = bytes_per_device(state)
  return [
    {'device': device}
    | {part: each.device.get(device, 0) for part, each in found.items()}
    | {'optimizer_in_host_memory': found['optimizer'].host.get(device, 0)}
    for device in sorted(found['parameters'].device)
  ]


def summarise(
  session, table: pd.DataFrame, receipts: pd.DataFrame, narrows: dict, bubble: dict | None = None
) -> dict:
  """The headline figures; of a pipeline also the share of its time that is idle, as measured and by
  formula, from `bubble`."""
  figures, of_scratch = {}, table.set_index('variant').loc[SCRATCH].dropna().index
  for row in table.to_dict('records'):
    name = row.pop('variant')
    # Training from scratch is not compared with itself.
    figures[name] = {k: v for k, v in row.items() if name != SCRATCH or k in of_scratch}
  small = next(iter(narrows.values()))
  idle = {'bubble': {key: bubble[key] for key in ('measured', 'formula')}} if bubble else {}
  return {
    'experiment': 'booster',
    'data': session.data.name,
    'num_seeds': len(session.seeds),
    'narrow': {
      'flops': small.session.space.flops(small.session.space.all_on()),
      'params': small.session.space.params(small.session.space.all_on()),
      'blocks': list(small.place),
      'steps': small.num_steps,
    },
    'largest_difference': receipts['from_joined'].max(),
    'variants': figures,
    'skipped': int(table['skipped'].sum()),
    **idle,
  }
