"""The page that Exp 3 leaves: pictures first."""

from __future__ import annotations

from additive_jax.experiments.pages import (
  arm_colours,
  curves_picture,
  differences_note,
  intervals,
  networks,
  over_seeds,
  read_curves,
)
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.page import Page, picture, section, table, tiles
from additive_jax.report.wording import difference, plain, score_name, with_margin

NONE = 'none'


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page of Exp 3."""
  structures, summary = result.table, result.summary
  variants, headline = list(records.arms.values()), session.task.headline
  measures = {
    'loss': 'test loss',
    headline: f'test {score_name(headline)}',
    'loss_gap': 'test − train loss',
  }
  rows = result.variants.assign(variant=result.variants['variant'].map(_label))
  scores, names = summary['variants'], [variant.name for variant in variants]
  mean, colours = over_seeds(session, ', mean over the seeds'), arm_colours(names, _label)
  return Page(
    f'Random structures of {type(session.model).__name__} as a regulariser, on {session.data.name}',
    tiles(_facts(scores, variants, headline)),
    section(
      'The full network, trained with and without random structures',
      picture(
        figures.scores(rows, measures, colours),
        f'The network with all gates on{intervals(session)}. Variants start from the same '
        'init and see the data in the same order; “equal flops” ones train longer, until they have '
        'spent what training with all gates on spends.',
      ),
      picture(
        figures.differences(
          rows[result.variants['variant'] != NONE],
          {f'{measure}_minus_none': title for measure, title in measures.items()},
          colours,
        ),
        'What each variant differs by from training with all gates on: '
        f'{differences_note(session)}',
      ),
    ),
    section(
      'All structures of each pool',
      picture(
        _distributions(structures, names, colours, headline),
        f'Test {score_name(headline)} of {networks(summary)} of each pool{mean}, all without '
        'scales.',
      ),
    ),
    section(
      'Keep rates and training',
      picture(
        _keep_rates(session, variants, colours),
        'The exact probability that each gate is on, over depth; per sample, a whole number of the '
        'examples of a batch.',
      ),
      curves_picture(
        figures.mean_curves(read_curves(session), 'loss', names, _label),
        f'Training loss of the structures that were drawn{mean}.',
        colours=colours,
      ),
    ),
    section(
      'Tables',
      table(result.variants, 'Each variant; “minus none” is paired by seed.'),
      table(structures, f'The structures, best first by the loss of {plain(names[1])}.'),
    ),
  )


def _label(name):
  return 'all gates on' if name == NONE else plain(name)


def _facts(scores, variants, headline):
  base, first, *others = variants
  row = scores[first.name]
  return {
    'all gates on, test loss': scores[NONE]['loss'],
    f'{plain(first.name)}, test loss': row['loss'],
    'difference, paired by seed': with_margin(row['loss_minus_none'], row['loss_minus_none_ci95']),
    f'difference in {score_name(headline)}': difference(
      headline, row[f'{headline}_minus_none'], row[f'{headline}_minus_none_ci95']
    ),
    'FLOPs of a step, of all-on': f'{first.forward_flops / base.forward_flops:.1%}',
  } | {f'{plain(other.name)}, test loss': scores[other.name]['loss'] for other in others}


def _distributions(structures, names, colours, score):
  """A score of every structure; the table is headed by that of the first random variant."""
  columns = [score if name == names[1] else f'{name}_{score}' for name in names]
  full = structures[~structures['structure'].str.contains('0')].iloc[0]
  labels = [_label(name) for name in names]
  return figures.distributions(
    {label: structures[column] for label, column in zip(labels, columns)},
    {label: full[column] for label, column in zip(labels, columns)},
    colours,
    score=score,
  )


def _keep_rates(session, variants, colours):
  shown = [variant for variant in variants if variant.name in session.config.stochastic.modes]
  rates = {plain(variant.name): variant.keep_rates for variant in shown}
  return figures.keep_rates(rates, session.space.names, colours)
