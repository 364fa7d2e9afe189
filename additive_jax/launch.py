"""Starts an experiment: `python -m additive_jax.launch --config=configs/exp2.py`.

  --config=FILE          an experiment's options; --config.KEY=VALUE after it overrides one
  --workdir=DIR          the run directory (default: runs/<config>-<hash of the options>)
  --devices=N            on CPU, N host devices (default: one per core, at most 8);
                         elsewhere, the first N
  --coordinator=ADDRESS  host:port of process 0 of several processes that train together, or auto
                         where SLURM, a TPU pod or Kubernetes tells
  --num_processes=N      how many processes there are, with a coordinator that is not auto
  --process_id=I         which of them this is, from 0

Exit codes: 0 done, done before, or stopped by a signal with everything saved; 2 a mistake in what
was asked, told in one line; 130 ended by a second Ctrl-C.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from additive_jax.errors import UserError

DEFAULT_DEVICES = 8  # more cores than structures of a step would only split small batches


def define_flags(
  values: flags.FlagValues, argv: list[str]
) -> config_flags.config_flags.ConfigFileFlagHolder:
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
    raise UserError(_unknown_option(error, argv) or _one_line(error)) from error
  finally:
    sys.path.pop(0)
  if rest:
    raise UserError(f'argument {rest[0]!r}: expected --name=value')
  return values, config, file.stem


def _unknown_option(error: Exception, argv: list[str]) -> str | None:
  """What ml_collections says of a key the config lacks, as a sentence; None for another error."""
  text = str(error)
  # Of a key that the config's file sets, or of one on the command line.
  missing = re.match(r"""\W*Key "(\w+)" does not exist|\W*'(\w+)""", text)
  if not isinstance(error, KeyError | AttributeError) or not missing:
    return None
  options = [a.split('=')[0].lstrip('-') for a in argv if a.startswith('--config.')]
  option = missing[1] or next((o for o in options if missing[2] in o.split('.')), None)
  near = re.search(r'Did you mean "(\w+)"', text)
  hint = f'; did you mean {near[1]!r}?' if near else ''
  return option and f'unknown option {option!r}: expected one that the config has{hint}'


def _one_line(error: Exception) -> str:
  text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
  return ' '.join(text.split())


def set_up_devices(count: int) -> None:
  """Asks for `count` host devices, 0 for one per core up to 8; before JAX's backend starts."""
  # Not every platform can say which cores a process may use.
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  count = count or min(cores or 1, DEFAULT_DEVICES)
  given = os.environ.get('XLA_FLAGS', '')
  wanted = {
    'xla_force_host_platform_device_count': count,
    # Devices that share few cores may reach a collective minutes apart.
    'xla_cpu_collective_call_terminate_timeout_seconds': 600,
  }
  new = [f'--{name}={value}' for name, value in wanted.items() if name not in given]
  os.environ['XLA_FLAGS'] = ' '.join([given, *new]).strip()


def main(argv: list[str]) -> int:
  """Runs one experiment; returns the exit code."""
  if {'--help', '-h'} & set(argv):
    print(__doc__)
    return 0
  try:
    values, config, name = parse(argv)
    set_up_devices(values.devices)
    return _run(values, config, name)
  except UserError as error:
    print(f'error: {_one_line(error)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130


def _run(values, config, name: str) -> int:
  from additive_jax import placement
  from additive_jax.experiments import cotrain, sweep
  from additive_jax.experiments.session import Stopped
  from additive_jax.progress import setup_logging

  setup_logging()
  experiments = {'sweep': sweep.run, 'cotrain': cotrain.run}
  if config.experiment not in experiments:
    raise UserError(
      f'config.experiment {config.experiment!r}: expected one of {", ".join(experiments)}'
    )
  if not values.coordinator and (values.num_processes > 1 or values.process_id):
    raise UserError(
      f'--num_processes={values.num_processes} without --coordinator: expected the host:port of '
      'process 0'
    )
  with placement.distributed(values.coordinator, values.num_processes, values.process_id):
    try:
      experiments[config.experiment](
        config, values.workdir or None, name=name, devices=values.devices
      )
    except Stopped:
      placement.log.info('stopped; everything is saved, the same command goes on')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
