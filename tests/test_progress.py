"""A live bar on a terminal, plain lines in a log file, and a polite way to stop."""

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import pytest

from additive_jax.errors import STOPPED, Stopped
from additive_jax.files.progress import LineHandler, Progress, duration, setup_logging
from additive_jax.files.showing import shown
from additive_jax.files.waiting import waiting_for

log = logging.getLogger('additive_jax')


class Terminal:
  """A pseudo-terminal: `finish` closes `stream` and returns what was written to it."""

  def __enter__(self):
    self._master, slave = os.openpty()
    self.stream = open(slave, 'w', encoding='utf-8')
    self._chunks = []
    self._reader = threading.Thread(target=self._read)
    self._reader.start()
    return self

  def _read(self):
    # Linux reports the closed other end as an error.
    with contextlib.suppress(OSError):
      while chunk := os.read(self._master, 65536):
        self._chunks.append(chunk)

  def __exit__(self, *_):
    self.finish()
    os.close(self._master)

  def finish(self):
    self.stream.close()
    self._reader.join()
    # A line that is erased ends there for our purpose; colours and cursor movements are dropped.
    lines = b''.join(self._chunks).decode().replace('\r\x1b[2K', '\n').replace('\r\n', '\n')
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', lines)


@pytest.fixture
def terminal(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm-256color')
  monkeypatch.setenv('COLUMNS', '120')
  monkeypatch.setenv('LINES', '40')
  with Terminal() as made:
    yield made


def test_lines_in_a_log_file():
  stream = io.StringIO()
  setup_logging(stream=stream)
  with Progress(1500, 'cotrain', stream=stream, start=100, interval=0.05) as progress:
    progress.advance(10, loss=1.0)
    time.sleep(0.1)
    progress.advance(290, loss=jnp.float32(0.51234), structure='1011', nonfinite=3)
    progress.advance(10, loss=0.4)
    progress.advance(1090, loss=0.25)
  lines = [line.split(' ', 1) for line in stream.getvalue().splitlines()]
  assert all(re.fullmatch(r'\d\d:\d\d:\d\d', stamp) for stamp, _ in lines)
  first, middle, last = [message for _, message in lines]
  assert first == 'cotrain: 100/1500 steps (7%)'
  counts, left, *figures = middle.split(', ')
  assert counts == 'cotrain: 400/1500 steps (27%)'
  assert re.fullmatch(r'[\d.]+ s left', left)
  assert figures == ['loss 0.5123', 'structure 1011', 'nonfinite 3']
  assert re.fullmatch(
    r'cotrain: 1500/1500 steps \(100%\), took [\d.]+ s, loss 0.25, .*nonfinite 3', last
  )


def test_an_interrupted_piece_of_work_says_how_far_it_came():
  stream = io.StringIO()
  setup_logging(stream=stream)

  def work():
    with Progress(1000, 'sweep', unit='structure', stream=stream) as progress:
      progress.advance(999)
      raise RuntimeError

  with pytest.raises(RuntimeError):
    work()
  assert 'sweep: 999/1000 structures (99%), took' in stream.getvalue()


def test_nothing_to_do_and_nothing_to_show():
  stream = io.StringIO()
  setup_logging(stream=stream)
  with Progress(1, 'other process', stream=stream, enabled=False) as progress:
    progress.advance(1, loss=1.0)
  assert stream.getvalue() == ''
  with Progress(0, 'empty', stream=stream):
    pass
  assert 'empty: 0/0 steps (100%), took 0.0 s' in stream.getvalue()


def test_a_live_bar_on_a_terminal_leaves_log_lines_whole(terminal):
  setup_logging(stream=terminal.stream)
  with Progress(200, 'co[train]', stream=terminal.stream, start=50) as progress:
    for i in range(15):
      progress.advance(10, loss=1 / (i + 1))
      log.info('line [bold]%d[/bold] of the log, %s', i, 'x' * 150)
      time.sleep(0.02)
  assert Progress.display is None
  log.info('after the bar')
  text = terminal.finish()
  for i in range(15):
    pattern = rf'^\d\d:\d\d:\d\d line \[bold\]{i}\[/bold\] of the log, x{{150}}$'
    assert len(re.findall(pattern, text, re.MULTILINE)) == 1
  final = [line for line in text.splitlines() if 'co[train]' in line][-1]
  assert '200/200' in final
  assert 'steps/s' in final
  assert 'loss 0.06667' in final
  assert text.rstrip().endswith('after the bar')


def test_bars_can_be_nested(terminal):
  with Progress(2, 'outer', stream=terminal.stream) as outer:
    for _ in range(2):
      with Progress(3, 'inner', stream=terminal.stream) as inner:
        inner.advance(3)
      outer.advance()
  text = terminal.finish()
  assert 'inner' in text
  assert re.search(r'outer .* 2/2', text)
  assert Progress.display is None


def test_setup_logging_twice_writes_each_line_once():
  stream = io.StringIO()
  setup_logging(logging.INFO, stream)
  handler = setup_logging(logging.WARNING, stream)
  log.info('quiet')
  log.warning('loud')
  assert re.fullmatch(r'\d\d:\d\d:\d\d loud\n', stream.getvalue())
  assert [h for h in log.handlers if isinstance(h, LineHandler)] == [handler]


def test_lines_follow_standard_error(capsys):
  setup_logging()
  log.info('hello')
  assert capsys.readouterr().err.endswith(' hello\n')


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.04, '0.0 s'),
    (59.9, '59.9 s'),
    (59.97, '1 min 0 s'),
    (125, '2 min 5 s'),
    (4800, '1 h 20 min'),
  ],
)
def test_durations(seconds, text):
  assert duration(seconds) == text


def test_brief_work_is_not_mentioned_in_a_log(caplog):
  caplog.set_level(logging.INFO, 'additive_jax')
  with Progress(4, 'reading', unit='byte', stream=io.StringIO(), brief=True) as progress:
    progress.advance(4)
  assert not caplog.messages
  with Progress(
    4, 'reading', unit='byte', stream=io.StringIO(), brief=True, interval=0
  ) as progress:
    progress.advance(1)
  assert caplog.messages[0].startswith('reading: 1/4 bytes (25%)')
  assert len(caplog.messages) == 2


def test_an_unknown_total_is_counted_up(caplog):
  caplog.set_level(logging.INFO, 'additive_jax')
  with Progress(None, 'downloading', unit='byte', stream=io.StringIO(), interval=0) as progress:
    progress.advance(7)
  assert [message.split(',')[0] for message in caplog.messages] == [
    'downloading: 0 bytes',
    'downloading: 7 bytes',
    'downloading: 7 bytes',
  ]


class Clock:
  """Time that passes when told to."""

  def __init__(self, monkeypatch):
    self.now = 100.0
    monkeypatch.setattr('additive_jax.files.progress.time.monotonic', lambda: self.now)

  def wait(self, seconds):
    self.now += seconds


def test_the_compile_before_the_first_item_is_not_in_the_time_left(monkeypatch, caplog):
  caplog.set_level(logging.INFO, 'additive_jax')
  clock = Clock(monkeypatch)
  with Progress(10, 'alone', unit='structure', stream=io.StringIO(), start=2) as progress:
    clock.wait(60)  # compiles
    progress.advance(1)
    clock.wait(15)
    progress.advance(3)
  assert caplog.messages[1] == 'alone: 3/10 structures (30%)'
  # By the average of all 75 s it would be 75 s, with the 2 of an earlier process 10 s.
  assert caplog.messages[2] == 'alone: 6/10 structures (60%), 20.0 s left'


def test_the_live_bar_tells_the_same_time_left(terminal, monkeypatch):
  clock = Clock(monkeypatch)
  with Progress(10, 'alone', unit='structure', stream=terminal.stream) as progress:
    clock.wait(60)
    progress.advance(1)
    clock.wait(100)  # longer than the display's own memory of half a minute
    progress.advance(1)
    Progress.display.refresh()
  text = terminal.finish()
  assert '0.01 structures/s' in text
  assert '0:13:20' in text


def test_python_shows_lines_while_a_run_lasts(monkeypatch, capsys):
  monkeypatch.setattr(logging.root, 'handlers', [])
  before = log.handlers[:], log.level, log.propagate
  with shown(), Progress(3, 'work') as bar:
    bar.advance(3)
  assert re.search(r'^\d\d:\d\d:\d\d work: 3/3 steps \(100%\)', capsys.readouterr().err, re.M)
  assert (log.handlers, log.level, log.propagate) == before
  with shown(progress=False), Progress(3, 'work') as bar:
    bar.advance(3)
  assert capsys.readouterr().err == ''


def test_logging_of_the_users_own_stays(monkeypatch, capsys):
  stream = io.StringIO()
  own = logging.StreamHandler(stream)
  own.setFormatter(logging.Formatter('own %(message)s'))
  monkeypatch.setattr(logging.root, 'handlers', [own])
  with shown(), Progress(1, 'work'):
    log.warning('watch out')
  assert stream.getvalue() == 'own watch out\n'
  err = capsys.readouterr().err
  assert 'work: 0/1' in err
  assert 'watch out' not in err
  logging.root.setLevel(logging.INFO)
  try:
    with shown(), Progress(1, 'work'):
      pass
  finally:
    logging.root.setLevel(logging.WARNING)
  assert 'own work: 0/1 step (0%)' in stream.getvalue()
  assert capsys.readouterr().err == ''


def test_a_notebook_shows_bars_as_one_output(monkeypatch, capsys):
  IPython = pytest.importorskip('IPython')
  drawn = []
  handle = type('Handle', (), {'update': lambda self, bundle, raw: drawn.append(bundle)})()
  monkeypatch.setattr(IPython, 'get_ipython', lambda: type('Shell', (), {'kernel': None})())
  show = lambda bundle, raw, display_id: drawn.append(bundle) or handle
  monkeypatch.setattr('IPython.display.display', show)
  monkeypatch.setattr(logging.root, 'handlers', [])
  with shown(), Progress(4, 'outer') as outer:
    with Progress(9, 'inner') as inner:
      inner.advance(5, loss=0.5)
      log.info('a line')
    outer.advance(4)
  assert Progress.display is Progress.output is None
  assert any('inner' in bundle['text/plain'] for bundle in drawn)
  assert '4/4' in drawn[-1]['text/plain']
  assert 'inner' not in drawn[-1]['text/plain']
  assert drawn[-1]['text/html'].startswith('<pre')
  out, err = capsys.readouterr()
  assert re.fullmatch(r'\d\d:\d\d:\d\d a line\n', out)
  assert err == ''


@pytest.mark.parametrize('progress', [True, False])
def test_a_script_that_is_stopped_ends_as_a_command_does(progress):
  """With code 75 and one line, without a traceback; who catches exceptions catches it."""
  script = (
    'from additive_jax.errors import Stopped\n'
    'from additive_jax.files.showing import shown\n'
    f'with shown({progress}):\n'
    '  raise Stopped("saved up to step 3 of 9 of pool")\n'
  )
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
  assert done.returncode == STOPPED, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.endswith('stopped: saved up to step 3 of 9 of pool; the same command goes on')
  with pytest.raises(Exception, match='everything that was done is saved'):
    raise Stopped


def test_what_is_waited_for_is_said_where_it_takes_long(caplog):
  caplog.set_level(logging.INFO, 'additive_jax')
  with waiting_for('compiling a step', patience=60):
    pass
  assert not caplog.messages
  with waiting_for('compiling a step', patience=0.01):
    time.sleep(0.3)
  assert caplog.messages == ['compiling a step']
