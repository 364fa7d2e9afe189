"""Lists the configs that come with the package, or says what one does.

  additive-jax configs           a line for each
  additive-jax configs exp2      what it does, its command, its time, what to expect, and its file

A config of your own is a Python file that changes one of these: copy it, or import it by
`from additive_jax.configs import exp2`.

Exit codes: 0 done, 2 a mistake in what was asked, told in one line.
"""

from __future__ import annotations

import shutil
import sys

from additive_jax.cli.command import answered, run_command
from additive_jax.cli.configs import config_file
from additive_jax.cli.manual import config_text, configs_text
from additive_jax.cli.words import read_words


def main(argv: list[str]) -> int:
  """Lists the configs, or describes the one that `argv` names, and returns the exit code."""
  return answered(_run, argv, __doc__)


def _run(argv: list[str]) -> int:
  names, _ = read_words(argv, {}, most=1, noun='config')
  if names:
    print(f'{config_text(names[0])}\n\n{config_file(names[0])}')
  else:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(configs_text(columns=columns))
  return 0


if __name__ == '__main__':
  sys.exit(run_command(main, sys.argv))
