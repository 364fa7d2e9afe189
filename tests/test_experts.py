"""The site whose experts are its own structures: weights, routers, and what it reports."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from additive_jax import UserError
from additive_jax.gates import routers
from additive_jax.gates.layers import Layer, LayerPair, sub_activation
from additive_jax.gates.structure import all_bits
from additive_jax.models import Transformer
from additive_jax.models.experts import StructureExperts
from additive_jax.models.routing import CHOICES, KEEP_BIAS, ROUTING, SELECTION_BIAS, Routing
from additive_jax.run.ways import chosen

WIDTH, HIDDEN, CHUNKS = 10, 12, 4
STREAM = (3, 5, WIDTH)


def stream(seed=0):
  return jax.random.normal(jax.random.key(seed), STREAM)


def pool_of(site, seed=1):
  """A pool whose every leaf is random, so that no bias or scale hides."""
  shapes = jax.eval_shape(site.init, jax.random.key(0), jax.ShapeDtypeStruct(STREAM, 'float32'))
  random = np.random.default_rng(seed)

  def leaf(path, shape):
    centre = float('scale' in jax.tree_util.keystr(path))
    return jnp.asarray(random.normal(centre, 0.4, shape.shape), shape.dtype)

  return jax.tree_util.tree_map_with_path(leaf, shapes['params'])


def normed(params, h):
  h = np.asarray(h, np.float64)
  x = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
  return jnp.asarray(
    x * np.asarray(params['norm']['scale']) + np.asarray(params['norm']['bias']), jnp.float32
  )


def experts(params, x, structures, gated):
  """Every expert of every token, [S, B, T, D], each by its static form."""
  layers = LayerPair(*(Layer(**params[name]) for name in ('in', 'out')))
  layers = layers._replace(gating=Layer(**params['gate'])) if gated else layers
  bits = tuple(tuple(map(bool, row)) for row in structures)
  return np.asarray(static_experts(bits, x, layers))


@functools.partial(jax.jit, static_argnums=0)
def static_experts(structures, x, layers):
  return jnp.stack([sub_activation(x, layers, s, jax.nn.gelu) for s in structures])


def explicit(how, params, x, structures):
  """Each token's weight on each structure, [B, T, S], by enumeration in float64."""
  logits = np.asarray(x, np.float64) @ np.asarray(params['router']['kernel'], np.float64)
  if how.router == 'softmax':
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = logits + np.asarray(params[SELECTION_BIAS])
  else:
    score = lambda z: (
      -np.log1p(np.exp(np.where(structures, -z[..., None, :], z[..., None, :]))).sum(-1)
    )
    log_p = score(logits)
    if how.router == 'marginal':
      return np.exp(log_p)
    scores = score(logits + np.asarray(params[SELECTION_BIAS]))
  best = np.argsort(-scores, axis=-1)[..., : how.top_k]
  weights = np.zeros_like(log_p)
  np.put_along_axis(weights, best, np.take_along_axis(np.exp(log_p), best, -1), -1)
  return weights / weights.sum(-1, keepdims=True) if how.renormalise else weights


CASES = {
  'softmax': Routing('softmax', 2),
  'softmax, one': Routing('softmax', 1),
  'softmax of a list': Routing('softmax', 2, True, ('111', '010', '000')),
  'factorised': Routing('factorised', 3),
  'factorised, renormalised': Routing('factorised', 2, True),
  'marginal': Routing('marginal'),
}


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('how', CASES.values(), ids=CASES)
def test_output_is_the_weighted_sum_of_experts(how, gated):
  site = StructureExperts(HIDDEN, CHUNKS, how, gated=gated)
  params, h = pool_of(site), stream()
  structures = how.listed(CHUNKS - 1)
  x = normed(params, h)
  weights = explicit(how, params, x, structures)
  want = h + np.einsum('bts,sbtd->btd', weights, experts(params, x, structures, gated))
  found = jax.jit(site.apply)({'params': params}, h)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)  # exponentials of float32 logits
  assert np.abs(found - h).max() > 0.1


def test_random_routes_differ_by_site(random_pool):
  """Also without a key, as when a network is judged."""
  model = Transformer(2, 8, 2, 6, 5, num_tokens=5, num_chunks=3, routing=Routing('random', 1))
  tokens = np.zeros((2, 16), np.int32)
  keys = None, None, jax.random.key(1)
  look = jax.jit(lambda v: [chosen(model, v, tokens, key)[2] for key in keys])
  (first, second), (again, _), (drawn, _) = (
    sites.values() for sites in look(random_pool(model, tokens))
  )
  assert (first.indices != second.indices).any()
  np.testing.assert_array_equal(first.indices, again.indices)
  assert (first.indices != drawn.indices).any()


@pytest.mark.slow
def test_random_routes_by_position_and_key():
  how = Routing('random', 2, structures=('111', '100', '010', '001', '000'))
  site = StructureExperts(HIDDEN, CHUNKS, how)
  params, h = pool_of(site), stream()
  assert 'router' not in params
  draw = lambda key: site.apply({'params': params}, h, rngs={ROUTING: jax.random.key(key)})
  fixed = site.apply({'params': params}, h)
  np.testing.assert_array_equal(fixed, site.apply({'params': params}, h))
  assert np.abs(draw(1) - draw(2)).max() > 1e-3
  # Examples are routed alike: the same example twice gives the same output.
  twice = site.apply({'params': params}, jnp.concatenate([h[:1], h[:1]]))
  np.testing.assert_array_equal(twice[0], twice[1])
  # Any draw is a mean of two experts of each token.
  every = experts(params, normed(params, h), how.listed(3), gated=False)
  pairs = np.stack([(every[a] + every[b]) / 2 for a in range(5) for b in range(a)])
  gap = np.abs(np.asarray(fixed - h) - pairs).max(-1).min(0)
  assert gap.max() < 1e-5


@pytest.mark.parametrize('how', CASES.values(), ids=CASES)
def test_tokens_do_not_see_each_other(how):
  site = StructureExperts(HIDDEN, CHUNKS, how)
  params, h = pool_of(site), stream()
  moved = h.at[1, 2].add(1.0)
  apply = jax.jit(site.apply)
  same = np.asarray(apply({'params': params}, h) == apply({'params': params}, moved)).all(-1)
  assert not same[1, 2]
  same[1, 2] = True
  assert same.all()


def test_facts_of_a_list():
  site = StructureExperts(HIDDEN, CHUNKS, CASES['softmax of a list'])
  params, h = pool_of(site), stream()
  _, state = site.apply({'params': params}, h, mutable=[ROUTING])
  facts = state[ROUTING]['left']
  logits = np.asarray(normed(params, h) @ params['router']['kernel'], np.float64)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  best = np.argsort(-(logits + np.asarray(params[SELECTION_BIAS])), axis=-1)[..., :2]
  load = np.bincount(best.ravel(), minlength=3) / best.size
  np.testing.assert_allclose(facts.load, load, rtol=1e-6)
  np.testing.assert_allclose(facts.importance, p.mean((0, 1)), rtol=1e-4)
  np.testing.assert_allclose(facts.entropy, -(p * np.log(p)).sum(-1).mean(), rtol=1e-4)
  np.testing.assert_allclose(facts.z, (np.log(np.exp(logits).sum(-1)) ** 2).mean(), rtol=1e-4)
  want = 3 * (load * p.mean((0, 1))).sum()
  np.testing.assert_allclose(routers.load_balance(facts), want, rtol=1e-4)
  moved = routers.rebalanced(jnp.zeros(3), facts, 0.1)
  np.testing.assert_allclose(moved, 0.1 * np.sign(1 / 3 - load), rtol=1e-6)


@pytest.mark.slow
def test_facts_of_gates():
  site = StructureExperts(HIDDEN, CHUNKS, CASES['factorised'])
  params, h = pool_of(site), stream()
  _, state = site.apply({'params': params}, h, mutable=[ROUTING])
  facts = state[ROUTING]['left']
  logits = np.asarray(normed(params, h) @ params['router']['kernel'], np.float64)
  on = 1 / (1 + np.exp(-logits))
  bits = np.asarray(routers.k_best(jnp.float32(logits), 3, bias=params[SELECTION_BIAS])[1])
  np.testing.assert_allclose(facts.load, bits.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(facts.importance, on.mean((0, 1)), rtol=1e-4)
  every = all_bits(3)
  p = np.where(every, on[..., None, :], 1 - on[..., None, :]).prod(-1)
  np.testing.assert_allclose(facts.entropy, -(p * np.log(p)).sum(-1).mean(), rtol=1e-4)
  # log Σ_s Π_i exp(±logit_i / 2): the normaliser of all structures.
  signed = np.where(every, logits[..., None, :], -logits[..., None, :]) / 2
  normaliser = np.log(np.exp(signed.sum(-1)).sum(-1))
  np.testing.assert_allclose(facts.z, (normaliser**2).mean(), rtol=1e-4)
  codes = bits @ (1 << np.arange(3))
  np.testing.assert_allclose(
    facts.structures, np.bincount(codes.ravel(), minlength=8) / codes.size, rtol=1e-6
  )
  load, mean = bits.mean((0, 1, 2)), on.mean((0, 1))
  want = 2 * (load * mean + (1 - load) * (1 - mean)).mean()
  np.testing.assert_allclose(routers.load_balance(facts), want, rtol=1e-4)


def test_selection_bias_evens_the_load():
  """Outside the gradient: only the choice changes, until every structure gets its share."""
  logits = jax.random.normal(jax.random.key(0), (400, 8)) + jnp.arange(8) / 2
  bias = jnp.zeros(8)
  loads = []

  @jax.jit
  def step(bias):
    facts = routers.facts_of_list(logits, routers.top_k(logits, 2, bias=bias).indices, 8)
    return routers.rebalanced(bias, facts, 0.02), facts.load

  for _ in range(300):
    bias, load = step(bias)
    loads.append(np.asarray(load))
  assert np.max(loads[0]) > 0.3
  np.testing.assert_allclose(loads[-1], 1 / 8, atol=0.02)


def test_balance_pushes_towards_even_choices():
  for facts_of in (
    lambda z: routers.facts_of_list(z, routers.top_k(z, 1).indices, 4),
    lambda z: routers.facts_of_gates(z, routers.k_best(z, 1)[1]),
  ):
    logits = jnp.array([2.0, 0.5, -0.5, -1]) + jax.random.normal(jax.random.key(1), (200, 4)) / 2
    loss = jax.jit(jax.value_and_grad(lambda z, of=facts_of: routers.load_balance(of(z))))
    start = loss(logits)[0]
    for _ in range(50):
      logits = logits - 100 * loss(logits)[1]
    assert loss(logits)[0] < start - 0.1


@pytest.mark.parametrize(
  ('how', 'message'),
  [
    (Routing('top'), "router 'top': expected one of softmax, factorised, marginal, random"),
    (Routing(keep=0.0), r'keep 0.0: expected a share of tokens in \(0, 1\]'),
    (Routing('softmax', 9), 'top 9 of 8 structures: expected 1 to 8'),
    (Routing('factorised', 9), 'top 9 of 8 structures: expected 1 to 8'),
    (Routing('random', 3, structures=('111', '000')), 'top 3 of 2 structures: expected 1 to 2'),
    (Routing('softmax', 1, structures=('111', '111')), 'structure 111 is listed twice'),
    (Routing('softmax', 1, structures=('1111',)), 'structure 1111 has 4 gates: expected 3'),
    (Routing('marginal', structures=('111',)), "1 listed structures for the router 'marginal'"),
  ],
)
def test_bad_routing(how, message):
  with pytest.raises(UserError, match=message):
    StructureExperts(HIDDEN, CHUNKS, how).init(jax.random.key(0), stream())


def test_too_many_structures_to_list():
  site = StructureExperts(HIDDEN, 20, Routing('softmax', 1))
  with pytest.raises(UserError, match="routers 'factorised' and 'marginal' do not enumerate"):
    site.init(jax.random.key(0), jnp.ones((1, 2, 20)))


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', tiny.slow_but(['softmax'], ['softmax', 'factorised, renormalised', 'marginal'])
)
def test_tokens_with_gates_of_their_own(name):
  """Those that are off keep their stream to the bit, even all; the others add their share."""
  how, own = CASES[name], dataclasses.replace(CASES[name], keep=0.5)
  site, h = StructureExperts(HIDDEN, CHUNKS, own), stream()
  params = pool_of(site)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(params):
    found, left = site.apply({'params': params}, h, mutable=[ROUTING])
    return jnp.sin(found).sum(), (found, left)

  # One of them with every size that tokens are packed into.
  with contextlib.nullcontext() if name == 'softmax' else tiny.two_sizes():
    slope, (found, left) = gradient(params)
  full = jax.jit(StructureExperts(HIDDEN, CHUNKS, how).apply)
  x = normed(params, h)
  score = np.asarray(x @ params['keep']['kernel'])[..., 0]
  on = score + np.asarray(params[KEEP_BIAS]) > 0
  assert 0 < on.mean() < 1
  np.testing.assert_array_equal(found[~on], h[~on])
  every = full({'params': {k: v for k, v in params.items() if 'keep' not in k}}, h) - h
  want = h + on[..., None] / (1 + np.exp(-score))[..., None] * every
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(left[ROUTING]['left'].kept, on.mean(), rtol=1e-6)
  assert np.abs(slope['keep']['kernel']).max() > 1e-4
  assert slope[KEEP_BIAS] == 0
  _, (off, _) = gradient({**params, KEEP_BIAS: jnp.float32(-1e3)})
  np.testing.assert_array_equal(off, h)


@pytest.mark.parametrize('router', tiny.slow_but(['softmax'], ['softmax', 'marginal']))
def test_one_router_for_all_layers(router, random_pool):
  """Equals one router per layer that happen to be the same, and gradients add up in it."""
  tokens = np.random.default_rng(0).integers(0, 5, (2, 4))
  model = lambda shared: Transformer(
    2, 8, 2, 6, 5, num_tokens=5, num_chunks=3, routing=Routing(router, shared=shared)
  )
  one = random_pool(model(True), tokens)['params']
  kernel = 3 * one.pop('router')['kernel']
  each = dict(one)
  for name in ('block_00__mlp', 'block_01__mlp'):
    assert 'router' not in one[name]
    each[name] = one[name] | {'router': {'kernel': kernel}}
  one['router'] = {'kernel': kernel}
  run = lambda shared: jax.jit(
    jax.value_and_grad(lambda p: jnp.sin(model(shared).apply({'params': p}, tokens)).sum())
  )
  value, gradient = run(True)(one)
  want, parts = run(False)(each)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  total = sum(parts[f'block_{i:02}__mlp']['router']['kernel'] for i in range(2))
  np.testing.assert_allclose(gradient['router']['kernel'], total, rtol=1e-4, atol=1e-6)
  assert np.abs(total).max() > 1e-3


def test_choices_of_every_token_are_left():
  site = StructureExperts(HIDDEN, CHUNKS, Routing('factorised', 3, keep=0.5))
  params, h = pool_of(site), stream()
  _, state = site.apply({'params': params}, h, mutable=[CHOICES])
  chosen = state[CHOICES]['left']
  x = normed(params, h)
  _, best = routers.k_best(x @ params['router']['kernel'], 3, bias=params[SELECTION_BIAS])
  np.testing.assert_array_equal(chosen.indices, best @ (1 << np.arange(3)))
  on = x @ params['keep']['kernel'][:, 0] + params[KEEP_BIAS] > 0
  np.testing.assert_array_equal(chosen.on, on)
  assert 0 < on.mean() < 1
  marginal = StructureExperts(HIDDEN, CHUNKS, Routing('marginal'))
  state = marginal.apply({'params': pool_of(marginal)}, h, mutable=[CHOICES])[1]
  assert state[CHOICES]['left'].indices is None


def test_structures_beyond_an_int32_have_no_numbers():
  assert routers.codes(jnp.ones((2, 32), bool)) is None
  np.testing.assert_array_equal(routers.codes(jnp.ones((2, 31), bool)), 2**31 - 1)
