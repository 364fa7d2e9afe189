"""Statistics of a table of structures: intervals, gate effects, interactions, the Pareto front.

The statistics of rankings live in `rankings` and are reached from here too.

Everything here is NumPy on plain arrays. S is a number of structures, n a number of gates, `seeds`
a number of repeated trainings. A table of all 2^n structures is in integer order (gate i is bit i).
Losses: lower is better.
"""

import logging

import numpy as np
import pandas as pd
import scipy.stats

from additive_jax.errors import UserError
from additive_jax.report.rankings import (
  NoiseCeiling,
  by_seed,
  compare_rankings,
  finite_mean,
  kendall_tau,
  noise_ceiling,
  random_top_k_baseline,
  rank,
  regret,
  top_k_recall,
)

__all__ = [
  'NoiseCeiling',
  'compare_rankings',
  'effect_table',
  'effects_from_sample',
  'finite_count',
  'gate_effects',
  'interactions',
  'kendall_tau',
  'mean_and_ci',
  'noise_ceiling',
  'pareto_front',
  'random_top_k_baseline',
  'rank',
  'regret',
  'top_k_recall',
  'walsh_hadamard',
]

log = logging.getLogger('additive_jax')


def finite_count(values):
  """Number of finite values of each structure: `values [seeds, S]` gives `[S]` integers."""
  return np.isfinite(by_seed(values)).sum(axis=0)


def mean_and_ci(values, level=0.95):
  """Mean over seeds and the half width of Student's t interval, `t_{(1+level)/2, m−1} · s / √m`.

  Args:
    values: `[seeds, S]`; a non-finite value is left out of its structure, and the number left out
      is logged.
    level: coverage of the interval, 0 to 1.

  Returns:
    `(mean [S], half_width [S])`. The half width is NaN where fewer than two values are finite, the
    mean where none is; `finite_count` gives m for each structure.
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


def walsh_hadamard(values):
  """Walsh–Hadamard coefficients of a function of n gates, in O(n 2^n).

  With the sign `x_i = +1` where gate i is on and −1 where it is off, and T a set of gates, `c_T =
  2^−n Σ_s v(s) Π_{i∈T} x_i(s)`, so that `v(s) = Σ_T c_T Π_{i∈T} x_i(s)`: c_∅ is the mean. (Gates
  read 0 for off, so this is the usual transform with the sign turned for every gate in T.)

  Args:
    values: `[2^n]` in integer order. One NaN makes every coefficient NaN; see `effects_from_sample`
      for gaps.

  Returns:
    `[2^n]`; entry t is c_T for the set T of the bits of t.
  """
  values = np.asarray(values, np.float64)
  num_gates = _log2_length(values)
  table = values.reshape((2,) * num_gates)
  for axis in range(num_gates):
    off, on = np.take(table, 0, axis=axis), np.take(table, 1, axis=axis)
    table = np.stack([on + off, on - off], axis=axis)
  return table.reshape(-1) / values.size


def gate_effects(values):
  """Main effect of each gate, `[n]`: mean of `values [2^n]` with it on minus the mean with it off.

  It is 2 c_{i} of `walsh_hadamard`. For a loss, a negative effect means that the gate helps.
  """
  coefficients = walsh_hadamard(values)
  return 2 * coefficients[1 << np.arange(_log2_length(coefficients))]


def interactions(values):
  """Pairwise interactions of `values [2^n]`: `[n, n]`, symmetric, with a zero diagonal.

  Entry (i, j) is 4 c_{ij} of `walsh_hadamard`, the difference of differences: the mean of `v(11) −
  v(10) − v(01) + v(00)` (gates i, j) over all settings of the other gates: how much the effect of
  gate i grows when gate j is turned on. Positive for a loss: the two gates can stand in for each
  other.
  """
  coefficients = walsh_hadamard(values)
  bit = 1 << np.arange(_log2_length(coefficients))
  matrix = 4 * coefficients[bit[:, None] | bit[None, :]]
  np.fill_diagonal(matrix, 0.0)
  return matrix


def effects_from_sample(bits, values):
  """Main effects and pairwise interactions from any set of structures, by least squares.

  Fits `v = c_∅ + Σ c_i x_i + Σ c_ij x_i x_j` with x = ±1 and reports 2 c_i and 4 c_ij, as
  `gate_effects` and `interactions` do; on a full table it equals them, because the columns are
  orthogonal. With fewer structures than terms, the least-squares solution of smallest norm, the
  mean left free. A term that is constant in the sample is NaN: it can't be told from the mean.

  Args:
    bits: `[S, n]`, 0 or 1.
    values: `[S]`; structures without a finite value are left out.

  Returns:
    `(effects [n], interactions [n, n])`, the diagonal zero.
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


def effect_table(bits, values_by_seed, names):
  """The main effect of every gate with its interval over seeds, as a frame in gate order.

  Args:
    bits: `[S, n]`, the structures.
    values_by_seed: `[seeds, S]`, one loss of every structure for each seed.
    names: the n gate names.

  Returns:
    A frame with columns `gate`, `effect` (mean over seeds), `ci95` (half width, NaN for one seed)
    and `rank` (1 is the gate that lowers the loss most).
  """
  values_by_seed = by_seed(values_by_seed)
  names = [str(name) for name in names]
  if len(names) != np.shape(bits)[1]:
    raise UserError(f'{len(names)} gate names given for {np.shape(bits)[1]} gates')
  effects = np.stack([effects_from_sample(bits, values)[0] for values in values_by_seed])
  effect, half_width = mean_and_ci(effects)
  return pd.DataFrame({'gate': names, 'effect': effect, 'ci95': half_width, 'rank': rank(effect)})


def pareto_front(cost, loss):
  """Which structures no other beats, by being lower in cost or loss and no higher in the other.

  Args:
    cost: `[S]`, for example FLOPs.
    loss: `[S]`.

  Returns:
    Booleans `[S]`. Exact duplicates do not beat each other: all of them are on the front, or none.
    What is not finite is not.
  """
  cost, loss = np.asarray(cost, np.float64), np.asarray(loss, np.float64)
  front = np.zeros(cost.shape, bool)
  index = np.flatnonzero(np.isfinite(cost) & np.isfinite(loss))
  costs, group = np.unique(cost[index], return_inverse=True)
  lowest = np.full(costs.shape, np.inf)
  np.minimum.at(lowest, group, loss[index])
  cheaper = np.concatenate([[np.inf], np.minimum.accumulate(lowest)[:-1]])[: costs.size]
  front[index] = (loss[index] == lowest[group]) & (lowest < cheaper)[group]
  return front


def _log2_length(values):
  size = np.size(values)
  if np.ndim(values) != 1 or size < 1 or size & (size - 1):
    raise UserError(f'expected one value for each of 2^n structures, got shape {np.shape(values)}')
  return size.bit_length() - 1
