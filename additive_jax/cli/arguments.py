"""The command line: its flags, the config it names, and in one line what is wrong with them."""

from __future__ import annotations

import re
import shlex
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from additive_jax.cli.configs import config_file, explanation, load_config
from additive_jax.cli.values import as_declared, set_named
from additive_jax.errors import UserError, one_line
from additive_jax.experiments.options import DECLARED

MOST = 65_536  # devices, processes or seconds
NUMBERS = {'devices': 0, 'num_processes': 1, 'process_id': 0, 'wait': 3}  # each flag's least
PER_PROCESS = ('coordinator', 'num_processes', 'process_id', 'wait')


def parse(argv: list[str]) -> tuple[flags.FlagValues, ConfigDict, str]:
  """Returns the flags, the config with the command line's options, and the config's name.

  Args:
    argv: the command line, the program first.

  Raises:
    UserError: for an unknown flag, option or config, or a value of another type.
  """
  values = flags.FlagValues()
  bounds: dict[str, Any] = {'lower_bound': 0, 'upper_bound': MOST, 'flag_values': values}
  flags.DEFINE_multi_string('config', [], 'Name or file of the config.', flag_values=values)
  flags.DEFINE_string('workdir', '', 'Run directory.', flag_values=values)
  flags.DEFINE_string('cache', '', 'Where compiled programs are kept.', flag_values=values)
  flags.DEFINE_integer('devices', 0, 'Devices; 0 is all.', **bounds)
  flags.DEFINE_string('coordinator', '', 'Process 0 of several.', flag_values=values)
  flags.DEFINE_integer('num_processes', 1, 'Processes in all.', **(bounds | {'lower_bound': 1}))
  flags.DEFINE_integer('process_id', 0, 'This process, from 0.', **bounds)
  flags.DEFINE_integer('wait', 30, 'Seconds.', **(bounds | {'lower_bound': 3}))
  words, named = as_declared(argv)
  options = parse_flags(values, words, known_only=True)
  names, alone = values.config, [word for word in options[1:] if not word.startswith('-')]
  if not names:  # `launch exp2` is `launch --config=exp2`
    names, options = alone, [word for word in options if word not in alone]
  if len(names) != 1:
    more = '' if names else '; additive-jax --help lists them'
    raise UserError(f'{", ".join(names) or "no config"}: expected one, say --config=exp2{more}')
  config = load_config(names[0])
  try:
    set_named(config, named)
    # From here on the flag `config` holds the options, and --config.KEY=VALUE sets one.
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=options, allow_override=True
    )
  except (AttributeError, KeyError) as error:
    raise UserError(explanation(error, argv)) from error
  except flags.Error as error:
    raise UserError(one_line(error)) from error
  words = parse_flags(values, options)
  if len(words) > 1:
    raise UserError(f'argument {words[1]!r}: expected --name=value')
  return values, config, config_file(names[0]).stem


def parse_flags(values: flags.FlagValues, argv: list[str], known_only: bool = False) -> list[str]:
  """Sets flags from the command line `argv`, and returns the words of it that are none.

  With `known_only` they include unknown flags, which are a mistake otherwise.

  Raises:
    UserError: for a flag that is unknown, or has no value or a wrong one.
  """
  try:
    return values(argv, known_only=known_only)
  except flags.UnrecognizedFlagError as error:
    names = ', '.join(f'--{name}' for name in values if '.' not in name)
    options = ', or --config.KEY=VALUE' if 'config' in values else ''
    raise UserError(f'{one_line(error)}: expected one of {names}{options}') from error
  except flags.Error as error:
    raise UserError(_wrong_value(error)) from error


def _wrong_value(error):
  """What absl says of a flag's value; of an option's, what its declaration expects."""
  word = str(error).removesuffix(f': {error.__context__}').removeprefix('flag ')
  number = re.match(rf'--({"|".join(NUMBERS)})=(.*?): ', f'{word}: ')
  if number:
    least = NUMBERS[number[1]]
    return f'--{number[1]}={number[2]}: expected an integer from {least} to {MOST:,}'
  name = word.removeprefix('--config.').partition('=')[0]
  if name in DECLARED:
    return f'{word}: expected {DECLARED[name].expected}'
  if any(option.startswith(f'{name}.') for option in DECLARED):
    return f'{word}: expected one option at a time, --config.{name}.KEY=VALUE'
  return one_line(error)


def command_of(argv: list[str]) -> str:
  """Returns the command line as typed, but for what joins it to other processes.

  >>> command_of(['launch.py', '--config=exp2', '--coordinator', 'host:1', '--process_id=1'])
  'python -m additive_jax.launch --config=exp2'
  """
  words, skip = [], False
  for word in argv[1:]:
    name, equals, _ = word.lstrip('-').partition('=')
    joins = word.startswith('-') and name in PER_PROCESS
    if not joins and not skip:
      words.append(word)
    skip = joins and not equals
  return shlex.join(['python', '-m', 'additive_jax.launch', *words])
