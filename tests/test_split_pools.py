"""Pools split in two: which gate, what each half trains on, and that a stop changes nothing."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from additive_jax.batches import rows
from additive_jax.errors import UserError
from additive_jax.experiments import sweep
from additive_jax.experiments.pools import open_pools
from additive_jax.gates.structure import all_bits
from additive_jax.models import MLP
from additive_jax.run.evaluate import evaluate_structures
from additive_jax.train.disagreement import disagreement
from additive_jax.train.recipe import Recipe

OPTIONS = {
  'sweep.modes': ('shared',),
  'sweep.split_after': 0.4,
  'model.num_blocks': 2,
  'train.structures_per_step': 2,
  'learning_rate': 0.1,
  'optimizer.name': 'sgd',  # moves only what has a gradient
  'optimizer.kwargs': {},
}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def split(tmp_path_factory):
  """Split pools of two seeds: result and run directory."""
  workdir = tmp_path_factory.mktemp('split') / 'run'
  return sweep.run(tiny.config('sweep', OPTIONS), workdir, devices=1), workdir


def records(workdir):
  lines = (workdir / 'journals' / 'sweep.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_each_structure_is_judged_in_its_half(split):
  result, workdir = split
  pools = open_pools(workdir)
  x, y = pools.data.test[np.arange(len(pools.data.test))]
  names = list(MLP(2, width=8, hidden=8, num_classes=3).space.names)
  for record in records(workdir):
    gate, seed = names.index(record['split_gate']), record['seed']
    losses = {}
    for word in ('off', 'on'):
      saved = pools.read(rows(x, slice(1)), f'shared-seed{seed}-{word}')[1]
      losses[word] = evaluate_structures(pools.model, saved.variables, (x, y)).loss
    bits = all_bits(2)
    want = np.where(bits[:, gate], losses['on'], losses['off'])
    np.testing.assert_allclose(record['loss'], want, rtol=1e-6)  # float32 sums in another order
    assert np.abs(losses['on'] - losses['off']).min() > 1e-5
  assert result.summary['split_gates'] == [record['split_gate'] for record in records(workdir)]


def test_halves_share_the_steps_after_the_warm_up(split):
  curves = (split[1] / 'metrics.jsonl').read_text().splitlines()
  last = {}
  for line in map(json.loads, curves):
    last[line['tag']] = max(last.get(line['tag'], 0), line['step'])
  # Of 15 steps 6 are the warm-up, and each half takes 4 of the other 9.
  for seed in (0, 1):
    assert last[f'shared-seed{seed}'] == 6
    assert last[f'shared-seed{seed}-off'] == last[f'shared-seed{seed}-on'] == 10


def test_a_half_keeps_what_only_the_other_one_trains(split):
  _, workdir = split
  pools = open_pools(workdir)
  x = pools.data.test[np.arange(1)][0]
  record = records(workdir)[0]
  site = record['split_gate'].partition('/')[0]
  read = lambda name: pools.read(x, name)[1].variables['params'][site]['out']['kernel']
  first, off, on = (read(f'shared-seed0{word}') for word in ('', '-off', '-on'))
  np.testing.assert_array_equal(off, first)
  assert np.abs(on - first).max() > 1e-3


@pytest.mark.parametrize('lost', ['shared-seed1-on', 'shared-seed1'])
def test_a_run_that_was_stopped_gives_the_same(split, tmp_path, lost):
  workdir = tmp_path / 'run'
  tiny.killed_copy(split[1], workdir, 'sweep.jsonl', 1)
  for folder in (workdir / 'checkpoints').glob(f'{lost}*'):
    shutil.rmtree(folder)
  sweep.run(tiny.config('sweep', OPTIONS), workdir, devices=1)
  assert records(workdir) == records(split[1])
  assert (workdir / 'structures.csv').read_bytes() == (split[1] / 'structures.csv').read_bytes()


def test_disagreement_is_that_of_gradients_taken_one_by_one(random_pool):
  """Against the static structures' gradients, over the parameters that both of them read."""
  model = MLP(num_blocks=3, width=4, hidden=6, num_classes=3)
  random = np.random.default_rng(0)
  x, y = random.normal(size=(8, 5)).astype(np.float32), random.integers(3, size=8)
  pool = random_pool(model, x)['params']
  recipe = Recipe(model, 'classification', optax.sgd(0.1))

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(params, structure):
    def loss(params):
      logits = model.apply({'params': params}, x, structure)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return jax.grad(loss)(params)

  flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
  want = np.zeros(3)
  structures = [(True, True, False), (False, True, True)]
  for bits in structures:
    for gate in range(3):
      other = tuple(bit != (i == gate) for i, bit in enumerate(bits))
      both = [f'block_{i:02}' for i in range(3) if bits[i] and other[i]]
      read = ['embed', 'readout', *both]
      a, b = (flat({name: gradient(pool, s)[name] for name in read}) for s in (bits, other))
      want[gate] += (1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / 2
  got = jax.jit(disagreement, static_argnums=0)(recipe, pool, jnp.array(structures), x, y)
  np.testing.assert_allclose(got, want, atol=2e-6)  # float32
  assert np.ptp(want) > 0.01


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'sweep.split_after': 0.99}, 'config.sweep.split_after 0.99: expected a share that leaves'),
    (
      {'search.method': 'random', 'search.budget': 4, 'search.population': 4},
      "config.sweep.split_after 0.4 with config.search.method 'random': expected 0, or at most",
    ),
  ],
)
def test_what_cannot_be_split(options, message, tmp_path):
  with pytest.raises(UserError, match=message):
    sweep.run(tiny.config('sweep', OPTIONS | options), tmp_path / 'run', devices=1)
