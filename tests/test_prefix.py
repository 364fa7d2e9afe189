"""Shared-prefix evaluation: plans as data, how much work they are, and what they compute."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import Additive, prefix, shared_prefix, static
from additive_jax.models import MLP
from additive_jax.models.additive import Site
from additive_jax.structure import all_bits


def random_set(seed, num_gates, size):
  """Distinct structures in random order, bool [size, num_gates]."""
  return all_bits(num_gates)[np.random.default_rng(seed).permutation(1 << num_gates)[:size]]


SETS = {
  'all': all_bits(5),
  'all of one gate': all_bits(1),
  'all, shuffled': random_set(0, 5, 32),
  'all-off alone': np.zeros((1, 5), bool),
  'all-on alone': np.ones((1, 5), bool),
  'one': random_set(1, 5, 1),
  'two': random_set(2, 5, 2),
  'neighbours': np.eye(5, dtype=bool),
  'nested': np.tri(6, 5, -1, dtype=bool),
  'eleven of 32': random_set(3, 5, 11),
  'thirteen of 128': random_set(4, 7, 13),
  'forty of 128': random_set(5, 7, 40),
}


def sites(num_gates):
  """That many sites of a residual gate each."""
  return tuple(Site(f'site_{i}', ('residual',), i, True) for i in range(num_gates))


def plan_of(bits, capacity):
  return prefix.plan(bits, capacity, sites(bits.shape[1]))


def prefixes(bits):
  """The distinct beginnings of the set that end with a gate that is on."""
  return {tuple(row[: i + 1]) for row in bits for i in range(len(row)) if row[i]}


def walk_by_hand(plan, tile):
  """Follows a plan in Python, a tile at a time; each slot holds the prefix it stands for."""
  slots = {0: ()}
  done = []
  for i in range(len(plan.count)):
    for start in range(0, plan.count[i], tile):
      step = range(start, min(start + tile, plan.count[i]))
      reads = [slots[int(plan.source[i, k])] for k in step]
      for k, before in zip(step, reads):
        after = before + (0,) * (i - len(before)) + (1,)
        done.append(after)
        slots[int(plan.target[i, k])] = after
  # A slot that no evaluation touched any more stands for its prefix followed by zeros.
  return {slot: p + (0,) * (len(plan.count) - len(p)) for slot, p in slots.items()}, done


@pytest.mark.parametrize('spare', [0, 9])
@pytest.mark.parametrize('tile', [1, 3])
@pytest.mark.parametrize('bits', SETS.values(), ids=SETS)
def test_plan_reaches_each_structure_once(bits, tile, spare):
  plan = plan_of(bits, len(bits) + spare)
  assert plan.capacity == len(bits) + spare
  assert plan.num_leaves == len(bits)
  slots, done = walk_by_hand(plan, tile)
  assert len(slots) == len(bits)
  for row, slot in zip(bits, plan.slot):
    assert slots[slot] == tuple(row)
  assert len(done) == plan.count.sum()
  assert len(set(done)) == len(done)
  assert set(done) == prefixes(bits)


# A skippable site with two inner gates, one that no gate switches, one with inner gates alone.
MIXED = (
  Site('a', ('residual', 'join_1', 'join_2'), 0, False),
  Site('b', (), 3, False),
  Site('c', ('join_1',), 3, False),
  Site('d', ('residual',), 4, True),
)


@pytest.mark.parametrize('tile', [1, 3])
@pytest.mark.parametrize('seed', [None, 0, 1, 2])
def test_plan_of_sites_with_several_gates(seed, tile):
  bits = all_bits(5) if seed is None else random_set(seed, 5, 11)
  bits[:, 1:3] &= bits[:, :1]  # inner gates of a site that is off
  bits = np.unique(bits, axis=0)
  plan = prefix.plan(bits, len(bits) + 2, MIXED)
  slots, total = {0: ()}, 0
  for i, site in enumerate(MIXED):
    skipped = {slot: (*path, (0,) * len(site.names)) for slot, path in slots.items()}
    new = dict(skipped) if site.has_residual else {}
    for start in range(0, plan.count[i], tile):
      step = range(start, min(start + tile, plan.count[i]))
      reads = [slots[int(plan.source[i, k])] for k in step]
      for k, before in zip(step, reads):
        value = (1,) * site.has_residual + tuple(plan.values[i][k].astype(int))
        slots.pop(int(plan.target[i, k]), None)  # what is overwritten can be read no more
        new[int(plan.target[i, k])] = (*before, value)
    slots, total = new, total + plan.count[i]
  for row, slot in zip(bits, plan.slot):
    assert sum(slots[slot], ()) == tuple(row)
  ran = lambda stop, rows: len({tuple(row[:stop]) for row in rows})
  assert total == ran(3, bits[bits[:, 0]]) + ran(3, bits) + ran(4, bits) + ran(5, bits[bits[:, 4]])


@pytest.mark.parametrize('num_gates', [1, 2, 5, 8])
def test_all_structures_take_one_evaluation_each_but_one(num_gates):
  bits = all_bits(num_gates)
  plan = plan_of(bits, len(bits))
  assert plan.count.sum() == 2**num_gates - 1
  assert list(plan.count) == [2**i for i in range(num_gates)]
  assert bits.sum() == num_gates * 2 ** (num_gates - 1)  # what a loop over structures runs


@pytest.mark.parametrize('capacity', [1, 2, 3, 4, 8, 100])
def test_chunks_divide_a_set(capacity):
  bits = random_set(6, 6, 29)
  parts = prefix.chunks(bits, capacity)
  assert sorted(np.concatenate(parts)) == list(range(29))
  assert max(map(len, parts)) <= capacity
  assert len(parts) == -(-29 // capacity)


def test_chunks_of_all_structures_fix_the_first_gates():
  bits = all_bits(6)
  for chunk in prefix.chunks(bits, 8):
    assert len(np.unique(bits[chunk][:, :3], axis=0)) == 1
    assert len(np.unique(bits[chunk][:, 3:], axis=0)) == 8


@pytest.fixture(scope='module')
def model():
  return MLP(num_blocks=5, width=8, hidden=6, num_classes=3)


@pytest.fixture(scope='module')
def x():
  return jax.random.normal(jax.random.key(1), (4, 6))


@pytest.fixture(scope='module')
def variables(model, x, random_pool):
  return random_pool(model, x)


@pytest.fixture(scope='module')
def outputs(model, x, variables):
  """Of the static way, [32, B, C], computed one structure at a time without any plan."""
  return np.stack([static(model, variables, x, tuple(s)) for s in all_bits(5)])


# A chain of at most seven layers in float32, fused differently.
CLOSE = {'rtol': 2e-5, 'atol': 2e-5}


def test_outputs_differ(outputs):
  gaps = [np.abs(a - b).max() for i, a in enumerate(outputs) for b in outputs[:i]]
  assert min(gaps) > 0.02


@pytest.mark.parametrize(
  'values',
  [range(32), [13], [0], [31, 0], [7, 7, 7], [5, 30, 5, 2, 30, 17, 9], np.arange(31, 20, -1)],
  ids=str,
)
def test_any_set_in_any_order_with_repeats(model, variables, x, outputs, values):
  values = list(values)
  got = shared_prefix(model, variables, x, values)
  assert got.shape == (len(values), 4, 3)
  np.testing.assert_allclose(got, outputs[values], **CLOSE)


def test_forms_of_structures(model, variables, x, outputs):
  for form in (['10010', 12], all_bits(5)[[9, 12]], all_bits(5)[[9, 12]].astype(int)):
    got = shared_prefix(model, variables, x, form)
    np.testing.assert_allclose(got, outputs[[9, 12]], **CLOSE)


def test_another_set_of_the_same_size_compiles_nothing(model, variables, x, outputs, compiles):
  shared_prefix(model, variables, x, [1, 2, 4, 8, 16, 31])
  del compiles[:]
  got = shared_prefix(model, variables, x, [30, 29, 27, 23, 15, 0])
  assert len(compiles) == 0
  np.testing.assert_allclose(got, outputs[[30, 29, 27, 23, 15, 0]], **CLOSE)


@pytest.mark.parametrize('tile', [1, 3, 8])
def test_tiles_and_spare_capacity(model, variables, x, outputs, tile):
  """One program serves every set up to its capacity, whether or not the tile divides it."""
  finish = lambda logits: jax.nn.softmax(logits).max(-1)
  run = jax.jit(lambda arrays: prefix.run_plan(model, variables, x, arrays, finish, tile=tile))
  for name in ('all', 'one', 'all-off alone', 'nested', 'eleven of 32'):
    bits = SETS[name]
    plan = plan_of(bits, 32)
    got = np.asarray(run(plan.arrays))[plan.slot]
    values = bits @ (1 << np.arange(5))
    np.testing.assert_allclose(got, finish(outputs[values]), **CLOSE)
  assert run._cache_size() == 1


class Counted(nn.Module):
  """A site that reports each run of its branch, with the rows it was given."""

  report: object

  def __call__(self, h):
    jax.debug.callback(self.report, h.shape[0])
    return jnp.sin(h)


class Counter(Additive):
  report: object

  def setup(self):
    self.sites = [Counted(self.report, name=f'site_{i}') for i in range(5)]

  def embed(self, x):
    return x

  def readout(self, h):
    return h


@pytest.mark.parametrize(('name', 'tile'), [('all', 1), ('eleven of 32', 1), ('all', 4)])
def test_branches_that_really_run(name, tile):
  rows = []
  model = Counter(lambda count: rows.append(int(count)))
  bits = SETS[name]
  plan = plan_of(bits, 32)
  x = jnp.ones((2, 3))
  walk = functools.partial(prefix.run_plan, model, {}, x, finish=lambda logits: logits, tile=tile)
  got = jax.block_until_ready(jax.jit(walk)(plan.arrays))
  jax.effects_barrier()
  assert set(rows) == {2 * tile}
  assert len(rows) == sum(-(-count // tile) for count in plan.count)
  if tile == 1:
    assert len(rows) == len(prefixes(bits))
  for row, slot in zip(bits, plan.slot):
    h = 1.0
    for _ in range(row.sum()):
      h += np.sin(h)
    np.testing.assert_allclose(got[slot], h, rtol=1e-5)  # five sines in float32


def test_differentiable_forwards(model, variables, x, outputs):
  direction = jax.tree.map(jnp.ones_like, variables)
  value, slope = jax.jvp(lambda v: shared_prefix(model, v, x, [9]), (variables,), (direction,))
  want = jax.jvp(lambda v: static(model, v, x, 9), (variables,), (direction,))[1]
  np.testing.assert_allclose(value[0], outputs[9], **CLOSE)
  # A directional derivative adds up a hundred parameters' terms.
  np.testing.assert_allclose(slope[0], want, rtol=1e-4, atol=1e-3)
