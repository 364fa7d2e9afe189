"""A TensorFlow Datasets set on disk as ArrayRecord: found without the network, or prepared.

Preparing is the library's own `download_and_prepare`. Its command `tfds build` would do the same,
but cannot be started without TensorFlow (4.9.10), so the command for a set that is not prepared
calls `load` with `download=True`.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
import os
import shlex
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from additive_jax.errors import UserError

log = logging.getLogger('additive_jax')

# Sets whose builder doesn't record its URLs are downloaded from hosts that only the builder knows.
DEFAULT_URL = 'https://storage.googleapis.com'
NETWORK_SECONDS = 3.0


def find(tfds: ModuleType, name: str, folder: str) -> Any:
  """Returns the builder of a prepared set, from its files alone, or None.

  Args:
    tfds: the module tensorflow_datasets.
    name: `NAME[/CONFIG][:VERSION]`.
    folder: where prepared sets are.

  Raises:
    UserError: for a name of another form, or a file that is damaged.
  """
  if not tfds.core.naming.is_valid_dataset_name(name):
    raise UserError(f'tfds:{name}: expected tfds:NAME[/CONFIG][:VERSION]')
  with undamaged(name, folder):
    _check_classes(tfds, name, folder)
    try:
      return tfds.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
      return None


def _check_classes(tfds, name, folder):
  """Raises `UserError` for a set whose files name features of a module that has not been imported:
  tensorflow_datasets would import it."""
  known = getattr(tfds.features.FeatureConnector, '_registered_features', {})
  parsed, _ = tfds.core.naming.parse_builder_name_kwargs(name)
  for path in sorted(Path(folder, parsed.name).rglob('features.json')):
    for kind in _strings(json.loads(path.read_bytes()), ('pythonClassName', 'type')):
      if '.' in kind and kind not in known and not kind.startswith('tensorflow_datasets.'):
        raise UserError(
          f'tfds:{name}: {path} names {kind!r}; expected features of tensorflow_datasets, or of a '
          'module that you have imported'
        )


def _strings(value, keys):
  """Yields the texts that stand under some keys anywhere in a JSON value."""
  if isinstance(value, dict):
    for key, item in value.items():
      if key in keys and isinstance(item, str):
        yield item
      yield from _strings(item, keys)
  elif isinstance(value, list):
    for item in value:
      yield from _strings(item, keys)


@contextlib.contextmanager
def undamaged(name: str, folder: str) -> Iterator[None]:
  """Turns what the readers raise at a file that is missing or damaged into one line."""
  from google.protobuf import json_format

  try:
    yield
  except (json_format.ParseError, json.JSONDecodeError, OSError, RuntimeError) as error:
    raise UserError(
      f'tfds:{name}: the prepared set in {folder!r} cannot be read: {_first_line(error)}'
    ) from error


def check_name(tfds: ModuleType, name: str, folder: str) -> None:
  """Raises `UserError` unless `name`, which isn't prepared in `folder`, can be prepared.

  Whether a config or version exists is known only to the builder, which preparing makes.
  """
  parsed, kwargs = tfds.core.naming.parse_builder_name_kwargs(name)
  if parsed.namespace or set(kwargs) - {'config', 'version'}:
    raise UserError(f'tfds:{name}: expected tfds:NAME[/CONFIG][:VERSION]')
  # Community sets are listed over the network, so they are left out.
  known = tfds.list_builders(with_community_datasets=False)
  if parsed.name in known:
    return
  path = os.path.join(folder, parsed.name)
  if os.path.isdir(path):
    versions = ', '.join(sorted(os.listdir(path)))
    raise UserError(f'tfds:{name}: no such config or version; {path!r} has {versions}')
  close = difflib.get_close_matches(parsed.name, known, n=1)
  hint = f'did you mean {close[0]!r}?' if close else 'tfds.list_builders() lists them'
  raise UserError(
    f'tfds:{name}: unknown set; expected one of the {len(known)} of TensorFlow Datasets ({hint})'
  )


def command(name: str, folder: str) -> str:
  """Returns the shell command that prepares `tfds:<name>` in `folder`."""
  # JSON strings are Python strings, and their double quotes survive the shell's single ones.
  spec, data_dir = json.dumps(f'tfds:{name}'), json.dumps(folder)
  load = f'data.load({spec}, data_dir={data_dir}, download=True, valid=0.0)'
  code = f'from additive_jax import data; {load}'
  return shlex.join(['python', '-c', code])


def answers(url: str, seconds: float = NETWORK_SECONDS) -> bool:
  """Returns whether anything, an error page included, answers for `url` within `seconds`.

  Without a network the library itself tries for 205 seconds.
  """
  reached = threading.Event()

  def ask() -> None:
    try:
      urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=seconds).close()
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


def prepare(tfds: ModuleType, name: str, folder: str) -> None:
  """Downloads and prepares `tfds:<name>` in `folder`, with the library's own bars.

  Args: those of `find`; `folder` is created when missing.

  Raises:
    UserError: no such config or version, no network, a package that the preparation needs is
      missing, a manual download is needed, or the download failed.
  """
  spec = f'tfds:{name}'
  try:
    builder = tfds.builder(name, data_dir=folder, file_format='array_record')
  except (ValueError, AssertionError) as error:
    raise UserError(f'{spec}: {_first_line(error)}') from error
  urls = list(builder.url_infos or ())
  if not urls and type(builder).__module__.startswith('tensorflow_datasets.'):
    urls = [DEFAULT_URL]
  if urls and not answers(urls[0]):
    raise UserError(
      f'{spec}: no answer from {urls[0]} within {NETWORK_SECONDS:g} s; where there is a network, '
      f'run: {command(name, folder)}'
    )
  log.info('preparing %s in %s', spec, folder)
  start = time.monotonic()
  tfds.display_progress_bar(sys.stderr.isatty())  # in a log file a bar is many lines
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  try:
    # tfds prints its notices; standard output belongs to the caller.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_config=config)
  except ImportError as error:
    raise UserError(
      f'{spec}: preparing needs the Python package {error.name!r} (reading will not); '
      f'install it and try again'
    ) from error
  except AssertionError as error:
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      raise
    text = _first_line(error)
    raise UserError(f'{spec}: needs files that you download yourself: {text}') from error
  except (OSError, tfds.download.DownloadError) as error:
    raise UserError(f'{spec}: preparing failed: {_first_line(error)}') from error
  log.info('prepared %s in %.0f s', spec, time.monotonic() - start)


def _first_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[0] if lines else type(error).__name__
