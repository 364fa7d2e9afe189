"""The files in which a run keeps what structures became that were trained alone:

    checkpoints/alone-seed0/0111.msgpack     the pool, of which the structure reads a part

Exp 2 keeps all of them, a sweep with `config.sweep.keep_alone`. Journals have their checksums.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
from jaxtyping import PyTree

from additive_jax.errors import UserError, one_line, user_errors
from additive_jax.experiments.records import Records, lone_name
from additive_jax.files.journal import Record, replace_file
from additive_jax.files.rundir import RunDir
from additive_jax.gates.structure import Structure
from additive_jax.models.additive import canonical, initial_shapes
from additive_jax.models.contract import differences
from additive_jax.parallel import processes

KEPT_BY = ('sweep', 'cotrain')
NOT_SCORES = ('seed', 'rung', 'steps', 'skipped', 'crc32', 'train_loss')
SHOWN = 8  # structures that a message names


def keep_pool(
  rundir: RunDir, seed: int, structure: Structure, params: PyTree, *, write: bool = True
) -> Record:
  """Keeps what a structure became alone, and returns what its record says of that.

  Args:
    write: whether this process writes the file.
  """
  content = flax.serialization.to_bytes(processes.to_host(params))
  if write:
    path = pool_file(rundir, seed, structure)
    path.parent.mkdir(exist_ok=True, parents=True)
    replace_file(path, content)
  return {'structure': str(structure), 'crc32': zlib.crc32(content)}


def pool_file(rundir: RunDir, seed: int, structure: Structure) -> Path:
  """Returns the file of what a structure became alone."""
  return rundir.checkpoints / f'alone-seed{seed}' / f'{structure}.msgpack'


def is_sound(path: Path, checksum: int) -> bool:
  """Returns whether a file is there and what was written."""
  with user_errors('read', path, 'a network that the run has written'):
    return path.exists() and zlib.crc32(path.read_bytes()) == checksum


def read_pool(path: Path, checksum: int, template: PyTree) -> PyTree:
  """Returns a pool that was kept, of the form of a template, arrays or their shapes.

  Raises:
    UserError: for a file that is damaged, missing, or something else.
  """
  if not is_sound(path, checksum):
    raise UserError(f'{path} is damaged or missing: the same command trains it again')
  try:
    return flax.serialization.from_bytes(template, path.read_bytes())
  except Exception as error:
    raise UserError(
      f'{path} ({one_line(error)[:200]}): expected a network that the run has written'
    ) from error


def read_alone(
  path: Path, config: dict[str, Any], model: Any, x: PyTree, structure: Structure, seed: int | None
) -> tuple[int, PyTree, Record]:
  """Returns what a structure became alone in a run, with what its record says.

  Args:
    path: the run directory.
    config: of the run.
    model, x: the network, and a batch of inputs, of which the shape matters.
    structure: the structure; of those that are one network any.
    seed: None is the first of the run.

  Returns:
    The seed, `{'params': pool}`, and the scores of the record.

  Raises:
    UserError: for a run that trains nothing alone or has not kept it, a structure or a seed that it
      does not have, or a file that is damaged.
  """
  experiment = config.get('experiment')
  if experiment not in KEPT_BY:
    raise UserError(
      f'{path} is a run of {experiment!r}: expected one of {" or ".join(map(repr, KEPT_BY))}, '
      'which train structures alone'
    )
  first, count = int(config.get('seed', 0)), int(config.get('num_seeds', 1))
  seed = first if seed is None else seed
  if not first <= seed < first + count:
    raise UserError(f'seed {seed} of {path}: expected {first} to {first + count - 1}')
  rundir = RunDir(path)
  records = Records(rundir, experiment, range(first, first + count))
  structure = Structure(tuple(canonical(model, np.array([structure.bits], bool))[0]))
  record = _last(records, structure, seed)
  if record is None:
    raise UserError(
      f'structure {structure} alone, seed {seed}, in {path}: expected {_some(rundir)}'
    )
  if 'crc32' not in record:
    raise UserError(
      f'structure {structure} was trained alone in {path}, and not kept: expected a sweep with '
      'config.sweep.keep_alone True (keep_alone=True in Python), or Exp 2, which keeps all'
    )
  shapes, file = initial_shapes(model, x)['params'], pool_file(rundir, seed, structure)
  if not is_sound(file, record['crc32']):
    raise UserError(f'{file} is damaged or missing: expected what the run has written')
  params = read_pool(file, record['crc32'], shapes)
  if wrong := differences(params, shapes):
    raise UserError(f'{path} has a pool with {wrong}: expected one of {type(model).__name__}')
  numbers = (int, float)
  scores = {k: v for k, v in record.items() if k not in NOT_SCORES and isinstance(v, numbers)}
  return seed, {'params': params}, scores


def _last(records: Records, structure: Structure, seed: int) -> Record | None:
  """Returns the record of the last rung that a structure has reached."""
  found, rung = None, 0
  while record := records.get(lone_name(str(structure), rung), seed):
    found, rung = record, rung + 1
  return found


def _some(rundir: RunDir) -> str:
  """Returns in words what a run has kept."""
  kept = sorted({path.stem for path in rundir.checkpoints.glob('alone-seed*/*.msgpack')})
  if not kept:
    return 'one that the run has trained alone'
  more = f' and {len(kept) - SHOWN} more' if len(kept) > SHOWN else ''
  return f'one that it has kept, {", ".join(kept[:SHOWN])}{more}'
