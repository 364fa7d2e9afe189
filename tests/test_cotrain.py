"""Exp 2 against oracles, and the same on one device, on several, and in two processes."""

import json
import logging
import pickle
import socket
import subprocess
import sys
import zlib

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import studies
import tiny

import additive_jax
from additive_jax import data as data_
from additive_jax import run as run_
from additive_jax.errors import UserError
from additive_jax.experiments import cotrain, sweep
from additive_jax.experiments.lone_pools import read_pool
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.session import Session
from additive_jax.export import load, main
from additive_jax.files.checkpoint import Checkpointer

LISTED = studies.CASES['cotrain'].options
TEXTS = ['011', '111']


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  return studies.finished('cotrain', tmp_path_factory)


@pytest.fixture(scope='module')
def pools(trained):
  """The pools of both seeds, co-trained and alone: [({'params': …}, [{'params': …}, …]), …]."""
  workdir, found = trained[1], []
  opening = open_session(tiny.config('cotrain', LISTED), workdir, check=lambda session: None)
  with opening as session:
    for seed in session.seeds:
      sampler = additive_jax.train.samplers.listed(TEXTS, 3)
      trainer = session.trainer(session.training.recipe(15), sampler, seed)
      folder = workdir / 'checkpoints' / f'pool-seed{seed}'
      with Checkpointer(folder, identity=session.identity) as checkpoints:
        together = jax.device_get(checkpoints.restore(trainer.state).state.params)
      files = [workdir / 'checkpoints' / f'alone-seed{seed}' / f'{s}.msgpack' for s in TEXTS]
      alone = [flax.serialization.from_bytes(together, path.read_bytes()) for path in files]
      found.append(({'params': together}, [{'params': params} for params in alone]))
  return found


@pytest.fixture(scope='module')
def model():
  return additive_jax.models.MLP(3, 8, 8, 3)


@pytest.fixture(scope='module')
def iris():
  return data_.load('tabular:iris', valid=0.0)


def losses(model, pools, iris):
  return np.array(
    [
      optax.softmax_cross_entropy_with_integer_labels(
        run_.static(model, pool, iris.test.x, text), jnp.asarray(iris.test.y)
      ).mean()
      for pool, text in zip(pools, TEXTS)
    ]
  )


def test_directory(trained):
  result, workdir = trained
  table = pd.read_csv(workdir / 'structures.csv', dtype={'structure': str})
  first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
  alone = ['alone_loss', 'alone_loss_ci95', 'alone_accuracy', 'alone_accuracy_ci95']
  assert list(table) == [*first, 'accuracy_ci95', *alone]
  assert sorted(table['structure']) == TEXTS
  assert table['rank'].tolist() == [1, 2]
  assert table['loss'].is_monotonic_increasing
  comparison = result.comparison
  assert set(zip(comparison['label'], comparison['variant'])) == {
    (label, variant) for label in [*TEXTS, 'ensemble'] for variant in ('cotrained', 'alone')
  }
  names = {path.name for path in workdir.iterdir()}
  assert names >= {
    'config.json',
    'environment.json',
    'metrics.jsonl',
    'tensorboard',
    'checkpoints',
    'comparison.csv',
    'cosines.csv',
    'summary.json',
    'report.html',
  }
  assert '<script src' not in (workdir / 'report.html').read_text()


def test_summary(trained, model, iris):
  result, workdir = trained
  summary = json.loads((workdir / 'summary.json').read_text())
  space = additive_jax.measure(model, iris.train.x[:1])
  flops = sum(space.flops(text) for text in TEXTS)
  # Three times a forward pass, of 15 steps of 16 examples, on each side.
  assert summary['training_flops_of_each_side'] == pytest.approx(3 * 15 * 16 * flops)
  assert summary['pool_params'] == space.params('111')
  assert summary['alone_params'] == space.params('011') + space.params('111')
  assert summary['best_structure'] == result.table['structure'][0]
  assert summary['loss'] == pytest.approx(result.table['loss'].mean())
  gain = result.table['loss'].mean() - result.table['alone_loss'].mean()
  assert summary['cotrained_minus_alone_loss'] == pytest.approx(gain)


def test_losses_are_those_of_the_pools(trained, pools, model, iris):
  table = trained[0].table.set_index('structure')
  together = np.mean([losses(model, [pool] * 2, iris) for pool, _ in pools], 0)
  alone = np.mean([losses(model, own, iris) for _, own in pools], 0)
  # Thirty examples' float32 losses, added up in another order.
  np.testing.assert_allclose(table['loss'][TEXTS], together, rtol=1e-5)
  np.testing.assert_allclose(table['alone_loss'][TEXTS], alone, rtol=1e-5)
  assert abs(together - alone).min() > 1e-3


@pytest.mark.slow
def test_alone_is_exported(trained, iris, tmp_path):
  """By the command, of each seed; the mean of what they score is in the table."""
  table, alone = trained[0].table.set_index('structure'), []
  for seed in (0, 1):
    target = tmp_path / f'net-{seed}'
    arguments = [f'--structure={TEXTS[0]}', f'--to={target}', '--alone', f'--seed={seed}']
    assert main(['export', str(trained[1]), *arguments]) == 0
    module, variables = load(target)
    log_p = jax.nn.log_softmax(module.apply(variables, iris.test.x))
    alone.append(float(-log_p[np.arange(len(iris.test)), iris.test.y].mean()))
  assert np.mean(alone) == pytest.approx(table['alone_loss'][TEXTS[0]], rel=1e-6)
  assert alone[0] != alone[1]
  assert main(['export', str(trained[1]), '--structure=000', *arguments[1:]]) == 2


def test_alone_equals_exp_1(trained, tmp_path):
  config = tiny.config('sweep', {'sweep.modes': ('standalone',)})
  table = sweep.run(config, tmp_path / 'run', devices=2).table.set_index('structure')
  alone = trained[0].table.set_index('structure')['alone_loss']
  assert alone[TEXTS].tolist() == table['loss'][TEXTS].tolist()


def test_ensembles_against_numpy(trained, pools, model, iris):
  comparison = trained[0].comparison.set_index(['label', 'variant'])
  for variant in ('cotrained', 'alone'):
    of_seeds = []
    for pool, alone in pools:
      members = [pool] * 2 if variant == 'cotrained' else alone
      logits = np.array(
        [run_.static(model, m, iris.test.x, text) for m, text in zip(members, TEXTS)], np.float64
      )
      odds = np.exp(logits - logits.max(-1, keepdims=True))
      mean = (odds / odds.sum(-1, keepdims=True)).mean(0)
      chosen = mean[np.arange(30), iris.test.y]
      of_seeds.append((-np.log(chosen).mean(), (mean.argmax(-1) == iris.test.y).mean()))
    loss, accuracy = np.mean(of_seeds, 0)
    row = comparison.loc['ensemble', variant]
    assert row['loss'] == pytest.approx(loss, rel=1e-5)  # float32 against float64
    assert row['accuracy'] == pytest.approx(accuracy, rel=1e-6)


def test_cosines(trained, pools, model, iris):
  matrix = trained[0].cosines
  order = trained[0].table['structure'].tolist()
  assert matrix['structure'].tolist() == list(matrix)[1:] == order
  assert sorted(order) == sorted(TEXTS)
  got = matrix.set_index('structure').loc[TEXTS, TEXTS].to_numpy()
  np.testing.assert_array_equal(got, got.T)
  np.testing.assert_allclose(got.diagonal(), 1, atol=1e-6)  # of a float32 unit vector with itself
  want = []
  for pool, _ in pools:
    flat = []
    for text in TEXTS:

      def loss(params, text=text):
        logits = run_.static(model, {'params': params}, iris.train.x, text)
        return optax.softmax_cross_entropy_with_integer_labels(
          logits, jnp.asarray(iris.train.y)
        ).mean()

      gradient = jax.grad(loss)(pool['params'])
      flat.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]))
    want.append(flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1]))
  assert got[0, 1] == pytest.approx(np.mean(want), abs=1e-4)  # float32 sums over all parameters
  points = [json.loads(line) for line in (trained[1] / 'metrics.jsonl').read_text().splitlines()]
  last = [p for p in points if p['step'] == 15]
  assert np.mean([p['cosine/111~011'] for p in last]) == pytest.approx(got[0, 1], abs=1e-4)


@pytest.mark.slow
def test_one_order_for_all(tmp_path):
  """The best co-trained structure first, in every table, however the structures were listed."""
  options = {'structures': ('000', '111', '010', '101'), 'cotrain.top_k': 0, 'num_seeds': 1}
  result = cotrain.run(tiny.config('cotrain', options), tmp_path / 'run', devices=2)
  order = result.table['structure'].tolist()
  assert order != list(options['structures'])
  assert result.table['loss'].is_monotonic_increasing
  assert result.table['rank'].tolist() == [1, 2, 3, 4]
  labels = [*order, 'ensemble']
  assert result.comparison['label'].tolist() == labels * 2
  assert result.cosines['structure'].tolist() == list(result.cosines)[1:] == order
  lines = (tmp_path / 'run' / 'journals' / 'cotrain.jsonl').read_text().splitlines()
  record = json.loads(lines[-1])  # of the pool; before it those of structures alone
  listed = list(options['structures'])
  rows = result.comparison.set_index(['variant', 'label'])
  matrix = result.cosines.set_index('structure')
  for i, structure in enumerate(listed):
    for variant in ('cotrained', 'alone'):
      assert rows.loc[(variant, structure), 'loss'] == record[variant]['loss'][i]
    for j, other in enumerate(listed):
      assert matrix.loc[structure, other] == record['cosines'][i][j]
  space = additive_jax.measure(
    additive_jax.models.MLP(3, 8, 8, 3), data_.load('tabular:iris', valid=0.0).train.x[:1]
  )
  for row in result.table.itertuples():
    assert (row.flops, row.params) == (space.flops(row.structure), space.params(row.structure))
  page = (tmp_path / 'run' / 'report.html').read_text()
  assert '3 gates, 1 seed, no intervals;' in page
  assert '95 %' not in page
  assert 'over the seeds' not in page


@pytest.mark.thorough
def test_a_search_is_continued(tmp_path, monkeypatch):
  """`test_shared` continues one of a sweep by default, by the same code."""
  options = {'num_seeds': 1, 'model.num_blocks': 4, 'search.method': 'evolution'}
  options |= {'search.budget': 12, 'search.population': 4, 'train.epochs': 0.5}
  config = tiny.config('cotrain', options)
  want = cotrain.run(config, tmp_path / 'whole', devices=2)
  workdir, evaluated = tmp_path / 'run', []
  tiny.killed_copy(tmp_path / 'whole', workdir, 'search.jsonl', 2, torn=b'{"struc')
  for name in ('structures.jsonl', 'cotrain.jsonl'):
    (workdir / 'journals' / name).unlink()
  original = Session.evaluate

  def evaluate(self, variables, structures, split=None):
    if len(structures) == 4:  # a generation
      evaluated.append(4)
    return original(self, variables, structures, split)

  monkeypatch.setattr(Session, 'evaluate', evaluate)
  found = cotrain.run(config, workdir, devices=2)
  assert evaluated == [4]
  for name in ('structures.jsonl', 'search.jsonl', 'cotrain.jsonl'):
    paths = [folder / 'journals' / name for folder in (workdir, tmp_path / 'whole')]
    # Structures alone are trained side by side: which of them ends first may differ.
    lines = [sorted(path.read_bytes().splitlines()) for path in paths]
    assert lines[0] == lines[1]
  pd.testing.assert_frame_equal(found.table, want.table, check_exact=True)


def local(folder, workdir):
  """What `launch/local.sh` gives of a run in two processes, with their logs in `folder`."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = str(free.getsockname()[1])
  args = tiny.arguments('cotrain', workdir, LISTED)
  command = ['bash', str(tiny.ROOT / 'launch' / 'local.sh'), '2', *args]
  environment = tiny.environment(folder / 'programs') | {'PYTHON': sys.executable}
  more = {'PORT': port, 'LOGS': str(folder)}
  return subprocess.run(
    command, env=environment | more, capture_output=True, text=True, timeout=300
  )


@pytest.mark.slow
def test_two_processes(trained, tmp_path):
  done = local(tmp_path, tmp_path / 'run')
  assert done.returncode == 0, done.stderr
  assert done.stderr.splitlines()[-1].endswith(f'report: {tmp_path / "run" / "report.html"}')
  described = json.loads((tmp_path / 'run' / 'environment.json').read_text())
  assert (described['process_count'], described['device_count']) == (2, 2)
  table = pd.read_csv(tmp_path / 'run' / 'structures.csv', dtype={'structure': str})
  got, want = table.set_index('structure'), trained[0].table.set_index('structure')
  # Gradients cross between processes by another reduction, over 15 float32 steps.
  np.testing.assert_allclose(got['loss'][TEXTS], want['loss'][TEXTS], rtol=2e-5)
  # Each process trained one of the structures alone.
  np.testing.assert_allclose(got['alone_loss'][TEXTS], want['alone_loss'][TEXTS], rtol=1e-6)
  journals = {path.name for path in (tmp_path / 'run' / 'journals').iterdir()}
  assert {'cotrain-0-of-2.jsonl', 'cotrain-1-of-2.jsonl', 'cotrain.jsonl'} < journals


@pytest.mark.thorough
def test_what_one_of_two_processes_finds_wrong_ends_both(tmp_path):
  """By default `test_peers` has processes that end before others."""
  (tmp_path / 'file').touch()
  failed = local(tmp_path, tmp_path / 'file' / 'run')
  assert failed.returncode == 2
  errors = [line for line in failed.stderr.splitlines() if line.startswith('error:')]
  assert errors == [
    f'error: cannot use {tmp_path / "file" / "run"} (Not a directory); '
    'expected a directory that may be written'
  ]
  assert 'Traceback' not in failed.stderr + (tmp_path / 'local-1.log').read_text()


@pytest.mark.slow
def test_structures_from_a_sweep_or_from_a_short_one(tmp_path):
  shared = tiny.config('sweep', {'sweep.modes': ('shared',), 'num_seeds': 1})
  table = sweep.run(shared, tmp_path / 'sweep', devices=2).table
  best = table['structure'][:2].tolist()
  once = {'num_seeds': 1}
  short = cotrain.run(tiny.config('cotrain', once), tmp_path / 'short', devices=2)
  assert sorted(short.table['structure']) == sorted(best)
  # The sweep is as long as the one before, with the same seed: the same pool.
  options = once | {'structures_from': str(tmp_path / 'sweep')}
  taken = cotrain.run(tiny.config('cotrain', options), tmp_path / 'from', devices=2)
  pd.testing.assert_frame_equal(taken.table, short.table, check_exact=True)
  # Once begun, a run keeps its structures, whatever becomes of the sweep.
  (tmp_path / 'from' / 'summary.json').unlink()
  (tmp_path / 'from' / 'journals' / 'cotrain.jsonl').unlink()
  turned = table.assign(rank=table['rank'].to_numpy()[::-1])
  turned.to_csv(tmp_path / 'sweep' / 'structures.csv', index=False)
  again = cotrain.run(tiny.config('cotrain', options), tmp_path / 'from', devices=2)
  pd.testing.assert_frame_equal(again.table, short.table, check_exact=True)
  # Searched: all of the 8 structures but some.
  options = once | {'search.method': 'random', 'search.budget': 8, 'search.population': 4}
  found = cotrain.run(tiny.config('cotrain', options), tmp_path / 'searched', devices=2)
  assert sorted(found.table['structure']) == sorted(best)


@pytest.mark.thorough
def test_regression(tmp_path):
  """By default `test_task_runs` has one, and the R² of a sweep."""
  options = {'data.name': 'tabular:diabetes', 'structures': ('100', '010', '110')}
  options |= {'cotrain.top_k': 0, 'num_seeds': 1, 'train.epochs': 0.5}
  result = cotrain.run(tiny.config('cotrain', options), tmp_path / 'run', devices=3)
  assert len(result.table) == 3
  judged = data_.load('tabular:diabetes').test.y
  for prefix in ('', 'alone_'):
    loss, r2 = result.table[f'{prefix}loss'], result.table[f'{prefix}r2']
    # R² is one minus the loss in units of the variance that is judged; both are sums of float32.
    np.testing.assert_allclose(r2, 1 - loss / judged.var(), atol=1e-5)
  ensemble = result.comparison.query('label == "ensemble" and variant == "alone"')
  # Squared error is convex.
  assert ensemble['loss'].item() < result.table['alone_loss'].mean()


def test_a_run_that_is_no_sweep(trained, tmp_path):
  options = {'structures_from': str(trained[1])}
  with pytest.raises(UserError, match='expected the directory of a finished sweep'):
    cotrain.run(tiny.config('cotrain', options), tmp_path / 'run', devices=2)


def test_a_sweep_of_other_gates(tmp_path):
  folder = tmp_path / 'sweep'
  folder.mkdir()
  (folder / 'config.json').write_text('{"gates": ["block_00/residual"]}')
  (folder / 'summary.json').write_text('{"experiment": "sweep", "finished": true}')
  (folder / 'structures.csv').write_text('structure,loss\n1,0.5\n')
  options = {'structures_from': str(folder)}
  with pytest.raises(UserError, match=r"is of the gates \['block_00/residual'\]: expected"):
    cotrain.run(tiny.config('cotrain', options), tmp_path / 'run', devices=2)


def test_a_damaged_network_of_a_structure_is_trained_again(trained, tmp_path, caplog, monkeypatch):
  """Also one that a stranger wrote; nothing in it is unpickled."""
  monkeypatch.setattr(logging.getLogger('additive_jax'), 'propagate', True)
  workdir = tmp_path / 'run'
  tiny.killed_copy(trained[1], workdir, 'cotrain.jsonl', 5)  # the pool of the second seed is left
  path = workdir / 'checkpoints' / 'alone-seed1' / f'{TEXTS[0]}.msgpack'
  sound = path.read_bytes()
  path.write_bytes(sound[:-1] + b'x')
  other = workdir / 'checkpoints' / 'alone-seed1' / f'{TEXTS[1]}.msgpack'
  other_sound = other.read_bytes()
  other.unlink()
  result = studies.run('cotrain', workdir)
  assert f'{path} is damaged or missing: the structure is trained alone again' in caplog.text
  assert f'{other} is damaged or missing' in caplog.text
  assert (path.read_bytes(), other.read_bytes()) == (sound, other_sound)
  for name, table in trained[0].tables.items():
    pd.testing.assert_frame_equal(result.tables[name], table)


def test_a_network_file_of_a_stranger(tmp_path):
  path = tmp_path / '011.msgpack'
  for content in (
    pickle.dumps(print),
    b'',
    bytes(range(256)),
    flax.serialization.to_bytes({'a': 1}),
  ):
    path.write_bytes(content)
    with pytest.raises(
      UserError, match=r'011\.msgpack \(.*\): expected a network that the run'
    ) as error:
      read_pool(path, zlib.crc32(content), {'x': np.zeros(2)})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('top_k', 'count'), [(4, 3), (0, 3), (2, 2)])
def test_listed_structures_say_how_many(top_k, count, tmp_path):
  """The default of `top_k`, which nobody asked for, does not."""
  options = {'structures': ('011', '110', '111'), 'cotrain.top_k': top_k}
  config = tiny.config('cotrain', options)
  with open_session(config, tmp_path / 'run', check=cotrain.STUDY.check) as session:
    assert len(cotrain.chosen_structures(session)) == count
