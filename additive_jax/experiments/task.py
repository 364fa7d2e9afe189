"""The task of a run: that of its data, with what its options say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from additive_jax.data import Data
from additive_jax.errors import UserError
from additive_jax.experiments.options import Options, refused
from additive_jax.models.identity import describe
from additive_jax.run.objectives import CrossEntropy, LossFunction, name_of
from additive_jax.run.tasks import LOSS, TASKS, Task, task_of


def make_task(
  config: Options,
  data: Data,
  loss: str | LossFunction = '',
  metrics: Sequence[Any] | None = None,
) -> Task:
  """Returns the task of a run.

  Args:
    config: of which `config.task` is read.
    data: says which task it is.
    loss, metrics: in place of the options; see `run.tasks.Task`.

  >>> from additive_jax.experiments.options import TaskOptions
  >>> options = Options(task=TaskOptions(metrics=('top3',), label_smoothing=0.1))
  >>> task = make_task(options, aj.data.load('digits'))
  >>> task.loss, task.headline
  (CrossEntropy(label_smoothing=0.1), 'top3')

  Raises:
    UserError: for what is unknown, or does not suit the data.
  """
  options = config.task
  own = isinstance(data.task, str) and data.task not in TASKS  # a text that means nothing here
  chosen = loss or options.loss
  task = task_of(Task('', chosen) if own and chosen else data.task, chosen)
  if options.metrics and metrics is None:
    try:
      task = dataclasses.replace(task, metrics=options.metrics, rank_by=LOSS)
    except UserError as error:
      raise UserError(f'config.task.metrics {options.metrics!r}: {error}') from error
  elif metrics is not None:
    task = dataclasses.replace(task, metrics=metrics, rank_by=LOSS)
  if options.label_smoothing:
    if type(task.loss) is not CrossEntropy:
      expected = '0 for a loss other than cross_entropy'
      raise refused(config, 'task.label_smoothing', expected=expected)
    task = dataclasses.replace(task, loss=CrossEntropy(options.label_smoothing))
  changes: dict[str, Any] = {}
  if options.rank_by != LOSS:
    changes['rank_by'] = options.rank_by
  if options.class_weights:
    changes['class_weights'] = options.class_weights
  if options.ignore_label:
    changes['ignore_label'] = int(options.ignore_label)
  return dataclasses.replace(task, **changes) if changes else task


def described(task: Task) -> dict[str, Any]:
  """Returns a task in words, by which a run is known.

  >>> described(Task('regression', 'huber'))['loss']
  'Huber(delta=1.0)'
  """
  word = lambda part: describe(part) if dataclasses.is_dataclass(part) else name_of(part)
  return {
    'task': task.name,
    'loss': word(task.loss),
    'metrics': [word(metric) for metric in task.metrics],
    'rank_by': task.rank_by,
    'ignore_label': task.ignore_label,
    'class_weights': list(task.class_weights),
  }
