"""Narrow models as processes of their own: each trains at its own pace and leaves checkpoints; the
large model takes the newest sound one of each.

A process is `python -m additive_jax.experiments.booster.process`, told in JSON on its standard
input what to train, and ends, with everything saved, when that is closed: no process outlives the
run that started it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from additive_jax.errors import STOPPED, Stopped, UserError, one_line
from additive_jax.experiments.booster.narrow import CLOCK, Narrow
from additive_jax.experiments.fit import Curves, fit
from additive_jax.experiments.network import make_model
from additive_jax.experiments.opening import load_data, start_session
from additive_jax.experiments.options import read_options
from additive_jax.experiments.session import Session
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.files.journal import to_plain
from additive_jax.files.lock import locked
from additive_jax.files.progress import setup_logging
from additive_jax.files.rundir import RunDir
from additive_jax.models.identity import describe
from additive_jax.parallel.mesh import pick_devices
from additive_jax.train.state import State

log = logging.getLogger('additive_jax')

POLL = 0.2  # seconds between two looks at the processes
# Seconds that a process is given to save and end, and that one waits for a predecessor to let go of
# its directory.
PATIENCE = 60


def check_processes(session: Session) -> None:
  """Raises `UserError` for a model or data that other processes cannot make from the config."""
  config = session.config
  data = load_data(config.data, config.task.ignore_label)
  if data.name != session.data.name or describe(make_model(config.model, data)) != describe(
    session.model
  ):
    raise UserError(
      'config.booster.asynchronous True with a model or data that the config does not name: '
      'expected config.model and config.data, from which every process makes its own'
    )


def train_apart(
  narrow: Narrow, groups: Sequence[Int[np.ndarray, ' n']], seed: int, name: str
) -> list[tuple[State, int]]:
  """Trains every copy in a process of its own, and takes the newest sound checkpoint of each.

  Waits until `config.booster.quorum` of the copies have taken all their steps, or no process is
  left; what still runs is then stopped. A process that died takes part with what it had saved.

  Returns:
    The state and the steps of each copy that has a checkpoint.

  Raises:
    Stopped: when the run was asked to stop.
    UserError: where no copy left a checkpoint.
  """
  names = [f'{name}-{i}' for i in range(narrow.num_models)]
  session = narrow.large
  needed = math.ceil(session.config.booster.quorum * len(names))
  processes = []
  try:
    for _ in names:
      processes.append(_start())
    # Told when all have started: a process reads what it is told only once it has loaded JAX.
    for i, (process, tag) in enumerate(zip(processes, names)):
      _tell(process, session, groups[i], seed, tag, i)
    while True:
      codes = [process.poll() for process in processes]
      if sum(code == 0 for code in codes) >= needed or None not in codes:
        break
      session.check_stop()
      time.sleep(POLL)
  finally:
    for process in processes:
      with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    codes = [_ended(process) for process in processes]
  copies = []
  for tag, code in zip(names, codes):
    copy = newest(narrow, tag)
    step = copy[1] if copy else 0
    if step < narrow.num_steps:
      ending = 'was stopped' if code == STOPPED else f'ended with code {code}'
      where = f'{step} of {narrow.num_steps}' + ('' if step else '; left out')
      log.warning('%s: its process %s at step %s', tag, ending, where)
    if copy:
      copies.append(copy)
  if not copies:
    raise UserError(
      f'{session.rundir.checkpoints}: no process of {", ".join(names)} left a checkpoint, see what '
      'they said; expected at least one'
    )
  return copies


def newest(narrow: Narrow, name: str) -> tuple[State, int] | None:
  """Returns the state in a copy's newest sound checkpoint and its step; None where it has none, or
  one of step 0."""
  fleet = narrow.fleet([np.arange(1)], 0, devices=narrow.large.machine.devices[:1])
  folder = narrow.large.rundir.checkpoints / name
  with Checkpointer(folder, identity=narrow.session.identity) as checkpoints:
    try:
      restored = checkpoints.restore(fleet.state)
    except UserError as error:
      log.warning('%s is left out: %s', name, error)
      return None
  if restored is None or not restored.step:
    return None
  fleet.state = restored.state
  return fleet.members()[0], restored.step


def _start():
  """Starts the process of one copy."""
  environment = dict(os.environ)
  # One device each; on an accelerator they share its memory with the run that started them.
  flags = environment.get('XLA_FLAGS', '').split()
  forced = '--xla_force_host_platform_device_count'
  flags = [flag for flag in flags if not flag.startswith(forced)] + [f'{forced}=1']
  environment |= {'XLA_FLAGS': ' '.join(flags), 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  return subprocess.Popen(
    [sys.executable, '-m', __spec__.name],
    stdin=subprocess.PIPE,
    text=True,
    env=environment,
  )


def _tell(process, session, rows, seed, name, index):
  """Tells the process of a copy what to train."""
  order = {
    'config': to_plain(dataclasses.asdict(session.config)),
    'rundir': str(session.rundir.path),
    'seed': seed,
    'name': name,
    'index': index,
    'rows': rows.tolist(),
  }
  with contextlib.suppress(BrokenPipeError):  # one that died already holds up no other
    process.stdin.write(json.dumps(order) + '\n')
    process.stdin.flush()


def _ended(process) -> int:
  """The exit code of a process that was told to end; one that does not is killed."""
  try:
    return process.wait(PATIENCE)
  except subprocess.TimeoutExpired:
    process.kill()
    return process.wait()


def main() -> int:
  """Trains one copy; returns the exit code: 0 when it has taken all its steps, `STOPPED` when it
  was told to stop before, 2 for a mistake in what was asked."""
  setup_logging()
  line = sys.stdin.readline()
  if not line.endswith('\n'):
    return STOPPED  # the run that started it ended before it had told
  order = json.loads(line)
  threading.Thread(target=_stop_with_parent, daemon=True).start()
  try:
    _work(order)
  except Stopped:
    return STOPPED
  except UserError as error:
    print(f'error: {one_line(error)}', file=sys.stderr)
    return 2
  return 0


def _stop_with_parent():
  sys.stdin.read()
  os.kill(os.getpid(), signal.SIGTERM)


def _work(order):
  """Trains the copy that `_start` told of."""
  config, index, name = read_options(order['config']), order['index'], order['name']
  data, rundir = load_data(config.data, config.task.ignore_label), RunDir(order['rundir'])
  model, part = make_model(config.model, data), (index, config.booster.num_models)
  start = start_session(config, rundir, data, model, pick_devices(0)[:1], part=part)
  with start as session, _alone(rundir.checkpoints / name):
    narrow = Narrow.of(session, config.booster.num_models)
    fleet = narrow.fleet([np.array(order['rows'])], order['seed'], names=[index])
    clock = narrow.clock(f'{name}-{CLOCK}')
    fit(narrow.session, fleet, narrow.num_steps, name, Curves(clock=clock))


@contextlib.contextmanager
def _alone(folder: Path):
  """Holds the checkpoints of one copy; waits a while for a process that is about to end."""
  folder.mkdir(parents=True, exist_ok=True)
  deadline = time.monotonic() + PATIENCE
  while True:
    with contextlib.ExitStack() as held:
      try:
        held.enter_context(locked(folder))
      except UserError:
        if time.monotonic() > deadline:
          raise
        time.sleep(POLL)
        continue
      yield
      return


if __name__ == '__main__':
  sys.exit(main())
