"""What `additive-jax --help` says: commands, flags, configs and options, read from the texts of the
code, so that it comes at once, without JAX."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from additive_jax.cli.configs import FOLDER, config_file, config_names
from additive_jax.errors import did_you_mean

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


def commands_text(names: Iterable[str] = tuple(COMMANDS)) -> str:
  """Returns a line for each command."""
  usages = {
    name: f'additive-jax {"" if name == "launch" else f"{name} "}{COMMANDS[name].usage}'
    for name in names
  }
  width = max(map(len, usages.values()))
  return '\n'.join(f'  {usages[name]:{width}}  {COMMANDS[name].purpose}' for name in usages)


def configs_text(names: Iterable[str] | None = None, columns: int | None = None) -> str:
  """Returns a line for each config.

  Args:
    names: of configs; None is all.
    columns: of the terminal, in which longer lines go on below themselves; None for no end.
  """
  lines = {name: config_lines()[name] for name in names or config_names()}
  width = max(map(len, lines)) + 4
  room = max(40, columns or 1000)
  return '\n'.join(
    textwrap.fill(
      line, room, initial_indent=f'  {name}'.ljust(width), subsequent_indent=' ' * width
    )
    for name, line in lines.items()
  )


def options_text(options: Iterable[Setting]) -> str:
  """Returns options with their defaults and meanings."""
  blocks = [
    f'  --config.{one.name}={typed(one.default)}\n'
    + textwrap.fill(one.meaning, WIDTH, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
    for one in options
  ]
  return '\n'.join(blocks)


def about(words: Sequence[str]) -> str:
  """Returns the commands, configs and options that have all words in their name, or else one of
  them; where none has, the options that have them in their meaning.

  >>> print(about(['num_seeds']))
  Options, with their defaults:
    --config.num_seeds=3
        Seeds run: seed, seed + 1, … Intervals in tables and pictures are over them. 1 to 10,000.
  """
  every = settings()
  commands, configs = _having(words, COMMANDS), _having(words, config_names())
  names, title = _having(words, [one.name for one in every]), 'Options, with their defaults'
  options = [one for one in every if one.name in names]
  if not (commands or configs or options):
    meanings = _having(words, [one.meaning for one in every])
    options = [one for one in every if one.meaning in meanings]
    title = 'Options that say it, with their defaults'
  parts = {
    'Commands, each with its own --help': commands_text(commands) if commands else '',
    'Configs': configs_text(configs) if configs else '',
    title: options_text(options),
  }
  found = '\n\n'.join(f'{title}:\n{text}' for title, text in parts.items() if text)
  known = [part for one in every for part in one.name.split('.')]
  hint = did_you_mean(words[0], [*COMMANDS, *config_names(), *known])
  return found or f'nothing about {" ".join(words)}{hint}; additive-jax --help lists all there is'


def _having(words: Sequence[str], texts: Iterable[str]) -> list[str]:
  """Returns the texts that have all words in them, or else one."""
  wanted, every = [_name(word) for word in words], list(texts)
  some = [[text for text in every if kind(w in _name(text) for w in wanted)] for kind in (all, any)]
  return some[0] or some[1]


def _name(text: str) -> str:
  """Returns a word as it would stand in a name: `--config.Learning rate=1` is `learning_rate`."""
  word = text.lower().removeprefix('--config.').partition('=')[0] if text[:2] == '--' else text
  return re.sub(r'[\s-]+', '_', word.lower())


def manual(flags: str, argv: list[str]) -> str:
  """Returns what `--help` says of the whole: commands, flags of an experiment, configs, options.

  Args:
    flags: what the flags of an experiment are.
    argv: the command line; words beside `--help` choose what is said, see `about`.
  """
  words = [word for word in argv[1:] if not word.startswith('-') or word.startswith('--config.')]
  if words:
    return about(words)
  parts = {
    'Commands, each with its own --help': commands_text(),
    '': flags.strip(),
    'Configs': configs_text(),
    'Options, with their defaults (--help WORD: what has the word in its name)': (
      options_text(settings())
    ),
    'The file of all options': f'  {config_file("default")}',
  }
  return '\n\n'.join(f'{title}:\n{text}' if title else text for title, text in parts.items())
