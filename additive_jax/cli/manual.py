"""What `additive-jax --help` says: commands, flags, configs and options, read from the texts of the
code, so that it comes at once, without JAX."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from additive_jax.cli.configs import FOLDER, config_file, config_names

WIDTH = 100


class Command(NamedTuple):
  """A command: the module that runs it, how it is called, and what it does, in a line."""

  module: str
  usage: str
  purpose: str


COMMANDS = {
  'launch': Command('launch', '--config=NAME', 'runs an experiment, or goes on with it'),
  'configs': Command('commands.configs', '[NAME]', 'lists the configs, or says what one does'),
  'plan': Command('planned', '--config=NAME', 'says what a step takes on each device'),
  'runs': Command('commands.runs', '[DIR]', 'lists the run directories in a folder'),
  'watch': Command('commands.watch', 'RUN', 'follows a run in the terminal until it ends'),
  'compare': Command('commands.compare', 'A B …', 'writes one page about several runs'),
  'export': Command('export', 'RUN --structure=BITS --to=DIR', 'cuts a network out of a run'),
}


class Setting(NamedTuple):
  """An option: its dotted name, its default, and its meaning."""

  name: str
  default: Any
  meaning: str


def config_lines() -> dict[str, str]:
  """Returns the first line of what each packaged config says of itself; its code is not run.

  >>> config_lines()['exp3']
  'Exp 3: random structures as a regulariser, on 200 images.'
  """
  return {name: config_text(name).partition('\n')[0] for name in config_names()}


def config_text(name: str) -> str:
  """Returns what a config says of itself: what it does, its command, its time and what to expect.

  Raises:
    UserError: if there is no such config.
  """
  return ast.get_docstring(ast.parse(config_file(name).read_text())) or ''


def settings() -> list[Setting]:
  """Returns every option, from the page that is written of their declarations.

  >>> next(one for one in settings() if one.name == 'seed').default
  0
  """
  found, comment = [], []
  for line in (FOLDER / 'default.py').read_text().splitlines():
    if text := re.fullmatch(r'  # (.*)', line):
      comment.append(text[1])
      continue
    option = re.fullmatch(r'  config\.([\w.]+) = (.*)', line)
    if option:
      found.append(Setting(option[1], _value(option[2]), ' '.join(comment)))
    comment = []
  names = [one.name for one in found]
  return [one for one in found if not any(name.startswith(f'{one.name}.') for name in names)]


def _value(text: str) -> Any:
  """Returns the default that a line of the page gives."""
  return ast.literal_eval(re.sub(r'ConfigDict\(((.*), type_safe=False)?\)', r'\2', text) or '{}')


def typed(value: Any) -> str:
  """Returns a value as one types it on a command line.

  >>> typed(('101', '011')), typed({'weight_decay': 0.1}), typed(''), typed(True)
  ('101,011', 'weight_decay:0.1', "''", 'true')
  """
  if isinstance(value, Mapping):
    return ','.join(f'{name}:{typed(one)}' for name, one in value.items()) or "''"
  if isinstance(value, tuple):
    return ','.join(map(str, value)) or "''"
  if value is None or isinstance(value, bool):
    return str(value).lower()
  return str(value) or "''"


def commands_text() -> str:
  """Returns a line for each command."""
  usages = {
    name: f'additive-jax {"" if name == "launch" else f"{name} "}{command.usage}'
    for name, command in COMMANDS.items()
  }
  width = max(map(len, usages.values()))
  return '\n'.join(f'  {usages[name]:{width}}  {COMMANDS[name].purpose}' for name in COMMANDS)


def configs_text() -> str:
  """Returns a line for each config."""
  lines = config_lines()
  width = max(map(len, lines))
  return '\n'.join(f'  {name:{width}}  {line}' for name, line in lines.items())


def options_text(words: list[str]) -> str:
  """Returns every option with its default and meaning, or those with one of some words in the name;
  all where there is none.

  >>> print(options_text(['num_seeds']))
    --config.num_seeds=3
        Seeds run: seed, seed + 1, … Intervals in tables and pictures are over them. 1 to 10,000.
  """
  every = settings()
  some = [one for one in every if any(word in one.name for word in words)]
  blocks = [
    f'  --config.{one.name}={typed(one.default)}\n'
    + textwrap.fill(one.meaning, WIDTH, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
    for one in some or every
  ]
  return '\n'.join(blocks)


def manual(flags: str, argv: list[str]) -> str:
  """Returns what `--help` says of the whole: commands, flags of an experiment, configs, options.

  Args:
    flags: what the flags of an experiment are.
    argv: the command line; words beside `--help` choose among the options.
  """
  words = [word for word in argv[1:] if not word.startswith('-')]
  parts = {
    'Commands, each with its own --help': commands_text(),
    '': flags.strip(),
    'Configs': configs_text(),
    'Options, with their defaults (--help WORD: those with the word in their names)': (
      options_text(words)
    ),
    'The file of all options': f'  {config_file("default")}',
  }
  return '\n\n'.join(f'{title}:\n{text}' if title else text for title, text in parts.items())
