"""The page that Exp 1 leaves: pictures first."""

from __future__ import annotations

import numpy as np
import pandas as pd

from additive_jax.experiments.explored_table import DIFFERENCE
from additive_jax.experiments.pages import (
  curves_picture,
  intervals,
  networks,
  over_seeds,
  read_curves,
)
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.gates.networks import num_networks
from additive_jax.report import figures
from additive_jax.report.figures.style import BLUE, VERMILION
from additive_jax.report.page import Page, Piece, picture, section, table, text, tiles
from additive_jax.report.wording import counted, score_name
from additive_jax.run.tasks import LOSS

MOST_NAMED = 8  # structures that diverged


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page of Exp 1."""
  del records
  structures, summary, names = result.table, result.summary, session.space.names
  mean, word = over_seeds(session, ', mean over the seeds'), session.chosen_word
  said = _of_splits(session)
  top = structures.head(session.config.sweep.top_k)
  if diverged := summary.get('diverged'):
    named = ', '.join(diverged[:MOST_NAMED]) + (', …' if len(diverged) > MOST_NAMED else '')
    said = '; '.join(filter(None, (said, f'diverged alone, ranked last: {named}')))
  return Page(
    f'Which + matter: {networks(summary)} of {type(session.model).__name__} on {session.data.name}',
    tiles(_facts(summary, session.task.scores[1:])),
    section(
      'The best structures',
      picture(
        figures.structures(top['structure'], names, [f'{loss:.4f}' for loss in top['loss']]),
        f'The best {counted(len(top), "structure")}: a filled + is performed. Right: '
        f'{word} loss{mean}.',
      ),
      picture(
        figures.ranking(_ranked(structures, session.config.sweep.modes), split=word),
        f'{word.capitalize()} loss by rank{intervals(session)}.',
      ),
      picture(
        figures.pareto(_trained_longest(structures), word),
        f'{word.capitalize()} loss against FLOPs of one forward pass of one example; the line '
        'joins the Pareto front.',
      ),
    ),
    section('What each + does', *_effects(session, result)),
    _agreement(structures, result.agreement) if result.agreement else None,
    section(
      'Training',
      curves_picture(
        read_curves(session),
        'Training loss of the shared pools, over all structures drawn.',
        # As in the picture of ranks.
        colours={'shared': VERMILION if 'standalone' in session.config.sweep.modes else BLUE},
      ),
    ),
    section(
      'Table',
      table(
        structures.drop(columns=[name for name in structures if DIFFERENCE in str(name)]),
        '; '.join(filter(None, ('The best structures; structures.csv has all', said))) + '.',
        max_rows=30,
      ),
    ),
    subtitle=said,
    asks_of_gates=True,
  )


def _of_splits(session) -> str:
  """What the columns of the table are of, where structures are not chosen on the test split."""
  if session.data.valid is None:
    return ''
  return (
    f'structures are ranked by {score_name(session.task.rank_by)}, on the validation split; '
    f'test_{", test_".join(session.task.scores)} are of the test split, which chose nothing'
  )


def _facts(summary, metrics):
  ceiling, agreement = summary['noise_ceiling'], summary['shared_against_standalone']
  facts = {
    'best structure': summary['best_structure'],
    'its test loss': summary['best_loss'],
    **{f'its test {score_name(name)}': summary[f'best_{name}'] for name in metrics},
    'rank of all-on': summary['all_on_rank'] or 'not evaluated',
    'noise ceiling τ': ceiling['tau_of_mean'],
  }
  if agreement:
    facts['shared against standalone τ'] = agreement['tau']
    facts[f'top-{agreement["k"]} recall'] = agreement['top_k_recall']
  return facts


def _ranked(structures, modes):
  """Without the columns of the shared pool where that is the only one."""
  if 'standalone' in modes:
    return structures
  return structures.drop(columns=[name for name in structures if name.startswith('shared_')])


def _trained_longest(structures):
  if 'steps' not in structures:
    return structures
  return structures[structures['steps'] == structures['steps'].max()]


def _effects(session, result) -> list[Piece]:
  """Main effects, and the interactions where there are structures enough to tell them."""
  names = session.space.names
  number, terms = len(result.table), 1 + len(names) + len(names) * (len(names) - 1) // 2
  everything = num_networks(session.space)
  method = 'mean loss with it on minus mean loss with it off'
  if everything < 2 ** len(names):
    method += ', over all structures, of which several are one network'
  if number < everything:
    method = f'least-squares fit of {terms} terms to the {number} structures evaluated'
  effects = picture(
    figures.gate_effects(result.effects, session.chosen_word),
    f'Main effect of each gate on the {session.chosen_word} loss{intervals(session)}: {method}.',
  )
  if number < min(terms, everything):
    pairs = text(
      f'Pairwise interactions are not drawn: {terms} terms cannot be told from {number} '
      'structures. The main effects are those of the smallest fit.'
    )
  else:
    matrix = result.interactions.drop(columns='gate').to_numpy(float)
    pairs = picture(
      figures.interaction_heatmap(matrix, names),
      'Pairwise interactions: positive where two gates can stand in for each other.',
    )
  return [effects, _effects_table(session, result), pairs]


def _effects_table(session, result) -> Piece:
  """The main effects, and what all-on loses without each gate, where that was evaluated."""
  rows, names = result.table.set_index('structure'), session.space.names
  frame = result.effects.rename(columns={'ci95': 'effect_ci95'})
  without = ['1' * i + '0' + '1' * (len(names) - 1 - i) for i in range(len(names))]
  for end in ('', '_ci95'):
    if (column := f'{LOSS}{DIFFERENCE}{end}') in rows:
      frame[f'off_alone{end}'] = rows[column].reindex(without).to_numpy()
  return table(
    frame,
    f'Each gate: its main effect on the {session.chosen_word} loss, and by how much the loss grows '
    'where it alone is off. Where the two disagree, other gates stand in for it.',
  )


def _agreement(structures, agreement):
  both = structures[np.isfinite(structures['loss']) & np.isfinite(structures['shared_loss'])]
  k = agreement['k']
  regret = [_interval(agreement, 'regret', 4), f'random: {agreement["random_regret"]:.4f}']
  rows = [
    ('Kendall τ', agreement['tau'], _interval(agreement, 'tau', 3)),
    ('noise ceiling of the mean', agreement['tau_ceiling'], ''),
    ('τ between single seeds', agreement['tau_between_seeds'], ''),
    ('τ over the ceiling', agreement['tau_over_ceiling'], ''),
    (f'top-{k} recall', agreement['top_k_recall'], f'random: {agreement["random_recall"]:.3f}'),
    (f'regret of the top {k}', agreement['regret'], '; '.join(filter(None, regret))),
  ]
  if 'stored_tau' in agreement:
    rows.insert(1, ('Kendall τ by stored statistics', agreement['stored_tau'], ''))
  return section(
    'Does the shared pool rank like training alone?',
    picture(
      figures.agreement(both['shared_loss'], both['loss']),
      'Each point is a structure: its rank in the shared pool against its rank when trained alone.',
    ),
    table(
      pd.DataFrame(rows, columns=['measure', 'value', 'interval or baseline']),
      'Agreement. The ceiling is the τ to expect between this mean over seeds and that of as many '
      'other seeds; random is K structures drawn at random.',
    ),
  )


def _interval(agreement, name, digits):
  """`low to high`, or nothing where there are too few seeds or structures for one."""
  low, high = agreement[f'{name}_low'], agreement[f'{name}_high']
  return f'{low:.{digits}f} to {high:.{digits}f}' if np.isfinite([low, high]).all() else ''
