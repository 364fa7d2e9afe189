"""What training structures alone gave in a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from additive_jax.errors import UserError
from additive_jax.experiments.explored_table import DIFFERENCE
from additive_jax.experiments.left_out import REMEDY
from additive_jax.experiments.records import Records
from additive_jax.experiments.standalone import Lone
from additive_jax.report import statistics
from additive_jax.report.wording import counted
from additive_jax.run.tasks import LOSS


class Alone:
  """What training structures alone gave.

  Attributes:
    first: by structure, the arm of its first rung, which all of them reach.
    last: by structure, the arm of the last rung that it reached.
    diverged: the structures whose loss is not finite in some seed; at least one has another.
  """

  def __init__(self, records: Records):
    self._records = records
    arms = [arm for arm in records.arms.values() if isinstance(arm, Lone)]  # rung by rung
    self.last = {str(arm.structure): arm for arm in arms}
    self.first = {str(arm.structure): arm for arm in reversed(arms)}
    losses = {text: [line[LOSS] for line in records[arm.name]] for text, arm in self.last.items()}
    self.diverged = {text for text, seeds in losses.items() if not np.isfinite(seeds).all()}
    if len(self.diverged) == len(self.last):
      raise UserError(
        f'the loss of each of {counted(len(self.last), "structure")} alone is not finite in some '
        f'seed: expected {REMEDY}'
      )

  def values(
    self, structures: Sequence[str], key: str, arms: Mapping[str, Lone]
  ) -> Float[np.ndarray, 'seeds structures']:
    """Returns a value of each structure's arm; NaN where there is none."""
    missing = [{key: np.nan}] * len(self._records.seeds)
    by_structure = [self._records[arms[s].name] if s in arms else missing for s in structures]
    values = [[record[key] for record in seeds] for seeds in by_structure]
    return np.ascontiguousarray(np.array(values, float).T)

  def records(self) -> Iterator[Mapping[str, Any]]:
    """Yields the records of the last rungs."""
    for arm in self.last.values():
      yield from self._records[arm.name]

  def table(self, scores: Sequence[str]) -> pd.DataFrame:
    """Returns a row for each trained structure: means over seeds at its last rung, NaN where one of
    them is not finite."""
    structures = sorted(self.last)
    values = lambda key: self.values(structures, key, self.last)
    table = pd.DataFrame({'structure': structures})
    first = next(iter(self.records()))
    tested = [f'test_{key}' for key in scores if f'test_{key}' in first]
    for key in (*scores, *tested):
      table[key], table[f'{key}_ci95'] = _means(values(key))
    table['train_loss'] = _means(values('train_loss'))[0]
    table['steps'] = values('steps')[0].astype(int)
    for key in (LOSS, *(key for key in tested if key == f'test_{LOSS}')):
      losses = np.where(table['steps'] == table['steps'].max(), values(key), np.nan)
      table = with_differences(table, key, losses)
    table['skipped'] = values('skipped').sum(0).astype(int)
    return table


def with_differences(
  table: pd.DataFrame, key: str, values: Float[np.ndarray, 'seeds structures']
) -> pd.DataFrame:
  """Returns a table with what structures differ by from all-on, paired by seed, and the half widths
  of 95 % intervals: `<key>_minus_all_on` and its `_ci95`. Without all-on it is as it was.

  >>> table = pd.DataFrame({'structure': ['10', '11']})
  >>> found = with_differences(table, 'loss', np.array([[0.5, 0.25], [0.75, 0.5]]))
  >>> found['loss_minus_all_on'].tolist(), found['loss_minus_all_on_ci95'].tolist()
  ([0.25, 0.0], [0.0, 0.0])

  Args:
    table: has a column `structure`.
    key: the score.
    values: of its rows by seed; NaN for what is not compared.
  """
  all_on = ~table['structure'].str.contains('0').to_numpy()
  if not all_on.any():
    return table
  difference = _means(values - values[:, all_on][:, :1])
  name = f'{key}{DIFFERENCE}'
  return table.assign(**{name: difference[0], f'{name}_ci95': difference[1]})


def _means(values: Float[np.ndarray, 'seeds structures']) -> np.ndarray:
  """Returns means and half widths [2, S] of the columns that are finite, NaN of the others."""
  finite, means = np.isfinite(values).all(0), np.full((2, values.shape[1]), np.nan)
  means[:, finite] = statistics.mean_and_ci(values[:, finite])
  return means
