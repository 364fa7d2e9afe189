"""Processes that meet, wait no longer than they were told to, and hear of each other's end."""

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny

from additive_jax import launch
from additive_jax.errors import STOPPED, Stopped, UserError
from additive_jax.parallel import meeting, peers
from additive_jax.parallel.meeting import meet

LINE = re.compile(r'\d\d:\d\d:\d\d (.*)')


@pytest.fixture
def address():
  with socket.create_server(('', 0)) as server:
    port = server.getsockname()[1]
  return f'127.0.0.1:{port}'


@pytest.fixture
def ended(monkeypatch):
  """What processes end with, instead of ending this one."""
  codes = queue.Queue()
  monkeypatch.setattr(peers, 'end', codes.put)
  return codes


def met(address, count, wait=5.0):
  """The connections of `count` processes, each of which is a thread here."""
  with ThreadPoolExecutor(count) as pool:
    return list(pool.map(lambda rank: meet(address, rank, count, wait), range(count)))


def test_the_first_that_leaves_is_told_to_all(address, ended, caplog, monkeypatch):
  monkeypatch.setattr(peers, 'SETTLING', 0.01)
  everybody = met(address, 3)
  with socket.create_server(('', int(address.rpartition(':')[2]))):  # the port is free again
    everybody[1].leave(2)
    assert [ended.get(timeout=5) for _ in range(2)] == [2, 2]
  messages = [record.message for record in caplog.records]
  assert messages == ['process 1 of 3 ended with code 2: see what it said'] * 2
  for one in everybody:
    one.leave(0)


def test_who_is_done_is_not_gone(address, ended, caplog):
  everybody = met(address, 2)
  for one in everybody:
    one.leave(0)
  time.sleep(0.1)
  assert ended.empty()
  assert not caplog.records


@pytest.mark.parametrize(
  ('rank', 'message'),
  [
    (0, r'process 1 of 2 did not come within 0\.5 s \(--wait\), nothing was begun'),
    (1, r'process 0 at \S+ did not answer within 0\.5 s \(--wait; Connection refused\), nothing'),
  ],
)
def test_nobody_is_waited_for_longer_than_told(address, rank, message, monkeypatch):
  monkeypatch.setattr(meeting, 'BEAT', 0.2)
  start = time.monotonic()
  with pytest.raises(Stopped, match=message):
    meet(address, rank, 2, 0.5)
  assert time.monotonic() - start < 5


def test_one_who_came_is_told_that_another_did_not(address, monkeypatch):
  monkeypatch.setattr(meeting, 'BEAT', 0.1)
  with ThreadPoolExecutor(2) as pool:
    first, second = (pool.submit(meet, address, rank, 3, 1.0) for rank in (0, 1))
    with pytest.raises(Stopped, match='process 2 of 3 did not come'):
      first.result()
    with pytest.raises(Stopped, match='left before all 3 had come'):
      second.result()


def test_a_port_in_use(address):
  port = int(address.rpartition(':')[2])
  with (
    socket.create_server(('', port)),
    pytest.raises(UserError, match=f'--coordinator, port {port}: Address already in use; expected'),
  ):
    meet(address, 0, 2, 5.0)


@pytest.mark.parametrize(
  ('ranks', 'counts', 'message'),
  [
    ((0, 1), (2, 3), 'process 1 was told of --num_processes=3, process 0 of 2: expected one'),
    ((0, 1, 1), (3, 3, 3), '--process_id=1 came twice of 3: expected each number once'),
  ],
)
def test_processes_that_were_told_different_things(address, ranks, counts, message):
  """All are refused in the same words."""
  with ThreadPoolExecutor(3) as pool:
    tries = [pool.submit(meet, address, r, n, 5.0) for r, n in zip(ranks, counts)]
    for one in tries:
      with pytest.raises(UserError, match=message):
        one.result()


def test_something_else_answers(address):
  def answer():
    with server.accept()[0] as link:
      link.sendall(b'220 mail\r\n')
      link.recv(100)

  with socket.create_server(('', int(address.rpartition(':')[2]))) as server:
    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(UserError, match='something else answers than process 0 of a run'):
      meet(address, 1, 2, 5.0)
    thread.join()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--coordinator=here'], '--coordinator=here: expected host:port, or auto'),
    (['--coordinator=here:99999'], '--coordinator=here:99999: expected host:port, or auto'),
    ([f'--coordinator={"a" * 90}:1', '--process_id=1'], 'label too long'),
    (['--coordinator=here:1', '--process_id=2'], '--process_id=2: expected less than'),
    (['--coordinator=auto'], '--coordinator=auto: expected SLURM, a TPU pod or Kubernetes'),
    (['--coordinator=here:1', '--wait=nan'], '--wait=nan: '),
    (['--coordinator=here:1', '--wait=0'], '--wait=0: '),
  ],
)
def test_wrong_words_for_processes(flags, message, capsys):
  args = tiny.arguments('sweep', devices=0)
  assert launch.main(['launch', *args, '--num_processes=2', *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ')
  assert message in error
  assert error.count('\n') == 1


PROGRAM = """
import sys, time
from additive_jax.files.progress import setup_logging
from additive_jax.parallel import processes

setup_logging()
with processes.distributed(sys.argv[1], 2, int(sys.argv[2]), 3.0):
  processes.tell_saved(lambda: 'saved up to step 3 of pool')
  print('joined', flush=True)
  time.sleep(60)
"""


@pytest.mark.parametrize(('lost', 'number'), [(0, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_process_is_told_of_in_one_line(address, lost, number):
  """Killed, which is seen at once; stopped, after as many seconds as were told."""
  environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}
  both = []
  with contextlib.ExitStack() as stack:
    for rank in range(2):
      command = [sys.executable, '-c', PROGRAM, address, str(rank)]
      pipe = subprocess.PIPE
      both.append(
        stack.enter_context(
          subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
        )
      )
      stack.callback(both[-1].kill)
    for process in both:
      while (line := process.stdout.readline()) != 'joined\n':
        assert line.startswith('[Gloo]')
    both[lost].send_signal(number)
    start = time.monotonic()
    _, err = both[1 - lost].communicate(timeout=30)
    assert time.monotonic() - start < 20
  assert both[1 - lost].returncode == STOPPED
  assert LINE.fullmatch(err.strip())[1] == (
    f'process {lost} of 2 is gone; saved up to step 3 of pool; the same command goes on'
  )
