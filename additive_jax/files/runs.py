"""Run directories as they lie on the disk: whose they are, what state they are in, what they say.

Reads files alone, so that a list of many runs comes at once: no JAX, no pandas.

  state     what the files say
  finished  `summary.json` says so
  running   a process holds a lock of the directory
  failed    `failed.json` has the error that ended the last start
  stopped   none of these: a signal or a kill, and the same command goes on
  damaged   `config.json` or `summary.json` is not what was written
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from additive_jax.errors import Stopped, UserError, one_line, user_errors, user_path
from additive_jax.files import seal
from additive_jax.files.lock import is_locked

CONFIG, SUMMARY, FAILED = 'config.json', 'summary.json', 'failed.json'
READABLE = 'a run directory that may be read'
DEPTH = 4  # of folders in which runs are looked for


@dataclasses.dataclass(frozen=True)
class Run:
  """A run directory at one moment.

  Attributes:
    path: the directory.
    config: the options it was begun with; {} where they are damaged.
    summary: its headline figures; {} until it is finished.
    state: finished, running, failed, stopped or damaged.
    note: the error of a failed run, what is damaged, or how far a run is saved; '' for nothing.
    began: when `config.json` was written, in seconds since 1970.
    written: when the directory was last written.
  """

  path: Path
  config: dict[str, Any]
  summary: dict[str, Any]
  state: str
  note: str
  began: float
  written: float

  @property
  def experiment(self) -> str:
    """The name of the experiment, or `?`."""
    return str(self.config.get('experiment', self.summary.get('experiment', '?')))

  @property
  def data(self) -> str:
    """The name of the data, or `?`."""
    section = self.config.get('data')
    name = section.get('name', '?') if isinstance(section, dict) else '?'
    return str(self.summary.get('data', name))


def is_run(path: Path) -> bool:
  """Tells whether a directory is that of a run: it has a config and journals, or a summary."""
  try:
    names = {entry.name for entry in os.scandir(path)}
  except OSError:
    return False
  return CONFIG in names and bool(names & {'journals', SUMMARY, 'environment.json'})


def read_run(path: str | Path) -> Run:
  """Returns what the files of a run say now.

  Raises:
    UserError: there is no such directory, it is none of a run, or may not be read.
  """
  folder = user_path(path, 'run')
  if not folder.is_dir():
    raise UserError(f'{path}: no such directory; expected that of a run')
  with user_errors('read', folder, READABLE):
    if not is_run(folder):
      inner = [one.name for one in _directories(folder, 1)]
      hint = f'; it holds {", ".join(inner[:3])}{", …" if len(inner) > 3 else ""}' if inner else ''
      raise UserError(f'{path}: expected a run directory, which has a {CONFIG} and journals{hint}')
    config, bad_config = _object(folder / CONFIG)
    summary, bad_summary = _object(folder / SUMMARY)
    state, note = _state(folder, summary, bad_config or bad_summary)
    began, written = (folder / CONFIG).stat().st_mtime, _last_written(folder)
  summary.pop('sha256', None)
  return Run(folder, config, summary, state, note, began, written)


def find_runs(folder: str | Path) -> list[Run]:
  """Returns the runs in a folder and in those below it, the last written first.

  Raises:
    UserError: there is no such folder.
  """
  path = user_path(folder, 'folder')
  if not path.is_dir():
    raise UserError(f'{folder}: no such directory; expected one with run directories')
  runs = [read_run(one) for one in _directories(path, DEPTH)]
  return sorted(runs, key=lambda run: -run.written)


def _directories(path: Path, depth: int) -> Iterator[Path]:
  """Yields the run directories in a folder, not those within another run."""
  if is_run(path):
    yield path
    return
  with contextlib.suppress(OSError):
    folders = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir()]
    for folder in sorted(folders) if depth else ():
      if not folder.name.startswith('.'):
        yield from _directories(folder, depth - 1)


def _object(path: Path) -> tuple[dict[str, Any], str]:
  """Returns the object of a JSON file, and what is wrong with it; nothing for a missing file."""
  if not path.exists():
    return {}, ''
  try:
    return seal.parsed(path.read_bytes())[0], ''
  except seal.DamagedError as error:
    return {}, f'{path.name} is damaged ({error})'


def _state(folder: Path, summary: dict[str, Any], problem: str) -> tuple[str, str]:
  """Returns the state of a run and a note on it."""
  if problem:
    return 'damaged', problem
  if summary.get('finished'):
    return 'finished', ''
  if any(is_locked(path) for path in folder.glob('*.lock')):
    return 'running', saved(folder)
  failure = _object(folder / FAILED)[0]
  if failure:
    return 'failed', str(failure.get('error', ''))
  return 'stopped', saved(folder)


def saved(folder: Path) -> str:
  """Returns how far the training is saved that saved last, in words; '' for none."""
  checkpoints = folder / 'checkpoints'
  steps = [path for path in checkpoints.glob('*/[0-9]*') if path.name.isdigit()]
  with contextlib.suppress(OSError):
    if newest := max(steps, key=lambda path: path.stat().st_mtime, default=None):
      training = newest.parent.relative_to(checkpoints)
      return f'saved up to step {newest.name} of {training}'
  return ''


def _last_written(folder: Path) -> float:
  files = [*folder.glob('*.json'), *folder.glob('*.jsonl'), *folder.glob('journals/*.jsonl')]
  return max(path.stat().st_mtime for path in files)


@contextlib.contextmanager
def noting_failure(folder: Path, primary: bool = True) -> Iterator[None]:
  """Leaves the error that ends the block in `failed.json`, and takes away an earlier one.

  A stop is none, since the same command goes on; nor is an interrupt.

  Args:
    folder: the run's directory.
    primary: False in every process but the first of several, which write nothing.
  """
  path = folder / FAILED
  if primary:
    path.unlink(missing_ok=True)
  try:
    yield
  except Stopped:
    raise
  except Exception as error:
    if primary:
      # What failed may be the disk.
      with contextlib.suppress(OSError):
        text = f'{type(error).__name__}: {one_line(error)}'
        path.write_text(json.dumps(seal.sealed({'error': text})) + '\n')
    raise


class Lines:
  """The objects in the lines of growing JSON files, each given once.

  A file that has become shorter, since a run went on from before its end, is read from its start.

  Args:
    folder: where the files are.
    patterns: of their names.
  """

  def __init__(self, folder: Path, *patterns: str):
    self._folder, self._patterns = folder, patterns
    self._places: dict[Path, int] = {}

  def new(self) -> Iterable[tuple[Path, dict[str, Any]]]:
    """Yields each file with each of its whole lines that was not there before."""
    for pattern in self._patterns:
      for path in sorted(self._folder.glob(pattern)):
        with contextlib.suppress(OSError), open(path, 'rb') as file:
          start = self._places.get(path, 0)
          file.seek(start if start <= os.fstat(file.fileno()).st_size else 0)
          content = file.read()
          whole = content[: content.rfind(b'\n') + 1]
          self._places[path] = file.tell() - len(content) + len(whole)
          for line in whole.splitlines():
            with contextlib.suppress(seal.DamagedError):
              yield path, seal.parsed(line)[0]
