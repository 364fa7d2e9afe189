"""Tensors of safetensors files, memory-mapped: nothing is read before it is used."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from additive_jax.errors import UserError, one_line, user_errors

ONE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
EXPECTED = f'{ONE}, or {INDEX} and the files that it lists'
DTYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
# Arrays by name, or what becomes one when it is asked for and knows its shape and dtype before.
Tensors = Mapping[str, Any]


def read_json(path: Path) -> dict[str, Any]:
  """Returns the object in a JSON file; raises `UserError` for anything else."""
  with user_errors('read', path, 'a JSON file'):
    content = path.read_bytes()
  try:
    found = json.loads(content)
  except ValueError as error:
    raise UserError(f'{path} ({one_line(error)}): expected JSON') from error
  if not isinstance(found, dict):
    raise UserError(f'{path}, a {type(found).__name__}: expected a JSON object')
  return found


def tensors_of(directory: Path) -> Tensors:
  """Returns the tensors of a directory by name, as read-only views of the files.

  Raises:
    UserError: for missing or damaged files.
  """
  index = directory / INDEX
  if index.exists():
    return _of_shards(directory, read_json(index).get('weight_map'))
  if (directory / ONE).exists():
    return tensors_of_file(directory / ONE)
  shards = sorted(path.name for path in directory.glob('*.safetensors'))
  others = shards or sorted(path.name for path in directory.glob('*.bin'))
  told = f' with {", ".join(others[:2])}' if others else ''
  missing = INDEX if shards else ONE
  raise UserError(f'{directory}{told} without {missing}: expected {EXPECTED}')


def _of_shards(directory: Path, files: Any) -> Tensors:
  """Returns the tensors of several files, each from the one that the index says."""
  index = directory / INDEX
  texts = isinstance(files, dict) and all(
    isinstance(file, str) and Path(file).name == file for file in files.values()
  )
  if not texts or not files:
    raise UserError(f'{index} without a weight_map: expected names of tensors and files beside it')
  by_file = {file: tensors_of_file(directory / file) for file in sorted(set(files.values()))}
  found = {}
  for name, file in files.items():
    if name not in by_file[file]:
      raise UserError(f'{directory / file} without {name}: expected it, as {index.name} says')
    found[name] = by_file[file][name]
  for file, tensors in by_file.items():
    if surplus := sorted(name for name in tensors if files.get(name) != file):
      raise UserError(f'{directory / file} with {surplus[0]}: expected it in {index.name}')
  return found


def tensors_of_file(path: Path) -> Tensors:
  """Returns the tensors of one safetensors file by name, as read-only views of it.

  >>> import pathlib, safetensors.numpy, tempfile
  >>> file = pathlib.Path(tempfile.mkdtemp()) / 'model.safetensors'
  >>> safetensors.numpy.save_file({'w': np.arange(3.0)}, file)
  >>> tensors_of_file(file)['w'].tolist()
  [0.0, 1.0, 2.0]

  Raises:
    UserError: for a file that is missing, damaged or cut off, or holds another type of numbers.
  """
  with user_errors('read', path, 'a safetensors file'):
    try:
      with safetensors.safe_open(path, 'np'):  # checks the header, and that the file is whole
        pass
    except safetensors.SafetensorError as error:
      raise UserError(
        f'{path} is damaged or cut off ({one_line(error)}): expected a whole safetensors file'
      ) from error
    with path.open('rb') as file:
      (size,) = struct.unpack('<Q', file.read(8))
      header = json.loads(file.read(size))
    header.pop('__metadata__', None)
    if not header:
      return {}
    data = (
      np.memmap(path, np.uint8, 'r', offset=8 + size) if path.stat().st_size > 8 + size else None
    )
  found = {}
  for name, entry in header.items():
    if entry['dtype'] not in DTYPES:
      raise UserError(f'{name} of {path} of type {entry["dtype"]}: expected {", ".join(DTYPES)}')
    first, last = entry['data_offsets']
    content = np.zeros(0, np.uint8) if data is None else data[first:last]
    found[name] = content.view(DTYPES[entry['dtype']]).reshape(entry['shape'])
  return found
