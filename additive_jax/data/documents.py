"""Documents from files, each whole or a line of JSON, and their tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Int32

from additive_jax.data.packing import LEAST, Documents
from additive_jax.data.text import Files
from additive_jax.errors import UserError, one_line

log = logging.getLogger('additive_jax')

LINES = '.jsonl'  # the end of files with a document in each line
KEY = 'text'
# What a tokenizer is given at once, which its threads share.
MOST_TEXTS, MOST_CHARACTERS = 4096, 4 * 1024**2


def texts_of(
  files: Files, advance: Callable[[int], object] = lambda count: None
) -> Iterator[tuple[str, str]]:
  """Yields the name and the text of each document: a file, or a line of a `.jsonl` file, an object
  whose `text` it is.

  Args:
    files: in UTF-8.
    advance: is told of each document's bytes.

  Raises:
    UserError: for other text, or a line that is no such object, with its number.
  """
  for path in files.paths:
    name = path.relative_to(files.root).as_posix()
    if path.suffix != LINES:
      text = path.read_bytes()
      yield name, _decoded(text, f'{files.spec}: {str(path)!r}')
      advance(len(text))
      continue
    with path.open('rb') as lines:
      for number, line in enumerate(lines, 1):
        if line.strip():
          yield f'{name}:{number}', _text_of(line, f'{files.spec}: line {number} of {str(path)!r}')
        advance(len(line))


def _decoded(text: bytes, where: str) -> str:
  try:
    return text.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(
      f'{where} ({error.reason} at byte {error.start}): expected text in UTF-8'
    ) from error


def _text_of(line: bytes, where: str) -> str:
  """Returns the text of one line of JSON."""
  expected = f'expected an object with a {KEY!r}, such as {{"{KEY}": "once …"}}'
  try:
    value = json.loads(_decoded(line, where))
  except (json.JSONDecodeError, RecursionError) as error:
    raise UserError(f'{where} is no JSON ({one_line(error)}): {expected}') from error
  if not isinstance(value, dict):
    raise UserError(f'{where} is a {type(value).__name__}: {expected}')
  if KEY not in value:
    raise UserError(f'{where} has {", ".join(map(repr, value)) or "no key"}: {expected}')
  if not isinstance(value[KEY], str):
    raise UserError(f'{where} has a {KEY!r} of type {type(value[KEY]).__name__}: expected text')
  return value[KEY]


def tokenised(
  spec: str, texts: Iterable[tuple[str, str]], tokenizer: Any
) -> tuple[Documents, list[str]]:
  """Returns the tokens of documents, with the special ones that the tokenizer adds, and their
  names.

  Those that are empty, or of one token, are left out, with a warning.

  Args:
    spec: what they are called together, for messages.
    texts: names and texts; they are read once, and not kept.
    tokenizer: as `read_tokenizer` gives it.

  Raises:
    UserError: for a document that is no text, or that the tokenizer fails on.
  """
  tokens, names, skipped, total = [], [], [], 0
  for some in _batches(spec, texts):
    total += len(some)
    for (name, _), found in zip(some, _encoded(spec, some, tokenizer)):
      if len(found) < LEAST:
        skipped.append(name)
        continue
      tokens.append(found)
      names.append(name)
  if skipped:
    log.warning(
      '%s: skipped %d of %d documents, which are empty or of one token; the first is %s',
      spec,
      len(skipped),
      total,
      skipped[0],
    )
  return Documents.joined(tokens), names


def _batches(spec: str, texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
  some, size = [], 0
  for name, text in texts:
    if not isinstance(text, str):
      raise UserError(f'{spec}: document {name} of type {type(text).__name__}: expected text')
    some.append((name, text))
    size += len(text)
    if size >= MOST_CHARACTERS or len(some) >= MOST_TEXTS:
      yield some
      some, size = [], 0
  if some:
    yield some


def _encoded(
  spec: str, some: list[tuple[str, str]], tokenizer: Any
) -> list[Int32[np.ndarray, '_']]:
  """Returns the tokens of some documents; none of what is empty, whatever is added to it."""
  texts = [text for _, text in some]
  try:
    encoded = tokenizer.encode_batch_fast(texts)
  except Exception as error:
    where = some[0][0] if len(some) == 1 else f'{some[0][0]} to {some[-1][0]}'
    raise UserError(
      f'{spec}: the tokenizer fails on documents {where} ({one_line(error)[:160]}): expected one '
      'that takes any text'
    ) from error
  ids = [found.ids if text.strip() else [] for text, found in zip(texts, encoded)]
  return [np.array(found, np.int32) for found in ids]
