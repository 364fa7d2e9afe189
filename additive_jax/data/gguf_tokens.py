"""Metadata of GGUF files, and tokenizers from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from additive_jax.errors import UserError, one_line
from additive_jax.files.extras import needs

PREFIX = 'tokenizer.ggml.'
CONTROL, USER_DEFINED = 3, 4  # types of tokens that text is split at
# How text is cut into words before pairs are merged, as llama.cpp names it.
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
PATTERNS = {'llama-bpe': LLAMA3, 'qwen2': LLAMA3.replace('{1,3}', '')}
DIGITS = ('smollm', 'refact', 'starcoder', 'command-r', 'codeshell')
PLAIN = ('default', 'gpt-2', 'olmo')


def open_gguf(path: Path) -> tuple[Any, dict[str, Any]]:
  """Returns the reader of a GGUF file, a `gguf.GGUFReader`, and its metadata by name.

  Raises:
    UserError: for another file, or a damaged one.
  """
  gguf = needs('gguf', f'the GGUF file {path}')
  with path.open('rb') as file:
    if file.read(4) != b'GGUF':
      raise UserError(f'{path}: expected a GGUF file, or a Hugging Face directory')
  try:
    reader = gguf.GGUFReader(path)
  except Exception as error:
    raise UserError(
      f'{path} is damaged or cut off ({one_line(error)[:160]}): expected a whole GGUF file'
    ) from error
  return reader, {name: field.contents() for name, field in reader.fields.items()}


def tokenizer_of_metadata(fields: Mapping[str, Any], path: Path) -> Any:
  """Returns the tokenizer, a `tokenizers.Tokenizer`; None where the file has none.

  Raises:
    UserError: for a kind that is unknown.
  """
  kind, words = fields.get(f'{PREFIX}model'), fields.get(f'{PREFIX}tokens')
  if kind is None or not words:
    return None
  tokenizers = needs('tokenizers', f'the tokenizer of {path}')
  types = fields.get(f'{PREFIX}token_type') or [1] * len(words)
  vocabulary = {word: i for i, word in enumerate(words)}
  if kind == 'gpt2':
    tokenizer = _byte_level(tokenizers, vocabulary, fields, path)
  elif kind == 'llama':
    scores = fields.get(f'{PREFIX}scores') or [0.0] * len(words)
    tokenizer = _sentence_piece(tokenizers, vocabulary, scores, fields)
  else:
    raise UserError(f'tokenizer {kind!r} of {path}: expected gpt2 or llama')
  added = [
    tokenizers.AddedToken(word, special=of_type == CONTROL, normalized=False)
    for word, of_type in zip(words, types)
    if of_type in (CONTROL, USER_DEFINED)
  ]
  tokenizer.add_tokens(added)
  return tokenizer


def _byte_level(
  tokenizers: Any, vocabulary: dict[str, int], fields: Mapping[str, Any], path: Path
) -> Any:
  """Returns a tokenizer that merges pairs of bytes."""
  merges = [tuple(pair.split(' ', 1)) for pair in fields.get(f'{PREFIX}merges') or ()]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, ignore_merges=False))
  before, cut = tokenizers.pre_tokenizers, fields.get(f'{PREFIX}pre', 'default')
  if cut in PATTERNS:
    words = before.Split(tokenizers.Regex(PATTERNS[cut]), 'isolated')
    steps = [words, before.ByteLevel(add_prefix_space=False, use_regex=False)]
  elif cut in DIGITS:
    steps = [before.Digits(individual_digits=True), before.ByteLevel(add_prefix_space=False)]
  elif cut in PLAIN:
    steps = [before.ByteLevel(add_prefix_space=False)]
  else:
    known = ', '.join((*PATTERNS, *DIGITS, *PLAIN))
    raise UserError(f'{PREFIX}pre {cut!r} of {path}: expected one of {known}')
  tokenizer.pre_tokenizer = before.Sequence(steps)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  return tokenizer


def _sentence_piece(
  tokenizers: Any, vocabulary: dict[str, int], scores: Any, fields: Mapping[str, Any]
) -> Any:
  """Returns a tokenizer that merges pairs of characters, those of the best scores first."""
  merges = []
  for word, i in vocabulary.items():
    pairs = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
    known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
    known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    merges += [(scores[i], pair) for pair in known]
  merges.sort(key=lambda merge: -merge[0])
  unknown = next((word for word, i in vocabulary.items() if i == 0), None)
  model = tokenizers.models.BPE(
    vocabulary,
    [pair for _, pair in merges],
    unk_token=unknown,
    fuse_unk=True,
    byte_fallback=True,
  )
  tokenizer, normal = tokenizers.Tokenizer(model), tokenizers.normalizers
  space = '▁'
  first = [normal.Prepend(space)] if fields.get(f'{PREFIX}add_space_prefix', True) else []
  tokenizer.normalizer = normal.Sequence([*first, normal.Replace(' ', space)])
  out = tokenizers.decoders
  steps = [out.Replace(space, ' '), out.ByteFallback(), out.Fuse()]
  tokenizer.decoder = out.Sequence([*steps, *([out.Strip(' ', 1, 0)] if first else [])])
  return tokenizer
