"""From a config to an open run: data, network, run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import jax
from ml_collections import ConfigDict

from additive_jax import data as data_
from additive_jax import models
from additive_jax.data.digests import digest
from additive_jax.errors import SEEDS, UserError, user_path
from additive_jax.experiments.network import check_fits, make_model
from additive_jax.experiments.options import (
  PLACEMENT,
  DataOptions,
  Options,
  identity,
  parse_shard,
  read_options,
  refused,
  replaced,
  value_of,
)
from additive_jax.experiments.session import Session, first_input
from additive_jax.experiments.start import TEXTS, code_of, given, start_of, with_pretrained
from additive_jax.experiments.task import described, make_task
from additive_jax.experiments.training import Machine, Training
from additive_jax.experiments.unused import unused
from additive_jax.files.journal import to_plain
from additive_jax.files.lock import locked
from additive_jax.files.metrics import Metrics
from additive_jax.files.programs import kept_programs
from additive_jax.files.quantities import bytes_text
from additive_jax.files.rundir import RunDir, default_workdir, flatten
from additive_jax.files.seal import DamagedError, parsed
from additive_jax.files.signals import Stopper
from additive_jax.models.additive import gate_names, shape_of
from additive_jax.models.identity import describe
from additive_jax.parallel import mesh, processes
from additive_jax.run.tasks import Task

# What may differ from one start of a run to the next: options, and where the network's class is.
SAME_RUN = (*PLACEMENT, 'model.source')


class Opening(TypedDict, total=False):
  """What a study may be given beside its config and run directory.

  Attributes:
    model: an additive model in place of `config.model`.
    data: a `data.Data` in place of `config.data`.
    augment: a function in place of `config.data.augment`, see `train.augment`.
    name: of the default run directory; None is the experiment's.
    devices: how many to use; 0 is all.
    command: the command line that started the run, for its report.
    loss: a name or a function, in place of `config.task.loss`; see `run.tasks`.
    metrics: names, functions or `Metric`s, in place of `config.task.metrics`.
    variables: `{'params': pool}` that every training starts from, in place of `config.init_from`.
    optimizer: an Optax transformation in place of `config.optimizer`, its schedule and clipping.
    progress: whether bars and lines show how far the run is; True by default.
    pretrained: what the model and variables are of, see `pretrained.load`.
  """

  model: Any
  data: Any
  augment: Any
  name: str | None
  devices: int
  command: str
  loss: Any
  metrics: Any
  variables: Any
  optimizer: Any
  progress: bool
  pretrained: Any


@contextlib.contextmanager
def open_session(
  config: ConfigDict | Options,
  workdir: str | Path | None = None,
  *,
  check: Callable[[Session], None],
  **opening: Unpack[Opening],
) -> Iterator[Session]:
  """Checks the config, finds the data, makes the model and opens the run directory.

  Args:
    config: as in `configs/default.py`.
    workdir: the run directory; None is `runs/<name>-<hash of the config>`.
    check: raises `UserError` for what the experiment cannot do; called before anything is written,
      and not for a run that is finished.
    opening: see `Opening`.

  Raises:
    UserError: for options that make no sense, or while another process is at work in the directory;
      nothing has been written then.
  """
  config = read_options(config)
  if config.seed + config.num_seeds > SEEDS:
    raise refused(config, 'seed', 'num_seeds', expected='seeds up to 2^32 − 1')
  devices = mesh.pick_devices(opening.get('devices', 0))
  config, opening, loaded = with_pretrained(config, opening)
  config = as_begun(config, workdir, opening.get('data'))
  data, model, task = checked_parts(config, devices, opening)
  pool = start_of(config, opening.get('variables'), model, first_input(data))
  resolved = resolve(config, model, data, task) | given(pool, opening.get('optimizer'))
  if 'data' in opening and opening['data'] is not None and not _lacks_digest(workdir):
    resolved['data']['digest'] = digest(data)
  if augment := opening.get('augment'):
    resolved['data']['augment'] = _name_of_augment(augment)
  if code := code_of(task, opening, _stored_config(workdir)):
    resolved['code'] = code
  name = opening.get('name') or config.experiment
  workdir = user_path(workdir or default_workdir(name, resolved, exclude=SAME_RUN), 'workdir')
  rundir = RunDir(workdir, primary=processes.is_primary())
  part, command = parse_shard(config.shard), opening.get('command', '')
  processes.tell_saved(rundir.saved)
  begun: dict[str, Any] = {'start': pool, 'optimizer': opening.get('optimizer'), 'part': part}
  begun |= {'command': command, 'task': task, 'pretrained': loaded}
  start = start_session(config, rundir, data, model, devices, **begun)
  with contextlib.ExitStack() as stack, start as session:
    session.training.augment = augment
    if not rundir.finished:
      _check_fits(session)
      check(session)
    _open(workdir, resolved, lambda path: stack.enter_context(locked(path, *part)))
    if processes.is_primary():
      for line in session.plan:
        processes.log.info('%s', line)
    if not rundir.finished:
      _warn_of_unused(config, data, opening)
    yield session


def checked_parts(
  config: Options, devices: Sequence[jax.Device], opening: Opening
) -> tuple[data_.Data, Any, Task]:
  """Returns the data, the network and the task of a run, given or as the config names them, which
  fit each other and the devices.

  Raises:
    UserError: where they do not.
  """
  data = opening.get('data') or load_data(config.data, config.task.ignore_label)
  model = opening.get('model') or make_model(config.model, data)
  task = make_task(config, data, opening.get('loss') or '', opening.get('metrics'))
  check_fits(model, data, task)
  _check_sizes(config, data, devices)
  return data, model, task


def _warn_of_unused(config, data, opening):
  """Warns in one line of options that the run was given and does not use."""
  given = [name for name, value in opening.items() if value is not None]
  if data.name == config.data.name:  # which a call may have loaded by its name
    given = [name for name in given if name != 'data']
  some = [
    f'config.{option} {value_of(config, option)!r}, for {purpose}'
    for option, purpose in unused(config, data, given)
  ]
  if some:
    processes.log.warning('not used: %s', '; '.join(some))


def _name_of_augment(augment: Any) -> str:
  """Returns what an augmentation of one's own is called in the config of the run."""
  if not callable(augment):
    raise UserError(
      f'augment {augment!r}: expected a function of (key, x, y); names go into config.data.augment'
    )
  return getattr(augment, '__qualname__', '') or describe(augment)


def _check_sizes(config, data, devices):
  """Raises `UserError` for batches or axes of a mesh that are too large."""
  if config.train.batch_size > len(data.train):
    raise UserError(
      f'config.train.batch_size {config.train.batch_size}: expected at most {len(data.train)}, the '
      f'training examples of {data.name}'
    )
  spread = {axis: getattr(config.train, f'{axis}_devices') for axis in mesh.SPREAD}
  mesh.check_spread(spread, len(devices))


def _check_fits(session):
  """Raises `UserError` for a pool that the memory of this machine could not hold once."""
  alone = session.machine.devices[0].platform == 'cpu' and processes.process()[1] == 1
  if not alone or not hasattr(os, 'sysconf'):
    return
  count = session.space.params(session.space.all_on())
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if 4 * count > memory:
    sizes = [bytes_text(size) for size in (4 * count, memory)]
    raise UserError(
      f'config.model of {count:,} parameters, {sizes[0]}: expected a network that fits into the '
      f'{sizes[1]} of this machine'
    )


def as_begun(config: Options, workdir: str | Path | None, data: Any = None) -> Options:
  """Returns the options of a run that goes on in a directory. One that was begun before a split was
  held out to choose by goes on without, and one with curves of fewer points goes on with those.

  Args:
    config: what is asked for.
    workdir: the run directory; None for one that is named by the config.
    data: what the caller gave in place of `config.data`.
  """
  every = flatten(_stored_config(workdir) or {}).get('train.log_every')
  if config.train.log_every == 0 and every == 50:  # once the default
    config = replaced(config, {'train.log_every': 50})
  if data is not None or config.data.valid != DataOptions().valid or not _is_earlier(workdir):
    return config
  processes.log.info('%s goes on without a split to choose by (config.data.valid 0.0)', workdir)
  return replaced(config, {'data.valid': 0.0})


def _is_earlier(workdir) -> bool:
  """Whether a run directory is of a version that held nothing out, or of config.data.valid 0.0."""
  stored = _stored(workdir)
  return stored is not None and 'valid' not in stored


def _lacks_digest(workdir) -> bool:
  """Whether a run directory is of a version that kept no digest of the user's own data."""
  return _is_earlier(workdir) and 'digest' not in (_stored(workdir) or {})


def _stored(workdir) -> dict[str, Any] | None:
  """The options of the data of a run directory; None where there is none that can be read."""
  stored = (_stored_config(workdir) or {}).get('data')
  return stored if isinstance(stored, dict) else None


def _stored_config(workdir) -> dict[str, Any] | None:
  """The config of a run directory; None where there is none that can be read."""
  if not workdir:
    return None
  try:
    values, _ = parsed((user_path(workdir, 'workdir') / 'config.json').read_bytes())
  except (OSError, DamagedError):
    return None  # what is damaged is told when the directory is opened
  return values if isinstance(values, dict) else None


@contextlib.contextmanager
def start_session(
  config: Options,
  rundir: RunDir,
  data: data_.Data,
  model: Any,
  devices: Sequence[jax.Device],
  *,
  part: tuple[int, int] = (0, 1),
  command: str = '',
  task: Task | None = None,
  start: Any = None,
  optimizer: Any = None,
  pretrained: Any = None,
) -> Iterator[Session]:
  """Holds a session of a run; at the end its curves are closed and its signals let go.

  Args:
    config, data, model, devices, command: see `Session`.
    rundir: where the run's files go.
    start, optimizer, pretrained: see `Session` and `Training`.
    part: whose curves are written: the number of a part of the run, and how many there are.
    task: None is that of the config and the data.
  """
  metrics = Metrics(rundir, shard=part[0], num_shards=part[1])
  space = models.measure(model, first_input(data))
  training = Training(config, model, data, task or make_task(config, data), optimizer)
  machine = Machine(devices, config.train, shape_of(first_input(data)))
  with kept_programs(), Stopper() as stopper, metrics:
    given = config, rundir, metrics, stopper, data, model, space, training, machine, command
    yield Session(*given, start=start, pretrained=pretrained)


def resolve(config: Options, model: Any, data: data_.Data, task: Task) -> dict[str, Any]:
  """Returns the options of a run as JSON values, with what they came to: the network's gates and
  fields, and where its class is if it is none of the library's (no part of what makes the run), the
  name of the data, and the task where it is not as the data has it by default."""
  resolved = to_plain(identity(config)) | {'gates': list(gate_names(model))}
  resolved['data']['name'], resolved['model']['name'] = data.name, type(model).__name__
  resolved['model']['fields'] = describe(model)
  if ':' in config.model.name and config.model.name.endswith(f':{type(model).__name__}'):
    resolved['model']['source'] = config.model.name
  if not task.name or task != Task(task.name):
    resolved.setdefault('task', {})['is'] = described(task)
  return resolved


def _open(workdir, resolved, hold):
  """Opens the run directory in the first process, then in the others; all fail together."""
  primary, problem = processes.is_primary(), None
  for turn in (True, False):
    if primary == turn:
      try:
        RunDir.open(workdir, resolved, exclude=SAME_RUN, primary=primary, hold=hold)
      except UserError as error:
        problem = error
    if processes.agree(problem is not None):
      raise problem or UserError(f'{workdir}: expected a directory that all processes can use')


def load_data(options: DataOptions, ignore_label: str = '') -> data_.Data:
  """Returns the data of `config.data`; of text, more examples than there are is all of them."""
  data = data_.load(
    options.name,
    sequence_length=options.sequence_length,
    tokenizer=options.tokenizer,
    data_dir=options.data_dir or None,
    download=options.download,
    memory_limit=options.memory_limit,
    valid=options.valid,
    target=options.target,
    columns=options.columns,
    missing=options.missing,
    weight=options.weight,
    split=options.split,
    task=options.task,
    ignore_label=int(ignore_label) if ignore_label else None,
    image_size=options.image_size,
    channels=options.channels,
  )

  few = []

  def some(name):
    split, count = getattr(data, name), getattr(options, option := f'{name}_examples')
    if count > len(split) and options.name.startswith(TEXTS):
      few.append(f'config.data.{option} {count:,} is all {len(split):,}')
      return split
    try:
      return data_.take(split, count)
    except UserError as error:
      raise UserError(f'config.data.{option} of {data.name}: {error}') from error

  data = dataclasses.replace(data, **{name: some(name) for name in data.splits})
  if few:
    processes.log.warning('%s has fewer examples: %s', data.name, ', '.join(few))
  return data
