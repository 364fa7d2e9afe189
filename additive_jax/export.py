"""A network that was cut out, as files that stand alone.

  python -m additive_jax.export RUN --structure=1101 --to=DIR

writes one structure of a pool of the run in the directory RUN, finished or stopped: only the
parameters that it reads, which `load(DIR)` gives back with a plain module, without gates.

  --structure=BITS       one bit a gate, gate 0 first; the run's config.json names the gates
  --to=DIR               must not exist yet
  --checkpoint=NAME      which pool, a folder of RUN/checkpoints (default: the first of
                         the config's model)
  --model=MODULE:CLASS   the network's class, if it is one of your own

DIR then holds `model.safetensors`, `orbax/` with the same parameters and their checksums, and
`model.json`: config, gates, structure, shapes, costs, and the largest difference of the logits
between the pool and what was exported, on a batch of the run's data.

Exit codes: 0 done; 2 a mistake in what was asked, told in one line, with nothing written.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax.traverse_util import flatten_dict, unflatten_dict

from additive_jax.arguments import one_line
from additive_jax.checkpoint import Checkpointer
from additive_jax.cut import Cut, cost, cut, make, receipt
from additive_jax.errors import UserError
from additive_jax.experiments.pools import open_pools
from additive_jax.models.additive import gate_names
from additive_jax.progress import setup_logging
from additive_jax.rundir import WRITABLE, config_hash, user_errors
from additive_jax.structure import parse

log = logging.getLogger('additive_jax')

MODEL, TENSORS, ORBAX = 'model.json', 'model.safetensors', 'orbax'
BATCH = 64  # examples of the receipt
FLAGS = ('structure', 'to', 'checkpoint', 'model')


def export(cut: Cut, directory, *, notes: dict[str, Any] | None = None) -> Path:
  """Writes what was cut out, all of it or nothing.

  Args:
    cut: what `cut.cut` returned.
    directory: must not exist; its parent must.
    notes: JSON values that go into `model.json` as well.

  Returns:
    The directory.

  Raises:
    UserError: when it exists or cannot be written, or the package safetensors is missing.
  """
  try:
    from safetensors import numpy as safetensors
  except ImportError:
    raise UserError(
      'export without the package safetensors: expected it, pip install additive_jax[export]'
    ) from None
  directory = Path(directory).absolute()
  check_new(directory)
  leaves = {path: np.ascontiguousarray(leaf) for path, leaf in _leaves(cut.variables).items()}
  described = {
    'config': cut.config,
    'structure': str(cut.structure),
    'gates': list(cut.gates),
    'kept': {name: np.flatnonzero(k).tolist() for name, k in cut.units.items() if not k.all()},
    'parameters': {
      path: {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'tensor': tensor_name(path)}
      for path, leaf in leaves.items()
    },
    **(notes or {}),
  }
  temporary = directory.with_name(f'.{directory.name}.{os.getpid()}.tmp')
  try:
    with user_errors('write', directory, WRITABLE):
      temporary.mkdir()
      tensors = {tensor_name(path): leaf for path, leaf in leaves.items()}
      (temporary / TENSORS).write_bytes(safetensors.save(tensors))
      with _checkpoint(temporary, cut.config) as checkpoint:
        checkpoint.save(0, cut.variables, wait=True)
      (temporary / MODEL).write_text(json.dumps(described, indent=2) + '\n')
      temporary.rename(directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return directory


def load(directory) -> tuple[Any, Any]:
  """The module and the variables of an exported network: `model.apply(variables, x)` gives the
  logits. Every leaf is checked against its checksum.

  Raises:
    UserError: when there is none, or it is damaged.
  """
  path = Path(directory) / MODEL
  with user_errors('read', path, 'a network that additive_jax.export has written'):
    content = path.read_bytes()
  try:
    described = json.loads(content)
    config, parameters = described['config'], described['parameters']
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f'{path} ({error}): expected what additive_jax.export has written') from error
  template = {
    name: jax.ShapeDtypeStruct(tuple(leaf['shape']), leaf['dtype'])
    for name, leaf in parameters.items()
  }
  with _checkpoint(Path(directory), config) as checkpoint:
    restored = checkpoint.restore({'params': unflatten_dict(template, sep='/')})
  if restored is None:
    raise UserError(f'{directory} without {ORBAX}/: expected what additive_jax.export has written')
  return make(config), restored.state


def tensor_name(path: str) -> str:
  """The name of a parameter in the safetensors file: `block_00/mlp/in/kernel`."""
  return path.replace('__', '/')


def check_new(directory) -> None:
  """Raises `UserError` unless `directory` can be made: it does not exist, its parent does."""
  directory = Path(directory)
  if directory.exists() or directory.is_symlink():
    raise UserError(f'{directory} exists: expected a directory that is yet to be made')
  if not directory.absolute().parent.is_dir():
    raise UserError(f'{directory}: expected {directory.absolute().parent} to be a directory')


def export_run(run, structure, to, *, checkpoint: str = '', model: str = '') -> Path:
  """Writes one structure of one pool of a run, and logs its receipt and costs.

  Args:
    run: the run directory.
    structure: text, gate 0 first.
    to: the directory to make.
    checkpoint: a folder of the run's checkpoints; '' is the first of the config's model.
    model: `module:Class` of a network of your own; '' for those of the library.

  Raises:
    UserError: for anything that does not fit; nothing is written then.
  """
  check_new(to)
  pools = open_pools(run, own=model)
  network, test = pools.model, pools.data.test
  parse(structure, len(gate_names(network)))  # before anything is read
  x = test[np.arange(min(BATCH, len(test)))][0]
  name, saved = pools.read(x, checkpoint)
  found = cut(network, saved.variables, structure)
  said = receipt(found, network, saved.variables, x)
  costs = {
    'pool': cost(network, saved.variables, x)._asdict(),
    'exported': cost(found.model, found.variables, x)._asdict(),
  }
  notes = {'receipt': dataclasses.asdict(said), 'cost': costs}
  notes |= {'run': Path(run).resolve().name, 'checkpoint': name, 'step': saved.step}
  directory = export(found, to, notes=notes)
  log.info('%s, step %d: %s', name, saved.step, said)
  for unit, (before, after) in {
    what: [costs[side][what] for side in ('pool', 'exported')] for what in ('flops', 'bytes')
  }.items():
    log.info('%s: %s in the pool with all gates on, %s exported', unit, f'{before:,}', f'{after:,}')
  log.info('wrote %s', directory)
  return directory


def _checkpoint(directory: Path, config) -> Checkpointer:
  return Checkpointer(directory / ORBAX, identity={'config': config_hash(config)})


def _leaves(variables) -> dict[str, Any]:
  return flatten_dict(variables['params'], sep='/')


def main(argv: list[str]) -> int:
  """Exports what the command line names; returns the exit code."""
  if {'--help', '-h'} & set(argv):
    print(__doc__)
    return 0
  try:
    values, run = _parse(argv)
    setup_logging()
    export_run(run, values.structure, values.to, checkpoint=values.checkpoint, model=values.model)
    return 0
  except UserError as error:
    print(f'error: {one_line(error)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130


def _parse(argv):
  """The flags and the run directory."""
  values = flags.FlagValues()
  for name in FLAGS:
    flags.DEFINE_string(name, '', '', flag_values=values)
  try:
    rest = values(argv)[1:]
  except flags.UnrecognizedFlagError as error:
    known = ', '.join(f'--{name}' for name in FLAGS)
    raise UserError(f'unknown flag --{error.flagname}: expected one of {known}') from error
  except flags.Error as error:
    raise UserError(f'{one_line(error)}: expected --name=value') from error
  if len(rest) != 1:
    raise UserError(f'{" ".join(rest) or "no run"}: expected one run directory')
  for name in ('structure', 'to'):
    if not values[name].value:
      raise UserError(f'no --{name}: expected RUN --structure=BITS --to=DIR')
  return values, rest[0]


if __name__ == '__main__':
  sys.exit(main(sys.argv))
