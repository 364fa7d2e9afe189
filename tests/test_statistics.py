"""The statistics against brute force, hand-worked answers and simulation."""

import itertools
import logging
import math

import numpy as np
import pytest

from additive_jax.errors import UserError
from additive_jax.report import statistics

EXACT = 1e-12  # double precision sums of a few hundred numbers of size one


def all_bits(num_gates):
  return (np.arange(2**num_gates)[:, None] >> np.arange(num_gates)) & 1


def test_mean_and_ci_against_the_textbook():
  mean, half_width = statistics.mean_and_ci([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
  np.testing.assert_allclose(mean, [2, 5])
  # t(0.975, 2 degrees of freedom) = 4.302653, standard deviation 1, three seeds.
  np.testing.assert_allclose(half_width, [4.302653 / math.sqrt(3), 0], atol=1e-6)


def test_mean_and_ci_covers_the_truth_as_often_as_it_says():
  values = np.random.default_rng(0).normal(3.0, 2.0, (4, 20000))
  mean, half_width = statistics.mean_and_ci(values, level=0.9)
  # The standard error of a share of 20,000 is 0.002.
  assert np.mean(abs(mean - 3.0) < half_width) == pytest.approx(0.9, abs=0.008)


def test_mean_and_ci_leaves_out_what_is_not_finite(caplog):
  values = [[1.0, np.nan, np.nan], [3.0, 4.0, np.inf]]
  with caplog.at_level(logging.WARNING, logger='additive_jax'):
    mean, half_width = statistics.mean_and_ci(values)
  np.testing.assert_array_equal(mean, [2, 4, np.nan])
  np.testing.assert_array_equal(np.isnan(half_width), [False, True, True])
  assert '3 of 6 values' in caplog.text


def test_one_seed_has_no_interval():
  mean, half_width = statistics.mean_and_ci([[1.0, 2.0]])
  np.testing.assert_array_equal(mean, [1, 2])
  assert np.isnan(half_width).all()


@pytest.mark.parametrize('num_gates', [0, 1, 2, 5])
def test_walsh_hadamard_against_its_definition(num_gates):
  values = np.random.default_rng(num_gates).normal(size=2**num_gates)
  signs = 2 * all_bits(num_gates) - 1
  expected = [
    np.mean(values * np.prod(signs[:, all_bits(num_gates)[subset] == 1], axis=1))
    for subset in range(2**num_gates)
  ]
  np.testing.assert_allclose(statistics.walsh_hadamard(values), expected, atol=EXACT)


def brute_effects(values, num_gates):
  bits = all_bits(num_gates)
  effects = [
    values[bits[:, i] == 1].mean() - values[bits[:, i] == 0].mean() for i in range(num_gates)
  ]
  matrix = np.zeros((num_gates, num_gates))
  for i, j in itertools.permutations(range(num_gates), 2):

    def mean(a, b, i=i, j=j):
      return values[(bits[:, i] == a) & (bits[:, j] == b)].mean()

    matrix[i, j] = (mean(1, 1) - mean(0, 1)) - (mean(1, 0) - mean(0, 0))
  return np.array(effects), matrix


@pytest.mark.parametrize('num_gates', [1, 2, 6])
def test_effects_and_interactions_against_averages(num_gates):
  values = np.random.default_rng(num_gates).normal(size=2**num_gates)
  effects, matrix = brute_effects(values, num_gates)
  np.testing.assert_allclose(statistics.interactions(values), matrix, atol=EXACT)
  from_sample = statistics.effects_from_sample(all_bits(num_gates), values)
  np.testing.assert_allclose(from_sample[0], effects, atol=1e-10)  # least squares by an SVD
  np.testing.assert_allclose(from_sample[1], matrix, atol=1e-10)


def test_gate_zero_is_bit_zero():
  # Loss 10 with gate 0 on; structure '100' is integer 1.
  effects, _ = statistics.effects_from_sample(all_bits(3), [0, 10, 0, 10, 0, 10, 0, 10])
  np.testing.assert_allclose(effects, [10, 0, 0], atol=1e-10)
  np.testing.assert_allclose(statistics.walsh_hadamard([0, 10] * 4)[:3], [5, 5, 0], atol=EXACT)


def test_effects_from_a_sample_recover_a_pairwise_truth():
  rng = np.random.default_rng(1)
  bits = rng.permutation(all_bits(8))[:80]
  values = 2.0 - 0.3 * bits[:, 2] + 0.5 * bits[:, 1] * bits[:, 4]
  values = np.where(np.arange(80) == 7, np.nan, values)
  effects, matrix = statistics.effects_from_sample(bits, values)
  np.testing.assert_allclose(effects, [0, 0.25, -0.3, 0, 0.25, 0, 0, 0], atol=1e-10)
  assert matrix[1, 4] == pytest.approx(0.5)
  assert matrix[4, 1] == pytest.approx(0.5)
  assert abs(matrix).sum() == pytest.approx(1.0)


def test_effects_from_too_few_structures_leave_the_mean_free():
  rng = np.random.default_rng(2)
  bits = rng.integers(0, 2, (12, 10))
  low, _ = statistics.effects_from_sample(bits, rng.normal(size=12))
  same, _ = statistics.effects_from_sample(bits, np.random.default_rng(3).normal(size=12))
  constant, matrix = statistics.effects_from_sample(bits, np.full(12, 7.0))
  np.testing.assert_allclose(constant, 0, atol=EXACT)
  np.testing.assert_allclose(matrix, 0, atol=EXACT)
  assert not np.allclose(low, same)


def test_a_gate_that_never_changes_has_no_effect_to_report():
  bits = np.array([[1, 0], [1, 1], [1, 0]])
  effects, matrix = statistics.effects_from_sample(bits, [2.0, 1.0, 2.0])
  assert np.isnan(effects[0])
  # Gate 1 and the pair are one column here; the smallest solution gives each half.
  assert effects[1] == pytest.approx(-0.5)
  assert matrix[0, 1] == pytest.approx(-1.0)


def test_effect_table():
  rng = np.random.default_rng(4)
  bits = all_bits(3)
  values = bits @ [0.5, -1.0, 0.0] + rng.normal(0, 0.01, (5, 8))
  table = statistics.effect_table(bits, values, ['a', 'b', 'c'])
  assert list(table.columns) == ['gate', 'effect', 'ci95', 'rank']
  assert list(table['gate']) == ['a', 'b', 'c']
  assert list(table['rank']) == [3, 1, 2]
  np.testing.assert_allclose(
    table['effect'], [0.5, -1, 0], atol=0.03
  )  # 0.01 / √10 a standard error
  assert (table['ci95'] > 0).all()
  with pytest.raises(UserError, match='2 gate names given for 3 gates'):
    statistics.effect_table(bits, values, ['a', 'b'])


def test_rank_is_stable_and_puts_what_is_not_finite_last():
  ranks = statistics.rank([2.0, np.nan, 1.0, 2.0, -np.inf, 0.5])
  assert ranks.tolist() == [3, 5, 2, 4, 6, 1]
  assert ranks.dtype == np.int64


def test_pareto_front_against_its_definition():
  rng = np.random.default_rng(5)
  for size in (1, 2, 40):
    cost, loss = rng.integers(0, 6, size).astype(float), rng.integers(0, 6, size).astype(float)
    expected = [
      not any(
        (cost[j] <= cost[i] and loss[j] <= loss[i]) and (cost[j] < cost[i] or loss[j] < loss[i])
        for j in range(size)
      )
      for i in range(size)
    ]
    assert statistics.pareto_front(cost, loss).tolist() == expected


def test_pareto_front_leaves_out_what_is_not_finite():
  front = statistics.pareto_front([1, 2, np.nan, 0], [5.0, 1.0, 0.0, np.nan])
  assert front.tolist() == [True, True, False, False]
  assert statistics.pareto_front([], []).shape == (0,)


def test_tables_of_the_wrong_shape_are_refused():
  with pytest.raises(UserError, match=r'2\^n structures, got shape \(6,\)'):
    statistics.interactions(np.zeros(6))
  with pytest.raises(UserError, match=r'\[seeds, structures\].*\(4,\)'):
    statistics.mean_and_ci(np.zeros(4))
  with pytest.raises(UserError, match=r'\(4, 2\) and \(3,\)'):
    statistics.effects_from_sample(np.zeros((4, 2)), np.zeros(3))
