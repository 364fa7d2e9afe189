"""The frame of every page, and the page of a study that has none of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from additive_jax.experiments.fit import lost_points
from additive_jax.experiments.options import PLACEMENT
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.speed import speed_piece, speeds
from additive_jax.files.rundir import flatten
from additive_jax.report import figures
from additive_jax.report.figures.style import Colours, palette
from additive_jax.report.page import (
  Page,
  Piece,
  details,
  picture,
  section,
  table,
  text,
  tiles,
  varying,
)
from additive_jax.report.wording import counted, format_value, plain, score_name

log = logging.getLogger('additive_jax')

ONE_SEED = ' (one seed: no intervals)'


def finished_page(
  session: Session,
  page: Page,
  note: str = '',
  last: Sequence[Piece | None] = (),
  explored: Piece | None = None,
) -> str:
  """Returns the page as HTML, with what was run under its title, a note where there is one, the
  explorer, last sections, how fast trainings were, and the command and the options of the run at
  its foot.

  The explorer stands behind the first tiles of a page that asks what gates do; of others behind the
  first section, which answers what was asked. Under the title stands of which split numbers are:
  what the page says of it, else what is so of most experiments.
  """
  gates, seeds = counted(session.space.num_gates, 'gate'), counted(len(session.seeds), 'seed')
  seeds += '' if len(session.seeds) > 1 else ', no intervals'
  options = flatten(session.rundir.read_json('config.json'), PLACEMENT)
  width = max(map(len, options))
  lines = [f'{name:{width}}  {json.dumps(value)}' for name, value in options.items()]
  kinds = [piece.kind for piece in page.pieces]
  tiled = sum(kind == 'tiles' for kind in kinds[:1])
  place = tiled if page.asks_of_gates or 'section' not in kinds else kinds.index('section') + 1
  texts = {'Command, which also continues the run': session.command} if session.command else {}
  return Page(
    page.title,
    text(note) if note else None,
    *page.pieces[:place],
    explored,
    *page.pieces[place:],
    *last,
    varying(speed_piece(speeds(session))),
    details('How this run was made', texts | {'Options': '\n'.join(lines)}),
    subtitle=f'{gates}, {seeds}; {_sizes(session)}; '
    f'{page.subtitle or _of_splits(session)}{_of_units(session)}',
  ).html()


def _of_units(session: Session) -> str:
  """Returns what an error of a standardised target is in the target's units; '' for others."""
  units = session.data.target_units
  if not units:
    return ''
  told = [f'{format_value(unit)} of {name}' for name, unit in units.items()]
  several = '' if len(told) <= 4 else ', … (target_units in summary.json)'
  return f'; targets are standardised, an error of 1 is {", ".join(told[:4])}{several}'


def _sizes(session: Session) -> str:
  """Returns how many examples each split has."""
  data = session.data
  known = {'to learn from': data.train, 'to choose by': data.valid, 'to report on': data.test}
  sizes = [f'{len(split):,} {what}' for what, split in known.items() if split is not None]
  return f'examples: {", ".join(sizes)}'


def _of_splits(session: Session) -> str:
  """Returns which split numbers are of, and on which choices are made."""
  if session.data.valid is None:
    return (
      'loss is on the test split, unless it is called training loss; what is chosen is chosen on '
      'the test split too, since none was held out (config.data.valid)'
    )
  return (
    'what is chosen is chosen on the validation split; loss is on the test split, unless it is '
    'called training or validation loss'
  )


def read_curves(session: Session) -> pd.DataFrame:
  """Returns the curves of the run: columns tag, step, and every value; no row for no curves."""
  curves = session.metrics.read(session.rundir.path)
  headline = f'test_{session.task.headline}'
  if 'test_accuracy' in curves and 'accuracy' not in session.task.scores:  # of earlier versions
    known = curves[headline] if headline in curves else curves['test_accuracy']
    curves[headline] = known.fillna(curves['test_accuracy'])
  return curves if len(curves) else pd.DataFrame(columns=['tag', 'step'])


def warn_of_lost_points(session: Session, records: Records) -> None:
  """Warns of points that the pictures of a run's arms lack."""
  curves = read_curves(session)
  for arm in records.arms.values():
    for seed in () if arm.spread else session.seeds:
      name = (arm.tag or f'{arm.name}-seed{{seed}}').format(seed=seed)
      steps = set(curves[curves['tag'] == name]['step'])
      every = session.config.train.steps_of_points(arm.num_steps)
      if steps and (lost := lost_points(steps, arm.num_steps, every)):
        text = '%s lacks step %d of %s; the curves show what is left'
        log.warning(text, session.rundir.path / 'metrics.jsonl', lost[0], name)


def curves_picture(
  curves: pd.DataFrame,
  caption: str,
  measure: str = 'loss',
  target: float | None = None,
  colours: Colours | None = None,
) -> Piece | None:
  """Returns a picture of `figures.training_curves` with its caption; None for no curves."""
  if not len(curves):
    return None
  return picture(figures.training_curves(curves, measure, target, colours), caption)


def over_seeds(session: Session, text: str = ' over the seeds') -> str:
  """Returns `text` where a run has several seeds, else nothing."""
  return text if len(session.seeds) > 1 else ''


def intervals(session: Session) -> str:
  """Returns what a caption says of the intervals over the seeds, or that there are none."""
  return over_seeds(session, ', with 95 % intervals over the seeds') or ONE_SEED


def differences_note(session: Session) -> str:
  """Returns what a caption says of differences that are paired by seed."""
  if len(session.seeds) == 1:
    return f'differences within the seed{ONE_SEED}, so none can be told from chance.'
  return (
    f'means of differences paired by seed{intervals(session)}. An interval that crosses zero shows '
    'no difference.'
  )


def arm_colours(names: Iterable[str], label: Callable[[str], str] = plain) -> dict[str, str]:
  """Returns the colour of each arm, the same in all pictures of a page, by its name and its label.

  >>> arm_colours(['none', 'per_sample'])['per sample']
  '#d55e00'
  """
  return by_label(palette(names), label)


def by_label(colours: Colours, label: Callable[[str], str] = plain) -> dict[str, str]:
  """Returns colours by the names of arms and by their labels."""
  return {key: tint for name, tint in colours.items() for key in (name, label(name))}


def networks(summary: Mapping[str, Any]) -> str:
  """Returns in words how many structures were judged, and how many networks where they differ.

  >>> networks({'num_networks': 5, 'num_structures': 8})
  '5 networks (8 structures)'
  """
  structures = counted(summary['num_structures'], 'structure')
  if summary['num_networks'] == summary['num_structures']:
    return structures
  return f'{counted(summary["num_networks"], "network")} ({structures})'


def plain_page(session: Session, result: Any, records: Records) -> Page:
  """Returns the page of a study with the default tables: the differences from the baseline."""
  variants, baseline = result.variants, result.summary['baseline']
  others, versus = variants[variants['variant'] != baseline], plain(baseline)
  first = dict.fromkeys(('loss', session.task.headline))
  measures = {f'{key}_minus_{baseline}': f'test {score_name(key)} − {versus}' for key in first}
  caption = f'What each differs by from {versus}: {differences_note(session)}'
  colours = arm_colours([baseline, *others['variant']])
  return Page(
    f'{plain(result.summary["experiment"])} on {session.data.name}',
    tiles({f'{plain(row.variant)}, test loss': row.loss for row in variants.itertuples()}),
    section(f'Against {versus}', picture(figures.differences(others, measures, colours), caption))
    if len(others)
    else None,
    section(
      'Training',
      curves_picture(
        figures.mean_curves(read_curves(session), names=list(records.arms)),
        f'Training loss{over_seeds(session, ", mean over the seeds")}.',
        colours=colours,
      ),
    ),
    section('Tables', table(variants, f'Each arm; “minus {versus}” is paired by seed.')),
  )
