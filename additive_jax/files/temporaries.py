"""Files and folders that are being written, beside those that they become, and what killed writers
left of them.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

DAY = 86400.0
NAME = re.compile(r'\..+\.(?:(?P<machine>[0-9a-f]{8})-)?(?P<process>\d+)\.tmp')


def beside(path: Path) -> Path:
  """Returns where this process writes what becomes `path`: hidden, in the same folder.

  >>> beside(Path('run/report.html')).name.startswith('.report.html.')
  True
  """
  return path.with_name(f'.{path.name}.{_machine()}-{os.getpid()}.tmp')


def remove_stale(paths: Iterable[Path]) -> list[Path]:
  """Removes what writers that are gone have left, and returns it; other paths stay.

  A writer is gone when its process is, on this machine, and after a day on another, whose processes
  cannot be seen from here.
  """
  return [path for path in paths if _is_stale(path) and _removed(path)]


def _is_stale(path: Path) -> bool:
  found = NAME.fullmatch(path.name)
  if found is None:
    return False
  if found['machine'] == _machine():
    return not _is_alive(int(found['process']))
  try:
    return time.time() - path.lstat().st_mtime > DAY
  except OSError:
    return False


def _removed(path: Path) -> bool:
  with contextlib.suppress(OSError):
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path)
    else:
      path.unlink()
    return True
  return False


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except OSError:
    return True
  return True


def _machine() -> str:
  """Returns a short name for this machine that does not tell its own."""
  return f'{zlib.crc32(platform.node().encode()):08x}'
