"""`load`: a data set from a short text that says where it comes from."""

import difflib

from additive_jax.data.images import load_digits, load_idx
from additive_jax.data.splits import Data
from additive_jax.data.tabular import load_tabular
from additive_jax.data.text import load_stdlib, load_text
from additive_jax.data.tfds import load_tfds
from additive_jax.errors import UserError

# The kinds of data, each with what must follow its colon (None: nothing).
KINDS = {
  'digits': None,
  'stdlib': None,
  'idx': 'DIR',
  'text': 'PATH',
  'tabular': 'NAME',
  'tfds': 'NAME',
}


def load(
  spec: str,
  *,
  sequence_length: int = 128,
  data_dir: str | None = None,
  download: bool = False,
  memory_limit: int = 2 * 1024**3,
) -> Data:
  """Loads a data set.

  Args:
    spec: one of
      `digits`: scikit-learn's 1,797 images of 8×8 pixels;
      `stdlib`: the source of the running Python's standard library, as bytes;
      `idx:DIR`: a folder in the MNIST file format;
      `text:PATH`: a file or a folder, as bytes;
      `tabular:NAME`: one of scikit-learn's bundled tables;
      `tfds:NAME`: a TensorFlow Datasets set, prepared as ArrayRecord; NAME may be
        `set/config:version`.
    sequence_length: bytes per example, for text; at least 1.
    data_dir: where prepared tfds sets lie; None is the place that tfds uses. Other kinds don't use
      it.
    download: download and prepare a tfds set that isn't prepared. Other kinds never use the
      network.
    memory_limit: bytes that the x of a split (x and y, for text) may take; a larger one is read as
      it is needed.

  Returns:
    the data set: what x and y are is said by `Data.task`.

  Raises:
    UserError: the spec is not one of these, or the data is missing, unreadable or not what the spec
      says.

  Example:
    >>> data = load('digits')
    >>> len(data.train), len(data.test), data.example_shape, data.num_outputs
    (1437, 360, (8, 8, 1), 10)
  """
  kind, colon, rest = spec.partition(':')
  if kind not in KINDS:
    close = difflib.get_close_matches(kind, KINDS, n=1)
    hint = f' (did you mean {_form(close[0])}?)' if close else ''
    raise UserError(f'unknown data {spec!r}; expected {", ".join(map(_form, KINDS))}{hint}')
  if bool(colon) != bool(KINDS[kind]) or bool(rest) != bool(KINDS[kind]):
    raise UserError(f'data {spec!r}; expected {_form(kind)}')
  if sequence_length < 1:
    raise UserError(f'sequence_length={sequence_length}; expected at least 1')
  try:
    match kind:
      case 'digits':
        return load_digits(memory_limit)
      case 'stdlib':
        return load_stdlib(sequence_length, memory_limit)
      case 'idx':
        return load_idx(rest, memory_limit)
      case 'text':
        return load_text(rest, sequence_length, memory_limit)
      case 'tabular':
        return load_tabular(rest, memory_limit)
      case _:
        return load_tfds(rest, sequence_length, data_dir, download, memory_limit)
  except OSError as error:
    raise UserError(f'{spec}: cannot read {str(error.filename)!r}: {error.strerror}') from error


def _form(kind: str) -> str:
  return f'{kind}:{KINDS[kind]}' if KINDS[kind] else kind
