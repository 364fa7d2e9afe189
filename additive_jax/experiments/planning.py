"""What a step of each pool of a config takes, before anything is trained or written."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from additive_jax.batches import shapes_of
from additive_jax.experiments.arms import Arm
from additive_jax.experiments.opening import checked_parts, start_session
from additive_jax.experiments.options import Options, read_options
from additive_jax.experiments.records import Records
from additive_jax.experiments.session import Session
from additive_jax.experiments.studies import STUDIES
from additive_jax.files.rundir import RunDir
from additive_jax.models.identity import describe
from additive_jax.parallel import mesh
from additive_jax.train.plan import Plan, plan
from additive_jax.train.recipe import Recipe
from additive_jax.train.samplers import Sampler, make_sampler

# Experiments that may train before they know what their largest pool is: it is planned by itself.
OF_SAMPLER = ('sweep', 'cotrain')


def plan_config(config: ConfigDict | Options, devices: int = 0) -> Iterator[tuple[str, Plan]]:
  """Yields what a step of each pool takes that a config trains first, with its name; see
  `train.plan`.

  Of Exp 1 and Exp 2 it is the pool of which each step trains several structures; of the others the
  pools of their first stage. What later stages train depends on what was trained before.

  >>> from additive_jax.experiments.options import replaced
  >>> options = replaced(Options(experiment='sweep'), {'model.num_blocks': 2, 'model.width': 8})
  >>> [(name, found.num_structures) for name, found in plan_config(options, devices=1)]
  [('pool', 4)]

  Args:
    config: as in `configs/default.py`.
    devices: how many; 0 is all.

  Raises:
    UserError: for options that make no sense.
  """
  config = read_options(config)
  chosen = mesh.pick_devices(devices)
  data, model, task = checked_parts(config, chosen, {})
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    started = start_session(config, RunDir(Path(folder)), data, model, chosen, task=task)
    for name, session, recipe, sampler in _pools(stack.enter_context(started)):
      yield name, _planned(session, recipe, sampler)


def _pools(session: Session) -> Iterator[tuple[str, Session, Recipe, Sampler]]:
  """Yields the pools that are planned, those that differ."""
  config = session.config
  if config.experiment in OF_SAMPLER:
    steps = session.training.steps(config.train.epochs)
    sampler = session.training.sampler(steps)
    if config.experiment == 'cotrain':
      together = config.cotrain.top_k or len(config.structures)
      sampler = make_sampler('uniform', session.space.num_gates, together)
    yield 'pool', session, session.training.recipe(steps), sampler
    return
  study = STUDIES[config.experiment]
  study.check(session)
  records = Records(session.rundir, study.name, session.seeds, session.task.scores)
  known: list[Any] = []
  for arm in next(iter(study.stages(session, records)), ()):
    alike = [arm.recipe, describe(arm.sampler)] if isinstance(arm, Arm) else None
    if alike and alike not in known:
      known.append(alike)
      yield arm.name, arm.session, arm.recipe, arm.sampler


def _planned(session: Session, recipe: Recipe, sampler: Sampler) -> Plan:
  """Returns the plan of a step as the run's trainer takes it, on its mesh."""
  train = session.config.train
  placement = session.machine.placement(session.model, recipe, sampler)
  assert placement.mesh is not None
  x, y = shapes_of(session.data.train[np.zeros(1, np.int64)], train.batch_size)
  options = {'zero': placement.zero, 'offload': placement.offload}
  return plan(recipe, sampler, x, y, placement.mesh, shared_batch=train.shared_batch, **options)
