"""The page that a DNA run leaves: pictures first."""

from __future__ import annotations

import pandas as pd

from additive_jax.experiments import contenders_report
from additive_jax.experiments.contenders import DENSE, loads
from additive_jax.experiments.contenders_report import signed, words
from additive_jax.experiments.results import end_page, start_page
from additive_jax.report import path_figures, routing_figures
from additive_jax.report.paths import rank_frequency

SKIPPING = 'dna_skipping'
IMAGES = 4  # whose paths are drawn


def render(session, result, contenders, records, analyses, curves: pd.DataFrame) -> str:
  """The report of a `DNAResult` as HTML.

  Args:
    records: by network, those of all seeds; see `contenders.train_all`.
    analyses: by DNA, its `dna_tables.Analysis`, the one that is shown in full last.
    curves: the run's metrics.
  """
  rows = result.variants.set_index('variant')
  report = start_page(session, f'Distributed neural architectures on {session.data.name}')
  report.facts(
    {'dense, test loss': rows.loc[DENSE, 'loss']}
    | {
      f'{words(name)}, loss − dense': signed(rows.loc[name], 'loss_minus_dense')
      for name in rows.index
      if name != DENSE
    }
    | {
      f'{words(name)}, share of choices that compute': result.summary['variants'][name]['routers'][
        'kept'
      ]
      for name in analyses
    }
  )
  contenders_report.compare(
    report,
    result.variants,
    len(session.seeds),
    'All see the same examples in the same order, for as many steps. “dense” has the FLOPs that '
    'tokens of “dna” were measured to use, “shallow” fewer layers and the FLOPs of the DNA that '
    'skips.',
  )
  _choices(report, session.config.dna.skip, records, analyses)
  name, found = list(analyses.items())[-1]
  _paths(report, session, words(name), found)
  skip = session.config.dna.skip
  more = {'kept': ('share of choices that compute', 1 - skip if skip else None)}
  contenders_report.over_training(report, curves, {'': [c.name for c in contenders]}, more)
  report.section('Tables')
  report.table(result.variants, 'Each network; “minus dense” is paired by seed.')
  report.table(result.routers, 'Each step’s router, mean over the seeds.')
  report.table(result.modules, f'Modules of {words(name)}, first seed; load 1 is even.')
  report.table(result.paths, 'Paths of the tokens; all are in paths.csv.', max_rows=20)
  return end_page(report, session)


def _choices(report, skip, records, analyses):
  report.section('What tokens choose')
  shares = {words(name): list(loads(records[name]).values()) for name in analyses}
  report.figure(
    routing_figures.utilisation(shares),
    'Load of every module over the ideal even load, most used first, a line for each step; mean '
    'over the seeds.',
  )
  report.figure(
    routing_figures.rank_frequency(
      {words(name): rank_frequency(found.codes) for name, found in analyses.items()},
      {words(name): found.fit for name, found in analyses.items()},
    ),
    'How often each path is taken, by rank, in the first seed; a path is the modules of all steps. '
    'Lines: power laws, with the exponent’s 95 % interval over examples.',
  )
  report.figure(
    routing_figures.compute(
      {words(name): found.compute for name, found in analyses.items()},
      {words(SKIPPING): 1 - skip},
    ),
    'Share of a token’s choices that compute something, over tokens and over examples, in the '
    'first seed; dashed: the target of the one that is steered.',
  )


def _paths(report, session, name, found):
  report.section(f'Paths in {name}')
  if found.is_text:
    report.figure(
      path_figures.text_paths(found.tokens[0], found.chosen[0], found.names, found.identity),
      'The path of every token of a sequence: modules chosen at each step.',
    )
  else:
    height, width = found.tokens.shape[1:3]
    size = session.model.patch_size
    report.figure(
      path_figures.image_paths(
        found.tokens[:IMAGES],
        found.chosen[:IMAGES],
        (height // size, width // size),
        found.names,
        found.identity,
      ),
      'The path of every patch of some images, and how much each computes.',
    )
  report.figure(
    path_figures.flow(found.flows, found.names),
    'Where tokens go from step to step: widths are shares of the choices.',
  )
  what = 'kinds of bytes' if found.is_text else 'labels'
  report.figure(
    path_figures.specialisation(found.lift, found.names, found.class_names),
    f'Specialisation: how much more often than in all tokens the {what} are among those that chose '
    'each module.',
  )
  report.figure(
    path_figures.information(found.bits.bits, found.bits.shuffled),
    f'What a token’s modules tell about its class ({what}) at each step, and by chance.',
  )
  report.figure(
    path_figures.reuse(found.reuse, found.names),
    'Reuse of parameters: how many tokens use each module how often on their path.',
  )
