"""The declaration of the study `compress`: its arms, and what is judged of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from additive_jax.experiments.arms import Arm
from additive_jax.experiments.compress.networks import Compression
from additive_jax.experiments.compress.page import page
from additive_jax.experiments.compress.tables import DENSE, make_tables
from additive_jax.experiments.options import refused
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.study import Study


def _check(session):
  """Everything that can be said before any training."""
  options = session.config.compress
  if options.distill and session.data.task_name == 'regression':
    raise refused(session.config, 'compress.distill', expected='0 in a regression: no classes')
  if session.config.train.distill:
    expected = '0 in a compression; config.compress.distill has a teacher of its own'
    raise refused(session.config, 'train.distill', expected=expected)
  if options.distill and 'mixup' in session.config.data.augment:
    expected = '0 with mixup, for the teacher has not seen mixed examples'
    raise refused(session.config, 'compress.distill', 'data.augment', expected=expected)
  if options.gradual and options.level != 'weight':
    raise refused(
      session.config, 'compress.gradual', 'compress.level', expected='none but per weight'
    )
  session.in_memory()
  compression = Compression(session)
  for option in ('sparsities', 'gradual'):
    for first, second in itertools.combinations(getattr(options, option), 2):
      if compression.share(first) == compression.share(second):
        counted = f'{first} and {second} leave as many per {options.level}'
        expected = f'shares that leave different numbers, {counted}'
        raise refused(session.config, f'compress.{option}', expected=expected)


def _stages(session: Session, records: Records) -> Iterator[list[Arm]]:
  del records
  yield Compression(session).arms()


STUDY = Study('compress', _stages, check=_check, tables=make_tables, page=page, baseline=DENSE)

run = STUDY.run
