"""How the processes of a run find each other, within a limit and with a word on whoever is missing.

    process 0 ◀── join 1 of 3 ── process 1        process 0 listens at host:port, and says `go`
        ▲ ◀────── join 2 of 3 ── process 2        to all when everybody is there

Then the port is free for JAX's own coordination, which would wait for five minutes without a word
and end in an abort. The connections stay, for `peers`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator

from additive_jax.errors import Stopped, UserError
from additive_jax.parallel.peers import BEAT, Lines, Peers

log = logging.getLogger('additive_jax')

TELLING = 5.0  # seconds between two lines on who is waited for
JOIN = r'additive_jax joins as (\d+) of (\d+)'


class Patience:
  """Counts down the seconds of one wait, and says from time to time what it waits for.

  Args:
    wait: seconds in all.
  """

  def __init__(self, wait: float):
    self.wait = wait
    self._deadline = time.monotonic() + wait
    self._next = time.monotonic() + TELLING

  @property
  def left(self) -> float:
    """The seconds that are left."""
    return self._deadline - time.monotonic()

  def tell(self, what: str) -> None:
    """Says what is waited for, unless that was said a moment ago."""
    if time.monotonic() >= self._next:
      self._next = time.monotonic() + TELLING
      log.info('waiting for %s, %.0f s more', what, max(self.left, 0))


def meet(address: str, rank: int, count: int, wait: float) -> Peers:
  """Joins this process to the others, which all call this, and returns the connections.

  Args:
    address: `host:port` of process 0; the port is free again afterwards.
    rank: the number of this process.
    count: how many there are.
    wait: seconds until those that have not come are given up.

  Raises:
    UserError: for a port in use, something else at the address, or processes that were told of
      different numbers.
    Stopped: for a process that does not come.
  """
  host, port = _split(address)
  patience, links = Patience(wait), {}
  try:
    if rank == 0:
      _gather(links, port, count, patience)
    else:
      links[0] = _reached(host, port, patience)
      _join(links[0], address, rank, count, Patience(wait + BEAT))  # process 0 may be new
  except BaseException:
    for link in links.values():
      link.close()
    raise
  return Peers(links, rank, count, wait)


def _split(address: str) -> tuple[str, int]:
  host, _, port = address.rpartition(':')
  return host.strip('[]'), int(port)  # [::1]:29500


def _gather(links: dict[int, Lines], port: int, count: int, patience: Patience) -> None:
  """Fills in the connections of process 0, until all others have come."""
  with _listening(port) as server:
    while missing := [str(rank) for rank in range(1, count) if rank not in links]:
      who = f'process {", ".join(missing)} of {count}'
      if patience.left <= 0:
        raise Stopped(f'{who} did not come within {patience.wait:g} s (--wait), nothing was begun')
      patience.tell(who)
      server.settimeout(BEAT)
      try:
        link = Lines(server.accept()[0])
      except TimeoutError:
        continue
      rank, theirs = _introduced(link)
      if rank < 0:
        link.close()
      elif problem := _problem(rank, theirs, count, taken=rank in links):
        for other in (link, *links.values()):
          other.write(f'refused {problem}')
        link.close()
        raise UserError(problem)
      else:
        links[rank] = link
  for link in links.values():
    link.write('go')


def _introduced(link: Lines) -> tuple[int, int]:
  """The number of whoever came, and how many it was told of; -1 for a stranger."""
  with contextlib.suppress(OSError):
    if words := re.fullmatch(JOIN, link.read(BEAT)):
      return int(words[1]), int(words[2])
  return -1, -1


def _problem(rank: int, theirs: int, count: int, taken: bool) -> str:
  if theirs != count:
    return (
      f'process {rank} was told of --num_processes={theirs}, process 0 of {count}: '
      'expected one number'
    )
  if taken or not 0 < rank < count:
    return f'--process_id={rank} came twice of {count}: expected each number once'
  return ''


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
  dual = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if dual else socket.AF_INET
  try:
    server = socket.create_server(('', port), family=family, dualstack_ipv6=dual)
  except OSError as error:
    reason = os.strerror(error.errno or 0)
    raise UserError(f'--coordinator, port {port}: {reason}; expected a free one') from error
  with server:
    yield server


def _reached(host: str, port: int, patience: Patience) -> Lines:
  """A connection to process 0, which may not be there yet."""
  who = f'process 0 at {host}:{port}'
  while True:
    try:
      return Lines(socket.create_connection((host, port), timeout=BEAT))
    except OSError as error:
      reason = error.strerror or str(error)
    except UnicodeError as error:
      raise UserError(
        f'--coordinator={host}:{port}: {error}; expected the name of a host'
      ) from error
    if patience.left <= 0:
      raise Stopped(
        f'{who} did not answer within {patience.wait:g} s (--wait; {reason}), nothing was begun'
      )
    patience.tell(f'{who} ({reason})')
    time.sleep(BEAT / 4)


def _join(link: Lines, address: str, rank: int, count: int, patience: Patience) -> None:
  """Says who has come, and returns when all others have."""
  who = f'process 0 at {address}'
  link.write(f'additive_jax joins as {rank} of {count}')
  answer = _answer(link, who, patience)
  if answer.startswith('refused '):
    raise UserError(answer.removeprefix('refused '))
  if answer == '':
    raise Stopped(f'{who} left before all {count} had come, nothing was begun')
  if answer != 'go':
    raise UserError(f'--coordinator={address}: something else answers than process 0 of a run')


def _answer(link: Lines, who: str, patience: Patience) -> str:
  while patience.left > 0:
    with contextlib.suppress(TimeoutError):
      try:
        return link.read(BEAT)
      except ConnectionError:
        return ''
    patience.tell(f'{who} to gather all')
  raise Stopped(f'{who} did not gather all within {patience.wait:g} s (--wait), nothing was begun')


def relayed(address: str) -> str:
  """Returns an address on this machine that stands for another.

  What compiled code hears from there does not end when the other end does, so that it does not
  abort before a thread of Python's has said why: JAX's client ends its process, with twenty lines,
  in the moment in which process 0 is gone.

  Args:
    address: `host:port`.
  """
  host, port = _split(address)
  server = socket.create_server(('127.0.0.1', 0))

  def serve() -> None:
    while True:
      near, _ = server.accept()
      far = _connected(host, port)
      for source, target in ((near, far), (far, near)):
        threading.Thread(target=_pass_on, args=[source, target], daemon=True).start()

  threading.Thread(target=serve, daemon=True).start()
  return f'127.0.0.1:{server.getsockname()[1]}'


def _connected(host: str, port: int) -> socket.socket:
  while True:
    with contextlib.suppress(OSError):
      link = socket.create_connection((host, port), timeout=BEAT)
      link.settimeout(None)
      return link
    time.sleep(BEAT / 10)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
  with contextlib.suppress(OSError):
    while data := source.recv(1 << 16):
      target.sendall(data)
