"""Who may work in a run's directory at the same time, across processes that come and are killed."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import subprocess
import sys

import pytest

from additive_jax.errors import UserError
from additive_jax.files import lock
from additive_jax.files.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from additive_jax.files.lock import locked
with locked(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
  print('held', flush=True)
  time.sleep(600)
"""


@contextlib.contextmanager
def another_process(folder, shard=0, num_shards=1):
  """Another process that holds the lock, until it is killed."""
  command = [sys.executable, '-c', HOLDER, str(folder), str(shard), str(num_shards)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline() == 'held\n'
    yield process
  finally:
    process.kill()
    process.communicate()


def refused(folder, shard=0, num_shards=1):
  with pytest.raises(UserError) as raised, locked(folder, shard, num_shards):
    pass
  assert '\n' not in str(raised.value)
  return str(raised.value)


def test_the_second_is_told_who_holds_it_and_a_kill_frees_it(tmp_path):
  with another_process(tmp_path) as holder:
    message = f'{tmp_path} is in use by process {holder.pid}: expected it to end first'
    assert refused(tmp_path) == message
    assert refused(tmp_path, 1, 2) == message
  with locked(tmp_path):
    assert refused(tmp_path) == message.replace(str(holder.pid), str(os.getpid()))
  with locked(tmp_path, 1, 2):
    pass


def test_shards_of_as_many_go_together_and_nothing_else(tmp_path):
  with another_process(tmp_path, 0, 2) as holder, locked(tmp_path, 1, 2):
    assert f'process {holder.pid}' in refused(tmp_path, 0, 2)
    assert f'process {os.getpid()}' in refused(tmp_path, 1, 2)
    assert re.search(f'process ({holder.pid}|{os.getpid()}):', refused(tmp_path, 2, 3))
    assert re.search(f'process ({holder.pid}|{os.getpid()}):', refused(tmp_path))


def test_a_failure_inside_frees_it(tmp_path):
  with pytest.raises(RuntimeError, match='no'), locked(tmp_path):
    raise RuntimeError('no')
  with locked(tmp_path):
    pass


@pytest.mark.parametrize('missing', ['module', 'file system'])
def test_without_locks_a_warning(tmp_path, caplog, monkeypatch, missing):
  def flock(file, kind):
    raise OSError(errno.ENOLCK, 'No locks available')

  if missing == 'module':
    monkeypatch.setattr(lock, 'fcntl', None)
  else:
    monkeypatch.setattr(fcntl, 'flock', flock)
  monkeypatch.setattr(logging.getLogger('additive_jax'), 'propagate', True)
  with locked(tmp_path), locked(tmp_path):
    pass
  assert [record.levelname for record in caplog.records] == ['WARNING'] * 2
  assert 'two runs of the same command here would spoil each other' in caplog.messages[0]
