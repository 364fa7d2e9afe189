"""Routers: the exact k best, lists, weights, and what they refuse."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import UserError
from additive_jax.gates import routers
from additive_jax.gates.structure import all_bits
from additive_jax.models import Routing

TOKENS = 50


def log_probability(logits, bits):
  """NumPy, float64: independent gates, on with probability 1 / (1 + exp(−logit))."""
  signed = np.where(bits, logits, -logits).astype(np.float64)
  return -np.log1p(np.exp(-signed)).sum(-1)


def enumerated_best(logits, k):
  """The k largest log-probabilities of all structures of each token, best first."""
  every = np.stack([log_probability(logits, row) for row in all_bits(logits.shape[-1])], -1)
  return -np.sort(-every, axis=-1)[:, :k]


def draw(seed, num_gates, scale=2.0):
  return np.random.default_rng(seed).normal(size=(TOKENS, num_gates)).astype(np.float32) * scale


@pytest.mark.parametrize('k', [1, 2, 3, 5, 8, 16, 64])
@pytest.mark.parametrize('num_gates', [1, 3, 6, 9])
def test_k_best_is_exact(num_gates, k):
  logits = draw(num_gates, num_gates)
  if k > 2**num_gates:
    with pytest.raises(UserError, match=f'top {k} of {2**num_gates} structures: expected 1 to'):
      routers.k_best(jnp.asarray(logits), k)
    return
  both = lambda x: [routers.k_best(x, k, renormalise=own) for own in (False, True)]
  (weights, structures), (renormalised, same) = jax.jit(both)(jnp.asarray(logits))
  bits = np.asarray(structures)
  assert bits.shape == (TOKENS, k, num_gates)
  codes = bits @ (1 << np.arange(num_gates))
  assert all(len(set(row)) == k for row in codes)  # no structure twice
  want = enumerated_best(logits, k)
  np.testing.assert_allclose(log_probability(logits[:, None], bits), want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(weights, np.exp(want), rtol=1e-4, atol=1e-6)
  np.testing.assert_array_equal(same, bits)
  np.testing.assert_allclose(
    renormalised, np.exp(want) / np.exp(want).sum(-1, keepdims=True), rtol=1e-4, atol=1e-6
  )


@pytest.mark.parametrize(
  'logits', [np.zeros((1, 6)), np.full((1, 6), -1.5), np.array([[0, 1] * 3])]
)
def test_k_best_with_ties(logits):
  """Any of the equal ones, but each once, and none worse."""
  structures = routers.k_best(jnp.float32(logits), 10)[1]
  codes = np.asarray(structures)[0] @ (1 << np.arange(6))
  assert len(set(codes)) == 10
  found = log_probability(np.float32(logits)[:, None], np.asarray(structures))
  np.testing.assert_allclose(found, enumerated_best(np.float32(logits), 10), atol=1e-6)


def test_k_best_of_many_gates_flips_the_cheapest_alone():
  logits = draw(3, 40)
  bits = np.asarray(routers.k_best(jnp.asarray(logits), 8)[1])
  flipped = bits != (logits > 0)[:, None]
  order = np.argsort(np.abs(logits), axis=-1)
  assert not np.take_along_axis(flipped, order[:, None], -1)[..., 7:].any()
  # Against a search over all flips of the 10 cheapest gates.
  cheap = np.take_along_axis(np.abs(logits), order, -1)[:, :10].astype(np.float64)
  sums = np.sort(cheap @ all_bits(10).T.astype(np.float64), axis=-1)[:, :8]
  cost = (flipped * np.abs(logits)[:, None]).astype(np.float64).sum(-1)
  np.testing.assert_allclose(cost, sums, rtol=1e-5, atol=1e-6)


def test_k_best_flips_beyond_the_bits_of_one_integer():
  """Costs are nearly equal, so that the cheapest sets are those of one gate."""
  logits = np.random.default_rng(0).uniform(1, 1.5, (5, 40)).astype(np.float32)
  bits = np.asarray(routers.k_best(jnp.asarray(logits), 40)[1])
  cost = ((bits != (logits > 0)[:, None]) * np.abs(logits)[:, None].astype(np.float64)).sum(-1)
  # The sum of any two is above every single one.
  want = np.concatenate([np.zeros((5, 1)), np.sort(logits.astype(np.float64), axis=-1)[:, :39]], -1)
  np.testing.assert_allclose(cost, want, rtol=1e-6)
  assert all(len(np.unique(rows, axis=0)) == 40 for rows in bits)


@pytest.mark.parametrize('k', [2, 4, 8, 16])
def test_flip_sets_are_enough_and_all_needed(k):
  """For random costs the k cheapest of all sets are in the family, and each member is needed."""
  num_gates = min(k - 1, 10)
  family = routers.flip_sets(num_gates, k)
  every = all_bits(num_gates).astype(int)
  rng, used = np.random.default_rng(k), set()
  for power in itertools.islice(itertools.cycle((0.3, 1, 3)), 600):
    cost = np.sort(rng.random(num_gates) ** power)
    best = every[np.argsort(every @ cost, kind='stable')[:k]]
    used |= {tuple(row) for row in best}
  assert used <= {tuple(row) for row in family.tolist()}
  assert len(family) < 4 * k
  assert k > 8 or len(used) == len(family)


def test_bias_counts_in_the_choice_alone():
  logits = draw(4, 5)
  bias = jnp.float32([3, -3, 0, 0, 1])
  weights, structures = routers.k_best(jnp.asarray(logits), 3, bias=bias)
  np.testing.assert_array_equal(structures, routers.k_best(jnp.asarray(logits + bias), 3)[1])
  want = np.exp(log_probability(logits[:, None], np.asarray(structures)))
  np.testing.assert_allclose(weights, want, rtol=1e-4, atol=1e-7)
  listed = routers.top_k(jnp.asarray(logits), 2, bias=bias)
  np.testing.assert_array_equal(listed.indices, np.argsort(-(logits + bias), axis=-1)[:, :2])
  soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  want = np.take_along_axis(soft, np.asarray(listed.indices), -1)
  np.testing.assert_allclose(listed.weights, want, rtol=1e-5)


@pytest.mark.parametrize('renormalise', [False, True])
def test_top_k_of_a_list(renormalise):
  logits = draw(5, 5)
  choice = routers.top_k(jnp.asarray(logits), 2, renormalise=renormalise)
  index = np.argsort(-logits, axis=-1)[:, :2]
  np.testing.assert_array_equal(choice.indices, index)
  weights = np.take_along_axis(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), index, -1)
  if renormalise:
    weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(choice.weights, weights, rtol=1e-5)


def test_weights_carry_the_gradient():
  logits = jnp.asarray(draw(6, 4))
  for route in (
    lambda z: routers.k_best(z, 3)[0],
    lambda z: routers.top_k(z, 2).weights,
  ):
    slope = jax.grad(
      lambda z, route=route: (route(z) * jnp.array([1.0, -2, 3])[: route(z).shape[-1]]).sum()
    )
    assert (np.abs(slope(logits)).max(-1) > 1e-4).all()


def test_random_draws_different_structures_evenly():
  choice = routers.random(jax.random.key(0), (4000,), 8, 3)
  np.testing.assert_array_equal(choice.weights, np.full((4000, 3), np.float32(1 / 3)))
  assert all(len(set(row)) == 3 for row in np.asarray(choice.indices))
  share = np.bincount(np.asarray(choice.indices).ravel(), minlength=8) / 4000
  np.testing.assert_allclose(share, 3 / 8, atol=0.04)  # five standard deviations


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (
      lambda: routers.top_k(jnp.zeros(4), 5),
      'top 5 of 4 structures: expected 1 to 4',
    ),
    (lambda: routers.k_best(jnp.zeros(2), 0), 'top 0 of 4 structures: expected 1 to 4'),
    (lambda: routers.random(jax.random.key(0), (2,), 2, 3), 'top 3 of 2 structures'),
    (lambda: Routing(structures=('10', '10')).listed(2), 'structure 10 is listed twice'),
    (lambda: Routing(structures=('101',)).listed(2), 'structure 101 has 3 gates: expected 2'),
    (
      lambda: routers.enumerated(17),
      "all 2^17 structures: expected at most 2^16; the routers 'fac",
    ),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(UserError, match=re.escape(message)):
    call()


def test_listing_few_gates():
  np.testing.assert_array_equal(routers.enumerated(3), all_bits(3))
