"""Orbax's background threads, kept from speaking and from waiting when a disk fails.

What goes wrong in them is raised again by the call that waits for them, where it becomes one line:
Orbax itself logs it with several hundred lines of traceback. Threads of a save whose folder could
not be made wait five minutes for it, and would hold up the end of the program as long.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from typing import Any

log = logging.getLogger('additive_jax')


class Quiet(logging.Filter):
  """Lets through what Orbax logs, but for errors with tracebacks, which are raised too."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Returns whether a record is logged."""
    return not (record.exc_info and os.sep + 'orbax' + os.sep in record.pathname)


QUIET = Quiet()


def call(function: Callable[[], Any]) -> None:
  """Calls a function of Orbax so that the threads which it starts never outlive the program.

  Raises:
    BaseException: what the function raises.
  """
  logging.getLogger('absl').addFilter(QUIET)
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
