"""Search over spaces too large to enumerate, on a landscape whose optimum is known."""

import numpy as np
import pytest

from additive_jax.errors import UserError
from additive_jax.search import METHODS, Search

NUM_GATES = 30


class Landscape:
  """Gate effects plus interactions of neighbours; counts what it is asked.

  The optimum is exact: neighbours form a chain, so dynamic programming finds it.
  """

  def __init__(self, num_gates=NUM_GATES, seed=0):
    rng = np.random.default_rng(seed)
    self.effect = rng.normal(size=num_gates)
    self.pair = rng.normal(size=num_gates - 1)
    self.shapes, self.asked = [], []

  def loss(self, bits):
    return bits @ self.effect + (bits[:, 1:] & bits[:, :-1]) @ self.pair

  def __call__(self, bits):
    self.shapes.append(bits.shape)
    self.asked.extend(row.tobytes() for row in bits)
    loss = self.loss(bits)
    return loss

  def optimum(self):
    best = np.array([0.0, self.effect[0]])  # by the value of the last gate
    for effect, pair in zip(self.effect[1:], self.pair):
      best = np.array([best.min(), effect + min(best[0], best[1] + pair)])
    return best.min()


def search(evaluate, num_gates, known=None, **options):
  return Search(**options).run(evaluate, num_gates, known)


def distinct(bits):
  return len(np.unique(bits, axis=0))


def test_the_optimum_of_the_landscape_is_what_enumeration_finds():
  small = Landscape(num_gates=10)
  bits = (np.arange(1024)[:, None] >> np.arange(10) & 1).astype(bool)
  assert small.optimum() == pytest.approx(small.loss(bits).min())


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_evolution_comes_near_the_optimum_and_beats_random(seed):
  landscape = Landscape(seed=seed)
  evolved = search(landscape, NUM_GATES, budget=1536, seed=seed)
  drawn = search(landscape, NUM_GATES, budget=1536, seed=seed, method='random')
  optimum = landscape.optimum()
  # 1,536 of 2^30 structures. Random draws miss by a quarter of the optimum or more.
  assert evolved.cost.min() <= optimum * 0.98
  assert drawn.cost.min() > optimum * 0.8
  np.testing.assert_allclose(landscape.loss(evolved.bits), evolved.cost)


@pytest.mark.parametrize('method', METHODS)
def test_nothing_is_evaluated_twice_and_every_call_has_one_shape(method):
  landscape = Landscape()
  found = search(landscape, NUM_GATES, budget=512, population=32, method=method)
  assert found.bits.shape == (512, NUM_GATES)
  assert distinct(found.bits) == 512
  assert len(set(landscape.asked)) == len(landscape.asked) == 512
  assert set(landscape.shapes) == {(32, NUM_GATES)}
  assert found.bits[0].all()
  assert not found.bits[1].any()


def test_a_budget_that_ends_within_a_generation():
  landscape = Landscape()
  found = search(landscape, NUM_GATES, budget=100, population=32)
  assert len(found.bits) == len(found.cost) == distinct(found.bits) == 100
  assert set(landscape.shapes) == {(32, NUM_GATES)}
  longer = search(landscape, NUM_GATES, budget=128, population=32)
  np.testing.assert_array_equal(found.bits, longer.bits[:100])


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('population', [4, 7])
def test_the_whole_of_a_small_space_can_be_searched(method, population):
  found = search(Landscape(num_gates=5), 5, budget=32, population=population, method=method)
  assert distinct(found.bits) == 32


def test_the_seed_decides():
  runs = [search(Landscape(), NUM_GATES, budget=256, seed=seed).bits for seed in (3, 3, 4)]
  np.testing.assert_array_equal(runs[0], runs[1])
  assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('evaluated', [0, 1, 64, 100, 256])
def test_resumed_equals_uninterrupted(method, evaluated):
  whole = search(Landscape(), NUM_GATES, budget=256, seed=5, method=method)
  again = Landscape()
  known = tuple(part[:evaluated] for part in whole)
  resumed = search(again, NUM_GATES, budget=256, seed=5, method=method, known=known)
  for one, other in zip(whole, resumed):
    np.testing.assert_array_equal(one, other)
  assert len(again.asked) == 256 - evaluated // 64 * 64


def test_what_fills_the_budget_is_not_evaluated_again():
  whole = search(Landscape(), NUM_GATES, budget=100, population=32)
  again = Landscape()
  known = search(again, NUM_GATES, budget=100, population=32, known=whole)
  assert not again.asked
  for one, other in zip(whole, known):
    np.testing.assert_array_equal(one, other)
  # Of a larger budget only the whole generations count.
  longer = search(again, NUM_GATES, budget=128, population=32, known=whole)
  assert len(again.asked) == 32
  assert len(longer.bits) == distinct(longer.bits) == 128


def test_losses_that_are_not_finite_have_no_children():
  # Half the space is NaN, the half with gate 0 on; NumPy alone would sort NaN last but -inf first.
  def evaluate(bits):
    loss = np.where(bits[:, 0], np.where(bits[:, 1], np.nan, -np.inf), bits.sum(1))
    return loss

  found = search(evaluate, 16, budget=512, population=32)
  late = found.bits[256:]
  assert late[:, 0].mean() < 0.2
  np.testing.assert_array_equal(found.best(1), np.zeros((1, 16), bool))


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'budget': 63}, '^budget 63: expected at least one population of 64'),
    ({'budget': 1025}, r'^budget 1025: expected at most 2\^10 = 1024.*enumerate'),
    ({'budget': 128, 'method': 'annealing'}, "method 'annealing': expected one of evolution, rand"),
    ({'budget': 128, 'population': 3}, 'population 3: expected at least 4'),
    ({'budget': 128, 'known': (np.ones((3, 9)), [1] * 3)}, r'known structures \(3, 9\)'),
    ({'budget': 128, 'known': (np.ones((3, 10)), [1] * 2)}, r'costs \(2,\)'),
  ],
)
def test_what_cannot_be_searched(options, words):
  with pytest.raises(UserError, match=words):
    search(Landscape(num_gates=10), 10, **options)
