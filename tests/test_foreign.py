"""Trainings that start from a pool: a run's, or a checkpoint that Flax or Orbax has written."""

import flax.linen as nn
import flax.serialization
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import tiny
from flax.traverse_util import flatten_dict

import additive_jax as aj
from additive_jax import UserError
from additive_jax.experiments import cotrain, sweep
from additive_jax.experiments.options import Options
from additive_jax.experiments.start import start_of
from additive_jax.models import MLP

MODEL = MLP(2, 4, 8, 3)
X = np.ones((2, 6), np.float32)


@pytest.fixture(scope='module')
def pool():
  return jax.tree.map(np.asarray, jax.jit(MODEL.init)(jax.random.key(1), X)['params'])


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_any_checkpoint_of_a_network_is_a_pool(pool, tmp_path):
  optimizer = optax.adam(0.1)
  state = {'step': 3, 'params': pool, 'opt_state': optimizer.init(pool)}
  forms = {'params': pool, 'variables': {'params': pool}, 'state': state}
  for name, tree in forms.items():
    file = tmp_path / f'{name}.msgpack'
    file.write_bytes(flax.serialization.to_bytes(tree))
    assert_same(aj.restore_pool(file, MODEL, X)['params'], pool)
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(tmp_path / name, tree)
    assert_same(aj.restore_pool(tmp_path / name, MODEL, X)['params'], pool)
  for sep in '/.':
    file = tmp_path / 'pool.safetensors'
    safetensors.numpy.save_file(flatten_dict(pool, sep=sep), file)
    assert_same(aj.restore_pool(file, MODEL, X)['params'], pool)
  with ocp.CheckpointManager(tmp_path / 'managed') as manager:
    for step in (1, 2):
      tree = jax.tree.map(lambda leaf, s=step: leaf * s, pool)
      manager.save(step, args=ocp.args.StandardSave({'params': tree}))
      manager.wait_until_finished()
  assert_same(aj.restore_pool(tmp_path / 'managed', MODEL, X)['params'], tree)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda p: {'head': {'w': p['embed']['kernel']}}, r'with head/w fits no leaf of the pool: exp'),
    (lambda p: {k: p[k] for k in ('embed', 'readout')}, r'lacks block_00/in/bias, .* and 9 more'),
    (
      lambda p: p | {'embed': {'kernel': np.ones((5, 4)), 'bias': p['embed']['bias']}},
      r'has in other shapes embed/kernel \[5, 4\], not \[6, 4\]: expected a pool of this model',
    ),
    (lambda p: p | {'block_02': p['block_01']}, 'has beside the pool block_02/in/bias'),
  ],
)
def test_what_does_not_fit_is_named(change, message, pool, tmp_path):
  file = tmp_path / 'other.msgpack'
  file.write_bytes(flax.serialization.to_bytes(change(pool)))
  with pytest.raises(UserError, match=message):
    aj.restore_pool(file, MODEL, X)


class Normed(aj.Additive):
  def setup(self):
    self.embed, self.readout = nn.Dense(4), nn.Dense(3)
    self.sites = [nn.Sequential([aj.models.BatchNorm(), nn.Dense(4)], name='a')]


def test_statistics_of_batch_norms_come_along(pool, tmp_path):
  variables = jax.jit(Normed().init)(jax.random.key(0), X)
  variables = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.5, variables)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'orbax', {'step': 3, **variables})
  file = tmp_path / 'mine.msgpack'
  file.write_bytes(flax.serialization.to_bytes({'state': variables}))
  for path in (tmp_path / 'orbax', file):
    assert_same(aj.restore_pool(path, Normed(), X), variables)
  file.write_bytes(flax.serialization.to_bytes(variables['params']))
  assert_same(aj.restore_pool(file, Normed(), X), {'params': variables['params']})
  norm = variables['batch_stats']['a']['layers_0']
  mean = 'batch_stats/a/layers_0/mean'
  for changed, words in (
    (
      {'mean': np.ones(5), 'var': norm['var']},
      rf'in other shapes {mean} \[5\], not \[4\]: expected',
    ),
    ({'var': norm['var']}, f'lacks {mean}: expected a pool of this model'),
  ):
    tree = {**variables, 'batch_stats': {'a': {'layers_0': changed}}}
    file.write_bytes(flax.serialization.to_bytes(tree))
    with pytest.raises(UserError, match=words):
      aj.restore_pool(file, Normed(), X)
    with pytest.raises(
      UserError, match=r'variables of batch_stats with .*expected those of Normed'
    ):
      start_of(Options(), tree, Normed(), X)
  file.write_bytes(flax.serialization.to_bytes({**variables, 'params': pool}))
  with pytest.raises(UserError, match=f'has beside the pool {mean}'):
    aj.restore_pool(file, MODEL, X)


def test_what_is_no_checkpoint_is_one_line(tmp_path):
  (tmp_path / 'text.msgpack').write_text('no msgpack at all')
  (tmp_path / 'empty').mkdir()
  for name in ('text.msgpack', 'empty', 'nowhere'):
    with pytest.raises(UserError, match=f'checkpoint .*{name}.*expected a run directory') as error:
      aj.restore_pool(tmp_path / name, MODEL, X)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('path', 'variables'), [('a', None), ('', {'params': {}})])
def test_exp_5_starts_from_no_pool(path, variables):
  options = Options(experiment='booster', init_from=path)
  with pytest.raises(UserError, match=r"^(config\.init_from 'a'|variables) in Exp 5: expected n"):
    start_of(options, variables, None, None)


def test_trainings_start_from_a_run_or_from_variables(tmp_path):
  options = {'num_seeds': 1, 'sweep.modes': ('shared',), 'train.checkpoint_every': 100}
  first = sweep.run(tiny.config('sweep', options), tmp_path / 'first')
  # Nothing is learnt at a rate of nearly 0: what is judged is what it started from.
  still = {**options, 'learning_rate': 1e-12, 'seed': 5, 'optimizer.name': 'sgd'}
  from_run = {**still, 'init_from': str(tmp_path / 'first')}
  again = sweep.run(tiny.config('sweep', from_run), tmp_path / 'again')
  columns = ['structure', 'shared_loss']
  pairs = [frame.table[columns].sort_values('structure') for frame in (first, again)]
  np.testing.assert_allclose(pairs[1]['shared_loss'], pairs[0]['shared_loss'], rtol=1e-5)
  model = MLP(3, 8, 8, 3)
  variables = aj.restore_pool(tmp_path / 'first', model, np.ones((1, 4), np.float32))
  given = sweep.run(
    tiny.config('sweep', still), tmp_path / 'given', variables=variables, optimizer=optax.sgd(1e-12)
  )
  pairs.append(given.table[columns].sort_values('structure'))
  np.testing.assert_allclose(pairs[2]['shared_loss'], pairs[0]['shared_loss'], rtol=1e-5)
  together = {**still, 'structures': ('111', '101'), 'init_from': str(tmp_path / 'first')}
  pool = cotrain.run(tiny.config('cotrain', together), tmp_path / 'together').table
  wanted = pairs[0].set_index('structure')['shared_loss']
  for row in pool.itertuples():
    assert row.loss == pytest.approx(wanted[row.structure], rel=1e-4)
    assert row.alone_loss == pytest.approx(wanted[row.structure], rel=1e-4)
  with pytest.raises(UserError, match='start'):
    sweep.run(tiny.config('sweep', still), tmp_path / 'given')
  with pytest.raises(UserError, match='init_from'):
    sweep.run(tiny.config('sweep', from_run), tmp_path / 'both', variables=variables)
  with pytest.raises(UserError, match='variables of a pool with'):
    sweep.run(tiny.config('sweep', still), tmp_path / 'none', variables={})
  with pytest.raises(UserError, match=r"augment \('flip',\): expected a function of \(key, x, y\)"):
    sweep.run(tiny.config('sweep', still), tmp_path / 'none', augment=('flip',))
  assert not (tmp_path / 'none').exists()
