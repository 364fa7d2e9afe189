"""Orbax's background threads, kept from speaking and from waiting when a disk fails.

What goes wrong in them is raised again by the call that waits for them, where it becomes one line:
Orbax itself logs it with several hundred lines of traceback. Threads of a save whose folder could
not be made wait five minutes for it, and would hold up the end of the program as long.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger('additive_jax')


ORBAX = f'{os.sep}orbax{os.sep}'


class Quiet(logging.Filter):
  """Lets through what is logged, but for errors of Orbax, which are raised too."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Returns whether a record is logged."""
    where = record.pathname if record.name == 'absl' else record.getMessage()
    return not (record.exc_info and ORBAX in where)


QUIET = Quiet()


def _without_late_writes(hook: Callable[[Any], Any], orbax: str = ORBAX) -> Callable[[Any], Any]:
  """Returns a hook that says nothing of writes which end after their save has failed."""

  def quiet(unraisable: Any) -> None:
    closed = str(unraisable.exc_value) == 'Event loop is closed'
    code = getattr(unraisable.object, 'cr_code', None)
    if not closed and orbax not in getattr(code, 'co_filename', ''):
      hook(unraisable)

  return quiet


def _silence() -> None:
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(QUIET)
  if _without_late_writes.__name__ not in getattr(sys.unraisablehook, '__qualname__', ''):
    sys.unraisablehook = _without_late_writes(sys.unraisablehook)


def call(function: Callable[[], Any]) -> None:
  """Calls a function of Orbax so that the threads which it starts never outlive the program.

  Raises:
    BaseException: what the function raises.
  """
  _silence()
  raised: list[BaseException] = []

  def run() -> None:
    try:
      function()
    except BaseException as error:
      raised.append(error)

  # Threads inherit from the one that starts them that nobody waits for them at exit.
  thread = threading.Thread(target=run, daemon=True, name='checkpoint')
  thread.start()
  thread.join()
  if raised:
    raise raised[0]


def cause(error: BaseException) -> str:
  """Returns what the operating system said, in its words; '' where an error has another reason.

  >>> cause(ValueError("RESOURCE_EXHAUSTED: Failed to write 4520 bytes [os_error_code='28']"))
  'No space left on device'

  Args:
    error: of Python, or of TensorStore, which has the number in its message.
  """
  seen: BaseException | None = error
  while seen is not None:
    if isinstance(seen, OSError):
      return seen.strerror or str(seen)
    if number := re.search(r"os_error_code='(\d+)'", str(seen)):
      return os.strerror(int(number[1]))
    seen = seen.__cause__ or seen.__context__
  return ''
