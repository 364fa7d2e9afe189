"""Tokenizers, of the library `tokenizers`, from the files of pretrained networks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from additive_jax.data.gguf_tokens import open_gguf, tokenizer_of_metadata
from additive_jax.errors import UserError, one_line, user_errors, user_path
from additive_jax.files.extras import needs

JSON = 'tokenizer.json'
# Files that describe a tokenizer, which an export takes along.
FILES = (
  JSON,
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'vocab.txt',
  'merges.txt',
  'tokenizer.model',
  'spiece.model',
  'chat_template.jinja',
  'chat_template.json',
)
EXPECTED = f'a {JSON}, a directory with one, or a GGUF file'
READABLE = 'expected a file that tokenizers reads'


def read_tokenizer(given: Any) -> Any:
  """Returns a tokenizer, a `tokenizers.Tokenizer`, that neither cuts nor pads what it is given.

  >>> read_tokenizer('nowhere/tokenizer.json')
  Traceback (most recent call last):
  additive_jax.errors.UserError: tokenizer 'nowhere/tokenizer.json' does not exist: expected a
  tokenizer.json, a directory with one, or a GGUF file

  Args:
    given: the path of one of these; or a tokenizer of tokenizers, or a fast one of transformers.

  Raises:
    UserError: for anything else, a damaged file, or where tokenizers is not installed.
  """
  if isinstance(given, str | os.PathLike):
    tokenizer = _read(user_path(os.fspath(given), 'tokenizer'))
  else:
    tokenizer = getattr(given, '_tokenizer', given)  # of transformers, and of made-up kinds
  if not hasattr(tokenizer, 'encode_batch_fast'):
    raise UserError(f'tokenizer of type {type(given).__name__}: expected that of tokenizers')
  if tokenizer.truncation or tokenizer.padding:
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())  # the caller's stays as it is
    tokenizer.no_truncation()
    tokenizer.no_padding()
  return tokenizer


def vocabulary_size(tokenizer: Any) -> int:
  """Returns how many tokens a network needs for a tokenizer: one more than its last."""
  return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _read(path: Path) -> Any:
  if not path.exists():
    raise UserError(f'tokenizer {str(path)!r} does not exist: expected {EXPECTED}')
  if path.is_dir():
    tokenizer = tokenizer_of(path)
  elif _is_gguf(path):
    tokenizer = tokenizer_of_metadata(open_gguf(path)[1], path)
  else:
    try:
      return needs('tokenizers', f'tokenizer {path}').Tokenizer.from_file(str(path))
    except UserError:
      raise
    except Exception as error:
      raise UserError(f'tokenizer {str(path)!r} ({one_line(error)[:160]}): {READABLE}') from error
  if tokenizer is None:
    raise UserError(f'tokenizer {str(path)!r} is not in there: expected {EXPECTED}')
  return tokenizer


def _is_gguf(path: Path) -> bool:
  with user_errors('read', path, EXPECTED), path.open('rb') as file:
    return file.read(4) == b'GGUF'


def tokenizer_of(directory: Path) -> Any:
  """Returns the tokenizer of a directory, a `tokenizers.Tokenizer`; None where it has none.

  Raises:
    UserError: for a damaged file, or a kind that has no `tokenizer.json`.
  """
  found = [name for name in FILES if (directory / name).exists()]
  made = {JSON, 'vocab.txt', 'vocab.json', 'merges.txt', 'tokenizer.model', 'spiece.model'}
  if not set(found) & made:
    return None
  tokenizers = needs('tokenizers', f'the tokenizer of {directory}')
  path = directory / JSON
  try:
    if path.exists():
      return tokenizers.Tokenizer.from_file(str(path))
    if {'vocab.json', 'merges.txt'} <= set(found):
      files = str(directory / 'vocab.json'), str(directory / 'merges.txt')
      return tokenizers.ByteLevelBPETokenizer(*files)._tokenizer
    if 'vocab.txt' in found:
      words = tokenizers.BertWordPieceTokenizer(str(directory / 'vocab.txt'), lowercase=True)
      return words._tokenizer
  except Exception as error:
    raise UserError(f'tokenizer of {directory} ({one_line(error)[:160]}): {READABLE}') from error
  raise UserError(f'{directory} with {", ".join(found)}: expected {JSON}')
