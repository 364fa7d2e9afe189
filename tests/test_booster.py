"""Exp 5: what a run leaves and counts, going on after a stop, and bad options."""

import json
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pandas as pd
import pytest
import studies
import tiny

from additive_jax import UserError, data, models
from additive_jax.errors import Stopped
from additive_jax.experiments import booster
from additive_jax.experiments.booster import groups, process, tables
from additive_jax.experiments.booster.joining import join
from additive_jax.experiments.booster.narrow import CLOCK, Narrow
from additive_jax.experiments.opening import open_session
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.files.journal import Journal
from additive_jax.models import MLP
from additive_jax.report.savings import savings, spent_until
from additive_jax.train.fleet import Fleet
from additive_jax.train.trainer import Trainer

OPTIONS = studies.CASES['booster'].options | {'train.checkpoint_every': 100}
WAYS = ['clusters', 'random_split', 'one_narrow', 'untrained']
ONE = {'num_seeds': 1, 'booster.variants': ('clusters',), 'booster.features': 'inputs'}
STEPS = {'scratch': 15, 'narrow': 8, 'large': 8, 'embedding': 2}
TABLES = ('structures', 'variants', 'curves', 'receipts', 'clusters', 'memory')
FILES = {
  'report.html',
  'summary.json',
  'config.json',
  'metrics.jsonl',
  *(f'{name}.csv' for name in TABLES),
}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with tiny.cached_programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(scope='module')
def boosted(tmp_path_factory):
  return studies.finished('booster', tmp_path_factory)


def start(workdir, options=(), **opening):
  config = tiny.config('booster', OPTIONS | dict(options))
  return booster.run(config, workdir, devices=1, **opening)


def session_of(options, tmp_path):
  config = tiny.config('booster', OPTIONS | dict(options))
  return open_session(config, tmp_path / 'run', check=lambda session: None, devices=1)


@pytest.mark.slow
def test_what_a_run_leaves(boosted):
  result, workdir = boosted
  assert {path.name for path in workdir.iterdir()} >= FILES
  assert result.variants['variant'].tolist() == ['scratch', *WAYS]
  assert sorted(result.table['variant']) == sorted(['scratch', *WAYS])
  assert result.table['structure'].tolist() == ['111'] * 5
  first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank', 'variant']
  assert list(result.table) == first
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['narrow']['blocks'] == [0, 2]
  assert summary['narrow']['steps'] == STEPS['narrow']
  assert set(summary['variants']) == {'scratch', *WAYS}
  assert summary['largest_difference'] <= 1e-5
  page = (workdir / 'report.html').read_text()
  assert 'bubble' not in summary
  for text in (
    'FLOPs saved at equal loss',
    '2 of 3 blocks',
    'synchronised every',
    'Clusters',
    'Test accuracy against the same FLOPs',
  ):
    assert text in page
  assert page.index('<img') < page.index('<table')
  again = studies.run('booster', workdir)
  for name in TABLES:
    pd.testing.assert_frame_equal(again.tables[name], result.tables[name])


def stored(workdir, method, seed=0):
  with np.load(workdir / 'journals' / f'clusters-{method}-seed{seed}.npz') as found:
    return {key: found[key] for key in found.files}


@pytest.mark.slow
def test_every_flop_is_counted(boosted):
  """By hand: three forward passes of every example of every step, and one to embed all examples."""
  curves = boosted[0].curves.set_index(['variant', 'seed'])['flops']
  x = np.zeros((1, 4), np.float32)
  small = models.measure(MLP(2, 4, 4, 3), x).flops('11')
  large = models.measure(MLP(3, 8, 8, 3), x).flops('111')
  embedding = 3 * STEPS['embedding'] * 16 * small + 120 * small
  kmeans = {seed: stored(boosted[1], 'kmeans', seed)['own_flops'] for seed in (0, 1)}
  # 120 examples of 4 features and 2 centres: at least one iteration in each of four starts.
  assert min(kmeans.values()) > 4 * 2 * 120 * 4 * 2
  copies, grown = 3 * STEPS['narrow'] * 16 * small, 3 * STEPS['large'] * 16 * large
  want = {
    'scratch': 3 * STEPS['scratch'] * 16 * large,
    'clusters': embedding + np.mean(list(kmeans.values())) + copies + grown,
    'random_split': copies + grown,
    'one_narrow': copies + grown,
    'untrained': grown,
  }
  rows = boosted[0].variants.set_index('variant')
  for name, flops in want.items():
    assert rows.loc[name, 'training_flops'] == pytest.approx(flops)
    for seed in (0, 1):
      own = flops + (name == 'clusters') * (kmeans[seed] - np.mean(list(kmeans.values())))
      assert curves[name, seed].iloc[-1] == pytest.approx(own)
    assert rows.loc[name, 'flops'] == large
  found = embedding + np.mean(list(kmeans.values()))
  assert rows.loc['clusters', 'cluster_flops'] == pytest.approx(found)
  assert rows.loc['clusters', 'narrow_flops'] == pytest.approx(found + copies)
  assert not rows.loc[['scratch', 'random_split', 'one_narrow'], 'cluster_flops'].any()
  assert rows.loc['untrained', 'narrow_flops'] == 0


@pytest.mark.slow
def test_curves(boosted):
  result, workdir = boosted
  curves, points = result.curves, {}
  for (name, seed), own in curves.groupby(['variant', 'seed'], sort=False):
    assert own['flops'].is_monotonic_increasing
    assert own['seconds'].is_monotonic_increasing
    points[name, seed] = list(zip(own['phase'], own['step']))
  whole = [('narrow', 4), ('narrow', 8), ('large', 0), ('large', 4), ('large', 8)]
  for seed in (0, 1):
    assert points['scratch', seed] == [('large', step) for step in (4, 8, 12, 15)]
    assert points['clusters', seed] == points['one_narrow', seed] == whole
    assert points['untrained', seed] == whole[2:]
  rows = curves.set_index(['variant', 'seed', 'phase', 'step'])
  for name in WAYS[:3]:
    for seed in (0, 1):
      before, after = rows.loc[name, seed, 'narrow', 8], rows.loc[name, seed, 'large', 0]
      # The large model begins as the average of the copies: at its loss, FLOPs and seconds.
      assert after['loss'] == pytest.approx(before['loss'], abs=1e-5)
      assert (after['flops'], after['seconds']) == (before['flops'], before['seconds'])
  last = curves.groupby(['variant', 'seed'])['loss'].last()
  for record in Journal(workdir / 'journals' / 'booster.jsonl').records():
    assert last[record['variant'], record['seed']] == pytest.approx(record['loss'], abs=1e-6)


@pytest.mark.slow
def test_seconds_of_finding_clusters_are_counted(boosted):
  clock = Journal(boosted[1] / 'journals' / CLOCK).records()
  seconds = {(record['tag'], record['step']): record['seconds'] for record in clock}
  assert ('embedding-seed0', STEPS['embedding']) in seconds
  rows = boosted[0].curves.set_index(['variant', 'seed', 'step'])['seconds']
  grouping = float(stored(boosted[1], 'kmeans')['seconds'])
  assert grouping > 0
  whole = seconds['embedding-seed0', 2] + grouping
  for name, before in (('clusters', whole), ('random_split', 0.0)):
    own = seconds[f'{name}-narrow-seed0', 4]
    assert rows[name, 0, 4].iloc[0] == pytest.approx(before + own)


@pytest.mark.slow
def test_receipts_and_clusters(boosted):
  result, workdir = boosted
  receipts = result.receipts
  assert receipts.groupby('variant', sort=False).size().to_dict() == dict.fromkeys(WAYS, 2)
  assert (receipts['from_joined'] <= 1e-5).all()
  assert (receipts['from_joined'] > 0).all()
  assert receipts.loc[receipts['variant'] == 'one_narrow', 'exact'].all()
  assert not receipts.loc[receipts['variant'] == 'clusters', 'exact'].any()
  assert receipts['rule'].str.contains('grow stream 4→8, hidden 4→8, depth 2→3').all()
  steps = dict(zip(receipts['variant'], receipts['steps'].map(int)))
  assert steps == dict.fromkeys(WAYS, 8) | {'untrained': 0}
  sizes = result.clusters
  assert (sizes['size'] == 60).all()
  assert sizes.groupby(['variant', 'seed']).size().tolist() == [2] * 4
  found, even = (stored(workdir, method) for method in ('kmeans', 'random'))
  agree = (found['labels'] == even['labels']).mean()
  assert 0.2 < agree < 0.8
  losses = result.curves.set_index(['variant', 'seed', 'phase', 'step'])['loss']
  for seed in (0, 1):
    assert (
      abs(losses['clusters', seed, 'narrow', 4] - losses['random_split', seed, 'narrow', 4]) > 1e-3
    )


def signalled(monkeypatch, kind, number, after=0):
  """From now on the `number`-th call of `kind.run` is followed by SIGTERM to this process; of those
  that come when `after` steps have been taken."""
  original, steps, calls = kind.run, [], []

  def run(self, count):
    if sum(steps) >= after:
      calls.append(count)
    steps.append(count)
    if len(calls) == number:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(self, count)

  monkeypatch.setattr(kind, 'run', run)


@pytest.mark.thorough
def test_stopped_and_started_again(boosted, tmp_path):
  """Between two synchronisations of the copies, then in the large model.

  By default `test_old_runs` goes on with a stopped one, and the one below is stopped too.
  """
  whole, _ = boosted
  options = {'num_seeds': 1, 'booster.variants': ('clusters',)}
  for kind, number in ((Fleet, 2), (Trainer, 1)):
    with pytest.MonkeyPatch.context() as patched:
      signalled(patched, kind, number)
      with pytest.raises(Stopped):
        start(tmp_path / 'run', options)
    cost = stored(tmp_path / 'run', 'kmeans')
  again = start(tmp_path / 'run', options)
  record = Journal(tmp_path / 'run' / 'journals' / 'booster.jsonl').records()[-1]
  assert (record['cluster_flops'], record['cluster_seconds']) == (cost['flops'], cost['seconds'])
  for field in ('curves', 'receipts', 'clusters'):
    own, want = getattr(again, field), getattr(whole, field)
    want = want[want['variant'].isin(['scratch', 'clusters']) & (want['seed'] == 0)]
    own, want = (frame.drop(columns='seconds', errors='ignore') for frame in (own, want))
    want = want.astype(own.dtypes).reset_index(drop=True)
    pd.testing.assert_frame_equal(own, want, rtol=1e-12)
  assert (again.curves.groupby('variant')['seconds'].diff().dropna() >= 0).all()


@pytest.mark.slow
def test_the_summary_tells_what_a_pipeline_leaves_idle(boosted, tmp_path):
  result, _ = boosted
  with session_of(ONE, tmp_path) as session:
    narrow = Narrow.of(session, session.config.booster.num_models)
    bubble = {'measured': 0.45, 'formula': 3 / 7, 'busy': [[1.0]]}
    given = session, result.variants, result.receipts, narrow
    found = tables.summarise(*given, bubble)
  assert found['bubble'] == {'measured': 0.45, 'formula': 3 / 7}
  assert found['variants'].keys() == result.summary['variants'].keys()


def test_clusters_of_a_run_are_read_again(tmp_path):
  """With what they cost; those that do not tell it are found again."""
  with session_of(ONE, tmp_path) as session:
    narrow = Narrow.of(session, session.config.booster.num_models)
    first = groups.clusters_of(narrow, 'kmeans', 0)
    # Columns of a table are no components, and cost nothing.
    assert first.flops == first.clusters.flops > 0
    again = groups.clusters_of(narrow, 'kmeans', 0)
    assert (again.flops, again.seconds) == (first.flops, first.seconds)
    assert again.clusters.flops == first.clusters.flops
    path = session.rundir.journals / 'clusters-kmeans-seed0.npz'
    old = {key: stored(session.rundir.path, 'kmeans')[key] for key in ('labels', 'centers')}
    np.savez(path, **old, inertia=1.0)
    anew = groups.clusters_of(narrow, 'kmeans', 0)
    assert anew.flops == first.flops
    assert (anew.clusters.labels == first.clusters.labels).all()
    assert float(stored(session.rundir.path, 'kmeans')['flops']) == first.flops
    random = groups.clusters_of(narrow, 'random', 0)
    assert random[1:] == (0.0, 0.0)


@pytest.mark.slow
def test_the_best_copy(tmp_path):
  """Of lower loss on training examples; the test split has no say."""
  with session_of(ONE | {'booster.join': 'best', 'booster.sync_epochs': 0.0}, tmp_path) as session:
    narrow = Narrow.of(session, session.config.booster.num_models)
    fleet = narrow.fleet([np.arange(60), np.arange(60, 120)], 0)
    fleet.run(STEPS['narrow'])
    members, train = fleet.members(), session.data.train[np.arange(30)]
    pools = [{'params': state.params} for state in members]
    known = [narrow.session.scores(pool, train)['loss'] for pool in pools]
    assert abs(known[0] - known[1]) > 1e-3
    for order in (members, members[::-1]):
      begun = join(narrow, order, session.training.recipe(10), 0)
      receipt = begun.facts['receipt']
      assert receipt['exact']
      assert receipt['rule'].startswith('best of 2, grow')
      assert max(receipt['from_models'], receipt['from_joined']) <= 1e-5
      found = session.scores({'params': begun.state.params}, train)['loss']
      assert found == pytest.approx(min(known), abs=1e-5)


@pytest.mark.slow
def test_averages_are_of_copies_that_began_alike(tmp_path):
  """Whatever joins them in the end: means of networks that began apart are of nothing."""
  for options in (
    {'booster.join': 'average', 'booster.sync_epochs': 0.0},
    {'booster.join': 'average'},
    {'booster.join': 'pack', 'booster.sync_epochs': 0.0},
    {'booster.join': 'best', 'booster.sync_epochs': 0.0},
  ):
    with session_of(options, tmp_path / '_'.join(map(str, options.values()))) as session:
      narrow = Narrow.of(session, session.config.booster.num_models)
      fleet = narrow.fleet([np.arange(60), np.arange(60, 120)], 0)
      one, other = (np.asarray(s.params['embed']['kernel']) for s in fleet.members())
      averaged = options['booster.join'] == 'average' or narrow.sync_every > 0
      assert (one == other).all() == averaged


def test_the_state_of_the_optimizer_goes_along(tmp_path):
  with session_of(ONE, tmp_path) as session:
    narrow = Narrow.of(session, session.config.booster.num_models)
    groups = [np.arange(60), np.arange(60, 120)]
    fleet = narrow.fleet(groups, 0)
    fleet.run(3)
    members, recipe = fleet.members(), session.training.recipe(10)
    state = join(narrow, members, recipe, 0).state
    scale, *_, schedule = state.opt_state
    assert int(scale.count) == 3  # of Adam's means
    assert int(schedule.count) == 0  # of the learning rate
    mean = np.mean([s.opt_state[0].mu['readout']['out']['bias'] for s in members], axis=0)
    np.testing.assert_allclose(scale.mu['readout']['out']['bias'], mean, rtol=1e-5)
    without = session.with_options({'booster.optimizer_state': False})
    fresh = join(Narrow.of(without, 2), members, recipe, 0).state
    assert int(fresh.opt_state[0].count) == 0
    assert not np.any(fresh.opt_state[0].mu['readout']['out']['bias'])


def curve(losses, spent=None, variant='scratch', seed=0):
  spent = [10.0 * (i + 1) for i in range(len(losses))] if spent is None else spent
  columns = {'variant': variant, 'seed': seed, 'flops': spent, 'seconds': np.array(spent) / 10}
  return pd.DataFrame(columns | {'loss': losses})


@pytest.mark.parametrize(
  ('losses', 'target', 'want'),
  [
    ([4.0, 2.0, 1.0], 1.5, 25.0),
    ([4.0, 2.0, 1.0], 2.0, 20.0),
    ([4.0, 2.0, 1.0], 1.0, 30.0),
    ([4.0, 2.0, 1.0], 9.0, 10.0),  # at the first point, whatever came before
    ([4.0, 2.0, 1.0], 4.0, 10.0),
    ([4.0, 2.0, 1.0], 0.9, np.nan),
    ([4.0, 2.0, 3.0, 1.0], 2.0, 20.0),  # the first time counts
    ([4.0, 2.0, 3.0, 1.0], 1.5, 37.5),
    ([4.0, 2.0, 2.0, 2.0], 2.0, 20.0),
    ([np.nan, 2.0, 1.0], 3.0, 20.0),  # no line begins at what is not known
    ([np.inf, 2.0, 1.0], 3.0, 20.0),
    ([np.nan, np.nan], 3.0, np.nan),
  ],
)
def test_spent_until(losses, target, want):
  for measure, unit in (('flops', 1), ('seconds', 10)):
    found = spent_until(curve(losses), target, measure)
    np.testing.assert_allclose(found * unit, want)


def test_savings_at_the_lowest_loss_of_training_from_scratch():
  """Its lowest, not its last, which may be worse; each seed against its own."""
  curves = pd.concat(
    [
      curve([4.0, 1.0, 2.0]),  # 1.0 at 20
      curve([2.0, 1.5, 0.5], [5.0, 10.0, 20.0], 'clusters'),  # at 15
      curve([3.0, 2.0], variant='untrained'),  # never
      curve([4.0, 3.0, 3.0], seed=1),  # 3.0 at 20
      curve([2.0, 1.0], [30.0, 40.0], 'clusters', seed=1),
      curve([5.0, 3.0], [4.0, 8.0], 'untrained', seed=1),
    ]
  )
  found = savings(curves, 'flops', 'scratch')
  assert found.index.tolist() == [0, 1]
  np.testing.assert_allclose(found['clusters'], [0.25, -0.5])
  np.testing.assert_allclose(found['untrained'], [np.nan, 0.6])
  scores = [{'flops': 1, 'params': 1, 'loss': 1.0, 'accuracy': 0.5, 'skipped': 0}] * 2
  records = {'scratch': scores}
  records |= {name: [s | {'narrow_flops': 3.0} for s in scores] for name in found}
  rows = tables.compare(records, curves).set_index('variant')
  assert rows.loc['clusters', 'saving'] == pytest.approx(-0.125)
  assert rows.loc['clusters', 'reached'] == 2
  assert rows.loc['clusters', 'training_flops'] == pytest.approx(30.0)
  # Of one seed alone there is no mean to report.
  assert np.isnan(rows.loc['untrained', 'saving'])
  assert rows.loc['untrained', 'reached'] == 1
  assert rows.loc['scratch', 'narrow_flops'] == 0


# Copies of 4 examples a step, and 450 steps of them.
APART = ONE | {
  'booster.asynchronous': True,
  'booster.join': 'pack',
  'booster.sync_epochs': 0.0,
  'booster.num_models': 4,
  'booster.epochs': 60.0,
  'train.log_every': 6,
  'train.checkpoint_every': 64,
}


def saved_steps(folder):
  return sorted(int(path.name) for path in folder.glob('*') if path.name.isdigit())


@pytest.mark.slow
def test_processes_that_die_delay_nobody(tmp_path, monkeypatch, caplog):
  """Of four, two die at once, and one after some checkpoints, of which the newest is used: the rest
  are packed. The run is then stopped in the large model, and goes on without other processes."""
  workdir, started = tmp_path / 'run', []
  folders = [workdir / 'checkpoints' / f'clusters-narrow-seed0-{i}' for i in range(4)]
  popen = subprocess.Popen

  def watched(command, *args, **options):
    if 'additive_jax' not in str(command):  # what a library runs when it is first imported
      return popen(command, *args, **options)
    started.append(popen(command, *args, **options))
    if len(started) in (3, 4):
      started[-1].kill()
    if len(started) == 4:
      threading.Thread(target=kill_second).start()
    return started[-1]

  def kill_second():
    while started[1].poll() is None and not saved_steps(folders[1]):
      time.sleep(0.005)
    started[1].kill()

  monkeypatch.setattr(subprocess, 'Popen', watched)
  monkeypatch.setattr(tiny.os, 'environ', tiny.environment(tmp_path.parent / 'programs'))
  with pytest.MonkeyPatch.context() as patched:
    signalled(patched, Trainer, 1, after=15)  # of training from scratch
    with pytest.raises(Stopped):
      start(workdir, APART)
  assert [process.returncode for process in started] == [0, -9, -9, -9]
  (record,) = Journal(workdir / 'journals' / 'narrow.jsonl').records()
  steps = saved_steps(folders[1])
  assert record['taken'] == [450, steps[-1]]
  assert 0 < steps[-1] < 450
  said = caplog.text
  assert f'clusters-narrow-seed0-1: its process ended with code -9 at step {steps[-1]} of' in said
  for i in (2, 3):
    assert f'clusters-narrow-seed0-{i}: its process ended with code -9 at step 0 of' in said
  result = start(workdir, APART)
  assert len(started) == 4
  (receipt,) = result.receipts.to_dict('records')
  assert receipt['rule'].startswith('pack')
  assert not receipt['exact']
  assert receipt['from_models'] > 1e-3
  # Nothing was grown of which the large model could be an exact copy.
  assert np.isnan(receipt['from_joined'])
  assert json.loads((workdir / 'summary.json').read_text())['largest_difference'] is None
  assert receipt['steps'] == f'450, {steps[-1]}'
  rows = result.curves.query('variant == "clusters"')
  assert rows['step'].tolist() == [0, 6, 8]
  with session_of(APART, tmp_path / 'again') as session:
    narrow = Narrow.of(session, session.config.booster.num_models)
    each = narrow.flops_per_step / 4
    clustering = float(stored(workdir, 'kmeans')['flops'])
    assert rows['flops'].iloc[0] == pytest.approx(clustering + each * (450 + steps[-1]))
    fleet = narrow.fleet([np.arange(1)], 0)
    members = []
    for folder in folders[:2]:
      with Checkpointer(folder, identity=narrow.session.identity) as checkpoints:
        fleet.state = checkpoints.restore(fleet.state).state
      members += fleet.members()
    kernels = [state.params['embed']['kernel'] for state in members]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    begun = join(narrow, members, session.training.recipe(STEPS['large']), 0)
    assert begun.facts['receipt']['from_models'] == pytest.approx(receipt['from_models'], abs=1e-5)
    found = session.scores({'params': begun.state.params})
    assert rows['loss'].iloc[0] == pytest.approx(found['loss'], abs=1e-5)


@pytest.mark.parametrize('command', ['false', 'true', 'sleep'])
def test_no_process_leaves_anything(command, tmp_path, monkeypatch):
  """They die before they are told what to train, more than a pipe holds, or do not end."""
  popen, started = subprocess.Popen, []

  def other(_, **options):
    started.append(popen([command, '600'], **options))
    return started[-1]

  monkeypatch.setattr(subprocess, 'Popen', other)
  monkeypatch.setattr(process, 'PATIENCE', 0.1)
  with session_of(APART, tmp_path) as session:
    narrow = Narrow.of(session, session.config.booster.num_models)
    groups = [np.arange(1 if command == 'sleep' else 40_000)] * 4
    error, said = UserError, 'no process of copy-0, copy-1, copy-2, copy-3 left a checkpoint'
    if command == 'sleep':
      monkeypatch.setattr(type(session.stopper), 'stop_requested', True)
      error, said = Stopped, None
    with pytest.raises(error, match=said) as raised:
      process.train_apart(narrow, groups, 0, 'copy')
    assert '\n' not in str(raised.value)
  assert all(process.returncode is not None for process in started)


CHUNKS = {'model.gates': ('sub_activation',), 'booster.structure': ''}
VIT = {'data.name': 'digits', 'model.name': 'transformer', 'data.train_examples': 32}


def test_processes_make_the_model_and_the_data_themselves(tmp_path):
  said = 'config.booster.asynchronous True with a model or data that the config does not name'
  for given in (
    {'model': MLP(3, 8, 12, 3)},
    {'data': data.load('tabular:wine', valid=0.0), 'model': MLP(3, 8, 8, 3)},
  ):
    with pytest.raises(UserError, match=said):
      start(tmp_path / 'run', ONE | {'booster.asynchronous': True}, **given)
  assert not (tmp_path / 'run').exists()
