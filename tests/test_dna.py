"""Distributed neural architectures against computing every module for every token and masking."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError, run
from additive_jax.data import ArraySplit
from additive_jax.models.additive import branch, embed, readout
from additive_jax.models.dna import DNA, Modules
from additive_jax.models.routing import CHOICES, ROUTING, SELECTION_BIAS
from additive_jax.testing.check import check_model
from additive_jax.train import samplers
from additive_jax.train.balance import Balance
from additive_jax.train.losses import Routed
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

TEXT = {'num_heads': 2, 'hidden': 6, 'num_classes': 7, 'num_tokens': 7, 'causal': True}
# Every size that tokens are packed into is a branch to compile: short rows have few.
TOKENS = np.random.default_rng(0).integers(0, 7, (2, 4)).astype(np.uint8)
CASES = {
  'learned, gelu': DNA(1, 8, modules=Modules(2, 2, 1, 1, 2), **TEXT),
  'rope, swiglu, weights inside': DNA(
    1,
    8,
    modules=Modules(2, 1, 1, 2, 3, True, rescale_inside=True),
    positions='rope',
    unit='swiglu',
    **TEXT,
  ),
  'shared keys': DNA(
    2,
    8,
    modules=Modules(2, 1, 1, 1, 2, shared_keys=True),
    positions='rope',
    **TEXT,
  ),
  'one module': DNA(2, 8, modules=Modules(2, 2, 0, 0, 1), num_backbone=2, **TEXT),
}


def norm(x, scale, bias):
  variance = ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True)
  return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(variance + 1e-6) * scale + bias


def turned(x):
  """Rotary positions, a pair at a time."""
  size = x.shape[-1]
  out = [None] * size
  for i in range(size // 2):
    angle = (np.arange(x.shape[1]) * 10_000.0 ** (-2 * i / size))[None, :, None]
    a, b = x[..., i], x[..., i + size // 2]
    out[i], out[i + size // 2] = (
      a * np.cos(angle) - b * np.sin(angle),
      a * np.sin(angle) + b * np.cos(angle),
    )
  return jnp.stack(out, -1)


def attention(model, p, name, i, h, chosen):
  """Of all tokens, over the keys of those that chose the module, or over those that it shares."""
  project = lambda x, kernel, bias: jnp.einsum('btd,dshk->sbthk', x, kernel) + bias[:, None, None]
  x = norm(h, p[f'{name}_norm_scale'][i], p[f'{name}_norm_bias'][i])
  own = project(x, p[f'{name}_qkv']['kernel'][i], p[f'{name}_qkv']['bias'][i])
  if model.modules.shared_keys:
    shared, chosen = p['keys'], jnp.ones_like(chosen)
    x = norm(h, shared['norm']['scale'], shared['norm']['bias'])
    own = jnp.concatenate([own, project(x, shared['kv']['kernel'], shared['kv']['bias'])])
  q, k, v = own
  if model.positions == 'rope':
    q, k = turned(q), turned(k)
  scores = jnp.einsum('bqhk,bthk->bhqt', q, k) / np.sqrt(q.shape[-1])
  allowed = chosen[:, None, None, :] & np.tri(h.shape[1], dtype=bool)
  weights = jnp.where(allowed, jnp.exp(scores), 0)
  weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)
  mixed = jnp.einsum('bhqt,bthk->bqhk', weights, v)
  return (
    jnp.einsum('bqhk,hkd->bqd', mixed, p[f'{name}_out']['kernel'][i]) + p[f'{name}_out']['bias'][i]
  )


def mlp(model, p, name, i, h):
  x = norm(h, p[f'{name}_norm_scale'][i], p[f'{name}_norm_bias'][i])
  value = x @ p[f'{name}_in']['kernel'][i]
  if model.unit == 'swiglu':
    return (jax.nn.silu(x @ p[f'{name}_gate']['kernel'][i]) * value) @ p[f'{name}_out']['kernel'][i]
  value = jax.nn.gelu(value + p[f'{name}_in']['bias'][i])
  return value @ p[f'{name}_out']['kernel'][i] + p[f'{name}_out']['bias'][i]


def step_by_masks(model, params, step, h):
  """One step, every module on every token."""
  how, pool, own = model.modules, params['pool'], params[f'step_{step:02}']
  logits = h @ own['router']['kernel']
  order = jnp.argsort(-(logits + own[SELECTION_BIAS]), axis=-1)[..., : how.top_k]
  on = jax.nn.one_hot(order, how.count).sum(-2)
  rho = jax.nn.softmax(logits) * on
  if how.renormalise:
    rho = rho / rho.sum(-1, keepdims=True)
  total, number = h, 0
  for kind in ('attention', 'mlp', 'block'):
    for i in range(getattr(how, kind)):
      chosen, weight = on[..., number] > 0, rho[..., number, None]
      if kind == 'attention':
        y = attention(model, pool, 'attention_attention', i, h, chosen)
      elif kind == 'mlp':
        y = mlp(model, pool, 'mlp_mlp', i, h)
      else:
        inside = weight if how.rescale_inside else 1.0
        y = inside * attention(model, pool, 'block_attention', i, h, chosen)
        y = y + inside * mlp(model, pool, 'block_mlp', i, h + y)
        weight = 1.0 if how.rescale_inside else weight
      total = total + weight * y
      number += 1
  return total


def by_masks(model, variables, x):
  h = embed(model, variables, x)
  for i in range(model.num_backbone):
    h = branch(model, variables, i, h)
  for step in range(model.num_steps):
    h = step_by_masks(model, variables['params'], step, h)
  return readout(model, variables, h)


@functools.cache
def applied(name):
  return jax.jit(CASES[name].apply)


def sizes(name):
  """Every size that tokens are packed into; two of them for the model that is the largest."""
  return tiny.two_sizes() if name == 'one module' else contextlib.nullcontext()


@pytest.mark.slow
@pytest.mark.parametrize('name', tiny.thorough_but(list(CASES)[:2], CASES))
def test_outputs_and_gradients_are_those_of_all_modules(name, random_pool):
  model = CASES[name]
  variables = random_pool(model, TOKENS)

  def gradient(form):
    def loss(v):
      out = form(v)
      return jnp.sin(out).mean(), out

    return jax.jit(jax.grad(loss, has_aux=True))(variables)

  want, outputs = gradient(lambda v: by_masks(model, v, TOKENS))
  with sizes(name):
    found, _ = gradient(lambda v: model.apply(v, TOKENS))
    np.testing.assert_allclose(applied(name)(variables, TOKENS), outputs, rtol=1e-4, atol=1e-4)
  # Sums over 8 tokens through three steps in float32.
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, found, want)
  assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(want)) > 0.01


@functools.cache
def forms_of_one_choice():
  """A model whose tokens choose one module each, and (outputs and facts, outputs by masks)."""
  model = DNA(1, 8, modules=Modules(2, 2, 1, 1, 1), **TEXT)
  return model, jax.jit(lambda v: (run.routed(model, v, TOKENS), by_masks(model, v, TOKENS)))


@pytest.mark.parametrize('favourite', [0, 2, 4])
def test_nothing_is_dropped_when_all_tokens_choose_one_module(favourite, random_pool):
  """An attention, a feed-forward module and a block, with every token of every sequence."""
  model, forms = forms_of_one_choice()
  variables = random_pool(model, TOKENS)
  variables['params']['step_00'][SELECTION_BIAS] = 1e3 * np.eye(6, dtype=np.float32)[favourite]
  (found, facts), want = forms(variables)
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
  assert facts['step_00'].load[favourite] == 1


def test_identities_compute_nothing(random_pool):
  model = DNA(2, 8, modules=Modules(1, 1, 0, 2, 1), **TEXT)
  variables = random_pool(model, TOKENS)
  for step in ('step_00', 'step_01'):
    variables['params'][step][SELECTION_BIAS] = jnp.array([-1e3, -1e3, 0, 0])
  ends = lambda v: readout(model, v, embed(model, v, TOKENS))
  found, want = jax.jit(lambda v: (model.apply(v, TOKENS), ends(v)))(variables)
  np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize('name', tiny.slow_but(['learned, gelu'], CASES))
def test_causality(name, random_pool):
  """At every capacity: choices differ with every token that is changed."""
  variables = random_pool(CASES[name], TOKENS)
  apply = functools.partial(applied(name), variables)
  with sizes(name):
    base = apply(TOKENS)
  for t in range(TOKENS.shape[1]):
    moved = TOKENS.copy()
    moved[:, t] = (moved[:, t] + 3) % 7
    gap = np.abs(apply(moved) - base).max((0, 2))
    # Matmuls of other sizes round differently.
    assert gap[:t].max(initial=0) < 1e-5
    assert gap[t] > 1e-3


@pytest.mark.slow
def test_facts_count_the_choices(random_pool):
  model = CASES['learned, gelu']
  variables = random_pool(model, TOKENS)
  both = lambda v: (run.chosen(model, v, TOKENS), run.routed(model, v, TOKENS)[0])
  (outputs, facts, chosen), routed = jax.jit(both)(variables)
  np.testing.assert_array_equal(outputs, routed)
  h = embed(model, variables, TOKENS)
  own = variables['params']['step_00']
  scores = h @ own['router']['kernel'] + own[SELECTION_BIAS]
  best = np.argsort(-scores, axis=-1)[..., :2]
  load = np.bincount(best.ravel(), minlength=6) / best.size
  np.testing.assert_allclose(facts['step_00'].load, load, rtol=1e-6)
  np.testing.assert_allclose(facts['step_00'].kept, 1 - load[5], rtol=1e-6)
  np.testing.assert_array_equal(chosen['step_00'].indices, best)
  assert set(facts) == set(chosen) == {'step_00'}


def test_steps_in_a_loop_are_the_steps_one_after_the_other(random_pool):
  """Outputs, facts, choices and gradients; and however many there are, one is compiled."""
  model = DNA(2, 4, modules=Modules(0, 2, 0, 1, 2), num_backbone=1, **TEXT)
  variables = random_pool(model, TOKENS)

  def in_a_loop(v):
    outputs, facts, chosen = run.chosen(model, v, TOKENS)
    return jnp.sin(outputs).mean(), (outputs, facts, chosen)

  def in_turn(v):
    outputs, left = model.apply(v, TOKENS, mutable=[ROUTING, CHOICES])
    facts, chosen = (
      {name: site['left'] for name, site in left[kind].items()} for kind in (ROUTING, CHOICES)
    )
    return jnp.sin(outputs).mean(), (outputs, facts, chosen)

  found, want = (
    jax.jit(jax.value_and_grad(form, has_aux=True))(variables) for form in (in_a_loop, in_turn)
  )
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, found, want)
  assert set(want[0][1][1]) == {'step_00', 'step_01'}
  routers = [found[1]['params'][step]['router']['kernel'] for step in ('step_00', 'step_01')]
  assert min(np.abs(router).max() for router in routers) > 1e-3

  def matmuls(steps):
    longer = model.clone(num_steps=steps)
    shapes = jax.eval_shape(longer.init, jax.random.key(0), TOKENS)
    program = jax.jit(lambda v: run.routed(longer, v, TOKENS))
    return program.lower(shapes).as_text().count('dot_general')

  assert matmuls(2) == matmuls(5) < 2 * matmuls(1)


@pytest.mark.thorough
def test_the_share_of_skipped_compute_settles():
  """By biases of the identities alone, which no gradient moves."""
  model = DNA(2, 8, modules=Modules(1, 2, 0, 2, 2, skip=0.3), **TEXT)
  split = ArraySplit(*np.random.default_rng(1).integers(0, 7, (2, 64, 2)).astype(np.uint8))
  recipe = Recipe(model, 'language', optax.adam(0.003), Routed(Balance(bias_rate=0.01)))
  trainer = Trainer(recipe, split, samplers.fixed('11', 2), batch_size=8, seed=0)
  with tiny.two_sizes():
    facts = trainer.run(400)['facts']
  for step in ('step_00', 'step_01'):
    assert abs(1 - facts[step].kept[-100:].mean() - 0.3) < 0.02
    bias = np.asarray(trainer.variables['params'][step][SELECTION_BIAS])
    np.testing.assert_array_equal(bias[:3], 0)
    assert np.abs(bias[3:]).max() > 0


@pytest.mark.thorough
def test_the_contract():
  """By default `test_contract_table` has routers, and above are outputs and gradients."""
  model = DNA(1, 4, modules=Modules(1, 1, 0, 1, 1), **TEXT | {'hidden': 4})
  x, y = np.random.default_rng(2).integers(0, 7, (2, 2, 2)).astype(np.uint8)
  with tiny.two_sizes():
    said = check_model(model, (x, y), task='language', max_structures=2)
  assert '\n1 gates; 2 structures' in said


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'modules': Modules(1, 1, 0, 1, 4)}, 'top 4 of 3 modules: expected 1 to 3'),
    ({'modules': Modules(skip=1.0)}, r'skip 1.0: expected a share in \[0, 1\)'),
    ({'modules': Modules(identity=0, skip=0.5)}, 'skip 0.5 without identity modules: expected at'),
    (
      {'modules': Modules(rescale_inside=True)},
      'rescale_inside without block modules: exp',
    ),
    ({'modules': Modules(mlp=-1)}, '-1 modules of mlp: expected 0 or more'),
    ({'positions': 'none'}, "positions 'none': expected one of learned, rope"),
    ({'unit': 'silu'}, "unit 'silu': expected one of gelu, relu, swiglu"),
    ({'num_heads': 8, 'positions': 'rope'}, '1 units over 2 halves of a head: expected'),
    ({'num_backbone': -1}, 'num_backbone -1: expected 0 or more'),
    ({'num_heads': 3}, '8 units of width over 3 heads: expected a multiple of 3'),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(UserError, match=message):
    DNA(2, 8, **TEXT | options)
