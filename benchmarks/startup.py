"""Time from the command to the first step of a config, with no compiled programs kept and with all.

  python benchmarks/startup.py [--configs=exp1,exp2,exp4,dna_lm]

Each config is started twice in a fresh folder for compiled programs, and asked to stop when its
first step is in the curves. Seconds of the clock and of the processor, which a busy machine changes
less; the least of the repetitions.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

CONFIGS = flags.DEFINE_list('configs', ['exp1', 'exp2', 'exp4', 'dna_lm'], 'Names of configs.')
REPEATS = flags.DEFINE_integer('repeats', 1, 'Starts with the programs of the first one.')
LIMIT = 900.0  # seconds


def first_step(config: str, folder: Path, programs: Path) -> tuple[float, float]:
  """Returns the seconds until the first step of a run, of the clock and of the processor."""
  options = ('--config.train.log_every=1', '--config.num_seeds=1', f'--workdir={folder}')
  command = [sys.executable, '-m', 'additive_jax.launch', f'--config={config}', *options]
  began = time.perf_counter()
  environment = os.environ | {'ADDITIVE_JAX_CACHE': str(programs)}
  with open(f'{folder}.log', 'w') as log:
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
  curves = folder / 'metrics.jsonl'
  while not (curves.exists() and curves.stat().st_size) and process.poll() is None:
    time.sleep(0.05)
    if time.perf_counter() - began > LIMIT:
      break
  seconds, used = time.perf_counter() - began, _processor_seconds(process.pid)
  process.send_signal(signal.SIGTERM)
  process.wait()
  return seconds, used


def _processor_seconds(pid: int) -> float:
  """What a process has used of the processor; NaN where that cannot be read."""
  try:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return float('nan')
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def main(argv):
  """Prints a line for each config."""
  del argv
  print(f'{"config":12} {"first start":>24} {"second start":>24}')
  for config in CONFIGS.value:
    with tempfile.TemporaryDirectory() as name:
      folder = Path(name)
      times = [first_step(config, folder / f'run-{i}', folder / 'programs') for i in range(2)]
      for i in range(1, REPEATS.value):
        again = first_step(config, folder / f'run-{i + 1}', folder / 'programs')
        times[1] = tuple(min(pair) for pair in zip(times[1], again))
    shown = [f'{seconds:6.1f} s ({used:5.1f} s CPU)' for seconds, used in times]
    print(f'{config:12} {shown[0]:>24} {shown[1]:>24}', flush=True)


if __name__ == '__main__':
  app.run(main)
