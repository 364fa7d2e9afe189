"""The tables of Exp 5: what each way of training spent until it was as good as training from
scratch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from additive_jax.errors import UserError
from additive_jax.experiments.booster.narrow import CLOCK
from additive_jax.experiments.fit import lost_points
from additive_jax.experiments.pages import read_curves
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.files.journal import Journal, Record
from additive_jax.report import comparison
from additive_jax.report.comparison import with_interval
from additive_jax.report.savings import savings

SCRATCH, CLUSTERS, RANDOM = 'scratch', 'clusters', 'random_split'
ONE, UNTRAINED = 'one_narrow', 'untrained'
METHODS = {CLUSTERS: 'kmeans', RANDOM: 'random'}
NARROW, LARGE = 'narrow', 'large'


def make_tables(session: Session, records: Records) -> Result:
  """Returns the six tables of Exp 5, and the summary."""
  by_way = {name: records[name] for name in records.arms}
  curves = curve_table(session, records)
  scores = session.task.scores
  variants = compare(by_way, curves, scores)
  receipts, first = receipt_table(by_way), by_way[SCRATCH][0]
  narrow = next(way.narrow for way in records.arms.values() if way.narrow)
  full = str(session.space.all_on())
  made = {
    'structures': comparison.arms_as_structures(variants, [full] * len(variants), scores),
    'variants': variants,
    'curves': curves,
    'receipts': receipts,
    'clusters': cluster_table(by_way),
    'memory': pd.DataFrame(first['memory']),
  }
  bubble = first.get('bubble')
  return Result(made, summarise(session, variants, receipts, narrow, bubble), {'bubble': bubble})


def curve_table(session: Session, records: Records) -> pd.DataFrame:
  """Returns test loss and metrics at every point of every training, against all that was spent up
  to it.

  Columns: variant, seed, phase, step (of the phase), flops (of training, forward and backward, all
  copies together, what found the clusters included), seconds (of the same, without compiling),
  loss and metrics. A large model that was made of others has a point at step 0:

      phase   step   flops
      narrow     4   clusters + 4 steps of all copies
      narrow     8   clusters + 8 steps of all copies
      large      0   the same, and the loss of the pool that was made of the copies
      large      4   the same + 4 steps of the large model
  """
  curves, clock = read_curves(session), read_clock(session)
  for way in records.arms.values():
    for seed in session.seeds:
      if problem := lost(session, way, seed, curves, clock):
        raise UserError(f'{problem}; expected every point that the run has written')
  seconds_of = lambda tag: sum(clock[tag].values())
  of_large = 3 * session.config.train.batch_size * session.space.flops(session.space.all_on())
  rows, scores = [], session.task.scores

  def add(tag, before, flops, seconds, per_step):
    points = curves[curves['tag'] == tag].sort_values('step')
    for point in points.to_dict('records'):
      step = int(point['step'])
      seconds += clock[tag].get(step, 0.0)
      spent = [step, flops + step * per_step, seconds]
      rows.append([*before, *spent, *(point[f'test_{score}'] for score in scores)])
    return seconds

  for name, way in records.arms.items():
    for record in records[name]:
      seed, flops, seconds = record['seed'], 0.0, 0.0
      if way.narrow:
        flops, seconds = (record.get(f'cluster_{key}', 0.0) for key in ('flops', 'seconds'))
        if flops:  # a random split needs no embedding
          seconds += seconds_of(f'embedding-seed{seed}')
        tag = f'{name}-narrow-seed{seed}'
        before = [name, seed, NARROW]
        seconds = add(tag, before, flops, seconds, way.narrow.flops_per_step)
        # Copies that trained at their own pace have no common points; the slowest one counts.
        seconds += max(seconds_of(f'{tag}-{i}') for i in range(way.narrow.num_models))
        flops, start = record['narrow_flops'], record['start']
        spent = [0, flops, seconds]
        begun = [start[f'test_{score}'] for score in scores]
        rows.append([name, seed, LARGE, *spent, *begun])
      add(f'{name}-seed{seed}', [name, seed, LARGE], flops, seconds, of_large)
  columns = ['variant', 'seed', 'phase', 'step', 'flops', 'seconds', *scores]
  return pd.DataFrame(rows, columns=columns)


def read_clock(session: Session) -> dict[str, dict[int, float]]:
  """Returns the seconds up to every point of every training, by its tag and step."""
  clock: dict[str, dict[int, float]] = defaultdict(dict)
  for path in sorted(session.rundir.journals.glob('*seconds.jsonl')):
    for line in Journal(path).sound():
      clock[line['tag']].setdefault(line['step'], line['seconds'])
  return clock


def lost(
  session: Session,
  way: Any,
  seed: int,
  curves: pd.DataFrame,
  clock: Mapping[str, Mapping[int, float]],
) -> str:
  """Returns which point of a way's trainings in one seed is not there, in words that name the file;
  '' for none."""
  trainings = {f'{way.name}-seed{seed}': way.num_steps}
  # Copies in processes of their own end where the quorum did.
  apart = session.config.booster.asynchronous and way.name in METHODS
  if way.narrow and way.name != UNTRAINED and not apart:
    trainings[f'{way.name}-narrow-seed{seed}'] = way.narrow.num_steps
  rundir = session.rundir
  for tag, num_steps in trainings.items():
    every = session.config.train.steps_of_points(num_steps)
    points = set(curves[curves['tag'] == tag]['step'])
    for path, steps in (
      (rundir.path / 'metrics.jsonl', points),
      (rundir.journals / CLOCK, clock.get(tag, {})),
    ):
      if missing := lost_points(steps, num_steps, every):
        return f'{path} lacks step {missing[0]} of {tag}'
  return ''


def compare(
  records: dict[str, list[Record]],
  curves: pd.DataFrame,
  names: Sequence[str] = comparison.SCORES,
) -> pd.DataFrame:
  """Returns a row for each way: scores with 95 % intervals over the seeds, what its training spent,
  and what it saves at equal loss: NaN unless all seeds came to that loss; `reached` tells how many
  did.
  """
  saved = {
    'saving': savings(curves, 'flops', SCRATCH),
    'saving_seconds': savings(curves, 'seconds', SCRATCH),
  }
  ends = curves.groupby(['variant', 'seed'], sort=False)[['flops', 'seconds']].last()
  scores, facts = {}, {}
  for name, seeds in records.items():
    frame, end = pd.DataFrame(seeds), ends.loc[name]
    mean = lambda key, seeds=seeds: np.mean([record.get(key, 0.0) for record in seeds])
    scores[name] = frame[list(names)]
    facts[name] = {
      'flops': frame['flops'].iloc[0],
      'params': int(frame['params'].iloc[0]),
      'training_flops': end['flops'].mean(),
      'narrow_flops': mean('narrow_flops'),
      'cluster_flops': mean('cluster_flops'),
      **with_interval('seconds', end['seconds']),
      'skipped': int(frame['skipped'].sum()),
    }
    if name != SCRATCH:
      facts[name]['reached'] = int(saved['saving'][name].notna().sum())
      for key, by_seed in saved.items():
        known = by_seed[name].notna().all()
        nothing = {key: np.nan, f'{key}_ci95': np.nan}
        facts[name] |= with_interval(key, by_seed[name]) if known else nothing
  return comparison.compare(scores, SCRATCH, facts=facts, differences=names)


def receipt_table(records: dict[str, list[Record]]) -> pd.DataFrame:
  """Returns a row for each way and seed: how the large pool was made, and max |Δoutput| to the mean
  of all small models, and to the one that was grown."""
  rows = []
  for name, seeds in records.items():
    for record in seeds:
      if 'receipt' in record:
        row = {'variant': name, 'seed': record['seed'], **record['receipt']}
        row['steps'] = ', '.join(map(str, dict.fromkeys(record.get('taken', [0]))))
        rows.append(row)
  return pd.DataFrame(rows)


def cluster_table(records: dict[str, list[Record]]) -> pd.DataFrame:
  """Returns a row for each way, seed and cluster: how many training examples it has."""
  rows = [
    {'variant': name, 'seed': record['seed'], 'cluster': i, 'size': size}
    for name, seeds in records.items()
    for record in seeds
    for i, size in enumerate(record.get('sizes', ()))
  ]
  return pd.DataFrame(rows, columns=['variant', 'seed', 'cluster', 'size'])


def summarise(
  session: Session,
  variants: pd.DataFrame,
  receipts: pd.DataFrame,
  narrow: Any,
  bubble: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the headline figures.

  Args:
    narrow: the `Narrow` that they tell of.
    bubble: of a pipeline, the share of its time that is idle, as measured and by formula.
  """
  figures, space = {}, narrow.session.space
  for row in variants.to_dict('records'):
    # Training from scratch is not compared with itself.
    known = {
      key: value for key, value in row.items() if row['variant'] != SCRATCH or value == value
    }
    figures[known.pop('variant')] = known
  idle = {'bubble': {key: bubble[key] for key in ('measured', 'formula')}} if bubble else {}
  return dict(
    narrow={
      'flops': space.flops(space.all_on()),
      'params': space.params(space.all_on()),
      'blocks': list(narrow.place),
      'steps': narrow.num_steps,
    },
    largest_difference=receipts['from_joined'].max(),
    variants=figures,
    skipped=int(variants['skipped'].sum()),
    **idle,
  )
