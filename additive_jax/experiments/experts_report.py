"""The page that Exp 4 leaves: pictures first."""

from __future__ import annotations

import pandas as pd

from additive_jax.experiments import contenders_report
from additive_jax.experiments.contenders import DENSE, loads
from additive_jax.experiments.contenders_report import signed, words
from additive_jax.experiments.results import end_page, start_page
from additive_jax.report import figures, routing_figures


def render(session, result, contenders, records, paths, curves: pd.DataFrame) -> str:
  """The report of an `ExpertsResult` as HTML.

  Args:
    records: by network, those of all seeds; see `contenders.train_all`.
    paths: by network, what tokens chose in the first seed: `on`, and where they choose `counts`
      and `fit`.
    curves: the run's metrics.
  """
  frame, config = result.variants, session.config
  rows = frame.set_index('variant')
  report = start_page(session, f'Mixtures of structures on {session.data.name}')
  report.facts(
    {'dense, test loss': rows.loc[DENSE, 'loss']}
    | {
      f'{words(name)}, loss − dense': signed(rows.loc[name], 'loss_minus_dense')
      for name in rows.index
      if name != DENSE
    }
  )
  contenders_report.compare(
    report,
    frame,
    len(session.seeds),
    'All start from the seed’s own init and see the same examples in the same order, for as many '
    'steps. “Equal flops” and “equal params” networks have hidden units such that their active '
    'FLOPs (for the share of tokens that they are to compute), or their parameters, are those of '
    'the dense one; the single structure has its parameters. What each really uses is below.',
  )
  routed = [c.name for c in contenders if c.has_routers]
  if routed:
    _routers(report, records, routed, paths)
  if config.experts.keep < 1:
    report.section('Tokens that are computed')
    report.figure(
      routing_figures.compute(
        {words(n): p['on'].mean(-1) for n, p in paths.items() if p['on'] is not None},
        config.experts.keep,
      ),
      'Share of the layers that compute a token, over tokens and over examples; dashed: target.',
    )
  more = {'kept': ('share of tokens that are computed', config.experts.keep)}
  static = [contender.name for contender in contenders if not contender.has_routers]
  groups = {
    f' at equal {budget}': static + [name for name in routed if name.endswith(f'equal_{budget}')]
    for budget in config.experts.budgets
  }
  contenders_report.over_training(report, curves, groups, more if config.experts.keep < 1 else {})
  if len(result.table) > 1:
    report.section('Static structures of the same layers')
    report.figure(
      figures.ranking(result.table),
      'Test loss of the structures of the dense network’s feed-forward layers in one pool; the '
      f'single structure that was trained alone, {result.summary["single_structure"]}, was the '
      'best on training examples with some gate off.',
    )
  report.section('Tables')
  report.table(frame, 'Each network; “minus dense” is paired by seed.')
  report.table(result.routers, 'Each router, mean over the seeds; loads are over the ideal one.')
  report.table(result.table, 'Static structures, best first.')
  return end_page(report, session)


def _routers(report, records, routed, paths):
  report.section('What tokens choose')
  shares = {name: list(loads(records[name]).values()) for name in routed}
  shares = {words(name): found for name, found in shares.items() if found[0].size}
  report.figure(
    routing_figures.utilisation(shares),
    'Load of every structure or expert over the ideal even load, most used first, a line for each '
    'layer; mean over the seeds. Mixtures of all structures choose nothing and have none.',
  )
  chosen = {words(name): found for name, found in paths.items() if 'fit' in found}
  if chosen:
    curves = {name: found['counts'] for name, found in chosen.items()}
    fits = {name: found['fit'] for name, found in chosen.items()}
    report.figure(
      routing_figures.rank_frequency(curves, fits),
      'How often tokens of the test split choose each structure of the whole network (what they '
      'choose in all layers together), by rank, in the first seed; with the exponent of a power '
      'law and its 95 % interval over examples.',
    )
