"""The page that a DNA run leaves: pictures first."""

from __future__ import annotations

from additive_jax.experiments import contenders_page
from additive_jax.experiments.contenders import contenders_of, loads
from additive_jax.experiments.pages import over_seeds
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.page import Page, picture, section, table, text
from additive_jax.report.paths import rank_frequency
from additive_jax.report.wording import plain

SKIPPING = 'dna_skipping'
IMAGES = 4  # whose paths are drawn


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page of a DNA run; the last DNA is shown in full."""
  analyses = result.extras['analyses']
  name, analysis = list(analyses.items())[-1]
  skip, scores = session.config.dna.skip, result.summary['variants']
  mean = over_seeds(session, ', mean over the seeds')
  tints = contenders_page.colours(result.variants)
  return Page(
    f'Distributed neural architectures on {session.data.name}',
    contenders_page.facts(
      result.variants,
      **{
        f'{plain(dna)}, choices that compute': f'{scores[dna]["routers"]["kept"]:.1%}'
        for dna in analyses
      },
    ),
    _sentence(result.summary['shallow_dearer']),
    contenders_page.comparison(
      session,
      result.variants,
      'All see the same examples in the same order, for as many steps. “dense” has the FLOPs that '
      'tokens of “dna” were measured to use, “shallow” fewer layers and the FLOPs of the DNA that '
      'skips.',
    ),
    _choices(skip, records, analyses, mean, tints),
    _paths(plain(name), analysis, session.model),
    contenders_page.training(
      session,
      {'': [contender.name for contender in contenders_of(records)]},
      {'kept': ('share of choices that compute', 1 - skip if skip else None)},
      tints,
    ),
    section(
      'Tables',
      table(result.variants, 'Each network; “minus dense” is paired by seed.'),
      table(result.routers, f'Each step’s router{mean}.'),
      table(result.modules, f'Modules of {plain(name)}, first seed; load 1 is even.'),
      table(result.paths, 'Paths of the tokens; all are in paths.csv.', max_rows=20),
    ),
  )


def _sentence(words):
  return text(words[0].upper() + words[1:]) if words else None


def _choices(skip, records, analyses, mean, tints):
  by_name = {plain(name): analysis for name, analysis in analyses.items()}
  return section(
    'What tokens choose',
    picture(
      figures.utilisation(
        {plain(name): list(loads(records[name]).values()) for name in analyses},
        tints,
        'modules',
        'step',
      ),
      'Load of every module over the ideal even load, most used first, a line for each '
      f'step{mean}.',
    ),
    picture(
      figures.rank_frequency(
        {name: rank_frequency(analysis.codes) for name, analysis in by_name.items()},
        {name: analysis.fit for name, analysis in by_name.items()},
        tints,
      ),
      'How often each path is taken, by rank, in the first seed; a path is the modules of all '
      'steps. Lines: power laws where one fits (p at least 0.1, against samples of the law), with '
      'the exponent’s 95 % interval over examples.',
    ),
    picture(
      figures.compute_shares(
        {name: analysis.compute for name, analysis in by_name.items()},
        {plain(SKIPPING): 1 - skip},
        tints,
      ),
      'Share of a token’s choices that compute something, over tokens and over examples, in the '
      'first seed; dashed: the target of the one that is steered.',
    ),
  )


def _paths(name, analysis, model):
  classes = 'kinds of bytes' if analysis.is_text else 'labels'
  return section(
    f'Paths in {name}',
    _single_paths(analysis, model),
    picture(
      figures.flow(analysis.flows, analysis.names),
      'Where tokens go from step to step: widths are shares of the choices.',
    ),
    picture(
      figures.specialisation(analysis.specialisation.lift, analysis.names, analysis.class_names),
      f'Specialisation: how much more often than in all tokens the {classes} are among those that '
      'chose each module.',
    ),
    picture(
      figures.information(*analysis.information),
      f'What a token’s modules tell about its class ({classes}) at each step, and by chance.',
    ),
    picture(
      figures.reuse(analysis.reuse, analysis.names),
      'Reuse of parameters: how many tokens use each module how often on their path.',
    ),
  )


def _single_paths(analysis, model):
  modules = analysis.names, analysis.identity
  if analysis.is_text:
    return picture(
      figures.text_paths(analysis.tokens[0], analysis.chosen[0], *modules),
      'The path of every token of a sequence: modules chosen at each step.',
    )
  images = analysis.tokens[:IMAGES]
  grid = tuple(size // model.patch_size for size in images.shape[1:3])
  return picture(
    figures.image_paths(images, analysis.chosen[:IMAGES], grid, *modules),
    'The path of every patch of some images, and how much each computes.',
  )
