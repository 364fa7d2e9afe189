"""What the value of an option may be: rules that check it and say what was expected."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from additive_jax.errors import SEED_EXPECTED, SEEDS

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Rule:
  """What is allowed of the values of an option's type.

  Attributes:
    expected: the words that follow "expected" where a value is refused.
    allows: tells whether a value is allowed.
    choices: the words among which a refused one may have been meant.
  """

  expected: str
  allows: Callable[[Any], bool]
  choices: tuple[str, ...] = ()


def between(least: float, most: float) -> Rule:
  """Returns the rule of the numbers between two, both of which are allowed.

  >>> between(1, 10_000).allows(float('nan')), between(1, 10_000).expected
  (False, '1 to 10,000')
  """
  return Rule(f'{least:,} to {most:,}', lambda value: least <= value <= most)


def above_zero(most: int) -> Rule:
  """Returns the rule of positive numbers up to `most`.

  >>> above_zero(1000).allows(0.0), above_zero(1000).expected
  (False, 'a positive number up to 1,000')
  """
  return Rule(f'a positive number up to {most:,}', lambda value: 0 < value <= most)


def one_of(*choices: str) -> Rule:
  """Returns the rule of one of some words.

  >>> one_of('psum', 'ring').expected
  'one of psum, ring'
  """
  words = ', '.join(choice or "''" for choice in choices)
  return Rule(f'one of {words}', lambda value: value in choices, choices)


def some_of(*choices: str) -> Rule:
  """Returns the rule of some words, at least one and each once.

  >>> some_of('flops', 'params').allows(('flops', 'flops'))
  False
  """

  def allows(values):
    return bool(values) and set(values) <= set(choices) and len(set(values)) == len(values)

  return Rule(f'some of {", ".join(choices)}, each once', allows)


def each(words: str, allows: Callable[[Any], bool]) -> Rule:
  """Returns the rule of tuples, the empty one too, all of whose values are allowed."""
  return Rule(words, lambda values: all(map(allows, values)))


def is_structure(text: str) -> bool:
  """Tells whether a text is that of a structure: of 0 and 1, at least one of them."""
  return bool(re.fullmatch('[01]+', text))


def parse_shard(text: str) -> tuple[int, int]:
  """Returns the number of a shard and how many there are, of a text that names one.

  >>> parse_shard('3/16'), parse_shard('')
  ((3, 16), (0, 1))
  """
  number, count = (text or '0/1').split('/')
  return int(number), int(count)


def _is_shard(text):
  if not re.fullmatch(r'(\d+/\d+)?', text):
    return False
  number, count = parse_shard(text)
  return number < count


CHANNELS = Rule('0, 1, 3 or 4', lambda value: value in (0, 1, 3, 4))
SHARE = Rule('a share in [0, 1]', lambda value: 0 <= value <= 1)
HALVING = Rule('0, or 2 to 1,000', lambda value: value == 0 or 2 <= value <= 1000)
STRUCTURE_OR_NONE = Rule("a structure as text, or ''", lambda text: not text or is_structure(text))
SPARSITIES = Rule(
  'shares in (0, 1), each once',
  lambda values: all(0 < share < 1 for share in values) and len(set(values)) == len(values),
)

LABEL_OR_NONE = Rule(
  "an integer as text, such as '-100', or ''", lambda text: bool(re.fullmatch(r'(-?\d+)?', text))
)

SEED = Rule(SEED_EXPECTED, lambda value: 0 <= value < SEEDS)

# The types of options that several sections have. Every number has two bounds: beyond them a run
# would not end, or its numbers would not be finite.
MILLION = 10**6
Count = Annotated[int, between(1, MILLION)]
Few = Annotated[int, between(1, 10_000)]  # of what is made one after the other
FewOrNone = Annotated[int, between(0, 10_000)]
Blocks = Annotated[int, between(1, 1000)]  # of what is traced one after the other
Many = Annotated[int, between(1, 10**9)]
Seed = Annotated[int, SEED]
Whole = Annotated[int, between(0, 10**9)]
Bytes = Annotated[int, Rule('0 to 2^60', lambda value: 0 <= value <= 2**60)]
Positive = Annotated[float, above_zero(MILLION)]
NotNegative = Annotated[float, between(0, MILLION)]
Rate = Annotated[float, above_zero(1000)]
RateOrNone = Annotated[float, between(0, 1000)]
Logarithm = Annotated[float, between(-100, 100)]
Share = Annotated[float, SHARE]
PositiveShare = Annotated[float, Rule('a share in (0, 1]', lambda value: 0 < value <= 1)]
ShareBelowOne = Annotated[float, Rule('a share in [0, 1)', lambda value: 0 <= value < 1)]
_SIZE = between(1, MILLION)
Sizes = Annotated[tuple[int, ...], each(f'sizes of {_SIZE.expected}', _SIZE.allows)]
Structures = Annotated[
  tuple[str, ...], each("structures as text, gate 0 first, such as ('1011', '0011')", is_structure)
]
Shard = Annotated[str, Rule('I/N with 0 <= I < N, such as 0/4', _is_shard)]

# An option that says where and in what pieces a run is computed, and not what: it may differ from
# one start of a run to the next.
SAME_RUN = 'same run'
Placement = Annotated[T, SAME_RUN]

# An option that runs of earlier versions do not know: at its default a run is what it was without.
LATER = 'later'
Later = Annotated[T, LATER]


@dataclasses.dataclass(frozen=True)
class Before:
  """The value that an option had in runs of earlier versions, which do not know it, where that is
  not its default.

  Attributes:
    value: at it a run is what it was without the option.
  """

  value: Any


HELD_OUT = Rule('-1, or a share in [0, 1)', lambda value: value == -1 or 0 <= value < 1)
HeldOut = Annotated[float, HELD_OUT, LATER, Before(0.0)]
