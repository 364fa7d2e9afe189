"""Sites whose residual is a projection, and modules of other kinds that are given as parts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import additive_jax as aj
from additive_jax import UserError
from additive_jax.models import BatchNorm, Projected
from additive_jax.testing import check_model


class Block(nn.Module):
  channels: int
  strides: int = 1

  @nn.compact
  def __call__(self, h):
    h = nn.relu(BatchNorm()(h))
    return nn.Conv(self.channels, (3, 3), self.strides)(h)


class Net(aj.Additive):
  def setup(self):
    self.embed = nn.Conv(4, (3, 3))
    shortcut = nn.Conv(6, (1, 1), 2)
    self.sites = [
      Block(4, name='a'),
      Projected(Block(6, 2), shortcut, name='down'),
      Block(6, name='b'),
    ]
    self.head = nn.Dense(3)

  def readout(self, h):
    return self.head(h.mean((1, 2)))


@pytest.fixture(scope='module')
def x():
  return np.random.default_rng(0).normal(size=(6, 5, 4, 2)).astype(np.float32)


def test_the_whole_contract_holds(x):
  check_model(Net(), (x, np.arange(6) % 3), max_structures=2)


def test_a_gate_that_is_off_leaves_the_shortcut_alone(x):
  model = Net()
  variables = jax.jit(model.init)(jax.random.key(0), x)

  def by_hand(module, x):
    h = module.embed(x)
    return module.readout(module.sites[1].shortcut(h))

  expected = nn.Module.apply(model, variables, x, method=by_hand)
  for run in (aj.static, aj.conditional):
    np.testing.assert_allclose(run(model, variables, x, '000'), expected, rtol=1e-5, atol=1e-5)
  assert model.space.names == ('a/residual', 'down/branch', 'b/residual')


def test_the_shortcut_is_a_fixed_cost(x):
  space = aj.measure(Net(), x[:1])
  assert space.params('010') - space.params('000') == 3 * 3 * 4 * 6 + 6 + 8  # kernel, bias, norm
  assert space.params('000') == (3 * 3 * 2 * 4 + 4) + (4 * 6 + 6) + (6 * 3 + 3)
  assert space.gates[1].flops > 0


def test_a_branch_that_is_off_is_not_run(x):
  model = Net()
  variables = jax.jit(model.init)(jax.random.key(0), x)
  poisoned = jax.tree.map(jnp.asarray, variables)
  poisoned['params']['down']['branch'] = jax.tree.map(
    lambda leaf: jnp.full_like(leaf, jnp.nan), variables['params']['down']['branch']
  )
  loss = lambda v: (aj.conditional(model, v, x, jnp.array([True, False, True])) ** 2).sum()
  assert all(
    jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(loss)(poisoned)['params'])
  )


class Mlp(nnx.Module):
  def __init__(self, width, rngs):
    self.first = nnx.Linear(width, 8, rngs=rngs)
    self.second = nnx.Linear(8, width, rngs=rngs)

  def __call__(self, h):
    return self.second(nnx.relu(self.first(h)))


class Bridged(aj.Additive):
  bare: str = ''

  def setup(self):
    linen = [nnx.bridge.to_linen(Mlp, 4, name=name) for name in ('a', 'b')]
    own = Mlp(4, nnx.Rngs(0)) if self.bare else None
    self.sites = [*linen, own] if self.bare == 'sites' else linen
    self.embed = own if self.bare == 'embed' else nn.Dense(4)
    self.readout = nn.Dense(3)


def test_modules_of_nnx_go_over_the_bridge():
  rows = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
  model = Bridged()
  variables = jax.jit(model.init)(jax.random.key(0), rows)
  assert variables['params']['a']['first']['kernel'].shape == (4, 8)
  static = aj.static(model, variables, rows, '01')
  np.testing.assert_allclose(aj.conditional(model, variables, rows, '01'), static, rtol=1e-5)
  np.testing.assert_allclose(aj.shared_prefix(model, variables, rows, ['01'])[0], static, rtol=1e-5)


@pytest.mark.parametrize(('bare', 'name'), [('embed', 'embed'), ('sites', 'site 2')])
def test_a_bare_module_of_nnx_is_refused_with_the_way_out(bare, name):
  with pytest.raises(UserError, match=rf'{name} is a Mlp of flax.nnx: .*to_linen\(Mlp'):
    aj.models.additive.sites_of(Bridged(bare))


class Attend(nn.Module):
  """Attention over tokens that are no padding; the last channel says which, and stays as it is."""

  @nn.compact
  def __call__(self, h):
    tokens, real = h[..., :-1], h[..., -1] > 0.5
    mask = nn.make_attention_mask(real, real)
    added = nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(tokens), mask=mask)
    return jnp.concatenate([added, jnp.zeros_like(h[..., -1:])], -1)


class Padded(aj.Additive):
  def setup(self):
    self.table = nn.Embed(7, 4)
    self.sites = [Attend(name='a'), Attend(name='b')]
    self.head = nn.Dense(3)

  def embed(self, x):
    return jnp.concatenate([self.table(x), (x > 0)[..., None].astype(jnp.float32)], -1)

  def readout(self, h):
    real = h[..., -1:]
    return self.head((h[..., :-1] * real).sum(1) / real.sum(1))


def test_a_padding_mask_travels_in_the_stream():
  model, rows = Padded(), np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]], np.int32)
  variables = jax.jit(model.init)(jax.random.key(0), rows)
  logits = aj.static(model, variables, rows, '11')
  shorter = aj.static(model, variables, rows[:, :3], '11')
  np.testing.assert_allclose(logits, shorter, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(aj.conditional(model, variables, rows, '11'), logits, rtol=1e-5)
  np.testing.assert_allclose(aj.shared_prefix(model, variables, rows, ['11'])[0], logits, rtol=1e-5)


class Shifted(nn.Module):
  """A branch that is nothing without its side."""

  @nn.compact
  def __call__(self, h, side):
    return nn.Dense(5)(h * side)


class ShiftedNnx(nnx.Module):
  def __init__(self, width, rngs):
    self.dense = nnx.Linear(width, width, rngs=rngs)

  def __call__(self, h, side):
    return self.dense(h * side)


class Sided(aj.Additive):
  def setup(self):
    self.first = nn.Dense(4)
    self.sites = [
      nnx.bridge.to_linen(ShiftedNnx, 4, name='nnx'),
      Projected(Shifted(), nn.Dense(5), name='wider'),
    ]
    self.head = nn.Dense(3)

  def embed(self, x):
    return aj.models.WithSide(self.first(x), x[:, :1])

  def readout(self, h):
    return self.head(h)


def test_sides_reach_what_is_projected_and_what_is_of_nnx():
  model, x = Sided(), np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
  check_model(model, (x, np.arange(6) % 3), max_structures=2)
  variables = jax.jit(model.init)(jax.random.key(0), x)

  def by_hand(module, x):
    h, side = module.first(x), x[:, :1]
    h = h + module.sites[0](h, side=side)
    return module.head(module.sites[1].shortcut(h) + module.sites[1].branch(h, side))

  expected = nn.Module.apply(model, variables, x, method=by_hand)
  for run in (aj.static, aj.conditional):
    np.testing.assert_allclose(run(model, variables, x, '11'), expected, rtol=1e-5, atol=1e-5)
