"""Arrays by name in one `.npz` file, whole or not there, with a checksum and without pickles."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from additive_jax.errors import user_errors
from additive_jax.files.journal import replace_file
from additive_jax.files.seal import KEY, DamagedError

Arrays = dict[str, Shaped[np.ndarray, '...']]


def save_arrays(path: Path, arrays: Mapping[str, Shaped[np.ndarray | float, '...']]) -> None:
  """Writes arrays by name, with their checksum as one more.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   save_arrays(Path(folder) / 'a.npz', {'labels': np.arange(3)})
  ...   load_arrays(Path(folder) / 'a.npz')
  {'labels': array([0, 1, 2])}

  Raises:
    UserError: the file cannot be written.
  """
  plain = {name: np.asarray(value) for name, value in arrays.items()}
  stream = io.BytesIO()
  content = plain | {KEY: np.asarray(_crc(plain), np.uint32)}
  np.savez(stream, allow_pickle=False, **content)
  with user_errors('write', path, 'a file that may be written'):
    replace_file(path, stream.getvalue())


def load_arrays(path: Path) -> Arrays:
  """Returns the arrays that `save_arrays` wrote; a file of an earlier version has no checksum.

  Raises:
    UserError: the file cannot be read.
    DamagedError: it is not what was written. Nothing in it is unpickled.
  """
  with user_errors('read', path, 'a file that the run has written'):
    content = path.read_bytes()
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except Exception as error:  # damage shows as an error of any kind
    raise DamagedError(f'{type(error).__name__}: {" ".join(str(error).split())[:200]}') from error
  stated = arrays.pop(KEY, None)
  if stated is not None and (stated.shape or int(stated) != _crc(arrays)):
    raise DamagedError('not what was written, as its checksum tells')
  return arrays


def _crc(arrays: Mapping[str, np.ndarray]) -> int:
  total = 0
  for name in sorted(arrays):
    array = arrays[name]
    total = zlib.crc32(f'{name} {array.dtype.str} {array.shape}'.encode(), total)
    total = zlib.crc32(np.ascontiguousarray(array).tobytes(), total)
  return total
