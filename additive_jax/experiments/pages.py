"""The frame of every page, and the page of a study that has none of its own."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from additive_jax.experiments.options import PLACEMENT
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.files.rundir import flatten
from additive_jax.report import figures
from additive_jax.report.page import Page, details, picture, section, table, tiles
from additive_jax.report.wording import counted, plain


def finished_page(session: Session, page: Page) -> str:
  """Returns the page as HTML, with what was run under its title, and the command and the options of
  the run at its foot.
  """
  gates, seeds = counted(session.space.num_gates, 'gate'), counted(len(session.seeds), 'seed')
  options = flatten(session.rundir.read_json('config.json'), PLACEMENT)
  width = max(map(len, options))
  lines = [f'{name:{width}}  {json.dumps(value)}' for name, value in options.items()]
  texts = {'Command, which also continues the run': session.command} if session.command else {}
  return Page(
    page.title,
    *page.pieces,
    details('How this run was made', texts | {'Options': '\n'.join(lines)}),
    subtitle=f'{gates}, {seeds}; loss is on the test split',
  ).html()


def read_curves(session: Session) -> pd.DataFrame:
  """Returns the curves of the run: columns tag, step, and every value."""
  return session.metrics.read(session.rundir.path)


def over_seeds(session: Session, text: str = ' over the seeds') -> str:
  """Returns `text` where a run has several seeds, else nothing."""
  return text if len(session.seeds) > 1 else ''


def plain_page(session: Session, result: Any, records: Records) -> Page:
  """Returns the page of a study with the default tables: the differences from the baseline."""
  variants, baseline = result.variants, result.summary['baseline']
  named = variants.assign(variant=variants['variant'].map(plain))
  curves, versus = read_curves(session), plain(baseline)
  return Page(
    f'{plain(result.summary["experiment"])} on {session.data.name}',
    tiles({f'{row.variant}, test loss': row.loss for row in named.itertuples()}),
    section(
      f'Against {versus}',
      picture(
        figures.differences(
          named[variants['variant'] != baseline],
          {
            f'{score}_minus_{baseline}': f'test {score} − {versus}'
            for score in ('loss', 'accuracy')
          },
        ),
        f'Means of differences paired by seed, with 95 % intervals{over_seeds(session)}. An '
        'interval that crosses zero shows no difference.',
      )
      if len(variants) > 1
      else None,
    ),
    section(
      'Training',
      picture(
        figures.training_curves(figures.mean_curves(curves, names=list(records.arms))),
        f'Training loss{over_seeds(session, ", mean over the seeds")}.',
      )
      if len(curves)
      else None,
    ),
    section('Tables', table(variants, f'Each arm; “minus {versus}” is paired by seed.')),
  )
