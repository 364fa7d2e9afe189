"""One process at a time in a run's directory, and one for each shard: a lock that dies with it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from additive_jax.errors import UserError
from additive_jax.files.rundir import user_errors

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None

log = logging.getLogger('additive_jax')

WHOLE = 'run.lock'
BUSY = (errno.EAGAIN, errno.EACCES)
OF_NO_USE = 'two runs of the same command here would spoil each other'


@contextlib.contextmanager
def locked(folder: Path, shard: int = 0, num_shards: int = 1) -> Iterator[None]:
  """Holds the directory of a run, or one shard's part of it, for the length of the block.

  Different shards of as many may be at work at once; nothing else may. The kernel releases the
  lock when the process ends, however it ends. The file, which holds the process's number, stays.
  Where the system or the file system has no locks, a warning says so and nothing is held.

  Args:
    folder: the run's directory, which exists.
    shard, num_shards: the part; shard 0 of 1 is the whole.

  Raises:
    UserError: another process is at work there; it is named.
  """
  if fcntl is None:
    log.warning('%s: this system has no file locks; %s', folder, OF_NO_USE)
    yield
    return
  own = folder / (WHOLE if num_shards == 1 else f'shard-{shard}-of-{num_shards}.lock')
  with contextlib.ExitStack() as stack:
    with user_errors('use', own, 'a file that may be written'):
      file = stack.enter_context(open(own, 'a+'))
    problem = _try(file, fcntl.LOCK_EX)
    if problem and problem.errno in BUSY:
      raise _in_use(folder, own)
    if problem:
      log.warning('%s cannot be locked (%s); %s', own, problem.strerror, OF_NO_USE)
    else:
      file.truncate(0)
      file.write(f'{os.getpid()}\n')
      file.flush()
      for rival in sorted(folder.glob('*.lock')):
        if rival != own and not _is_sister(rival.name, num_shards) and _is_held(rival):
          raise _in_use(folder, rival)
    yield


def _try(file, kind):
  """Takes the lock at once, or gives the reason why not."""
  try:
    fcntl.flock(file, kind | fcntl.LOCK_NB)
  except OSError as error:
    return error
  return None


def _is_sister(name, num_shards):
  """Whether a lock is that of another shard of as many."""
  match = re.fullmatch(r'shard-\d+-of-(\d+)\.lock', name)
  return bool(match) and int(match[1]) == num_shards


def _is_held(path):
  with open(path) as file:
    problem = _try(file, fcntl.LOCK_SH)
  return bool(problem) and problem.errno in BUSY


def _in_use(folder, path):
  with contextlib.suppress(OSError):
    holder = path.read_text().strip()
    if holder:
      return UserError(f'{folder} is in use by process {holder}: expected it to end first')
  return UserError(f'{folder} is in use by another process: expected it to end first')
