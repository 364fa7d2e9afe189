"""Statistics of a table of structures: means with intervals, ranks, the Pareto front, and what each
gate does.

S is a number of structures, n a number of gates, `seeds` a number of repeated trainings. A table of
all 2^n structures is in integer order (gate i is bit i). Losses: lower is better. How far a ranking
can be trusted is in `rankings`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy  # loads its parts when they are used
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from additive_jax.errors import UserError

log = logging.getLogger('additive_jax')


def by_seed(values: ArrayLike) -> Float[np.ndarray, 'seeds structures']:
  """Returns values as a float array; raises `UserError` unless they are `[seeds, S]`."""
  array = np.asarray(values, np.float64)
  if array.ndim != 2 or not len(array):
    raise UserError(f'expected values [seeds, structures], got an array of shape {array.shape}')
  return array


def finite_mean(values: Float[np.ndarray, 'seeds structures']) -> Float[np.ndarray, ' structures']:
  """Returns the mean over seeds of what is finite, NaN where nothing is."""
  finite = np.isfinite(values)
  count = finite.sum(axis=0)
  total = np.where(finite, values, 0.0).sum(axis=0)
  return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def mean_and_ci(
  values: ArrayLike, level: float = 0.95
) -> tuple[Float[np.ndarray, ' structures'], Float[np.ndarray, ' structures']]:
  """Returns the mean over m seeds, and the half width of Student's t interval.

  The half width is `t_{(1+level)/2, m−1} · s / √m`, and NaN where m is less than two.

  Args:
    values: `[seeds, S]`; one that is not finite is left out of its structure, and how many are is
      logged.
    level: coverage of the interval, 0 to 1.

  >>> mean, half_width = mean_and_ci([[1.0], [2.0], [3.0]])
  >>> print(f'{mean[0]:.2f} ± {half_width[0]:.2f}')
  2.00 ± 2.48
  """
  values = by_seed(values)
  finite = np.isfinite(values)
  count = finite.sum(axis=0)
  if not finite.all():
    log.warning('%d of %d values are not finite and were left out', (~finite).sum(), finite.size)
  mean = finite_mean(values)
  deviation = np.where(finite, np.where(finite, values, 0.0) - mean, 0.0)
  half_width = np.full(count.shape, np.nan)
  several = count > 1
  m = count[several]
  spread = np.sqrt((deviation**2).sum(axis=0)[several] / (m - 1))
  half_width[several] = scipy.stats.t.ppf((1 + level) / 2, m - 1) * spread / np.sqrt(m)
  return mean, half_width


def best_first(values: ArrayLike) -> Int[np.ndarray, ' structures']:
  """Returns the indices of `values [S]`, lowest first; ties by index, what is not finite last.

  >>> best_first([0.2, float('nan'), 0.1]).tolist()
  [2, 0, 1]
  """
  values = np.asarray(values, np.float64)
  return np.argsort(np.where(np.isfinite(values), values, np.inf), kind='stable')


def rank(values: ArrayLike) -> Int[np.ndarray, ' structures']:
  """Returns the rank of each of `values [S]`, in the order of `best_first`: 1 is the lowest.

  >>> rank([0.2, float('nan'), 0.1]).tolist()
  [2, 3, 1]
  """
  return np.argsort(best_first(values), kind='stable') + 1


def pareto_front(cost: ArrayLike, loss: ArrayLike) -> Bool[np.ndarray, ' structures']:
  """Returns which structures no other beats, by being lower in one and no higher in the other.

  Exact duplicates do not beat each other: all of them are on the front, or none. What is not finite
  is not.

  Args:
    cost, loss: `[S]`.

  >>> pareto_front([1, 2, 3], [0.5, 0.6, 0.4]).tolist()
  [True, False, True]
  """
  cost, loss = np.asarray(cost, np.float64), np.asarray(loss, np.float64)
  front = np.zeros(cost.shape, bool)
  index = np.flatnonzero(np.isfinite(cost) & np.isfinite(loss))
  # On the front is who has the lowest loss of those at its cost, and a lower one than all cheaper:
  #     cost 1: 0.5 ✓      cost 2: 0.6, 0.7 (0.5 is cheaper)      cost 3: 0.4 ✓, 0.8
  costs, group = np.unique(cost[index], return_inverse=True)
  lowest = np.full(costs.shape, np.inf)
  np.minimum.at(lowest, group, loss[index])
  cheaper = np.concatenate([[np.inf], np.minimum.accumulate(lowest)[:-1]])[: costs.size]
  front[index] = (loss[index] == lowest[group]) & (lowest < cheaper)[group]
  return front


def walsh_hadamard(values: ArrayLike) -> Float[np.ndarray, ' structures']:
  """Returns the Walsh–Hadamard coefficients of a function of n gates, in O(n 2^n).

  With the sign `x_i = +1` where gate i is on and −1 where it is off, and T a set of gates, `c_T =
  2^−n Σ_s v(s) Π_{i∈T} x_i(s)`, so that `v(s) = Σ_T c_T Π_{i∈T} x_i(s)`: c_∅ is the mean. (Gates
  read 0 for off, so this is the usual transform with the sign turned for every gate in T.) Entry t
  is c_T for the set T of the bits of t.

  Args:
    values: `[2^n]` in integer order. One NaN makes every coefficient NaN; see `effects_from_sample`
      for gaps.

  >>> walsh_hadamard([0.0, 2.0, 1.0, 3.0]).tolist()  # 1.5 + x_0 + 0.5 x_1
  [1.5, 1.0, 0.5, 0.0]
  """
  table = np.asarray(values, np.float64)
  size = table.size
  if table.ndim != 1 or size < 1 or size & (size - 1):
    raise UserError(f'expected one value for each of 2^n structures, got shape {table.shape}')
  num_gates = size.bit_length() - 1
  table = table.reshape((2,) * num_gates)
  for axis in range(num_gates):
    off, on = np.take(table, 0, axis=axis), np.take(table, 1, axis=axis)
    table = np.stack([on + off, on - off], axis=axis)
  return table.reshape(-1) / size


def interactions(values: ArrayLike) -> Float[np.ndarray, 'gates gates']:
  """Returns the pairwise interactions of gates in `values [2^n]`; the diagonal is zero.

  Entry (i, j) is 4 c_{ij} of `walsh_hadamard`, the difference of differences: the mean of `v(11) −
  v(10) − v(01) + v(00)` (gates i, j) over all settings of the other gates: how much the effect of
  gate i grows when gate j is turned on. Positive for a loss: the two gates can stand in for each
  other.

  >>> interactions([0.9, 0.7, 0.8, 0.2]).round(2).tolist()  # (0.2 − 0.8) − (0.7 − 0.9)
  [[0.0, -0.4], [-0.4, 0.0]]
  """
  coefficients = walsh_hadamard(values)
  bit = 1 << np.arange(coefficients.size.bit_length() - 1)
  matrix = 4 * coefficients[bit[:, None] | bit[None, :]]
  np.fill_diagonal(matrix, 0.0)
  return matrix


def effects_from_sample(
  bits: ArrayLike, values: ArrayLike
) -> tuple[Float[np.ndarray, ' gates'], Float[np.ndarray, 'gates gates']]:
  """Returns main effects and pairwise interactions from any set of structures, by least squares.

  A gate's main effect is the mean value with it on minus the mean with it off; for a loss, negative
  means that the gate helps. The fit is `v = c_∅ + Σ c_i x_i + Σ c_ij x_i x_j` with x = ±1, the
  effects are 2 c_i and the interactions 4 c_ij; on a full table these are the averages themselves,
  because the columns are orthogonal. With fewer structures than terms it is the solution of
  smallest norm, the mean left free. A term that is constant in the sample is NaN: it can't be told
  from the mean.

  Args:
    bits: `[S, n]`, 0 or 1.
    values: `[S]`; structures without a finite value are left out.

  >>> effects, _ = effects_from_sample([[0, 0], [1, 0], [0, 1], [1, 1]], [0.9, 0.7, 0.8, 0.2])
  >>> effects.round(2).tolist()
  [-0.4, -0.3]
  """
  bits, values = np.asarray(bits), np.asarray(values, np.float64)
  if bits.ndim != 2 or values.shape != bits.shape[:1]:
    raise UserError(f'expected bits [S, n] and values [S], got {bits.shape} and {values.shape}')
  finite = np.isfinite(values)
  signs = np.where(bits[finite].astype(bool), 1.0, -1.0)
  num_gates = bits.shape[1]
  first, second = np.triu_indices(num_gates, k=1)
  columns = np.concatenate([signs, signs[:, first] * signs[:, second]], axis=1)
  coefficients = np.full(columns.shape[1], np.nan)
  matrix = np.zeros((num_gates, num_gates))
  if len(columns):
    varies = columns.min(axis=0) < columns.max(axis=0)
    centred = columns[:, varies] - columns[:, varies].mean(axis=0)
    target = values[finite] - values[finite].mean()
    coefficients[varies] = np.linalg.lstsq(centred, target, rcond=None)[0]
  matrix[first, second] = matrix[second, first] = 4 * coefficients[num_gates:]
  return 2 * coefficients[:num_gates], matrix


def effect_table(bits: ArrayLike, values: ArrayLike, names: Sequence[str]) -> pd.DataFrame:
  """Returns the main effect of every gate with its interval over seeds, in gate order.

  Columns are `gate`, `effect` (mean over seeds), `ci95` (half width, NaN for one seed) and `rank`
  (1 is the gate that lowers the loss most).

  Args:
    bits: `[S, n]`, the structures.
    values: `[seeds, S]`, one loss of every structure for each seed.
    names: the n gate names.
  """
  names = [str(name) for name in names]
  if len(names) != np.shape(bits)[1]:
    raise UserError(f'{len(names)} gate names given for {np.shape(bits)[1]} gates')
  effects = np.stack([effects_from_sample(bits, losses)[0] for losses in by_seed(values)])
  effect, half_width = mean_and_ci(effects)
  return pd.DataFrame({'gate': names, 'effect': effect, 'ci95': half_width, 'rank': rank(effect)})
