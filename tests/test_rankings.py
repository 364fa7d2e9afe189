"""Agreement of rankings, and the ceiling that noise sets, against enumeration and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from additive_jax.errors import UserError
from additive_jax.report import rankings


def test_kendall_tau_by_counting_pairs():
  a, b = [1.0, 2.0, 3.0, np.nan, 4.0], [1.0, 3.0, 2.0, 0.0, 4.0]
  assert rankings.kendall_tau(a, b) == pytest.approx((5 - 1) / 6)
  assert math.isnan(rankings.kendall_tau([1.0, np.nan], [1.0, 2.0]))
  assert math.isnan(rankings.kendall_tau([1.0, 1.0], [1.0, 2.0]))


def test_top_k_recall_and_regret():
  truth = [0.1, 0.2, 0.3, 0.4, np.nan]
  predicted = [0.5, 0.1, 0.2, np.nan, 0.0]
  assert rankings.top_k_recall(predicted, truth, 2) == 0.5
  assert rankings.regret(predicted, truth) == pytest.approx(0.1)
  assert rankings.regret(predicted, truth, k=3) == 0.0
  assert rankings.top_k_recall(predicted, truth, 4) == 1.0
  with pytest.raises(UserError, match='k=5 is not between 1 and the 4 structures'):
    rankings.top_k_recall(predicted, truth, 5)
  with pytest.raises(UserError, match=r'\(2,\) predictions given for \(3,\)'):
    rankings.regret([1, 2], [1, 2, 3])


def tied_orders(values):
  """All rankings of values, lowest first, with ties broken in every way."""
  values = np.nan_to_num(values, nan=np.inf)
  orders = itertools.permutations(range(len(values)))
  return [order for order in orders if (np.diff(values[list(order)]) >= 0).all()]


@pytest.mark.parametrize('k', [1, 2, 3, 5])
def test_recall_and_regret_are_expected_over_ties(k):
  predicted = np.array([0.2, 0.1, 0.2, 0.2, np.inf])
  truth = np.array([0.4, 0.5, 0.3, 0.3, 0.1])
  tops = [set(order[:k]) for order in tied_orders(predicted)]
  bests = [set(order[:k]) for order in tied_orders(truth)]
  recall = np.mean([len(top & best) / k for top in tops for best in bests])
  assert rankings.top_k_recall(predicted, truth, k) == pytest.approx(recall)
  loss = np.mean([truth[list(top)].min() for top in tops])
  assert rankings.regret(predicted, truth, k) == pytest.approx(loss - 0.1)


@pytest.mark.parametrize('k', [1, 2, 5, 6])
def test_random_baseline_against_all_draws(k):
  truth = np.array([0.3, 0.1, 0.9, 0.4, 0.4, 2.0])
  draws = list(itertools.combinations(range(6), k))
  best = np.argsort(truth, kind='stable')[:k]
  recall, regret = rankings.random_top_k_baseline(truth, k)
  assert recall == pytest.approx(np.mean([len(set(d) & set(best)) / k for d in draws]))
  expected = np.mean([truth[list(draw)].min() for draw in draws]) - 0.1
  assert regret == pytest.approx(expected, abs=1e-12)


def test_random_baseline_of_a_large_table_is_finite():
  recall, regret = rankings.random_top_k_baseline(np.arange(4096.0), 10)
  assert recall == 10 / 4096
  # The minimum of k numbers drawn from 0…S−1 is (S−k)/(k+1) on average.
  assert regret == pytest.approx((4096 - 10) / 11)


def simulated(truth, noise, seeds, skewed, rng):
  shape = (seeds, truth.size)
  return truth + noise * (rng.exponential(size=shape) - 1 if skewed else rng.normal(size=shape))


@pytest.mark.parametrize(
  ('shape', 'skewed', 'tolerance'),
  # Gaussian truth meets the model, and what is left is the sampling error of 40 repeats; skewed
  # truth and noise leave a bias (at most 0.07 in the docstring's simulation).
  [('gaussian', False, 0.02), ('gates', False, 0.02), ('exponential', True, 0.05)],
)
@pytest.mark.parametrize('seeds', [3, 5])
def test_ceiling_predicts_the_tau_of_two_independent_means(shape, skewed, tolerance, seeds):
  rng = np.random.default_rng(7)
  predicted, actual, single = [], [], []
  for _ in range(40):
    truth = {
      'gaussian': lambda: rng.normal(size=128),
      'gates': lambda: ((np.arange(128)[:, None] >> np.arange(7)) & 1) @ rng.normal(0, 0.7, 7),
      'exponential': lambda: rng.exponential(size=128),
    }[shape]()
    one = simulated(truth, 0.6, seeds, skewed, rng)
    two = simulated(truth, 0.6, seeds, skewed, rng)
    ceiling = rankings.noise_ceiling(one)
    predicted.append(ceiling.tau_of_mean)
    single.append(ceiling.tau_between_seeds)
    actual.append(scipy.stats.kendalltau(one.mean(axis=0), two.mean(axis=0)).statistic)
  assert np.mean(predicted) == pytest.approx(np.mean(actual), abs=tolerance)
  assert np.mean(single) < np.mean(actual) - 2 * tolerance  # one seed is not taken for the mean


def test_reliability_is_the_squared_correlation_with_the_truth():
  rng = np.random.default_rng(8)
  truth = rng.normal(size=2000)
  values = simulated(truth, 1.5, 9, False, rng)
  ceiling = rankings.noise_ceiling(values)
  assert ceiling.num_seeds == 9
  # 1 / (1 + 1.5² / 9) = 0.8, with a standard error of about 0.01 for 2,000 structures.
  assert ceiling.reliability_of_mean == pytest.approx(0.8, abs=0.03)
  assert np.corrcoef(values.mean(axis=0), truth)[0, 1] ** 2 == pytest.approx(0.8, abs=0.03)


def test_ceiling_at_the_edges():
  values = np.random.default_rng(9).normal(size=(1, 16))
  one = rankings.noise_ceiling(values)
  assert one.num_seeds == 1
  assert np.isnan(one[:3]).all()
  same = rankings.noise_ceiling(np.repeat(values, 3, axis=0))
  assert same == pytest.approx((1.0, 1.0, 1.0, 3))
  opposite = rankings.noise_ceiling(np.concatenate([values, -values]))
  assert opposite.tau_between_seeds == pytest.approx(-1.0)
  assert opposite.tau_of_mean == pytest.approx(0.0, abs=1e-6)
  lost_seed = np.concatenate([values, values, np.full((1, 16), np.nan)])
  lost_seed[0, 3] = np.inf
  assert rankings.noise_ceiling(lost_seed) == pytest.approx((1.0, 1.0, 1.0, 2))


def test_compare_rankings():
  rng = np.random.default_rng(10)
  truth = rng.normal(size=64)
  by_seed = simulated(truth, 0.3, 5, False, rng)
  good = rankings.compare_rankings(truth, by_seed, k=4)
  chance = rankings.compare_rankings(rng.normal(size=64), by_seed, k=4)
  mean = by_seed.mean(axis=0)
  assert good['tau'] == rankings.kendall_tau(truth, mean)
  assert good['tau_low'] < good['tau'] < good['tau_high']
  assert good['tau_over_ceiling'] == good['tau'] / good['tau_ceiling']
  assert good['tau_over_ceiling'] > 0.9
  assert chance['tau_low'] < 0 < chance['tau_high'] < good['tau_low']
  assert good['regret'] == rankings.regret(truth, mean, 4)
  assert 0 <= good['regret_low'] <= good['regret_high']
  assert (good['random_recall'], good['random_regret']) == rankings.random_top_k_baseline(mean, 4)
  assert (good['num_structures'], good['num_seeds'], good['k']) == (64, 5, 4)
  assert rankings.compare_rankings(truth, by_seed, k=4) == good
  assert rankings.compare_rankings(truth, by_seed, k=4, seed=1)['tau_low'] != good['tau_low']


@pytest.mark.slow
def test_interval_of_tau_covers_the_tau_of_the_population():
  # Correlation 0.7 between Gaussian pairs: τ = 2/π asin 0.7, by Greiner.
  rng = np.random.default_rng(11)
  covered = []
  for _ in range(100):
    truth = rng.normal(size=80)
    predicted = 0.7 * truth + math.sqrt(1 - 0.49) * rng.normal(size=80)
    result = rankings.compare_rankings(predicted, truth[None], k=1, num_resamples=99)
    covered.append(result['tau_low'] < 2 / math.pi * math.asin(0.7) < result['tau_high'])
  # 0.95, less three standard errors (0.02 each) and what a percentile interval of 99 draws lacks.
  assert np.mean(covered) > 0.87


def test_compare_rankings_with_gaps_and_one_seed():
  truth = np.array([[0.1, 0.2, np.nan, 0.4]])
  result = rankings.compare_rankings([0.1, 0.2, 0.0, np.inf], truth, k=1)
  assert result['num_structures'] == 2
  assert result['regret'] == 0.0
  assert math.isnan(result['regret_low'])
  assert math.isnan(result['tau_over_ceiling'])
  with pytest.raises(UserError, match='predictions given'):
    rankings.compare_rankings([1.0], truth, k=1)


def test_seeds_that_disagree_have_no_ceiling_to_measure_by():
  truth = np.arange(8.0)
  found = rankings.compare_rankings(truth, np.stack([truth, truth[::-1]]), k=2, num_resamples=9)
  assert found['tau_ceiling'] == 0
  assert np.isnan(found['tau_over_ceiling'])
