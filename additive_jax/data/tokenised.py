"""Texts as tokens of any tokenizer: documents, packed into examples and split whole."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int

from additive_jax.data.documents import texts_of, tokenised
from additive_jax.data.held_out import BY_RULE, EXPECTED
from additive_jax.data.packing import LEAST, Documents, Rows
from additive_jax.data.splits import Data, fit
from additive_jax.data.text import TEST_SHARE, Files, hash_of
from additive_jax.data.tokenizer import read_tokenizer, vocabulary_size
from additive_jax.errors import UserError, checked_seed
from additive_jax.files.progress import Progress

MEMORY_LIMIT = 2 * 1024**3
Parts = dict[str, Documents]
Texts = Iterable[str]


def from_texts(
  documents: Texts,
  tokenizer: Any,
  *,
  sequence_length: int = 128,
  valid: float | Texts = 0.1,
  test: float | Texts = 0.2,
  seed: int | None = 0,
  memory_limit: int = MEMORY_LIMIT,
  name: str = 'texts',
) -> Data:
  """Returns a data set of documents, as tokens that are packed into rows of one length T.

  No document is in two splits, and none sees another: x is a dict of `tokens` and `segments`, as
  `models.Decoder`, `GPT2`, `BERT` and `Transformer` take them, and y is the next token of the same
  document, `Weighted`: 0 where there is none, at the end of a document and in padding. So a loss
  is the mean over all tokens that have a next one. `packing.Rows` says how documents are packed;
  one of more than T tokens is cut into pieces, which do not see each other.

  >>> from tokenizers import Tokenizer, models, pre_tokenizers
  >>> words = Tokenizer(models.WordLevel({'a': 0, 'rose': 1, 'is': 2, '?': 3}, unk_token='?'))
  >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
  >>> data = from_texts(['a rose is a rose'] * 10, words, sequence_length=16)
  >>> data.num_outputs, [len(split) for split in data.splits.values()]
  (4, [3, 1, 1])
  >>> data.train.x['segments'][0].tolist()
  [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 0]

  Args:
    documents: texts; any iterable, which is read once. What is empty, or of one token, is left out
      with a warning.
    tokenizer: a `tokenizers.Tokenizer`, or a path, see `tokenizer.read_tokenizer`. Special tokens
      are those that it adds to a text by itself.
    sequence_length: T, tokens of an example; at least 2.
    valid: the share of the documents to choose by, or documents; 0 is none: choices are then made
      on the test split. Of a single document, the share of its tokens.
    test: the share to judge by, or documents.
    seed: shuffles the documents before they are cut: first come those of test, then those of valid.
      None leaves them in their order, and cuts these from the end, as of a single one.
    memory_limit: bytes that the x of a split may take on a device; a larger one stays on the host.
    name: of the data, in messages and reports.

  Raises:
    UserError: for a tokenizer or documents that are none, or splits without examples.
  """
  tokenizer, length = read_tokenizer(tokenizer), _checked_length(sequence_length)
  both = {'test': test, 'valid': valid}
  given = {part: texts for part, texts in both.items() if not isinstance(texts, numbers.Real)}
  whole, _ = tokenised(name, _numbered(name, documents), tokenizer)
  order, noun = _order(whole, seed)
  counts = {
    part: _count(name, part, share, len(order), noun)
    for part, share in both.items()
    if isinstance(share, numbers.Real)
  }
  parts = _cut(name, whole, counts, order)
  for part, texts in given.items():
    where = f'{name}, {part}'
    parts[part], _ = tokenised(where, _numbered(where, texts), tokenizer)
  return _data(name, parts, vocabulary_size(tokenizer), length, memory_limit)


def load_tokenised(
  files: Files, tokenizer: Any, sequence_length: int, memory_limit: int, valid: float = BY_RULE
) -> Data:
  """Loads files as documents of tokens: each a document, or of a `.jsonl` file each line, the
  `text` of its object. See `from_texts` for what they become.

  Documents are ordered by a hash of their names (path, and number of the line). The first tenth of
  them, at least one, tests; the next ones are to choose by. A single document is cut by position:
  its last tenth tests.

  Args:
    files: of text in UTF-8.
    tokenizer, sequence_length, memory_limit: as of `from_texts`.
    valid: what is held out to choose by: −1 is as many documents as are tested, but a fifth of the
      others at most, and at least one; 0 is none, else the share of those that do not test.

  Raises:
    UserError: as `from_texts`, and for a line that is no object with a `text`.
  """
  tokenizer, length = read_tokenizer(tokenizer), _checked_length(sequence_length)
  size = sum(path.stat().st_size for path in files.paths)
  with Progress(size, f'tokenising {files.spec}', unit='byte', brief=True) as progress:
    whole, names = tokenised(files.spec, texts_of(files, progress.advance), tokenizer)
  order, noun = _order(whole, None)
  if noun == 'documents':
    order = np.array(sorted(range(len(names)), key=lambda i: hash_of(names[i])), int)
  least, total = 1 if noun == 'documents' else LEAST, len(order)
  test = max(least, round(TEST_SHARE * total))
  if valid == BY_RULE:
    held_out = max(least, min(test, (total - test) // 5))
  elif 0 <= valid < 1:
    held_out = _count(files.spec, 'valid', valid, total - test, noun)
  else:
    raise UserError(f'valid {valid}: expected {EXPECTED}')
  parts = _cut(files.spec, whole, {'test': test, 'valid': held_out}, order)
  return _data(files.spec, parts, vocabulary_size(tokenizer), length, memory_limit)


def _checked_length(length: int) -> int:
  if length < LEAST:
    raise UserError(
      f'sequence_length={length} of tokens; expected at least {LEAST}, a token and the next'
    )
  return length


def _numbered(name: str, texts: Any) -> Iterable[tuple[str, str]]:
  """Returns documents with their numbers for names."""
  if isinstance(texts, str) or not isinstance(texts, Iterable):
    raise UserError(
      f'{name}: documents of type {type(texts).__name__}: expected a list of texts, or an iterable'
    )
  return ((str(number), text) for number, text in enumerate(texts))


def _order(whole: Documents, seed: int | None) -> tuple[Int[np.ndarray, 'total'], str]:
  """Returns the order in which documents are held out, or tokens of a single one, and which of both
  it is of: drawn with the seed for documents, else from the last to the first."""
  if len(whole) == 1:
    return np.arange(whole.num_tokens)[::-1], 'tokens'
  if seed is None:
    return np.arange(len(whole))[::-1], 'documents'
  rng = np.random.Generator(np.random.PCG64(checked_seed(seed)))
  return rng.permutation(len(whole)), 'documents'


def _count(name: str, part: str, share: Any, total: int, noun: str) -> int:
  """Returns how many documents, or tokens of a single one, are a share of them."""
  if not 0 <= share < 1 or (part == 'test' and not share):
    least = 'above 0' if part == 'test' else 'from 0'
    raise UserError(f'{part} {share!r} of {name}: expected a share {least} and below 1')
  count = round(share * total)
  if total and share and not count:
    raise UserError(f'{part} {share!r} of the {total} {noun} of {name} is none: expected some')
  return count


def _cut(
  name: str, whole: Documents, counts: dict[str, int], order: Int[np.ndarray, 'total']
) -> Parts:
  """Returns the documents of each split, in their own order; of a single one its parts.

  Args:
    counts: how many documents, or tokens of a single one, are held out, in the order in which they
      are taken; the rest is to learn from.
    order: of the documents, or tokens from the last to the first.
  """
  if not len(whole):
    raise UserError(f'{name}: no document of {LEAST} tokens or more; expected some text')
  if len(order) <= sum(counts.values()):
    of = f'{len(whole)} documents' if len(whole) > 1 else f'one document of {len(order)} tokens'
    held_out = ' and '.join(f'{count} {part}' for part, count in counts.items() if count)
    raise UserError(
      f'{name}: {of}, of which {held_out} leave none to learn from: expected more, or a single '
      'document, which is cut by position; valid 0 holds out none to choose by'
    )
  parts, start = {}, 0
  for part, count in {**counts, 'train': len(order) - sum(counts.values())}.items():
    places = np.sort(order[start : start + count])
    start += count
    if count:
      single = len(whole) == 1
      parts[part] = whole.between(places[0], places[-1] + 1) if single else whole.of(places)
  return parts


def _data(name: str, parts: Parts, vocabulary: int, length: int, memory_limit: int) -> Data:
  """Returns the data set of some documents, packed."""
  splits: dict[str, Any] = {}
  for part, documents in parts.items():
    least = length if part == 'train' else LEAST
    if documents.num_tokens < least:
      wanted = f'one row of sequence_length={length}' if part == 'train' else 'a token and the next'
      raise UserError(
        f'{name}: {documents.num_tokens} tokens in the {part} split; expected at least {least}, '
        f'{wanted}'
      )
    rows = Rows(documents, length)
    where = f'{name}, {part}'
    splits[part] = fit(where, len(rows), rows.num_bytes, rows.gather, memory_limit)
  return Data(name, 'language', num_outputs=vocabulary, **splits)
