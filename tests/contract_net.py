"""A small network of a user's, whose sites and parts the tests of the contract exchange for broken
ones."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import Additive
from additive_jax.testing.check import ContractError, check_model

BATCH = (
  np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32),
  np.array([0, 1, 2, 0, 1, 2]),
)


class Branch(nn.Module):
  """A sound site; the broken ones below replace `change`."""

  @nn.compact
  def __call__(self, h):
    return self.change(jnp.tanh(nn.Dense(h.shape[-1], name='dense')(h)))

  def change(self, h):
    return h


class Net(Additive):
  """A user's network in a few lines, with one site that tests exchange."""

  site: type = Branch

  def setup(self):
    self.stem = nn.Dense(5)
    self.sites = [Branch(name='first'), self.site(name='second')]
    self.head = nn.Dense(3)

  def embed(self, x):
    return self.stem(x)

  def readout(self, h):
    return self.head(h)


class Gated(nn.Module):
  """A site that names its gates: the first is residual, the others each add a dense layer."""

  gates: tuple = ('residual', 'left', 'right')

  @nn.compact
  def __call__(self, h, values=()):
    values = values[-2:] or (True, True)
    return h + self.change(h, values)

  def change(self, h, values):
    layers = [nn.Dense(h.shape[-1], name=name)(h) for name in ('left', 'right')]
    return sum(self.weight(value, h) * layer for value, layer in zip(values, layers))

  def weight(self, value, h):
    value = jnp.asarray(value, h.dtype)
    return value.reshape(value.shape + (1,) * (h.ndim - value.ndim))


def violations(model, batch=BATCH, **kwargs):
  with pytest.raises(ContractError) as caught:
    check_model(model, batch, **kwargs)
  for i, sentence in enumerate(caught.value.violations, 1):
    assert f'{i}. {sentence}' in str(caught.value)
    assert '\n' not in sentence
    assert sentence.endswith('.')
  return caught.value.violations


def only(model, *words, **kwargs):
  """The model breaks one clause, and the sentence about it has these words."""
  found = violations(model, **kwargs)
  assert len(found) == 1, found
  for word in words:
    assert word in found[0]
