"""One process at a time in a run's directory, and one for each shard: a lock that dies with it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from additive_jax.errors import UserError, user_errors

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None  # type: ignore[assignment]

log = logging.getLogger('additive_jax')

BUSY = (errno.EAGAIN, errno.EACCES)
WITHOUT = 'two runs of the same command here would spoil each other'


@contextlib.contextmanager
def locked(folder: Path, shard: int = 0, num_shards: int = 1) -> Iterator[None]:
  """Holds the directory of a run, or one shard's part of it, for the length of the block.

  Different shards of as many may be at work at once; nothing else may:

    run.lock               the whole run        goes with nothing
    shard-0-of-2.lock      one of two shards    goes with shard-1-of-2, not with shard-0-of-3

  The kernel releases the lock when the process ends, however it ends. The file, which holds the
  process's number, stays. Where the system or the file system has no locks, a warning says so and
  nothing is held.

      with locked(folder):
        ...

  Args:
    folder: the run's directory, which exists.
    shard, num_shards: the part; shard 0 of 1 is the whole.

  Raises:
    UserError: another process is at work there; it is named.
  """
  if fcntl is None:
    log.warning('%s: this system has no file locks; %s', folder, WITHOUT)
    yield
    return
  path = folder / ('run.lock' if num_shards == 1 else f'shard-{shard}-of-{num_shards}.lock')
  with contextlib.ExitStack() as stack:
    with user_errors('use', path, 'a file that may be written'):
      file = stack.enter_context(open(path, 'a+'))
    problem = _lock(file, fcntl.LOCK_EX)
    if problem and problem.errno in BUSY:
      raise _in_use(folder, path)
    if problem:
      log.warning('%s cannot be locked (%s); %s', path, problem.strerror, WITHOUT)
    else:
      with user_errors('use', path, 'a file that may be written'):
        file.truncate(0)
        file.write(f'{os.getpid()}\n')
        file.flush()
      for other in sorted(folder.glob('*.lock')):
        is_sister = re.fullmatch(rf'shard-\d+-of-{num_shards}\.lock', other.name)
        if other != path and not is_sister and is_locked(other):
          raise _in_use(folder, other)
    yield


def _lock(file: TextIO, kind: int) -> OSError | None:
  """Takes the lock at once, or returns the reason why not."""
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
  except OSError as error:
    return error
  return None


def is_locked(path: Path) -> bool:
  """Tells whether a process holds a lock; False where the system has none."""
  if fcntl is None:
    return False
  with open(path) as file:
    problem = _lock(file, fcntl.LOCK_SH)
  return problem is not None and problem.errno in BUSY


def _in_use(folder: Path, path: Path) -> UserError:
  process = 'another process'
  with contextlib.suppress(OSError):
    process = f'process {number}' if (number := path.read_text().strip()) else process
  return UserError(f'{folder} is in use by {process}: expected it to end first')
