"""`load`: a data set from a short text that says where it comes from."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from additive_jax.data.folders import Pictures, load_folder
from additive_jax.data.held_out import BY_RULE, hold_out
from additive_jax.data.images import load_digits, load_idx
from additive_jax.data.splits import Data
from additive_jax.data.table import Columns, load_table
from additive_jax.data.tabular import load_tabular
from additive_jax.data.text import Files, load_stdlib, load_text, stdlib_files, text_files
from additive_jax.data.tfds import load_tfds
from additive_jax.data.tokenised import load_tokenised
from additive_jax.errors import UserError

# The kinds of data, each with what must follow its colon (None: nothing).
KINDS = {
  'digits': None,
  'stdlib': None,
  'idx': 'DIR',
  'text': 'PATH',
  'tabular': 'NAME',
  'tfds': 'NAME',
  'file': 'PATH',
  'images': 'DIR',
}


class Own(TypedDict, total=False):
  """What is to be known of data of one's own.

  Attributes:
    target: of a table, the column that is learnt, or several of a regression.
    columns: of a table, those it is learnt from; '' is all others.
    missing: of a table, what becomes of values that are missing: 'refuse', 'drop' or 'fill'.
    weight: of a table, the column of the rows' weights; '' is none.
    split: of a table, the column that says 'train', 'valid' or 'test'; '' is none.
    task: of a table, 'classification', 'regression' or 'language'; '' goes by the target.
    ignore_label: of a table that is a language, the token of the target that does not count.
    image_size: height and width of images in folders; 0 is their own.
    channels: of images in folders: 1, 3 or 4; 0 goes by the first.
  """

  target: str | Sequence[str]
  columns: str | Sequence[str]
  missing: str
  weight: str
  split: str
  task: str
  ignore_label: int | None
  image_size: int
  channels: int


def load(
  spec: str,
  *,
  sequence_length: int = 128,
  tokenizer: Any = '',
  data_dir: str | None = None,
  download: bool = False,
  memory_limit: int = 2 * 1024**3,
  valid: float = BY_RULE,
  **own: Unpack[Own],
) -> Data:
  """Loads a data set, with a split to choose by.

  >>> data = load('digits')
  >>> len(data.train), len(data.valid), len(data.test), data.example_shape, data.num_outputs
  (1150, 287, 360, (8, 8, 1), 10)

  Args:
    spec: one of
      `digits`: scikit-learn's 1,797 images of 8×8 pixels;
      `stdlib`: the source of the running Python's standard library, as bytes;
      `idx:DIR`: a folder in the MNIST file format;
      `text:PATH`: a file or a folder, as bytes, or with a `tokenizer` as tokens;
      `tabular:NAME`: one of scikit-learn's bundled tables;
      `tfds:NAME`: a TensorFlow Datasets set, prepared as ArrayRecord; NAME may be
        `set/config:version`;
      `file:PATH`: a table of your own, CSV, Parquet or NPZ, see `table.load_table`;
      `images:DIR`: a folder of images of your own for each class, see `folders.load_folder`.
    sequence_length: bytes, or tokens, per example, for text; at least 1.
    tokenizer: of text, what makes tokens of it, a `tokenizers.Tokenizer` or the path of one, see
      `tokenizer.read_tokenizer`; documents, files or lines of `.jsonl` files, are then packed into
      examples, see `tokenised.load_tokenised`. '' is bytes.
    data_dir: where prepared tfds sets are; None is the place that tfds uses.
    download: download and prepare a tfds set that isn't prepared. Nothing else uses the network.
    memory_limit: bytes that the x of a split (x and y, for text) may take; a larger one is read as
      it is needed.
    valid: what is held out to choose by, see `held_out.hold_out`: −1 is the source's own split, or
      the last examples of the training part, a fifth at most; 0 is none, else the share of it.
    own: of tables and folders of images of your own, see `Own`.

  Raises:
    UserError: the spec is not one of these, or the data is missing, unreadable or not what the spec
      says.
  """
  kind, name = _parsed(spec, own)
  if sequence_length < 1:
    raise UserError(f'sequence_length={sequence_length}; expected at least 1')
  try:
    if tokenizer is not None and tokenizer != '':
      files = _text_files(spec, kind, name, tokenizer)
      return load_tokenised(files, tokenizer, sequence_length, memory_limit, valid)
    return hold_out(
      _loaded(kind, name, sequence_length, data_dir, download, memory_limit, valid, own), valid
    )
  except OSError as error:
    raise UserError(f'{spec}: cannot read {str(error.filename)!r}: {error.strerror}') from error


def _loaded(
  kind: str,
  name: str,
  sequence_length: int,
  data_dir: str | None,
  download: bool,
  memory_limit: int,
  valid: float,
  own: Any,
) -> Data:
  """Returns what a source gives."""
  match kind:
    case 'digits':
      return load_digits(memory_limit)
    case 'stdlib':
      return load_stdlib(sequence_length, memory_limit)
    case 'idx':
      return load_idx(name, memory_limit)
    case 'text':
      return load_text(name, sequence_length, memory_limit)
    case 'tabular':
      return load_tabular(name, memory_limit)
    case 'file':
      return load_table(name, _of(Columns, own), memory_limit)
    case 'images':
      return load_folder(name, _of(Pictures, own), memory_limit)
    case _:
      own_valid = valid == BY_RULE
      return load_tfds(name, sequence_length, data_dir, download, memory_limit, own_valid)


def _text_files(spec: str, kind: str, name: str, tokenizer: Any) -> Files:
  """Returns the files that a tokenizer is for."""
  if kind not in ('stdlib', 'text'):
    shown = repr(tokenizer) if isinstance(tokenizer, str) else type(tokenizer).__name__
    raise UserError(f'tokenizer {shown} of {spec}: expected none, or {_form("text")} or stdlib')
  return stdlib_files() if kind == 'stdlib' else text_files(name)


def _of(kind: Any, own: Any) -> Any:
  """Returns an object whose fields are what is known of one's own data."""
  names = [field.name for field in dataclasses.fields(kind)]
  return kind(**{name: own[name] for name in names if name in own})


def _parsed(spec: str, own: Any) -> tuple[str, str]:
  """Returns the kind and what follows its colon."""
  if unknown := own.keys() - Own.__annotations__.keys():
    raise TypeError(f'load() got {sorted(unknown)}: expected some of {[*Own.__annotations__]}')
  kind, colon, name = spec.partition(':')
  if kind not in KINDS:
    close = difflib.get_close_matches(kind, KINDS, n=1)
    hint = f' (did you mean {_form(close[0])}?)' if close else ''
    raise UserError(f'unknown data {spec!r}; expected {", ".join(map(_form, KINDS))}{hint}')
  if bool(colon) != bool(KINDS[kind]) or bool(name) != bool(KINDS[kind]):
    raise UserError(f'data {spec!r}; expected {_form(kind)}')
  return kind, name


def _form(kind: str) -> str:
  return f'{kind}:{KINDS[kind]}' if KINDS[kind] else kind
