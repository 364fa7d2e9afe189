"""Pairs of sites that read one stream, against their definition in a few lines."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import additive_jax as aj
from additive_jax.gates.structure import all_structures
from additive_jax.models.last_layer import has_last_layer, last_layer
from additive_jax.testing import check_model

X = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
Y = np.arange(5) % 3


def pool(network, x):
  rng = np.random.default_rng(1)
  variables = jax.jit(network.init)(jax.random.key(0), x)
  return jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), variables)


def by_hand(network, variables, x, values):
  """Logits, of a value for each site: 'off', 'on', or 'parallel' to the site before it."""

  def run(module, x):
    h = read = module.embed(x)
    for value, site in zip(values, module.sites):
      branch = lambda h, site=site: site(h) - h  # of sites that name their gates
      if value == 'on':
        h, read = h + branch(h), h
      elif value == 'parallel':
        h = read = h + branch(read)
    return module.readout(h)

  return nn.Module.apply(network, variables, x, method=run)


def test_every_structure_is_its_definition():
  network = aj.models.MLP(num_blocks=4, width=4, hidden=8, num_classes=3)
  model, variables = aj.models.ParallelPairs(network), pool(network, X)
  assert model.space.num_gates == 7
  for structure in all_structures(7):
    first, *rest = structure.bits
    pairs = zip(rest[::2], rest[1::2])
    values = ['on' if first else 'off']
    values += ['off' if not on else 'on' if in_turn else 'parallel' for on, in_turn in pairs]
    want = by_hand(network, variables, X, values)
    got = aj.static(model, variables, X, structure)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
  in_turn, beside = (aj.static(model, variables, X, bits) for bits in ('1111111', '1110111'))
  assert np.abs(in_turn - beside).max() > 0.01


class Narrowing(aj.Additive):
  """A site whose stream changes shape, between residual ones."""

  def setup(self):
    self.embed, self.readout = nn.Dense(4), nn.Dense(3)
    self.sites = [
      nn.Dense(4, name='first'),
      aj.models.Projected(nn.Dense(2), shortcut=nn.Dense(2), name='down'),
      nn.Dense(2, name='second'),
      nn.Dense(2, name='third'),
    ]


TEXT = {'width': 8, 'num_heads': 2, 'hidden': 16, 'num_classes': 11, 'num_tokens': 11}
NETWORKS = {
  'chunks': (
    aj.models.MLP(2, 4, 8, 3, gates=('residual', 'sub_activation'), num_chunks=2),
    (X, Y),
    'classification',
  ),
  'projected': (Narrowing(), (X, Y), 'classification'),
  'text': (
    aj.models.Transformer(2, **TEXT, causal=True),
    (np.arange(10).reshape(2, 5), np.arange(10).reshape(2, 5)),
    'language',
  ),
}


@pytest.mark.parametrize('name', tiny.thorough_but(['projected', 'text'], NETWORKS))
def test_all_ways_to_run_agree(name):
  network, batch, task = NETWORKS[name]
  model = aj.models.ParallelPairs(network)
  assert 'keeps the contract' in check_model(model, batch, task=task, max_structures=6)
  variables = pool(network, batch[0])
  assert jax.tree.structure(variables) == jax.tree.structure(pool(model, batch[0]))
  x = batch[0]
  np.testing.assert_array_equal(model.apply(variables, x), network.apply(variables, x))
  names = [name.removesuffix('/in_turn') for name in model.space.names if name.endswith('in_turn')]
  sites = [name.removesuffix('/residual') for name in network.space.names if '/residual' in name]
  assert names == sites[1:]


def test_a_pair_learns_and_is_searched():
  network = aj.models.MLP(num_blocks=2, width=4, hidden=8, num_classes=3)
  model, variables = aj.models.ParallelPairs(network), pool(network, X)
  loss = lambda v: optax.softmax_cross_entropy_with_integer_labels(
    aj.static(model, v, X, '110'), Y
  ).mean()
  want = lambda v: optax.softmax_cross_entropy_with_integer_labels(
    by_hand(network, v, X, ['on', 'parallel']), Y
  ).mean()
  gradients = jax.grad(loss)(variables), jax.grad(want)(variables)
  for got, expected in zip(*map(jax.tree.leaves, gradients)):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  found = aj.evaluate_structures(model, variables, (X, Y), ['110', '111', '010'])
  np.testing.assert_allclose(found.loss[0], float(want(variables)), rtol=1e-5)


def test_what_has_no_last_layer_has_none_in_pairs():
  network, (x, _), _ = NETWORKS['text']
  assert has_last_layer(aj.models.ParallelPairs(network))
  assert not has_last_layer(aj.models.ParallelPairs(Narrowing()))
  model, variables = aj.models.ParallelPairs(network), pool(network, x)
  h = jnp.ones((2, 2, 5, 8))
  found = last_layer(model, variables, h)
  want = last_layer(network, variables, h[:, 0])
  np.testing.assert_array_equal(found.x, want.x)


def test_lanes_are_refused():
  model = aj.models.MLP(2, 4, 8, 3, gates=('lane',))
  with pytest.raises(aj.UserError, match='MLP with lanes: expected a network without them'):
    aj.models.ParallelPairs(model).space  # noqa: B018
