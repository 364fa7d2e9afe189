"""Compression: what a trained network can do without, found by sparse variational dropout and by
magnitude, and cut out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from ml_collections import ConfigDict

from additive_jax.experiments import study
from additive_jax.experiments.arms import Arm
from additive_jax.experiments.compress.networks import Compression
from additive_jax.experiments.compress.page import page
from additive_jax.experiments.compress.tables import DENSE, make_tables
from additive_jax.experiments.options import refused
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Opening, Session


def run(
  config: ConfigDict, workdir: str | Path | None = None, **opening: Unpack[Opening]
) -> study.Result:
  """Compresses `config.model` as `config.compress` says, or goes on with it, and writes the run
  directory.

  For each seed: a network is trained for `train.epochs`; all others start from it and take as many
  epochs more. One stays dense; one learns its noise for `compress.epochs`, loses what has too much
  of it, and is tuned for `compress.tune_epochs`; the others lose what is small, at once, and are
  tuned all the time. With `compress.distill` these learn from a teacher as well, which took
  `compress.teacher_epochs` more. What variational dropout leaves is cut out and written to
  `exported/`, see `exported.export`. Args and errors are those of `study.run`.

  Returns:
    A result with `variants` (`variants.csv`: one row per network, means over the seeds),
    `structures` (`structures.csv`: one row per network and seed: its gates, what is left of it) and
    `layers` (`layers.csv`: one row per network and layer, means over the seeds).
  """
  return study.run(STUDY, config, workdir, **opening)


def _check(session):
  """Everything that can be said before any training."""
  options = session.config.compress
  if options.distill and session.data.task == 'regression':
    raise refused(session.config, 'compress.distill', expected='0 in a regression: no classes')
  if session.config.train.distill:
    expected = '0 in a compression; config.compress.distill has a teacher of its own'
    raise refused(session.config, 'train.distill', expected=expected)
  session.check_in_memory()
  compression = Compression(session)
  counts = {share: compression.share(share) for share in options.sparsities}
  for first, second in itertools.combinations(options.sparsities, 2):
    if counts[first] == counts[second]:
      expected = (
        'shares that leave different numbers, '
        f'{first} and {second} leave as many per {options.level}'
      )
      raise refused(session.config, 'compress.sparsities', expected=expected)


def _stages(session: Session, records: Records) -> Iterator[list[Arm]]:
  del records
  yield Compression(session).arms()


STUDY = study.Study(
  'compress', _stages, check=_check, tables=make_tables, page=page, baseline=DENSE
)
