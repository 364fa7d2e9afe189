"""Compiled programs, kept from one run to the next by JAX's persistent cache.

The place is `~/.cache/additive_jax/xla`, or where the platform keeps such things, with a folder for
each kind of processor, since a home may be shared by machines that differ:

    ~/.cache/additive_jax/xla/3f9a01c2/jit_steps-<key>-cache      of a program
                                       kept-<key>-cache           what a network costs: `kept`

`ADDITIVE_JAX_CACHE` names another place, or `off`. Who has set a cache of JAX's own, or turned it
off, has that instead. Removing the folder at any time is safe.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

from additive_jax.errors import UserError, user_path
from additive_jax.files.kept import keeping
from additive_jax.files.quantities import bytes_text

log = logging.getLogger('additive_jax')

VARIABLE = 'ADDITIVE_JAX_CACHE'
OFF = 'off'
MOST = 4 * 10**9  # bytes; beyond it what was used longest ago is removed
CHECKED = '.checked'  # its time is that of the last look for programs that are cut off
SETTINGS = {
  'jax_persistent_cache_min_compile_time_secs': 0.0,
  # Otherwise the key of a program contains the cache's path.
  'jax_persistent_cache_enable_xla_caches': 'none',
}


def cache_place() -> Path | None:
  """Returns the folder that `ADDITIVE_JAX_CACHE` names, or the platform's own; None for `off`.

  Raises:
    UserError: for a text that no path can be.
  """
  named = os.environ.get(VARIABLE, '')
  if named == OFF:
    return None
  if named:
    return user_path(named, VARIABLE).absolute()
  return platformdirs.user_cache_path('additive_jax', appauthor=False)


@contextlib.contextmanager
def kept_programs() -> Iterator[Path | None]:
  """Keeps what is compiled inside for later runs; gives the folder, None where nothing is kept.

  Safe with several processes. A place that cannot be used is one warning. At the end JAX's settings
  are what they were.
  """
  config: Any = jax.config
  if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:
    yield None
    return
  folder = _open()
  if folder is None:
    yield None
    return
  values = SETTINGS | {'jax_compilation_cache_dir': str(folder)}
  before = {name: getattr(config, name) for name in values}
  _set(values)
  try:
    with warnings.catch_warnings():
      # What cannot be read or kept is compiled; a full disk is told of by the run's own files.
      warnings.filterwarnings('ignore', 'Error (reading|writing) persistent compilation cache')
      with keeping(folder):
        yield folder
  finally:
    _set(before)


def _set(values):
  compilation_cache.reset_cache()  # it is opened once, with the settings of that moment
  for name, value in values.items():
    jax.config.update(name, value)


def _open() -> Path | None:
  """Returns the folder for this processor, made, tidied and found writable."""
  try:
    place = cache_place()
    if place is None:
      return None
    folder = place / 'xla' / processor()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
    tidy(folder)
  except (OSError, UserError) as error:
    reason = getattr(error, 'strerror', None) or error
    where = getattr(error, 'filename', None) or os.environ.get(VARIABLE, '')
    log.warning('compiled programs are not kept: %s (%s); %s says where', where, reason, VARIABLE)
    return None
  return folder


def processor() -> str:
  """Returns a name of this kind of processor: programs are compiled for what it can do."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  abilities = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  text = ' '.join([platform.machine(), platform.processor(), *sorted(abilities.split())])
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def tidy(folder: Path, most: int = MOST) -> None:
  """Removes programs that are cut off, as by a kill while they were written, and those used longest
  ago where all together take more than `most` bytes.

  JAX would warn of the former in every run, and never write them again.
  """
  marker = folder / CHECKED
  since = marker.stat().st_mtime if marker.exists() else 0.0
  marker.touch()
  entries = []
  for path in folder.glob('*-cache'):
    # Another process may tidy too.
    with contextlib.suppress(FileNotFoundError):
      status = path.stat()
      if status.st_mtime >= since and not _whole(path):
        path.unlink()
      else:
        entries.append((max(status.st_atime, status.st_mtime), status.st_size, path))
  size = sum(size for _, size, _ in entries)
  removed = 0
  for _, bytes_, path in sorted(entries):
    if size - removed <= most:
      break
    path.unlink(missing_ok=True)
    removed += bytes_
  if removed:
    log.info('%s: removed %s of old programs', folder, bytes_text(removed))


def _whole(path):
  """Whether a program can be unpacked; one in another format than zlib's is taken to be whole."""
  data = path.read_bytes()
  if data[:1] not in (b'\x78', b''):
    return True
  try:
    zlib.decompress(data)
  except zlib.error:
    return False
  return True
