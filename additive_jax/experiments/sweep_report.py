"""The page that Exp 1 leaves: pictures first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.experiments.results import end_page, start_page
from additive_jax.report import figures
from additive_jax.report.page import counted


def render(session, result, curves: pd.DataFrame) -> str:
  """The report of a `SweepResult` as HTML; `curves` is the run's metrics."""
  table, summary, names = result.table, result.summary, session.space.names
  report = start_page(
    session,
    f'Which + matter: {counted(len(table), "structure")} of {type(session.model).__name__} '
    f'on {session.data.name}',
  )
  report.facts(_facts(summary))
  top = table.head(session.config.sweep.top_k)
  report.section('The best structures')
  report.figure(
    figures.structures(
      top['structure'].tolist(), list(names), [f'{loss:.4f}' for loss in top['loss']]
    ),
    f'The best {counted(len(top), "structure")}: a filled + is performed. Right: mean loss.',
  )
  alone = 'standalone' in session.config.sweep.modes
  ranked = table if alone else table.drop(columns=[c for c in table if c.startswith('shared_')])
  intervals = ', with 95 % intervals over the seeds' if summary['num_seeds'] > 1 else ''
  report.figure(figures.ranking(ranked), f'Loss by rank{intervals}.')
  longest = table[table['steps'] == table['steps'].max()] if 'steps' in table else table
  report.figure(
    figures.pareto(longest),
    'Loss against FLOPs of one forward pass of one example; the line joins the Pareto front.',
  )
  report.section('What each + does')
  n, terms = len(names), 1 + len(names) + len(names) * (len(names) - 1) // 2
  how = 'mean loss with it on minus mean loss with it off'
  if len(table) < 2**n:
    how = f'least-squares fit of {terms} terms to the {len(table)} structures evaluated'
  report.figure(figures.gate_effects(result.effects), f'Main effect of each gate: {how}.')
  if len(table) < terms:
    report.text(
      f'Pairwise interactions are not drawn: {terms} terms cannot be told from {len(table)} '
      'structures. The main effects are those of the smallest fit.'
    )
    return _rest(report, session, result, curves)
  report.figure(
    figures.interaction_heatmap(
      result.interactions.drop(columns='gate').to_numpy(float), list(names)
    ),
    'Pairwise interactions: positive where two gates can stand in for each other.',
  )
  return _rest(report, session, result, curves)


def _rest(report, session, result, curves):
  table = result.table
  if result.agreement:
    _agreement(report, table, result.agreement)
  if len(curves):
    report.section('Training')
    report.figure(
      figures.training_curves(curves),
      'Training loss of the shared pools, over all structures drawn.',
    )
  report.section('Table')
  report.table(table, 'The best structures; structures.csv has all.', max_rows=30)
  return end_page(report, session)


def _facts(summary):
  ceiling, agreement = summary['noise_ceiling'], summary['shared_against_standalone']
  facts = {
    'best structure': summary['best_structure'],
    'its loss': summary['best_loss'],
    'its accuracy': summary['best_accuracy'],
    'rank of all-on': summary['all_on_rank'] or 'not evaluated',
    'noise ceiling τ': ceiling['tau_of_mean'],
  }
  if agreement:
    facts['shared against standalone τ'] = agreement['tau']
    facts[f'top-{agreement["k"]} recall'] = agreement['top_k_recall']
  return facts


def _agreement(report, table, agreement):
  both = table[np.isfinite(table['loss']) & np.isfinite(table['shared_loss'])]
  report.section('Does the shared pool rank like training alone?')
  report.figure(
    figures.agreement(both['shared_loss'].to_numpy(), both['loss'].to_numpy()),
    'Each point is a structure: its rank in the shared pool against its rank when trained alone.',
  )
  k = agreement['k']
  rows = [
    ('Kendall τ', agreement['tau'], _interval(agreement, 'tau', 3)),
    ('noise ceiling of the mean', agreement['tau_ceiling'], ''),
    ('τ between single seeds', agreement['tau_between_seeds'], ''),
    ('τ over the ceiling', agreement['tau_over_ceiling'], ''),
    (f'top-{k} recall', agreement['top_k_recall'], f'random: {agreement["random_recall"]:.3f}'),
    (
      f'regret of the top {k}',
      agreement['regret'],
      '; '.join(
        filter(None, [_interval(agreement, 'regret'), f'random: {agreement["random_regret"]:.4f}'])
      ),
    ),
  ]
  frame = pd.DataFrame(rows, columns=['measure', 'value', 'interval or baseline'])
  report.table(
    frame,
    'Agreement. The ceiling is the τ to expect between this mean over seeds and that of as many '
    'other seeds; random is K structures drawn at random.',
  )


def _interval(agreement, name, digits=4):
  """`low to high`, or nothing where there are too few seeds or structures for one."""
  low, high = agreement[f'{name}_low'], agreement[f'{name}_high']
  return f'{low:.{digits}f} to {high:.{digits}f}' if np.isfinite([low, high]).all() else ''
