"""One small broken network for every clause of the contract, and the words it gets."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import Additive, Structure, UserError
from additive_jax.models import MLP
from additive_jax.structure import Gate, Space, parse
from additive_jax.testing import ContractError, check_model

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


def test_the_mlp_passes_and_says_what_was_compared():
  said = check_model(MLP(num_blocks=2, width=5, hidden=(7, 4), num_classes=3), BATCH)
  assert 'MLP keeps the contract' in said
  assert '2 gates; 4 structures compared by static' in said
  for way in ('conditional', 'masked', 'shared-prefix', 'model.apply'):
    assert way in said


def test_a_users_network_passes_on_a_sample_of_its_structures():
  assert '2 gates; 3 structures' in check_model(Net(), BATCH, max_structures=3)


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


def test_tokens_and_bfloat16_pass():
  class Language(Net):
    def setup(self):
      self.stem = nn.Embed(7, 8, dtype=jnp.bfloat16)
      self.sites = [nn.Dense(8, dtype=jnp.bfloat16), nn.Dense(8, dtype=jnp.bfloat16)]
      self.head = nn.Dense(7, dtype=jnp.bfloat16)

  tokens = np.random.default_rng(1).integers(0, 7, (4, 6), np.uint8)
  assert 'Language keeps' in check_model(Language(), (tokens, tokens), task='language')


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


# Form.


def test_a_class_in_place_of_an_instance():
  only(Net, 'Net is a class', 'Net(...)')


def test_something_that_is_no_flax_module():
  only(lambda x: x, 'not a flax.linen.Module', 'subclass of additive_jax.Additive')


@pytest.mark.parametrize('value', [[3, 4], {'a': 3}, np.ones(2)])
def test_a_field_without_a_hash(value):
  class Sized(Net):
    sizes: Sequence[int] | Any = ()

  only(Sized(sizes=value), "Field 'sizes'", type(value).__name__, 'make it a tuple')


def test_every_field_without_a_hash_is_named():
  class Sized(Net):
    one: Any = ()
    two: Any = ()

  assert len(violations(Sized(one=[1], two=[2]))) == 2


def test_setup_that_fails():
  class Fails(Net):
    def setup(self):
      raise RuntimeError('no such width')

  only(Fails(), 'setup fails', 'RuntimeError: no such width')


def test_missing_parts_are_all_named():
  class Bare(Additive):
    def setup(self):
      self.body = nn.Dense(3)

  embed, readout, sites = violations(Bare())
  assert 'no embed' in embed
  assert 'no readout' in readout
  assert 'no sites' in sites


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda: nn.Dense(5), 'sites are a Dense'),
    (lambda: [], 'list of sites is empty'),
    (lambda: [nn.Dense(5), jnp.tanh], 'expected a flax.linen.Module made in setup'),
  ],
)
def test_sites_that_are_no_list_of_modules(make, words):
  class Odd(Net):
    def setup(self):
      self.stem, self.sites, self.head = nn.Dense(5), make(), nn.Dense(3)

  only(Odd(), words)


def test_one_module_as_two_sites():
  class Twice(Net):
    def setup(self):
      block = Branch(name='block')
      self.stem, self.sites, self.head = nn.Dense(5), [block, block], nn.Dense(3)

  only(Twice(), "Sites 0 and 1 are both called 'block'")


def test_a_module_without_space_and_structure():
  class Plain(nn.Module):
    def setup(self):
      self.embed, self.readout = nn.Dense(5), nn.Dense(3)
      self.sites = [Branch()]

    def __call__(self, x):
      return self.readout(self.sites[0](self.embed(x)))

  space, call = violations(Plain())
  assert 'no space' in space
  assert '__call__ takes no structure' in call


# The pool.


def test_a_pool_that_depends_on_the_structure():
  class Lazy(Net):
    def __call__(self, x, structure=None):
      h = self.embed(x)
      for site, on in zip(self.sites, parse('11' if structure is None else structure, 2)):
        h = h + site(h) if on else h
      return self.readout(h)

  only(Lazy(), 'init gives with structure 00', "['first']", 'create every site at init')


@pytest.mark.parametrize(('shape', 'words'), [(4, 'has shape'), (5, 'has other values')])
def test_a_pool_whose_leaves_depend_on_the_structure(shape, words):
  class Extra(Net):
    @nn.compact
    def __call__(self, x, structure=None):
      on = structure is None or Structure.num_on.fget(structure)
      init = nn.initializers.ones if on else nn.initializers.zeros
      self.param('extra', init, (5 if on else shape,))
      return super().__call__(x, structure)

  only(Extra(), words, "['extra']")


def test_init_that_fails_for_a_structure():
  class Full(Net):
    def __call__(self, x, structure=None):
      if structure is not None and not all(structure):
        raise ValueError('all or nothing')
      return super().__call__(x, structure)

  only(Full(), 'init with structure 00 fails', 'ValueError: all or nothing')


class Normed(nn.Module):
  @nn.compact
  def __call__(self, h):
    return nn.BatchNorm(use_running_average=False)(h)


class Counting(nn.Module):
  @nn.compact
  def __call__(self, h):
    return h + self.variable('cache', 'count', jnp.zeros, ()).value


@pytest.mark.parametrize(('site', 'name'), [(Normed, 'batch_stats'), (Counting, 'cache')])
def test_variables_that_are_no_parameters(site, name):
  only(Net(site=site), f'collection {name!r}', 'the pool must be parameters alone')


# Shapes.


class Wide(Branch):
  def change(self, h):
    return jnp.concatenate([h, h], -1)


class Narrow(Branch):
  def change(self, h):
    return h[..., :1]  # would broadcast


class Noisy(Branch):
  def change(self, h):
    return nn.Dropout(0.5, deterministic=False)(h)


class Deciding(Branch):
  def change(self, h):
    return h if self.is_initializing() or h.sum() > 0 else -h


class Lookup(Branch):
  def change(self, h):
    return jnp.asarray(np.asarray(h) if not self.is_initializing() else h)


class Fixed(Branch):
  def change(self, h):
    return h.reshape(6, 5)


class Double(Branch):
  def change(self, h):
    return h.astype(jnp.complex64)


@pytest.mark.parametrize(
  ('site', 'words'),
  [
    (Wide, ('(6, 5) to (6, 10)', 'same shape')),
    (Narrow, ('(6, 5) to (6, 1)', 'same shape')),
    (Double, ('complex64', 'cast its result')),
    (Noisy, ('draws random numbers', 'must be deterministic')),
    (Deciding, ('Python decision', 'jax.lax.cond')),
    (Lookup, ('NumPy copy', 'jnp.where')),
    (Fixed, ('fails on a batch of 1', 'reshape')),
  ],
)
def test_a_site_that_breaks_the_stream(site, words):
  # Summing a stream of (6, 10) would stop init before the contract is reached.
  class Quiet(Net):
    def __call__(self, x, structure=None):
      h = self.embed(x)
      for module in self.sites:
        module(h)
      return self.readout(h)

  only(Quiet(site=site), "Site 'second'", *words)


def test_an_integer_stream_and_a_stream_without_the_batch():
  class Integer(Net):
    def embed(self, x):
      return self.stem(x).astype(jnp.int32)

  class Summed(Net):
    def embed(self, x):
      return self.stem(x).sum(0)

  only(Integer(), 'stream that embed gives is int32', 'floats')
  only(Summed(), 'Embed gives (5,) for a batch of 6')


def test_a_part_that_reads_what_init_did_not_create():
  class Deep(nn.Module):
    @nn.compact
    def __call__(self, h):
      return h if self.is_initializing() else nn.Dense(h.shape[-1], name='late')(h)

  only(Net(site=Deep), "Site 'second' fails", 'init did not create')


def test_outputs_that_the_objective_cannot_judge():
  only(Net(), 'objective cannot judge outputs of shape (6, 3)', batch=(BATCH[0], np.zeros((6, 2))))


# Space.


def test_a_space_with_other_names_and_a_wrong_stream_shape():
  class Renamed(Net):
    @property
    def space(self):
      return Space((Gate('second/residual'), Gate('first/residual')))

  class Shaped(Net):
    @property
    def stream_shape(self):
      return (7,)

  only(Renamed(), "space names the gates ('second/residual'", 'leave space')
  only(Shaped(), 'stream_shape is (7,), but embed gives (5,)')


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
    (Infinite, 'numbers that are not finite at init'),
    (Random, 'different numbers for the same input'),
    (Centred, 'mixes the examples of a batch'),
    (Shaken, 'mixes the examples of a batch'),
  ],
)
def test_a_site_that_is_not_pure(site, words):
  only(Net(site=site), "Site 'second'", words)


def test_embed_and_readout_that_mix_examples():
  class Mixing(Net):
    def embed(self, x):
      return self.stem(x - x.mean(0))

    def readout(self, h):
      return self.head(h - h.mean(0))

  embed, readout = violations(Mixing())
  assert embed.startswith('Embed mixes the examples')
  assert readout.startswith('Readout mixes the examples')


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


def test_a_way_to_run_that_fails():
  class Effect(Branch):
    def change(self, h):
      jax.experimental.io_callback(lambda: None, None, ordered=True)
      return h

  found = violations(Net(site=Effect))
  assert any('The conditional run fails' in sentence for sentence in found)


def test_gradients_that_are_not_finite():
  class Cornered(Branch):
    def change(self, h):
      return h + jnp.sqrt(jnp.square(h - h))

  only(Net(site=Cornered), 'The gradients of structure', 'not finite')


def test_a_way_that_differs_is_named_with_the_structure(monkeypatch):
  from additive_jax import contract_runs

  sound = contract_runs.run.masked
  wrong = lambda model, v, x, s: sound(model, v, x, s) * (1 + 0.01 * s[0])
  monkeypatch.setattr(contract_runs.run, 'masked', wrong)
  only(Net(), 'The outputs of masked differ', 'at structure 1')


def test_a_call_that_multiplies_in_place_of_skipping():
  class Masking(Net):
    def __call__(self, x, structure=None):
      h = self.embed(x)
      for site, on in zip(self.sites, parse('11' if structure is None else structure, 2)):
        h = h + float(on) * site(h)
      return self.readout(h)

  only(Masking(), 'reads parameters of sites whose gate is off', 'first/residual, second/residual')


def test_shared_parameters_are_a_note():
  class Tied(Net):
    def readout(self, h):
      return self.head(self.sites[1](h))

  assert "Embed or readout reads parameters of site 'second'" in check_model(Tied(), BATCH)


# The caller.


@pytest.mark.parametrize(
  ('batch', 'options', 'words'),
  [
    ((BATCH[0], BATCH[1][:3]), {}, '6 inputs and 3 targets'),
    ((BATCH[0][:1], BATCH[1][:1]), {}, 'a batch of 1 examples'),
    (BATCH, {'max_structures': 1}, 'max_structures 1'),
    (BATCH, {'task': 'colour'}, "task 'colour'"),
  ],
)
def test_a_batch_or_option_that_cannot_serve(batch, options, words):
  with pytest.raises(UserError, match=words):
    check_model(Net(), batch, **options)
