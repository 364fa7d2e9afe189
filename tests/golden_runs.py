"""Reference runs: short runs of every experiment in every way to run it, and what they leave.

  python tests/golden_runs.py record          runs all of them and writes tests/golden/*.json
  python tests/golden_runs.py check [NAME …]  runs them again and compares

A redesign must end with these numbers. What is compared is every table, `summary.json` and the
curves; not times, nor bytes of memory. On the machine that recorded them digests are equal to the
bit; elsewhere values agree to `RTOL`, since compilers for other processors round differently.
"""

import concurrent.futures
import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / 'golden'
RTOL, ATOL = 2e-3, 2e-5  # of losses after some tens of steps; a wrong rule changes the first digit
FLAGS = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
# Of summaries and curves: what differs from run to run on one machine.
UNSTABLE = ('seconds', 'time', 'bytes', 'bubble', 'wall', 'crc', 'sha256')
# What runs have come to say since the references were made, and what they say more rarely: an
# exponent only where a power law fits.
ADDED = (
  'minus_all_on',
  'chosen_on',
  'reported_on',
  'num_networks',
  'nothing_removed',
  'shallow_dearer',
  'path_law',
  'path_exponent',
)
ADDED_TABLES = {'differences.csv'}

TABLE = {
  'num_seeds': 2,
  'learning_rate': 2e-3,
  'data.name': 'tabular:iris',
  'data.valid': 0.0,
  'model.num_blocks': 3,
  'model.width': 8,
  'model.hidden': (8,),
  'train.epochs': 2.0,
  'train.batch_size': 16,
  'train.structures_per_step': 4,
  'train.log_every': 5,
  'train.checkpoint_every': 5,
  'sweep.shared_epochs': 2.0,
  'sweep.top_k': 3,
  'sampler.name': 'uniform',
  'cotrain.top_k': 2,
  'cotrain.sweep_epochs': 2.0,
}
IMAGES = TABLE | {
  'num_seeds': 1,
  'data.name': 'digits',
  'data.train_examples': 48,
  'data.test_examples': 40,
  'model.name': 'transformer',
  'model.patch_size': 4,
  'model.num_blocks': 2,
  'model.num_heads': 2,
  'model.hidden': (24,),
  'model.num_chunks': 3,
  'train.epochs': 1.0,
  'train.batch_size': 8,
  'train.structures_per_step': 1,
  'train.log_every': 3,
}
STACK = TABLE | {
  'data.name': 'digits',
  'data.train_examples': 64,
  'data.test_examples': 48,
  'model.name': 'dense_stack',
  'model.gates': ('sub_activation',),
  'model.num_chunks': 2,
  'model.hidden': (12, 8),
  'num_seeds': 1,
  'learning_rate': 1e-2,
  'train.epochs': 1.0,
  'train.batch_size': 8,
  'train.structures_per_step': 1,
  'train.log_every': 4,
  'compress.epochs': 2.0,
  'compress.tune_epochs': 1.0,
  'compress.kl': 2.0,
  'compress.ramp': 0.2,
  'compress.log_variance': -1.0,
  'compress.variance_rate': 40.0,
  'compress.sparsities': (0.6,),
}
STOCHASTIC = TABLE | {
  'sampler.name': 'bernoulli',
  'sampler.keep_ramp': 'linear',
  'sampler.ramp': 0.5,
  'sampler.ramp_shape': 'step',
  'stochastic.rescale': 'inverse',
  'train.structures_per_step': 1,
}
BOOSTER = TABLE | {
  'train.structures_per_step': 1,
  'train.log_every': 4,
  'booster.num_models': 2,
  'booster.structure': '101',
  'booster.epochs': 1.0,
  'booster.large_epochs': 1.0,
  'booster.sync_epochs': 0.25,
  'booster.features': 'embedding',
  'booster.embedding_epochs': 0.2,
}
DNA = IMAGES | {
  'dna.num_backbone': 1,
  'dna.num_steps': 2,
  'dna.attention': 1,
  'dna.mlp': 1,
  'dna.identity': 1,
  'dna.top_k': 2,
  'dna.examples': 36,
  'balance.bias_rate': 0.01,
}
EXPERTS = IMAGES | {
  'experts.variants': ('softmax', 'marginal', 'single', 'moe'),
  'experts.budgets': ('params',),
  'experts.keep': 0.6,
  'experts.num_experts': 4,
}
MIXED = IMAGES | {'model.gates': ('residual', 'sub_activation', 'lane'), 'model.num_blocks': 1}

# Name: experiment, options, devices, how it is run.
RUNS = {
  'sweep': ('sweep', TABLE, 1, 'plain'),
  'sweep_search': (
    'sweep',
    TABLE | {'sweep.modes': ('shared',), 'search.method': 'evolution', 'search.budget': 8,
             'search.population': 4},
    1,
    'plain',
  ),
  'sweep_halving': ('sweep', TABLE | {'sweep.halving': 2, 'sweep.rungs': 2}, 1, 'plain'),
  'sweep_mixed': ('sweep', MIXED | {'sweep.modes': ('shared',)}, 1, 'plain'),
  'sweep_shards': ('sweep', TABLE, 1, 'shards'),
  'cotrain': ('cotrain', TABLE, 1, 'plain'),
  'cotrain_resumed': ('cotrain', TABLE, 1, 'resumed'),
  'cotrain_8_devices': ('cotrain', TABLE, 8, 'plain'),
  'cotrain_2_processes': ('cotrain', TABLE, 1, 'processes'),
  'cotrain_ring': ('cotrain', TABLE | {'train.collective': 'ring'}, 8, 'plain'),
  'cotrain_coverage': (
    'cotrain', TABLE | {'train.average': 'coverage', 'train.distill': 0.3}, 2, 'plain',
  ),
  'cotrain_zero': ('cotrain', TABLE | {'train.zero': True, 'train.offload': True}, 8, 'plain'),
  'cotrain_pipeline': (
    'cotrain',
    TABLE | {'model.num_blocks': 4, 'train.pipe_devices': 2, 'train.microbatches': 2},
    8,
    'plain',
  ),
  'stochastic': ('stochastic', STOCHASTIC, 1, 'plain'),
  'stochastic_8_devices': (
    'stochastic', STOCHASTIC | {'stochastic.parts': 8, 'train.distill': 0.2}, 8, 'plain',
  ),
  'experts': ('experts', EXPERTS, 1, 'plain'),
  'experts_4_devices': (
    'experts',
    EXPERTS | {'experts.variants': ('moe',), 'train.expert_devices': 2},
    4,
    'plain',
  ),
  'dna': ('dna', DNA, 1, 'plain'),
  'booster': ('booster', BOOSTER, 1, 'plain'),
  'booster_8_devices': ('booster', BOOSTER | {'num_seeds': 1}, 8, 'plain'),
  'booster_resumed': ('booster', BOOSTER | {'num_seeds': 1}, 1, 'resumed'),
  'compress_weights': ('compress', STACK | {'compress.level': 'weight'}, 1, 'plain'),
  'compress_units': (
    'compress',
    STACK | {'compress.level': 'unit', 'compress.kl': 30.0, 'compress.log_variance': 0.0,
             'compress.threshold': 2.4, 'compress.sparsities': ()},
    1,
    'plain',
  ),
}  # fmt: skip


def command(experiment, options, devices, workdir):
  """The arguments of the launcher for a run in `workdir`."""
  values = {'experiment': experiment, **options}
  text = {key: repr(v) if isinstance(v, tuple) else str(v) for key, v in values.items()}
  return [
    sys.executable,
    '-m',
    'additive_jax.launch',
    f'--config={ROOT / "configs" / "default.py"}',
    *(f'--config.{key}={value}' for key, value in text.items()),
    f'--workdir={workdir}',
    f'--devices={devices}',
  ]


def environment(programs):
  """Of the launcher's processes: CPU, programs compiled fast and kept in the folder `programs`."""
  return os.environ | {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': FLAGS,
    'JAX_COMPILATION_CACHE_DIR': str(programs),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES': 'none',
  }


def start(args, programs):
  """A launcher's process, its output in a pipe."""
  return subprocess.Popen(
    args,
    cwd=ROOT,
    env=environment(programs),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  """Waits for a launcher's process that has to end well."""
  out, _ = process.communicate(timeout=900)
  if process.returncode != 0:
    raise RuntimeError(f'{" ".join(process.args)} ended with {process.returncode}:\n{out}')


def make_run(name, workdir, programs):
  """Makes the run `name` in `workdir`."""
  experiment, options, devices, how = RUNS[name]
  args = command(experiment, options, devices, workdir)
  if how == 'shards':
    for shard in ('0/2', '1/2'):
      finish(start([*args, f'--config.shard={shard}'], programs))
  if how == 'resumed':
    process = start(args, programs)
    while process.poll() is None and not any(Path(workdir).glob('journals/*.jsonl')):
      time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
  if how == 'processes':
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      address = f'127.0.0.1:{free.getsockname()[1]}'
    joined = lambda rank: [
      f'--coordinator={address}', '--num_processes=2', f'--process_id={rank}'
    ]  # fmt: skip
    processes = [start([*args, *joined(rank)], programs) for rank in (0, 1)]
    for process in processes:
      finish(process)
    return
  finish(start(args, programs))


def numbers(workdir):
  """{file: rows} of all that a run left which has to come out the same each time."""
  found = {}
  for path in sorted(Path(workdir).glob('*.csv')):
    if path.name in ADDED_TABLES:
      continue
    with path.open() as file:
      found[path.name] = [stable(row) for row in csv.DictReader(file)]
  found['summary.json'] = stable(json.loads((Path(workdir) / 'summary.json').read_text()))
  for path in sorted(Path(workdir).glob('metrics*.jsonl')):
    found[path.name] = [stable(json.loads(line)) for line in path.read_text().splitlines()]
  return found


def stable(value):
  """`value` without what differs from run to run."""
  if isinstance(value, dict):
    keep = lambda key: not any(word in key for word in (*UNSTABLE, *ADDED))
    return {key: stable(v) for key, v in value.items() if keep(key)}
  if isinstance(value, list):
    return [stable(v) for v in value]
  return value


def digest(value):
  """A digest of a value, to the last bit of its numbers."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def differences(expected, actual, where=''):
  """Yields a line for every value of `actual` that is not the expected one."""
  if isinstance(expected, dict) and isinstance(actual, dict):
    for key in sorted(expected.keys() | actual.keys(), key=str):
      if key not in expected or key not in actual:
        yield f'{where}/{key}: only in the {"new" if key in actual else "reference"} run'
      else:
        yield from differences(expected[key], actual[key], f'{where}/{key}')
  elif isinstance(expected, list) and isinstance(actual, list):
    if len(expected) != len(actual):
      yield f'{where}: {len(actual)} entries, expected {len(expected)}'
    for i, (a, b) in enumerate(zip(expected, actual)):
      yield from differences(a, b, f'{where}[{i}]')
  else:
    a, b = number(expected), number(actual)
    both = isinstance(a, float) and isinstance(b, float)
    if not (a == b or (both and (abs(a - b) <= ATOL + RTOL * abs(a) or (a != a and b != b)))):
      yield f'{where}: {actual!r}, expected {expected!r}'


def number(value):
  """A cell of a table as a float where it is one."""
  if isinstance(value, bool) or value is None:
    return value
  try:
    return float(value)
  except (TypeError, ValueError):
    return value


def compare(name, workdir):
  """Whether a run's numbers are those of the reference, to the bit; and lines for those that are
  not, to rounding.
  """
  expected = stable(json.loads((GOLDEN / f'{name}.json').read_text()))
  actual = json.loads(json.dumps(numbers(workdir)))
  same = all(digest(actual.get(key)) == digest(expected.get(key)) for key in expected)
  return same, list(differences(expected, actual))


def main(argv):
  """Records or checks; returns the exit code."""
  action, names = argv[1], argv[2:] or list(RUNS)
  folder = Path(tempfile.mkdtemp(prefix='golden-'))
  programs = Path(os.environ.get('GOLDEN_PROGRAMS', folder / 'programs'))
  workers = int(os.environ.get('GOLDEN_WORKERS', '2'))
  code = 0
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    made = {name: pool.submit(make_run, name, folder / name, programs) for name in names}
    for name, future in made.items():
      try:
        future.result()
      except RuntimeError as error:
        print(f'{name}: {error}', flush=True)
        code = 1
        continue
      if action == 'record':
        GOLDEN.mkdir(exist_ok=True)
        text = json.dumps(numbers(folder / name), indent=0, sort_keys=True)
        (GOLDEN / f'{name}.json').write_text(text + '\n')
        print(f'{name}: recorded', flush=True)
      else:
        same, lines = compare(name, folder / name)
        print(f'{name}: {"to the bit" if same else "to rounding" if not lines else "DIFFERENT"}')
        print(*(f'  {line}' for line in lines[:20]), sep='\n', end='', flush=True)
        code |= bool(lines)
  shutil.rmtree(folder)
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv))
