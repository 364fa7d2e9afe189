"""The page that Exp 2 leaves: pictures first."""

from __future__ import annotations

from additive_jax.experiments.pages import end_page, over_seeds, read_curves, start_page
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.page import counted


def render(session: Session, result: Result, records: Records) -> str:
  """Returns the report of Exp 2 as HTML."""
  del records
  table, summary, names = result.table, result.summary, session.space.names
  report = start_page(
    session,
    f'{counted(len(table), "structure")} of {type(session.model).__name__} in one pool, '
    f'on {session.data.name}',
  )
  report.facts(
    {
      'co-trained, mean loss': summary['loss'],
      'alone, mean loss': summary['alone_loss'],
      'co-trained ensemble, loss': summary['ensemble_loss'],
      'alone ensemble, loss': summary['alone_ensemble_loss'],
      'parameters, one pool': summary['pool_params'],
      'parameters, alone': summary['alone_params'],
    }
  )
  report.section('Together against alone')
  report.figure(
    figures.comparison(result.comparison),
    'Test loss of each structure, trained in one pool and trained alone for as many steps on as '
    f'many examples{over_seeds(session, ", with 95 % intervals over the seeds")}. Both sides spend '
    f'the same FLOPs: {summary["training_flops_of_each_side"]:.3g} a seed. Ensembles average '
    'probabilities.',
  )
  report.figure(
    figures.structures(
      table['structure'].tolist(), list(names), [f'{loss:.4f}' for loss in table['loss']]
    ),
    'The structures: a filled + is performed. Right: co-trained loss.',
  )
  report.section('Do their gradients agree?')
  labels = result.cosines['structure'].tolist()
  report.figure(
    figures.cosines(result.cosines.drop(columns='structure').to_numpy(float), labels),
    'Cosine between the gradients of the structures in the trained pool'
    f'{over_seeds(session, ", mean over the seeds")}.',
  )
  curves = read_curves(session)
  pools = curves[curves['tag'].str.startswith('pool-')] if len(curves) else curves
  if len(pools):
    report.figure(
      figures.training_curves(pools, 'cosine'),
      'Mean cosine between the gradients of different structures over training.',
    )
    report.section('Training')
    report.figure(
      figures.training_curves(curves), 'Training loss, mean over the structures of a step.'
    )
  report.section('Tables')
  report.table(table, 'Each structure, co-trained and alone.')
  report.table(result.comparison, 'With the ensembles.')
  return end_page(report, session)
