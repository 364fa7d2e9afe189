"""The commands about runs and configs: lists, a run that is followed, several on one page."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import rich.console
import tiny

from additive_jax import __main__
from additive_jax.cli.configs import config_names
from additive_jax.cli.manual import COMMANDS, settings, typed
from additive_jax.commands.compare import BEFORE
from additive_jax.commands.watched import Watched, screen
from additive_jax.errors import Stopped, UserError
from additive_jax.experiments.options import DECLARED, Options, value_of
from additive_jax.files.metrics import Metrics
from additive_jax.files.rundir import RunDir
from additive_jax.files.runs import Lines, noting_failure, read_run
from additive_jax.report.headline import headline

CONFIG = {'experiment': 'sweep', 'num_seeds': 2, 'data': {'name': 'digits', 'valid': -1.0}}
SUMMARY = {'experiment': 'sweep', 'data': 'digits', 'best_structure': '10', 'best_loss': 0.25}
STRUCTURES = {'structure': ['10', '11', '01', '00'], 'loss': [0.25, 0.3, 0.5, 0.9]}


def made_run(path, config=CONFIG, *, finished=True, better=0.0, **tables):
  """Makes a run directory as a run leaves it, without a training."""
  rundir = RunDir.open(path, config)
  with Metrics(rundir) as metrics:
    for step in (10, 20):
      for seed in (0, 1):
        metrics.write(step, {'loss': 9 / step - better}, f'pool-seed{seed}')
  (rundir.journals / 'sweep.arms.jsonl').write_text('{"arm": "pool", "is": {"steps": 20}}\n')
  (rundir.journals / 'sweep.jsonl').write_text('{"seed": 0, "variant": "pool", "loss": 0.5}\n')
  if finished:
    tables = {'structures': pd.DataFrame(STRUCTURES).assign(flops=[2.0, 3.0, 2.5, 1.0])} | tables
    for name, table in tables.items():
      rundir.write_table(f'{name}.csv', table)
    rundir.mark_finished(SUMMARY, [f'{name}.csv' for name in tables])
  return rundir.path


def said(*words):
  """Exit code, standard output and standard error of a command in this process."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = __main__.main(['additive-jax', *map(str, words)])
  return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def at_work(path):
  """Holds a run's directory, as a process does that is at work in it."""
  with open(path / 'run.lock', 'a+') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def test_states_of_runs(tmp_path, monkeypatch):
  monkeypatch.delenv('COLUMNS', raising=False)  # of a pipe, which is as wide as needed
  made_run(tmp_path / 'a' / 'finished')
  made_run(tmp_path / 'a' / 'b' / 'stopped', finished=False)
  failed = made_run(tmp_path / 'failed', finished=False)
  with pytest.raises(UserError, match='no loss'), noting_failure(failed):
    raise UserError('no loss was\nfinite')
  damaged = made_run(tmp_path / 'damaged')
  text = (damaged / 'summary.json').read_text()
  (damaged / 'summary.json').write_text(text.replace('0.25', '0.15'))
  running = made_run(tmp_path / 'running', finished=False)
  (tmp_path / 'thesis').mkdir()
  (tmp_path / 'thesis' / 'config.json').write_text('{}')  # of something else
  with at_work(running):
    code, out, err = said('runs', tmp_path, '--json')
    assert (code, err) == (0, '')
    found = {run['path'].rpartition('/')[2]: run for run in map(json.loads, out.splitlines())}
    assert {name: run['state'] for name, run in found.items()} == {
      name: name for name in ('finished', 'stopped', 'failed', 'damaged', 'running')
    }
    shown = said('runs', tmp_path)[1]
  assert found['finished']['best']['network'] == '10'
  assert found['failed']['note'] == 'UserError: no loss was finite'
  assert 'summary.json is damaged' in found['damaged']['note']
  assert re.search(r'a/finished +sweep +digits +finished +10, loss 0.2500', shown)
  assert said('runs', tmp_path, '--state=running')[1].startswith('no running run in')
  with noting_failure(failed):  # the next start
    assert read_run(failed).state == 'stopped'
  with pytest.raises(Stopped), noting_failure(failed):
    raise Stopped
  assert read_run(failed).state == 'stopped'


def test_runs_on_a_narrow_terminal(tmp_path, monkeypatch):
  """A line for each run, and one of what it came to, which for a damaged one is what is damaged."""
  name = 'a_long_name_' * 3
  made_run(tmp_path / name)
  damaged = made_run(tmp_path / 'damaged')
  (damaged / 'config.json').write_text('{')
  monkeypatch.setenv('COLUMNS', '80')
  code, out, _ = said('runs', tmp_path)
  assert code == 0
  assert max(map(len, out.splitlines())) <= 80
  assert f'{name}  finished  sweep on digits, ' in out
  assert '\n    10, loss 0.2500\n' in out
  assert 'damaged  damaged  sweep on digits, ' in out
  assert '\n    config.json is damaged (no JSON' in out
  monkeypatch.setenv('COLUMNS', '160')
  assert said('runs', tmp_path)[1].startswith('run  ')
  (tmp_path / 'empty').mkdir()
  assert said('runs', tmp_path / 'empty')[1].endswith('additive-jax configs has others\n')


def test_watching_on_a_narrow_terminal(tmp_path):
  """A training takes one line, so that the last ones are on the screen."""
  path = made_run(tmp_path / 'run', finished=False)
  with Metrics(RunDir(path)) as metrics:
    metrics.write(10, {'loss': 0.125}, 'a_training_of_a_long_name' * 4)
  watched = Watched(read_run(path))
  watched.look()
  shown = rich.console.Console(width=60, file=io.StringIO())
  shown.print(screen(watched, 24, 60))
  lines = shown.file.getvalue().splitlines()
  assert len(lines[-3:]) == 3
  assert all('training loss' in line for line in lines[-3:])
  assert max(map(len, lines)) <= 60


@pytest.mark.slow
def test_a_run_that_fails_says_so(tmp_path, monkeypatch):
  from additive_jax.experiments import study
  from additive_jax.experiments.studies import STUDIES

  def fail(*_):
    raise UserError('no loss was finite')

  config = tiny.config('stochastic', {'num_seeds': 1})
  monkeypatch.setattr(study, 'check_stage', fail)
  with pytest.raises(UserError):
    STUDIES['stochastic'].run(config, tmp_path / 'run', progress=False)
  run = read_run(tmp_path / 'run')
  assert (run.state, run.note) == ('failed', 'UserError: no loss was finite')


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['runs', '/nowhere'], '/nowhere: no such directory; expected one with run directories\n'),
    (['runs', '.', '.'], '. .: expected at most one directory\n'),
    (['runs', '--stat=a'], "unknown flag '--stat=a': expected one of --state, --json; did you"),
    (['runs', '--state=done'], '--state=done: expected one of finished, running, stopped, failed'),
    (['runs', '--json=yes'], '--json=yes: expected true or false\n'),
    (['watch'], 'no run directory: expected one run directory\n'),
    (['watch', 'empty'], 'empty: expected a run directory, which has a config.json and journals\n'),
    (['watch', '.'], 'a config.json and journals; it holds one, two\n'),
    (['watch', 'nowhere'], 'nowhere: no such directory; expected that of a run\n'),
    (['watch', 'one', '--every=soon'], '--every=soon: expected a number\n'),
    (['watch', 'one', '--every=-1'], '--every=-1: expected 0.05 to 3,600 seconds\n'),
    (['compare', 'one'], 'one: expected at least 2 run directories\n'),
    (['compare', 'one', 'empty'], 'empty: expected a run directory, which has'),
    (['compare', 'one', './one'], 'one: given twice; expected different runs\n'),
    (['compare', 'one', 'two', '--to=empty'], '--to=empty is a directory; expected the file of'),
    (['compare', 'one', 'two', '--to=no/a.html'], '--to=no/a.html: no such directory no; expected'),
    (['compare', 'one', 'two', '--to=mine.html'], '--to=mine.html is another file; expected a new'),
    (['configs', 'exp22'], 'exp22: expected a Python file that is there, or one of compress, '),
  ],
)
def test_bad_input(tmp_path, monkeypatch, words, message):
  monkeypatch.chdir(tmp_path)
  for name in ('one', 'two'):
    made_run(tmp_path / name, finished=False)
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'mine.html').write_text('mine')
  before = tiny.contents(tmp_path)
  code, out, err = said(*words)
  assert (code, out, err.count('\n')) == (2, '', 1)
  assert err.startswith('error: ')
  assert message in err
  assert tiny.contents(tmp_path) == before


def test_commands_have_help_and_read_files_alone(tmp_path):
  """In a fresh process: what only reads starts without JAX, which takes a second."""
  for name in ('a', 'b'):
    made_run(tmp_path / name)
  lines = [
    ['runs', str(tmp_path)],
    ['watch', str(tmp_path / 'a')],
    ['compare', str(tmp_path / 'a'), str(tmp_path / 'b'), f'--to={tmp_path / "page.html"}'],
    ['configs'],
    ['configs', 'exp2'],
    ['--help'],
    *([name, '--help'] for name in ('runs', 'watch', 'compare', 'configs', 'launch')),
  ]
  program = (
    'import sys\nfrom additive_jax.__main__ import main\n'
    f'for words in {lines}:\n  assert main(["additive-jax", *words]) == 0\n'
    'assert "jax" not in sys.modules, "JAX was imported"'
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  assert (tmp_path / 'page.html').exists()
  assert all(f'additive-jax {name} ' in done.stdout for name in COMMANDS if name != 'launch')


def test_help_lists_commands_configs_and_options():
  code, out, _ = said('--help')
  assert code == 0
  assert all(f'  {name} ' in out for name in config_names())
  for option in DECLARED.values():
    assert f'--config.{option.name}={typed(value_of(Options(), option.name))}\n      ' in out
  assert {one.name for one in settings()} == set(DECLARED)
  some = said('--help', 'booster')[1]
  assert '--config.booster.' in some
  assert '--config.seed' not in some
  assert 'Commands' not in some
  code, out, _ = said('configs')
  assert [line.split()[0] for line in out.splitlines()] == config_names()


@pytest.mark.parametrize(
  ('words', 'there', 'missing'),
  [
    (['exp1'], '  exp1_lenet  Exp 1', '--config.'),
    (['compare'], '  additive-jax compare A B', '--config.'),
    (['learning rate'], '--config.learning_rate=', '--config.data.flip_rate='),
    (['learning', 'rate'], '--config.learning_rate=', '--config.data.flip_rate='),
    (['num_seeds', 'shard'], '--config.shard=', '--config.seed='),
    (['--config.num-seeds=3'], '--config.num_seeds=', '--config.seed='),
    (['perplexity'], '--config.task.metrics=', '--config.seed='),
    (['boostr'], "nothing about boostr; did you mean 'booster'?", '--config.'),
  ],
)
def test_help_about_words(words, there, missing):
  """In names; where no name has them, in what options mean."""
  for begin in (['--help'], ['help'], ['launch', '--help']):
    code, out, err = said(*begin, *words)
    assert (code, err) == (0, '')
    assert there in out
    assert missing not in out


def test_options_of_before_are_known():
  """In the difference of configs: what an option was for runs that do not have it."""
  assert {o.name: o.before.value for o in DECLARED.values() if o.before is not None} == BEFORE


def test_headlines():
  pruned = {'before': {'loss': 0.2}, 'after': {'structure': '0110', 'loss': 0.3, 'r2': 0.5}}
  assert str(headline(pruned)) == '0110, loss 0.3000, R² 0.5000'
  arms = {'variants': {'a_b': {'loss': 0.2, 'accuracy': 0.9}, 'c': {'loss': None}}}
  assert str(headline(arms)) == 'a b, loss 0.2000, accuracy 0.9000'
  assert str(headline({'loss': 0.1, 'alone_loss': 0.2})) == 'mean of the structures, loss 0.1000'
  assert headline({}) is None


def test_lines_of_a_growing_file(tmp_path):
  lines, path = Lines(tmp_path, '*.jsonl'), tmp_path / 'a.jsonl'
  path.write_text('{"step": 1}\n{"step": 2}\n{"st')
  assert [line['step'] for _, line in lines.new()] == [1, 2]
  path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\nno JSON\n')
  assert [line['step'] for _, line in lines.new()] == [3]
  assert list(lines.new()) == []
  path.write_text('{"step": 1}\n')  # went on from before its end
  assert [line['step'] for _, line in lines.new()] == [1]


def test_watch_follows_a_run_to_its_end(tmp_path):
  path = made_run(tmp_path / 'run', finished=False)

  def work():
    with at_work(path), Metrics(RunDir(path)) as metrics:
      begun.set()
      time.sleep(0.3)
      metrics.write(20, {'loss': 0.125}, 'late-seed0')
      RunDir(path).mark_finished(SUMMARY)
      time.sleep(0.2)

  begun, thread = threading.Event(), threading.Thread(target=work)
  thread.start()
  begun.wait()
  code, out, err = said('watch', path, '--every=0.05')
  thread.join()
  assert (code, err) == (0, '')
  assert 'pool-seed1: step 20/20, training loss 0.4500' in out
  assert 'late-seed0: step 20, training loss 0.1250' in out
  assert out.endswith(f'finished: 10, loss 0.2500; {path}\n')
  (path / 'summary.json').unlink()
  code, out, _ = said('watch', path)
  assert (code, out.splitlines()[-1]) == (75, 'stopped; the same command goes on')


@pytest.mark.skipif(sys.platform == 'win32', reason='no pseudo-terminals')
@pytest.mark.parametrize('term', ['xterm', 'dumb'])
def test_watch_on_a_terminal_ends_by_an_interrupt(term, tmp_path):
  """It leaves the terminal as it was, says nothing of the interrupt, and the run goes on."""
  path = made_run(tmp_path / 'run', finished=False)
  ours, theirs = pty.openpty()
  parts, seen = [], threading.Event()

  def read():
    """A terminal that nobody reads stops who writes to it."""
    with contextlib.suppress(OSError):  # what Linux says at its end
      while part := os.read(ours, 4096):
        parts.append(part)
        if b'training loss' in b''.join(parts):
          seen.set()

  command = [sys.executable, '-m', 'additive_jax', 'watch', str(path), '--every=0.1']
  reader = threading.Thread(target=read)
  options = {'stdout': theirs, 'stderr': theirs, 'env': os.environ | {'TERM': term}}
  with at_work(path), subprocess.Popen(command, **options) as process:
    os.close(theirs)
    reader.start()
    try:
      assert seen.wait(120)  # a second on an idle machine
      process.send_signal(signal.SIGINT)
      assert process.wait(120) == 130
    finally:
      process.kill()
  reader.join()
  os.close(ours)
  shown = b''.join(parts)
  assert b'Traceback' not in shown
  # The cursor is shown again, where it was hidden.
  assert shown.rfind(b'\x1b[?25h') >= shown.rfind(b'\x1b[?25l')
  assert (b'\x1b[?25l' in shown) == (term == 'xterm')


def page_of(*words):
  code, out, err = said('compare', *words)
  assert (code, err) == (0, '')
  return Path(out.strip()).read_text()


def test_runs_on_one_page(tmp_path):
  """Of one experiment, and of which one has another option and other tables."""
  effects = pd.DataFrame({'gate': ['x', 'y'], 'effect': [-0.5, 0.25], 'ci95': [0.1, 0.1]})
  one = made_run(tmp_path / 'one', effects=effects)
  script = '<script>alert(1)</script>'
  longer = CONFIG | {
    'learning_rate': 0.5,
    'train': {'zero': True},
    'name': script,
  }
  two = made_run(tmp_path / 'two', longer, better=0.1, effects=effects.assign(effect=[0.5, 0.125]))
  page = page_of(one, two, f'--to={tmp_path / "page.html"}')
  for heading in ('Overview', 'What their options differ in', 'Training', 'Structures', 'Gates'):
    assert f'">{heading}</h2>' in page
  assert 'different' not in page
  rows = [re.sub('<.*?>', ' ', row).split() for row in re.findall('(?s)<tr>(.*?)</tr>', page)]
  assert ['learning_rate', '0.001', '0.5'] in rows  # one has the default
  assert ['x', '−0.5000', '0.1000', '0.5000', '0.1000', '1.000'] in rows
  assert ['10', '0.2500', '0.2500', '0', '2.000', '2.000'] in rows
  assert 'train.zero' not in page  # where it is computed makes no other run
  assert 'Kendall τ 1.000' in page
  assert '<script>' not in page
  assert page.count('src="data:image/') == 3
  assert 'http:' not in page
  assert 'https:' not in page


def test_structures_of_several_networks_stand_in_no_table(tmp_path):
  """Where a structure is there several times, it does not say which network it is of."""
  twice = pd.DataFrame({'structure': ['10', '10'], 'loss': [0.5, 0.6], 'flops': [1.0, 2.0]})
  one = made_run(tmp_path / 'one', structures=twice)
  two, three = made_run(tmp_path / 'two'), made_run(tmp_path / 'three')
  page = page_of(one, two, three, f'--to={tmp_path / "page.html"}')
  assert 'loss, two' in page
  assert 'loss, one' not in page


def test_runs_of_other_experiments_on_one_page(tmp_path):
  """Compares what it can, and says what it cannot."""
  one = made_run(tmp_path / 'a' / 'run')
  config = {'experiment': 'cotrain', 'data': {'name': 'stdlib'}}
  two = made_run(tmp_path / 'b' / 'run', config, finished=False)
  damaged = made_run(tmp_path / 'c' / 'run')
  (damaged / 'structures.csv').write_text('structure,loss\n10,0.1\n')
  page = page_of(one, two, damaged, f'--to={tmp_path / "page.html"}')
  assert 'These runs are of different experiments (sweep, cotrain).' in page
  assert 'They are of different data (digits, stdlib)' in page
  assert 'b/run is stopped: it has curves and options, and no tables yet.' in page
  assert f'c/run: {damaged / "structures.csv"} is damaged, as its digest tells.' in page
  again = page_of(one, two, damaged, f'--to={tmp_path / "page.html"}')
  assert again == page
