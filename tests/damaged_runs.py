"""Damages in every file of a run, and what comes of them.

  python tests/damaged_runs.py [COUNT] [SEED]     tries COUNT damages of each kind of directory

Whatever happens to a file, the same command ends with the tables of the sound run, or with one line
that names the file or its folder: never with a traceback, never with other numbers.
"""

import collections
import contextlib
import json
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import studies
import tiny

from additive_jax.errors import UserError
from additive_jax.experiments.opening import open_session
from additive_jax.experiments.pools import open_pools
from additive_jax.export import export_run, load

SKIPPED = ('tensorboard', 'environment.json', '.lock')  # not read by the library
TIMES = ('seconds',)  # of booster's tables, which differ from run to run


class Outcome(NamedTuple):
  """What came of a damage: same, one line, other numbers or traceback; and what was said."""

  kind: str
  text: str

  @property
  def good(self):
    return self.kind in ('same', 'one line')


def files(folder):
  """The files of a directory that the library reads, by their paths in it."""
  paths = [path.relative_to(folder) for path in sorted(Path(folder).rglob('*')) if path.is_file()]
  return [path for path in paths if not any(word in str(path) for word in SKIPPED)]


def another_digit(content, rng):
  places = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
  if not places:
    return flipped_bit(content, rng)
  changed, place = bytearray(content), rng.choice(places)
  changed[place] = rng.choice([byte for byte in range(48, 58) if byte != content[place]])
  return bytes(changed)


def flipped_bit(content, rng):
  changed = bytearray(content)
  changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  return bytes(changed)


def cut_off(content, rng):
  return content[: rng.randrange(len(content))]


def without_some(content, rng):
  start = rng.randrange(len(content))
  return content[:start] + content[start + rng.randint(1, 40) :]


def zeros(content, rng):
  start = rng.randrange(len(content))
  size = min(rng.randint(1, 64), len(content) - start)
  return content[:start] + bytes(size) + content[start + size :]


def line_again(content, rng):
  """A second version of a line after all others, with other digits."""
  lines = content.splitlines(keepends=True)
  return content + another_digit(rng.choice(lines), rng)


def without_line(content, rng):
  lines = content.splitlines(keepends=True)
  del lines[rng.randrange(len(lines))]
  return b''.join(lines)


DAMAGES = (another_digit, flipped_bit, cut_off, without_some, zeros, line_again, without_line)


def half(source, target, name):
  """What a kill would have left: a pool without record and newest checkpoint, no tables."""
  lines = (source / 'journals' / f'{name}.jsonl').read_bytes().splitlines()
  tiny.killed_copy(source, target, f'{name}.jsonl', len(lines) - 1)
  for path in target.glob('*.csv'):
    path.unlink()
  arm, seed = (json.loads(lines[-1])[key] for key in ('variant', 'seed'))
  steps = target / 'checkpoints' / f'{arm}-seed{seed}'
  if steps.exists():
    shutil.rmtree(max(steps.iterdir(), key=lambda path: int(path.name)))


def tables(workdir):
  """The tables of a run without what differs each time."""
  found = {}
  for path in sorted(Path(workdir).glob('*.csv')):
    header, *rows = [line.split(',') for line in path.read_text().splitlines()]
    stays = [i for i, key in enumerate(header) if not any(word in key for word in TIMES)]
    found[path.name] = [[row[i] for i in stays] for row in [header, *rows]]
  return found


def goes_on(name, expected):
  """Gives the run's command again; whether its tables are those of the sound run."""

  def act(workdir):
    studies.run(name, workdir)
    return tables(workdir) == expected

  return act


def tells_structures(expected):
  """Asks the directory of a sweep what to train together."""
  from additive_jax.experiments.cotrain import _from_sweep

  def act(workdir):
    config = tiny.config('cotrain', {'structures_from': str(workdir)})
    with open_session(config, workdir / 'new', check=lambda session: None) as session:
      return [str(structure) for structure in _from_sweep(session)] == expected

  return act


def gives_pool(expected, x):
  """Reads a pool of the run, as an export does."""

  def act(workdir):
    pools = open_pools(workdir)
    _, saved = pools.read(x, 'pool-seed0')
    return bool((np.asarray(pools.model.apply(saved.variables, x)) == expected).all())

  return act


def loads(expected, x):
  """Loads an exported network."""

  def act(workdir):
    model, variables = load(workdir)
    return bool((np.asarray(model.apply(variables, x)) == expected).all())

  return act


def attempt(source, path, damage, act, rng):
  """The outcome of one damage of one file of a copy of a directory."""
  with tempfile.TemporaryDirectory() as folder:
    workdir = Path(folder) / 'run'
    shutil.copytree(source, workdir)
    content = (workdir / path).read_bytes()
    changed = damage(content, rng) if content else b'1'
    (workdir / path).write_bytes(changed)
    try:
      return Outcome('same' if act(workdir) else 'other numbers', '')
    except UserError as error:
      text = str(error)
      named = any(part in text for part in (path.name, str(workdir / path.parent), path.parts[0]))
      return Outcome('one line' if named and '\n' not in text else 'traceback', text)
    except Exception as error:
      return Outcome('traceback', f'{type(error).__name__}: {error}'[:300])


def directories(folder, name='cotrain'):
  """Makes the directories; returns what is tried: {kind: (directory, act)}."""
  done, sweep = folder / name, folder / 'sweep'
  result = studies.run(name, done)
  half(done, folder / 'half', name)
  expected = tables(done)
  tried = {
    'finished': (done, goes_on(name, expected)),
    'half': (folder / 'half', goes_on(name, expected)),
  }
  if name == 'cotrain':
    best = studies.run('sweep', sweep).table['structure'].tolist()
    pools = open_pools(done)
    x = pools.data.test[np.arange(8)][0]
    _, saved = pools.read(x, 'pool-seed0')
    logits = np.asarray(pools.model.apply(saved.variables, x))
    export_run(done, result.table['structure'][0], folder / 'net', checkpoint='pool-seed0')
    model, variables = load(folder / 'net')
    tried |= {
      'structures_from': (sweep, tells_structures(best[:2])),
      'a pool that is read': (done, gives_pool(logits, x)),
      'an exported network': (folder / 'net', loads(np.asarray(model.apply(variables, x)), x)),
    }
  return tried


def main(argv):
  """Tries damages and prints what came of them; returns the exit code."""
  count, seed = int(argv[1]) if len(argv) > 1 else 40, int(argv[2]) if len(argv) > 2 else 0
  logging.getLogger('additive_jax').setLevel(logging.ERROR)
  bad = 0
  for name in ('cotrain', 'booster'):
    with tempfile.TemporaryDirectory() as folder, studies.programs(Path(folder) / 'programs'):
      for kind, (source, act) in directories(Path(folder), name).items():
        rng, counts = random.Random(seed), collections.Counter()
        paths = files(source)
        # Of the many files of checkpoints a part, of all others each several times.
        few = [path for path in paths if path.parts[0] != 'checkpoints']
        for i in range(count):
          path = rng.choice(few if i % 3 or (kind == 'a pool that is read' and i % 2) else paths)
          damage = rng.choice(DAMAGES)
          outcome = attempt(source, path, damage, act, rng)
          counts[outcome.kind] += 1
          if not outcome.good:
            bad += 1
            print(f'  {name}, {kind}: {path}, {damage.__name__}: {outcome}', flush=True)
          jax.clear_caches() if i % 50 == 49 else None
        print(f'{name}, {kind}: {count} tried, {dict(counts)}', flush=True)
  return int(bad > 0)


if __name__ == '__main__':
  with contextlib.suppress(KeyboardInterrupt):
    sys.exit(main(sys.argv))
