"""Dropout of the library's networks: what is dropped, where, and that it changes nothing else."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from additive_jax import UserError, run
from additive_jax.data import ArraySplit
from additive_jax.models import MLP, Dropout, Transformer
from additive_jax.models.feed_forward import FeedForward
from additive_jax.models.identity import describe, inner
from additive_jax.models.moe import Experts
from additive_jax.models.surrounding import Mode, in_mode
from additive_jax.parallel import mesh as mesh_
from additive_jax.parallel import processes
from additive_jax.parallel.placement import Placement
from additive_jax.train import samplers
from additive_jax.train.recipe import Recipe
from additive_jax.train.trainer import Trainer

RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(8, 6)).astype(np.float32)
TOKENS = RANDOM.integers(0, 5, (8, 6)).astype(np.uint8)
SIZES = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_classes': 5, 'num_tokens': 5}
NETWORKS = {
  'mlp': (MLP(2, 8, 16, 3, dropout=0.5), ROWS),
  'chunks': (MLP(2, 8, 16, 3, ('residual', 'sub_activation'), 3, dropout=0.5), ROWS),
  'transformer': (Transformer(2, **SIZES, causal=True, dropout=0.5), TOKENS),
}


@functools.cache
def pool_of(name):
  model, x = NETWORKS[name]
  return jax.jit(model.init)(jax.random.key(0), x)


def dropping():
  return in_mode(Mode(dropout=jax.random.key(3)))


@pytest.mark.parametrize('name', NETWORKS)
def test_all_ways_drop_the_same_and_judging_drops_nothing(name):
  model, x = NETWORKS[name]
  pool, plain = pool_of(name), model.clone(dropout=0.0)
  num_gates = model.space.num_gates
  bits = np.arange(num_gates) % 3 != 1
  without = run.static(plain, pool, x, bits)
  np.testing.assert_array_equal(run.static(model, pool, x, bits), without)
  rows = [jnp.arange(8) if on else jnp.arange(0) for on in bits]
  with dropping():
    dropped = run.static(model, pool, x, bits)
    others = [
      run.conditional(model, pool, x, jnp.asarray(bits)),
      run.masked(model, pool, x, bits.astype(np.float32)),
      run.gathered(model, pool, x, rows),
    ]
  assert not np.allclose(dropped, without, atol=0.01)
  for other in others:
    np.testing.assert_allclose(other, dropped, rtol=1e-4, atol=1e-5)  # sums in another order


def test_a_branch_drops_hidden_units_and_outputs():
  """By hand, with the masks that its `Dropout` drew."""
  site, h = FeedForward(16, activation=nn.relu, dropout=0.5), jnp.asarray(ROWS)
  params = site.init(jax.random.key(0), h)['params']
  masks = []

  def seen(call, args, kwargs, context):
    out = call(*args, **kwargs)
    if isinstance(context.module, Dropout):
      masks.append(np.where(args[0] == 0, 0, out / np.where(args[0] == 0, 1, args[0])))
    return out

  with nn.intercept_methods(seen):
    got = site.apply({'params': params}, h, rngs={'dropout': jax.random.key(1)})
  norm = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
  x = np.maximum(norm @ params['in']['kernel'], 0) * masks[0]
  want = h + (x @ params['out']['kernel']) * masks[1]
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  assert [mask.shape for mask in masks] == [(8, 16), (8, 6)]
  np.testing.assert_allclose(np.unique(masks[1].round(5)), [0, 2])


@pytest.mark.parametrize(
  ('name', 'spread'),
  [('transformer', {}), ('mlp', {'tensor_devices': 2}), ('transformer', {'tensor_devices': 2})],
)
def test_devices_that_share_the_work_drop_the_same(name, spread):
  model, x = NETWORKS[name]
  y = x.astype(np.int32) if x is TOKENS else np.arange(8, dtype=np.int32) % 3
  kind = 'language' if x is TOKENS else 'classification'

  def trained(mesh, model=model):
    recipe = Recipe(model, kind, optax.sgd(0.1))
    sampler = samplers.make_sampler('uniform', model.space.num_gates, 2)
    placement = Placement(mesh, chunk_steps=2)
    split = ArraySplit(x, y)
    trainer = Trainer(recipe, split, sampler, batch_size=4, seed=0, placement=placement)
    losses = trainer.run(2)['loss']
    return losses, processes.to_host(trainer.state.params)

  one = mesh_.make_mesh(1, 1, jax.devices()[:1])
  alone = trained(one)
  assert not np.allclose(alone[0], trained(one, model.clone(dropout=0.0))[0])
  many = trained(mesh_.make_mesh(2, 2, jax.devices()[: 4 if not spread else 8], **spread))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, many, alone)


@pytest.mark.parametrize('name', NETWORKS)
def test_without_it_a_network_is_what_it_was(name):
  model, x = NETWORKS[name]
  plain = model.clone(dropout=0.0)
  assert 'dropout' not in describe(plain) + inner(plain)
  assert 'dropout=0.5' in describe(model)
  assert 'dropout = 0.5' in inner(model)
  pool = jax.jit(plain.init)(jax.random.key(0), x)
  jax.tree.map(np.testing.assert_array_equal, pool, pool_of(name))


def test_what_it_does_not_go_with_is_refused():
  with pytest.raises(UserError, match=r'dropout 1\.0: expected a probability in \[0, 1\)'):
    MLP(1, 8, 16, 3, dropout=1.0)
  with pytest.raises(UserError, match=r'dropout 0\.1 with lane gates: expected 0'):
    MLP(1, 8, 16, 3, ('lane',), dropout=0.1)
  with pytest.raises(UserError, match=r'dropout 0\.1 with routers: expected 0'):
    Transformer(1, **SIZES, routing=Experts(2, top_k=1), dropout=0.1)
