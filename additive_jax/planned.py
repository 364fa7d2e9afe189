"""What a step of training will take on each device, before anything is trained or written.

  additive-jax plan --config=exp2     (or python -m additive_jax.planned --config=exp2)

prints a table for each pool that a config trains first: bytes on each device, bytes that
collectives move, FLOPs, by XLA and by a formula (docs/scale.md). The step is compiled for shapes
alone.

  --config=NAME          as of an experiment, see additive-jax --help
  --config.KEY=VALUE     overrides an option, such as config.train.fsdp_devices=8
  --devices=N            on CPU, N host devices, which need not be there: nothing is run on them;
                         elsewhere, the first N

Exit codes: 0 done; 2 a mistake in what was asked, told in one line.
"""

from __future__ import annotations

import sys

from additive_jax.cli.arguments import PER_PROCESS, parse
from additive_jax.cli.command import answered, run_command
from additive_jax.cli.devices import set_up_devices
from additive_jax.errors import UserError

OF_RUNS = ('workdir', 'cache', *PER_PROCESS)


def main(argv: list[str]) -> int:
  """Prints the plans of the config that the command line `argv` names; returns the exit code."""
  return answered(_run, argv, __doc__)


def _run(argv: list[str]) -> int:
  values, config, name = parse(argv)
  for flag in OF_RUNS:
    if values[flag].present:
      raise UserError(f'--{flag}={values[flag].value} of a plan: expected none, nothing is run')
  set_up_devices(values.devices)
  from additive_jax.experiments.options import named, read_options
  from additive_jax.experiments.planning import plan_config
  from additive_jax.files.progress import setup_logging

  setup_logging()
  options = read_options(config)
  with named(options):
    for pool, found in plan_config(options, values.devices):
      print(f'{name}, {pool}: {found}\n', flush=True)
  return 0


if __name__ == '__main__':
  sys.exit(run_command(main, sys.argv))
