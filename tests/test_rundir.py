"""A run's directory belongs to one config, and every file in it is whole."""

import contextlib
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import additive_jax
from additive_jax.errors import UserError
from additive_jax.files.journal import Journal
from additive_jax.files.metrics import Metrics
from additive_jax.files.rundir import RunDir, config_hash, default_workdir, differences

CONFIG = {
  'model': {'num_blocks': 4, 'width': 64},
  'lr': 1e-3,
  'structures': ('1011', '0110'),
  'shard': '0/1',
}


ROUNDS = 20


def changed(**changes):
  return CONFIG | changes


def one_line(raised):
  assert '\n' not in str(raised.value)
  return str(raised.value)


def test_hash_depends_on_content_alone():
  value = config_hash(CONFIG)
  assert re.fullmatch('[0-9a-f]{8}', value)
  # Written down once: directories of earlier versions must be found again.
  assert value == 'dbe42640'
  reordered = dict(reversed(CONFIG.items())) | {'structures': ['1011', '0110']}
  assert config_hash(reordered) == value
  assert config_hash(changed(shard='1/2')) == value
  assert config_hash(changed(lr=np.float64(1e-3))) == value
  others = [changed(lr=2e-3), changed(model={'num_blocks': 4}), changed(extra=None), {}]
  assert len({value, *map(config_hash, others)}) == 5
  assert config_hash(changed(lr=1), exclude=['lr']) == config_hash(CONFIG | {'lr': 2}, ['lr'])
  deep = changed(model={'num_blocks': 4, 'width': 65})
  assert config_hash(deep, ['model.width']) == config_hash(CONFIG, ['model.width'])
  assert config_hash(deep, ['model.wid']) != config_hash(CONFIG, ['model.wid'])


def test_default_workdir():
  assert default_workdir('exp1', CONFIG) == Path('runs') / f'exp1-{config_hash(CONFIG)}'


def test_differences_name_dotted_keys():
  assert differences(CONFIG, dict(CONFIG)) == []
  other = changed(lr=math.nan, model={'num_blocks': 8, 'depth': {}})
  assert differences(CONFIG, other, limit=9) == [
    'model.num_blocks: 4 there, 8 here',
    'model.width: 64 there, absent here',
    'lr: 0.001 there, NaN here',
    'model.depth: absent there, {} here',
  ]
  assert len(differences(CONFIG, other)) == 3
  assert differences(other, dict(other)) == []


def test_first_use_and_coming_back(tmp_path):
  run = RunDir.open(tmp_path / 'runs' / 'a', CONFIG)
  assert run.checkpoints.is_dir()
  assert run.journals.is_dir()
  assert run.read_json('config.json') == json.loads(json.dumps(CONFIG))
  before = (run.path / 'config.json').stat().st_mtime_ns
  again = RunDir.open(run.path, changed(shard='1/2'))
  assert again.path == run.path
  assert (run.path / 'config.json').stat().st_mtime_ns == before


def test_another_config_is_refused(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  files = sorted(p.name for p in run.path.iterdir())
  with pytest.raises(UserError) as raised:
    RunDir.open(run.path, changed(lr=0.1, model={'num_blocks': 8, 'width': 64}))
  assert one_line(raised) == (
    f'{run.path} holds a run of another config: model.num_blocks: 4 there, 8 here;'
    ' lr: 0.001 there, 0.1 here; choose another --workdir'
  )
  assert sorted(p.name for p in run.path.iterdir()) == files
  RunDir.open(run.path, changed(lr=0.1), exclude=('lr',))
  with pytest.raises(UserError, match='shard: "0/1" there, "1/2" here'):
    RunDir.open(run.path, changed(shard='1/2'), exclude=())


def test_a_directory_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('')
  with pytest.raises(UserError, match=r'holds no run \(no config.json, but thesis.tex\)') as raised:
    RunDir.open(tmp_path, CONFIG)
  assert str(tmp_path) in one_line(raised)
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_what_a_kill_during_the_first_use_left_is_no_obstacle(tmp_path):
  (tmp_path / '.config.json.123.tmp').write_text('{"mod')
  assert RunDir.open(tmp_path, CONFIG).read_json('config.json')['lr'] == 1e-3


def test_a_file_in_the_way(tmp_path):
  (tmp_path / 'file').write_text('')
  for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(UserError, match=r'cannot use .*; expected a directory') as raised:
      RunDir.open(path, CONFIG)
    assert str(path) in one_line(raised)


@contextlib.contextmanager
def without_permission(path):
  """Nobody may write in `path`, not even root."""
  path.chmod(0o555)
  try:
    if os.geteuid() == 0:
      for parent in [path, *path.parents][:5]:
        parent.chmod(parent.stat().st_mode | 0o055)
      os.seteuid(65534)
      try:
        yield
      finally:
        os.seteuid(0)
    else:
      yield
  finally:
    path.chmod(0o755)


def test_no_write_permission(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  with without_permission(tmp_path):
    with pytest.raises(UserError, match=r'cannot use .*/new/run \(Permission denied\)') as raised:
      RunDir.open(tmp_path / 'new' / 'run', CONFIG)
    one_line(raised)
  assert os.listdir(tmp_path) == ['a']
  with without_permission(run.path):
    with pytest.raises(UserError, match=r'\(Permission denied\)'):
      RunDir.open(run.path, CONFIG)
    with pytest.raises(UserError, match=r'cannot write .*report.html \(Permission denied\)'):
      run.write_text('report.html', '')
  run.mark_finished({})
  with without_permission(run.path):
    assert RunDir.open(run.path, CONFIG).finished


def open_at_once(folder, index, barrier, results):
  """Opens one directory after the other, each at the same moment as the sister process."""
  for turn in range(ROUNDS):
    # In even rounds two shards of one config, in odd ones two configs.
    config = changed(shard=f'{index}/2', lr=float(index) if turn % 2 else 1e-3)
    barrier.wait()
    try:
      RunDir.open(folder / str(turn), config)
      results.put((turn, None))
    except UserError as error:
      results.put((turn, str(error)))


@pytest.mark.slow
def test_processes_that_come_at_the_same_moment_agree_on_one_config(tmp_path):
  context = multiprocessing.get_context('spawn')
  barrier, results = context.Barrier(2), context.Queue()
  processes = [
    context.Process(target=open_at_once, args=(tmp_path, index, barrier, results))
    for index in range(2)
  ]
  for process in processes:
    process.start()
  answers = [results.get(timeout=60) for _ in range(2 * ROUNDS)]
  for process in processes:
    process.join()
  for turn in range(ROUNDS):
    errors = [error for t, error in answers if t == turn and error]
    assert len(errors) == turn % 2
    assert all('holds a run of another config: lr: ' in error for error in errors)


def test_environment_names_versions_and_devices_but_no_folders(tmp_path, monkeypatch):
  flags = '--xla_dump_to=/home/someone/dump --xla_cpu_enable_fast_math=false'
  monkeypatch.setenv('XLA_FLAGS', flags)
  environment = RunDir.open(tmp_path / 'a', CONFIG).read_json('environment.json')
  assert environment['versions']['jax'] == jax.__version__
  assert environment['versions']['additive_jax'] == additive_jax.__version__
  assert environment['device_count'] == len(jax.devices())
  assert environment['process_count'] == 1
  assert environment['XLA_FLAGS'] == '--xla_dump_to=<path> --xla_cpu_enable_fast_math=false'
  assert str(Path.home()) not in json.dumps(environment)
  assert os.uname().nodename not in environment['platform']


def test_tables_come_back_exactly(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  rng = np.random.default_rng(0)
  n = 500
  frame = pd.DataFrame(
    {
      'structure': [f'{i:04b}' for i in rng.integers(16, size=n)],
      'loss': rng.normal(size=n) * 10.0 ** rng.integers(-300, 300, size=n),
      'accuracy': rng.random(n).astype(np.float32),
      'flops': rng.integers(2**60, size=n),
      'gap': np.where(np.arange(n) % 3, rng.random(n), np.nan),
      'far': np.where(np.arange(n) % 2, np.inf, -np.inf),
      'on': rng.random(n) < 0.5,
    }
  )
  run.write_table('structures.csv', frame)
  first = (run.path / 'structures.csv').read_bytes()
  assert first.startswith(b'structure,loss,accuracy,flops,gap,far,on\n')
  back = run.read_table('structures.csv')
  # A float32 becomes the float64 of the same value.
  expected = frame.astype({'accuracy': np.float64, 'structure': back['structure'].dtype})
  pd.testing.assert_frame_equal(back, expected, check_exact=True)
  run.write_table('structures.csv', back)
  assert (run.path / 'structures.csv').read_bytes() == first
  assert frame['accuracy'].dtype == np.float32


def test_json_and_the_end_of_a_run(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  assert not run.finished
  run.mark_finished({'loss': jnp.float32(0.5), 'top': ['1011']})
  assert run.read_json('summary.json') == {'loss': 0.5, 'top': ['1011'], 'finished': True}
  assert RunDir.open(run.path, CONFIG).finished
  with pytest.raises(UserError, match=r'cannot read .*absent.json \(No such file'):
    run.read_json('absent.json')
  (run.path / 'config.json').write_text('{"lr": ')
  with pytest.raises(UserError, match=r'config.json is damaged \(no JSON') as raised:
    RunDir.open(run.path, CONFIG)
  one_line(raised)


def test_the_other_processes_write_nothing(tmp_path):
  other = RunDir.open(tmp_path / 'a', CONFIG, primary=False)
  assert not other.path.exists()
  run = RunDir.open(tmp_path / 'a', CONFIG)
  files = sorted(p.name for p in run.path.iterdir())
  other = RunDir.open(tmp_path / 'a', CONFIG, primary=False)
  other.write_text('a.txt', '')
  other.write_json('a.json', {})
  other.write_table('a.csv', pd.DataFrame())
  other.mark_finished({})
  assert sorted(p.name for p in run.path.iterdir()) == files
  with pytest.raises(UserError, match='another config'):
    RunDir.open(tmp_path / 'a', changed(lr=1.0), primary=False)


REWRITER = """
import sys
from additive_jax.files.journal import Journal
from additive_jax.files.metrics import Metrics
from additive_jax.files.rundir import RunDir
run = RunDir.open(sys.argv[1], {})
print('ready', flush=True)
while True:
  for letter in 'ab':
    run.write_text('big.txt', letter * 3_000_000)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
  path = tmp_path / 'a'
  process = subprocess.Popen(
    [sys.executable, '-c', REWRITER, str(path)], stdout=subprocess.PIPE, text=True
  )
  process.stdout.readline()
  while not (path / 'big.txt').exists():
    pass
  seen = {(path / 'big.txt').read_text() for _ in range(20)}
  process.send_signal(signal.SIGKILL)
  process.communicate()
  seen.add((path / 'big.txt').read_text())
  assert seen <= {letter * 3_000_000 for letter in 'ab'}
  RunDir.open(path, {})


def test_a_directory_is_held_before_anything_is_written(tmp_path):
  seen = []

  def hold(path):
    seen.append(sorted(p.name for p in path.iterdir()))
    raise UserError('in use')

  for _ in range(2):
    with pytest.raises(UserError, match='in use'):
      RunDir.open(tmp_path / 'a', CONFIG, hold=hold)
  with pytest.raises(UserError, match='another config'):
    RunDir.open(tmp_path / 'a', changed(lr=1.0), hold=hold)
  RunDir.open(tmp_path / 'a', CONFIG, primary=False, hold=hold)
  assert seen == [['config.json']] * 2
  RunDir.open(tmp_path / 'a', CONFIG).mark_finished({})
  assert RunDir.open(tmp_path / 'a', CONFIG, hold=hold).finished


def finished_run(path):
  run = RunDir.open(path, CONFIG)
  run.write_table('structures.csv', pd.DataFrame({'structure': ['01'], 'loss': [0.25]}))
  run.write_text('report.html', '<html></html>')
  run.mark_finished({'loss': 0.25}, ['structures.csv', 'report.html'])
  return run


def test_what_a_finished_run_wrote_is_compared_when_it_is_read(tmp_path):
  run = finished_run(tmp_path / 'a')
  pd.DataFrame({'mine': [1]}).to_csv(run.path / 'notes.csv')
  summary, tables = run.read_finished()
  assert summary == {'loss': 0.25, 'finished': True}
  assert tables.keys() == {'structures'}
  assert tables['structures']['loss'].tolist() == [0.25]


@pytest.mark.parametrize('name', ['structures.csv', 'report.html', 'summary.json'])
def test_a_changed_or_missing_file_of_a_finished_run_is_named(name, tmp_path, caplog):
  run = finished_run(tmp_path / 'a')
  content = (run.path / name).read_bytes()
  for damage in (content.replace(b'5', b'6').replace(b'html', b'htmk'), content[:-5], b'', None):
    (run.path / name).unlink(missing_ok=True)
    if damage is not None:
      (run.path / name).write_bytes(damage)
    elif name == 'summary.json':
      continue
    with pytest.raises(UserError, match=rf'{name} is (damaged|missing)') as raised:
      run.read_finished()
    one_line(raised)
    assert not run.finished
    caplog.clear()
    assert not RunDir.open(run.path, CONFIG).finished
    assert f'{name} is ' in caplog.text
    assert 'it is made again' in caplog.text


def test_a_run_without_digests_is_read(tmp_path):
  run = finished_run(tmp_path / 'a')
  (run.path / 'summary.json').write_text('{"loss": 0.25, "finished": true}')
  assert run.finished
  assert run.read_finished()[1].keys() == {'structures'}


@pytest.mark.parametrize('content', [b'', b'\xff\xfe', b'a,b\n1,2,3\n4,5,6,7,8\n', b'"a\n1'])
def test_what_is_no_table_is_named(content, tmp_path):
  (tmp_path / 'structures.csv').write_bytes(content)
  with pytest.raises(UserError, match=r'structures\.csv is no table') as raised:
    RunDir(tmp_path).read_table('structures.csv')
  one_line(raised)


def test_a_changed_config_is_named(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  content = (run.path / 'config.json').read_bytes()
  (run.path / 'config.json').write_bytes(content.replace(b'64', b'65'))
  with pytest.raises(UserError, match=r'config\.json is damaged \(not what was written'):
    RunDir.open(run.path, CONFIG)


def test_a_directory_that_is_removed_while_it_is_used_does_not_come_back(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  with Metrics(run) as metrics:
    metrics.write(1, {'loss': 0.5})
    shutil.rmtree(run.path)
    for write in (
      lambda: run.write_text('report.html', ''),
      lambda: run.mark_finished({}),
      lambda: metrics.write(2, {'loss': 0.5}),
      lambda: Journal(run.journals / 'sweep.jsonl').append({}),
    ):
      with pytest.raises(UserError, match=r'cannot write .*(removed|No such file)') as raised:
        write()
      one_line(raised)
      assert not run.path.exists()


def test_a_path_that_is_too_long(tmp_path):
  with pytest.raises(UserError, match='File name too long') as raised:
    RunDir(tmp_path / ('a' * 300)).damage()
  one_line(raised)


def test_what_a_killed_run_left_goes_at_the_next_start(tmp_path):
  run = RunDir.open(tmp_path / 'a', CONFIG)
  alone = run.checkpoints / 'alone-seed0'
  alone.mkdir()
  left = [folder / '.a.999999999.tmp' for folder in (run.path, run.journals, alone)]
  for path in left:
    path.write_text('')
    os.utime(path, (0, 0))
  RunDir.open(tmp_path / 'a', CONFIG)
  assert not any(path.exists() for path in left)
