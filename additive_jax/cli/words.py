"""The words of a short command line: flags of a few types, and names of directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from additive_jax.errors import UserError, did_you_mean


def read_words(
  argv: Sequence[str],
  flags: Mapping[str, type],
  *,
  least: int = 0,
  most: int | None = None,
  noun: str = 'run directory',
) -> tuple[list[str], dict[str, Any]]:
  """Returns the words of a command line that are no flags, and the flags.

  >>> read_words(['runs', 'a', '--json'], {'json': bool, 'state': str})
  (['a'], {'json': True, 'state': ''})

  Args:
    argv: the command line, the program first.
    flags: by name bool, float or str, given as `--name`, `--name=2` or `--name 2`.
    least, most: how many words there have to be and may be; None is any number.
    noun: what a word is.

  Raises:
    UserError: for an unknown flag, a wrong value, or too few or many words.
  """
  values: dict[str, Any] = {name: kind() for name, kind in flags.items()}
  words: list[str] = []
  rest = iter(argv[1:])
  for word in rest:
    if not word.startswith('-') or word == '-':
      words.append(word)
      continue
    name, equals, text = word.lstrip('-').partition('=')
    if name not in flags:
      known = ', '.join(f'--{flag}' for flag in flags) or 'none'
      hint = did_you_mean(name, list(flags))
      raise UserError(f'unknown flag {word!r}: expected one of {known}{hint}')
    values[name] = _value(name, flags[name], text if equals else None, rest)
  if len(words) < least or (most is not None and len(words) > most):
    at_most = least if most is None else most
    some = f'at least {least}' if most is None else f'at most {"one" if most == 1 else most}'
    count = some if most is None or least != most else {1: 'one'}.get(most, str(most))
    plural = noun if at_most == 1 else f'{noun[:-1]}ies' if noun.endswith('y') else f'{noun}s'
    raise UserError(f'{" ".join(words) or f"no {noun}"}: expected {count} {plural}')
  return words, values


def _value(name, kind, text, rest):
  if kind is bool:
    if text not in (None, 'true', 'false'):
      raise UserError(f'--{name}={text}: expected true or false')
    return text != 'false'
  text = next(rest, '') if text is None else text
  try:
    return kind(text)
  except ValueError as error:
    raise UserError(f'--{name}={text}: expected a number') from error
