"""TensorBoard events that never hold up or end a run."""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

log = logging.getLogger('additive_jax')


class Events:
  """Writes the events of one run in folders, one for each tag.

  They are written in the caller's thread: a writer with a thread of its own waits for ever for one
  that died of a full disk. The first failure is told in a warning and ends the events, not the run,
  whose curves are lines elsewhere.

      events = Events(Path('runs/a/tensorboard'))
      events.write('train', 10, {'loss': 0.5})
      events.close()

  Args:
    folder: made when the first event is written.
  """

  def __init__(self, folder: Path):
    self._folder = folder
    self._writers: dict[str, RecordWriter] = {}
    self._purge_steps: dict[str, int] = {}
    self._broken = False

  def write(self, tag: str, step: int, values: Mapping[str, Any]) -> None:
    """Writes those values that are finite numbers; TensorBoard draws no others."""
    scalars = {
      name: value
      for name, value in values.items()
      if isinstance(value, int | float) and math.isfinite(value)
    }
    if self._broken or not scalars:
      return
    try:
      writer = self._writer(tag)
      for name, value in scalars.items():
        _add(writer, step=step, summary=scalar(name, value))
      writer.flush()
    except OSError as error:
      self._give_up(error)

  def purge(self, tag: str, step: int) -> None:
    """Lets TensorBoard forget what `tag` has from `step` on."""
    self._purge_steps[tag] = step
    self._close(tag)

  def close(self) -> None:
    """Closes the files."""
    for tag in list(self._writers):
      self._close(tag)

  def _writer(self, tag: str) -> RecordWriter:
    if tag not in self._writers:
      folder = self._folder / tag
      folder.mkdir(parents=True, exist_ok=True)
      # The nanoseconds: a run resumed within a second would overwrite the file.
      now = time.time_ns()
      name = f'events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}'
      writer = self._writers[tag] = RecordWriter(str(folder / name))
      _add(writer, file_version='brain.Event:2')
      if tag in self._purge_steps:
        start = SessionLog(status=SessionLog.START)
        _add(writer, step=self._purge_steps.pop(tag), session_log=start)
    return self._writers[tag]

  def _close(self, tag: str) -> None:
    if tag in self._writers:
      try:
        self._writers.pop(tag).close()
      except OSError as error:
        self._give_up(error)

  def _give_up(self, error: OSError) -> None:
    if not self._broken:
      reason = error.strerror or str(error)
      log.warning('%s: no more TensorBoard events (%s); the run goes on', self._folder, reason)
    self._broken = True
    while self._writers:
      with contextlib.suppress(OSError):
        self._writers.popitem()[1].close()


def _add(writer: RecordWriter, **fields: Any) -> None:
  writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
