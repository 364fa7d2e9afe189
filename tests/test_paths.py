"""Statistics of tokens' choices against counters, loops, samples of a known law, scikit-learn."""

import collections
import itertools
import string

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from additive_jax.errors import UserError
from additive_jax.report import paths, power_law

EXACT = 1e-12  # double precision sums of a few thousand numbers of size one


def draw(examples=7, tokens=11, steps=3, k=2, modules=5, seed=0):
  """Choices of distinct modules, low numbers more often; module `modules - 1` only now and then."""
  rng = np.random.default_rng(seed)
  keys = rng.gumbel(size=(examples, tokens, steps, modules)) - 0.7 * np.arange(modules)
  return np.argsort(-keys, axis=-1)[..., :k]


def sets_of(chosen):
  """Each token's path as a tuple of frozensets, in order."""
  flat = chosen.reshape(-1, *chosen.shape[2:])
  return [tuple(frozenset(map(int, step)) for step in token) for token in flat]


@pytest.mark.parametrize('shape', [{}, {'k': 1}, {'k': 4, 'modules': 9}, {'steps': 1}], ids=str)
def test_path_codes_against_a_counter(shape):
  chosen = draw(**shape)
  codes = paths.path_codes(chosen)
  assert codes.shape == chosen.shape[:2]
  found = sets_of(chosen)
  counter = collections.Counter(found)
  assert len(set(zip(found, codes.ravel().tolist()))) == len(counter)  # one code for each path
  expected = sorted(counter.values(), reverse=True)
  assert [counter[found[list(codes.ravel()).index(i)]] for i in range(len(counter))] == expected
  np.testing.assert_array_equal(paths.rank_frequency(codes), expected)


def test_path_codes_ignore_the_order_within_a_step_but_not_that_of_steps():
  chosen = np.array([[[[0, 1], [2, 3]], [[1, 0], [3, 2]], [[2, 3], [0, 1]]]])
  np.testing.assert_array_equal(paths.path_codes(chosen), [[0, 0, 1]])
  # As frequent as each other: smallest modules first, wherever they stand.
  np.testing.assert_array_equal(paths.path_codes(chosen[:, [2, 0]]), [[1, 0]])


def test_path_codes_of_more_paths_than_an_integer_counts():
  """60 modules in 24 choices are 60^24 possible paths."""
  chosen = draw(examples=2, tokens=40, steps=6, k=4, modules=60)
  chosen = np.concatenate([chosen, chosen[..., ::-1], chosen[:, :, ::-1]])
  codes = paths.path_codes(chosen)
  counter = collections.Counter(sets_of(chosen))
  np.testing.assert_array_equal(codes[:2], codes[2:4])
  assert len(np.unique(codes)) == len(counter)
  np.testing.assert_array_equal(paths.rank_frequency(codes), sorted(counter.values())[::-1])


def zipf(exponent, num_paths, examples, tokens, seed=0):
  chance = np.arange(1.0, num_paths + 1) ** -exponent
  rng = np.random.default_rng(seed)
  return rng.choice(num_paths, (examples, tokens), p=chance / chance.sum())


@pytest.mark.parametrize('exponent', [0.6, 1.0, 1.7])
def test_the_exponent_of_a_known_law(exponent):
  codes = zipf(exponent, 40, examples=150, tokens=64)
  law = power_law.fit_power_law(codes)
  assert law.low < exponent < law.high
  assert law.low < law.exponent < law.high
  # The standard error of 9,600 independent draws is about 0.01.
  assert law.high - law.low < 0.08
  renamed = np.random.default_rng(0).permutation(40)[codes]
  other = power_law.fit_power_law(renamed)
  assert other.exponent == pytest.approx(law.exponent, abs=1e-9)
  # Paths as frequent as each other take other ranks, which the samples of the bootstrap tell apart.
  assert other[:3] == pytest.approx(law[:3], abs=0.005)
  assert power_law.fit_power_law(list(codes)) == law


def test_samples_of_a_law_are_plausible_and_others_are_not():
  """Under the law p values are even, so that one in ten is refused."""
  of_law = [
    power_law.fit_power_law(zipf(1.0, 40, 60, 32, seed), resamples=50) for seed in range(12)
  ]
  assert sum(law.fits for law in of_law) >= 9
  rng = np.random.default_rng(0)
  others = [
    np.minimum(rng.geometric(0.15, (60, 32)), 40),
    rng.choice(40, (60, 32), p=np.repeat([0.045, 0.005], 20)),
  ]
  assert not any(power_law.fit_power_law(codes, resamples=50).fits for codes in others)
  # Tokens that repeat their example's path are no further evidence against a law.
  few = zipf(1.0, 12, examples=300, tokens=1)
  many = power_law.fit_power_law(np.repeat(few, 50, axis=1), min_count=500)
  assert many.fits == power_law.fit_power_law(few).fits


def test_the_fit_is_where_the_likelihood_is_highest():
  codes = zipf(1.1, 25, examples=20, tokens=30)
  counts = np.array(sorted(collections.Counter(codes.ravel().tolist()).values(), reverse=True))
  law = power_law.fit_power_law(codes, min_count=1)
  assert law.num_paths == law.num_fitted == len(counts)
  ranks = np.arange(1, len(counts) + 1)

  def likelihood(s):
    return -(counts * (s * np.log(ranks) + np.log(np.sum(ranks**-s)))).sum()

  grid = np.linspace(0, 3, 3001)
  best = grid[np.argmax([likelihood(s) for s in grid])]
  assert law.exponent == pytest.approx(best, abs=1e-3)  # the width of the grid


def test_rare_paths_are_left_out_of_the_fit():
  """With 10,000 paths and 6,400 tokens most have been seen once or never."""
  codes = zipf(1.0, 10_000, examples=100, tokens=64)
  law, every = power_law.fit_power_law(codes), power_law.fit_power_law(codes, min_count=1)
  assert abs(law.exponent - 1) < 0.04 < abs(every.exponent - 1)
  assert law.num_paths == every.num_paths == every.num_fitted == len(np.unique(codes))
  assert law.num_fitted == (np.unique(codes, return_counts=True)[1] >= 10).sum()


def test_the_interval_is_over_examples():
  """Tokens that repeat their example's path bring no more evidence."""
  codes = zipf(1.0, 12, examples=300, tokens=1)
  one = power_law.fit_power_law(codes)
  repeated = power_law.fit_power_law(np.repeat(codes, 50, axis=1), min_count=500)
  assert repeated == pytest.approx(one, abs=1e-9)
  independent = power_law.fit_power_law(zipf(1.0, 12, examples=300, tokens=50))
  # 50 times the evidence is 7 times less width; the bootstrap itself is good to a tenth.
  assert 4 < (one.high - one.low) / (independent.high - independent.low) < 11


@pytest.mark.parametrize(
  ('codes', 'num_paths'),
  [(np.zeros((4, 30), int), 1), (np.zeros((0, 5), int), 0), ([], 0), (np.eye(4, dtype=int), 2)],
)
def test_too_few_paths_have_no_exponent(codes, num_paths):
  law = power_law.fit_power_law(codes)
  assert np.isnan(law[:3]).all()
  assert law.num_paths == num_paths


def test_an_extreme_law_stays_finite():
  codes = np.zeros((50, 40), int)
  codes[0, :10] = 1  # most resamples have one path only, or nearly
  law = power_law.fit_power_law(codes)
  assert law.exponent == pytest.approx(np.log2(1990 / 10), abs=1e-6)
  assert np.isfinite(law).all()


def test_specialisation_against_loops():
  chosen = draw(modules=6)
  chosen = np.where(chosen == 5, 6, chosen)  # module 5 is dead
  classes = np.random.default_rng(1).integers(0, 3, chosen.shape[:2])
  found = paths.specialisation(chosen, classes, 7, 4)
  pairs = [
    (int(module), int(classes[n, t]))
    for n, t in np.ndindex(classes.shape)
    for module in chosen[n, t].ravel()
  ]
  for module, label in itertools.product(range(7), range(4)):
    own = [c for m, c in pairs if m == module]
    share = np.mean([c == label for c in own]) if own else np.nan
    assert found.share[module, label] == pytest.approx(share, abs=EXACT, nan_ok=True)
    base = np.mean(classes == label)
    lift = share / base if base else np.nan
    assert found.lift[module, label] == pytest.approx(lift, abs=EXACT, nan_ok=True)
  assert np.isnan(found.share[5]).all()
  assert np.isnan(found.lift[:, 3]).all()  # a class without tokens


def test_classes_of_examples_are_those_of_their_tokens():
  chosen, labels = draw(), np.arange(7) % 3
  tokens = np.repeat(labels[:, None], 11, axis=1)
  one, other = (paths.specialisation(chosen, classes, 5, 3) for classes in (labels, tokens))
  np.testing.assert_array_equal(one.lift, other.lift)
  np.testing.assert_array_equal(
    paths.information(chosen, labels, 5, 3).bits, paths.information(chosen, tokens, 5, 3).bits
  )


def test_information_against_scikit_learn():
  chosen = draw(examples=20)
  classes = np.random.default_rng(2).integers(0, 4, chosen.shape[:2])
  found = paths.information(chosen, classes, 5, 4)
  for step in range(3):
    expected = mutual_info_score(np.repeat(classes.ravel(), 2), chosen[:, :, step].ravel())
    assert found.bits[step] == pytest.approx(expected / np.log(2), abs=EXACT)


def test_information_where_there_is_some_and_where_there_is_none():
  rng = np.random.default_rng(3)
  classes = rng.integers(0, 4, (40, 25))
  chosen = np.stack([classes, rng.integers(0, 4, classes.shape)], axis=2)[..., None]
  found = paths.information(chosen, classes, 4, 4)
  assert found.bits[0] == pytest.approx(2, abs=0.01)  # four classes, nearly even
  # The bias of 1,000 tokens is (4−1)(4−1) / (2 · 1,000 ln 2) bits; its spread is half of that.
  bias = 9 / (2 * 1000 * np.log(2))
  assert found.shuffled == pytest.approx([bias, bias], abs=0.6 * bias)
  assert found.bits[1] < 4 * bias
  again = paths.information(chosen, classes, 4, 4)
  np.testing.assert_array_equal(found.shuffled, again.shuffled)
  assert not np.array_equal(
    found.shuffled, paths.information(chosen, classes, 4, 4, seed=1).shuffled
  )


def test_the_control_shuffles_examples_where_classes_are_theirs():
  """Examples that are all of one module tell much of their own class by chance alone."""
  rng = np.random.default_rng(4)
  module, labels = rng.integers(0, 3, 12), rng.integers(0, 3, 12)
  chosen = np.broadcast_to(module[:, None, None, None], (12, 200, 1, 1))
  of_examples = paths.information(chosen, labels, 3, 3, shuffles=50).shuffled[0]
  of_tokens = paths.information(chosen, np.repeat(labels[:, None], 200, 1), 3, 3).shuffled[0]
  assert of_examples > 0.1
  assert of_tokens < 0.01


def test_compute_share_by_hand():
  chosen = np.array([[[[0, 1], [2, 3]], [[2, 3], [3, 2]], [[0, 2], [1, 0]]]])
  share = paths.compute_share(chosen, [False, False, True, True])
  np.testing.assert_allclose(share, [[0.5, 0.0, 0.75]])
  np.testing.assert_array_equal(paths.compute_share(chosen, [False] * 4), np.ones((1, 3)))


def test_reuse_against_loops():
  chosen, identity = draw(), np.array([0, 0, 1, 0, 1], bool)
  counts = paths.reuse(chosen, 5)
  expected, ratios = np.zeros((5, 4), int), []
  for token in chosen.reshape(-1, 3, 2):
    for module in range(5):
      uses = int((token == module).sum())
      expected[module, uses] += 1
      if uses and not identity[module]:
        ratios.append(uses)
  np.testing.assert_array_equal(counts, expected)
  assert paths.mean_uses(counts, identity) == pytest.approx(np.mean(ratios), abs=EXACT)
  assert np.isnan(paths.mean_uses(counts, [True] * 5))


def test_flows_against_loops():
  chosen = draw(steps=4)
  expected = np.zeros((3, 5, 5))
  for token in chosen.reshape(-1, 4, 2):
    for step in range(3):
      for i, j in itertools.product(token[step], token[step + 1]):
        expected[step, i, j] += 1
  found = paths.flows(chosen, 5)
  np.testing.assert_allclose(found, expected / expected[0].sum(), atol=EXACT)
  np.testing.assert_allclose(found.sum(axis=(1, 2)), 1, atol=EXACT)
  # What comes in at a step goes out of it.
  np.testing.assert_allclose(found[0].sum(axis=0), found[1].sum(axis=1), atol=EXACT)
  assert paths.flows(chosen[:, :, :1], 5).shape == (0, 5, 5)


def test_byte_classes_of_every_byte():
  classes = paths.byte_classes(np.arange(256, dtype=np.uint8).reshape(16, 16)).ravel()
  names = np.array(paths.BYTE_CLASSES)[classes]
  for byte, name in enumerate(names):
    char = chr(byte)
    expected = 'other'
    for members, title in [
      (string.ascii_lowercase, 'lower-case letter'),
      (string.ascii_uppercase, 'upper-case letter'),
      ('0123456789', 'digit'),
      (' \t\v\f', 'space'),
      ('\r\n', 'newline'),
      (string.punctuation, 'punctuation'),
    ]:
      expected = title if char in members else expected
    assert name == expected
  assert set(names) == set(paths.BYTE_CLASSES)


def test_utilisation():
  index = np.array([[0, 0], [0, 2], [3, 0]])
  np.testing.assert_allclose(paths.utilisation(index, 4), [4 * 4 / 6, 0, 4 / 6, 4 / 6])
  assert paths.utilisation(index, 4).mean() == pytest.approx(1)
  assert np.isnan(paths.utilisation(np.zeros(0, int), 3)).all()


def test_one_module_one_step_and_no_tokens():
  chosen = np.zeros((2, 3, 1, 1), int)
  assert (paths.path_codes(chosen) == 0).all()
  np.testing.assert_array_equal(paths.reuse(chosen, 1), [[0, 6]])
  assert paths.information(chosen, np.arange(6).reshape(2, 3), 1, 6).bits == pytest.approx(0)
  nothing = np.zeros((0, 4, 2, 2), int)
  assert paths.path_codes(nothing).shape == (0, 4)
  assert paths.rank_frequency(paths.path_codes(nothing)).size == 0
  assert np.isnan(paths.flows(nothing, 3)).all()
  assert np.isnan(paths.specialisation(nothing, np.zeros((0, 4), int), 3, 2).lift).all()
  assert np.isnan(paths.information(nothing, np.zeros((0, 4), int), 3, 2).bits).all()


def test_bad_input():
  chosen = draw()
  with pytest.raises(UserError, match=r'\[examples, tokens, steps, k\], got shape \(11, 3, 2\)'):
    paths.path_codes(chosen[0])
  with pytest.raises(UserError, match='whole numbers for modules, got float64'):
    paths.path_codes(chosen * 1.0)
  with pytest.raises(UserError, match='-1 among the modules'):
    paths.path_codes(chosen - 1)
  with pytest.raises(UserError, match=r'4 among the modules.*under 4'):
    paths.flows(chosen, 4)
  with pytest.raises(UserError, match=r'choices \[0, 0\] at \(0, 0, 0\)'):
    paths.reuse(np.zeros((1, 1, 1, 2), int), 2)
  with pytest.raises(UserError, match=r'\[7, 11\] of tokens or \[7\] of examples, got \(11,\)'):
    paths.specialisation(chosen, np.zeros(11, int), 5, 2)
  with pytest.raises(UserError, match=r'2 among the classes.*under 2'):
    paths.information(chosen, np.full(7, 2), 5, 2)
  with pytest.raises(UserError, match=r'256 among the bytes.*under 256'):
    paths.byte_classes([256])
  with pytest.raises(UserError, match=r'level 1.5 and 200 resamples'):
    power_law.fit_power_law(chosen[..., 0, 0], level=1.5)
