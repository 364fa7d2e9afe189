"""The command line: its flags, the config they name, and in one line what is wrong with them."""

from __future__ import annotations

import difflib
import itertools
import re
import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from additive_jax.errors import UserError, one_line

NEAR = 0.6  # of difflib's ratio, from which a word is taken for a misspelt one
PER_PROCESS = ('coordinator', 'num_processes', 'process_id')


def define_flags(values: flags.FlagValues, argv: list[str]) -> flags.FlagHolder:
  """The command line's options."""
  flags.DEFINE_string('workdir', '', 'Run directory.', flag_values=values)
  flags.DEFINE_integer('devices', 0, 'Devices; 0 is all.', lower_bound=0, flag_values=values)
  flags.DEFINE_string('coordinator', '', 'Process 0 of several.', flag_values=values)
  flags.DEFINE_integer('num_processes', 1, 'Processes in all.', flag_values=values)
  flags.DEFINE_integer('process_id', 0, 'This process, from 0.', flag_values=values)
  return config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)


def parse(argv: list[str]):
  """The flags, the config and its name.

  Raises:
    UserError: for an unknown flag or key, a value of another type, or a config that is not there.
  """
  values = flags.FlagValues()
  holder = define_flags(values, argv)
  given = [a.split('=', 1)[1] for a in argv if a.startswith('--config=')]
  given += [after for a, after in itertools.pairwise(argv) if a == '--config']
  if len(given) != 1:
    raise UserError(
      f'{", ".join(given) or "no config"}: expected one --config=configs/exp2.py, say'
    )
  path = given[0]
  file = Path(path.split(':')[0])
  if not file.is_file():
    raise UserError(f'--config={path}: expected a Python file, and there is none')
  # A config imports its defaults as `configs.default`, from wherever the command is given.
  sys.path.insert(0, str(file.resolve().parent.parent))
  try:
    rest = values(argv)[1:]
    config = holder.value
  except UserError:
    raise
  except Exception as error:
    raise UserError(_explanation(error, argv, values)) from error
  finally:
    sys.path.pop(0)
  if rest:
    raise UserError(f'argument {rest[0]!r}: expected --name=value')
  return values, config, file.stem


def command_of(argv: list[str]) -> str:
  """The command line as typed, but for what joins it to others: alone it goes on with their run."""
  words, skip = [], False
  for word in argv[1:]:
    name, equals, _ = word.lstrip('-').partition('=')
    joins = word.startswith('-') and name in PER_PROCESS
    if not joins and not skip:
      words.append(word)
    skip = joins and not equals
  return shlex.join(['python', '-m', 'additive_jax.launch', *words])


def _explanation(error: Exception, argv: list[str], values: flags.FlagValues) -> str:
  if isinstance(error, flags.UnrecognizedFlagError):
    return _unknown_flag(error.flagname, values)
  if isinstance(error, flags.IllegalFlagValueError):
    return _wrong_value(error, values)
  return _unknown_option(error, argv) or one_line(error)


def _unknown_flag(name: str, values: flags.FlagValues) -> str:
  known = sorted(flag for flag in values if '.' not in flag)
  near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR)
  hint = f'; did you mean --{near[0]}?' if near else ''
  listed = ', '.join(f'--{flag}' for flag in known)
  return f'unknown flag --{name}: expected one of {listed}, or --config.KEY=VALUE{hint}'


def _wrong_value(error: Exception, values: flags.FlagValues) -> str:
  """What a flag that was given something else takes."""
  text = str(error).removeprefix('flag --').removesuffix(f': {error.__context__}')
  name, _, value = text.partition('=')
  parser = values[name].parser
  kind = parser.flag_type()
  if parser.syntactic_help:
    expected = parser.syntactic_help
  elif kind in ('bool', 'tuple'):
    expected = {'bool': 'true or false', 'tuple': 'a list of values, such as (1, 2)'}[kind]
  else:
    expected = f'one option at a time, --{name}.KEY=VALUE'
  return f'--{name}={value}: expected {expected}'


def _unknown_option(error: Exception, argv: list[str]) -> str | None:
  """What ml_collections says of a key the config lacks, as a sentence; None for another error."""
  text = str(error)
  # Of a key that the config's file sets, or of one on the command line.
  missing = re.match(r"""\W*Key "(\w+)" does not exist|\W*'(\w+)""", text)
  if not isinstance(error, KeyError | AttributeError) or not missing:
    return None
  given = [a.split('=')[0].lstrip('-') for a in argv if a.startswith('--config.')]
  option = missing[1] or next((o for o in given if missing[2] in o.split('.')), None)
  if option is None:
    return None
  near = re.search(r'Did you mean "(\w+)"', text)
  hint = f'; did you mean {near[1]!r}?' if near else ''
  parent, _, key = option.rpartition('.')
  if parent.endswith('.kwargs'):
    hint += f'; set a new one together with the rest: --{parent}=\'{{"{key}": VALUE, …}}\''
  return f'unknown option {option!r}: expected one that the config has{hint}'
