"""The page that a compression leaves: pictures first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.compress.levels import BINS
from additive_jax.experiments.compressor import DENSE, EXPORTED, MATCHED, VARIATIONAL
from additive_jax.experiments.contenders_report import words
from additive_jax.experiments.results import end_page, start_page
from additive_jax.report import figures, sparsity_figures

NOUNS = {'weight': 'weights', 'unit': 'units', 'gate': 'gates'}


def render(session, result, records: dict[str, list[dict]], curves: pd.DataFrame) -> str:
  """The report of a `CompressResult` as HTML.

  Args:
    records: by network, those of all seeds.
    curves: the run's metrics.
  """
  options, frame = session.config.compress, result.variants
  rows, noun = frame.set_index('variant'), NOUNS[options.level]
  report = start_page(session, f'Compression of {session.data.name}, per {options.level}')
  best = rows.loc[VARIATIONAL]
  report.facts(
    {
      'dense, test accuracy': rows.loc[DENSE, 'accuracy'],
      'variational dropout, fewer weights': f'{best["factor"]:.1f}×',
      'fewer FLOPs, cut out': f'{best["flops_factor"]:.1f}×',
      'its accuracy − dense': _lost(best),
      'of magnitude at the same number': _lost(rows.loc[MATCHED]),
    }
  )
  report.section('What it costs')
  methods = frame.assign(method=[_method(name) for name in frame['variant']])
  report.figure(
    sparsity_figures.accuracy(
      methods[methods['method'] != ''],
      {'factor': 'times fewer weights', 'flops_factor': 'times fewer FLOPs, cut out'},
    ),
    'Test accuracy against how many times smaller a network is, means with 95 % intervals over the '
    'seeds. All start from the network of their seed’s first epochs and take as many more; '
    'magnitude pruning removes what is small at once, and tunes what is left.' + _taught(options),
  )
  report.section('What the noise tells')
  report.figure(
    sparsity_figures.log_alpha(
      BINS,
      {f'seed {r["seed"]}': r['histogram'] for r in records[VARIATIONAL]},
      options.threshold,
    ),
    f'log α of all {noun}, noise over signal, at the end of variational dropout, cut off at ±8; '
    'what is right of the threshold is removed.',
  )
  report.section('What is left')
  shown = result.layers[result.layers['variant'].isin((VARIATIONAL, MATCHED))]
  report.figure(
    sparsity_figures.remains(shown), f'How many {noun} of each layer are left, mean over the seeds.'
  )
  _training(report, curves)
  report.section('Tables')
  report.table(
    frame,
    'Each network; “lost” is against the dense one of the same seed. FLOPs and bytes are those of '
    'the network that was cut out, the receipt is its largest difference in logits. Those that '
    f'variational dropout leaves lie in {EXPORTED}/, for additive_jax.export.load.',
  )
  report.table(result.layers, 'Each layer, mean over the seeds.')
  return end_page(report, session)


def _training(report, curves):
  report.section('Training')
  if not len(curves):
    return
  report.figure(
    figures.training_curves(_mean(curves, 'loss')),
    'Training loss, mean over the seeds; of variational dropout with the noise and the divergence.',
  )
  learnt = curves[curves['tag'].str.fullmatch(rf'{VARIATIONAL}-seed\d+')]
  if 'kept' in learnt and len(learnt):
    frame = learnt[['step', 'tag', 'kept']].rename(columns={'kept': 'share that is left'})
    report.figure(
      figures.training_curves(frame, 'share that is left'),
      'Share of what has log α below the threshold while variational dropout learns.',
    )


def _mean(curves, column):
  """Frame of step, tag and the column: mean over the seeds."""
  frame = curves.assign(tag=curves['tag'].str.replace(r'-seed\d+$', '', regex=True))
  frame = frame.groupby(['tag', 'step'], as_index=False, sort=False)[column].mean()
  return frame.assign(tag=frame['tag'].map(lambda tag: words(tag).replace('-', ', ')))


def _method(name):
  if name == DENSE:
    return DENSE
  if name == VARIATIONAL:
    return VARIATIONAL
  return 'magnitude' if name.startswith('magnitude') else ''


def _taught(options) -> str:
  if not options.distill:
    return ''
  share = f'{options.distill:.0%} of the loss'
  return f' {share} of those that lose something is how far they are from their teacher.'


def _lost(row) -> str:
  """What a network's accuracy differs by from the dense one's, in points."""
  mean, half_width = (100 * row[f'accuracy_lost{end}'] for end in ('', '_ci95'))
  text = f'{-mean:+.2f}' if np.isnan(half_width) else f'{-mean:+.2f} ± {half_width:.2f}'
  return f'{text.replace("-", "−")} points'
