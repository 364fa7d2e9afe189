"""Shared-prefix evaluation: plans as data, how much work they are, and what they compute."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from additive_jax import Additive, shared_prefix, static
from additive_jax.gates.structure import all_bits
from additive_jax.models import MLP
from additive_jax.models.additive import Site
from additive_jax.run import prefix


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


def ordered(bits):
  """The distinct rows in the order in which a plan takes them."""
  return np.unique(bits, axis=0)


# A skippable site with two inner gates, one that no gate switches, one with inner gates alone.
MIXED = (
  Site('a', ('residual', 'join_1', 'join_2'), 0, False),
  Site('b', (), 3, False),
  Site('c', ('join_1',), 3, False),
  Site('d', ('residual',), 4, True),
)


def random_mixed(seed):
  """Structures of `MIXED`, the inner gates of its first site cleared where that is off."""
  bits = all_bits(5) if seed is None else random_set(seed, 5, 11)
  bits[:, 1:3] &= bits[:, :1]
  return ordered(bits)


def walk_by_hand(plan, tile, sites):
  """Follows a plan in Python, a tile at a time.

  A stream is the list of (site, values) that ran on it, which is the whole of what it depends on.

  Returns:
    The stream of each structure, and every stream that was computed, with repeats.
  """
  streams, done, leaves = {0: ()}, [], []
  for r in range(-(-plan.size // plan.leaf.shape[1])):
    for i in range(len(sites)):
      for start in range(0, plan.count[r, i], tile):
        step = range(start, min(start + tile, plan.count[r, i]))
        reads = [streams[int(plan.source[r, i, k])] for k in step]
        for k, before in zip(step, reads):
          after = (*before, (i, *plan.inner[i][r, k].astype(bool).tolist()))
          done.append(after)
          assert 0 <= plan.target[r, i, k] < plan.slots
          streams[int(plan.target[r, i, k])] = after
    left = plan.size - r * plan.leaf.shape[1]
    leaves += [streams[int(slot)] for slot in plan.leaf[r][:left]]
  return leaves, done


def expected(row, sites):
  """What a structure's stream depends on, site by site."""
  return tuple(
    (i, *row[site.inner].tolist())
    for i, site in enumerate(sites)
    if not site.has_residual or row[site.start]
  )


def check_plan(bits, sites, *, rounds, width, keep, tile):
  plan = prefix.plan(bits, rounds, width, sites, keep=keep)
  assert plan.capacity == rounds * width
  assert plan.size == len(bits)
  leaves, done = walk_by_hand(plan, tile, sites)
  assert len(done) == plan.count.sum()
  want = [expected(row, sites) for row in bits]
  assert leaves == want
  # A stream that ended at site i is computed anew for no structure that shares it.
  needed = {stream[: k + 1] for stream in want for k in range(len(stream))}
  assert set(done) == needed
  return plan, len(done) - len(needed)


@pytest.mark.parametrize('tile', [1, 3])
@pytest.mark.parametrize('width', [1, 2, 3, 8, 64])
@pytest.mark.parametrize('bits', SETS.values(), ids=SETS)
def test_plan_computes_each_prefix_once(bits, width, tile):
  """Whatever the width of a round: the next one begins where this one ends."""
  bits = ordered(bits)
  rounds = -(-len(bits) // width)
  for spare in (0, 2):
    options = {'rounds': rounds + spare, 'width': width, 'keep': None, 'tile': tile}
    assert check_plan(bits, sites(bits.shape[1]), **options)[1] == 0


@pytest.mark.parametrize('tile', [1, 3])
@pytest.mark.parametrize('width', [1, 4, 32])
@pytest.mark.parametrize('seed', [None, 0, 1, 2])
def test_plan_of_sites_with_several_gates(seed, width, tile):
  bits = random_mixed(seed)
  options = {'rounds': -(-len(bits) // width), 'width': width, 'keep': None, 'tile': tile}
  assert check_plan(bits, MIXED, **options)[1] == 0


@pytest.mark.parametrize('keep', [0, 1, 3])
@pytest.mark.parametrize('width', [1, 4])
def test_with_little_room_deeper_prefixes_are_computed_again(width, keep):
  bits = ordered(all_bits(5))
  repeats = check_plan(bits, sites(5), rounds=32 // width, width=width, keep=keep, tile=1)[1]
  assert repeats > 0 or keep + np.log2(width) >= 5
  check_plan(random_mixed(None), MIXED, rounds=32 // width, width=width, keep=keep, tile=1)


@pytest.mark.parametrize('keep', [None, 2])
@pytest.mark.parametrize('width', [2, 8, 16])
def test_plans_of_large_random_sets(width, keep):
  """Many shapes of tree: three kinds of site in turn, and sparse and dense sets."""
  chain = []
  for i in range(9):
    names = (('residual',), ('residual', 'join_1'), ('join_1',))[i % 3]
    chain.append(Site(f's{i}', names, chain[-1].gates.stop if chain else 0, False))
  rng = np.random.default_rng(width)
  for share in (0.1, 0.5, 0.9):
    bits = rng.random((150, chain[-1].gates.stop)) < share
    for site in chain:
      if site.has_residual:
        bits[:, site.inner] &= bits[:, site.start, None]
    bits = ordered(bits)
    rounds = -(-len(bits) // width)
    repeats = check_plan(bits, chain, rounds=rounds, width=width, keep=keep, tile=2)[1]
    assert keep is not None or repeats == 0


@pytest.mark.parametrize('num_gates', [1, 2, 5, 8])
def test_all_structures_take_one_evaluation_each_but_one(num_gates):
  bits = ordered(all_bits(num_gates))
  whole = prefix.plan(bits, 1, len(bits), sites(num_gates), keep=-1)
  assert list(whole.count[0]) == [2**i for i in range(num_gates)]
  in_rounds = prefix.plan(bits, len(bits), 1, sites(num_gates))
  assert whole.count.sum() == in_rounds.count.sum() == 2**num_gates - 1
  assert bits.sum() == num_gates * 2 ** (num_gates - 1)  # what a loop over structures runs


def test_several_rounds_need_room_for_the_embedding():
  with pytest.raises(ValueError, match='keep -1 with 2 rounds'):
    prefix.plan(ordered(all_bits(2)), 2, 2, sites(2), keep=-1)


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


@pytest.mark.parametrize(('tile', 'width'), [(1, 32), (1, 4), (3, 6), (8, 8)])
def test_tiles_rounds_and_spare_capacity(model, variables, x, outputs, tile, width):
  """One program serves every set up to its capacity."""
  rounds = -(-32 // width)
  finish = lambda logits: jax.nn.softmax(logits).max(-1)
  walk = functools.partial(prefix.run_plan, finish=finish, tile=tile)
  run = jax.jit(lambda plan: walk(model, variables, x, plan))
  for name in ('all', 'one', 'all-off alone', 'nested', 'eleven of 32'):
    bits = ordered(SETS[name])
    got = run(prefix.plan(bits, rounds, width, sites(5)))
    values = bits @ (1 << np.arange(5))
    np.testing.assert_allclose(got[: len(bits)], finish(outputs[values]), **CLOSE)
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


@pytest.mark.parametrize(
  ('name', 'tile', 'width'),
  [('all', 1, 32), ('all', 1, 2), ('eleven of 32', 1, 4), ('all', 4, 16)],
)
def test_branches_that_really_run(name, tile, width):
  rows = []
  model = Counter(lambda count: rows.append(int(count)))
  bits = ordered(SETS[name])
  plan = prefix.plan(bits, -(-32 // width), width, sites(5))
  x = jnp.ones((2, 3))
  walk = lambda plan: prefix.run_plan(model, {}, x, plan, lambda logits: logits, tile=tile)
  got = jax.block_until_ready(jax.jit(walk)(plan))
  jax.effects_barrier()
  assert set(rows) == {2 * tile}
  assert len(rows) == (-(-plan.count // tile)).sum()
  if tile == 1:
    assert len(rows) == len({tuple(row[: i + 1]) for row in bits for i in range(5) if row[i]})
  for row, outputs in zip(bits, got):
    h = 1.0
    for _ in range(row.sum()):
      h += np.sin(h)
    np.testing.assert_allclose(outputs, h, rtol=1e-5)  # five sines in float32


def test_differentiable_forwards(model, variables, x, outputs):
  direction = jax.tree.map(jnp.ones_like, variables)
  value, slope = jax.jvp(lambda v: shared_prefix(model, v, x, [9]), (variables,), (direction,))
  want = jax.jvp(lambda v: static(model, v, x, 9), (variables,), (direction,))[1]
  np.testing.assert_allclose(value[0], outputs[9], **CLOSE)
  # A directional derivative adds up a hundred parameters' terms.
  np.testing.assert_allclose(slope[0], want, rtol=1e-4, atol=1e-3)
