"""Experiments as calls: a network, data, and options by their names.

    result = aj.sweep(Net(10), (x, y), epochs=3.0, seeds=2)
    result.table

What a call does is what the command does: a run directory, resume, a report. Without `workdir` the
directory is `runs/<experiment>-<hash>`, by the options, the network and the contents of the data,
so that the same call reads the finished run.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import additive_jax.data as data_
from additive_jax.data.arrays import kind_of
from additive_jax.data.weights import unweighted
from additive_jax.errors import UserError, did_you_mean
from additive_jax.experiments.opening import Opening, load_data
from additive_jax.experiments.options import DECLARED, DataOptions, Options, read_options, replaced
from additive_jax.experiments.studies import STUDIES
from additive_jax.experiments.study import Result, Study
from additive_jax.experiments.unused import OF
from additive_jax.run.tasks import Task

# Other names of options.
ALIASES = {'seeds': 'num_seeds', 'optimizer': 'optimizer.name', 'schedule': 'schedule.name'}
# Sections whose options need no section's name; an experiment's own come before them.
SECTIONS = ('train', 'task', 'search', 'sampler', 'data')
# Values that are those options themselves; others are objects and functions, see `Opening`.
AS_OPTIONS: dict[str, Any] = {
  'augment': (str, tuple, list),
  'optimizer': (str, Mapping),
  'pretrained': (str,),
}


def sweep(model: Any, data: Any, *, workdir: str | Path | None = None, **options: Any) -> Result:
  """Ranks the structures of a network: each trained alone, and all in one shared pool (Exp 1).

      result = aj.sweep(Net(10), (x, y), epochs=3.0, seeds=2)
      result.table.head(), result.effects, result.agreement['tau']

  Args:
    model: an additive network, or the name of one of the library's.
    data: a `data.Data`, arrays (x, y), a split in memory, or the name of a data set. Of arrays and
      a split a share is held out, see `data.from_arrays`.
    workdir: the run directory; None is `runs/sweep-<hash>`.
    options: those of the config, by their names: `epochs`, `train.epochs` (as
      `**{'train.epochs': 3.0}`), `seeds` for `num_seeds`; and `progress`, `devices`, see `Opening`.

  Returns:
    Tables as pandas frames, and the summary; see `experiments.sweep`.

  Raises:
    UserError: for an unknown option, with the nearest name, and for what an experiment refuses;
      nothing has been written then.
  """
  return run_experiment('sweep', model, data, workdir, options)


def cotrain(model: Any, data: Any, *, workdir: str | Path | None = None, **options: Any) -> Result:
  """Trains the best structures of a network together in one pool, and each alone (Exp 2).

      result = aj.cotrain(Net(10), (x, y), structures=('110', '111'), top_k=2)
      result.table, result.comparison, result.cosines

  Args:
    model, data, workdir, options: as of `sweep`. `structures` names them; without it a short shared
      sweep finds the best `top_k`.
  """
  return run_experiment('cotrain', model, data, workdir, options)


def stochastic(
  model: Any, data: Any, *, workdir: str | Path | None = None, **options: Any
) -> Result:
  """Trains a network with random structures as a regulariser, and without (Exp 3).

      aj.stochastic(Net(10), (x, y), keep_rate=0.8).variants

  Args:
    model, data, workdir, options: as of `sweep`.
  """
  return run_experiment('stochastic', model, data, workdir, options)


def run_experiment(
  experiment: str, model: Any, data: Any, workdir: str | Path | None, options: Mapping[str, Any]
) -> Result:
  """Runs an experiment of the library on a network and data."""
  config, opening = opened(experiment, model, data, options)
  return run_study(STUDIES[experiment], config, workdir, opening)


def run_study(
  study: Study, config: Options, workdir: str | Path | None, opening: Mapping[str, Any]
) -> Result:
  """Runs a study with what `opened` gave."""
  return study.run(config, workdir, **opening)


def opened(
  experiment: str,
  model: Any,
  data: Any,
  options: Mapping[str, Any],
  check: Callable[[Options], None] = lambda config: None,
  **defaults: Any,
) -> tuple[Options, dict[str, Any]]:
  """Returns the config and the opening of a study, from what a caller gave by name.

  Without `batch_size` a batch is at most as large as the training split.

  Args:
    check: raises `UserError` for options that the study refuses, before data are read.
    defaults: of options, by their full names, where a study has others than the config.
  """
  opening = {
    name: value
    for name, value in options.items()
    if name in Opening.__annotations__ and not isinstance(value, AS_OPTIONS.get(name, ()))
  }
  changes: dict[str, Any] = {}
  given = [item for item in options.items() if item[0] not in opening]
  for name, value in named_options(experiment, given):
    if name in changes:
      raise UserError(f'option {name!r}, {changes[name]!r} and {value!r}: expected it once')
    changes[name] = value
  config = read_options(replaced(Options(experiment=experiment), defaults | changes))
  check(config)
  if isinstance(model, str):
    config = read_options(replaced(config, {'model.name': model}))
  else:
    opening['model'] = model
  if isinstance(data, str):
    config = replaced(config, {'data.name': data})
  opening['data'] = data = made(data, config.data, config.task.ignore_label)
  if 'train.batch_size' not in changes and config.train.batch_size > len(data.train):
    config = replaced(config, {'train.batch_size': len(data.train)})
  return config, opening


def made(data: Any, options: DataOptions | None = None, ignore_label: str = '') -> data_.Data:
  """Returns a data set from what a caller has.

  >>> made((np.ones((10, 3), np.float32), np.arange(10) % 2)).num_outputs
  2

  Args:
    data: see `sweep`.
    options: of a data set that is loaded by its name.
    ignore_label: as of `config.task`, which arrays may have among their labels.
  """
  if isinstance(data, data_.Data):
    return data
  if isinstance(data, str):
    return load_data(dataclasses.replace(options or DataOptions(), name=data), ignore_label)
  if isinstance(data, data_.ArraySplit):
    data = data.x, data.y
  if isinstance(data, tuple | list) and len(data) == 2:
    if not ignore_label:
      return data_.from_arrays(*data)
    y = jax.tree.map(np.asarray, unweighted(data[1]))
    return data_.from_arrays(*data, task=Task(kind_of(y), ignore_label=int(ignore_label)))
  raise UserError(
    f'data of type {type(data).__name__}: expected data.Data, arrays (x, y), a split in memory, or '
    'the name of a data set'
  )


def named_options(experiment: str, given: Any) -> Iterator[tuple[str, Any]]:
  """Yields options by their full names.

  >>> dict(named_options('sweep', [('epochs', 2.0), ('halving', 2), ('train', {'zero': True})]))
  {'train.epochs': 2.0, 'sweep.halving': 2, 'train.zero': True}
  >>> dict(named_options('sweep', [('learning_rates', {'embed': 0.1})]))
  {'train.learning_rates': {'embed': 0.1}}
  >>> dict(named_options('sweep', [('epoch', 2.0)]))
  Traceback (most recent call last):
  additive_jax.errors.UserError: option 'epoch': expected one of configs/default.py; did you mean
  'epochs'?

  Args:
    experiment: whose options need no section.
    given: pairs of a name, full or the last part of it, and a value; of a section a dict.

  Raises:
    UserError: for an option that is not there, with the nearest name, or of other experiments.
  """
  short = {name.rpartition('.')[2]: name for name in DECLARED if '.' not in name} | ALIASES
  for section in (experiment, *SECTIONS):
    for name in DECLARED:
      parent, _, last = name.rpartition('.')
      if parent == section and last not in ('name', 'kwargs'):
        short.setdefault(last, name)
  for name, value in given:
    is_section = any(option.startswith(f'{name}.') for option in DECLARED)
    if isinstance(value, Mapping) and is_section and name not in DECLARED:
      nested = [(f'{name}.{key}', item) for key, item in value.items()]
      yield from named_options(experiment, nested)
      continue
    full = name if name in DECLARED else short.get(name)
    _check_is_of(experiment, name, full)
    if full is None or full == 'experiment':
      hint = did_you_mean(name, [*short, *DECLARED])
      raise UserError(f'option {name!r}: expected one of configs/default.py{hint}')
    yield full, _as_option(full, value)


def _check_is_of(experiment: str, name: str, full: str | None) -> None:
  """Raises `UserError` for an option of other experiments than the one that is asked for."""
  names = [full] if full else [other for other in DECLARED if other.endswith(f'.{name}')]
  sections = [other.partition('.')[0] for other in names]
  owners = [OF.get(section, (experiment,)) for section in sections]
  if owners and not any(experiment in some for some in owners):
    others = ', '.join(dict.fromkeys(owner for some in owners for owner in some))
    raise UserError(f'option {name!r} of {experiment}: expected none, it is one of {others}')


def _as_option(name: str, value: Any) -> Any:
  """Returns a value of Python as the option has it, whose values have text for it."""
  if name == 'task.ignore_label' and isinstance(value, int):
    return str(value)
  if name == 'train.dtype' and not isinstance(value, str):
    with contextlib.suppress(TypeError):
      return np.dtype(value).name
  return value
