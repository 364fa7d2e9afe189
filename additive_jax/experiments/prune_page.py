"""The page that `prune` leaves."""

from __future__ import annotations

from additive_jax.experiments.pages import curves_picture, read_curves
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Result
from additive_jax.report import figures
from additive_jax.report.page import Page, section, table, tiles

SHOWN = ('before', 'unhealed', 'after')


def page(session: Session, result: Result, records: Records) -> Page:
  """Returns the page: what the smaller network costs and scores beside the full one."""
  summary, unit = result.summary, result.summary['cost']
  share = summary['after'][unit] / summary['before'][unit]
  losses = {f'test loss, {name}': row['loss'] for name, row in summary.items() if name in SHOWN}
  return Page(
    f'The smaller network within, on {session.data.name}',
    tiles({f'share of the {unit}': share} | losses),
    section(
      'Training',
      curves_picture(
        figures.mean_curves(read_curves(session), names=list(records.arms)), 'Training loss.'
      ),
    ),
    section(
      'Tables',
      table(result.networks, 'The full network, the chosen structure in its pool, and healed.'),
      table(
        result.candidates, f'Structures within the budget, by the {summary["chosen_on"]} split.'
      ),
    ),
  )
