"""Starts an experiment: `python -m additive_jax.launch --config=configs/exp2.py`.

  --config=FILE          an experiment's options; --config.KEY=VALUE after it overrides one
  --workdir=DIR          the run directory (default: runs/<config>-<hash of the options>)
  --devices=N            on CPU, N host devices (default: one per core, at most 8);
                         elsewhere, the first N
  --coordinator=ADDRESS  host:port of process 0 of several processes that train together, or auto
                         where SLURM, a TPU pod or Kubernetes tells
  --num_processes=N, --process_id=I   with a coordinator that is not auto

Exit codes: 0 done, done before, or stopped by a signal with everything saved; 2 a mistake in what
was asked, told in one line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from additive_jax.errors import UserError

DEFAULT_DEVICES = 8  # more cores than structures of a step would only split small batches


def define_flags(values: flags.FlagValues) -> config_flags.config_flags.ConfigFileFlagHolder:
  """The command line's options."""
  flags.DEFINE_string('workdir', '', 'Run directory.', flag_values=values)
  flags.DEFINE_integer('devices', 0, 'Devices; 0 is all.', lower_bound=0, flag_values=values)
  flags.DEFINE_string('coordinator', '', 'Process 0 of several.', flag_values=values)
  flags.DEFINE_integer('num_processes', 1, 'Processes in all.', flag_values=values)
  flags.DEFINE_integer('process_id', 0, 'This process, from 0.', flag_values=values)
  return config_flags.DEFINE_config_file('config', flag_values=values)


def parse(argv: list[str]):
  """The flags, the config and its name.

  Raises:
    UserError: for an unknown flag or key, a value of another type, or a config that is not there.
  """
  values = flags.FlagValues()
  holder = define_flags(values)
  path = next((a.split('=', 1)[1] for a in argv if a.startswith('--config=')), None)
  if path is None:
    raise UserError('no config: expected --config=configs/exp2.py, say')
  file = Path(path.split(':')[0])
  if not file.is_file():
    raise UserError(f'--config={path}: expected a Python file, and there is none')
  # A config imports its defaults as `configs.default`, from wherever the command is given.
  sys.path.insert(0, str(file.resolve().parent.parent))
  try:
    rest = values(argv)[1:]
  except UserError:
    raise
  except Exception as error:
    raise UserError(_one_line(error)) from error
  finally:
    sys.path.pop(0)
  if rest:
    raise UserError(f'argument {rest[0]!r}: expected --name=value')
  return values, holder.value, file.stem


def _one_line(error: Exception) -> str:
  text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
  return ' '.join(text.split())


def set_up_devices(count: int) -> None:
  """Asks for `count` host devices, 0 for one per core up to 8; before JAX's backend starts."""
  count = count or min(len(os.sched_getaffinity(0)), DEFAULT_DEVICES)
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
