"""What the pages of Exp 4 and DNA share: the comparison with a dense network, and routers over
training.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.experiments.contenders import DENSE
from additive_jax.report import figures, routing_figures, stochastic_figures
from additive_jax.report.page import Report

SHOWN = {
  'entropy': 'entropy of the routers, nats',
  'max_violation': 'MaxVio',
  'dead': 'choices that no token took',
}
MEANING = {'max_violation': ': by how much the largest load is above the ideal one, as a share'}


def words(name: str) -> str:
  """A network's name as a person reads it."""
  return name.replace('_', ' ')


def signed(row, key: str) -> str:
  """A difference with its interval."""
  value, half_width = row[key], row[f'{key}_ci95']
  text = f'{value:+.4f}'
  return (text if np.isnan(half_width) else f'{text} ± {half_width:.4f}').replace('-', '−')


def compare(report: Report, variants: pd.DataFrame, num_seeds: int, note: str) -> None:
  """The section that compares all networks with the dense one; `note` says what they share."""
  over = ' over the seeds' if num_seeds > 1 else ''
  report.section('Against the dense network')
  report.figure(
    stochastic_figures.differences(
      variants[variants['variant'] != DENSE],
      ['loss_minus_dense', 'accuracy_minus_dense'],
      ['test loss − dense', 'test accuracy − dense'],
    ),
    f'What each network differs by from the dense one: means of differences paired by seed, with '
    f'95 % intervals{over}. An interval that crosses zero shows no difference. {note}',
  )
  report.figure(
    routing_figures.budgets(variants),
    'Test loss against the FLOPs of one example’s forward pass, counting what tokens chose, and '
    'against all parameters.',
  )


def over_training(
  report: Report, curves: pd.DataFrame, groups: dict[str, list[str]], more: dict
) -> None:
  """The section of curves: training loss, and each measure of the routers, mean over sites and
  seeds.

  Args:
    curves: the run's metrics.
    groups: the networks that share a picture, by what is said of them.
    more: further measures: by the ending of their columns, a label and the target or None.
  """
  report.section('Training')
  if not len(curves):
    return
  for said, names in groups.items():
    frame = _mean(curves, names, ['loss']).rename(columns={'value': 'loss'})
    report.figure(
      figures.training_curves(frame),
      f'Training loss{said}, with the penalties of routers where there are any, mean over the '
      'seeds.',
    )
  measures = {ending: (label, None) for ending, label in SHOWN.items()} | more
  for ending, (label, ideal) in measures.items():
    columns = [column for column in curves if column.endswith(f'/{ending}')]
    for said, names in groups.items():
      frame = _mean(curves, names, columns)
      if len(frame) and (ending != 'dead' or frame['value'].any()):
        report.figure(
          routing_figures.over_time(frame, label, ideal),
          f'{label[0].upper()}{label[1:]} over training{said}, mean over sites and seeds'
          f'{MEANING.get(ending, "")}.',
        )


def _mean(curves, names, columns):
  """Frame of step, tag and value: mean over columns and seeds."""
  parts = []
  for name in names:
    own = curves[curves['tag'].str.fullmatch(rf'{name}-seed\d+')]
    value = own[columns].mean(axis=1) if columns else pd.Series(dtype=float)
    frame = pd.DataFrame({'step': own['step'], 'value': value}).dropna()
    mean = frame.groupby('step', as_index=False)['value'].mean()
    parts.append(mean.assign(tag=words(name)))
  return pd.concat(parts, ignore_index=True)
