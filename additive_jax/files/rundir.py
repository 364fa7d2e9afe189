"""The directory of a run: one resolved config, and everything the run leaves.

Files appear whole or not at all (written beside, synchronised, renamed), so a kill at any moment
leaves a directory that the same command can go on with.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import math
import os
import platform
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from additive_jax.errors import UserError, one_line, user_errors
from additive_jax.files import runs, seal, temporaries
from additive_jax.files.journal import replace_file, to_plain
from additive_jax.version import __version__

Config = Mapping[str, Any]  # nested, of values that `to_plain` takes

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
  'pandas',
  'tensorflow-datasets',
)
WRITABLE = 'a directory that may be written'
READABLE = 'a file that the run has written'
DIGESTS = 'sha256'  # of finished files, by name, in `summary.json`
TEXTS = 'structure', 'arm'  # columns of tables that are texts, though some look like numbers

log = logging.getLogger('additive_jax')


def config_hash(config: Config, exclude: Collection[str] = ('shard',)) -> str:
  """Returns eight hex digits of the SHA-256 of `config` as canonical JSON, without some keys.

  >>> config_hash({'lr': 1e-3, 'shard': '0/2'}) == config_hash({'shard': '1/2', 'lr': 0.001})
  True

  Args:
    config: the resolved config.
    exclude: dotted names of keys that do not change what the run computes together with its sister
      processes.
  """
  text = json.dumps(flatten(config, exclude), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def default_workdir(name: str, config: Config, exclude: Collection[str] = ('shard',)) -> Path:
  """Returns `runs/<name>-<hash>`: the same config continues there, another gets its own."""
  return Path('runs') / f'{name}-{config_hash(config, exclude)}'


def differences(stored: Config, current: Config, limit: int = 3) -> list[str]:
  """Returns what tells two configs apart, at most `limit` texts.

  >>> differences({'model': {'width': 64}, 'lr': 0.1}, {'model': {'width': 32}})
  ['model.width: 64 there, 32 here', 'lr: 0.1 there, absent here']
  """
  stored, current = flatten(stored), flatten(current)
  texts = []
  for key in [*stored, *(k for k in current if k not in stored)]:
    values = [json.dumps(side[key]) if key in side else 'absent' for side in (stored, current)]
    if values[0] != values[1]:
      texts.append(f'{key}: {values[0]} there, {values[1]} here')
  return texts[:limit]


def flatten(config: Config, exclude: Collection[str] = ()) -> dict[str, Any]:
  """Returns `{dotted key: value}` of a config, without the keys in `exclude` and those below them.

  >>> flatten({'model': {'width': 64, 'kwargs': {}}, 'shard': ''}, ['shard'])
  {'model.width': 64, 'model.kwargs': {}}
  """
  flat = {}

  def walk(keys: tuple[str, ...], value: Any) -> None:
    if isinstance(value, dict) and (value or not keys):
      for key, item in value.items():
        walk((*keys, key), item)
    else:
      flat['.'.join(keys)] = value

  walk((), to_plain(config))
  dropped = tuple(f'{key}.' for key in exclude)
  return {k: v for k, v in flat.items() if not f'{k}.'.startswith(dropped)}


class RunDir:
  """A run's directory; made by `RunDir.open`.

  Attributes:
    path: the directory.
    checkpoints: directory for the checkpoints.
    journals: directory for journals of finished pieces of work.
    primary: False in every process but the first of several; its write methods do nothing.
  """

  def __init__(self, path: str | Path, primary: bool = True):
    self.path = Path(path)
    self.checkpoints = self.path / 'checkpoints'
    self.journals = self.path / 'journals'
    self.primary = primary

  @classmethod
  def open(
    cls,
    path: str | Path,
    config: Config,
    *,
    exclude: Collection[str] = ('shard',),
    primary: bool = True,
    hold: Callable[[Path], object] | None = None,
  ) -> RunDir:
    """Makes the directory, or goes on with the run of the same config that it holds.

    Writes `config.json` on first use and `environment.json` (versions and devices) until the run is
    finished.

    Args:
      path: the directory.
      config: the resolved config.
      exclude: dotted names of keys in which the config may differ from the one the directory was
        made with.
      primary: False in every process but the first of several: nothing is written, a config that is
        there is compared.
      hold: called with the path once the directory is known to be this config's, unless the run is
        finished or this is no primary process; what it raises leaves everything as it was.

    Raises:
      UserError: the directory holds a run of another config or files of something else, or cannot
        be written.
    """
    run = cls(path, primary)
    with user_errors('use', run.path, WRITABLE):
      if primary:
        run.path.mkdir(parents=True, exist_ok=True)
        run._claim(config)
      has_config = (run.path / 'config.json').exists()
    if has_config:
      stored = flatten(run.read_json('config.json'), exclude)
      if different := differences(stored, flatten(config, exclude)):
        raise UserError(
          f'{run.path} holds a run of another config: {"; ".join(different)};'
          ' choose another --workdir'
        )
    if primary and not run.finished:
      if problem := run.damage():
        log.warning('%s; it is made again', problem)
      if hold is not None:
        hold(run.path)
      with user_errors('use', run.path, WRITABLE):
        run.checkpoints.mkdir(exist_ok=True)
        run.journals.mkdir(exist_ok=True)
        left = [path for depth in ('', '*/', '*/*/') for path in run.path.glob(f'{depth}.*.tmp')]
        temporaries.remove_stale(left)
      run.write_json('environment.json', _environment())
    return run

  def write_text(self, name: str, text: str) -> None:
    """Writes `text` to the file `name` of the directory, whole or not at all."""
    if self.primary:
      with user_errors('write', self.path / name, WRITABLE):
        if not self.path.is_dir():
          raise FileNotFoundError(errno.ENOENT, 'the run directory was removed')
        replace_file(self.path / name, text.encode())

  def write_json(self, name: str, value: Mapping[str, Any]) -> None:
    """Writes what `to_plain` takes as indented JSON, with a checksum; what is not finite becomes
    null."""
    if self.primary:
      self.write_text(name, _sealed_text(_without_nan(to_plain(value))))

  def write_table(self, name: str, frame: pd.DataFrame) -> None:
    """Writes `frame` as CSV, without its index; `read_table` gives the same floats."""
    if self.primary:
      # The shortest text of a float32 is not the shortest of the same number as float64.
      narrow = frame.select_dtypes(include=['float16', 'float32']).columns
      frame = frame.astype(dict.fromkeys(narrow, np.float64))
      self.write_text(name, frame.to_csv(index=False, lineterminator='\n'))

  def read_table(self, name: str) -> pd.DataFrame:
    """Returns the frame that `write_table` wrote; the columns `structure` and
    `arm` are text (`0110`).

    Raises:
      UserError: it is missing or no table.
    """
    path = self.path / name
    with user_errors('read', path, READABLE):
      content = path.read_bytes()
    try:
      frame = pd.read_csv(io.BytesIO(content), dtype=dict.fromkeys(TEXTS, str))
      text = pd.read_csv(io.BytesIO(content), dtype=str)
      # Python reads floats exactly; pandas 2 only if told to, and pandas 3 must not be told.
      floats = frame.select_dtypes('float').columns
      return frame.assign(**{column: text[column].astype(np.float64) for column in floats})
    except ValueError as error:  # what pandas raises for text that is no table is one too
      raise UserError(f'{path} is no table ({one_line(error)}); expected {READABLE}') from error

  def read_json(self, name: str) -> Any:
    """Returns the content of the JSON file `name`, without its checksum.

    Raises:
      UserError: it is missing or not what was written.
    """
    path = self.path / name
    with user_errors('read', path, READABLE):
      content = path.read_bytes()
    try:
      return seal.parsed(content)[0]
    except seal.DamagedError as error:
      raise UserError(
        f'{path} is damaged ({error}); expected {READABLE}: take it from a copy, or choose another '
        '--workdir'
      ) from error

  def saved(self) -> str:
    """Returns how far the training is saved that saved last, in words; '' for none."""
    return runs.saved(self.path)

  @property
  def finished(self) -> bool:
    """Whether the run has reached its end, and all that it then wrote is still that."""
    return self._has_summary() and self._finished_files()[1] == ''

  def damage(self) -> str:
    """Returns which file of a run that reached its end is not what was written, in words; '' for
    none, and for a run that did not."""
    return self._finished_files()[1] if self._has_summary() else ''

  def mark_finished(self, summary: Mapping[str, Any], files: Sequence[str] = ()) -> None:
    """Writes `summary.json`: the headline figures, `finished: true`, and digests of other files,
    which are compared when the run is read."""
    if self.primary:
      with user_errors('read', self.path, READABLE):
        digests = {name: seal.digest(self.path / name) for name in files}
      beside = {DIGESTS: digests} if digests else {}
      self.write_json('summary.json', {**summary, 'finished': True, **beside})

  def read_finished(self) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Returns the summary and the tables, by name, of a run that reached its end.

    Raises:
      UserError: a file is missing or not what was written.
    """
    names, problem = self._finished_files()
    if problem:
      raise UserError(f'{problem}; expected {READABLE}: its command makes it again')
    summary = self.read_json('summary.json')
    digests = summary.pop(DIGESTS, None)
    names = [path.name for path in self.path.glob('*.csv')] if digests is None else list(digests)
    tables = [name for name in names if name.endswith('.csv')]
    return summary, {name.removesuffix('.csv'): self.read_table(name) for name in tables}

  def _has_summary(self) -> bool:
    with user_errors('use', self.path, WRITABLE):
      return (self.path / 'summary.json').exists()

  def _finished_files(self) -> tuple[list[str], str]:
    """Returns the files whose digests `summary.json` has, and which is not what was written."""
    try:
      summary = self.read_json('summary.json')
    except UserError as error:
      return [], str(error).partition(';')[0]
    if not summary.get('finished'):
      return [], f'{self.path / "summary.json"} does not say finished'
    digests = summary.get(DIGESTS, {})
    for name, digest in digests.items():
      path = self.path / name
      with user_errors('read', path, READABLE):
        if not path.exists():
          return list(digests), f'{path} is missing'
        if seal.digest(path) != digest:
          return list(digests), f'{path} is damaged, as its digest tells'
    return list(digests), ''

  def _claim(self, config: Config) -> None:
    """Writes `config.json` unless there is one; refuses a directory of something else."""
    path = self.path / 'config.json'
    # Listed before looking for the config: a sister process may be claiming the directory just now.
    names = [p.name for p in self.path.iterdir()]
    foreign = [n for n in names if not (n.startswith('.') and n.endswith('.tmp'))]
    if path.exists():
      return
    if foreign:
      raise UserError(
        f'{self.path} is not empty and holds no run (no config.json, but {min(foreign)});'
        ' choose another --workdir'
      )
    replace_file(path, _sealed_text(to_plain(config)).encode(), keep_existing=True)


def _sealed_text(value: dict[str, Any]) -> str:
  return json.dumps(seal.sealed(value), indent=2) + '\n'


def _without_nan(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _without_nan(item) for key, item in value.items()}
  if isinstance(value, list):
    return [_without_nan(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _environment() -> dict[str, Any]:
  """Versions, platform and devices, without names of users, machines or folders."""
  import jax  # not by who reads a directory alone

  devices = jax.devices()
  # Some flags name a folder.
  flags = re.sub(r'=\S*[/\\]\S*', '=<path>', os.environ.get('XLA_FLAGS', ''))
  return {
    'python': platform.python_version(),
    'platform': f'{platform.system()} {platform.machine()}',
    'versions': {'additive_jax': __version__} | {name: version(name) for name in PACKAGES},
    'backend': jax.default_backend(),
    'devices': sorted({d.device_kind for d in devices}),
    'device_count': len(devices),
    'process_count': jax.process_count(),
    'cpu_count': os.cpu_count(),
    'XLA_FLAGS': flags,
  }
