"""Convolutions inside loops and conditionals: plain Linen's numbers, in layouts that are fast."""

import re
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import additive_jax as aj
from additive_jax.models import conv_general_dilated
from additive_jax.models.convolution import fast_convolutions
from additive_jax.testing.case import Case
from additive_jax.testing.speed import steps_are_fast

IMAGES, ROWS = (2, 7, 6, 4), (2, 9, 4)
LAYERS = {
  'same': (nn.Conv(6, (3, 3)), IMAGES),
  'strided': (nn.Conv(6, (3, 3), strides=2), IMAGES),
  'valid, uneven': (nn.Conv(6, (2, 4), strides=(3, 2), padding='VALID'), IMAGES),
  'explicit': (nn.Conv(6, (3, 3), padding=((1, 2), (0, 3)), use_bias=False), IMAGES),
  'dilated': (nn.Conv(6, (3, 3), kernel_dilation=2, strides=2), IMAGES),
  'input dilated': (nn.Conv(6, (3, 3), input_dilation=2, padding=1), IMAGES),
  'groups': (nn.Conv(6, (3, 3), feature_group_count=2, strides=2), IMAGES),
  'many groups': (nn.Conv(40, (3, 3), feature_group_count=20), (2, 5, 5, 20)),
  'masked': (
    nn.Conv(6, (3, 3), mask=np.tri(4, 6)[None, None] * np.ones((3, 3, 1, 1), np.float32)),
    IMAGES,
  ),
  'circular': (nn.Conv(6, (3, 3), padding='CIRCULAR', strides=2), IMAGES),
  'bfloat16': (nn.Conv(6, (3, 3), dtype=jnp.bfloat16), IMAGES),
  'causal rows': (nn.Conv(6, 3, padding='CAUSAL', kernel_dilation=2), ROWS),
  'volumes': (nn.Conv(3, (3, 3, 3)), (2, 4, 3, 4, 2)),
  'transposed': (nn.ConvTranspose(6, (3, 3), (2, 2)), IMAGES),
  'transposed, circular': (nn.ConvTranspose(6, (3, 3), (2, 2), padding='CIRCULAR'), IMAGES),
  'checkpointed': (nn.remat(nn.Conv)(6, (3, 3)), IMAGES),
}


@pytest.mark.parametrize('name', LAYERS)
def test_numbers_and_gradients_are_those_of_plain_linen(name):
  layer, shape = LAYERS[name]
  x = jax.random.normal(jax.random.key(1), shape)
  variables = layer.init(jax.random.key(0), x)
  weights = jax.random.normal(jax.random.key(2), layer.apply(variables, x).shape)

  def both(variables, x):
    y, tangent = jax.jvp(layer.apply, (variables, x), (variables, x))
    loss = lambda v, x: (weights * layer.apply(v, x).astype(jnp.float32)).sum()
    return y, tangent, jax.grad(loss, (0, 1))(variables, x)

  def ours(variables, x):
    with fast_convolutions():
      return both(variables, x)

  expected, found = jax.jit(both)(variables, x), jax.jit(ours)(variables, x)
  assert jax.tree.map(jnp.shape, expected) == jax.tree.map(jnp.shape, found)
  for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
    assert a.dtype == b.dtype
    # Sums of some hundred terms in another order; bfloat16 has 8 bits.
    close = 3e-2 if a.dtype == jnp.bfloat16 or 'bfloat16' in name else 1e-5
    scale = float(jnp.abs(a).max())
    np.testing.assert_allclose(
      np.asarray(a, np.float32), np.asarray(b, np.float32), atol=close * scale
    )


def test_other_layouts_are_taken_too():
  x = jax.random.normal(jax.random.key(0), (2, 4, 7, 6))  # channels first, JAX's default
  kernel = jax.random.normal(jax.random.key(1), (5, 4, 3, 3))

  def gradient(convolve):
    return jax.grad(lambda x, k: (convolve(x, k, (2, 2), 'SAME') ** 2).sum(), (0, 1))(x, kernel)

  pairs = zip(gradient(jax.lax.conv_general_dilated), gradient(conv_general_dilated))
  for a, b in pairs:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


class Branch(nn.Module):
  @nn.compact
  def __call__(self, h):
    h = nn.Conv(8, (3, 3), (2, 2), feature_group_count=2)(nn.Conv(4, (1, 1))(h))
    return nn.ConvTranspose(4, (3, 3), (2, 2))(h)


class Net(aj.Additive):
  def setup(self):
    self.embed = nn.Conv(4, (3, 3))
    self.sites = [Branch(name='a'), Branch(name='b')]
    self.head = nn.Dense(3)

  def readout(self, h):
    return self.head(h.mean((1, 2)))


FAST = 'lhs_spec=(0,3,1,2),rhs_spec=(3,2,0,1),out_spec=(0,3,1,2)'


def test_every_convolution_of_a_step_has_the_layout_that_is_fast_in_a_conditional():
  model, x = Net(), np.ones((2, 6, 6, 2), np.float32)
  variables = jax.jit(model.init)(jax.random.key(0), x)
  loss = lambda v, bits: aj.conditional(model, v, x, bits).sum()
  text = str(jax.make_jaxpr(jax.grad(loss))(variables, jnp.ones(2, bool)))
  used = r'[a-z]:f32\[[\d,]*\]=conv_general_dilated\[.*?ConvDimensionNumbers\((.*?)\)feature'
  layouts = re.findall(used, re.sub(r'\s', '', text))  # results without use are called _
  assert len(layouts) > 12
  assert set(layouts) == {FAST}


def test_a_convolution_of_the_users_own_is_left_alone():
  calls = []

  def mine(*args, **kwargs):
    calls.append(args)
    return jax.lax.conv_general_dilated(*args, **kwargs)

  layer, x = nn.Conv(4, (3, 3), conv_general_dilated=mine), jnp.ones((1, 5, 5, 2))
  variables = layer.init(jax.random.key(0), x)
  calls.clear()
  with fast_convolutions():
    layer.apply(variables, x)
  assert len(calls) == 1


class OfJax(nn.Module):
  """A branch with a convolution of JAX's, or with the library's in its place."""

  convolve: Callable[..., jax.Array]

  @nn.compact
  def __call__(self, h):
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (3, 3, h.shape[-1], h.shape[-1]))
    layouts = ('NHWC', 'HWIO', 'NHWC')
    return self.convolve(h, kernel, (1, 1), 'SAME', dimension_numbers=layouts)


class Convolving(aj.Additive):
  convolve: Callable[..., jax.Array]

  def setup(self):
    self.embed = nn.Dense(16)
    self.sites = [OfJax(self.convolve)]
    self.head = nn.Dense(3)

  def readout(self, h):
    return self.head(h.mean((1, 2)))


def test_convolutions_that_are_slow_are_measured():
  x = np.random.default_rng(0).normal(size=(4, 12, 12, 3)).astype(np.float32)
  for convolve, is_slow in ((jax.lax.conv_general_dilated, True), (conv_general_dilated, False)):
    case = Case(Convolving(convolve), x, np.arange(4) % 3, None, aj.Task('classification'), 2, 0)
    case.moved = jax.jit(case.model.init)(jax.random.key(0), x)
    assert steps_are_fast(case)
    assert len(case.notes) == is_slow
    if is_slow:
      (text,) = case.notes
      ratio = float(re.search(r'takes ([\d.]+) times', text)[1])
      assert ratio > 2  # 80 to 90 on an idle machine
