"""Values of options as one types them: texts, lists and names with values need no quotes of Python.

  --config.structures=101010,110011             several values
  --config.train.frozen=embed,block_0[0-3]      commas within brackets or quotes do not separate
  --config.optimizer.kwargs.momentum=0.9        one more name with its value
  --config.train.learning_rates=embed:0.1,head:2      these and no others

What Python writes, `('101010', '110011')` and `{'embed': 0.1}`, is read too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from additive_jax.errors import UserError
from additive_jax.experiments.options import DECLARED, Option

BRACKETS = {'(': ')', '[': ']', '{': '}'}
WORDS = {'true': True, 'false': False, 'none': None}


class Named(NamedTuple):
  """Names and values for an option of such: in place of all that it has, or beside these."""

  option: str
  values: dict[str, Any]
  beside: bool


def as_declared(argv: list[str]) -> tuple[list[str], list[Named]]:
  """Returns the command line with options of several values in the one form that is understood (of
  one that is given twice the last, as of all options) and without those of names and values, which
  come beside it.

  >>> as_declared(['launch', '--config.structures=101,011', '--config.model.kwargs.width=8'])[0]
  ['launch', "--config.structures=('101', '011')"]
  """
  words: list[str] = []
  named: list[Named] = []
  places: dict[str, int] = {}
  rest = iter(argv)
  for word in rest:
    name, equals, text = word.partition('=')
    option, key = _option(name.lstrip('-')) if name.startswith('-') else (None, '')
    if option is None:
      words.append(word)
      continue
    if not equals:
      text = next(rest, '')
    if option.kind is dict:
      values = {key: _value(text)} if key else _names_and_values(text, option)
      named.append(Named(option.name, values, beside=bool(key)))
      continue
    word = f'{name}={_as_tuple(text, option)}'
    if option.name in places:
      words[places[option.name]] = word
    else:
      places[option.name] = len(words)
      words.append(word)
  return words, named


def set_named(config: ConfigDict, named: list[Named]) -> None:
  """Sets options of names and values in a config.

  Raises:
    AttributeError, KeyError: the config has no such option.
  """
  for option, values, beside in named:
    *sections, last = option.split('.')
    section = config
    for name in sections:
      section = section[name]
    before = section[last].to_dict() if beside else {}
    with section.ignore_type(), section.unlocked():
      section[last] = ConfigDict(before | values, type_safe=False, allow_dotted_keys=True)


def _option(name: str) -> tuple[Option | None, str]:
  """Returns the option of several values that a flag sets, and which name of it, where it is one of
  names and values."""
  prefix, _, name = name.partition('.')
  if prefix != 'config':
    return None, ''
  if (option := DECLARED.get(name)) is not None:
    return (option if option.kind in (tuple, dict) else None), ''
  for option in DECLARED.values():
    if option.kind is dict and name.startswith(f'{option.name}.'):
      return option, name.removeprefix(f'{option.name}.')
  return None, ''


def _as_tuple(text: str, option: Option) -> str:
  """Returns the text of a tuple as Python writes it; as it is where a value is not of its type."""
  assert option.item is not None
  item = _unquoted if option.item is str else option.item
  try:
    return repr(tuple(map(item, pieces(_without_brackets(text, '([')))))
  except ValueError:
    return text


def _names_and_values(text: str, option: Option) -> dict[str, Any]:
  """Returns what `name:value,name:value` says, or what a dict of Python or JSON does."""
  found = {}
  for piece in pieces(_without_brackets(text, '{')):
    name, *value = pieces(piece, ':', most=2)
    if not value:
      expected = 'names with values, such as name:1,other:2, or --config'
      raise UserError(
        f'--config.{option.name}={text}: expected {expected}.{option.name}.NAME=VALUE'
      )
    found[_unquoted(name)] = _value(value[0])
  return found


def _value(text: str) -> Any:
  """Returns what a text says: a number, a list, or else the text.

  >>> _value('0.5'), _value('gelu'), _value('(8, 8)'), _value('true')
  (0.5, 'gelu', (8, 8), True)
  """
  if text.lower() in WORDS:
    return WORDS[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def pieces(text: str, separator: str = ',', most: int = 0) -> list[str]:
  """Returns the parts of a text between separators that are not within brackets or quotes, without
  spaces around them; an empty last one is left out.

  >>> pieces('embed, block_[0,1], (8,)'), pieces('a:b:c', ':', most=2), pieces('')
  (['embed', 'block_[0,1]', '(8,)'], ['a', 'b:c'], [])

  Args:
    most: parts at the most, of which the last has the rest; 0 is any.
  """
  cuts = [place for place, char in _outside(text) if char == separator]
  cuts = cuts[: most - 1] if most else cuts
  starts = [0, *(cut + 1 for cut in cuts)]
  found = [text[start:end].strip() for start, end in zip(starts, [*cuts, len(text)])]
  return found if found[-1] else found[:-1]


def _outside(text: str) -> Iterator[tuple[int, str]]:
  """Yields the characters that are not within brackets or quotes, closing ones included."""
  ends: list[str] = []
  skip = False
  for place, char in enumerate(text):
    quoted = bool(ends) and ends[-1] in '\'"'
    if skip or char == '\\':
      skip = not skip
    elif ends and char == ends[-1]:
      ends.pop()
    elif not quoted and char in BRACKETS:
      ends.append(BRACKETS[char])
    elif not quoted and char in '\'"' and char in text[place + 1 :]:
      ends.append(char)
    if not ends:
      yield place, char


def _without_brackets(text: str, kinds: str) -> str:
  """Returns a text without brackets around the whole of it, of some kinds."""
  text = text.strip()
  whole = text[:1] in BRACKETS and [place for place, _ in _outside(text)] == [len(text) - 1]
  return text[1:-1] if whole and text[0] in kinds else text


def _unquoted(text: str) -> str:
  """Returns a text without quotes around it."""
  quoted = len(text) > 1 and text[0] == text[-1] and text[0] in '\'"'
  return text[1:-1] if quoted else text
