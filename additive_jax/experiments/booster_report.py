"""The page that Exp 5 leaves: pictures first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.experiments.booster_tables import SCRATCH
from additive_jax.experiments.results import end_page, start_page
from additive_jax.report import booster_figures, pipeline_figures
from additive_jax.report.page import counted
from additive_jax.transplant import wiring_of

TICKS = ('busy', 'microbatch', 'forward', 'backward')


def render(session, result, narrows, pictures, bubble=None) -> str:
  """The report of a `BoosterResult` as HTML.

  Args:
    narrows: by way of training, its `Narrow`.
    pictures: of the clusters: figures, or tables, with their captions.
    bubble: of a pipeline, its ticks as `pipeline_timing.BubbleReport` has them.
  """
  rows, summary = result.variants.set_index('variant'), result.summary
  small, forward = summary['narrow'], session.space.flops(session.space.all_on())
  first = next(name for name in rows.index if name != SCRATCH)
  report = start_page(
    session, f'{type(session.model).__name__} started from small ones, on {session.data.name}'
  )
  report.facts(
    {f'{booster_figures.NAMES[first]}: FLOPs saved at equal loss': _share(rows.loc[first])}
    | {
      booster_figures.NAMES[name]: _share(rows.loc[name])
      for name in rows.index
      if name not in (SCRATCH, first)
    }
    | {
      'FLOPs of a narrow model, of the large one': small['flops'] / forward,
      'largest |Δlogit| of a growth': summary['largest_difference'],
    }
  )
  options = session.config.booster
  report.section('What starting small saves')
  report.figure(
    booster_figures.booster(result.curves, result.variants),
    'Left: test loss against the FLOPs of the whole training, forward and backward, mean over the '
    'seeds; circles: where the large model begins; dashed: the lowest loss of training from '
    'scratch. Right: the share of FLOPs saved until that loss, paired by seed, with 95 % '
    'intervals. Everything counts: all narrow models, k-means, and the features that it is given '
    '(components of the inputs, or the model whose embedding they are).',
  )
  report.figure(
    booster_figures.spent(result.curves, 'flops', booster_figures.FLOPS, scores=('accuracy',)),
    'Test accuracy against the same FLOPs; dashed: the highest of training from scratch.',
  )
  report.figure(
    booster_figures.spent(result.curves, 'seconds', 'seconds of training and clustering'),
    'Loss and accuracy against measured time on this run’s devices, without compiling and judging. '
    'Each narrow model trains on one device: one alone leaves the others idle, and those that '
    'share a device take turns.',
  )
  narrow = max(narrows.values(), key=lambda own: own.num_models)
  count, sync = narrow.num_models, narrow.sync_every
  apart = 'never synchronised' if not sync else f'synchronised every {counted(sync, "step")}'
  joined = 'one copy'
  if count > 1:
    joined = f'{count} copies, {apart}, joined by “{options.join}”'
  if options.asynchronous:
    joined = f'{count} processes, each at its own pace, joined by “{options.join}”'
  report.text(
    f'Narrow models: {options.width:g} of the width, {len(small["blocks"])} of '
    f'{_num_blocks(session)} blocks, {small["steps"]} steps; {joined}.'
  )
  if pictures:
    report.section('Clusters')
    for shown, caption in pictures:
      add = report.table if isinstance(shown, pd.DataFrame) else report.figure
      add(shown, caption)
  if bubble:
    report.section('The pipeline')
    report.figure(
      pipeline_figures.timeline(*(bubble[part] for part in TICKS)),
      f'Ticks of one step on {len(bubble["busy"])} devices, by measured processor time of each, as '
      f'devices side by side would take them: {bubble["measured"]:.3f} of their time is idle; the '
      f'formula for equal ticks gives {bubble["formula"]:.3f}.',
    )
  report.section('Tables')
  report.table(result.variants, 'Each way of training; “minus scratch” is paired by seed.')
  report.table(
    result.receipts,
    'Receipts: max |Δlogit| between the large model and the mean of all small ones, and the one '
    'that was grown.',
  )
  report.table(
    result.memory,
    'Bytes of the large model’s training on each device, measured from its arrays; gradients lie '
    'as the parameters do.',
  )
  if len(result.clusters):
    report.table(result.clusters, 'Sizes of the clusters.')
  return end_page(report, session)


def _num_blocks(session):
  return sum(map(len, wiring_of(session.model).blocks))


def _share(row) -> str:
  if not np.isfinite(row['saving']):
    return 'not reached'
  half = row['saving_ci95']
  interval = '' if np.isnan(half) else f' ±\u00a0{100 * half:.1f}'
  return f'{100 * row["saving"]:z.1f}{interval}\u00a0%'.replace('-', '−')
