"""The page that Exp 4 leaves: pictures first."""

from __future__ import annotations

from additive_jax.experiments import contenders_page
from additive_jax.experiments.contenders import contenders_of, loads
from additive_jax.experiments.pages import over_seeds
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.page import Page, picture, section, table
from additive_jax.report.wording import plain


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page of Exp 4."""
  options, paths = session.config.experts, result.extras['paths']
  contenders = contenders_of(records)
  routed = [contender.name for contender in contenders if contender.has_routers]
  static = [contender.name for contender in contenders if not contender.has_routers]
  mean = over_seeds(session, ', mean over the seeds')
  tints = contenders_page.colours(result.variants)
  target = {'kept': ('share of tokens that are computed', options.keep)}
  return Page(
    f'Mixtures of structures on {session.data.name}',
    contenders_page.facts(result.variants),
    contenders_page.comparison(
      session,
      result.variants,
      'All start from the seed’s own init and see the same examples in the same order, for as many '
      'steps. “Equal flops” and “equal params” networks have hidden units such that their active '
      'FLOPs (for the share of tokens that they are to compute), or their parameters, are those of '
      'the dense one; the single structure has its parameters. What each really uses is below.',
    ),
    _choices(records, routed, paths, mean, tints) if routed else None,
    _computed(paths, options.keep, tints) if options.keep < 1 else None,
    contenders_page.training(
      session,
      {
        f' at equal {budget}': static
        + [name for name in routed if name.endswith(f'equal_{budget}')]
        for budget in options.budgets
      },
      target if options.keep < 1 else {},
      tints,
    ),
    _structures(session, result) if len(result.table) > 1 else None,
    section(
      'Tables',
      table(result.variants, 'Each network; “minus dense” is paired by seed.'),
      table(result.routers, f'Each router{mean}; loads are over the ideal one.'),
      table(result.table, 'Static structures, best first.'),
    ),
  )


def _choices(records, routed, paths, mean, tints):
  shares = {plain(name): list(loads(records[name]).values()) for name in routed}
  chosen = {plain(name): path for name, path in paths.items() if 'fit' in path}
  return section(
    'What tokens choose',
    picture(
      figures.utilisation({name: load for name, load in shares.items() if load[0].size}, tints),
      'Load of every structure or expert over the ideal even load, most used first, a line for '
      f'each layer{mean}. Mixtures of all structures choose nothing and have none.',
    ),
    picture(
      figures.rank_frequency(
        {name: path['counts'] for name, path in chosen.items()},
        {name: path['fit'] for name, path in chosen.items()},
        tints,
      ),
      'How often tokens of the test split choose each structure of the whole network (what they '
      'choose in all layers together), by rank, in the first seed; with the exponent of a power '
      'law and its 95 % interval over examples where one fits (p at least 0.1, against samples of '
      'the law).',
    )
    if chosen
    else None,
  )


def _computed(paths, keep, tints):
  shares = {plain(n): path['on'].mean(-1) for n, path in paths.items() if path['on'] is not None}
  return section(
    'Tokens that are computed',
    picture(
      figures.compute_shares(shares, dict.fromkeys(shares, keep), tints),
      'Share of the layers that compute a token, over tokens and over examples; dashed: target.',
    ),
  )


def _structures(session, result):
  held_out = session.data.valid is not None
  chosen_on = 'the validation split' if held_out else 'training examples'
  return section(
    'Static structures of the same layers',
    picture(
      figures.ranking(result.table),
      'Test loss of the structures of the dense network’s feed-forward layers in one pool; the '
      f'single structure that was trained alone, {result.summary["single_structure"]}, was the '
      f'best on {chosen_on} with some gate off.',
    ),
  )
