"""What the pages of all experiments share, and the page of a study that has none of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from additive_jax.experiments.records import Records
from additive_jax.experiments.session import EXCLUDED, Session
from additive_jax.files.rundir import flatten
from additive_jax.report import figures, stochastic_figures
from additive_jax.report.page import Report, counted


def start_page(session: Session, title: str) -> Report:
  """Returns the head of a report on a run; `title` is what was done."""
  gates, seeds = counted(session.space.num_gates, 'gate'), counted(len(session.seeds), 'seed')
  return Report(title, f'{gates}, {seeds}; loss is on the test split')


def end_page(report: Report, session: Session) -> str:
  """Returns the page, with the command and the options of the run at its foot."""
  options = flatten(session.rundir.read_json('config.json'), EXCLUDED)
  width = max(map(len, options))
  lines = [f'{name:{width}}  {json.dumps(value)}' for name, value in options.items()]
  texts = {'Command, which also continues the run': session.command} if session.command else {}
  texts['Options'] = '\n'.join(lines)
  return report.details('How this run was made', texts).render()


def read_curves(session: Session) -> pd.DataFrame:
  """Returns the curves of the run: columns tag, step, and every value."""
  return session.metrics.read(session.rundir.path)


def words(name: str) -> str:
  """Returns an arm's name as a person reads it.

  >>> words('moe_equal_flops')
  'moe equal flops'
  """
  return name.replace('_', ' ')


def signed(row: Any, key: str) -> str:
  """Returns a difference with its interval, as text.

  >>> signed({'gain': -0.5, 'gain_ci95': 0.25}, 'gain')
  '−0.5000 ± 0.2500'
  """
  value, half_width = row[key], row[f'{key}_ci95']
  text = f'{value:+.4f}'
  return (text if np.isnan(half_width) else f'{text} ± {half_width:.4f}').replace('-', '−')


def over_seeds(session: Session, text: str = ' over the seeds') -> str:
  """Returns `text` where a run has several seeds, else nothing."""
  return text if len(session.seeds) > 1 else ''


def mean_curves(
  curves: pd.DataFrame, names: Sequence[str], columns: Sequence[str], label: str = 'value'
) -> pd.DataFrame:
  """Returns a frame of step, tag and `label`, the mean over some columns and all seeds.

  Args:
    curves: the run's curves.
    names: of the arms.
    columns: whose mean is taken.
  """
  parts = []
  for name in names:
    of_arm = curves[curves['tag'].str.fullmatch(rf'{name}-seed\d+')]
    value = of_arm[columns].mean(axis=1) if len(columns) else pd.Series(dtype=float)
    frame = pd.DataFrame({'step': of_arm['step'], label: value}).dropna()
    parts.append(frame.groupby('step', as_index=False)[label].mean().assign(tag=words(name)))
  return pd.concat(parts, ignore_index=True)


def plain_page(session: Session, result: Any, records: Records) -> str:
  """Returns the page of a study with the default tables: the differences from the baseline."""
  frame, baseline = result.variants, result.summary['baseline']
  rows = frame.set_index('variant')
  report = start_page(session, f'{words(result.summary["experiment"])} on {session.data.name}')
  report.facts({f'{words(name)}, test loss': rows.loc[name, 'loss'] for name in rows.index})
  report.section(f'Against {words(baseline)}')
  report.figure(
    stochastic_figures.differences(
      frame[frame['variant'] != baseline],
      [f'loss_minus_{baseline}', f'accuracy_minus_{baseline}'],
      [f'test loss − {words(baseline)}', f'test accuracy − {words(baseline)}'],
    ),
    f'Means of differences paired by seed, with 95 % intervals{over_seeds(session)}. An interval '
    'that crosses zero shows no difference.',
  )
  report.section('Training')
  curves = mean_curves(read_curves(session), list(records.arms), ['loss'], 'loss')
  report.figure(figures.training_curves(curves), f'Training loss{over_seeds(session, ", mean")}.')
  report.section('Tables')
  report.table(frame, f'Each arm; “minus {words(baseline)}” is paired by seed.')
  return end_page(report, session)
