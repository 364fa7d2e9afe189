"""The exceptions for a user's mistake and for a stop, errors of others in one line, and checks of
paths, seeds and sizes, which every room takes from users."""

from __future__ import annotations

import contextlib
import difflib
import numbers
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STOPPED = 75  # the exit code of a stop before the end: sysexits' EX_TEMPFAIL, "try again"
AGAIN = 'the same command goes on'
# A key of JAX is made of 32 bits of a seed: it would take 2^32 for 0.
SEEDS = 2**32
SEED_EXPECTED = 'an integer from 0 to 2^32 − 1'


class UserError(ValueError):
  """What was asked for cannot be done, and the person who asked can mend it.

  The message is one line: it repeats the offending value and says what was expected. The launcher
  prints it without a traceback and exits with code 2; in Python it is an ordinary `ValueError`,
  which a notebook shows as that line.

  >>> aj.Structure.from_string('012')
  Traceback (most recent call last):
  additive_jax.errors.UserError: structure '012': expected a string of 0 and 1, gate 0 leftmost
  """

  def _render_traceback_(self) -> list[str]:
    """What IPython shows; `%tb` of a debugger still has the frames."""
    return [f'{type(self).__name__}: {one_line(self)}']


class Stopped(SystemExit, Exception):
  """The run was asked to stop; what it had done is saved, and the same command or call goes on.

  The message is one line that says so, and how far the run has come. A script that does not catch
  it ends as a command does, with exit code 75 and without a traceback; `except Exception` does.

  >>> stopped = Stopped()
  >>> str(stopped), stopped.code
  ('stopped: everything that was done is saved; the same command goes on', 75)
  """

  def __init__(self, saved: str = 'everything that was done is saved'):
    super().__init__(f'stopped: {saved}; {AGAIN}')
    self.code = STOPPED


def one_line(error: BaseException) -> str:
  """Returns what an error says, without line breaks.

  >>> one_line(ValueError('no such\\n  file'))
  'no such file'
  """
  text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
  return ' '.join(text.split())


def did_you_mean(word: str, choices: Sequence[str]) -> str:
  """Returns the end of a message about a word that is likely to be misspelt; '' for no idea.

  >>> did_you_mean('rng', ['psum', 'ring'])
  "; did you mean 'ring'?"
  """
  near = difflib.get_close_matches(word, choices, n=1)
  return f'; did you mean {near[0]!r}?' if near else ''


def user_path(text: str | Path, name: str = 'path') -> Path:
  """Returns the path that a user names, with `~` as the home directory.

  >>> user_path('~nobody_of_that_name/runs', '--workdir')
  Traceback (most recent call last):
  additive_jax.errors.UserError: --workdir '~nobody_of_that_name/runs': expected a user that is here
  after the ~

  Args:
    name: what the path is called in messages.

  Raises:
    UserError: for a home that is not there, or a text that no path can be, such as one too long.
  """
  path = Path(os.path.expanduser(text))
  if str(path).startswith('~') and not path.exists():
    raise UserError(f'{name} {str(text)!r}: expected a user that is here after the ~')
  try:
    path.exists()  # which fails where no path could be
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    shown = repr(str(text) if len(str(text)) <= 60 else f'{str(text)[:57]}...')
    raise UserError(f'{name} {shown} ({reason}): expected a path that can be used') from error
  return path


def checked_seed(seed: Any, name: str = 'seed') -> int:
  """Returns a seed as a Python integer.

  >>> checked_seed(7)
  7
  >>> checked_seed(2**32)
  Traceback (most recent call last):
  additive_jax.errors.UserError: seed 4294967296: expected an integer from 0 to 2^32 − 1

  Raises:
    UserError: for one that is not from 0 to 2^32 − 1, or no integer.
  """
  whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
  if not whole or not 0 <= seed < SEEDS:
    raise UserError(f'{name} {seed!r}: expected {SEED_EXPECTED}')
  return int(seed)


def checked_size(size: Any, name: str) -> int:
  """Returns a number of things, such as the examples of a batch, as a Python integer.

  >>> checked_size(7.5, 'batch_size')
  Traceback (most recent call last):
  additive_jax.errors.UserError: batch_size 7.5: expected an integer, at least 1

  Raises:
    UserError: for one below 1, or no integer.
  """
  if not isinstance(size, numbers.Integral) or isinstance(size, bool):
    raise UserError(f'{name} {size!r}: expected an integer, at least 1')
  if size < 1:
    raise UserError(f'{name} {size}: expected at least 1')
  return int(size)


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
