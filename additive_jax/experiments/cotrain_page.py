"""The page that Exp 2 leaves: pictures first."""

from __future__ import annotations

from additive_jax.experiments.pages import curves_picture, over_seeds, read_curves
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.page import Page, picture, section, table, tiles
from additive_jax.report.wording import counted

FACTS = {
  'co-trained, mean loss': 'loss',
  'alone, mean loss': 'alone_loss',
  'co-trained ensemble, loss': 'ensemble_loss',
  'alone ensemble, loss': 'alone_ensemble_loss',
  'parameters, one pool': 'pool_params',
  'parameters, alone': 'alone_params',
}


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page of Exp 2."""
  del records
  structures, summary, curves = result.table, result.summary, read_curves(session)
  cosines = result.cosines.drop(columns='structure').to_numpy(float)
  return Page(
    f'{counted(len(structures), "structure")} of {type(session.model).__name__} in one pool, '
    f'on {session.data.name}',
    tiles({label: summary[key] for label, key in FACTS.items()}),
    section(
      'Together against alone',
      picture(
        figures.comparison(result.comparison),
        'Test loss of each structure, trained in one pool and trained alone for as many steps on '
        f'as many examples{over_seeds(session, ", with 95 % intervals over the seeds")}. Both '
        f'sides spend the same FLOPs: {summary["training_flops_of_each_side"]:.3g} a seed. '
        'Ensembles average probabilities.',
      ),
      picture(
        figures.structures(
          structures['structure'],
          session.space.names,
          [f'{loss:.4f}' for loss in structures['loss']],
        ),
        'The structures: a filled + is performed. Right: co-trained loss.',
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
      ),
    ),
    section(
      'Training',
      curves_picture(curves, 'Training loss, mean over the structures of a step.'),
    ),
    section(
      'Tables',
      table(structures, 'Each structure, co-trained and alone.'),
      table(result.comparison, 'With the ensembles.'),
    ),
  )
