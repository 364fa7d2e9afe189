"""Routers, which choose the structures of each token: scores, the exact k best, and balance.

A router is a linear map from the stream to logits; the functions here turn logits into structures
and weights. With n gates there are 2^n structures:

- `top_k`: a softmax over an explicit list of structures, of which each token takes k;
- `k_best`: one logit a gate, the gates independent; the exact k most probable of all 2^n structures
  without enumerating them;
- `mixtures.span_weights` of the gates' probabilities: the exact mixture of all of them;
- `random`: k structures at random, the control.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from additive_jax.errors import UserError
from additive_jax.gates.structure import all_bits

MOST_ENUMERATED = 16  # gates whose structures may be listed
WORD = 31  # bits of an int32 beside its sign


class Choice(NamedTuple):
  """The choices that a router made from a list.

  Attributes:
    weights: of the k choices of each token, best first; they carry the gradient.
    indices: the number of each in the list.
  """

  weights: Float[Array, '... k']
  indices: Int[Array, '... k']


def check_k(k: int, count: int, choices: str = 'structures') -> None:
  """Raises `UserError` for k below 1 or over the number of choices."""
  if not 1 <= k <= count:
    raise UserError(f'top {k} of {count} {choices}: expected 1 to {count}')


def enumerated(num_gates: int) -> Bool[np.ndarray, 'S n']:
  """Returns all 2^n structures in integer order; raises `UserError` for more than 2^16."""
  if num_gates > MOST_ENUMERATED:
    raise UserError(
      f'a router over all 2^{num_gates} structures: expected at most 2^{MOST_ENUMERATED}; '
      "the routers 'factorised' and 'marginal' do not enumerate"
    )
  return all_bits(num_gates)


def top_k(
  logits: Float[Array, '... S'],
  k: int,
  *,
  renormalise: bool = False,
  bias: Float[Array, 'S'] | None = None,
) -> Choice:
  """Returns the k best of a list under a softmax.

  >>> top_k(jnp.log(jnp.array([0.25, 0.625, 0.125])), 2).indices.tolist()
  [1, 0]

  Args:
    logits: one for each entry of the list.
    k: how many each token takes.
    renormalise: weights sum to 1 over the k chosen; otherwise they are the softmax over all S.
    bias: added to the logits in the choice but not in the weights.
  """
  check_k(k, logits.shape[-1])
  scores = logits if bias is None else logits + bias
  indices = jax.lax.top_k(jax.lax.stop_gradient(scores), k)[1]
  chosen = jnp.take_along_axis(logits, indices, -1)
  total = chosen if renormalise else logits
  weights = jnp.exp(chosen - jax.nn.logsumexp(total, axis=-1, keepdims=True))
  return Choice(weights, indices)


def random(key: PRNGKeyArray, shape: tuple[int, ...], count: int, k: int) -> Choice:
  """Returns k different entries of a list of `count` at random for each of `shape` tokens, with
  equal weights.
  """
  check_k(k, count)
  scores = jax.random.uniform(key, (*shape, count), jnp.float32)
  return Choice(jnp.full((*shape, k), 1 / k, jnp.float32), jax.lax.top_k(scores, k)[1])


def k_best(
  logits: Float[Array, '... n'],
  k: int,
  *,
  renormalise: bool = False,
  bias: Float[Array, 'n'] | None = None,
) -> tuple[Float[Array, '... k'], Bool[Array, '... k n']]:
  """Returns the k most probable of all 2^n structures when gate i is on with probability
  σ(logit_i), independently; exact, on the device, with static shapes.

  >>> k_best(jnp.array([2.0, -1.0, 0.5]), 3)[1].astype(int).tolist()
  [[1, 0, 1], [1, 0, 0], [1, 1, 1]]

  Args:
    logits: one for each gate.
    k: how many; at most 2^n.
    renormalise: weights sum to 1 over the k chosen; otherwise they are probabilities.
    bias: added to the logits in the choice but not in the weights.

  Returns:
    The weights of the k structures of each token, best first, which carry the gradient, and the
    structures.
  """
  # The best structure has every gate on whose logit is positive. Any other differs from it by a set
  # of flips, and its log-probability is lower by the sum of their |logit|. In the example above:
  #
  #   flips of |logit|    {}     {½}    {1}    {½, 1}   {2} …
  #   cost                0      ½      1      1½       2
  #   structure           101    100    111    (k = 3: never reached)
  #
  # With gates in order of |logit|, a set can be among the k cheapest only if fewer than k sets cost
  # no more whatever the |logit| are. That leaves the small family `flip_sets`, the same for every
  # token; none of its sets flips a gate beyond the k − 1 cheapest.
  num_gates = logits.shape[-1]
  check_k(k, 2 ** min(num_gates, 62))
  scores = jax.lax.stop_gradient(logits if bias is None else logits + bias)
  sets = flip_sets(min(num_gates, k - 1), k)
  cost = jnp.abs(scores)
  rank = _ranks(cost)
  # Costs of the k − 1 cheapest gates in order; sums instead of a sort, which is slow on CPU and GPU
  # for rows this short.
  cheapest = [jnp.where(rank == r, cost, 0).sum(-1) for r in range(sets.shape[1])]
  totals = sum((c[..., None] * s for c, s in zip(cheapest, jnp.asarray(sets.T, cost.dtype))), 0.0)
  place = _ranks(jnp.broadcast_to(totals, (*cost.shape[:-1], len(sets))))
  structures = jnp.broadcast_to((scores > 0)[..., None, :], (*scores.shape[:-1], k, num_gates))
  for start in range(0, sets.shape[1], WORD):  # a set as the bits of integers
    words = sets[:, start : start + WORD]
    codes = jnp.asarray(words @ (1 << np.arange(words.shape[1])), jnp.int32)
    flips = jnp.stack([jnp.where(place == r, codes, 0).sum(-1) for r in range(k)], axis=-1)
    position = rank - start
    in_word = (position >= 0) & (position < words.shape[1])
    flipped = (flips[..., None] >> jnp.where(in_word, position, 0)[..., None, :]) % 2 == 1
    structures ^= flipped & in_word[..., None, :]
  log_probability = log_probabilities(logits, structures)
  weights = jax.nn.softmax(log_probability, -1) if renormalise else jnp.exp(log_probability)
  return weights, structures


class ListFacts(NamedTuple):
  """Means over a batch of a router over a list of S structures, experts or modules.

  Attributes:
    load: share of the choices that fell on each entry; sums to 1.
    importance: mean probability of each under the softmax; it carries the gradient.
    z: mean over the tokens of (logsumexp of the logits)².
    entropy: of the softmax, mean over the tokens, in nats.
    kept, keep: share of the tokens that the branch computed, and the share it is to compute.
    share: the load that each entry should have, see `rebalanced`; below 0 where any will do.
  """

  load: Float[Array, 'S']
  importance: Float[Array, 'S']
  z: Float[Array, '']
  entropy: Float[Array, '']
  kept: Float[Array, ''] | float = 1.0
  keep: Float[Array, ''] | float = 1.0
  share: Float[Array, 'S'] | float = 0.0


class GateFacts(NamedTuple):
  """Means over a batch of a router with one logit for each of n gates.

  Attributes:
    load: share of the chosen structures in which each gate is on; of the probability for the
      mixture of all structures.
    importance: mean probability that each gate is on; it carries the gradient.
    z: mean over the tokens of (log-normaliser of all structures)², `Σ_i log(2 cosh(logit_i / 2))`.
    entropy: of the distribution over structures, mean over the tokens, in nats.
    structures: share of the choices that fell on each of the 2^n structures in integer order;
      empty for the mixture of all, or more than 2^16.
    kept, keep: share of the tokens that the branch computed, and the share it is to compute.
  """

  load: Float[Array, 'n']
  importance: Float[Array, 'n']
  z: Float[Array, '']
  entropy: Float[Array, '']
  structures: Float[Array, 'S']
  kept: Float[Array, ''] | float = 1.0
  keep: Float[Array, ''] | float = 1.0


Facts = ListFacts | GateFacts


def facts_of_list(
  logits: Float[Array, '... S'] | None, indices: Int[Array, '... k'], count: int
) -> ListFacts:
  """Returns the facts of choices among `count` entries; without logits (at random) only the load is
  known.

  >>> facts_of_list(jnp.zeros((4, 2)), jnp.array([[0], [0], [0], [1]]), count=2).load.tolist()
  [0.75, 0.25]
  """
  load, even, one = _histogram(indices, count), jnp.full(count, 1 / count), jnp.ones(())
  if logits is None:
    return ListFacts(load, even, jnp.zeros(()), jnp.log(jnp.float32(count)), one, one, even)
  log_p = jax.nn.log_softmax(logits)
  axes = tuple(range(logits.ndim - 1))
  entropy = -(jnp.exp(log_p) * log_p).sum(-1).mean()
  z = jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
  return ListFacts(load, jnp.exp(log_p).mean(axes), z, entropy, one, one, even)


def facts_of_gates(
  logits: Float[Array, '... n'], chosen: Bool[Array, '... k n'] | None
) -> GateFacts:
  """Returns the facts of structures chosen by `k_best`, or, of None, of a mixture of all.

  >>> facts_of_gates(jnp.zeros((4, 2)), None).importance.tolist()
  [0.5, 0.5]
  """
  axes = tuple(range(logits.ndim - 1))
  on = jax.nn.sigmoid(logits)
  importance = on.mean(axes)
  z = jnp.square(jnp.logaddexp(logits / 2, -logits / 2).sum(-1)).mean()
  entropy = -(on * jax.nn.log_sigmoid(logits) + (1 - on) * jax.nn.log_sigmoid(-logits))
  load, structures = jax.lax.stop_gradient(importance), jnp.zeros(0)
  if chosen is not None:
    load = chosen.astype(logits.dtype).mean((*axes, logits.ndim - 1))
    if logits.shape[-1] <= MOST_ENUMERATED:
      structures = _histogram(codes(chosen), 1 << logits.shape[-1])
  one = jnp.ones(())
  return GateFacts(load, importance, z, entropy.sum(-1).mean(), structures, one, one)


def load_balance(facts: Facts) -> Float[Array, '']:
  """Returns a loss that is least, 1, where every choice is as likely as any other.

  `S Σ_s load_s · importance_s` over a list (Fedus et al. 2021, arXiv:2101.03961, equation 4); for
  gates the same over the two values of each gate, averaged over the gates.

  >>> even = facts_of_list(jnp.zeros((2, 2)), jnp.array([[0], [1]]), count=2)
  >>> float(load_balance(even))
  1.0
  """
  load = jax.lax.stop_gradient(facts.load)
  if isinstance(facts, ListFacts):
    return len(load) * (load * facts.importance).sum()
  both = load * facts.importance + (1 - load) * (1 - facts.importance)
  return 2 * both.mean()


def rebalanced(bias: Float[Array, 'S'], facts: Facts, rate: float) -> Float[Array, 'S']:
  """Returns the next selection bias: up by `rate` where the load is below its share, down where
  above.

  Outside the gradient; the share is `facts.share` of a list, 1/S by default, and 1/2 of a gate.
  Source: Wang et al. 2024 (arXiv:2408.15664).

  >>> facts = facts_of_list(jnp.zeros((4, 2)), jnp.array([[0], [0], [0], [1]]), count=2)
  >>> rebalanced(jnp.zeros(2), facts, rate=0.5).tolist()
  [-0.5, 0.5]
  """
  share = jnp.asarray(facts.share if isinstance(facts, ListFacts) else 0.5)
  return bias + rate * jnp.where(share >= 0, jnp.sign(share - facts.load), 0)


def _histogram(indices, count: int) -> Array:
  """Returns the share of each of `count` values among integers of any shape."""
  return jnp.zeros(count).at[indices.reshape(-1)].add(1) / indices.size


def codes(structures: Bool[Array, '... n']) -> Int[Array, '...'] | None:
  """Returns structures as integers; None for more gates than an int32 holds.

  >>> codes(jnp.array([[True, False], [True, True]])).tolist()
  [1, 3]
  """
  num_gates = structures.shape[-1]
  if num_gates > WORD:
    return None
  return (structures * (1 << np.arange(num_gates, dtype=np.int32))).sum(-1, dtype=jnp.int32)


def log_probabilities(
  logits: Float[Array, '*batch n'], structures: Bool[Array, '*batch k n']
) -> Float[Array, '*batch k']:
  """Returns the log-probability of structures whose gate i is on with probability σ(logit_i).

  >>> jnp.exp(log_probabilities(jnp.zeros(2), jnp.array([[True, False]]))).tolist()
  [0.25]
  """
  signed = jnp.where(structures, logits[..., None, :], -logits[..., None, :])
  return jax.nn.log_sigmoid(signed).sum(-1)


def _ranks(values: Array) -> Array:
  """Returns the place of each value in its row [..., n], smallest first; ties in order of
  position."""
  count = values.shape[-1]
  before = np.tri(count, k=-1, dtype=bool)  # [i, j]: j comes before i
  value, other = values[..., :, None], values[..., None, :]
  return ((other < value) | ((other == value) & before)).sum(-1, dtype=jnp.int32)


@functools.lru_cache(maxsize=64)
def flip_sets(num_gates: int, k: int) -> Int[np.ndarray, 'F n']:
  """Returns the sets of gates, in order of cost, that may be among the k cheapest whatever the
  costs, as rows of 0 and 1; the empty set first.

  Set A costs no more than B, for all costs c_0 ≤ c_1 ≤ …, if and only if from every position on A
  has at most as many gates as B. A set with k or more such sets before it is never needed.

  >>> flip_sets(2, k=3).tolist()
  [[0, 0], [1, 0], [0, 1]]
  """
  if not num_gates:
    return np.zeros((1, 0), np.int8)
  tails = lambda gates: np.cumsum(gates[::-1])[::-1]
  empty = (0,) * num_gates
  family, frontier, seen = [empty], [empty], {empty}
  while frontier:
    grown = [after for gates in frontier for after in _next_sets(gates)]
    grown = [gates for gates in dict.fromkeys(grown) if gates not in seen]
    seen.update(grown)
    # By rank, so that every set that comes before another is judged before it.
    frontier = []
    for gates in sorted(grown, key=lambda gates: sum(i + 1 for i, on in enumerate(gates) if on)):
      cheaper = sum((tails(np.array(one)) <= tails(np.array(gates))).all() for one in family)
      if cheaper < k:
        family.append(gates)
        frontier.append(gates)
  return np.array(family, np.int8)


def _next_sets(gates):
  """Yields the sets that cost next to a set: with the cheapest gate added, or one gate a place
  dearer."""
  if not gates[0]:
    yield (1, *gates[1:])
  for i, on in enumerate(gates[:-1]):
    if on and not gates[i + 1]:
      yield (*gates[:i], 0, 1, *gates[i + 2 :])
