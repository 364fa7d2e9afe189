"""Says what a program waits for, where that takes long."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

log = logging.getLogger('additive_jax')

PATIENCE = 3.0


@contextlib.contextmanager
def waiting_for(what: str, patience: float = PATIENCE) -> Iterator[None]:
  """Logs `what` once, if the block is still at work after a while.

  >>> with waiting_for('compiling a step', patience=60):
  ...   pass  # was quick: nothing is said

  Args:
    what: what the block does, in words.
    patience: seconds before it is said.
  """
  timer = threading.Timer(patience, log.info, ('%s', what))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
