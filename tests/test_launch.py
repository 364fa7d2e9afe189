"""The launcher: what it refuses and how, signals, kills, directories, devices."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny

from additive_jax import __main__, launch
from additive_jax.cli import arguments
from additive_jax.cli.configs import config_file, config_names, load_config
from additive_jax.errors import UserError
from additive_jax.experiments.options import read_options, value_of
from additive_jax.parallel import mesh

LINE = re.compile(r'\d\d:\d\d:\d\d .*')
# Long enough to be killed at any stage.
LONG = {
  'num_seeds': 1,
  'train.epochs': 20.0,
  'sweep.shared_epochs': 20.0,
  'train.checkpoint_every': 20,
}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Where the launcher's processes keep their compiled programs."""
  return tmp_path_factory.mktemp('programs')


def launched(args):
  """Exit code and standard error of the launcher in this process; standard output stays empty."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = launch.main(['launch', *args])
  assert out.getvalue() == ''
  return code, err.getvalue()


def refused(args):
  """What the launcher writes to standard error when it refuses `args`."""
  code, err = launched(args)
  assert code == 2, err
  return err


@pytest.mark.parametrize(
  ('experiment', 'options', 'message'),
  [
    ('cotrain', {'cotrain.top_k': 9}, 'config.cotrain.top_k 9: expected at most 2^3 = 8'),
    (
      'sweep',
      {'learnin_rate': 1},
      "unknown option 'config.learnin_rate': expected one that the config has; "
      "did you mean 'learning_rate'?",
    ),
    ('sweep', {'train.epocs': 1}, "option 'config.train.epocs': expected one that the config has"),
    (
      'sweep',
      {'num_seeds': 'two'},
      '--config.num_seeds=two: expected an integer\n',
    ),
    (
      'sweep',
      {'train.epochs': 'x'},
      '--config.train.epochs=x: expected a number\n',
    ),
    ('sweep', {'data.name': 'tabular:irs'}, 'tabular:irs: unknown table; expected one of iris'),
    ('sweep', {'experiment': 'swep'}, "config.experiment 'swep': expected one of sweep, cotrain"),
    ('sweep', {'shard': '3/3'}, "config.shard '3/3': expected I/N with 0 <= I < N"),
  ],
)
def test_bad_input(tmp_path, experiment, options, message):
  error = refused(tiny.arguments(experiment, tmp_path / 'run', options, devices=0))
  assert message in error
  assert error.startswith('error: ')
  assert error.count('\n') == 1
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], 'no config: expected one, say --config=exp2; additive-jax --help lists them\n'),
    (['--config=nowhere.py'], '--config=nowhere.py: expected a Python file that is there'),
    (['exp1', 'exp2'], 'exp1, exp2: expected one, say --config=exp2\n'),
    (['nowhere.py'], '--config=nowhere.py: expected a Python file that is there'),
    ([f'--config={"a" * 999}'], "aaa...' (File name too long): expected a path that can be used\n"),
    (['exp2', '--config.structures=12'], "config.structures ('12',): expected structures as text"),
    (['exp2', f'--workdir={"a" * 999}'], "aaa...' (File name too long): expected a path that can"),
    (['exp2', '--workdir=~nobody_here/a'], "workdir '~nobody_here/a': expected a user that is her"),
    (['--config=a.py', '--config=b.py'], 'a.py, b.py: expected one, say --config=exp2\n'),
    (
      [f'--config={tiny.EXPERIMENTS["sweep"]}', '--wrkdir=a'],
      "flag 'wrkdir'. Did you mean: workdir ?: expected",
    ),
    ([f'--config={tiny.EXPERIMENTS["sweep"]}', '--foo'], 'or --config.KEY=VALUE\n'),
    ([f'--config={tiny.EXPERIMENTS["sweep"]}', 'exp2'], "argument 'exp2': expected --name=value"),
    (
      [f'--config={tiny.EXPERIMENTS["sweep"]}', '--devices=two'],
      '--devices=two: expected an integer from 0 to 65,536\n',
    ),
    (
      [f'--config={tiny.EXPERIMENTS["sweep"]}', '--devices=-1'],
      '--devices=-1: expected an integer from 0 to 65,536\n',
    ),
    (
      [f'--config={tiny.EXPERIMENTS["sweep"]}', '--config.train=5'],
      '--config.train=5: expected one option at a time, --config.train.KEY=VALUE\n',
    ),
    (
      [f'--config={tiny.EXPERIMENTS["sweep"]}', '--config.train.shared_batch=7'],
      '--config.train.shared_batch=7: expected true or false\n',
    ),
    (
      [f'--config={tiny.EXPERIMENTS["sweep"]}', '--config.model.hidden=(8,'],
      '--config.model.hidden=(8,: expected sizes of 1 to 1,000,000\n',
    ),
    (
      [f'--config={tiny.EXPERIMENTS["sweep"]}', '--config.optimizer.kwargs=foo'],
      '--config.optimizer.kwargs=foo: expected names with values, such as name:1,other:2, or '
      '--config.optimizer.kwargs.NAME=VALUE\n',
    ),
    (
      [f'--config={tiny.EXPERIMENTS["sweep"]}', '--config.optimizer.kwargs.foo=1'],
      "error: config.optimizer.kwargs: 'foo' is no argument of optax.adamw: expected some of lea",
    ),
    (
      ['--config=exp2lm'],
      f'--config=exp2lm: expected a Python file that is there, or one of '
      f'{", ".join(config_names())}; did you mean --config=exp2_lm?\n',
    ),
    (['--config=configs/exp0.py'], '; did you mean --config=exp5?\n'),
  ],
)
def test_bad_arguments(args, message):
  error = refused(args)
  assert message in error
  assert error.startswith('error: ')
  assert error.count('\n') == 1


def write_config(path, line, function='get_config()', imported='additive_jax.configs'):
  """Writes a config of one's own that changes the defaults by one line."""
  path.parent.mkdir(parents=True, exist_ok=True)
  text = f'from {imported} import default\ndef {function}:\n  config = default.get_config()\n'
  path.write_text(f'{text}  {line}\n  return config\n')
  return path


def test_configs_by_name_and_by_file(tmp_path, monkeypatch):
  """The same config, wherever the command is given; a file may be told what to give."""
  by_file = load_config(str(tiny.ROOT / 'configs' / 'exp2.py'))
  path = write_config(tmp_path / 'mine.py', 'config.seed = int(seed)', 'get_config(seed)')
  monkeypatch.chdir(tmp_path)
  write_config(tmp_path / 'exp2.py', 'config.seed = 5')
  for name in ('exp2', 'exp2.py', f'{path}:7'):
    _, config, title = arguments.parse(['launch', '--config.num_seeds=9', f'--config={name}'])
    assert config.num_seeds == 9
    assert title == name.partition(':')[0].removesuffix('.py').rpartition('/')[2]
    assert config.seed == {'exp2': 0, 'exp2.py': 5}.get(name, 7)
    if name == 'exp2':
      config.num_seeds = by_file.num_seeds
      assert config == by_file


def test_a_config_imports_its_neighbour(tmp_path):
  """A folder `configs` of one's own comes before any other of that name."""
  write_config(tmp_path / 'configs' / 'default.py', 'config.seed = 3')
  path = write_config(tmp_path / 'configs' / 'mine.py', 'config.num_seeds = 4', imported='configs')
  config = load_config(str(path))
  assert (config.seed, config.num_seeds) == (3, 4)


@pytest.mark.parametrize(
  ('words', 'name', 'value'),
  [
    (['--config.structures=101010'], 'structures', ('101010',)),
    (['--config.structures=11,10'], 'structures', ('11', '10')),
    (['--config.structures', "['11', '10']"], 'structures', ('11', '10')),
    (['--config.experts.structures=11,10'], 'experts.structures', ('11', '10')),
    (['--config.model.hidden=8'], 'model.hidden', (8,)),
    (['--config.model.hidden=(8, 16)', '--config.model.hidden=4'], 'model.hidden', (4,)),
    (['--config.compress.sparsities=.5,'], 'compress.sparsities', (0.5,)),
    (['--config.structures=()'], 'structures', ()),
    (['--config.train.frozen=embed,block_0{1,2}'], 'train.frozen', ('embed', 'block_0{1,2}')),
    (['--config.train.frozen=(a|b),[(]'], 'train.frozen', ('(a|b)', '[(]')),
    (['--config.train.frozen="a,b",it\'s'], 'train.frozen', ('a,b', "it's")),
    (['--config.model.gates', 'residual,lane'], 'model.gates', ('residual', 'lane')),
    (['--config.optimizer.kwargs.b1=0.8'], 'optimizer.kwargs', {'weight_decay': 1e-4, 'b1': 0.8}),
    (['--config.optimizer.kwargs=b1:0.8,'], 'optimizer.kwargs', {'b1': 0.8}),
    (["--config.optimizer.kwargs={'b1': 0.8}"], 'optimizer.kwargs', {'b1': 0.8}),
    (
      ['--config.model.kwargs=act:gelu,sizes:(8, 8)', '--config.model.kwargs.deep', 'true'],
      'model.kwargs',
      {'act': 'gelu', 'sizes': (8, 8), 'deep': True},
    ),
    (
      ['--config.train.learning_rates=embed:0.1,block_[0,1].*/kernel:2'],
      'train.learning_rates',
      {'embed': 0.1, 'block_[0,1].*/kernel': 2},
    ),
    (['--config.data.target=price,it\'s = "x"'], 'data.target', 'price,it\'s = "x"'),
    (['--config.data.name=text:a (1)/b.txt'], 'data.name', 'text:a (1)/b.txt'),
  ],
)
def test_options_of_several_values(words, name, value):
  _, config, title = arguments.parse(['launch', 'exp1', *words])
  assert value_of(read_options(config), name) == value
  assert title == 'exp1'


@pytest.mark.parametrize(
  ('changes', 'kwargs'),
  [
    ({'optimizer.name': 'adam'}, {}),
    ({'optimizer.name': 'sgd', 'optimizer.kwargs': {'momentum': 0.9}}, {'momentum': 0.9}),
    ({'optimizer.name': 'adamw'}, {'weight_decay': 1e-4}),
    ({'optimizer.name': 'adam', 'optimizer.kwargs': {'weight_decay': 0.1}}, {'weight_decay': 0.1}),
  ],
)
def test_defaults_of_another_optimizer_refuse_nothing(changes, kwargs):
  assert read_options(tiny.config('sweep', changes)).optimizer.kwargs == kwargs


def test_misspelt_option_in_a_config_file(tmp_path):
  path = write_config(tmp_path / 'mine.py', 'config.num_seds = 5')
  assert refused([f'--config={path}']) == (
    f"error: {path}, line 4: unknown option 'num_seds': expected one that the config has; "
    "did you mean 'num_seeds'?\n"
  )


def test_mistakes_in_a_config_file(tmp_path):
  path = write_config(tmp_path / 'mine.py', 'config.seed = 1 / 0')
  assert refused([f'--config={path}']) == f'error: {path}, line 4: division by zero\n'
  path.write_text('')
  assert refused([f'--config={path}']) == (
    f"error: {path}: module 'config_mine' has no attribute 'get_config'\n"
  )
  path.write_text('import sys\n\ndef get_config(:\n')
  assert refused([f'--config={path}']) == f'error: {path}, line 3: invalid syntax\n'
  path.write_text('raise SystemExit(3)\n')
  assert refused([f'--config={path}']) == (
    f'error: {path}, line 1: exit(3): expected get_config() to return the options\n'
  )
  path.write_text('def get_config():\n  return {}\n')
  assert refused([f'--config={path}']) == (
    f'error: {path}: get_config() gives dict: expected a ConfigDict of the options\n'
  )
  path.write_text('import ml_collections as m\ndef get_config():\n  return m.ConfigDict()\n')
  assert refused([f'--config={path}']) == (
    'error: no config.experiment: expected every option of configs/default.py\n'
  )


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ("config.num_seeds = 'two'", "option 'num_seeds' two: expected an integer"),
    ('config.train.zero = 1', "option 'zero' 1: expected true or false"),
    ('config.model.hidden = 8', "option 'hidden' 8: expected a list of values, such as (1, 2)"),
  ],
)
def test_wrong_types_in_a_config_file(tmp_path, line, message):
  path = write_config(tmp_path / 'mine.py', line)
  assert refused([f'--config={path}']) == f'error: {path}, line 4: {message}\n'


def test_command_of_a_run():
  """As typed; the processes of a run are no part of it."""
  joined = ['--coordinator', 'a:1', '--num_processes=2', '--process_id', '1']
  argv = ['launch.py', '--config=a.py', *joined, '--config.model.hidden=(8, 8)', '--workdir', 'b']
  command = "python -m additive_jax.launch --config=a.py '--config.model.hidden=(8, 8)' --workdir b"
  assert arguments.command_of(argv) == command


def test_data_that_is_not_what_it_claims(tmp_path):
  (tmp_path / 'data').mkdir()
  for name in ('train-images-idx3-ubyte', 'train-labels-idx1-ubyte'):
    (tmp_path / 'data' / name).write_bytes(b'no images at all')
  options = {'data.name': f'idx:{tmp_path / "data"}'}
  error = refused(tiny.arguments('sweep', tmp_path / 'run', options, devices=0))
  assert error.startswith(f'error: idx:{tmp_path / "data"}') or 'train-images' in error
  assert error.count('\n') == 1


def test_tfds_set_that_is_not_prepared(tmp_path):
  options = {'data.name': 'tfds:mnist', 'data.data_dir': str(tmp_path / 'sets')}
  start = time.monotonic()
  error = refused(tiny.arguments('sweep', tmp_path / 'run', options, devices=0))
  assert time.monotonic() - start < 5  # a second on an idle machine; a try at the network takes 200
  assert error.startswith(f"error: tfds:mnist is not prepared in '{tmp_path / 'sets'}'")
  assert "run: python -c 'from additive_jax import data; data.load(" in error
  assert error.count('\n') == 1
  assert not (tmp_path / 'run').exists()


def test_directories_that_cannot_be_used(tmp_path):
  (tmp_path / 'file').touch()
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'thesis.tex').touch()
  for path, message in {
    tmp_path / 'file' / 'run': '(Not a directory); expected a directory that may be written',
    '/proc/run': 'cannot use /proc/run (No such file or directory)',
    tmp_path / 'full': 'is not empty and holds no run (no config.json, but thesis.tex)',
  }.items():
    error = refused(tiny.arguments('sweep', path, devices=0))
    assert message in error
    assert error.startswith('error: ')
    assert error.count('\n') == 1
  assert [path.name for path in (tmp_path / 'full').iterdir()] == ['thesis.tex']


def test_more_devices_than_there_are():
  with pytest.raises(UserError, match='devices 9: expected at most 8, the cpu devices here'):
    mesh.pick_devices(9)


def test_help(capsys):
  assert launch.main(['launch', '--help']) == 0
  out = capsys.readouterr().out
  assert '--workdir=DIR' in out
  assert str(config_file('default')) in out
  assert all(f'  {name} ' in out for name in config_names())


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (
      ['exprt', 'runs/a'],
      "command 'exprt': expected one of launch, configs, plan, runs, watch, compare, export, or --",
    ),
    (['exprt', 'runs/a'], '; did you mean export?\n'),
    (['launch', '--config=nowhere.py'], '--config=nowhere.py: expected a Python file'),
    (['--config=nowhere.py'], '--config=nowhere.py: expected a Python file'),
    (['plan', '--config=exp1', '--workdir=a'], '--workdir=a of a plan: expected none, nothing is'),
    (['plan', '--config=exp1', '--config.train.batch_size=0'], 'config.train.batch_size 0: expec'),
    (['export', 'runs/a'], 'no --structure: expected RUN --structure=BITS --to=DIR\n'),
  ],
)
def test_commands(capsys, words, message):
  assert __main__.main(['additive-jax', *words]) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


def test_process_of_a_mistake(tmp_path, cache):
  args = tiny.arguments('cotrain', tmp_path / 'run', {'cotrain.top_k': 9})
  code, out, err = tiny.finish(args, cache)
  assert (code, out) == (2, '')
  assert err == 'error: config.cotrain.top_k 9: expected at most 2^3 = 8 structures\n'
  assert not (tmp_path / 'run').exists()


def test_default_directory_devices_and_log(tmp_path, cache, monkeypatch):
  """Same options, same directory; other options another; a shard is no other run."""
  options = {'sweep.modes': ('shared',), 'num_seeds': 1}
  args = tiny.arguments('sweep', options=options, devices=3)
  code, out, err = tiny.finish([*args, '--config.shard=0/1'], cache, cwd=tmp_path)
  assert (code, out) == (0, '')
  (workdir,) = (tmp_path / 'runs').iterdir()
  assert re.fullmatch(r'exp1-[0-9a-f]{8}', workdir.name)
  described = json.loads((workdir / 'environment.json').read_text())
  assert described['device_count'] == 3
  lines = err.splitlines()
  assert all(LINE.fullmatch(line) for line in lines)
  report = f'runs/{workdir.name}/report.html'
  assert lines[-1].endswith(f' report: {report}')

  monkeypatch.chdir(tmp_path)
  before = tiny.contents(workdir)
  code, err = launched(args)
  assert code == 0
  assert err[9:] == f'runs/{workdir.name} is finished: {report}\n'
  assert refused([*args, '--config.seed=1', f'--workdir={workdir}']) == (
    f'error: {workdir} holds a run of another config: seed: 0 there, 1 here; '
    'choose another --workdir\n'
  )
  assert tiny.contents(workdir) == before

  (workdir / 'summary.json').unlink()
  (workdir / 'journals' / 'sweep.jsonl').unlink()
  checkpoints = workdir / 'checkpoints' / 'shared-seed0'
  for metadata in checkpoints.glob('*/meta/metadata'):
    metadata.write_bytes(b'')
  *warnings, error = refused(args).splitlines()
  assert error == (
    f'error: every checkpoint in {checkpoints} is damaged (15, 10, 5); '
    'expected at least one sound: remove the directory to start afresh'
  )
  assert all(LINE.fullmatch(line) for line in warnings)


@pytest.mark.slow
def test_the_same_command_twice_at_once(tmp_path, cache):
  """The second ends at once; a killed first one leaves no lock behind."""
  workdir = tmp_path / 'run'
  options = {'sweep.modes': ('shared',), 'num_seeds': 1, 'sweep.shared_epochs': 2000.0}
  args = tiny.arguments('sweep', workdir, options)
  first = tiny.start(args, cache)
  while not (workdir / 'metrics.jsonl').exists():
    assert first.poll() is None
    time.sleep(0.05)
  before = (workdir / 'environment.json').stat().st_mtime_ns
  code, out, err = tiny.finish(args, cache)
  assert (code, out) == (2, '')
  assert err == f'error: {workdir} is in use by process {first.pid}: expected it to end first\n'
  assert (workdir / 'environment.json').stat().st_mtime_ns == before
  first.kill()
  first.communicate()
  (workdir / 'environment.json').unlink()  # written again as soon as the lock is held
  code, err = tiny.interrupt(args, cache, workdir / 'environment.json', 0.5, signal.SIGTERM)
  assert code == 75, err


@pytest.mark.slow
@pytest.mark.parametrize('fast', [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_stopped_and_killed_ends_the_same(fast, tmp_path, cache):
  """SIGTERM in training, SIGKILL at a random moment, against a run that nothing disturbed; with
  programs as a user's and with those that compile fast."""
  start = time.monotonic()
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  code, _, err = tiny.finish(tiny.arguments('cotrain', whole, LONG), cache, fast=fast)
  took = time.monotonic() - start
  assert code == 0, err
  args = tiny.arguments('cotrain', workdir, LONG)
  code, err = tiny.interrupt(
    args, cache, workdir / 'metrics.jsonl', 0.05, signal.SIGTERM, fast=fast
  )
  assert code == 75, err
  assert 'SIGTERM: stopping after this step' in err
  assert re.search(r' stopped: .*saved.*; the same command goes on$', err)
  assert any((workdir / 'checkpoints').glob('*/*/commit_success.txt'))
  assert not (workdir / 'report.html').exists()
  moment = random.uniform(0.2, 0.5) * took
  code, err = tiny.interrupt(args, cache, workdir, moment, fast=fast)
  print(f'killed after {moment:.1f} of {took:.1f} s: {err.splitlines()[-1:]}')
  assert code in (-signal.SIGKILL, 0), err  # 0: it was quicker
  code, _, err = tiny.finish(args, cache, fast=fast)
  assert code == 0, err
  for name in ('structures.csv', 'comparison.csv', 'cosines.csv'):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()
  curves = [sorted((run / 'metrics.jsonl').read_text().splitlines()) for run in (workdir, whole)]
  assert curves[0] == curves[1]


@pytest.mark.slow
def test_shards_script(tmp_path, cache):
  """Two processes and their merge; `test_launchers` has those that fail."""
  options = {'sweep.modes': ('standalone',), 'num_seeds': 1}
  environment = tiny.environment(cache) | {'PYTHON': sys.executable}
  args = tiny.arguments('sweep', tmp_path / 'run', options)
  command = ['bash', str(tiny.ROOT / 'launch' / 'shards.sh'), '2', *args]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert done.stderr.splitlines()[-1].endswith(f'report: {tmp_path / "run" / "report.html"}')
  names = {name for name in os.listdir(tmp_path / 'run' / 'journals') if 'speed' not in name}
  assert sorted(names) == ['sweep-0-of-2.jsonl', 'sweep-1-of-2.jsonl']
