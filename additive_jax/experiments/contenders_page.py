"""What the pages of Exp 4 and DNA share: the comparison with a dense network, and routers over
training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from additive_jax.experiments.contenders import DENSE
from additive_jax.experiments.pages import (
  by_label,
  curves_picture,
  differences_note,
  over_seeds,
  read_curves,
)
from additive_jax.experiments.session import Session
from additive_jax.report import figures
from additive_jax.report.figures.arms import family_colours
from additive_jax.report.figures.style import Colours
from additive_jax.report.page import Piece, picture, section, tiles
from additive_jax.report.wording import plain, score_name, with_margin

MEASURES = {
  'entropy': ('entropy of the routers, nats', None),
  'max_violation': ('MaxVio', None),
  'dead': ('choices that no token took', None),
}
MEANING = {'max_violation': ': by how much the largest load is above the ideal one, as a share'}


def facts(variants: pd.DataFrame, **more: float | str) -> Piece:
  """Returns tiles with the dense network's loss, what others differ by from it, and more."""
  rows = variants.set_index('variant')
  differences = {
    f'{plain(str(name))}, loss − dense': with_margin(
      row['loss_minus_dense'], row['loss_minus_dense_ci95']
    )
    for name, row in rows.iterrows()
    if name != DENSE
  }
  return tiles({'dense, test loss': rows.loc[DENSE, 'loss']} | differences | more)


def colours(variants: pd.DataFrame) -> dict[str, str]:
  """Returns the colour of each network, by its name and its label: one for each family."""
  return by_label(family_colours(variants))


def comparison(session: Session, variants: pd.DataFrame, note: str) -> Piece | None:
  """Returns the section that compares all networks with the dense one.

  Args:
    session: the run.
    variants: a row for each network.
    note: what the networks share.
  """
  return section(
    'Against the dense network',
    picture(
      figures.differences(
        variants[variants['variant'] != DENSE],
        {
          f'{score}_minus_dense': f'test {score_name(score)} − dense'
          for score in dict.fromkeys(('loss', session.task.headline))
        },
        colours(variants),
      ),
      f'What each network differs by from the dense one: {differences_note(session)} {note}',
    ),
    picture(
      figures.budgets(variants, colours(variants)),
      'Test loss against the FLOPs of one example’s forward pass, counting what tokens chose, and '
      'against all parameters.',
    ),
  )


def training(
  session: Session,
  groups: Mapping[str, Sequence[str]],
  more: Mapping[str, tuple[str, float | None]],
  tints: Colours,
) -> Piece | None:
  """Returns the section of curves: training loss, and measures of the routers.

  Args:
    session: the run.
    groups: the networks that share a picture, by what is said of them.
    more: further measures: by the ending of their columns, a label and the target or None.
    tints: see `colours`.
  """
  curves = read_curves(session)
  losses = [
    curves_picture(
      figures.mean_curves(curves, 'loss', names),
      f'Training loss{group}, with the penalties of routers where there are any'
      f'{over_seeds(session, ", mean over the seeds")}.',
      colours=tints,
    )
    for group, names in groups.items()
  ]
  routers = [
    _over_time(curves, group, names, over_seeds(session, ' and seeds'), tints, ending, *measure)
    for ending, measure in (MEASURES | dict(more)).items()
    for group, names in groups.items()
  ]
  return section('Training', *losses, *routers)


def _over_time(curves, group, names, and_seeds, tints, ending, label, ideal):
  """A measure of the routers over training, mean over sites and seeds; None where there is none."""
  columns = [column for column in curves if column.endswith(f'/{ending}')]
  frame = figures.mean_curves(curves, label, names, columns=columns)
  if ending == 'dead' and not frame[label].any():
    return None
  return curves_picture(
    frame,
    f'{label[0].upper()}{label[1:]} over training{group}, mean over sites{and_seeds}'
    f'{MEANING.get(ending, "")}.',
    label,
    ideal,
    tints,
  )
