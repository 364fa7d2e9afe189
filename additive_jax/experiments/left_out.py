"""What trainings left out because it was not finite, and results that are not: said, or the end."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from additive_jax.errors import UserError
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.report.wording import counted

log = logging.getLogger('additive_jax')

REASON = 'their loss, gradient or update was not finite'
REMEDY = (
  'finite ones, as a lower config.learning_rate, config.clip_norm or config.train.slot_clip_norm '
  'may give'
)
PATIENCE = 100  # steps without any update after which a training is given up
SHOWN = 5  # trainings that are named


class NothingLearnt(UserError):
  """Everything that a training was given was left out."""


class LeftOut(NamedTuple):
  """Slots of one training, or of some: a structure on a batch in a step.

  >>> print(LeftOut('dense-seed0', 24, 48))
  dense-seed0: 24 of 48 slots (50 %)
  >>> print(LeftOut('narrow-seed0', 3))
  narrow-seed0: 3 slots

  Attributes:
    name: of the training.
    skipped: how many were left out.
    total: of so many; 0 is not known.
  """

  name: str
  skipped: int
  total: int = 0

  def __str__(self) -> str:
    if not self.total:
      return f'{self.name}: {counted(self.skipped, "slot")}'
    share = 100 * self.skipped / self.total
    return f'{self.name}: {self.skipped} of {counted(self.total, "slot")} ({share:.2g} %)'


def check_learning(left_out: LeftOut, step: int, num_steps: int) -> None:
  """Raises `NothingLearnt` for a training that has left out everything: at its end, or after so
  many steps that no more is to be hoped for."""
  nothing = left_out.skipped >= left_out.total > 0
  if nothing and step >= min(num_steps, PATIENCE):
    raise NothingLearnt(
      f'{left_out.name}: all {counted(left_out.total, "slot")} of {counted(step, "step")} were '
      f'left out, for {REASON}: expected {REMEDY}'
    )


def warn(left_out: LeftOut) -> None:
  """Says in the log what a training has left out."""
  if left_out.skipped:
    log.warning('%s were left out, for %s', left_out, REASON)


def check_scores(
  name: str, seed: int, values: Mapping[str, Any], may_diverge: bool = False
) -> None:
  """Raises `UserError` for a network whose loss, once trained, is not finite; of one of many that
  may diverge the log says so. Of a pool that is judged in many structures the log says how many are
  not, unless none is.

  >>> check_scores('dense', 0, {'loss': float('nan')})
  Traceback (most recent call last):
  additive_jax.errors.UserError: dense, seed 0: a test loss of nan: expected finite ones, as a lower
  config.learning_rate, config.clip_norm or config.train.slot_clip_norm may give
  """
  # Beside the loss on the test split, the other one is that to choose by.
  words = {'loss': 'validation' if 'test_loss' in values else 'test', 'test_loss': 'test'}
  if may_diverge:
    wrong = {words[key]: values[key] for key in words if not np.isfinite(values.get(key, 0.0))}
    if wrong:
      losses = ' and '.join(f'a {word} loss of {loss}' for word, loss in wrong.items())
      text = '%s alone, seed %d: %s, ranked last and compared with none: expected %s'
      log.warning(text, name, seed, losses, REMEDY)
    return
  for key, value in values.items():
    if isinstance(value, Mapping):
      check_scores(f'{name}, {key}', seed, value)
    if key != 'loss' or not isinstance(value, float | list | np.ndarray | np.generic):
      continue
    losses = np.atleast_1d(np.asarray(value, float)).reshape(-1)
    count = int((~np.isfinite(losses)).sum())
    if count == len(losses) > 0:
      text = f'{name}, seed {seed}: a {words[key]} loss of {losses[0]}'
      raise UserError(f'{text}: expected {REMEDY}')
    if count:
      text = '%s, seed %d: the %s loss of %d of %d structures is not finite'
      log.warning(text, name, seed, words[key], count, len(losses))


def of_run(session: Session, records: Records) -> list[LeftOut]:
  """Returns what each training of a run has left out, those that left out something.

  Of networks that are trained alone the records say so, of pools the curves.
  """
  totals: dict[str, int] = {}
  alone = LeftOut('networks alone', 0)
  for name, arm in records.arms.items():
    for seed in session.seeds:
      record = records.get(name, seed) or {}
      if hasattr(arm, 'sampler'):
        tag = (arm.tag or f'{name}-seed{{seed}}').format(seed=seed)
        totals[tag] = arm.num_steps * arm.sampler.num_structures
      elif 'skipped' in record and hasattr(arm, 'stop'):
        alone = LeftOut(alone.name, alone.skipped + record['skipped'], alone.total + arm.stop)
  curves = session.metrics.read(session.rundir.path)
  skipped = curves.groupby('tag')['skipped'].sum() if 'skipped' in curves else pd.Series()
  pools = [LeftOut(str(tag), int(count), totals.get(str(tag), 0)) for tag, count in skipped.items()]
  return [left_out for left_out in (*pools, alone) if left_out.skipped]


def said(left_out: Sequence[LeftOut]) -> str:
  """Returns what a report says, '' for nothing, and says it in the log.

  >>> said([LeftOut('dense-seed0', 24, 48)])[:60]
  'Left out, for their loss, gradient or update was not finite:'
  """
  for part in left_out[:SHOWN]:
    warn(part)
  texts = list(map(str, left_out))
  if not texts:
    return ''
  more = f'; and of {counted(len(texts) - SHOWN, "training")} more' if len(texts) > SHOWN else ''
  return (
    f'Left out, for {REASON}: {"; ".join(texts[:SHOWN])}{more}. What is shown was learnt from the '
    'rest.'
  )
