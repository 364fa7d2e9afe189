"""Documents of tokens, packed into rows of one length: whole where they fit, never crossing.

documents   a b c d e f    g h    i j k              T = 4, padding is ·

row 0       a b c d    segments 1 1 1 1    y b c d ·    weight 1 1 1 0
row 1       e f g h             1 1 2 2      f · h ·           1 0 1 0
row 2       i j k ·             1 1 1 0      j k · ·           1 1 0 0
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
from jaxtyping import Int

from additive_jax.data.splits import Examples
from additive_jax.data.weights import Weighted

LEAST = 2  # tokens of a document from which something is learnt


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
  """Documents that lie in one array of tokens.

  Attributes:
    tokens: of all of them, [tokens].
    starts, stops: where each begins and ends there, [documents].
  """

  tokens: Int[np.ndarray, 'tokens']
  starts: Int[np.ndarray, 'documents']
  stops: Int[np.ndarray, 'documents']

  @classmethod
  def joined(cls, documents: list[Int[np.ndarray, '_']]) -> Documents:
    """Returns documents, laid one after the other.

    >>> len(Documents.joined([np.array([1, 2]), np.array([3, 4, 5])]))
    2
    """
    stops = np.cumsum([len(document) for document in documents], dtype=np.int64)
    tokens = np.concatenate([np.zeros(0, np.int32), *documents]).astype(np.int32)
    return cls(tokens, np.concatenate([np.zeros(1, np.int64), stops])[: len(stops)], stops)

  def __len__(self) -> int:
    return len(self.starts)

  @property
  def num_tokens(self) -> int:
    """How many tokens they have."""
    return int((self.stops - self.starts).sum())

  def of(self, places: Int[np.ndarray, '_']) -> Documents:
    """Returns some of them."""
    return Documents(self.tokens, self.starts[places], self.stops[places])

  def between(self, start: int, stop: int) -> Documents:
    """Returns the tokens of a single one from one place to another, as one document."""
    first = self.starts[:1]
    return Documents(self.tokens, first + start, first + stop)


class Rows:
  """The rows [N, T] that documents are packed into, made when they are asked for.

  A document of more than T tokens is cut into pieces of T, which do not see each other; a last
  piece of one token, from which nothing is learnt, is left out. Pieces are taken in their order.
  Each goes into the row with the least space that is left and takes it, of several into the one
  that came to that space first; where no row takes it, into a new one.

  >>> letters = [np.arange(6), np.arange(6, 8), np.arange(8, 11)]
  >>> rows = Rows(Documents.joined(letters), 4)
  >>> x, y = rows.gather(np.arange(len(rows)))
  >>> x['tokens'].tolist()
  [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]
  >>> x['segments'].tolist()
  [[1, 1, 1, 1], [1, 1, 2, 2], [1, 1, 1, 0]]
  >>> y.weight.tolist()
  [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]

  Args:
    documents: what is packed.
    length: T, at least 2.
  """

  def __init__(self, documents: Documents, length: int):
    begins, lengths = _pieces(documents, length)
    rows, columns = placed(lengths, length)
    order = np.lexsort((columns, rows))
    self._tokens, self._length = documents.tokens, length
    self._begins, self._lengths, self._columns = begins[order], lengths[order], columns[order]
    # Pieces of row i are those from firsts[i] to firsts[i + 1].
    self._firsts = np.searchsorted(rows[order], np.arange(rows.max(initial=-1) + 2))

  def __len__(self) -> int:
    return len(self._firsts) - 1

  @property
  def num_bytes(self) -> int:
    """The size of x."""
    return 2 * 4 * len(self) * self._length

  def gather(self, indices: Int[np.ndarray, 'N']) -> Examples:
    """Returns some rows.

    Returns:
      x, a dict of `tokens` and `segments`, the number of its document in the row from 1, and 0 for
      padding; and y, the next token of the same piece, with weight 0 where there is none. All are
      [N, T].
    """
    counts = self._firsts[indices + 1] - self._firsts[indices]
    number = _ranges(np.zeros_like(counts), counts)  # of each piece in its row
    pieces = np.repeat(self._firsts[indices], counts) + number
    row = np.repeat(np.arange(len(indices)), counts)
    lengths = self._lengths[pieces]
    source = _ranges(self._begins[pieces], lengths)
    place = _ranges(row * self._length + self._columns[pieces], lengths)
    last = np.cumsum(lengths) - 1
    shape = len(indices), self._length
    tokens, segments, targets = (np.zeros(shape, np.int32) for _ in range(3))
    weight = np.zeros(shape, np.float32)
    tokens.reshape(-1)[place] = self._tokens[source]
    segments.reshape(-1)[place] = np.repeat(number + 1, lengths)
    source, place = np.delete(source, last), np.delete(place, last)
    targets.reshape(-1)[place] = self._tokens[source + 1]
    weight.reshape(-1)[place] = 1
    return {'tokens': tokens, 'segments': segments}, Weighted(targets, weight)


def placed(
  lengths: Int[np.ndarray, 'pieces'], size: int
) -> tuple[Int[np.ndarray, 'pieces'], Int[np.ndarray, 'pieces']]:
  """Returns the row and the column at which each piece begins, see `Rows`.

  >>> [places.tolist() for places in placed(np.array([3, 4, 2, 2]), 5)]
  [[0, 1, 0, 2], [0, 0, 3, 0]]

  Args:
    lengths: of the pieces, in order; from 2 to `size`.
    size: of a row.
  """
  rows, columns = (np.zeros(len(lengths), np.int64) for _ in range(2))
  waiting: list[collections.deque[int]] = [collections.deque() for _ in range(size + 1)]
  spaces, count = 0, 0  # bit s: some row has s places left
  for i, length in enumerate(lengths.tolist()):
    enough = spaces >> length
    if enough:
      space = length + (enough & -enough).bit_length() - 1
      row = waiting[space].popleft()
      spaces ^= (not waiting[space]) << space
    else:
      row, space, count = count, size, count + 1
    rows[i], columns[i] = row, size - space
    if space - length >= LEAST:
      waiting[space - length].append(row)
      spaces |= 1 << (space - length)
  return rows, columns


def _pieces(
  documents: Documents, length: int
) -> tuple[Int[np.ndarray, 'pieces'], Int[np.ndarray, 'pieces']]:
  """Returns where each piece begins, and how many tokens it has."""
  counts = -(-(documents.stops - documents.starts) // length)
  number = _ranges(np.zeros_like(counts), counts)
  begins = np.repeat(documents.starts, counts) + number * length
  lengths = np.minimum(length, np.repeat(documents.stops, counts) - begins)
  whole = lengths >= LEAST
  return begins[whole], lengths[whole]


def _ranges(
  begins: Int[np.ndarray, 'ranges'], lengths: Int[np.ndarray, 'ranges']
) -> Int[np.ndarray, '_']:
  """Returns begin, begin + 1, … of each range, one range after the other."""
  before = np.cumsum(lengths) - lengths
  return np.repeat(begins - before, lengths) + np.arange(int(lengths.sum()))
