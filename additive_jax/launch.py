"""Starts an experiment: `additive-jax --config=exp2`, or `python -m additive_jax.launch`.

  --config=NAME          an experiment's options: a name below, or a Python file (configs/exp2.py)
  --config.KEY=VALUE     overrides one of them: see the options below; several values with commas
                         (structures=101,011), names with values as kwargs.width=8
  --workdir=DIR          the run directory (default: runs/<config>-<hash of the options>)
  --devices=N            on CPU, N host devices (default: one per core, at most 8);
                         elsewhere, the first N
  --cache=DIR            where compiled programs are kept for later runs, or off (default:
                         $ADDITIVE_JAX_CACHE, or ~/.cache/additive_jax); safe to remove at any time
  --coordinator=ADDRESS  host:port of process 0 of several processes that train together, or auto
                         where SLURM, a TPU pod or Kubernetes tells
  --num_processes=N      how many processes there are, with a coordinator that is not auto
  --process_id=I         which of them this is, from 0
  --wait=SECONDS         how long to wait for the others to come, and for one that falls silent
                         (default: 30)

Exit codes: 0 done, or done before; 2 a mistake in what was asked, told in one line; 75 stopped
before the end, by a signal (TERM, INT, HUP, USR1, USR2) or because another process is gone, with
everything saved: the same command goes on; 130 ended by a second Ctrl-C.
"""

from __future__ import annotations

import os
import sys

from additive_jax.cli.command import answered, run_command
from additive_jax.cli.devices import set_up_devices
from additive_jax.cli.manual import manual
from additive_jax.errors import STOPPED, Stopped, UserError

CACHE = 'ADDITIVE_JAX_CACHE'  # see files/programs.py, which needs JAX


def main(argv: list[str]) -> int:
  """Runs the experiment that the command line `argv` names, and returns the exit code."""
  return answered(_run, argv, lambda: manual(__doc__, argv))


def _run(argv: list[str]) -> int:
  from additive_jax.cli.arguments import command_of, parse  # JAX: not for --help

  values, config, name = parse(argv)
  set_up_devices(values.devices)
  if values.cache:  # in the environment, for processes of this one
    os.environ[CACHE] = values.cache
  from additive_jax.experiments.options import read_options
  from additive_jax.experiments.studies import STUDIES
  from additive_jax.files.progress import setup_logging
  from additive_jax.parallel import processes

  setup_logging()
  options = read_options(config)
  if options.experiment not in STUDIES:
    raise UserError(
      f'config.experiment {options.experiment!r}: expected one of {", ".join(STUDIES)}'
    )
  if not values.coordinator and (values.num_processes > 1 or values.process_id):
    raise UserError(
      f'--num_processes={values.num_processes} without --coordinator: expected the host:port of '
      'process 0'
    )
  joining = values.coordinator, values.num_processes, values.process_id, values.wait
  try:
    with processes.distributed(*joining):
      opening = {'name': name, 'devices': values.devices, 'command': command_of(argv)}
      STUDIES[options.experiment].run(options, values.workdir or None, **opening)
  except Stopped:
    return STOPPED
  return 0


if __name__ == '__main__':
  sys.exit(run_command(main, sys.argv, resumes=True))
