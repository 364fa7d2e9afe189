"""A digest of a data set: what tells one from another of the same name."""

from __future__ import annotations

import hashlib

import numpy as np

from additive_jax.batches import named_leaves
from additive_jax.data.iterators import IteratorSplit
from additive_jax.data.splits import Data, Examples, Split, take
from additive_jax.files.functions import digest_of

EXAMPLES = 64  # that are looked at of a split which is read as needed


def digest(data: Data) -> str:
  """Returns a digest of the examples of a data set, the same for the same arrays.

  Splits in memory are looked at whole, others at 64 examples spaced evenly over them; of an
  iterator the shapes alone.

  >>> split = aj.data.ArraySplit(np.zeros((4, 2)), np.arange(4))
  >>> other = aj.data.ArraySplit(np.zeros((4, 2)), np.arange(4)[::-1])
  >>> digests = [digest(Data('rows', 'classification', s, split, 4)) for s in (split, other, split)]
  >>> digests[0] == digests[2], digests[0] == digests[1]
  (True, False)
  """
  # Of a task in Python the text has places in memory, which differ from process to process.
  task = data.task if isinstance(data.task, str) else digest_of(data.task).partition(':')[2]
  total = hashlib.blake2b(f'{task} {data.num_outputs}'.encode(), digest_size=8)
  for name, split in data.splits.items():
    total.update(f'{name} {len(split)}'.encode())
    for leaf_name, leaf in named_leaves(_looked_at(split)):
      values = np.ascontiguousarray(leaf)
      total.update(f'{leaf_name} {values.dtype} {values.shape}'.encode())
      if not isinstance(split, IteratorSplit):
        total.update(values.reshape(-1).view(np.uint8).data)
  return total.hexdigest()


def _looked_at(split: Split) -> Examples:
  if isinstance(split, IteratorSplit):
    return split[np.zeros(1, np.int64)]
  if not split.in_memory:
    split = take(split, min(EXAMPLES, len(split)))
  return split[np.arange(len(split))]
