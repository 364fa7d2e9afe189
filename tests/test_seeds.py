"""Seeds: each names something of its own, or is refused, wherever it enters."""

import jax
import numpy as np
import optax
import pytest
import tiny

from additive_jax import UserError
from additive_jax.data import ArraySplit, Data, Order
from additive_jax.data.clusters import cluster
from additive_jax.experiments.studies import STUDIES
from additive_jax.gates.networks import sampled_networks
from additive_jax.gates.structure import Gate, Space
from additive_jax.models import MLP
from additive_jax.search import Search
from additive_jax.testing import check_model
from additive_jax.train.fleet import Fleet
from additive_jax.train.population import Population
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import Uniform
from additive_jax.train.trainer import Trainer

SPLIT = ArraySplit(np.eye(6, dtype=np.float32), np.arange(6) % 3)
DATA = Data('rows', 'classification', SPLIT, SPLIT, 3)
MODEL = MLP(num_blocks=1, width=4, hidden=4, num_classes=3)
RECIPE = Recipe(MODEL, 'classification', optax.sgd(0.1))

# Everything that takes a seed.
DOORS = {
  'Trainer': lambda seed: Trainer(RECIPE, SPLIT, Uniform(1, 1), batch_size=3, seed=seed),
  'Population': lambda seed: Population(RECIPE, DATA, batch_size=3, seed=seed),
  'Fleet': lambda seed: Fleet(RECIPE, SPLIT, [[0, 1]], batch_size=2, seed=seed),
  'Order': lambda seed: Order(6, 3, seed),
  'Search': lambda seed: Search('random', 4, 4, seed).run(lambda bits: bits.sum(1), 4),
  'networks': lambda seed: sampled_networks(Space(tuple(map(Gate, 'abcde'))), 4, seed),
  'cluster': lambda seed: cluster(SPLIT.x, 2, seed=seed),
  'check_model': lambda seed: check_model(MODEL, (SPLIT.x, SPLIT.y), seed=seed),
}


@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('seed', [2**32, 2**63, 2**64, -1, 1.5, True, '1'], ids=str)
def test_seeds_that_name_nothing_of_their_own(door, seed):
  with pytest.raises(UserError) as caught:
    DOORS[door](seed)
  assert str(caught.value) == f'seed {seed!r}: expected an integer from 0 to 2^32 − 1'


def test_the_last_seed_is_one_of_its_own():
  kernels = [jax.tree.leaves(DOORS['Population'](seed).variables) for seed in (0, 2**31, 2**32 - 1)]
  for i, j in ((0, 1), (1, 2), (0, 2)):
    assert any(np.abs(a - b).max() > 0 for a, b in zip(kernels[i], kernels[j]))


@pytest.mark.parametrize(('seed', 'num_seeds'), [(2**32 - 1, 2), (2**32 - 3, 4)])
def test_seeds_of_a_run_that_leave_the_range(seed, num_seeds, tmp_path):
  config = tiny.config('sweep', {'seed': seed, 'num_seeds': num_seeds})
  with pytest.raises(UserError) as caught:
    STUDIES['sweep'].run(config, tmp_path / 'run')
  message = f'config.seed {seed} with config.num_seeds {num_seeds}: expected seeds up to 2^32 − 1'
  assert str(caught.value) == message
  assert not (tmp_path / 'run').exists()
