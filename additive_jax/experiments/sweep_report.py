"""The page that Exp 1 leaves: pictures first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax import figures
from additive_jax.report import Report


def render(session, result, curves: pd.DataFrame) -> str:
  """The report of a `SweepResult` as HTML; `curves` is the run's metrics."""
  table, summary, names = result.table, result.summary, session.space.names
  report = Report(
    f'Which + matter: {summary["num_structures"]} structures of {type(session.model).__name__} '
    f'on {session.data.name}',
    f'{len(names)} gates, {summary["num_seeds"]} seeds; loss is on the test split',
  )
  report.facts(_facts(summary))
  top = table.head(session.config.sweep.top_k)
  report.section('The best structures')
  report.figure(
    figures.structures(
      top['structure'].tolist(), list(names), [f'{loss:.4f}' for loss in top['loss']]
    ),
    f'The {len(top)} best structures: a filled + is performed. Right: mean loss.',
  )
  alone = 'standalone' in session.config.sweep.modes
  ranked = table if alone else table.drop(columns=[c for c in table if c.startswith('shared_')])
  report.figure(figures.ranking(ranked), 'Loss by rank, with 95 % intervals over the seeds.')
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
    return _rest(report, result, curves)
  report.figure(
    figures.interaction_heatmap(
      result.interactions.drop(columns='gate').to_numpy(float), list(names)
    ),
    'Pairwise interactions: positive where two gates can stand in for each other.',
  )
  return _rest(report, result, curves)


def _rest(report, result, curves):
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
  return report.render()


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
    ('Kendall τ', agreement['tau'], f'{agreement["tau_low"]:.3f} to {agreement["tau_high"]:.3f}'),
    ('noise ceiling of the mean', agreement['tau_ceiling'], ''),
    ('τ between single seeds', agreement['tau_between_seeds'], ''),
    ('τ over the ceiling', agreement['tau_over_ceiling'], ''),
    (f'top-{k} recall', agreement['top_k_recall'], f'random: {agreement["random_recall"]:.3f}'),
    (
      f'regret of the top {k}',
      agreement['regret'],
      f'{agreement["regret_low"]:.4f} to {agreement["regret_high"]:.4f}; '
      f'random: {agreement["random_regret"]:.4f}',
    ),
  ]
  frame = pd.DataFrame(rows, columns=['measure', 'value', 'interval or baseline'])
  report.table(
    frame,
    'Agreement. The ceiling is the τ to expect between this mean over seeds and that of as many '
    'other seeds; random is K structures drawn at random.',
  )
