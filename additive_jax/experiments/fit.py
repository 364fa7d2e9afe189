"""Trains one pool to its end, through any number of interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from additive_jax.errors import Stopped, UserError
from additive_jax.experiments.left_out import LeftOut, NothingLearnt, check_learning, warn
from additive_jax.experiments.pending import Pace, Pending
from additive_jax.experiments.session import Session
from additive_jax.experiments.speed import Clock, say_speed
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.files.journal import Journal
from additive_jax.files.progress import Progress
from additive_jax.files.quantities import bytes_text
from additive_jax.files.waiting import waiting_for
from additive_jax.parallel import processes
from additive_jax.parallel.zero import bytes_rows
from additive_jax.train.recipe import Loss
from additive_jax.train.trainer import Trainer

log = logging.getLogger('additive_jax')


@dataclasses.dataclass(frozen=True)
class Curves:
  """What the curves of a training show beside its loss.

  Attributes:
    labels: one per slot, where a slot always trains the same structure; gives each a curve.
    probe: gives more values from the trainer, at every point.
    clock: takes the seconds of the steps up to every point, without compiling and probing; apart
      from the curves, which are the same each time. Tables that are made of seconds need all
      points, so a training goes on from before the first one that is lost.
  """

  labels: Sequence[str] = ()
  probe: Callable[[Any], dict[str, float]] | None = None
  clock: Journal | None = None


PLAIN = Curves()


def fit(session: Session, trainer: Any, num_steps: int, name: str, curves: Curves = PLAIN) -> None:
  """Runs a trainer up to step `num_steps`, from its newest checkpoint if there is one.

  Curves go to the run's metrics under `name`, checkpoints to `checkpoints/<name>`.

  Args:
    trainer: a `Trainer`, or a `Fleet`.
    curves: what the curves show beside the loss.

  Raises:
    Stopped: when the run was asked to stop; the state is saved.
    UserError: when all checkpoints are damaged, or nothing was finite: then there is no checkpoint,
      and the same call begins anew.
  """
  try:
    _fit(session, trainer, num_steps, name, curves)
  except NothingLearnt as error:
    session.metrics.truncate(name, 0)
    if processes.is_primary():
      shutil.rmtree(session.rundir.checkpoints / name, ignore_errors=True)
    raise UserError(str(error)) from None
  warn(_left_out(trainer, name))


def _left_out(trainer, name):
  """What a trainer or a fleet has left out up to now."""
  if isinstance(trainer, Trainer):
    skipped, slots = trainer.sharded_state.skipped, trainer.sampler.num_structures
  else:
    skipped, slots = trainer.state.skipped, trainer.size
  return LeftOut(name, int(processes.to_host(skipped).sum()), trainer.step * slots)


def _fit(session, trainer, num_steps, name, curves):
  """Does what `fit` does, but for what is said at its end."""
  with Checkpointer(session.rundir.checkpoints / name, identity=session.identity) as checkpoints:
    at_most = None
    if curves.clock is not None and processes.is_primary():
      at_most = _whole_to(session, name, curves.clock, num_steps)
    restored = checkpoints.restore(trainer.state, at_most=at_most)
    pending = Pending()
    if restored is not None:
      trainer.state, pending = restored.state, Pending(restored.meta.get('pending'))
      if isinstance(trainer, Trainer):
        trainer.go_on_from(restored.meta.get('data', {}))
    session.metrics.truncate(name, trainer.step)
    if curves.clock is not None and processes.is_primary():
      start = trainer.step
      curves.clock.keep(lambda line: line.get('tag') != name or line.get('step', 0) <= start)
    check_learning(_left_out(trainer, name), trainer.step, num_steps)
    if trainer.step >= num_steps:
      return
    if isinstance(trainer, Trainer):  # of a fleet each network has a device of its own
      log_bytes(name, trainer)
      trainer.last_step = num_steps
    clock = _steps(session, trainer, num_steps, name, curves, checkpoints, pending)
    checkpoints.save(num_steps, trainer.state, meta=_notes(trainer, pending), wait=True)
  say_speed(session, trainer, name, clock)


def _steps(session, trainer, num_steps, name, curves, checkpoints, pending):
  """Takes the steps up to `num_steps`, with points of the curves and checkpoints between them."""
  options, clock, pace = session.config.train, Clock(), Pace()
  every = options.steps_of_points(num_steps)
  compiling = _said_once(f'{name}: compiling, and taking its first steps')
  if curves.clock is not None:
    with next(compiling):
      trainer.warm_up()
  with Progress(num_steps, name, start=trainer.step, enabled=processes.is_primary()) as progress:
    while (step := trainer.step) < num_steps:
      if processes.agree(session.stopper.stop_requested):
        checkpoints.save(step, trainer.state, meta=_notes(trainer, pending), wait=True)
        raise Stopped(f'saved up to step {step} of {num_steps} of {name}')
      end = min(step - step % every + every, num_steps)
      count = pace.steps(end - step)
      started = time.perf_counter()
      with next(compiling):
        values = trainer.run(count)
      seconds = time.perf_counter() - started
      clock.add(count, seconds)
      pace.measured(count, seconds)
      pending.add(values, seconds)
      step += count
      if step < end:
        progress.advance(count)
        continue
      since, seconds = pending.num_steps, pending.seconds
      shown = point(pending.taken(), trainer.recipe.loss, curves.labels)
      shown |= curves.probe(trainer) if curves.probe else {}
      session.metrics.write(step, shown, name)
      if curves.clock is not None and processes.is_primary():
        curves.clock.append({'tag': name, 'step': step, 'seconds': seconds})
      progress.advance(count, **{'training loss': shown['loss']})
      check_learning(_left_out(trainer, name), step, num_steps)
      if step % options.checkpoint_every < since and step < num_steps:
        checkpoints.save(step, trainer.state, meta=_notes(trainer, pending))
  return clock


def _said_once(what):
  """Yields contexts, of which the first says what it waits for where that takes long."""
  if processes.is_primary():
    yield waiting_for(what)
  while True:
    yield contextlib.nullcontext()


def _notes(trainer, pending):
  """Returns what a checkpoint says beside the state: the place in an iterator that is read, and
  what was measured since the last point."""
  place = trainer.place_in_data() if isinstance(trainer, Trainer) else {}
  notes = {'data': place, 'pending': pending.notes()}
  return {name: value for name, value in notes.items() if value}


def lost_points(steps: Collection[int], num_steps: int, every: int) -> list[int]:
  """Returns the steps of a curve's points that are not there.

  >>> lost_points([5, 12], num_steps=12, every=5)
  [10]

  Args:
    steps: of the points that are there.
    num_steps: the last step.
    every: steps from one point to the next.
  """
  expected = [*range(every, num_steps, every), num_steps] if num_steps else []
  return [step for step in expected if step not in steps]


def _whole_to(session: Session, name: str, clock: Journal, num_steps: int) -> int:
  """Returns the last step up to which a checkpoint has all points of its curve and its clock before
  it; one between two points has what was measured since the first of them."""
  every = session.config.train.steps_of_points(num_steps)
  curves = session.metrics.read(session.rundir.path)
  steps = {line['step'] for line in clock.sound() if line.get('tag') == name}
  steps &= set(curves[curves['tag'] == name]['step']) if len(curves) else set()
  lost = lost_points(steps, num_steps, every)
  last = max((step for step in steps if not lost or step < lost[0]), default=0)
  return last if last >= num_steps else min(last - last % every + every, num_steps) - 1


def log_bytes(name: str, trainer: Trainer) -> None:
  """Logs what a training keeps on the device that has most of it, where no device has all."""
  state = trainer.sharded_state
  rows = pd.DataFrame(bytes_rows(state)).set_index('device')
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
  if rows[['parameters', 'optimizer']].sum(axis=1).max() < whole:
    sizes = [f'{bytes_text(size)} of {part}' for part, size in rows.max().items() if size]
    log.info('%s: a device keeps %s', name, ', '.join(sizes).replace('_', ' '))


def point(values: Mapping[str, Any], loss: Loss, labels: Sequence[str] = ()) -> dict[str, float]:
  """Returns one point of the curves: means over the finite slots of the steps since the last point,
  and what the loss says of its mean facts.
  """
  finite, count = values['finite'], np.maximum(values['finite'].sum(0), 1)
  total = np.where(finite, values['loss'], 0).sum(0)
  curves = {
    'loss': float(total.sum() / max(finite.sum(), 1)) if finite.any() else float('nan'),
    'gradient_norm': float(values['gradient_norm'].mean()),
    'skipped': int((~finite).sum()),
  }
  curves |= {f'loss/{label}': float(t / c) for label, t, c in zip(labels, total, count)}
  facts = jax.tree.map(lambda leaf: leaf.mean(0), values.get('facts', {}))
  return curves | loss.curves(facts)
