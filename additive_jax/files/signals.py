"""Signals that ask a program to stop: the first lets it save, and none is without an answer.

    started ── signal: ends at once ──▶ Stopper ── signal: saves, ends; Ctrl-C again: ends at once

Python runs its handlers between two instructions of the main thread, which may be minutes away
while a program is compiled. So the commands answer from a thread of its own (`answering`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, ClassVar

from additive_jax.errors import STOPPED

log = logging.getLogger('additive_jax')

# Those that the system has; a closed terminal sends HUP, a batch system what it was told to.
SIGNALS = [
  getattr(signal, name)
  for name in ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2')
  if hasattr(signal, name)
]
INTERRUPTED = 130  # the exit code of a second Ctrl-C
GRACE = 5.0  # seconds that a second Ctrl-C leaves the main thread to end by itself


class Stopper:
  """Turns the first signal, say SIGTERM or Ctrl-C, into a request, so that a loop can save first.

      with Stopper() as stopper:
        while not stopper.stop_requested:
          ...

  Ctrl-C after a stop was requested raises KeyboardInterrupt at once. The old handlers come back on
  exit. Off the main thread, where Python allows no handlers, it does nothing. A signal that the
  parent process chose to ignore, as `nohup` does, stays ignored; SIGTERM is always heard.
  """

  current: ClassVar[Stopper | None] = None
  begun: ClassVar[bool] = False  # whether there has been one

  def __init__(self) -> None:
    self._signal: signal.Signals | None = None
    self._silent = threading.Lock()  # taken by whoever says first that the signal came
    self._handlers: dict[int, Callable[..., Any] | int | None] = {}

  def __enter__(self) -> Stopper:
    if threading.current_thread() is threading.main_thread():
      for number in SIGNALS:
        if _ignored(number):
          continue
        self._handlers[number] = signal.signal(number, self._request)
      self._outer, Stopper.current, Stopper.begun = Stopper.current, self, True
    return self

  def __exit__(self, *_: object) -> None:
    if self._handlers:
      Stopper.current = self._outer
    for number, handler in self._handlers.items():
      # None: the handler was not set from Python and cannot be set back from it.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    self._handlers.clear()

  @property
  def stop_requested(self) -> bool:
    """Whether a signal has come; the first look says so in the log."""
    # Said here and not in the handler, which may interrupt a half-written log line.
    if self._signal is not None:
      self.announce(self._signal)
    return self._signal is not None

  def announce(self, number: signal.Signals) -> None:
    """Says in the log which signal came; once."""
    if self._silent.acquire(blocking=False):
      log.info('%s: stopping after this step; Ctrl-C stops at once', number.name)

  def _request(self, number: int, frame: FrameType | None) -> None:
    if self._signal is not None:
      if number == signal.SIGINT:
        raise KeyboardInterrupt
      return
    self._signal = signal.Signals(number)


@contextlib.contextmanager
def answering() -> Iterator[None]:
  """Answers signals at once for the length of the block, that of a whole command.

  Before the first `Stopper` is at work any of them ends the process with code 75: nothing has been
  begun. Then a thread says that the signal came, and a second Ctrl-C ends the process with 130,
  also while the main thread compiles.

      with answering():
        code = main(sys.argv)
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  receiver, sender = socket.socketpair()
  sender.setblocking(False)
  numbers = [number for number in SIGNALS if not _ignored(number)]
  before = {number: signal.signal(number, _left_to_thread) for number in numbers}
  wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
  if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=lambda: _release(sender, before))
  ended, interrupted = threading.Event(), threading.Event()
  thread = threading.Thread(target=_answer, args=[receiver, ended, interrupted], daemon=True)
  thread.start()
  try:
    yield
  finally:
    # Until the thread is gone the handlers are its own: another Ctrl-C raises nothing here.
    for number in before:
      signal.signal(number, _left_to_thread)
    signal.set_wakeup_fd(wakeup)
    sender.close()
    ended.set()
    thread.join()
    receiver.close()
    for number, handler in before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if interrupted.is_set() and signal.SIGINT in before:
      signal.signal(signal.SIGINT, lambda *_: end(INTERRUPTED))


def _answer(receiver: socket.socket, ended: threading.Event, interrupted: threading.Event) -> None:
  """Reads the numbers of signals as they come, and does what the main thread is too slow for."""
  asked = False
  while byte := receiver.recv(1):
    if byte[0] not in SIGNALS:  # another handler's, such as that of a child that ended
      continue
    number, stopper = signal.Signals(byte[0]), Stopper.current
    if not Stopper.begun:
      say = f'{number.name}: stopped before anything was begun; the same command begins'
      end(STOPPED, f'{say}\n')
    if stopper is not None:
      stopper.announce(number)
    if asked and number == signal.SIGINT:
      interrupted.set()
      if not ended.wait(GRACE):
        end(INTERRUPTED)
    asked = True


def _release(sender: socket.socket, before: Mapping[int, Any]) -> None:
  """Gives a forked child its signals back: it shares the socket, so they would be answered here."""
  if sender.fileno() >= 0:
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
      if signal.getsignal(number) is _left_to_thread:
        signal.signal(number, handler)


def end(code: int, say: str = '') -> None:
  """Ends the process from any thread, with a last word on standard error, as a kill would."""
  with contextlib.suppress(OSError):
    os.write(2, say.encode())
  os._exit(code)


def _ignored(number: signal.Signals) -> bool:
  return number != signal.SIGTERM and signal.getsignal(number) is signal.SIG_IGN


def _left_to_thread(number: int, frame: FrameType | None) -> None:
  """A handler that is Python's own, without which the thread would not hear of the signal."""
