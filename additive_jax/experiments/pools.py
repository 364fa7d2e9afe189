"""The pools that a run has left, finished or not, for those who come after it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from additive_jax import data as data_
from additive_jax.data.digests import digest
from additive_jax.errors import UserError, user_path
from additive_jax.experiments.lone_pools import read_alone
from additive_jax.experiments.network import NETWORKS, check_fits, make_model
from additive_jax.experiments.opening import load_data
from additive_jax.experiments.options import (
  DataOptions,
  ModelOptions,
  Option,
  options_of,
  read_section,
)
from additive_jax.files.journal import Journal
from additive_jax.files.seal import DamagedError, parsed
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import gate_names
from additive_jax.models.identity import describe
from additive_jax.run.tasks import task_of
from additive_jax.train.adapters import Adapted, members
from additive_jax.transplant.restore import Batch, Checkpoints, Saved

GIVEN = 'the data of Python, export.export_run(RUN, STRUCTURE, TO, data=DATA), of'
AGAIN = 'expected them again in Python, additive_jax.export.export_run'
# Of a run's pools, the beginning of the name of those that it is about.
FOREMOST = {'compress': 'variational-tuned'}


@dataclasses.dataclass(frozen=True)
class Pools:
  """The pools of one run, which is only read.

  Attributes:
    path: the run directory.
    data: its data.
    model: its additive model.
    names: of the pools that have checkpoints, folders of `checkpoints`; at least one, unless only
      structures that were trained alone are asked for.
    config: of the run, as its directory has it.
  """

  path: Path
  data: data_.Data
  model: Any
  names: tuple[str, ...]
  config: dict[str, Any] = dataclasses.field(repr=False)

  def read(
    self, x: Batch, name: str = '', *, structure: Structure | None = None, ema: bool = False
  ) -> tuple[str, Saved]:
    """Returns a pool's name and its newest sound checkpoint.

    Args:
      x: a batch of inputs, of which the shape matters.
      name: of the pool; '' is the first that is of the config's model, since some runs compare
        several.
      structure: of a pool whose members have vectors of their own (`config.cotrain.adapters`),
        whose member is read.
      ema: whether the mean of the pool over the steps is read in its place.

    Raises:
      UserError: for another name, or when there is no sound checkpoint of the config's model; or a
        structure that is no member.
    """
    if name and name not in self.names:
      raise UserError(
        f'checkpoint {name!r} of {self.path}: expected one of {", ".join(self.names)}'
      )
    refused = None
    for pool in [name] if name else self.names:
      try:
        folder = self.path / 'checkpoints' / pool
        if (self.config.get('cotrain') or {}).get('adapters') and pool.startswith('pool-'):
          return pool, self._member(folder, x, structure, ema)
        return pool, Checkpoints(folder, self.model, ema=ema).read(x)
      except UserError as error:
        refused = refused or error
    raise UserError(f'{refused}; the run has {", ".join(self.names)}') from refused

  def _member(self, folder: Path, x: Batch, structure: Structure | None, ema: bool) -> Saved:
    """Returns the pool of the member that has a structure."""
    lines = Journal(self.path / 'journals' / 'structures.jsonl').sound()
    texts = lines[0]['structures'] if lines else []
    if str(structure) not in texts:
      known = ', '.join(texts)
      raise UserError(f'structure {structure} of {self.path}: expected one of its members, {known}')
    gates = list(gate_names(self.model))
    identity = {'model': describe(self.model), 'gates': gates}
    adapted: Any = Adapted(self.model, len(texts))  # for checkpoints a module as any other
    saved = Checkpoints(folder, adapted, identity=identity, ema=ema).read(x)
    return saved._replace(variables=members(saved.variables)[texts.index(str(structure))])

  def read_alone(
    self, x: Batch, structure: Structure, seed: int | None
  ) -> tuple[int, PyTree, dict[str, Any]]:
    """Returns what a structure became alone: the seed, None being the first of the run, `{'params':
    pool}`, and its scores; see `lone_pools.read_alone`."""
    return read_alone(self.path, self.config, self.model, x, structure, seed)

  @property
  def has_both(self) -> bool:
    """Whether the run is a sweep that trains structures alone, beside the pools that it keeps."""
    modes = (self.config.get('sweep') or {}).get('modes') or ()
    return self.config.get('experiment') == 'sweep' and 'standalone' in modes


def open_pools(
  path: str | Path, *, network: Any = '', data: data_.Data | None = None, alone: bool = False
) -> Pools:
  """Returns the pools of the run in a directory.

  Args:
    path: the run directory.
    network: what the run was given in Python; or `module:Class` of it, where it is not one of the
      library's; '' makes what its config names.
    data: what the run was given in Python; None loads what its config names.
    alone: only structures that were trained alone are asked for.

  Raises:
    UserError: for a directory that is not that of a run, a run without pools, data that is not
      there, or a network that cannot be made.
  """
  path = user_path(path, 'run')
  config = _read_config(path)
  foremost = FOREMOST.get(config.get('experiment', ''), '')
  some = [] if alone else _pool_names(path)
  names = tuple(sorted(some, key=lambda name: not name.startswith(foremost)))
  known = {name.replace('_', ''): name for name in NETWORKS}
  kind = config['model'].get('name', '')
  if isinstance(network, str) and network and ':' not in network and network not in NETWORKS:
    expected = f'MODULE:CLASS, or one of {", ".join(NETWORKS)}'
    raise UserError(f'model {network!r}: expected {expected}')
  if network == '' and kind.lower() not in known:
    # Only said: the run may be somebody else's, and to import what it names would run their code.
    source = config['model'].get('source')
    where = f'{source}, as it was begun' if source else f'MODULE:{kind}, where it is'
    raise UserError(f'{path} is a run of {kind}: expected --model={where}')
  data = _data_of(path, config['data']) if data is None else data
  if (wanted := config['data'].get('digest')) and wanted != digest(data):
    raise UserError(f'data {data.name} of digest {digest(data)}: expected {wanted}, {GIVEN} {path}')
  if isinstance(network, str):
    values = config['model'] | {'name': network or known[kind.lower()]}
    network = make_model(_section(ModelOptions, values, 'model', path), data)
  check_fits(network, data, task_of(data.task))
  return Pools(path, data, network, names, config)


def ignored_label(path: str | Path) -> str:
  """Returns the label that does not count in a run, `config.task.ignore_label`; '' for none."""
  task = _read_config(user_path(path, 'run')).get('task')
  return str(task.get('ignore_label', '')) if isinstance(task, dict) else ''


def _data_of(path, values):
  """Returns the data that a run's config names."""
  name = str(values.get('name', ''))
  if 'digest' in values and name.partition(':')[0] not in data_.KINDS:
    raise UserError(
      f'{path} was given its data, {name!r}, in Python, which no command has: {AGAIN}'
      f'({str(path)!r}, STRUCTURE, TO, data=(x, y))'
    )
  try:
    options = _section(DataOptions, values, 'data', path)
    # The run may be somebody else's: what it downloaded is not fetched again unless asked for.
    return load_data(dataclasses.replace(options, download=False), ignored_label(path))
  except UserError as error:
    if 'digest' not in values:
      raise
    raise UserError(f'{error}; expected {GIVEN} {path}') from None


def _section(section, values, name, path):
  """The options of a section, as a run has written them; one of an older version lacks some, and
  does what it did without."""
  declared = options_of(section, f'{name}.')
  known = {key: value for key, value in values.items() if key in declared}
  before = {
    key: option.before.value
    for key, option in declared.items()
    if isinstance(option, Option) and option.before is not None
  }
  try:
    return read_section(section, dataclasses.asdict(section()) | before | known, f'{name}.')
  except UserError as error:
    raise UserError(f'{path / "config.json"}: {error}') from error


def _read_config(path):
  file = path / 'config.json'
  try:
    config, _ = parsed(file.read_bytes())
  except OSError as error:
    raise UserError(
      f'{file} ({error.strerror}): expected a run directory, which has one'
    ) from error
  except DamagedError as error:
    raise UserError(f'{file} is damaged ({error}): expected the config of a run') from error
  names = ('data', 'model')
  if not all(isinstance(config.get(n), dict) for n in names):
    raise UserError(f'{file} without data and model: expected the config of a run')
  for name, value in (
    ('experiment', config.get('experiment', '')),
    ('model.name', config['model'].get('name', '')),
  ):
    if not isinstance(value, str):
      raise UserError(f'{file}: {name} {value!r}: expected text')
  return config


def _pool_names(path):
  """Folders that hold steps, in the order of the numbers in their names."""
  steps = [step for step in (path / 'checkpoints').glob('*/*') if step.name.isdecimal()]
  parts = lambda name: [int(p) if p.isdecimal() else p for p in re.split(r'(\d+)', name)]
  names = sorted({step.parent.name for step in steps}, key=parts)
  if not names:
    raise UserError(f'{path}: expected a run that has left checkpoints of a pool')
  return tuple(names)
