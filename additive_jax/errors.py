"""The one exception for a user's mistake, and errors of others in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(ValueError):
  """What was asked for cannot be done, and the person who asked can mend it.

  The message is one line: it repeats the offending value and says what was expected. The launcher
  prints it without a traceback and exits with code 2; in a notebook it is an ordinary `ValueError`.

  >>> aj.Structure.from_string('012')
  Traceback (most recent call last):
  additive_jax.errors.UserError: structure '012': expected a string of 0 and 1, gate 0 leftmost
  """


def one_line(error: Exception) -> str:
  """Returns what an error says, without line breaks.

  >>> one_line(ValueError('no such\\n  file'))
  'no such file'
  """
  text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
  return ' '.join(text.split())


@contextlib.contextmanager
def user_errors(action: str, path: Path, expected: str) -> Iterator[None]:
  """Turns an OSError into one line: what could not be done to which path, and what was expected.

  >>> with user_errors('read', Path('a.txt'), 'a text file'):
  ...   open('/nowhere/a.txt')
  Traceback (most recent call last):
  additive_jax.errors.UserError: cannot read a.txt (No such file or directory); expected a text file
  """
  try:
    yield
  except OSError as error:
    reason = error.strerror or str(error)
    raise UserError(f'cannot {action} {path} ({reason}); expected {expected}') from error
