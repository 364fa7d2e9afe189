"""One small broken network for every clause of the contract about form and gates, and the words it
gets; and what `check_model` says to its caller."""

import logging
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from contract_net import BATCH, Branch, Gated, Net, only, violations

from additive_jax import Additive, UserError
from additive_jax.testing.check import check_model

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


# Gates of a site.


def with_gates(gates):
  class Own(Net):
    def setup(self):
      self.stem, self.head = nn.Dense(5), nn.Dense(3)
      self.sites = [Branch(name='first'), Gated(gates, name='second')]

  return Own()


@pytest.mark.parametrize(
  ('gates', 'words'),
  [
    ('residual', ("has gates 'residual'", 'expected a tuple of the names')),
    (3, ('has gates 3', 'call the attribute something else')),
    (('residual', ''), ("has gates ('residual', '')", 'not empty')),
    (('a/b',), ("has gates ('a/b',)", "without '/'")),
    ((1, 2), ('has gates (1, 2)', 'names')),
    (('a', 'a'), ("has gates ('a', 'a')", 'different names')),
    (
      ('a', 'residual'),
      ("has gates ('a', 'residual')", "'residual' first", 'skips the whole site'),
    ),
  ],
)
def test_gates_that_are_no_names(gates, words):
  only(with_gates(gates), "Site 'second'", *words)


def test_no_gate_in_all():
  class Plain(Net):
    def setup(self):
      self.stem, self.head = nn.Dense(5), nn.Dense(3)
      self.sites = [Gated((), name='first'), Gated((), name='second')]

  only(Plain(), 'None of its sites has a gate')


def test_a_site_that_names_gates_and_takes_no_values():
  class Deaf(Branch):
    gates = ('residual', 'join')

  only(Net(site=Deaf), "Site 'second' fails", 'called as site(h, gates)', 'TypeError')


class Branching(Gated):
  def weight(self, value, h):
    return 1.0 if value else 0.0


class ByExample(Gated):
  def weight(self, value, h):
    return jnp.asarray(value, h.dtype)[..., None] if jnp.ndim(value) else float(value)


class Scalar(Gated):
  def weight(self, value, h):
    return jnp.asarray(value, h.dtype).reshape(())


class Growing(Gated):
  def change(self, h, values):
    return super().change(h, values) + (0 if values[0] is True else nn.Dense(5, name='more')(h))


class Wider(Gated):
  gates: tuple = ('left', 'right')

  @nn.compact
  def __call__(self, h, values=()):
    y = self.change(h, values)
    return y if values[0] is True else jnp.concatenate([y, y], -1)


@pytest.mark.parametrize(
  ('site', 'words'),
  [
    (Branching, ('fails, called as site(h, gates)', 'as bool scalars', 'Python decision')),
    (ByExample, ('fails, called as site(h, gates)', 'as bool scalars', 'Python decision')),
    (Scalar, ('fails, called as site(h, gates)', 'as floats [6], one per example')),
    (Growing, ('creates other parameters with inner gates 00', "['second']['more']['bias']")),
    (Wider, ('gives float32 (6, 10)', 'Python bools, 00', 'float32 (6, 5) with all of them on')),
  ],
)
def test_inner_gates_that_are_not_taken(site, words):
  class Summed(Net):
    # Its own init shows each site one structure alone, where the library's would stop at the pool.
    def __call__(self, x, structure=None):
      h = self.embed(x)
      for module, values in zip(self.sites, ((), ((True, True),))):
        h = module(h, *values)
      return self.readout(h)

  only(Summed(site=site), "Site 'second'", *words)


# The caller.


@pytest.mark.parametrize(
  ('batch', 'options', 'words'),
  [
    ((BATCH[0], BATCH[1][:3]), {}, '6 inputs and 3 targets'),
    ((BATCH[0][:1], BATCH[1][:1]), {}, 'a batch of 1 examples'),
    ((np.ones((6, 4)), BATCH[1]), {}, 'a batch of 6 examples, all alike'),
    ((BATCH[0], None), {}, r'targets of shape \(\): expected a pair'),
    (BATCH[0], {}, r'batch is a ndarray of shape \(6, 4\): expected a pair \(x, y\)'),
    ((BATCH[0],), {}, 'batch is a tuple: expected a pair'),
    (BATCH, {'max_structures': 1}, 'max_structures 1'),
    (BATCH, {'task': 'colour'}, "task 'colour'"),
  ],
)
def test_a_batch_or_option_that_cannot_serve(batch, options, words):
  with pytest.raises(UserError, match=words):
    check_model(Net(), batch, **options)


def test_progress_is_logged(caplog):
  class Wide(Branch):
    def change(self, h):
      return jnp.concatenate([h, h], -1)

  with caplog.at_level(logging.INFO, 'additive_jax'):
    violations(Net(site=Wide))
  assert caplog.messages == [
    'check_model Net, 1 of 11: is usable module',
    'check_model Net, 2 of 11: has its parts',
    'check_model Net, 3 of 11: parts fit at init',
  ]
