"""The standard mixture of experts against computing every expert for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from additive_jax import UserError
from additive_jax.models import Transformer
from additive_jax.models.moe import Experts, MixtureOfExperts
from additive_jax.models.routing import ROUTING, SELECTION_BIAS

STREAM = (2, 6, 5)


def stream():
  return jax.random.normal(jax.random.key(0), STREAM)


def dense(site, params, h):
  """Every expert on every token, weighted by the router: JAX, so that it has gradients."""
  mean, var = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
  x = (h - mean) / jnp.sqrt(var + 1e-6) * params['norm']['scale'] + params['norm']['bias']
  value = jnp.einsum('btd,edh->bteh', x, params['in']['kernel'])
  if site.gated:
    value = jax.nn.gelu(jnp.einsum('btd,edh->bteh', x, params['gate']['kernel'])) * value
  else:
    value = jax.nn.gelu(value + params['in']['bias'])
  y = jnp.einsum('bteh,ehd->bted', value, params['out']['kernel'])
  y = y if site.gated else y + params['out']['bias']
  logits = x @ params['router']['kernel']
  order = jnp.argsort(-(logits + params[SELECTION_BIAS]), axis=-1)[..., : site.experts.top_k]
  on = jax.nn.one_hot(order, logits.shape[-1]).sum(-2)
  weights = jax.nn.softmax(logits) * on
  if site.experts.renormalise:
    weights = weights / weights.sum(-1, keepdims=True)
  return h + (weights[..., None] * y).sum(-2), on


CASES = [Experts(4, 2), Experts(4, 1), Experts(3, 3, True), Experts(1, 1)]


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('how', tiny.slow_but([CASES[2]], CASES), ids=str)
def test_output_and_gradients_are_those_of_all_experts(how, gated, random_pool):
  site, h = MixtureOfExperts(7, how, gated=gated), stream()
  params = random_pool(site, h)['params']

  def slope(form):
    def loss(p, h):
      out = form(p, h)
      return jnp.sin(out).sum(), out

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, h)

  found, output = slope(lambda p, h: site.apply({'params': p}, h))
  want, other = slope(lambda p, h: dense(site, p, h)[0])
  np.testing.assert_allclose(output, other, rtol=1e-4, atol=1e-5)
  # Sums over twelve tokens in float32.
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, found, want)


def test_load_counts_the_tokens_of_each_expert(random_pool):
  site, h = MixtureOfExperts(7, Experts(4, 2)), stream()
  params = random_pool(site, h)['params']
  _, state = site.apply({'params': params}, h, mutable=[ROUTING])
  load = dense(site, params, h)[1].sum((0, 1)) / 24
  np.testing.assert_allclose(state[ROUTING]['left'].load, load, rtol=1e-6)


def test_nothing_is_dropped_when_all_choose_one_expert(random_pool):
  site, h = MixtureOfExperts(7, Experts(4, 1)), stream()
  params = random_pool(site, h)['params']
  params[SELECTION_BIAS] = jnp.array([0.0, 0, 1e3, 0])
  found, want = site.apply({'params': params}, h), dense(site, params, h)[0]
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)
  assert (np.abs(found - h).max(-1) > 1e-3).all()


@pytest.mark.parametrize(
  ('how', 'message'),
  [
    (Experts(4, 5), 'top 5 of 4 experts: expected 1 to 4'),
    (Experts(0), 'num_experts 0: expected at least 1'),
  ],
)
def test_bad_experts(how, message):
  with pytest.raises(UserError, match=message):
    Transformer(1, 4, 2, 4, 5, num_tokens=5, routing=how)
