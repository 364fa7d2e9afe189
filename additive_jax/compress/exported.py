"""A network that was cut out as files, which stand alone: `model.json` with its config,
`model.safetensors`, and `orbax/` with the same parameters and their checksums (plain Orbax reads
them in `orbax/0/state`).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors import numpy as safetensors

from additive_jax.compress.cutting import Cut, make
from additive_jax.errors import UserError, user_errors
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.files.rundir import WRITABLE, config_hash

MODEL, TENSORS, ORBAX = 'model.json', 'model.safetensors', 'orbax'


def export(cut: Cut, directory: str | Path, *, notes: dict[str, Any] | None = None) -> Path:
  """Writes what was cut out, all of it or nothing.

  Args:
    cut: the result of `cutting.cut`.
    directory: must not exist; its parent must.
    notes: JSON values that go into `model.json` as well.

  Returns:
    The directory.

  Raises:
    UserError: when it exists or cannot be written.
  """
  directory = Path(directory).absolute()
  check_new(directory)
  leaves = {path: np.ascontiguousarray(leaf) for path, leaf in _leaves(cut.variables).items()}
  described = {
    'config': cut.config,
    'structure': str(cut.structure),
    'gates': list(cut.gates),
    'kept': {n: np.flatnonzero(mask).tolist() for n, mask in cut.units.items() if not mask.all()},
    'parameters': {
      path: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'tensor': tensor_name(path)}
      for path, leaf in leaves.items()
    },
    **(notes or {}),
  }
  temporary = directory.with_name(f'.{directory.name}.{os.getpid()}.tmp')
  try:
    with user_errors('write', directory, WRITABLE):
      temporary.mkdir()
      tensors = {tensor_name(path): leaf for path, leaf in leaves.items()}
      (temporary / TENSORS).write_bytes(safetensors.save(tensors))
      with _checkpoint(temporary, cut.config) as checkpoint:
        checkpoint.save(0, cut.variables, wait=True)
      (temporary / MODEL).write_text(json.dumps(described, indent=2) + '\n')
      temporary.rename(directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return directory


def load(directory: str | Path) -> tuple[nn.Module, PyTree]:
  """Returns the module and the variables of an exported network: `model.apply(variables, x)` gives
  the logits. Every leaf is checked against its checksum.

  Raises:
    UserError: when there is none, or it is damaged.
  """
  path = Path(directory) / MODEL
  with user_errors('read', path, 'a network that additive_jax.export has written'):
    content = path.read_bytes()
  try:
    described = json.loads(content)
    config, parameters = described['config'], described['parameters']
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f'{path} ({error}): expected what additive_jax.export has written') from error
  template = {
    name: jax.ShapeDtypeStruct(tuple(leaf['shape']), leaf['dtype'])
    for name, leaf in parameters.items()
  }
  with _checkpoint(Path(directory), config) as checkpoint:
    restored = checkpoint.restore({'params': unflatten_dict(template, sep='/')})
  if restored is None:
    raise UserError(f'{directory} without {ORBAX}/: expected what additive_jax.export has written')
  return make(config), restored.state


def tensor_name(path: str) -> str:
  """Returns the name of a parameter in the safetensors file.

  >>> tensor_name('block_00__mlp/in/kernel')
  'block_00/mlp/in/kernel'
  """
  return path.replace('__', '/')


def check_new(directory: str | Path) -> None:
  """Raises `UserError` unless `directory` can be made: it does not exist, its parent does."""
  directory = Path(directory)
  if directory.exists() or directory.is_symlink():
    raise UserError(f'{directory} exists: expected a directory that is yet to be made')
  if not directory.absolute().parent.is_dir():
    raise UserError(f'{directory}: expected {directory.absolute().parent} to be a directory')


def _checkpoint(directory: Path, config) -> Checkpointer:
  return Checkpointer(directory / ORBAX, identity={'config': config_hash(config)})


def _leaves(variables) -> dict[str, Any]:
  return flatten_dict(variables['params'], sep='/')
