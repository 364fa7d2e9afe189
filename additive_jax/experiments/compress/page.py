"""The page that a compression leaves: pictures first."""

from __future__ import annotations

from additive_jax.compress.levels import BINS
from additive_jax.experiments.compress.tables import DENSE, EXPORTED, GRADUAL, MATCHED, VARIATIONAL
from additive_jax.experiments.pages import curves_picture, intervals, over_seeds, read_curves
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.figures.sparsity import method_colour
from additive_jax.report.page import Page, picture, section, table, text, tiles
from additive_jax.report.wording import difference, plain, score_name

NOUNS = {'weight': 'weights', 'unit': 'units', 'gate': 'gates'}
LEFT = 'share that is left'
_GRADUAL = ' Gradual pruning removes, while it trains, what is small beside its input.'


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page of a compression."""
  options, variants, layers = session.config.compress, result.variants, result.layers
  noun, headline = NOUNS[options.level], session.task.headline
  mean = over_seeds(session, ', mean over the seeds')
  means = over_seeds(session, ', means') + intervals(session)
  histograms = {f'seed {record["seed"]}': record['histogram'] for record in records[VARIATIONAL]}
  return Page(
    f'Compression of {session.data.name}, per {options.level}',
    tiles(_facts(variants.set_index('variant'), result.summary['nothing_removed'], session.task)),
    _nothing_removed(result.summary['nothing_removed'], noun, options.threshold),
    section(
      'What it costs',
      picture(
        figures.compression(
          _with_methods(variants),
          {'factor': 'times fewer weights', 'flops_factor': 'times fewer FLOPs, cut out'},
          headline,
        ),
        f'Test {score_name(headline)} against how many times smaller a network is{means}. All '
        'start from the network of their seed’s first epochs and take as many more; magnitude '
        'pruning removes what is small at once, and tunes what is left.'
        + (_GRADUAL if options.gradual else '')
        + _taught(options.distill),
      ),
    ),
    section(
      'What the noise tells',
      picture(
        figures.log_alpha(BINS, histograms, options.threshold),
        f'log α of all {noun}, noise over signal, at the end of variational dropout, cut off at '
        '±8; what is right of the threshold is removed.',
      ),
    ),
    section(
      'What is left',
      picture(
        figures.layers_left(layers[layers['variant'].isin((VARIATIONAL, MATCHED))]),
        f'How many {noun} of each layer are left{mean}.',
      ),
    ),
    _training(read_curves(session), mean),
    section(
      'Tables',
      table(
        variants,
        'Each network; “lost” is against the dense one of the same seed. FLOPs and bytes are those '
        'of the network that was cut out, the receipt is its largest difference in outputs. Those '
        f'that learnt noise and gradual pruning leave lie in {EXPORTED}/, for '
        'additive_jax.export.load.',
      ),
      table(layers, f'Each layer{mean}.'),
    ),
  )


def _facts(rows, nothing_removed, task):
  best, name = rows.loc[VARIATIONAL], score_name(task.headline)
  fewer = {key: f'{best[key]:.1f}×' for key in ('factor', 'flops_factor')}
  if VARIATIONAL in nothing_removed:
    fewer = dict.fromkeys(fewer, 'nothing removed')
  return {
    f'dense, test {name}': rows.loc[DENSE, task.headline],
    'variational dropout, fewer weights': fewer['factor'],
    'fewer FLOPs, cut out': fewer['flops_factor'],
    f'its {name} − dense': _lost(best, task),
    'of magnitude at the same number': _lost(rows.loc[MATCHED], task),
  }


def _nothing_removed(names, noun, threshold):
  """What the page says where a network lost nothing."""
  if not names:
    return None
  said = f'Nothing was removed from {", ".join(map(plain, names))}.'
  if VARIATIONAL in names:
    said += (
      f' Variational dropout left log α of all {noun} at or below the threshold {threshold:g}, so '
      'what is shown as its network is a dense one, trained with noise. More compress.epochs, a '
      'larger compress.kl or compress.variance_rate, or a lower compress.threshold remove more.'
    )
  return text(said)


def _lost(row, task):
  """What a network's headline metric differs by from the dense one's."""
  lost, half_width = (row[f'{task.headline}_lost{end}'] for end in ('', '_ci95'))
  return difference(task.headline, task.sign(task.headline) * lost, half_width)


def _with_methods(variants):
  """The networks of which it is known how they were made: the picture's dots and lines."""
  method = variants['variant'].where(variants['variant'].isin((DENSE, VARIATIONAL)), '')
  for name in ('magnitude', GRADUAL):
    method[variants['variant'].str.startswith(name)] = name
  return variants.assign(method=method)[method != '']


def _taught(share):
  if not share:
    return ''
  return (
    f' {share:.0%} of the loss of those that lose something is how far they are from their teacher.'
  )


def _training(curves, mean):
  losses = figures.mean_curves(curves, label=lambda tag: plain(tag).replace('-', ', '))
  tints = {tag: method_colour(tag) for tag in (*losses['tag'], VARIATIONAL)}
  learnt = curves[curves['tag'].str.fullmatch(rf'{VARIATIONAL}-seed\d+')]
  left = learnt.rename(columns={'kept': LEFT})
  return section(
    'Training',
    curves_picture(
      losses,
      f'Training loss{mean}; of variational dropout with the noise and the divergence.',
      colours=tints,
    ),
    curves_picture(
      left,
      'Share of what has log α below the threshold while variational dropout learns.',
      LEFT,
      colours=tints,
    ),
  )
