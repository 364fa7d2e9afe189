"""One small broken network for every clause of the contract about shapes, the pool and the space,
and the words it gets."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from contract_net import BATCH, Branch, Gated, Net, only

from additive_jax import Structure
from additive_jax.gates.structure import Gate, Space, parse
from additive_jax.models.contract import check_network
from additive_jax.testing.check import check_model

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


def test_variables_that_are_no_parameters():
  only(Net(site=Counting), "collection 'cache'", 'expected parameters, and the batch_stats of')


def test_batch_norm_that_never_takes_stored_statistics():
  only(Net(site=Normed), 'changes stored statistics when it is judged', 'models.BatchNorm')


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


class Pair(Branch):
  def change(self, h):
    return h, h


class Double(Branch):
  def change(self, h):
    return h.astype(jnp.complex64)


@pytest.mark.parametrize(
  ('site', 'words'),
  [
    (Wide, ('(6, 5) to (6, 10)', 'same shape')),
    (Narrow, ('(6, 5) to (6, 1)', 'same shape')),
    (Double, ('complex64', 'cast its result')),
    (Pair, ('gives a tuple', 'the value that its + adds')),
    (Noisy, ('draws random numbers', 'must be deterministic')),
    (Deciding, ('Python decision', 'jax.lax.cond')),
    (Lookup, ('NumPy copy', 'jnp.where')),
    (Fixed, ('fails on a batch of 1', 'reshape')),
  ],
)
def test_a_site_that_breaks_the_stream(site, words):
  only(Net(site=site), "Site 'second'", *words)


def test_a_site_with_a_residual_gate_keeps_shape_and_dtype():
  class Half(Gated):
    @nn.compact
    def __call__(self, h, values=()):
      return nn.Dense(h.shape[-1], dtype=jnp.bfloat16)(h)

  class Wide(Gated):
    @nn.compact
    def __call__(self, h, values=()):
      return nn.Dense(7)(h)

  only(Net(site=Half), "Site 'second' gives bfloat16", 'cast its result')
  only(Net(site=Wide), '(6, 5) to (6, 7)', 'only a site without a residual gate may change')


def test_an_ungated_site_that_leaves_no_float_stream():
  class Counted(Gated):
    gates: tuple = ()

    @nn.compact
    def __call__(self, h, values=()):
      return h.astype(jnp.int32)

  only(Net(site=Counted), "The stream that site 'second' gives is int32")


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


def test_outputs_that_the_loss_cannot_judge():
  only(Net(), 'loss cannot judge outputs of shape (6, 3)', batch=(BATCH[0], np.zeros((6, 2))))


@pytest.mark.parametrize(
  ('y', 'words'),
  [
    (
      [0, 1, 2, 3, 1, 0],
      'run from 0 to 3, but readout gives 3 outputs: expected targets from 0 to 2',
    ),
    ([0, 1, 2, -1, 1, 0], 'run from -1 to 2'),
    ([0.0, 1.0, 2.0, 1.0, 1.0, 0.0], 'expected shares of classes of the same shape'),
  ],
)
def test_targets_that_are_no_outputs(y, words):
  only(Net(), words, batch=(BATCH[0], np.array(y)))


@pytest.mark.slow
def test_targets_beyond_the_examples_that_are_run_are_checked():
  x = np.concatenate([np.zeros((20, 4), np.float32), BATCH[0]])
  y = np.array([0] * 25 + [3])
  only(Net(), 'run from 0 to 3', batch=(x, y))
  assert 'Net keeps' in check_model(Net(), (x, np.minimum(y, 2)), max_structures=2)


def test_tokens_that_are_no_outputs():
  class Language(Net):
    def setup(self):
      self.stem, self.head = nn.Embed(7, 5), nn.Dense(6)
      self.sites = [Branch(name='first')]

  tokens = np.arange(12).reshape(4, 3) % 7
  only(Language(), 'run from 0 to 6', batch=(tokens, tokens), task='language')


# Space.


class Doubling(nn.Module):
  gates: tuple = ()

  def __call__(self, h, values=()):
    return jnp.concatenate([h, h], -1)


@pytest.mark.slow
def test_a_space_with_other_names():
  class Renamed(Net):
    @property
    def space(self):
      return Space((Gate('second/residual'), Gate('first/residual')))

  only(Renamed(), "space names the gates ('second/residual'", 'leave space')


def test_a_network_is_traced_once_for_batches_of_all_sizes_and_sites_that_are_alike():
  calls = []

  class Noting(Branch):
    def change(self, h):
      calls.append(len(h))
      return h

  class Alike(Net):
    alike = range(3)

    def setup(self):
      self.stem, self.head = nn.Dense(5), nn.Dense(3)
      self.sites = [Noting(name=f'site_{i}') for i in range(3)]

  for size in (6, 7):
    assert check_network(Alike(), jnp.ones((size, 4))).shape == (size, 3)
  assert calls == [1, 1, 1, 6, 7]
