"""What of a run is shown to someone who started it from Python."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from additive_jax.errors import Stopped
from additive_jax.files.notebook import in_notebook
from additive_jax.files.progress import LineHandler, Progress

log = logging.getLogger('additive_jax')


class PassingHandler(LineHandler):
  """Writes lines, but for those that the program's own logging shows; these it gets as before."""

  def emit(self, record: logging.LogRecord) -> None:
    """Writes or passes on one record."""
    if logging.root.isEnabledFor(record.levelno) and (handlers := _handlers()):
      for handler in handlers:
        if record.levelno >= handler.level:
          handler.handle(record)
    else:
      super().emit(record)


def _handlers() -> list[logging.Handler]:
  """Returns the root logger's handlers, but for the one that Python adds when a library logs."""
  implicit = lambda handler: (
    type(handler) is logging.StreamHandler
    and getattr(handler.formatter, '_fmt', None) == logging.BASIC_FORMAT
  )
  return [handler for handler in logging.root.handlers if not implicit(handler)]


@contextlib.contextmanager
def shown(progress: bool = True) -> Iterator[None]:
  """Shows bars and lines of the work inside, as the command does; afterwards nothing is changed.

  Bars are drawn on a terminal and in a notebook, lines go to standard error, in a notebook to
  standard output. A program that has set up logging of `additive_jax` itself keeps that. A stop is
  told of as a warning, since Python ends a script on it without a word.

  Args:
    progress: False shows no progress; warnings go where they went before.
  """
  with _lines(progress):
    try:
      yield
    except Stopped as stopped:
      log.warning('%s', stopped)
      raise


@contextlib.contextmanager
def _lines(progress: bool) -> Iterator[None]:
  if not progress:
    before, Progress.silent = Progress.silent, True
    try:
      yield
    finally:
      Progress.silent = before
    return
  if log.handlers or log.isEnabledFor(logging.INFO):
    yield
    return
  handler = PassingHandler(sys.stdout if in_notebook() else None)
  level, propagate = log.level, log.propagate
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False
  try:
    yield
  finally:
    log.removeHandler(handler)
    log.setLevel(level)
    log.propagate = propagate
