"""Statistics of what tokens chose: paths, specialisation, compute, reuse, flows.

N is a number of examples, T of tokens in each, S of steps (or of layers with a router), k of
modules (or structures, by number) that a token chooses at a step, M of modules, C of classes.

Everywhere `chosen` is `[N, T, S, k]`, whole numbers from 0 to M−1, and the k of a step differ;
`classes` are those of tokens `[N, T]` or of examples `[N]`, 0 to C−1; `identity` is bool `[M]`,
which modules compute nothing; `num_modules` is M and `num_classes` C. All functions raise
`UserError` for an array of another shape or range.
"""

from __future__ import annotations

import string
from typing import NamedTuple

import numpy as np
import scipy  # loads its parts when they are used
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from additive_jax.errors import UserError, checked_seed
from additive_jax.report.power_law import places

_CHARACTERS = {
  'lower-case letter': string.ascii_lowercase,
  'upper-case letter': string.ascii_uppercase,
  'digit': string.digits,
  'space': ' \t\v\f',
  'newline': '\n\r',
  'punctuation': string.punctuation,
}
BYTE_CLASSES = (*_CHARACTERS, 'other')


def path_codes(chosen: ArrayLike) -> Int[np.ndarray, 'examples tokens']:
  """Returns a number for each token's path: 0 is the most frequent.

  A path is the sequence over steps of the *set* of the k modules. Paths as frequent as each other
  are numbered in the order of their modules, smallest first.

  >>> path_codes([[[[2], [1]], [[0], [1]], [[2], [1]]]]).tolist()  # 3 tokens, 2 steps, k = 1
  [[0, 1, 0]]
  """
  sets = np.sort(_checked(chosen), axis=-1)
  columns = sets.reshape(-1, sets.shape[2] * sets.shape[3]).T
  # A path is read as a number in base M, digit by digit. Before it would overflow, the numbers so
  # far are replaced by their place among the distinct ones, which keeps their order:
  #     tokens' digits 7 2 | 9     base 10: 72, 31, 72  →  place 1, 0, 1  →  next digit: 19, 05, 19
  codes = np.zeros(columns.shape[1], np.int64)
  base, bound = int(sets.max(initial=0)) + 1, 1
  for column in columns:
    if bound > np.iinfo(np.int64).max // base:
      values, codes = np.unique(codes, return_inverse=True)
      bound = values.size
    codes, bound = codes * base + column, bound * base
  _, codes, counts = np.unique(codes, return_inverse=True, return_counts=True)
  return places(counts)[codes].reshape(sets.shape[:2])


def rank_frequency(codes: ArrayLike) -> Int[np.ndarray, ' ranks']:
  """Returns how often each distinct one of `codes` (any shape) occurs, most frequent first.

  >>> rank_frequency([3, 1, 3, 3]).tolist()
  [3, 1]
  """
  return np.sort(np.unique(np.asarray(codes), return_counts=True)[1])[::-1]


class Specialisation(NamedTuple):
  """What modules were chosen for, see `specialisation`."""

  share: Float[np.ndarray, 'modules classes']
  lift: Float[np.ndarray, 'modules classes']


def specialisation(
  chosen: ArrayLike, classes: ArrayLike, num_modules: int, num_classes: int
) -> Specialisation:
  """Returns which classes each module serves.

  The share is that of each class among the tokens and steps that chose a module: rows add up to 1,
  and are NaN for a module that was never chosen. The lift is the share over that of the class among
  all tokens: 1 is indifference, NaN a class without tokens.
  """
  chosen = _checked(chosen, num_modules)
  classes = _per_token(classes, chosen, num_classes)
  table = _joint(classes[:, :, None, None], chosen, num_classes, num_modules).T
  base = np.bincount(classes.ravel(), minlength=num_classes) / max(classes.size, 1)
  share = _divided(table, table.sum(axis=1, keepdims=True))
  return Specialisation(share, _divided(share, base))


class Information(NamedTuple):
  """Bits that modules and classes share at each step, and by chance; see `information`."""

  bits: Float[np.ndarray, ' steps']
  shuffled: Float[np.ndarray, ' steps']


def information(
  chosen: ArrayLike,
  classes: ArrayLike,
  num_modules: int,
  num_classes: int,
  shuffles: int = 8,
  seed: int = 0,
) -> Information:
  """Returns the mutual information, in bits, of a token's class and its module, at each step.

  `Σ p(c, m) log₂ p(c, m) / (p(c) p(m))`, with p the shares among the tokens and their k modules
  (each of the k counts alike). An estimate from counts is too high, more so the fewer tokens there
  are; `shuffled` is the same after the classes were shuffled, where the truth is zero, so what
  counts is by how much `bits` exceeds it.

  Args:
    shuffles: the control is a mean over so many, of tokens' classes among tokens, of examples'
      among examples.
    seed: of the shuffles.
  """
  chosen = _checked(chosen, num_modules)
  given = np.asarray(classes)
  rng = np.random.default_rng(checked_seed(seed))

  def bits(classes):
    classes = _per_token(classes, chosen, num_classes)[:, :, None]
    tables = [
      _joint(classes, chosen[:, :, step], num_classes, num_modules)
      for step in range(chosen.shape[2])
    ]
    return np.array([_mutual_information(table) for table in tables])

  shuffled = [bits(rng.permutation(given.ravel()).reshape(given.shape)) for _ in range(shuffles)]
  return Information(bits(given), np.mean(shuffled, axis=0))


def compute_share(chosen: ArrayLike, identity: ArrayLike) -> Float[np.ndarray, 'examples tokens']:
  """Returns the share of the k·S choices of each token that are not identities.

  >>> compute_share([[[[0], [1]], [[0], [0]]]], [False, True]).tolist()
  [[0.5, 1.0]]
  """
  identity = np.asarray(identity, bool)
  return 1 - identity[_checked(chosen, identity.size)].mean(axis=(2, 3))


def reuse(chosen: ArrayLike, num_modules: int) -> Int[np.ndarray, 'modules uses']:
  """Returns how many tokens use each module 0, 1, … S times, `[M, S+1]`."""
  chosen = _checked(chosen, num_modules)
  steps = chosen.shape[2]
  uses = ((chosen == module).sum(axis=(2, 3)).ravel() for module in range(num_modules))
  return np.array([np.bincount(number, minlength=steps + 1) for number in uses], np.int64)


def mean_uses(counts: ArrayLike, identity: ArrayLike) -> float:
  """Returns how often a token uses a module that it uses at all, on the mean, without identities.

  1 is no reuse: a network of as many parameters as are used. NaN where all was identity. `counts`
  are `[M, S+1]`, as `reuse` makes them.
  """
  working = np.asarray(counts)[~np.asarray(identity, bool)].sum(axis=0)
  distinct = working[1:].sum()
  return float(working @ np.arange(working.size) / distinct) if distinct else np.nan


def flows(chosen: ArrayLike, num_modules: int) -> Float[np.ndarray, 'moves modules modules']:
  """Returns where tokens go: entry (s, i, j) is the share that chose i at step s and j next.

  Each of the k·k pairs of a token counts alike; each step adds up to 1.
  """
  chosen = _checked(chosen, num_modules)
  steps = range(chosen.shape[2] - 1)
  tables = [
    _joint(chosen[:, :, s, :, None], chosen[:, :, s + 1, None], num_modules, num_modules)
    for s in steps
  ]
  counts = np.array(tables, np.float64).reshape(len(steps), num_modules, num_modules)
  return _divided(counts, counts.sum(axis=(1, 2), keepdims=True))


def byte_classes(tokens: ArrayLike) -> Int[np.ndarray, '...']:
  """Returns the class of each byte, an index into `BYTE_CLASSES`; any shape, 0 to 255.

  >>> [BYTE_CLASSES[number] for number in byte_classes(list(b'a 7'))]
  ['lower-case letter', 'space', 'digit']
  """
  tokens = np.asarray(tokens)
  _check_range(tokens, 256, 'bytes')
  table = np.full(256, len(_CHARACTERS))
  for number, characters in enumerate(_CHARACTERS.values()):
    table[np.frombuffer(characters.encode(), np.uint8)] = number
  return table[tokens]


def utilisation(index: ArrayLike, count: int) -> Float[np.ndarray, ' experts']:
  """Returns the load of each expert over the ideal even one: the mean is 1, 0 is a dead one.

  Args:
    index: the expert of every choice, any shape, 0 to count−1.
    count: how many experts there are.

  >>> utilisation([0, 0, 0, 1], 2).tolist()
  [1.5, 0.5]
  """
  index = np.asarray(index)
  _check_range(index, count, 'experts')
  loads = np.bincount(index.ravel(), minlength=count) * float(count)
  return _divided(loads, index.size)


def _joint(first, second, rows, columns):
  """Returns how often each pair of two arrays of numbers that broadcast occurs, `[rows,
  columns]`."""
  pairs = np.asarray(first, np.int64) * columns + second
  return np.bincount(pairs.ravel(), minlength=rows * columns).reshape(rows, columns)


def _mutual_information(table):
  joint = _divided(table, table.sum())
  rows, columns = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
  return scipy.special.rel_entr(joint, rows * columns).sum() / np.log(2)


def _divided(numerator, denominator):
  """Returns the quotient, NaN where the denominator is zero."""
  empty = np.full(np.shape(numerator), np.nan)
  return np.divide(numerator, denominator, out=empty, where=np.greater(denominator, 0))


def _per_token(classes, chosen, num_classes):
  classes = np.asarray(classes)
  if classes.shape not in (chosen.shape[:1], chosen.shape[:2]):
    raise UserError(
      f'expected classes {list(chosen.shape[:2])} of tokens or {list(chosen.shape[:1])} of '
      f'examples, got {classes.shape}'
    )
  _check_range(classes, num_classes, 'classes')
  return np.broadcast_to(classes[:, None] if classes.ndim == 1 else classes, chosen.shape[:2])


def _checked(chosen, num_modules=None):
  chosen = np.asarray(chosen)
  if chosen.ndim != 4 or not chosen.shape[-1]:
    raise UserError(f'expected choices [examples, tokens, steps, k], got shape {chosen.shape}')
  _check_range(chosen, num_modules, 'modules')
  repeated = np.diff(np.sort(chosen, axis=-1), axis=-1) == 0
  if repeated.any():
    place = tuple(map(int, np.argwhere(repeated)[0][:3]))
    raise UserError(
      f'choices {chosen[place].tolist()} at {place}: expected modules that differ from each other'
    )
  return chosen


def _check_range(values, count, noun):
  if values.dtype.kind not in 'iu':
    raise UserError(f'expected whole numbers for {noun}, got {values.dtype}')
  if values.size and (values.min() < 0 or (count is not None and values.max() >= count)):
    outside = values.min() if values.min() < 0 else values.max()
    limit = '' if count is None else f' and under {count}'
    raise UserError(f'{outside} among the {noun}: expected numbers of at least 0{limit}')
