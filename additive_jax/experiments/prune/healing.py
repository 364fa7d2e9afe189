"""A short training of the structures that were chosen, taught by the network that they are of.

pool ─▶ all-on's last streams of the training examples, kept
  └──▶ K structures in one pool, each by labels and by what the readout makes of these streams
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree, Shaped

from additive_jax.batches import num_examples, rows
from additive_jax.data import ArraySplit
from additive_jax.data.weights import Weighted, unweighted
from additive_jax.errors import UserError
from additive_jax.experiments.arms import Arm, Start, Trained
from additive_jax.experiments.session import Session, first_input
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import embed, sites_of, update
from additive_jax.models.batch_norm import BATCH_STATS
from additive_jax.models.reads import parts
from additive_jax.models.side import stream_of
from additive_jax.models.surrounding import without_dropout
from additive_jax.run.objectives import Distilled, Taught
from additive_jax.run.tasks import LABELLED, Task
from additive_jax.train import samplers
from additive_jax.train.losses import FromStream
from additive_jax.train.recipe import Recipe
from additive_jax.train.state import init_state

log = logging.getLogger('additive_jax')

TEACHER = 'teacher'  # what a data set with a teacher's streams is of
TEACHER_BATCH = 64
Judge = Callable[[Trained], dict[str, Any]]


def healing_arm(
  session: Session, name: str, variables: PyTree, structures: Sequence[Structure], judge: Judge
) -> Arm:
  """Returns the arm in which structures are healed together; with 0 epochs they stay as they are.

  Args:
    session: the run.
    name: of the arm.
    variables: the pool that it starts from, and whose all-on teaches.
    structures: trained in every step, each on its own examples.
    judge: see `Arm`.
  """
  options = session.config.prune
  slots = session.with_options({'train.structures_per_step': len(structures)})
  steps = slots.training.steps(options.heal_epochs) if options.heal_epochs else 0
  recipe = slots.training.recipe(max(steps, 1))
  pool = {part: variables[part] for part in ('params', BATCH_STATS) if part in variables}
  taught: Callable[[], Session | None] = lambda: None
  if steps and has_teacher(session):
    recipe = _taught_recipe(slots, recipe)
    taught = functools.cache(functools.partial(_taught, slots, pool))
  sampler = samplers.listed(structures, session.space.num_gates)

  def start(seed: int) -> Start:
    del seed
    return Start(state=init_state(recipe, pool), session=taught())

  judged = 2 * len(structures)
  return Arm(name, slots, recipe, sampler, steps, start=start, judge=judge, judged=judged)


def has_teacher(session: Session) -> bool:
  """Whether healing has a teacher: it needs classes, and examples in memory."""
  is_labelled = session.task.name in LABELLED
  in_memory = isinstance(session.data.train, ArraySplit)
  return bool(session.config.prune.teacher) and is_labelled and in_memory


def check_healing(session: Session) -> None:
  """Raises `UserError` for a training that cannot be."""
  options = session.config
  if not options.prune.heal_epochs:
    return
  if not has_teacher(session):
    if options.prune.teacher and session.task.name in LABELLED:
      log.warning('%s is not in memory: healing has no teacher', session.data.name)
    return
  if options.train.distill:
    raise UserError(
      f'config.train.distill {options.train.distill} with config.prune.teacher '
      f'{options.prune.teacher}: expected one of them'
    )
  if options.train.pipe_devices > 1:
    raise UserError(
      f'config.prune.teacher {options.prune.teacher} in a pipeline: expected 0, or '
      'config.train.pipe_devices 1'
    )
  if options.data.augment or session.training.augment is not None:
    raise UserError(
      f'config.prune.teacher {options.prune.teacher} with examples that are changed at random: '
      'expected 0, since the teacher has seen them as they are'
    )


def _taught_recipe(session: Session, recipe: Recipe) -> Recipe:
  """The recipe with the teacher's part of the loss, whose readout stays as it is."""
  options, task = session.config.prune, session.task
  loss = Distilled(task.loss, options.teacher, options.temperature)
  frozen = tuple(dict.fromkeys((*recipe.frozen, *read_out_by(session))))
  # Labels that do not count are known by the task; names of tasks are of targets without a teacher.
  distilled = Task(
    task.name, loss, [], ignore_label=task.ignore_label, class_weights=task.class_weights
  )
  return dataclasses.replace(recipe, task=distilled, loss=FromStream(), frozen=frozen)


def read_out_by(session: Session) -> list[str]:
  """Returns patterns of the leaves that the readout reads: a tied embedding is among them."""
  leaves = flatten_dict(parts(session.model, first_input(session.data)).readout, sep='/')
  return [re.escape(path) for path in leaves]


def _taught(session: Session, variables: PyTree) -> Session:
  """The run with the last streams of all-on beside the labels of its training examples."""
  train, full = session.in_memory(), session.space.all_on()
  (own,) = session.with_own_statistics([variables], [full])
  streams = last_streams(session.model, own, train.x)
  y: Any = Taught(unweighted(train.y), streams)
  if isinstance(train.y, Weighted):
    y = Weighted(y, train.y.weight)
  data = dataclasses.replace(session.data, train=ArraySplit(train.x, y), task=TEACHER)
  return dataclasses.replace(session, data=data)


def last_streams(model: Any, variables: PyTree, x: PyTree) -> Shaped[np.ndarray, 'N ...']:
  """Returns the stream of all-on before the readout, of each example, as the network has it."""
  run = jax.jit(functools.partial(_last_stream, model))
  pool = jax.device_put(variables)
  starts = range(0, num_examples(x), TEACHER_BATCH)
  parts = [rows(x, slice(start, start + TEACHER_BATCH)) for start in starts]
  return np.concatenate([np.asarray(run(pool, part)) for part in parts])


def _last_stream(model, variables, x):
  with without_dropout():
    h = embed(model, variables, x)
    for index in range(len(sites_of(model))):
      h = update(model, variables, index, h)
  return stream_of(h)
