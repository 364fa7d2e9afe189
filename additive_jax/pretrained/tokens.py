"""Tokenizers of pretrained networks, by the library `tokenizers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from additive_jax.errors import UserError, one_line
from additive_jax.pretrained.extras import needs
from additive_jax.pretrained.family import Config

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
    raise UserError(
      f'tokenizer of {directory} ({one_line(error)[:160]}): expected a file that tokenizers reads'
    ) from error
  raise UserError(f'{directory} with {", ".join(found)}: expected {JSON}')


def check_vocabulary(tokenizer: Any, config: Config, path: Path) -> None:
  """Raises `UserError` for a tokenizer that gives tokens which the network does not have."""
  size = config.get('vocab_size')
  if tokenizer is None or size is None:
    return
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  word, last = max(vocabulary.items(), key=lambda pair: pair[1], default=('', -1))
  if last >= size:
    raise UserError(
      f'tokenizer of {path} with {len(vocabulary)} tokens, of which {word!r} is {last}: expected '
      f'that of the network, whose vocab_size is {size}'
    )
