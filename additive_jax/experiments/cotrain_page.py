"""The page that Exp 2 leaves: pictures first."""

from __future__ import annotations

from additive_jax.experiments.pages import (
  curves_picture,
  differences_note,
  intervals,
  over_seeds,
  read_curves,
)
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.figures.style import BLUE, GREEN, INK
from additive_jax.report.page import Page, Piece, picture, section, table, tiles
from additive_jax.report.wording import counted, format_value, score_name, with_margin
from additive_jax.run.ensemble import what_is_averaged

FACTS = {
  'co-trained, mean test loss': 'loss',
  'alone, mean test loss': 'alone_loss',
  'co-trained ensemble, test loss': 'ensemble_loss',
  'alone ensemble, test loss': 'alone_ensemble_loss',
  'parameters, one pool': 'pool_params',
  'parameters, alone': 'alone_params',
}


ARMS = {'pool': BLUE, 'sweep': GREEN}  # as the co-trained networks are in the comparison


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page of Exp 2."""
  del records
  structures, summary, curves = result.table, result.summary, read_curves(session)
  cosines = result.cosines.drop(columns='structure').to_numpy(float)
  spent = summary['training_flops_of_each_side']
  facts = {label: summary[key] for label, key in FACTS.items()}
  return Page(
    f'{counted(len(structures), "structure")} of {type(session.model).__name__} in one pool, '
    f'on {session.data.name}',
    tiles({'co-trained − alone, test loss': _gain(summary)} | facts),
    section(
      'Together against alone',
      _differences(session, result),
      picture(
        figures.comparison(_in_words(result.comparison)),
        'Test loss of each structure, trained in one pool and trained alone for as many steps on '
        f'as many examples{intervals(session)}. Both '
        f'sides spend the same FLOPs: {format_value(spent)} a seed. '
        f'Ensembles average {what_is_averaged(session.task)}.',
      ),
      picture(
        figures.structures(
          structures['structure'],
          session.space.names,
          [f'{loss:.4f}' for loss in structures['loss']],
        ),
        'The structures: a filled + is performed. Right: co-trained test loss.',
      ),
    ),
    section(
      'Do their gradients agree?',
      picture(
        figures.cosines(cosines, list(result.cosines['structure'])),
        'Cosine between the gradients of the structures in the trained pool'
        f'{over_seeds(session, ", mean over the seeds")}.',
      ),
      curves_picture(
        curves[curves['tag'].str.startswith('pool-')],
        'Mean cosine between the gradients of different structures over training.',
        'cosine',
        colours=ARMS,
      ),
    ),
    section(
      'Training',
      curves_picture(curves, 'Training loss, mean over the structures of a step.', colours=ARMS),
    ),
    section(
      'Tables',
      table(structures, 'Each structure, co-trained and alone.'),
      table(result.differences, 'Co-trained minus alone, paired by seed.'),
      table(_in_words(result.comparison), 'With the ensembles.'),
    ),
  )


def _differences(session, result) -> Piece:
  """The result of Exp 2: what the same structures gain or lose by one pool."""
  apart = result.differences.rename(columns={'label': 'variant'})
  scores = dict.fromkeys(('loss', session.task.headline))
  measures = {key: f'test {score_name(key)}, co-trained − alone' for key in scores}
  return picture(
    figures.differences(apart, measures, dict.fromkeys(apart['variant'], INK)),
    'What co-training changes, structure by structure and for the ensembles: '
    f'{differences_note(session)} Left of zero the loss is lower together.',
  )


def _in_words(comparison):
  return comparison.replace({'variant': {'cotrained': 'co-trained'}})


def _gain(summary):
  """What co-training changes on the mean over the structures, with its interval."""
  key = 'cotrained_minus_alone_loss'
  return with_margin(summary[key], summary[f'{key}_ci95'])
