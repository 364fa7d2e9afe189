"""A power law of rank and frequency: its exponent, and whether it fits.

Whether it fits is a p value, as in Clauset, Shalizi & Newman 2009 (arXiv:0706.1062, section 4): the
largest distance between the cumulative shares of the fitted ranks and those of the law is compared
with that of samples of the law, each sorted into ranks and fitted anew. Tokens of one example are
no independent draws, so a sample has as many tokens as would give the mean of ln r the variance
that it has over examples. In simulation p was below 0.1 for 3 to 17 % of 30 samples of a law, and
for all of 30 of exponential, two-level and log-normal shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy  # loads its parts when they are used
from jaxtyping import Int
from numpy.typing import ArrayLike

from additive_jax.errors import UserError, checked_seed

_LARGEST_EXPONENT = 50.0  # e^(50 ln R) is finite up to a million ranks
_PLAUSIBLE = 0.1


class PowerLaw(NamedTuple):
  """The power law of `fit_power_law`: NaN where fewer than two ranks could be fitted.

  Attributes:
    exponent, low, high: with its interval.
    num_paths, num_fitted: how many ranks there are, and how many were fitted.
    p_value: how likely a power law is to look as little like one as these tokens do.
  """

  exponent: float
  low: float
  high: float
  num_paths: int
  num_fitted: int
  p_value: float = np.nan

  @property
  def fits(self) -> bool:
    """Whether the law is plausible: its p value is not below 0.1, the choice of Clauset et al."""
    return self.p_value >= _PLAUSIBLE

  def figures(self) -> dict[str, Any]:
    """Returns the headline figures: an exponent only where the law fits."""
    fit = self if self.fits else self._replace(exponent=np.nan, low=np.nan, high=np.nan)
    return {
      'paths': self.num_paths,
      'path_law_fits': self.fits,
      'path_law_p': self.p_value,
      'path_exponent': fit.exponent,
      'path_exponent_ci95': [fit.low, fit.high],
    }


def fit_power_law(
  codes: Iterable[ArrayLike],
  level: float = 0.95,
  resamples: int = 200,
  seed: int = 0,
  min_count: int = 10,
) -> PowerLaw:
  """Returns the exponent s of `p(rank) ∝ rank^−s`, rank = 1…R, by maximum likelihood.

  With c_r tokens on the path of rank r, the log-likelihood `−s Σ c_r ln r − Σ c_r · ln Σ r^−s` is
  concave in s, and highest where the mean of ln r under the law is that of the tokens. (A straight
  line through a log–log plot is biased: Clauset, Shalizi & Newman 2009, arXiv:0706.1062, whose
  likelihood for a tail of values is here that of a head of ranks.)

  Ranks come from the same counts as frequencies: chance sorts rare paths, and the rarest were never
  seen. Paths with fewer than `min_count` tokens are therefore left out. Simulated with 3,200 and
  12,800 tokens, 30 to 100,000 paths and exponents of 1 and 1.3, the estimate was off by 0.01 on the
  mean (at most 0.03, where few examples differ much); fitting all observed ranks, up to 0.07.

  The interval is the percentile bootstrap over *examples*, because tokens of one example depend on
  each other; ranks stay those of the whole. It knows nothing of the bias above: in that simulation
  95 % intervals held the truth in 73 to 95 % of the cases. Whether a law fits, see above.

  Args:
    codes: `[N, T]`, as `path_codes` makes them, or a list of one array for each example.
    level: coverage of the interval, 0 to 1.
    resamples, seed: of the bootstrap, and of the samples of the law.
    min_count: least number of tokens on a path that is fitted; 1 fits all observed ranks.
  """
  if not 0 < level < 1 or resamples < 1:
    raise UserError(
      f'level {level} and {resamples} resamples: expected a level between 0 and 1, and at least one'
    )
  examples = [np.ravel(example) for example in codes]
  owner = np.repeat(np.arange(len(examples)), [example.size for example in examples])
  tokens = np.concatenate([*examples, np.zeros(0, np.int64)])
  _, path, counts = np.unique(tokens, return_inverse=True, return_counts=True)
  num_fitted = int((counts >= min_count).sum())
  if num_fitted < 2:
    return PowerLaw(np.nan, np.nan, np.nan, counts.size, num_fitted)
  rank, logs = places(counts)[path], np.log(np.arange(1, num_fitted + 1))
  fitted = rank < num_fitted
  owner, rank = owner[fitted], rank[fitted]
  # The law depends on the tokens through the mean of ln r alone, so two numbers for each example
  # (its tokens, and the sum of their ln r) are all that a bootstrap sample has to add up.
  number = np.bincount(owner, minlength=len(examples))
  total = np.bincount(owner, weights=logs[rank], minlength=len(examples))
  rng = np.random.default_rng(checked_seed(seed))
  draws = rng.integers(len(examples), size=(resamples, len(examples)))
  sizes = number[draws].sum(axis=1)
  means = total[draws].sum(axis=1)[sizes > 0] / sizes[sizes > 0]
  samples = [_exponent(mean, logs) for mean in means]
  low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
  mean = total.sum() / number.sum()
  exponent = _exponent(mean, logs)
  shares = np.sort(np.bincount(rank, minlength=num_fitted))[::-1] / number.sum()
  size = _independent(number, total, mean, ((logs[rank] - mean) ** 2).sum())
  p_value = _plausibility(shares, exponent, max(num_fitted, size), resamples, rng)
  return PowerLaw(exponent, float(low), float(high), counts.size, num_fitted, p_value)


def _independent(number, total, mean, spread) -> int:
  """Returns how many independent tokens would give the mean of ln r the variance that it has over
  examples with `number` tokens each, whose ln r sum to `total`; `spread` is the sum of squares."""
  excess = ((total - mean * number) ** 2).sum() / spread if spread else 1.0
  return round(number.sum() / max(excess, 1.0))


def _plausibility(shares, exponent, size, resamples, rng) -> float:
  """Returns the share of samples of a law that are as far from the law fitted to them as `shares`
  are from theirs."""
  logs = np.log(np.arange(1, len(shares) + 1))
  law = scipy.special.softmax(-exponent * logs)
  distance = np.abs(np.cumsum(shares - law)).max()
  samples = np.sort(rng.multinomial(size, law, size=resamples))[:, ::-1] / size
  distances = [
    np.abs(np.cumsum(sample - scipy.special.softmax(-_exponent(sample @ logs, logs) * logs))).max()
    for sample in samples
  ]
  return float(np.mean(np.array(distances) >= distance))


def places(counts: ArrayLike) -> Int[np.ndarray, ' ranks']:
  """Returns the place of each count in descending order, 0 first; ties by index."""
  return np.argsort(np.argsort(-np.asarray(counts), kind='stable'), kind='stable')


def _exponent(mean, logs):
  """Returns the s at which the law's mean of `logs` is `mean`, as far as it is within ±50."""
  excess = lambda s: scipy.special.softmax(-s * logs) @ logs - mean
  if excess(-_LARGEST_EXPONENT) <= 0:
    return -_LARGEST_EXPONENT
  if excess(_LARGEST_EXPONENT) >= 0:
    return _LARGEST_EXPONENT
  return float(scipy.optimize.brentq(excess, -_LARGEST_EXPONENT, _LARGEST_EXPONENT, xtol=1e-9))
