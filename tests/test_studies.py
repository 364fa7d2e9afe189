"""What every study leaves, goes on from, and does over devices.

What is refused is in `test_options`.
"""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import studies
import tiny

from additive_jax.files.journal import Journal
from additive_jax.files.rundir import RunDir
from additive_jax.train.population import Population
from additive_jax.train.trainer import Trainer

TABLES = {
  'sweep': {'structures', 'effects', 'interactions'},
  'cotrain': {'structures', 'comparison', 'cosines', 'differences'},
  'stochastic': {'structures', 'variants'},
  'experts': {'structures', 'variants', 'routers'},
  'dna': {'structures', 'variants', 'routers', 'modules', 'paths'},
  'booster': {'structures', 'variants', 'curves', 'receipts', 'clusters', 'memory'},
  'compress': {'structures', 'variants', 'layers'},
}
# Whose structures are several of one space; others compare networks of several sizes, or one.
EXPLORED = {'sweep', 'cotrain', 'stochastic', 'experts'}
FILES = {
  'config.json',
  'environment.json',
  'metrics.jsonl',
  'tensorboard',
  'checkpoints',
  'summary.json',
  'report.html',
}


@pytest.fixture(scope='module', autouse=True)
def cached(tmp_path_factory):
  with studies.programs(tiny.programs(tmp_path_factory)):
    yield


@pytest.fixture(params=tiny.slow_but(['sweep', 'cotrain'], TABLES))
def name(request):
  return request.param


@pytest.fixture
def finished(name, tmp_path_factory):
  """Result and directory of the study's run."""
  return studies.finished(name, tmp_path_factory)


def lines_of(workdir, name):
  return (workdir / 'journals' / f'{name}.jsonl').read_bytes().splitlines(keepends=True)


def numbers(workdir):
  """Every number of a run that comes out the same each time: tables, summary, curves."""
  tables = {}
  for path in sorted(workdir.glob('*.csv')):
    frame = pd.read_csv(path, dtype={'structure': str})
    tables[path.name] = frame[[column for column in frame if 'seconds' not in column]]
  summary = RunDir(workdir).read_finished()[0]
  for figures in summary.get('variants', {}).values():
    for key in [key for key in figures if 'seconds' in key]:
      del figures[key]
  return tables, summary, sorted((workdir / 'metrics.jsonl').read_text().splitlines())


def assert_same_numbers(workdir, other):
  (tables, summary, curves), (others, *rest) = numbers(workdir), numbers(other)
  assert tables.keys() == others.keys()
  for table, frame in tables.items():
    pd.testing.assert_frame_equal(frame, others[table], check_exact=True)
  assert [summary, curves] == rest


def test_what_a_run_leaves(name, finished):
  result, workdir = finished
  tables = {f'{table}.csv' for table in TABLES[name]}
  assert {path.name for path in workdir.iterdir()} >= FILES | tables
  assert result.tables.keys() == TABLES[name]
  for table in TABLES[name]:
    assert getattr(result, table) is result.tables[table]
  assert result.table is result.structures
  if name != 'compress':  # its structures are those of each seed
    first = ['structure', 'loss', 'accuracy', 'loss_ci95', 'flops', 'params', 'rank']
    columns = [column for column in result.table if column != 'perplexity']  # of text
    assert columns[: len(first)] == first
    assert result.table['rank'].is_monotonic_increasing
    assert result.table['loss'].is_monotonic_increasing
  with pytest.raises(AttributeError, match="'nothing' of a result: expected one of"):
    _ = result.nothing
  assert (result.summary['experiment'], result.summary['finished']) == (name, True)
  assert result.summary['num_seeds'] == studies.config(name).num_seeds
  page = (workdir / 'report.html').read_text()
  assert page.index('<img') < page.index('<table')
  assert '<script src' not in page
  assert ('<div class="explorer">' in page) == (name in EXPLORED)
  if name in EXPLORED and name not in ('sweep', 'prune'):  # what was asked is answered first
    assert page.index('<img') < page.index('<div class="explorer">')


def test_a_finished_run_says_so_and_changes_nothing(name, finished, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('additive_jax'), 'propagate', True)
  result, workdir = finished
  before = tiny.contents(workdir)
  with caplog.at_level(logging.INFO, 'additive_jax'):
    again = studies.run(name, workdir)
  assert tiny.contents(workdir) == before
  assert caplog.messages[-1] == f'{workdir} is finished: {workdir / "report.html"}'
  assert again.summary == result.summary
  for table in TABLES[name]:
    pd.testing.assert_frame_equal(again.tables[table], result.tables[table], check_exact=True)


@pytest.mark.parametrize('name', tiny.thorough_but(['sweep'], TABLES))
def test_a_killed_run_goes_on_to_the_same_numbers(name, finished, tmp_path):
  """Within a line of the journal; what has newer checkpoints goes on from the one before, and one
  training has none. `test_old_runs` goes on with every study by default."""
  workdir, lines = finished[1], lines_of(finished[1], name)
  kept = len(lines) // 2
  tiny.killed_copy(workdir, tmp_path / 'run', f'{name}.jsonl', kept, b'{"seed": 0, "vari')
  folders = sorted((tmp_path / 'run' / 'checkpoints').iterdir())
  shutil.rmtree(folders[-1])
  for folder in folders[:-1]:
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    for step in steps[1:]:
      shutil.rmtree(folder / str(step))
  studies.run(name, tmp_path / 'run')
  assert lines_of(tmp_path / 'run', name)[:kept] == lines[:kept]
  assert len(lines_of(tmp_path / 'run', name)) == len(lines)
  assert_same_numbers(tmp_path / 'run', workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'devices', 'options'),
  [
    # Trains the structures of a step in turn.
    pytest.param('sweep', 1, {'sweep.modes': ('shared',)}, marks=pytest.mark.thorough),
    pytest.param('cotrain', 1, {}, marks=pytest.mark.thorough),
    ('cotrain', 4, {}),  # splits each structure's batch as well
    pytest.param(
      'stochastic', 4, {'stochastic.modes': ('conditional',)}, marks=pytest.mark.thorough
    ),
    pytest.param('booster', 2, {'booster.variants': ('clusters',)}, marks=pytest.mark.thorough),
  ],
)
def test_number_of_devices(name, devices, options, tmp_path, tmp_path_factory):
  few = studies.run(name, tmp_path / 'run', options, devices).table
  want = studies.finished(name, tmp_path_factory)[0].table
  key = ['structure', 'variant'] if 'variant' in few else ['structure']
  column = 'shared_loss' if 'shared_loss' in few else 'loss'
  few, want = (frame.set_index(key)[column] for frame in (few, want))
  # The same gradients, added up in another order, over 15 to 23 float32 steps.
  np.testing.assert_allclose(few, want[few.index], rtol=2e-5)


# The journals of version 0.1 that had what `<study>.jsonl` has now: of one arm, and of the others.
BEFORE = {
  'sweep': ('shared', 'shared-0-of-1.jsonl', 'standalone-0-of-1.jsonl'),
  'cotrain': ('pool', 'cotrain.jsonl', 'alone-0-of-1.jsonl'),
  'experts': ('pool', 'pool.jsonl', 'experts.jsonl'),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', tiny.thorough_but(['cotrain'], BEFORE))
def test_journals_of_the_version_before(name, finished, tmp_path, monkeypatch):
  """Everything is there, so that nothing is trained; then the last line is missing."""
  workdir, (arm, first, second) = tmp_path / 'run', BEFORE[name]
  tiny.killed_copy(finished[1], workdir, f'{name}.jsonl', 0)
  (workdir / 'journals' / f'{name}.jsonl').unlink()
  for line in map(json.loads, lines_of(finished[1], name)):
    journal = second if line['variant'] != arm else first
    if journal != 'experts.jsonl':
      del line['variant']
    del line['crc']
    Journal(workdir / 'journals' / journal).append(line)
  copy = tmp_path / 'copy'
  shutil.copytree(workdir, copy)
  with monkeypatch.context() as patched:
    for kind, method in ((Trainer, 'run'), (Population, 'train')):
      patched.setattr(kind, method, lambda *_, **__: pytest.fail('trained again'))
    studies.run(name, workdir)
  assert_same_numbers(workdir, finished[1])
  last = copy / 'journals' / second
  last.write_bytes(b''.join(last.read_bytes().splitlines(keepends=True)[:-1]))
  studies.run(name, copy)
  assert_same_numbers(copy, finished[1])
