"""Networks that keep the contract, and a broken one for every clause about numbers, with the words
it gets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_net import BATCH, Branch, Gated, Net, only, violations

from additive_jax import Additive
from additive_jax.gates.structure import Gate, Space, parse
from additive_jax.models import MLP
from additive_jax.testing import runs
from additive_jax.testing.check import check_model


def test_the_mlp_passes_and_says_what_was_compared():
  said = check_model(MLP(num_blocks=2, width=5, hidden=(7, 4), num_classes=3), BATCH)
  assert 'MLP keeps the contract' in said
  assert '2 gates; 4 structures compared by static' in said
  for way in ('conditional', 'masked', 'shared-prefix', 'model.apply'):
    assert way in said


def test_a_users_network_passes_on_a_sample_of_its_structures():
  assert '2 gates; 3 structures' in check_model(Net(), BATCH, max_structures=3)


@pytest.mark.slow
def test_a_module_that_only_looks_like_additive_passes():
  class Alike(nn.Module):
    def setup(self):
      self.embed, self.readout = nn.Dense(5), nn.Dense(3)
      self.sites = [Branch(), Branch()]

    def __call__(self, x, structure=None):
      return Additive.__call__(self, x, structure)

    @property
    def space(self):
      return Space((Gate('sites_0/residual'), Gate('sites_1/residual')))

  assert 'Alike keeps' in check_model(Alike(), BATCH)


@pytest.mark.slow
def test_tokens_and_bfloat16_pass():
  class Language(Net):
    def setup(self):
      self.stem = nn.Embed(7, 8, dtype=jnp.bfloat16)
      self.sites = [nn.Dense(8, dtype=jnp.bfloat16), nn.Dense(8, dtype=jnp.bfloat16)]
      self.head = nn.Dense(7, dtype=jnp.bfloat16)

  tokens = np.random.default_rng(1).integers(0, 7, (4, 6), np.uint8)
  assert 'Language keeps' in check_model(Language(), (tokens, tokens), task='language')


class Doubling(nn.Module):
  """Changes the stream and owns no gate."""

  gates: tuple = ()

  @nn.compact
  def __call__(self, h, values=()):
    return jnp.tanh(nn.Dense(2 * h.shape[-1])(h))


class Joined(Gated):
  """Changes the stream and owns two gates, none of which skips it."""

  gates: tuple = ('left', 'right')

  @nn.compact
  def __call__(self, h, values=()):
    return jnp.tanh(self.change(h, values or (True, True)))[..., :3]


@pytest.mark.slow
def test_sites_with_several_gates_and_sites_that_change_the_stream_pass():
  class Mixed(Net):
    def setup(self):
      self.stem, self.head = nn.Dense(5), nn.Dense(3)
      kinds = Branch, Doubling, Gated, Joined
      self.sites = [kind(name=f'site_{i}') for i, kind in enumerate(kinds)]

  said = check_model(Mixed(), BATCH, max_structures=6)
  assert '6 gates; 6 structures' in said
  assert 'parameters of site' not in said


@pytest.mark.slow
def test_zero_initialised_layers_hide_nothing_and_a_silent_site_is_a_note():
  class Silent(Net):
    def setup(self):
      self.stem = nn.Dense(5)
      self.sites = [nn.Dense(5, kernel_init=nn.initializers.zeros) for _ in range(2)]
      self.head = nn.Dense(3, kernel_init=nn.initializers.zeros)

  class SilentAndWrong(Silent):
    def __call__(self, x, structure=None):
      return super().__call__(x, None)

  assert "Site 'sites_0' adds nothing at init" in check_model(Silent(), BATCH)
  found = violations(SilentAndWrong())
  assert 'The outputs of model.apply(variables, x, structure) differ' in found[0]


# Numbers.


class Infinite(Branch):
  def change(self, h):
    return h / jnp.zeros_like(h)


class Random(Branch):
  def change(self, h):
    return h + np.random.default_rng().normal(size=h.shape[-1])


class Centred(Branch):
  def change(self, h):
    return h - h.mean(0)


class Shaken(Branch):
  """Depends on the number of examples alone."""

  def change(self, h):
    return h * len(h)


@pytest.mark.parametrize(
  ('site', 'words'),
  [
    pytest.param(Infinite, 'numbers that are not finite at init', marks=pytest.mark.slow),
    (Random, 'different numbers for the same input'),
    (Centred, 'mixes the examples of a batch'),
    pytest.param(Shaken, 'mixes the examples of a batch', marks=pytest.mark.slow),
  ],
)
def test_a_site_that_is_not_pure(site, words):
  only(Net(site=site), "Site 'second'", words)


@pytest.mark.slow
def test_embed_and_readout_that_mix_examples():
  class Mixing(Net):
    def embed(self, x):
      return self.stem(x - x.mean(0))

    def readout(self, h):
      return self.head(h - h.mean(0))

  embed, readout = violations(Mixing())
  assert embed.startswith('Embed mixes the examples')
  assert readout.startswith('Readout mixes the examples')


@pytest.mark.slow
def test_apply_with_other_outputs_or_gradients():
  class Halved(Net):
    def __call__(self, x, structure=None):
      return super().__call__(x, structure) / 2

  class Stopped(Net):
    def __call__(self, x, structure=None):
      h = self.embed(x)
      for site, on in zip(self.sites, parse('11' if structure is None else structure, 2)):
        h = h + site(jax.lax.stop_gradient(h)) if on else h
        if self.is_initializing():
          site(h)
      return self.readout(h)

  only(Halved(), 'The outputs of model.apply', 'leave __call__')
  only(Stopped(), 'The gradients of model.apply', 'leave __call__')


@pytest.mark.slow
def test_inner_gates_of_one_example_that_reach_another():
  class Shared(Gated):
    def weight(self, value, h):
      return jnp.asarray(value, h.dtype).mean()

  masked, shared = violations(Net(site=Shared))
  assert 'The outputs of masked differ' in masked
  assert 'The outputs of shared-prefix differ' in shared


@pytest.mark.slow
def test_inner_gates_that_mean_another_thing_when_traced():
  class Flipped(Gated):
    def weight(self, value, h):
      value = value if isinstance(value, bool) else jnp.asarray(value) == 0
      return super().weight(value, h)

  found = violations(Net(site=Flipped))
  ways = [sentence.split(' differ')[0].removeprefix('The outputs of ') for sentence in found]
  assert ways == ['conditional', 'masked', 'shared-prefix']


@pytest.mark.slow
def test_a_way_to_run_that_fails():
  class Effect(Branch):
    def change(self, h):
      jax.experimental.io_callback(lambda: None, None, ordered=True)
      return h

  found = violations(Net(site=Effect))
  assert any('The conditional run fails' in sentence for sentence in found)


@pytest.mark.slow
def test_gradients_that_are_not_finite():
  class Cornered(Branch):
    def change(self, h):
      return h + jnp.sqrt(jnp.square(h - h))

  only(Net(site=Cornered), 'The gradients of structure', 'not finite')


def test_a_way_that_differs_is_named_with_the_structure(monkeypatch):
  sound = runs.run.masked
  wrong = lambda model, v, x, s: sound(model, v, x, s) * (1 + 0.01 * s[:, :1])
  monkeypatch.setattr(runs.run, 'masked', wrong)
  only(Net(), 'The outputs of masked differ', 'at structure 1')


@pytest.mark.slow
def test_a_call_that_multiplies_in_place_of_skipping():
  class Masking(Net):
    def __call__(self, x, structure=None):
      h = self.embed(x)
      for site, on in zip(self.sites, parse('11' if structure is None else structure, 2)):
        h = h + float(on) * site(h)
      return self.readout(h)

  only(Masking(), 'reads parameters of sites whose gate is off', 'first/residual, second/residual')


@pytest.mark.slow
def test_parameters_that_setup_creates_are_no_shared_ones():
  class Placed(Net):
    def setup(self):
      super().setup()
      self.place = self.param('place', nn.initializers.normal(), (5,))

    def embed(self, x):
      return self.stem(x) + self.place

  assert 'parameters of site' not in check_model(Placed(), BATCH)


@pytest.mark.slow
def test_shared_parameters_are_a_note():
  class Tied(Net):
    def readout(self, h):
      return self.head(self.sites[1](h))

  assert "Embed or readout reads parameters of site 'second'" in check_model(Tied(), BATCH)
