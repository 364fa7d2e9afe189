"""A split to choose by, cut from the end of the training part of a data set."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from additive_jax.batches import rows
from additive_jax.data.splits import ArraySplit, Data, SourceSplit, Split
from additive_jax.errors import UserError

BY_RULE = -1.0
EXPECTED = '-1, for a fifth of the training part or less, 0, for none, or a share below 1'


def hold_out(data: Data, share: float = BY_RULE) -> Data:
  """Returns a data set with a split to choose by, `valid`: the last of its training examples, in
  their order.

  A training part of 1,437 examples and a test split of 360 give 1437 // 5 = 287:

    train   0 … 1149
    valid   1150 … 1436
    test    its own 360

  >>> held_out = hold_out(aj.data.load('digits', valid=0.0))
  >>> len(held_out.train), len(held_out.valid), len(held_out.test)
  (1150, 287, 360)

  Args:
    data: of a source that may have a `valid` of its own.
    share: −1 keeps that, or holds out as many examples as are tested, but at most a fifth of the
      training part; 0 holds out none, and drops that; else the share of the training part.

  Raises:
    UserError: for another share, or a training part of which nothing would be held out or left.
  """
  if share == 0:
    return dataclasses.replace(data, valid=None)
  if share != BY_RULE and not 0 < share < 1:
    raise UserError(f'valid {share}: expected {EXPECTED}')
  if share == BY_RULE and data.valid is not None:
    return data
  total = len(data.train)
  count = min(len(data.test), total // 5) if share == BY_RULE else round(share * total)
  if not 0 < count < total:
    of = 'a fifth' if share == BY_RULE else f'a share of {share:g}'
    raise UserError(
      f'valid {share:g}: {of} of the {total} training examples of {data.name} holds out {count}: '
      'expected some to choose by and some to learn from, or 0 to hold out none'
    )
  cut = total - count
  train = part(data.train, 0, cut, f'{data.name}, train')
  valid = part(data.train, cut, total, f'{data.name}, valid')
  return dataclasses.replace(data, train=train, valid=valid)


def part(split: Split, start: int, stop: int, name: str = '') -> Split:
  """Returns the examples of a split from one to another, in their order, called `name`.

  >>> part(ArraySplit(np.arange(6.0), np.arange(6)), 2, 4).y
  array([2, 3])
  """
  if split.in_memory:
    whole: Any = split  # with its arrays
    x, y = rows((whole.x, whole.y), slice(start, stop))
    return ArraySplit(x, y, name)
  return SourceSplit(stop - start, lambda indices: split[indices.astype(np.int64) + start])
