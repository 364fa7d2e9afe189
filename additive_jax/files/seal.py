"""Checksums inside of JSON objects and beside files, so that what is read is what was written.

An object has its checksum as its last value, and stays plain JSON for everybody else:

  {"seed": 0, "loss": 0.31, "crc": "8c05a21c"}      CRC-32 of the rest, its keys in order

Versions before this one wrote none; their objects are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = 'crc'


class DamagedError(Exception):
  """A part of a file is not what was written; the message names it."""


# Around what differs between runs of one config in a page, such as seconds.
VARIES = '<!-- varies -->', '<!-- /varies -->'
VARYING = re.compile('(?<={})[^\0]*?(?={})'.format(*map(re.escape, VARIES)).encode())


def crc(value: Any) -> str:
  """Returns the checksum of a value of JSON types: eight hex digits.

  >>> crc({'b': 1, 'a': 0.5}) == crc({'a': 0.5, 'b': 1})
  True
  """
  return f'{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}'


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an object of JSON types with its checksum.

  >>> sealed({'seed': 0})
  {'seed': 0, 'crc': '0bcad144'}
  """
  rest = {key: item for key, item in value.items() if key != KEY}
  return rest | {KEY: crc(rest)}


def opened(value: Any) -> tuple[dict[str, Any], bool]:
  """Returns an object without its checksum, and whether it had one.

  >>> opened(sealed({'seed': 0}))
  ({'seed': 0}, True)
  >>> opened(sealed({'seed': 0}) | {'seed': 1})
  Traceback (most recent call last):
  additive_jax.files.seal.DamagedError: not what was written, as its checksum tells

  Raises:
    DamagedError: for another value than an object, or one that is not what was written.
  """
  if not isinstance(value, dict):
    raise DamagedError('expected a JSON object')
  rest = {key: item for key, item in value.items() if key != KEY}
  last = list(value)[-1:]
  # The damage may be in the name of the checksum, so that it looks like none.
  stated = value.get(KEY) if KEY in value else _looks_sealed(value, *last)
  if KEY in value and stated == crc(rest):
    return rest, True
  if KEY in value or stated:
    raise DamagedError('not what was written, as its checksum tells')
  return rest, False


def _looks_sealed(value: dict[str, Any], last: str = '') -> bool:
  return value.get(last) == crc({key: item for key, item in value.items() if key != last})


def parsed(content: bytes | str) -> tuple[dict[str, Any], bool]:
  """Returns the object that a file or a line of one holds, and whether it had a checksum.

  Raises:
    DamagedError: as `opened`, or when it is no JSON.
  """
  try:
    value = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise DamagedError(f'no JSON: {error}') from error
  return opened(value)


def digest(path: Path) -> str:
  """Returns the SHA-256 of a file as hex digits, without what stands between the marks `VARIES`.

  Raises:
    OSError: it cannot be read.
  """
  with open(path, 'rb') as file:
    if path.suffix != '.html':
      return hashlib.file_digest(file, 'sha256').hexdigest()
    return hashlib.sha256(VARYING.sub(b'', file.read())).hexdigest()
