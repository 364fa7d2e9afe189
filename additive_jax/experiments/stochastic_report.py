"""The page that Exp 3 leaves: pictures first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.experiments.results import end_page, start_page
from additive_jax.experiments.stochastic_tables import NONE
from additive_jax.report import figures, stochastic_figures
from additive_jax.report.page import counted


def render(session, result, variants, curves: pd.DataFrame) -> str:
  """The report of a `StochasticResult` as HTML; `curves` is the run's metrics."""
  frame, summary = result.variants, result.summary
  random, judged = frame[frame['variant'] != NONE], summary['num_structures']
  over = ' over the seeds' if summary['num_seeds'] > 1 else ''
  first = summary['variants'][variants[1].name]
  report = start_page(
    session,
    f'Random structures of {type(session.model).__name__} as a regulariser, on {session.data.name}',
  )
  report.facts(
    {
      'all gates on, test loss': summary['variants'][NONE]['loss'],
      f'{_words(variants[1].name)}, test loss': first['loss'],
      'difference, paired by seed': _signed(first, 'loss_minus_none'),
      'difference in accuracy': _signed(first, 'accuracy_minus_none'),
      'FLOPs of a step, of all-on': variants[1].forward_flops / variants[0].forward_flops,
    }
    | {
      f'{_words(variant.name)}, test loss': summary['variants'][variant.name]['loss']
      for variant in variants[2:]
    }
  )
  report.section('The full network, trained with and without random structures')
  report.figure(
    stochastic_figures.variants(
      frame,
      ['loss', 'accuracy', 'loss_gap'],
      ['test loss', 'test accuracy', 'test − train loss'],
    ),
    f'The network with all gates on, with 95 % intervals{over}. Variants start from the same init '
    'and see the data in the same order; “equal flops” ones train longer, until they have spent '
    'what training with all gates on spends.',
  )
  report.figure(
    stochastic_figures.differences(
      random,
      ['loss_minus_none', 'accuracy_minus_none', 'loss_gap_minus_none'],
      ['test loss', 'test accuracy', 'test − train loss'],
    ),
    'What each variant differs by from training with all gates on: means of differences paired by '
    f'seed, with 95 % intervals{over}. An interval that crosses zero shows no difference.',
  )
  report.section('All structures of each pool')
  table = result.table
  full = table['structure'] == '1' * summary['num_gates']
  names = [variant.name for variant in variants]
  columns = ['accuracy' if name == names[1] else f'{name}_accuracy' for name in names]
  report.figure(
    stochastic_figures.distributions(
      [table[column].to_numpy() for column in columns],
      names,
      [table.loc[full, column].item() for column in columns],
    ),
    f'Test accuracy of {counted(judged, "structure")} of each pool'
    f'{", mean over the seeds" if over else ""}, all without scales.',
  )
  report.section('Keep rates and training')
  shown = [variant for variant in variants if variant.name in session.config.stochastic.modes]
  report.figure(
    stochastic_figures.keep_rates(
      [variant.keep_rates for variant in shown],
      [variant.name for variant in shown],
      session.space.names,
    ),
    'The exact probability that each gate is on, over depth; per sample, a whole number of the '
    'examples of a batch.',
  )
  if len(curves):
    report.figure(
      figures.training_curves(mean_curves(curves, names)),
      f'Training loss of the structures that were drawn{", mean over the seeds" if over else ""}.',
    )
  report.section('Tables')
  report.table(frame, 'Each variant; “minus none” is paired by seed.')
  report.table(table, f'The structures, best first by the loss of {_words(names[1])}.')
  return end_page(report, session)


def mean_curves(curves: pd.DataFrame, names: list[str]) -> pd.DataFrame:
  """Training loss over steps of each variant, mean over the seeds."""
  parts = []
  for name in names:
    own = curves[curves['tag'].str.fullmatch(rf'{name}-seed\d+')]
    mean = own.groupby('step', as_index=False)['loss'].mean()
    parts.append(mean.assign(tag=_words(name)))
  return pd.concat(parts, ignore_index=True)


def _signed(figures_of, key):
  value, half_width = figures_of[key], figures_of[f'{key}_ci95']
  text = f'{value:+.4f}'
  return (text if np.isnan(half_width) else f'{text} ± {half_width:.4f}').replace('-', '−')


def _words(name):
  return 'all gates on' if name == NONE else name.replace('_', ' ')
