"""The command `additive-jax`, which is also `python -m additive_jax`.

`additive-jax --config=exp2` starts an experiment, as `python -m additive_jax.launch` does; a first
word names another command, which stands in the table `COMMANDS` of `cli.manual`.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from additive_jax.cli.command import run_command
from additive_jax.cli.manual import COMMANDS


def main(argv: list[str] | None = None) -> int:
  """Runs the command line `argv`, the program first (None: the one of this process).

  Returns:
    The exit code: that of the command; 2 for a command that is not there.
  """
  program, *words = sys.argv if argv is None else argv
  name = 'launch'
  if words and not words[0].startswith('-'):
    name = words.pop(0)
  if name == 'help':
    name, words = 'launch', ['--help', *words]
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.7)
    hint = f'; did you mean {near[0]}?' if near else ''
    known = f'{", ".join(COMMANDS)}, or --config=NAME to start an experiment; --help lists all'
    print(f'error: command {name!r}: expected one of {known}{hint}', file=sys.stderr)
    return 2
  command = importlib.import_module(f'additive_jax.{COMMANDS[name].module}').main
  return run_command(command, [program, *words], resumes=name == 'launch')


if __name__ == '__main__':
  sys.exit(main())
