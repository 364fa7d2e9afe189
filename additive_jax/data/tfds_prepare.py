"""Preparing a TensorFlow Datasets set as ArrayRecord: the command, the network check, the work."""

import contextlib
import io
import json
import logging
import os
import pathlib
import shlex
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from additive_jax.errors import UserError
from additive_jax.files.progress import Progress

log = logging.getLogger('additive_jax')

# Sets whose builder doesn't record its URLs are downloaded from hosts that only the builder knows.
DEFAULT_URL = 'https://storage.googleapis.com'
NETWORK_SECONDS = 3.0
SECONDS_BETWEEN_LOOKS = 1.0


def command(name: str, folder: str) -> str:
  """The shell command that prepares `tfds:<name>` in `folder`."""
  # JSON strings are Python strings, and their double quotes survive the shell's single ones.
  spec, data_dir = json.dumps(f'tfds:{name}'), json.dumps(folder)
  code = f'from additive_jax import data; data.load({spec}, data_dir={data_dir}, download=True)'
  return shlex.join(['python', '-c', code])


def answers(url: str, seconds: float = NETWORK_SECONDS) -> bool:
  """Whether anything, an error page included, answers a request for `url` within `seconds`."""
  reached = threading.Event()

  def ask() -> None:
    request = urllib.request.Request(url, method='HEAD')
    try:
      urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
      pass
    except (OSError, ValueError):
      return
    reached.set()

  # The look-up of a host's name has no time limit of its own, so it runs where it can be left
  # behind.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(seconds)
  return reached.is_set()


def prepare(tfds: Any, name: str, folder: str) -> None:
  """Downloads and prepares `tfds:<name>` as ArrayRecord in `folder`.

  Args:
    tfds: the module tensorflow_datasets.
    name: `NAME[/CONFIG][:VERSION]`, NAME known to tfds.
    folder: where prepared sets lie; created when missing.

  Raises:
    UserError: no such config or version, no network, a package that the preparation needs is
      missing, a manual download is needed, or the download failed.
  """
  spec = f'tfds:{name}'
  try:
    builder = tfds.builder(name, data_dir=folder, file_format='array_record')
  except (ValueError, AssertionError) as error:
    raise UserError(f'{spec}: {one_line(error)}') from error
  urls = list(builder.url_infos or ())
  if not urls and type(builder).__module__.startswith('tensorflow_datasets.'):
    urls = [DEFAULT_URL]
  if urls and not answers(urls[0]):
    raise UserError(
      f'{spec}: no answer from {urls[0]} within {NETWORK_SECONDS:g} s; where there is a network, '
      f'run: {command(name, folder)}'
    )
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    with _watched(tfds, f'preparing {spec}', builder):
      builder.download_and_prepare(download_config=config)
  except ImportError as error:
    raise UserError(
      f'{spec}: preparing needs the Python package {error.name!r} (reading will not); '
      f'install it and try again'
    ) from error
  except AssertionError as error:
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      raise
    raise UserError(f'{spec}: needs files that you download yourself: {one_line(error)}') from error
  except (OSError, tfds.download.DownloadError) as error:
    raise UserError(f'{spec}: preparing failed: {one_line(error)}') from error


@contextlib.contextmanager
def _watched(tfds: Any, description: str, builder: Any) -> Iterator[None]:
  """Shows the bytes that have reached the disk, in place of tfds's own bars."""
  total = int(builder.info.download_size or 0) + int(builder.info.dataset_size or 0)
  set_folder = pathlib.Path(builder.data_dir).parent
  folders = [pathlib.Path(builder.data_dir_root, 'downloads'), set_folder]
  before = sum(map(_folder_bytes, folders))
  stop = threading.Event()
  with Progress(total or None, description, unit='byte') as progress:

    def look() -> None:
      seen = before
      while not stop.wait(SECONDS_BETWEEN_LOOKS):
        now = sum(map(_folder_bytes, folders))
        progress.advance(max(now - seen, 0))
        seen = max(now, seen)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    tfds.display_progress_bar(False)
    start = time.monotonic()
    try:
      # tfds prints its notices; standard output belongs to the caller.
      with contextlib.redirect_stdout(io.StringIO()):
        yield
    finally:
      tfds.display_progress_bar(True)
      stop.set()
      thread.join()
  log.info('%s: done in %.0f s', description, time.monotonic() - start)


def _folder_bytes(folder: pathlib.Path) -> int:
  total = 0
  for parent, _, names in os.walk(folder):
    for name in names:
      # Files come and go while a set is prepared.
      with contextlib.suppress(OSError):
        total += os.lstat(os.path.join(parent, name)).st_size
  return total


def one_line(error: Exception) -> str:
  """The first line of what an exception says."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[0] if lines else type(error).__name__
