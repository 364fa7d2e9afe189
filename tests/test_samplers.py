"""Samplers as distributions: what they draw, that devices have no say, and that numbers are data.

A new sampler joins with one row of `ROWS`.
"""

import collections
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from additive_jax import UserError
from additive_jax.gates.structure import all_bits
from additive_jax.parallel import mesh as mesh_
from additive_jax.train import samplers
from additive_jax.train.ranking_samplers import Held
from additive_jax.train.samplers import KeepRates

NUM_GATES = 3
DRAWS = 4000


class Row(NamedTuple):
  name: str
  options: dict
  share: np.ndarray  # of each of the 2^n structures in integer order, over slots and steps
  slots: int = 4  # K


def independent(rates):
  """Probability of each structure when gate i is on with its own rate."""
  return np.where(all_bits(len(rates)), rates, 1 - np.asarray(rates)).prod(-1)


def counted(values, weights=1):
  share = np.bincount(values, weights * np.ones(len(values)), minlength=8)
  return share / share.sum()


LINEAR = 1 - np.array([1, 2, 3]) / 3 * 0.4
EXPONENTIAL = 0.6 ** (np.array([1, 2, 3]) / 3)
ROWS = {
  'fixed': Row('fixed', {'structures': ['101']}, counted([5])),
  'fixed to all-on': Row('fixed', {}, counted([7])),
  'listed': Row('listed', {'structures': ['100', '011']}, counted([1, 6])),
  'listed, with repeats': Row('listed', {'structures': [2, 2, 3, 7, 2]}, counted([2, 2, 3, 7, 2])),
  'uniform': Row('uniform', {}, np.full(8, 1 / 8)),
  'bernoulli': Row('bernoulli', {'keep': KeepRates(rate=0.8)}, independent([0.8] * 3)),
  'bernoulli, linear': Row(
    'bernoulli', {'keep': KeepRates(rate=0.6, ramp='linear')}, independent(LINEAR)
  ),
  'bernoulli, exponential': Row(
    'bernoulli', {'keep': KeepRates(rate=0.6, ramp='exponential')}, independent(EXPONENTIAL)
  ),
  'bernoulli, own rates': Row(
    'bernoulli', {'keep': KeepRates(by_gate=(0.9, 0.0, 0.3))}, independent([0.9, 0, 0.3])
  ),
  'sandwich': Row('sandwich', {}, (2 * np.full(8, 1 / 8) + counted([7]) + counted([0])) / 4),
  'sandwich of one': Row('sandwich', {}, counted([7]), slots=1),
  'sandwich of two': Row('sandwich', {}, counted([0, 7]), slots=2),
  'sorted': Row('sorted', {}, counted([0, 1, 3, 7])),
  'fair': Row('fair', {}, np.full(8, 1 / 8)),
  'progressive': Row('progressive', {'keep': KeepRates(ramp_steps=1)}, np.full(8, 1 / 8)),
}


def make(row):
  return samplers.make_sampler(row.name, NUM_GATES, row.slots, **row.options)


@jax.jit
def draw_steps(sampler, key, steps):
  return jax.vmap(lambda step: sampler(jax.random.fold_in(key, step), step))(steps)


def draw(sampler, steps, seed=0):
  """bool [steps, K, n], with the keys that the trainer folds."""
  return np.asarray(draw_steps(sampler, jax.random.key(seed), jnp.arange(steps)))


@pytest.mark.parametrize('row', ROWS.values(), ids=ROWS)
def test_distribution(row):
  bits = draw(make(row), DRAWS // row.slots)
  assert bits.dtype == bool
  assert bits.shape == (DRAWS // row.slots, row.slots, NUM_GATES)
  values = (bits.reshape(-1, NUM_GATES) * [1, 2, 4]).sum(-1)
  share = np.bincount(values, minlength=8) / DRAWS
  # Five standard deviations of a share of independent draws; the seed is fixed.
  np.testing.assert_allclose(share, row.share, atol=5 * np.sqrt(0.25 / DRAWS))
  assert set(values) == set(np.flatnonzero(row.share))


@pytest.mark.parametrize('row', ROWS.values(), ids=ROWS)
def test_what_is_drawn_depends_on_key_and_step_alone(row):
  sampler = make(row)
  steps = DRAWS // row.slots  # as above, so that both tests share a program
  first, again, other = draw(sampler, steps), draw(sampler, steps), draw(sampler, steps, seed=1)
  np.testing.assert_array_equal(first, again)
  random = row.name in ('uniform', 'bernoulli', 'sorted', 'fair', 'progressive') or (
    row.name == 'sandwich' and row.slots > 2
  )
  assert np.array_equal(first, other) != random
  if random:
    assert len({step.tobytes() for step in first}) > 3


@pytest.mark.parametrize(
  ('name', 'devices'),
  [
    ('listed', 4),
    ('uniform', 2),
    ('uniform', 4),
    ('bernoulli', 4),
    ('sandwich', 4),
    ('sorted', 4),
    ('fair', 4),
    ('progressive', 2),
  ],
)
def test_devices_have_no_say(name, devices):
  sampler = make(ROWS[name])
  mesh = mesh_.make_mesh(4, 1, jax.devices()[:devices])

  def own_slots(sampler, step):
    bits = sampler(jax.random.fold_in(jax.random.key(0), step), step)
    rank = jax.lax.axis_index('structure')
    return jax.lax.dynamic_slice_in_dim(bits, rank * (4 // devices), 4 // devices)

  everywhere, split = PartitionSpec(), PartitionSpec('structure')
  spread = jax.jit(
    jax.shard_map(own_slots, mesh=mesh, in_specs=everywhere, out_specs=split, check_vma=False)
  )
  placed = mesh_.replicate(sampler, mesh)
  got = np.stack([spread(placed, jnp.int32(step)) for step in range(3)])
  np.testing.assert_array_equal(got, draw(sampler, DRAWS // 4)[:3])


def test_other_numbers_compile_nothing():
  program = jax.jit(lambda sampler, key, step: sampler(key, step))
  key = jax.random.key(0)
  make_bernoulli = lambda **options: KeepRates(**options).sampler(3, 2)
  for sampler in (
    make_bernoulli(rate=0.1),
    make_bernoulli(rate=0.9, ramp='linear', ramp_steps=10),
    make_bernoulli(by_gate=(0.1, 0.2, 0.3), ramp_steps=5, ramp_shape='cosine'),
  ):
    program(sampler, key, jnp.int32(0))
  assert program._cache_size() == 1
  outputs = [
    program(samplers.listed(structures, 3), key, jnp.int32(0))
    for structures in (['100', '010'], ['111', '000'])
  ]
  assert program._cache_size() == 2  # one more, for the other sampler
  np.testing.assert_array_equal(outputs[0], [[1, 0, 0], [0, 1, 0]])
  np.testing.assert_array_equal(outputs[1], [[1, 1, 1], [0, 0, 0]])
  for order in ([0, 1, 2], [2, 0, 1]):
    program(samplers.Sorted(jnp.array(order), 2), key, jnp.int32(0))
  assert program._cache_size() == 3


def test_listed_goes_round_the_list():
  bits = draw(samplers.listed([1, 2, 3, 4, 5], 3, 2), 6)
  values = (bits * [1, 2, 4]).sum(-1)
  np.testing.assert_array_equal(values, [[1, 2], [3, 4], [5, 1], [2, 3], [4, 5], [1, 2]])
  assert samplers.listed([1, 2, 3], 3).num_structures == 3


def test_fixed():
  sampler = samplers.fixed('011', 3)
  assert sampler.num_structures == 1
  np.testing.assert_array_equal(draw(sampler, 2), [[[0, 1, 1]]] * 2)


def test_sandwich_order():
  bits = draw(make(ROWS['sandwich']), DRAWS // 4)
  assert bits[:, 0].all()
  assert not bits[:, 1].any()


def test_slots_of_a_step_are_drawn_independently():
  bits = draw(make(ROWS['uniform']), DRAWS // 4)
  pairs = collections.Counter(map(tuple, (bits[:, :2] * [1, 2, 4]).sum(-1).tolist()))
  assert len(pairs) == 64
  assert max(pairs.values()) < 3 * len(bits) / 64


def test_sorted_follows_its_order():
  bits = draw(samplers.Sorted(jnp.array([2, 0, 1]), 4), DRAWS // 4).reshape(-1, 3)
  assert set((bits @ [1, 2, 4]).tolist()) == {0b000, 0b100, 0b101, 0b111}


def test_fair_has_each_gate_on_in_half_of_every_step():
  bits = draw(make(ROWS['fair']), DRAWS // 4)
  assert (bits.sum(1) == 2).all()
  np.testing.assert_array_equal(bits[:, :2], ~bits[:, 2:])
  assert (draw(make(ROWS['uniform']), DRAWS // 4).sum(1) != 2).any()


def test_progressive_draws_all_that_it_may_alike():
  sampler = samplers.make_sampler('progressive', 3, 5000, keep=KeepRates(ramp_steps=8))
  # Steps 0 and 1 have no gate off, 2 and 3 at most one, 4 and 5 at most two, later ones any.
  for step, most in ((0, 0), (1, 0), (2, 1), (5, 2), (6, 3), (8, 3), (99, 3)):
    values = np.asarray(sampler(jax.random.key(step), jnp.int32(step))) @ [1, 2, 4]
    allowed = (~all_bits(3)).sum(1) <= most
    share = np.bincount(values, minlength=8) / 5000
    # Five standard deviations of a share among 5,000 draws.
    np.testing.assert_allclose(share, allowed / allowed.sum(), atol=0.036)
    assert not share[~allowed].any()


def test_progressive_of_hundreds_of_gates():
  sampler = samplers.make_sampler('progressive', 400, 200, keep=KeepRates(ramp_steps=1))
  count = np.asarray(sampler(jax.random.key(0), jnp.int32(1))).sum(1)
  assert abs(count.mean() - 200) < 5 * 10 / np.sqrt(200)  # five standard deviations of the mean
  assert 5 < count.std() < 15  # of a binomial count it is 10


def test_held_gate():
  fair = make(ROWS['fair'])
  held = Held(fair, jnp.int32(1), jnp.bool_(False))
  bits, plain = draw(held, 50), draw(fair, 50)
  assert held.num_structures == 4
  assert not bits[..., 1].any()
  np.testing.assert_array_equal(bits[..., [0, 2]], plain[..., [0, 2]])


@pytest.mark.parametrize(
  ('shape', 'done'),
  [
    ('linear', [0, 0.2, 0.5, 1, 1]),
    ('cosine', [0, (1 - np.cos(0.2 * np.pi)) / 2, 0.5, 1, 1]),
    ('step', [0, 0, 0, 1, 1]),
  ],
)
def test_bernoulli_ramp_over_time(shape, done):
  """When a share d of the fall is done, a rate r is still 1 − d·(1 − r); ramp of 10 steps."""
  sampler = KeepRates(by_gate=(0.2, 0.6), ramp_steps=10, ramp_shape=shape).sampler(2, 20000)
  for step, share_done in zip((0, 2, 5, 10, 99), done):
    want = 1 - share_done * np.array([0.8, 0.4])
    np.testing.assert_allclose(sampler.rates(jnp.int32(step)), want, rtol=1e-5)
    share = np.asarray(sampler(jax.random.key(step), jnp.int32(step))).mean(0)
    # Five standard deviations of a share among 20,000 draws.
    np.testing.assert_allclose(share, want, atol=0.018)
  assert bool(sampler(jax.random.key(0), jnp.int32(0)).all())


@pytest.mark.parametrize(
  ('ramp', 'want'),
  [
    ('uniform', [0.5] * 4),
    ('linear', [0.875, 0.75, 0.625, 0.5]),
    ('exponential', [0.5**0.25, 0.5**0.5, 0.5**0.75, 0.5]),
  ],
)
def test_keep_rates(ramp, want):
  np.testing.assert_allclose(KeepRates(rate=0.5, ramp=ramp).of_gates(4), want, rtol=1e-6)  # float32


def test_all_gates_of_a_site_have_the_rate_of_its_depth():
  rates = KeepRates(rate=0.4, ramp='linear', sites=[0, 0, 1, 2, 2]).of_gates(5)
  np.testing.assert_allclose(rates, [0.8, 0.8, 0.6, 0.4, 0.4], rtol=1e-6)  # float32


def test_rates_of_uniform():
  np.testing.assert_array_equal(samplers.Uniform(3, 2).rates(jnp.int32(7)), [0.5] * 3)


@pytest.mark.parametrize(
  ('arguments', 'options', 'message'),
  [
    (('normal', 3, 2), {}, "sampler 'normal': expected one of fixed, listed, uniform"),
    (('uniform', 3, 0), {}, 'num_structures 0: expected at least 1'),
    (('fair', 3, 3), {}, 'num_structures 3 for the sampler fair: expected pairs'),
    (('progressive', 3, 1), {}, 'ramp_steps 0 for the sampler progressive: expected above 0'),
    (('fixed', 3, 1), {'structures': ['101', '111']}, '2 structures for the sampler fixed'),
    (('fixed', 3, 1), {'structures': ['10']}, 'structure 10 has 2 gates: expected 3'),
    (('listed', 3, 1), {}, 'an empty list of structures: expected at least one'),
    (('bernoulli', 3, 1), {'rate': 1.5}, r'keep rate 1.5: expected a number in \[0, 1\]'),
    (('bernoulli', 3, 1), {'ramp': 'cubic'}, "keep-rate ramp 'cubic': expected one of"),
    (('bernoulli', 3, 1), {'rate': float('nan')}, 'keep rate nan: expected a number'),
    (('bernoulli', 3, 1), {'ramp_shape': 'cubic'}, "ramp shape 'cubic': expected one of linear"),
    (('bernoulli', 3, 1), {'by_gate': (0.5, 0.5)}, '2 keep rates .*: expected 3'),
    (('bernoulli', 2, 1), {'by_gate': (0.5, -0.1)}, 'keep rate -0.1: expected'),
  ],
)
def test_bad_options(arguments, options, message):
  structures = options.pop('structures', ())
  with pytest.raises(UserError, match=message):
    samplers.make_sampler(*arguments, structures=structures, keep=KeepRates(**options))


def test_samplers_are_different_trees():
  # Compiled programs are kept by tree structure: equal ones would run as each other.
  alike = [samplers.Uniform(3, 4), samplers.Sandwich(3, 4)]
  first, second = (jax.tree.structure(sampler) for sampler in alike)
  assert first != second
  assert first == jax.tree.structure(samplers.Uniform(3, 4))
