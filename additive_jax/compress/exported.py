"""A network that was cut out as files, which stand alone: `model.json` with its config,
`model.safetensors`, and `orbax/` with the same parameters and their checksums (plain Orbax reads
them in `orbax/0/state`).
"""

from __future__ import annotations

import glob
import json
import operator
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors import numpy as safetensors

from additive_jax.compress.cutting import Cut, make
from additive_jax.data.coding import Coding
from additive_jax.errors import UserError, one_line, user_errors
from additive_jax.files import temporaries
from additive_jax.files.checkpoint import Checkpointer
from additive_jax.files.journal import to_plain
from additive_jax.files.rundir import WRITABLE, config_hash
from additive_jax.files.seal import DamagedError, digest, parsed, sealed
from additive_jax.models.additive import Additive
from additive_jax.models.batch_norm import BATCH_STATS

MODEL, TENSORS, ORBAX = 'model.json', 'model.safetensors', 'orbax'
# Parts of `model.json` that describe leaves, and the collections of these.
PARTS = {'parameters': 'params', 'statistics': BATCH_STATS}
CODING = 'coding'  # of the data, in `model.json`; see `coding`
DIGEST = 'sha256'  # of the tensors, in `model.json`


def export(
  cut: Cut,
  directory: str | Path,
  *,
  notes: dict[str, Any] | None = None,
  overwrite: bool = False,
) -> Path:
  """Writes what was cut out, all of it or nothing.

  Args:
    cut: the result of `cutting.cut`.
    directory: must not exist; its parent must.
    notes: JSON values that go into `model.json` as well.
    overwrite: whether the directory may hold a network that was exported before, which this one
      replaces when all of it is written.

  Returns:
    The directory.

  Raises:
    UserError: when it exists or cannot be written.
  """
  directory = Path(directory).absolute()
  check_new(directory, overwrite)
  leaves = _leaves(cut.variables)
  described = {
    'config': cut.config,
    'structure': str(cut.structure),
    'gates': list(cut.gates),
    'kept': {n: np.flatnonzero(mask).tolist() for n, mask in cut.units.items() if not mask.all()},
    **{name: _described_leaves(part, leaves[part]) for name, part in PARTS.items()},
    **(notes or {}),
  }
  temporaries.remove_stale(directory.parent.glob(f'.{glob.escape(directory.name)}.*.tmp'))
  temporary = temporaries.beside(directory)
  try:
    with user_errors('write', directory, WRITABLE):
      temporary.mkdir()
      tensors = {
        described[name][path]['tensor']: leaf
        for name, part in PARTS.items()
        for path, leaf in leaves[part].items()
      }
      (temporary / TENSORS).write_bytes(safetensors.save(tensors))
      described = sealed(to_plain(described | {DIGEST: digest(temporary / TENSORS)}))
      with _checkpoint(temporary, cut.config) as checkpoint:
        checkpoint.save(0, cut.variables, wait=True)
      (temporary / MODEL).write_text(json.dumps(described, indent=2) + '\n')
      _put(temporary, directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return directory


def load(
  directory: str | Path, *, model: Callable[..., Additive] | None = None
) -> tuple[nn.Module, PyTree]:
  """Returns the module and the variables of an exported network: `module.apply(variables, x)` gives
  the logits. Every leaf is checked against its checksum.

  Nothing in the files runs: they may come from anybody. A network that is not the library's is
  loaded with its class, `load(DIR, model=MyNetwork)`.

  Args:
    directory: what `export` has written.
    model: the class of the network, if it is one of your own.

  Raises:
    UserError: when there is none, it is damaged, or of a class that is neither the library's nor
      given.
  """
  described = _described(Path(directory) / MODEL)
  config = described['config']
  module = make(config, model)
  _check_tensors(Path(directory) / TENSORS, described)
  leaves = {PARTS[name]: described[name] for name in PARTS if described.get(name)}
  template = {part: _template(Path(directory) / MODEL, of_part) for part, of_part in leaves.items()}
  with _checkpoint(Path(directory), config) as checkpoint:
    restored = checkpoint.restore(template)
  if restored is None:
    raise UserError(f'{directory} without {ORBAX}/: expected what additive_jax.export has written')
  return module, restored.state


def coding(directory: str | Path) -> Coding | None:
  """Returns how the columns of a table became the inputs of an exported network, and its outputs
  are decoded; None where the data had no such coding.

      x = additive_jax.export.coding('small')(new_rows)
      additive_jax.export.coding('small').decoded(model.apply(variables, x))

  Args:
    directory: what `export_run` has written.

  Raises:
    UserError: when there is no exported network, or it is damaged.
  """
  path = Path(directory) / MODEL
  values = _described(path).get(CODING)
  try:
    return None if values is None else Coding.of_description(values)
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{path}, {CODING} ({one_line(error)}): expected what additive_jax.export has written'
    ) from error


def _described(path: Path) -> dict[str, Any]:
  """Returns what `export` wrote of a network."""
  with user_errors('read', path, 'a network that additive_jax.export has written'):
    content = path.read_bytes()
  try:
    described, _ = parsed(content)
    if missing := {'config', 'parameters'} - described.keys():
      raise DamagedError(f'without {", ".join(sorted(missing))}')
  except DamagedError as error:
    raise UserError(
      f'{path} is damaged ({error}): expected what additive_jax.export has written'
    ) from error
  return described


def _check_tensors(path: Path, described: dict[str, Any]) -> None:
  """Raises `UserError` for a file of tensors that is there and is not what was written."""
  with user_errors('read', path, 'what additive_jax.export has written'):
    if path.exists() and described.get(DIGEST, digest(path)) != digest(path):
      raise UserError(f'{path} is damaged: expected what additive_jax.export has written')


def _template(path: Path, parameters: Any) -> PyTree:
  """Returns the parameters without their numbers."""
  try:
    leaves = {
      name: jax.ShapeDtypeStruct(tuple(map(operator.index, leaf['shape'])), np.dtype(leaf['dtype']))
      for name, leaf in parameters.items()
    }
    return unflatten_dict(leaves, sep='/')
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f'{path}, parameters ({one_line(error)}): expected what additive_jax.export has written'
    ) from error


def tensor_name(path: str) -> str:
  """Returns the name of a parameter in the safetensors file.

  >>> tensor_name('block_00__mlp/in/kernel')
  'block_00/mlp/in/kernel'
  """
  return path.replace('__', '/')


def check_new(directory: str | Path, overwrite: bool = False) -> None:
  """Raises `UserError` unless `directory` can be made: it does not exist, its parent does.

  Args:
    overwrite: whether it may be there too, with an exported network and nothing else.
  """
  directory = Path(directory)
  with user_errors('write', directory, WRITABLE):
    if directory.is_dir() and not directory.is_symlink() and overwrite:
      others = {path.name for path in directory.iterdir()} - {MODEL, TENSORS, ORBAX}
      if others or not (directory / MODEL).is_file():
        told = f'holds {min(others)}' if others else f'has no {MODEL}'
        raise UserError(f'{directory} {told}: expected an exported network alone, to replace it')
    elif directory.exists() or directory.is_symlink():
      more = '' if overwrite else '; overwrite replaces a network that was exported there'
      raise UserError(f'{directory} exists: expected a directory that is yet to be made{more}')
    if not directory.absolute().parent.is_dir():
      raise UserError(f'{directory}: expected {directory.absolute().parent} to be a directory')


def _put(temporary: Path, directory: Path) -> None:
  """Renames what was written into place; what was there is removed when the other is in place."""
  if not directory.exists():
    temporary.rename(directory)
    return
  before = temporaries.beside(directory.with_name(f'{directory.name}.before'))
  directory.rename(before)
  try:
    temporary.rename(directory)
  except BaseException:
    before.rename(directory)
    raise
  shutil.rmtree(before, ignore_errors=True)


def _checkpoint(directory: Path, config) -> Checkpointer:
  return Checkpointer(directory / ORBAX, identity={'config': config_hash(config)})


def _leaves(variables) -> dict[str, dict[str, Any]]:
  """Returns the leaves of each collection by their paths."""
  flat = lambda tree: flatten_dict(tree, sep='/').items()
  return {
    part: {path: np.ascontiguousarray(leaf) for path, leaf in flat(variables.get(part, {}))}
    for part in PARTS.values()
  }


def _described_leaves(part, leaves) -> dict[str, Any]:
  prefix = '' if part == 'params' else f'{part}/'
  return {
    path: {
      'shape': list(leaf.shape),
      'dtype': str(leaf.dtype),
      'tensor': prefix + tensor_name(path),
    }
    for path, leaf in leaves.items()
  }
