"""FLOPs of what tokens chose, against XLA's count of networks that do no more."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from additive_jax import UserError
from additive_jax.gates.routers import ListFacts
from additive_jax.models import DNA, Experts, Modules, Routing, Transformer, measure
from additive_jax.models.active import active_flops, fitted
from additive_jax.models.costs import num_params

TOKENS, WIDTH, HIDDEN, LAYERS, CLASSES = 12, 16, 24, 2, 11
X = np.zeros((1, TOKENS), np.uint8)


def transformer(routing=None, hidden=HIDDEN, **options):
  return Transformer(
    LAYERS, WIDTH, 2, hidden, CLASSES, CLASSES, causal=True, routing=routing, **options
  )


def dna(modules, steps=2, backbone=0):
  return DNA(steps, WIDTH, 2, HIDDEN, CLASSES, modules, backbone, num_tokens=CLASSES, causal=True)


def whole(model):
  """XLA's count of the network with all gates on."""
  space = measure(model, X)
  return space.flops(space.all_on())


def facts(loads):
  count = len(loads[0])
  nothing = np.zeros(count)
  return {
    f'step_{i:02}': ListFacts(np.array(load, float), nothing, 0.0, 0.0)
    for i, load in enumerate(loads)
  }


def test_networks_without_routers_cost_what_xla_counts():
  assert active_flops(transformer(), X) == whole(transformer())


@pytest.mark.parametrize('router', ['softmax', 'factorised', 'marginal', 'random'])
def test_a_mixture_costs_what_xla_counts(router):
  model = transformer(Routing(router))
  # Of one token alone the facts about the batch, a few sums, count once for each.
  assert active_flops(model, X) == pytest.approx(whole(model), rel=0.012)


@pytest.mark.slow
def test_tokens_that_are_not_computed_cost_their_routers_alone():
  part = functools.cache(lambda keep: active_flops(transformer(Routing('softmax', keep=keep)), X))
  dense = transformer()
  attention = measure(dense, X).flops([1, 0] * LAYERS)
  router = LAYERS * TOKENS * 2 * WIDTH * (8 + 1)
  assert part(1e-9) == pytest.approx(attention + router, rel=1e-6)
  assert part(0.5) - part(0.25) == pytest.approx(part(0.75) - part(0.5), rel=1e-9)
  model = transformer(Routing('softmax', keep=0.5))
  seen = {f'block_{i:02}__mlp': ListFacts(0, 0, 0, 0, kept=share) for i, share in enumerate((0, 1))}
  assert active_flops(model, X, seen) == pytest.approx(part(0.5), rel=1e-9)


def test_experts_cost_as_many_hidden_units_as_a_token_uses():
  model = transformer(Experts(5, 3))
  router = LAYERS * TOKENS * 2 * WIDTH * 5
  assert active_flops(model, X) == whole(transformer(hidden=3 * HIDDEN)) + router


def test_a_dna_whose_tokens_all_choose_alike_costs_the_dense_network():
  modules = Modules(1, 1, 0, 1, 1)
  router = 2 * TOKENS * 2 * WIDTH * 3
  alike = active_flops(dna(modules), X, facts([[1, 0, 0], [0, 1, 0]]))
  assert alike == pytest.approx(whole(transformer().clone(num_layers=1)) + router, rel=1e-3)
  nothing = active_flops(dna(modules), X, facts([[0, 0, 1], [0, 0, 1]]))
  assert nothing == pytest.approx(measure(transformer(), X).fixed_flops + router, rel=1e-6)


def test_shared_keys_cost_the_same_however_many_choose_attention():
  modules = Modules(1, 0, 0, 1, 1, shared_keys=True)
  costs = [active_flops(dna(modules), X, facts([[s, 1 - s]] * 2)) for s in (0.0, 0.5, 1.0)]
  own = dataclasses.replace(modules, shared_keys=False)
  assert costs[2] == pytest.approx(
    active_flops(dna(own), X, facts([[1, 0]] * 2)), rel=0.05
  )  # and a norm
  keys = costs[0] - active_flops(dna(own), X, facts([[0, 1]] * 2))
  assert keys == pytest.approx(2 * TOKENS * 2 * WIDTH * 2 * WIDTH, rel=0.2)  # and norm and biases
  assert costs[1] == pytest.approx((costs[0] + costs[2]) / 2)


def test_attention_among_fewer_tokens_costs_less_than_its_share():
  modules = Modules(2, 0, 0, 0, 1)
  together = active_flops(dna(modules), X, facts([[1, 0], [1, 0]]))
  apart = active_flops(dna(modules), X, facts([[0.5, 0.5], [0.5, 0.5]]))
  assert apart < together
  assert active_flops(dna(modules), X) == apart  # without facts loads are even


def test_attention_counts_the_tokens_of_each_sequence():
  """All tokens of one example on module 0 and of another on module 1, against half on each."""
  modules = Modules(2, 0, 0, 0, 1)
  even = facts([[0.5, 0.5], [0.5, 0.5]])
  apart = np.arange(2)[:, None, None, None] + np.zeros((2, TOKENS, 2, 1), int)
  mixed = np.arange(TOKENS)[None, :, None, None] % 2 + np.zeros((2, TOKENS, 2, 1), int)
  together = active_flops(dna(modules), X, facts([[1, 0], [1, 0]]))
  assert active_flops(dna(modules), X, even, apart) == pytest.approx(together)
  assert active_flops(dna(modules), X, even, mixed) == active_flops(dna(modules), X, even)


def test_blocks_cost_both_their_branches():
  one = lambda modules, load: active_flops(dna(modules, 1), X, facts([load]))
  blocks = one(Modules(0, 0, 1, 0, 1), [1.0])
  both = active_flops(dna(Modules(1, 1, 0, 0, 1), 2), X, facts([[1, 0], [0, 1]]))
  routers = 2 * TOKENS * WIDTH * np.array([1, 2 * 2])
  assert blocks - routers[0] == pytest.approx(both - routers[1], rel=1e-6)


def test_a_backbone_is_dense():
  modules = Modules(1, 1, 0, 0, 1)
  more = active_flops(dna(modules, 1, 2), X) - active_flops(dna(modules, 1), X)
  space = measure(transformer(), X)
  assert more == pytest.approx(sum(gate.flops for gate in space.gates[:2]), rel=1e-3)


@pytest.mark.slow
def test_parameters_are_those_of_the_pool():
  model = transformer(Experts(3, 1))
  pool = model.init(jax.random.key(0), X)
  assert num_params(model, X) == sum(leaf.size for leaf in jax.tree.leaves(pool))


@pytest.mark.slow
def test_hidden_units_are_fitted_to_a_budget():
  target = whole(transformer())
  cost = lambda model: active_flops(model, X)
  model = fitted(lambda h: transformer(Routing('marginal'), h), cost, target, 'flops')
  unit = cost(transformer(Routing('marginal'), 33)) - cost(transformer(Routing('marginal'), 32))
  assert model.hidden < HIDDEN
  assert abs(cost(model) - target) <= unit / 2
  with pytest.raises(UserError, match=r'flops of mine: 10.*expected a smaller rest'):
    fitted(transformer_of, cost, 10, 'flops of mine')


def transformer_of(hidden):
  return transformer(hidden=hidden)
