"""Which structures a token goes to: scores, the exact k best, and balance.

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
  """What a router chose.

  Attributes:
    weights: of the k choices of each token, best first, [..., k]; they carry the gradient.
    index: the number of each in the router's list, int32 [..., k]; None for `k_best`.
    structures: the structures chosen, bool [..., k, n]; None for a choice among modules or experts.
  """

  weights: Float[Array, '... k']
  index: Int[Array, '... k'] | None = None
  structures: Bool[Array, '... k n'] | None = None


def check_k(k: int, count: int, what: str = 'structures') -> None:
  """Raises `UserError` for k below 1 or over the number of choices."""
  if not 1 <= k <= count:
    raise UserError(f'top {k} of {count} {what}: expected 1 to {count}')


def check_list(bits: np.ndarray, num_gates: int) -> np.ndarray:
  """A list of structures, bool [S, n].

  Raises:
    UserError: for none, duplicates, or another number of gates.
  """
  bits = np.asarray(bits, bool)
  if bits.ndim != 2 or bits.shape[1] != num_gates:
    raise UserError(f'structures of shape {bits.shape}: expected [S, {num_gates}] gates')
  seen = set()
  for row in bits:
    text = ''.join('01'[int(bit)] for bit in row)
    if text in seen:
      raise UserError(f'structure {text} is listed twice: expected each once')
    seen.add(text)
  if not seen:
    raise UserError('an empty list of structures: expected at least one')
  return bits


def enumerated(num_gates: int) -> np.ndarray:
  """All 2^n structures in integer order, bool [2^n, n].

  Raises:
    UserError: for more than 2^16.
  """
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
  structures: Bool[np.ndarray, 'S n'] | None = None,
  renormalise: bool = False,
  bias: Float[Array, ' S'] | None = None,
) -> Choice:
  """Returns the k best of a list under a softmax.

  Args:
    logits: one for each entry of the list.
    k: how many each token takes.
    structures: the list, where its entries are structures.
    renormalise: weights sum to 1 over the k chosen; otherwise they are the softmax over all S.
    bias: added to the logits in the choice but not in the weights.
  """
  check_k(k, logits.shape[-1])
  scores = logits if bias is None else logits + bias
  index = jax.lax.top_k(jax.lax.stop_gradient(scores), k)[1]
  chosen = jnp.take_along_axis(logits, index, -1)
  total = chosen if renormalise else logits
  weights = jnp.exp(chosen - jax.nn.logsumexp(total, axis=-1, keepdims=True))
  return Choice(weights, index, None if structures is None else jnp.asarray(structures)[index])


def random(
  key: PRNGKeyArray, shape: tuple[int, ...], structures: Bool[np.ndarray, 'S n'], k: int
) -> Choice:
  """Returns k different structures of a list at random for each of `shape` tokens, with equal
  weights."""
  check_k(k, len(structures))
  scores = jax.random.uniform(key, (*shape, len(structures)))
  index = jax.lax.top_k(scores, k)[1]
  return Choice(jnp.full((*shape, k), 1 / k), index, jnp.asarray(structures)[index])


def k_best(logits: jax.Array, k: int, *, renormalise: bool = False, bias=None) -> Choice:
  """The k most probable of all 2^n structures when gate i is on with probability σ(logit_i),
  independently; exact, on the device, with static shapes.

  The best structure has every gate on whose logit is positive. Any other differs from it by a set
  of flips, and its log-probability is lower by the sum of their |logit|. With gates in order of
  |logit| a set can be among the k best only if fewer than k sets are certain to cost no more, which
  leaves a small family of sets, the same for every token (`flip_sets`); none flips a gate beyond
  the k − 1 smallest.

  Args:
    logits: [..., n].
    k: how many; at most 2^n.
    renormalise: weights sum to 1 over the k chosen; otherwise they are probabilities.
    bias: [n], added to the logits in the choice but not in the weights.

  Returns:
    The choice, best first; `index` is None.
  """
  num_gates = logits.shape[-1]
  check_k(k, 2 ** min(num_gates, 62))
  scores = jax.lax.stop_gradient(logits if bias is None else logits + bias)
  sets = flip_sets(min(num_gates, k - 1), k)
  cost = jnp.abs(scores)
  rank = _ranks(cost)
  # Costs of the k − 1 cheapest gates in order, [..., k − 1]; sums instead of a sort, which is slow
  # on CPU and GPU for rows this short.
  cheapest = [jnp.where(rank == r, cost, 0).sum(-1) for r in range(sets.shape[1])]
  totals = sum((c[..., None] * s for c, s in zip(cheapest, jnp.asarray(sets.T, cost.dtype))), 0.0)
  totals = jnp.broadcast_to(totals, (*cost.shape[:-1], len(sets)))
  place = _ranks(totals)
  bits = jnp.broadcast_to((scores > 0)[..., None, :], (*scores.shape[:-1], k, num_gates))
  for start in range(0, sets.shape[1], WORD):  # a set as the bits of integers
    some = sets[:, start : start + WORD]
    codes = jnp.asarray(some @ (1 << np.arange(some.shape[1])), jnp.int32)
    flips = jnp.stack([jnp.where(place == r, codes, 0).sum(-1) for r in range(k)], axis=-1)
    here = rank - start
    in_reach = (here >= 0) & (here < some.shape[1])
    flipped = (flips[..., None] >> jnp.where(in_reach, here, 0)[..., None, :]) % 2 == 1
    bits ^= flipped & in_reach[..., None, :]
  log_probability = log_probabilities(logits, bits)
  weights = jax.nn.softmax(log_probability, -1) if renormalise else jnp.exp(log_probability)
  return Choice(weights, structures=bits)


class ListFacts(NamedTuple):
  """What a router over a list of S structures did with a batch.

  Attributes:
    load: share of the choices that fell on each structure, [S]; sums to 1.
    importance: mean probability of each under the softmax, [S]; it carries the gradient.
    z: mean over the tokens of (logsumexp of the logits)².
    entropy: of the softmax, mean over the tokens, in nats.
    kept, keep: share of the tokens that the branch computed, and the share it is to compute.
    share: the load that each structure should have, see `rebalanced`; [S], below 0 where any will
      do.
  """

  load: jax.Array
  importance: jax.Array
  z: jax.Array
  entropy: jax.Array
  kept: jax.Array | float = 1.0
  keep: jax.Array | float = 1.0
  share: jax.Array | float = 0.0


class GateFacts(NamedTuple):
  """What a router with one logit for each of n gates did with a batch.

  Attributes:
    load: share of the chosen structures in which each gate is on, [n]; of the probability for the
      mixture of all structures.
    importance: mean probability that each gate is on, [n]; it carries the gradient.
    z: mean over the tokens of (log-normaliser of all structures)², `Σ_i log(2 cosh(logit_i / 2))`.
    entropy: of the distribution over structures, mean over the tokens, in nats.
    structures: share of the choices that fell on each of the 2^n structures in integer order;
      empty for the mixture of all, or more than 2^16.
    kept, keep: share of the tokens that the branch computed, and the share it is to compute.
  """

  load: jax.Array
  importance: jax.Array
  z: jax.Array
  entropy: jax.Array
  structures: jax.Array
  kept: jax.Array | float = 1.0
  keep: jax.Array | float = 1.0


def facts_of_list(logits, choice: Choice, count: int) -> ListFacts:
  """Of a choice among `count` structures; without logits (at random) only the load is known."""
  load, even = _histogram(choice.index, count), jnp.full(count, 1 / count)
  if logits is None:
    entropy = jnp.log(jnp.float32(count))
    return ListFacts(load, even, jnp.zeros(()), entropy, *jnp.ones(2), even)
  log_p = jax.nn.log_softmax(logits)
  axes = tuple(range(logits.ndim - 1))
  entropy = -(jnp.exp(log_p) * log_p).sum(-1).mean()
  z = jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
  return ListFacts(load, jnp.exp(log_p).mean(axes), z, entropy, *jnp.ones(2), even)


def facts_of_gates(logits, choice: Choice | None) -> GateFacts:
  """Of a choice by `k_best`, or, without one, of the mixture of all structures."""
  axes = tuple(range(logits.ndim - 1))
  on = jax.nn.sigmoid(logits)
  importance = on.mean(axes)
  z = jnp.square(jnp.logaddexp(logits / 2, -logits / 2).sum(-1)).mean()
  entropy = -(on * jax.nn.log_sigmoid(logits) + (1 - on) * jax.nn.log_sigmoid(-logits))
  load, structures = jax.lax.stop_gradient(importance), jnp.zeros(0)
  if choice is not None:
    load = choice.structures.astype(logits.dtype).mean((*axes, logits.ndim - 1))
    if logits.shape[-1] <= MOST_ENUMERATED:
      structures = _histogram(codes(choice.structures), 1 << logits.shape[-1])
  return GateFacts(load, importance, z, entropy.sum(-1).mean(), structures, *jnp.ones(2))


def load_balance(facts: ListFacts | GateFacts) -> jax.Array:
  """A loss that is least, 1, where every choice is as likely as any other.

  `S Σ_s load_s · importance_s` over a list (Fedus et al. 2021, arXiv:2101.03961, equation 4); for
  gates the same over the two values of each gate, averaged over the gates.
  """
  load = jax.lax.stop_gradient(facts.load)
  if isinstance(facts, ListFacts):
    return len(load) * (load * facts.importance).sum()
  both = load * facts.importance + (1 - load) * (1 - facts.importance)
  return 2 * both.mean()


def rebalanced(bias: jax.Array, facts: ListFacts | GateFacts, rate: float) -> jax.Array:
  """The next selection bias: up by `rate` where the load is below its share, down where above.

  Outside the gradient; the share is `facts.share` of a list, 1/S by default, and 1/2 of a gate.
  Source: Wang et al. 2024 (arXiv:2408.15664).
  """
  share = jnp.asarray(facts.share if isinstance(facts, ListFacts) else 0.5)
  return bias + rate * jnp.where(share >= 0, jnp.sign(share - facts.load), 0)


def _histogram(index: jax.Array, count: int) -> jax.Array:
  """Share of each of `count` values among integers of any shape."""
  return jnp.zeros(count).at[index.reshape(-1)].add(1) / index.size


def codes(bits: jax.Array) -> jax.Array | None:
  """Structures [..., n] as integers, int32 [...]; None for more gates than an int32 holds."""
  num_gates = bits.shape[-1]
  if num_gates > WORD:
    return None
  return (bits * (1 << np.arange(num_gates, dtype=np.int32))).sum(-1, dtype=jnp.int32)


def log_probabilities(logits: jax.Array, bits: jax.Array) -> jax.Array:
  """Of structures [..., k, n] whose gate i is on with probability σ(logit_i), logits [..., n]."""
  signed = jnp.where(bits, logits[..., None, :], -logits[..., None, :])
  return jax.nn.log_sigmoid(signed).sum(-1)


def _ranks(values: jax.Array) -> jax.Array:
  """The place of each value in its row [..., n], smallest first; ties in order of position."""
  count = values.shape[-1]
  before = np.tri(count, k=-1, dtype=bool)  # [i, j]: j comes before i
  mine, other = values[..., :, None], values[..., None, :]
  return ((other < mine) | ((other == mine) & before)).sum(-1, dtype=jnp.int32)


@functools.lru_cache(maxsize=64)
def flip_sets(num_gates: int, k: int) -> np.ndarray:
  """The sets of gates, in order of cost, that may be among the k cheapest whatever the costs.

  Set A costs no more than B, for all costs c_0 ≤ c_1 ≤ …, if and only if from every position on A
  has at most as many gates as B. A set with k or more such sets before it is never needed.

  Returns:
    int8 [F, num_gates], 1 for a gate in the set; the empty set first.
  """
  if not num_gates:
    return np.zeros((1, 0), np.int8)
  tails = lambda s: np.cumsum(s[::-1])[::-1]
  empty = (0,) * num_gates
  family, frontier, seen = [empty], [empty], {empty}
  while frontier:
    grown = []
    for found in frontier:
      for after in _next_sets(found):
        if after not in seen:
          seen.add(after)
          grown.append(after)
    # By rank, so that every set that comes before another is judged before it.
    frontier = []
    for one in sorted(grown, key=lambda s: sum(i + 1 for i, on in enumerate(s) if on)):
      below = sum(bool((tails(np.array(f)) <= tails(np.array(one))).all()) for f in family)
      if below < k:
        family.append(one)
        frontier.append(one)
  return np.array(family, np.int8)


def _next_sets(found):
  """The sets that cost next to a set: with the cheapest gate added, or one gate a place dearer."""
  if not found[0]:
    yield (1, *found[1:])
  for i, on in enumerate(found[:-1]):
    if on and not found[i + 1]:
      yield (*found[:i], 0, 1, *found[i + 2 :])
