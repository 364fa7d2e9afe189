"""The other processes of a run, and what becomes of this one when another is gone.

Process 0 is connected with all others for the length of the run (see `meeting`):

    process 0 ◀── alive ──▶ process 1      every second, both ways
        ▲ ◀────── alive ──▶ process 2      leave CODE, or gone RANK CODE: how one ended

The kernel closes the connections of a process that is killed, so the others know at once; one whose
machine is gone, or that is stopped, falls silent. Compiled code that waits for the lost process in
a collective cannot be called back: a thread says what happened and ends this process, as a kill
would.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping

from additive_jax.errors import AGAIN, STOPPED
from additive_jax.files.signals import end

log = logging.getLogger('additive_jax')

BEAT = 1.0  # seconds between two signs of life
SETTLING = 5.0  # seconds that a process has to end by itself, with a message of its own
LINE = 256  # the most bytes of a message


class Peers:
  """The connections of one process to the others.

  Args:
    links: the connections by the number of the process at the other end: in process 0 to all
      others, in these to process 0.
    rank: the number of this process.
    count: how many there are.
    wait: seconds of silence after which a process counts as gone.

  Attributes:
    saved: gives what of the run is saved, in words, for the line that tells of a lost process.
  """

  def __init__(self, links: Mapping[int, Lines], rank: int, count: int, wait: float):
    self.rank, self.count, self.wait = rank, count, wait
    self.saved: Callable[[], str] = lambda: ''
    self._links = links
    self._leaving = threading.Event()
    self._ending = threading.Lock()  # taken by the thread that ends this process
    for other, link in links.items():
      threading.Thread(target=self._listen, args=[other, link], daemon=True).start()
    threading.Thread(target=self._beat, daemon=True).start()

  def leave(self, code: int) -> None:
    """Tells the others with which exit code this process ends, and hears no more of them."""
    self._leaving.set()
    self._tell(f'leave {code}')
    for link in self._links.values():
      link.hang_up()

  def settle(self) -> None:
    """Waits for news of the others, after an error that a lost process may have caused."""
    time.sleep(SETTLING)

  def _listen(self, other: int, link: Lines) -> None:
    """Hears one process until it leaves or is gone."""
    word, values = self._last_word(link)
    link.close()
    if word == 'leave':
      if values[0] in (0, STOPPED):
        return
      time.sleep(SETTLING)  # what it found wrong this process may find too, and say itself
      self._end(other, values[0])
    else:
      self._end(*(values if word == 'gone' else (other, STOPPED)))

  def _last_word(self, link: Lines) -> tuple[str, list[int]]:
    """What a process says of its end, or of another's; '' for one that says nothing any more."""
    silent = 0.0
    # Seconds of silence are counted as they are waited for: a process that was stopped itself has
    # heard nothing from the others, through no fault of theirs.
    while silent < self.wait:
      try:
        word, *values = link.read(BEAT).split()
      except TimeoutError:
        silent += BEAT
        continue
      except (OSError, ValueError):
        break
      if word != 'alive':
        return word, [int(value) for value in values]
      silent = 0.0
    return '', []

  def _end(self, other: int, code: int) -> None:
    """Ends this process as the other did, unless it is leaving or ending already."""
    if self._leaving.is_set() or not self._ending.acquire(blocking=False):
      return
    who = f'process {other} of {self.count}'
    if code == STOPPED:
      log.error('%s is gone; %s; %s', who, self.saved() or 'nothing was saved yet', AGAIN)
    else:
      log.error('%s ended with code %d: see what it said', who, code)
    self._tell(f'gone {other} {code}')
    end(code)

  def _beat(self) -> None:
    while not self._leaving.wait(BEAT):
      self._tell('alive')

  def _tell(self, line: str) -> None:
    for link in self._links.values():
      with contextlib.suppress(OSError):
        link.write(line)


class Lines:
  """A connection over which short lines go.

  >>> here, there = map(Lines, socket.socketpair())
  >>> here.write('join 1 of 2')
  >>> there.read(1.0)
  'join 1 of 2'
  >>> here.hang_up(), there.read(1.0)
  (None, '')
  >>> here.close(), there.close()
  (None, None)
  """

  def __init__(self, link: socket.socket):
    self._link, self._bytes = link, b''

  def write(self, line: str) -> None:
    """Sends one line."""
    self._link.sendall(f'{line}\n'.encode())

  def read(self, timeout: float) -> str:
    """Returns the next line; '' when the other end is closed, or sends something else than lines.

    Raises:
      OSError: nothing came within `timeout` seconds, or the connection is broken.
    """
    self._link.settimeout(timeout)
    while b'\n' not in self._bytes:
      more = self._link.recv(LINE)
      if not more or len(self._bytes) > LINE:
        return ''
      self._bytes += more
    line, _, self._bytes = self._bytes.partition(b'\n')
    return line.decode('ascii', 'replace')

  def hang_up(self) -> None:
    """Ends the connection, also for a thread that reads from it."""
    with contextlib.suppress(OSError):
      self._link.shutdown(socket.SHUT_RDWR)

  def close(self) -> None:
    """Closes the connection."""
    self._link.close()
