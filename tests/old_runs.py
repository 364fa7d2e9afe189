"""Run directories of the version before the package was rooms, kept in `tests/data/old_runs`.

  python tests/old_runs.py CHECKOUT [NAME …]   makes them anew with the code in CHECKOUT (8139008)

There is an archive for each study, with the directory of a run that was stopped half-way (`half`),
a copy of it that the same code finished (`finished`), and `options.json`: what the run was started
with. Left out is what a test does not need: pages, events of TensorBoard, most of the checkpoints,
and whatever names a folder of the machine.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import golden_runs

FOLDER = Path(__file__).parent / 'data' / 'old_runs'
# How many lines the journals have when the run is stopped: a sweep at once, others in the training
# that comes then.
LINES = {
  'sweep': 8,
  'cotrain': 4,
  'stochastic': 3,
  'experts': 8,
  'dna': 2,
  'booster': 6,
  'compress': 2,
}
# Pools that are read when the run goes on, beside the one that was being trained.
NEEDED = {
  'experts': ('softmax_equal_params-seed0', 'moe_equal_params-seed0'),
  'dna': ('dna-seed0', 'dna_skipping-seed0'),
  'booster': ('embedding-seed1',),
  'compress': ('start-seed0',),
}
UNREAD = ('report.html', 'tensorboard', 'environment.json', '*.lock', '*.damaged')


def unpacked(name, folder):
  """Unpacks a study's archive into a folder; returns its options and its devices."""
  with tarfile.open(FOLDER / f'{name}.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  kept = json.loads((Path(folder) / 'options.json').read_text())
  options = {k: tuple(v) if isinstance(v, list) else v for k, v in kept['options'].items()}
  return options, kept['devices']


def records(workdir):
  """The lines of all journals as they stand in the files, but for seconds, and for what arms are,
  which the old code did not write."""
  paths = Path(workdir).glob('journals/*.jsonl')
  paths = [path for path in paths if not path.stem.endswith(('seconds', '.arms'))]
  return sorted(line for path in paths for line in path.read_text().splitlines())


def steps(workdir):
  """The checkpoints of a run: {pool: numbers of its steps, ascending}."""
  found = {}
  for path in Path(workdir).glob('checkpoints/*/*'):
    if path.name.isdecimal():
      found.setdefault(path.parent.name, []).append(int(path.name))
  return {pool: sorted(numbers) for pool, numbers in found.items()}


def start(name, options, devices, workdir, checkout):
  """Starts the launcher of the code in a checkout."""
  args = golden_runs.command(name, options, devices, workdir)
  args[3] = f'--config={checkout}/configs/default.py'
  environment = golden_runs.environment(Path(tempfile.gettempdir()) / 'old_runs_programs')
  environment |= {'PYTHONPATH': str(checkout)}
  log = (workdir.parent / f'{workdir.name}.log').open('w')
  return subprocess.Popen(args, cwd=checkout, env=environment, stdout=log, stderr=log)


def record(name, checkout):
  """Makes the archive of a study."""
  import studies
  import tiny

  case = studies.CASES[name]
  options, devices = tiny.SMALL | case.options, case.devices
  with tempfile.TemporaryDirectory() as folder:
    half, finished = Path(folder) / 'half', Path(folder) / 'finished'
    process = start(name, options, devices, half, checkout)
    pools = None
    while process.poll() is None:
      if pools is None and len(records(half)) >= LINES[name]:
        pools = steps(half).keys()
      if pools is not None and (name == 'sweep' or steps(half).keys() > pools):
        process.send_signal(signal.SIGTERM)
        break
      time.sleep(0.005)
    if process.wait() or (half / 'summary.json').exists():
      raise RuntimeError((Path(folder) / 'half.log').read_text())
    shutil.copytree(half, finished)
    if start(name, options, devices, finished, checkout).wait():
      raise RuntimeError((Path(folder) / 'finished.log').read_text())
    print(name, len(records(half)), 'of', len(records(finished)), 'lines;', steps(half))
    new = steps(half).keys() - pools if name != 'sweep' else set()
    strip(half, {*new, *NEEDED.get(name, ())})
    strip(finished, {'shared-seed0'})
    kept = {'options': options, 'devices': devices}
    (Path(folder) / 'options.json').write_text(json.dumps(kept, indent=1) + '\n')
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tarfile.open(FOLDER / f'{name}.tar.xz', 'w:xz', preset=9) as archive:
      for part in ('options.json', 'half', 'finished'):
        archive.add(Path(folder) / part, part, filter=plain)


def strip(workdir, pools):
  """Leaves in a run's directory what goes into the archive; of the checkpoints those of `pools`."""
  for pattern in UNREAD:
    for path in workdir.rglob(pattern):
      shutil.rmtree(path) if path.is_dir() else path.unlink()
  for pool, numbers in steps(workdir).items():
    for step in numbers[:-1] if pool in pools else numbers:
      shutil.rmtree(workdir / 'checkpoints' / pool / str(step))
    if not any((workdir / 'checkpoints' / pool).iterdir()):
      (workdir / 'checkpoints' / pool).rmdir()
  for network in sorted(workdir.glob('exported/*'))[1:]:
    shutil.rmtree(network)
  for path in workdir.rglob('commit_success.txt'):
    path.write_text('')


def plain(member):
  """An entry of an archive without owner and time."""
  member.uid = member.gid = member.mtime = 0
  member.uname = member.gname = ''
  return member


if __name__ == '__main__':
  for study in sys.argv[2:] or LINES:
    record(study, os.path.abspath(sys.argv[1]))
