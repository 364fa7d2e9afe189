"""The page that Exp 3 leaves: pictures first."""

from __future__ import annotations

from additive_jax.experiments.pages import (
  end_page,
  mean_curves,
  over_seeds,
  read_curves,
  signed,
  start_page,
  words,
)
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.stochastic_tables import NONE
from additive_jax.experiments.study import Result
from additive_jax.report import figures, stochastic_figures
from additive_jax.report.page import counted


def render(session: Session, result: Result, records: Records) -> str:
  """Returns the report of Exp 3 as HTML."""
  variants = list(records.arms.values())
  report = start_page(
    session,
    f'Random structures of {type(session.model).__name__} as a regulariser, on {session.data.name}',
  )
  report.facts(_facts(result.summary['variants'], variants))
  _full_network(report, session, result.variants)
  _structures(report, session, result, list(records.arms))
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
  curves = read_curves(session)
  if len(curves):
    curves = mean_curves(curves, list(records.arms), ['loss'], 'loss')
    curves['tag'] = curves['tag'].replace(NONE, _words(NONE))
    report.figure(
      figures.training_curves(curves),
      'Training loss of the structures that were drawn'
      f'{over_seeds(session, ", mean over the seeds")}.',
    )
  report.section('Tables')
  report.table(result.variants, 'Each variant; “minus none” is paired by seed.')
  report.table(
    result.table, f'The structures, best first by the loss of {_words(variants[1].name)}.'
  )
  return end_page(report, session)


def _facts(scores, variants):
  none, first, *others = variants
  return {
    'all gates on, test loss': scores[NONE]['loss'],
    f'{_words(first.name)}, test loss': scores[first.name]['loss'],
    'difference, paired by seed': signed(scores[first.name], 'loss_minus_none'),
    'difference in accuracy': signed(scores[first.name], 'accuracy_minus_none'),
    'FLOPs of a step, of all-on': first.forward_flops / none.forward_flops,
    **{f'{_words(other.name)}, test loss': scores[other.name]['loss'] for other in others},
  }


def _full_network(report, session, frame):
  report.section('The full network, trained with and without random structures')
  measures, titles = (
    ['loss', 'accuracy', 'loss_gap'],
    ['test loss', 'test accuracy', 'test − train loss'],
  )
  report.figure(
    stochastic_figures.variants(frame, measures, titles),
    f'The network with all gates on, with 95 % intervals{over_seeds(session)}. Variants start from '
    'the same init and see the data in the same order; “equal flops” ones train longer, until they '
    'have spent what training with all gates on spends.',
  )
  paired = [f'{measure}_minus_{NONE}' for measure in measures]
  report.figure(
    stochastic_figures.differences(frame[frame['variant'] != NONE], paired, titles),
    'What each variant differs by from training with all gates on: means of differences paired by '
    f'seed, with 95 % intervals{over_seeds(session)}. An interval that crosses zero shows no '
    'difference.',
  )


def _structures(report, session, result, names):
  report.section('All structures of each pool')
  table, judged = result.table, result.summary['num_structures']
  full = table['structure'] == '1' * result.summary['num_gates']
  columns = ['accuracy' if name == names[1] else f'{name}_accuracy' for name in names]
  report.figure(
    stochastic_figures.distributions(
      [table[column].to_numpy() for column in columns],
      names,
      [table.loc[full, column].item() for column in columns],
    ),
    f'Test accuracy of {counted(judged, "structure")} of each pool'
    f'{over_seeds(session, ", mean over the seeds")}, all without scales.',
  )


def _words(name):
  return 'all gates on' if name == NONE else words(name)
