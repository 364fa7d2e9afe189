"""Signals as requests, and what answers them while nothing has begun or the main thread is away."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from additive_jax.errors import STOPPED
from additive_jax.files import signals
from additive_jax.files.signals import Stopper

# A command whose main thread waits where no handler of Python's runs, as in a long compile.
STUCK = """
import contextlib, ctypes, signal, sys
from additive_jax.cli.command import run_command
from additive_jax.files import signals
from additive_jax.files.progress import setup_logging

def main(argv):
  setup_logging()
  signals.GRACE = 0.2
  with signals.Stopper() if argv[1] == 'begun' else contextlib.nullcontext():
    print('ready', flush=True)
    mutex = ctypes.create_string_buffer(64)
    while True:
      ctypes.CDLL(None).pthread_mutex_lock(mutex)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
sys.exit(run_command(main, sys.argv, resumes=True))
"""


# A command that ends by itself when it is interrupted, and takes a while for it.
INTERRUPTED = """
import signal, sys, time
from additive_jax.cli.command import answered, run_command
from additive_jax.files import signals

def run(argv):
  with signals.Stopper():
    print('ready', flush=True)
    while True:
      time.sleep(0.01)

def main(argv):
  code = answered(run, argv, '')
  print('ended', flush=True)
  return code

signal.signal(signal.SIGINT, signal.default_int_handler)
code = run_command(main, sys.argv, resumes=True)
print('out', flush=True)
time.sleep(60)
"""


# A command that forks, as some readers of data do, and ends its child with a signal.
PARENT = """
import os, signal, sys, time
from additive_jax.cli.command import run_command

def main(argv):
  reader, writer = os.pipe()
  if not (child := os.fork()):
    os.write(writer, b'.')
    time.sleep(60)
  os.read(reader, 1)
  os.kill(child, signal.SIGTERM)
  status = os.waitpid(child, 0)[1]
  time.sleep(0.2)
  return os.waitstatus_to_exitcode(status) + 100

sys.exit(run_command(main, sys.argv, resumes=True))
"""


@pytest.fixture(autouse=True)
def heard():
  """Signals as Python handles them, also where a shell started the tests in the background, or
  nohup, which have them ignored."""
  usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
  before = {number: signal.signal(number, handler) for number, handler in usual.items()}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def stuck(word):
  """Such a process, ready for signals."""
  process = subprocess.Popen(
    [sys.executable, '-c', STUCK, word],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  return process


def test_a_signal_before_anything_was_begun_ends_at_once():
  process = stuck('not yet')
  process.send_signal(signal.SIGHUP)
  _, err = process.communicate(timeout=10)
  assert process.returncode == STOPPED == os.EX_TEMPFAIL
  assert err == 'SIGHUP: stopped before anything was begun; the same command begins\n'


def test_a_second_interrupt_ends_what_compiles():
  """The first is told of at once."""
  process = stuck('begun')
  process.send_signal(signal.SIGINT)
  assert process.stderr.readline()[9:] == (
    'SIGINT: stopping after this step; Ctrl-C stops at once\n'
  )
  process.send_signal(signal.SIGTERM)
  assert process.poll() is None
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=10)
  assert (process.returncode, err) == (signals.INTERRUPTED, '')


def test_a_third_interrupt_ends_without_a_word():
  """After the second one has ended the main thread: while the command ends, and after it."""
  command = [sys.executable, '-c', INTERRUPTED]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  process = subprocess.Popen(command, **pipes)
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGINT)
  time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  for word in ('ended', 'out'):
    assert process.stdout.readline() == f'{word}\n'
    process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=10)
  assert (process.returncode, err) == (signals.INTERRUPTED, '')


def test_a_signal_to_a_child_is_the_childs():
  command = [sys.executable, '-W', 'ignore', '-c', PARENT]
  process = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert (process.returncode, process.stderr) == (100 - signal.SIGTERM, '')


def test_nobody_has_to_read_what_a_command_says():
  """A reader that left, and a standard error that is closed: no other file may take its number."""
  reader, writer = os.pipe()
  os.close(reader)
  command = ['bash', '-c', 'exec "$0" -m additive_jax.launch --help 2>&-', sys.executable]
  process = subprocess.run(command, stdout=writer, timeout=60)
  os.close(writer)
  assert process.returncode == 0


@pytest.mark.parametrize('number', signals.SIGNALS)
def test_the_first_signal_is_a_request(number, caplog):
  before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  with caplog.at_level(logging.INFO, 'additive_jax'), Stopper() as stopper:
    assert not stopper.stop_requested
    signal.raise_signal(number)
    assert stopper.stop_requested
    assert stopper.stop_requested
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
  assert [r.message for r in caplog.records] == [
    f'{number.name}: stopping after this step; Ctrl-C stops at once'
  ]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number):
  """As `nohup` asks for, and a shell for what it starts in the background."""
  before = signal.signal(number, signal.SIG_IGN)
  try:
    with Stopper() as stopper:
      signal.raise_signal(number)
      assert not stopper.stop_requested
  finally:
    signal.signal(number, before)


def test_off_the_main_thread_the_stopper_does_nothing():
  before = signal.getsignal(signal.SIGTERM)
  seen = []

  def work():
    with Stopper() as stopper:
      seen.extend([stopper.stop_requested, signal.getsignal(signal.SIGTERM) is before])

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False, True]
